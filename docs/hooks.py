"""Hooks that build the documentation site: they add pages from outside docs/ and rewrite links.

The home page is README.md. If a page links to a file outside docs/ (a table, a YAML file, a module), that file is added
to the site, so every link works both in the repository and on the site. The command-line page is generated from the
argument parsers, so it always agrees with `--help`.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)]*)?\))")
COMMANDS = ("run", "evaluate", "verify", "export", "data", "plan", "status", "list", "select", "record", "report")
BROUGHT = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the command-line page, and every file that a page links to."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    files.append(File.generated(config, "commands.md", content=command_line()))
    for name in BROUGHT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    waiting = [_origin(f.src_uri) for f in files.documentation_pages()]
    while waiting:  # an added table may link to further files
        page = waiting.pop()
        for _, link, _ in LINK.findall(page.read_text() if page.exists() else ""):
            target = _target(page, link)
            if target and target.is_file() and files.get_file_from_path(_place(target)) is None:
                files.append(File.generated(config, _place(target), abs_src_path=str(target)))
                waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository as links between pages of the site."""
    origin = _origin(page.file.src_uri)

    def rewrite(found: re.Match[str]) -> str:
        target = _target(origin, found[2])
        if target is None:
            return found[0]
        if target.is_dir():  # a folder has no page, so only the link text remains
            return found[1].removeprefix("[").removesuffix("](")
        return found[1] + posixpath.relpath(_place(target), posixpath.dirname(page.file.src_uri) or ".") + found[3]

    return LINK.sub(rewrite, markdown)


def command_line() -> str:
    """Return a Markdown page with the help of every command."""
    sys.path.insert(0, str(ROOT))
    from crbg.cli import main

    out = ["# Command line\n", "Every command accepts `--help`. This page is generated from the argument parsers.\n"]
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "90"
    for words in ([], *([name] for name in COMMANDS)):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([*words, "--help"])
        out.append(f"## {' '.join(['crbg', *words])}\n\n```text\n{text.getvalue().rstrip()}\n```\n")
    os.environ.pop("COLUMNS")
    if width is not None:
        os.environ["COLUMNS"] = width
    return "\n".join(out)


def _origin(uri: str) -> Path:
    """Return the file of the repository from which a page of the site is generated."""
    if uri == "index.md":
        return ROOT / "README.md"
    return next((p for p in (ROOT / "docs" / uri, ROOT / uri) if p.exists()), ROOT / "docs" / uri)


def _target(page: Path, link: str) -> Path | None:
    """Return the file of the repository that a link points to, or None if it points elsewhere."""
    if "://" in link or link.startswith(("#", "mailto:")):
        return None
    path = (page.parent / link).resolve()
    return path if path.exists() and path.is_relative_to(ROOT) else None


def _place(path: Path) -> str:
    """Return the path of a repository file on the site: README.md is the home page, and docs/ is the root."""
    uri = path.relative_to(ROOT).as_posix()
    return "index.md" if uri == "README.md" else uri.removeprefix("docs/")
