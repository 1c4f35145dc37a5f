"""Check that the quotes of paper/claims.yaml occur in the texts of paper/sources.yaml, word for word.

    python -m crbg.report.quotes FOLDER

The texts are not part of the repository. A file of FOLDER is taken for a source if it has the SHA-256 digest of that
source, whatever its name. The exit status is 1 if a quote does not occur in its source.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import Field

from crbg.errors import CrbgError
from crbg.report.claims import CITED, OURS, Claim, read_claims
from crbg.report.declared import Declared, fields_of, parse

SOURCES = Path("paper/sources.yaml")


class Source(Declared):
    """A text that claims quote: its title, where it is public, and the digest of the file as it was read."""

    title: str
    address: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def read_sources(path: Path = SOURCES) -> dict[str, Source]:
    """Read paper/sources.yaml.

    Raises:
        CrbgError: the file cannot be read, or an entry is malformed.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CrbgError(f"cannot read {path}: {error}") from None
    return {name: parse(Source, entry, f"{path}: {name}") for name, entry in fields_of(raw, str(path)).items()}


def unknown_sources(claims: Iterable[Claim], sources: Mapping[str, Source]) -> list[str]:
    """Return the ids of claims whose `quoted_from` is neither a known source nor one of the two labels."""
    return [c.id for c in claims if c.quoted_from not in (*sources, OURS, CITED)]


def normalised(text: str) -> str:
    """Return a text with ligatures, quotation marks, hyphens at line ends, Markdown tables and white space unified."""
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans("‘’“”‐‑", "''\"\"--"))
    return " ".join(re.sub(r"(?<=\w)-\n\s*(?=[a-z])", "", text).split())


def missing_quotes(claims: Iterable[Claim], texts: Mapping[str, str]) -> list[str]:
    """Return one line for each claim that quotes one of `texts`, by source, and whose quote does not occur in it."""
    known = {name: normalised(text) for name, text in texts.items()}
    return [
        f"{c.id}: not in {c.quoted_from}: {c.quote}"
        for c in claims
        if c.quoted_from in known and normalised(c.quote) not in known[c.quoted_from]
    ]


def texts_in(folder: Path, sources: Mapping[str, Source]) -> dict[str, str]:
    """Return the texts of the sources in a folder, by name; the digest of a file tells which source it is."""
    names = {source.sha256: name for name, source in sources.items()}
    found = {}
    for path in (p for p in sorted(folder.iterdir()) if p.is_file()):
        if name := names.get(hashlib.sha256(body := path.read_bytes()).hexdigest()):
            found[name] = body.decode()
    return found


def main(words: Sequence[str]) -> int:
    """Check the quotes of all sources in the folder named by the first word."""
    if len(words) != 1 or not Path(words[0]).is_dir():
        print("usage: python -m crbg.report.quotes FOLDER, a folder that contains the texts", file=sys.stderr)
        return 2
    claims, sources = read_claims().claims, read_sources()
    texts = texts_in(Path(words[0]), sources)
    wrong = unknown_sources(claims, sources) + missing_quotes(claims, texts)
    checked = sum(c.quoted_from in texts for c in claims)
    away = ", ".join(name for name in sources if name not in texts)
    print(*wrong, f"{checked} quotes checked, {len(wrong)} wrong", sep="\n")
    if away:
        print(f"not checked, because their texts are not in {words[0]}: {away}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
