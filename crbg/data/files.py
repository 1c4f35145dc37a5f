"""Files of public data sets: found under the data root, or downloaded to it, and checked by their digest."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crbg.errors import CrbgError, reason
from crbg.storage.atomic import write_bytes


@dataclass(frozen=True)
class Source:
    """The address of a file, and the SHA-256 of its content."""

    url: str
    digest: str


def fetch(name: str, files: Mapping[str, Source], root: Path, download: bool = True) -> dict[str, bytes]:
    """Return the content of the files of a data set, by file name.

    A file is looked up as `root / name / file`. If it is missing, it is downloaded to this place.

    Raises:
        CrbgError: a file is missing and cannot be downloaded, or its digest is not the expected one.
    """
    found = {}
    for file, source in files.items():
        path = root / name / file
        if not path.is_file():
            if not download:
                raise CrbgError(f"{path} is missing; `crbg data {name}` downloads it")
            write_bytes(path, _checked(_download(source.url, path, name), source, source.url))
        found[file] = _checked(path.read_bytes(), source, str(path))
    return found


def _download(url: str, path: Path, name: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except (OSError, ValueError) as error:
        raise CrbgError(
            f"data set {name!r} is not at {path.parent}, and {url} could not be downloaded "
            f"({reason(error, limit=None)}); put the file there, or set CRBG_DATA to a folder that contains "
            f"{name}/{path.name}"
        ) from None


def _checked(content: bytes, source: Source, place: str) -> bytes:
    if (digest := hashlib.sha256(content).hexdigest()) != source.digest:
        raise CrbgError(
            f"{place} has the SHA-256 {digest[:12]}..., but {source.digest[:12]}... was expected; delete it and run "
            "`crbg data` again"
        )
    return content
