"""Files of public data sets: found under the data root, or downloaded to it, and checked by their digest."""

from __future__ import annotations

import hashlib
import http.client
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
            content = _download(source.url, path, name)
            if _digest(content) != source.digest:
                raise CrbgError(
                    f"{source.url} has changed: its SHA-256 is {_digest(content)[:12]}..., but {source.digest[:12]}... "
                    f"was expected; put the original file at {path}"
                )
            write_bytes(path, content)
        found[file] = _read(path, source.digest)
    return found


def _download(url: str, path: Path, name: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CrbgError(
            f"data set {name!r} is not at {path.parent}, and {url} could not be downloaded "
            f"({reason(error, limit=None)}); put the file there, or set CRBG_DATA to a folder that contains "
            f"{name}/{path.name}"
        ) from None


def _read(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CrbgError(f"cannot read {path}: {error.strerror}; make it readable, or delete it") from None
    if (digest := _digest(content)) != expected:
        raise CrbgError(
            f"{path} has the SHA-256 {digest[:12]}..., but {expected[:12]}... was expected; delete it and run "
            "`crbg data` again"
        )
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
