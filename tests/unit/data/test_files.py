"""Files of public data sets: found, downloaded, checked."""

import hashlib
import urllib.error

import pytest

from crbg.data import files
from crbg.data.files import Source, fetch
from crbg.errors import CrbgError, WriteError

CONTENT = b"a table"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def origin(tmp_path):
    """Return the address of a file with the right content."""
    path = tmp_path / "origin" / "elsewhere.dat"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path.as_uri()


@pytest.fixture
def offline(monkeypatch):
    """Let every download fail, and return the list of addresses that were asked for."""
    asked = []

    def refuse(url, timeout):
        asked.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(files.urllib.request, "urlopen", refuse)
    return asked


def put(root, content, name="numbers/a.dat"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_under_the_root_needs_no_network(tmp_path, offline):
    put(tmp_path, CONTENT)
    assert fetch("numbers", {"a.dat": Source("https://example.org/a", DIGEST)}, tmp_path) == {"a.dat": CONTENT}
    assert offline == []


def test_a_missing_file_is_downloaded_to_its_place_once(tmp_path, origin, monkeypatch):
    sources, root = {"a.dat": Source(origin, DIGEST), "b.dat": Source(origin, DIGEST)}, tmp_path / "not" / "there"
    assert fetch("numbers", sources, root) == {"a.dat": CONTENT, "b.dat": CONTENT}
    assert sorted(p.name for p in (root / "numbers").iterdir()) == ["a.dat", "b.dat"], "no temporary file is left"
    assert (root / "numbers/a.dat").read_bytes() == CONTENT
    monkeypatch.setattr(files.urllib.request, "urlopen", lambda *a, **k: pytest.fail("downloaded again"))
    assert fetch("numbers", sources, root)["b.dat"] == CONTENT


def test_only_missing_files_are_downloaded(tmp_path, origin):
    put(tmp_path, CONTENT)
    sources = {"a.dat": Source("file:///nowhere", DIGEST), "b.dat": Source(origin, DIGEST)}
    assert set(fetch("numbers", sources, tmp_path)) == {"a.dat", "b.dat"}


def test_without_downloads_a_missing_file_is_named(tmp_path, offline):
    with pytest.raises(CrbgError, match=r"numbers/a\.dat is missing; `crbg data numbers` downloads it"):
        fetch("numbers", {"a.dat": Source("https://example.org/a", DIGEST)}, tmp_path, download=False)
    assert offline == []


@pytest.mark.parametrize("download", [True, False])
def test_a_file_with_another_content_is_refused_and_kept(tmp_path, offline, download):
    path = put(tmp_path, b"another table")
    with pytest.raises(CrbgError, match=rf"{path} has the SHA-256 .*, but {DIGEST[:12]}\.\.\. was expected; delete it"):
        fetch("numbers", {"a.dat": Source("https://example.org/a", DIGEST)}, tmp_path, download)
    assert path.read_bytes() == b"another table"
    assert offline == []


def test_a_download_with_another_content_is_not_stored(tmp_path, origin):
    with pytest.raises(CrbgError, match=rf"{origin} has changed: its SHA-256 is {DIGEST[:12]}\.\.\., but 0+\.\.\. was"):
        fetch("numbers", {"a.dat": Source(origin, "0" * 64)}, tmp_path)
    assert not (tmp_path / "numbers").exists()


def test_without_network_the_address_the_place_and_the_way_out_are_named(tmp_path, offline):
    with pytest.raises(CrbgError) as caught:
        fetch("numbers", {"a.dat": Source("https://example.org/a", DIGEST)}, tmp_path)
    message = str(caught.value)
    for part in ("'numbers'", str(tmp_path / "numbers"), "https://example.org/a", "no route to host", "CRBG_DATA"):
        assert part in message
    assert "\n" not in message
    assert offline == ["https://example.org/a"]
    assert not (tmp_path / "numbers").exists()


@pytest.mark.parametrize("url", ["file:///nowhere/at/all", "no address"])
def test_an_address_that_leads_nowhere_is_named(tmp_path, url):
    with pytest.raises(CrbgError, match=f"{url} could not be downloaded"):
        fetch("numbers", {"a.dat": Source(url, DIGEST)}, tmp_path)


def test_a_download_that_cannot_be_stored_is_named(tmp_path, origin):
    put(tmp_path, b"", "root")
    with pytest.raises(WriteError, match=r"cannot write .*root/numbers/a\.dat: .*root is a file"):
        fetch("numbers", {"a.dat": Source(origin, DIGEST)}, tmp_path / "root")
