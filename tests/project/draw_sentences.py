"""Draw sentences of the project at random for a reader who does not know it.

    python tests/project/draw_sentences.py [--count 120] [--seed 20261205]

The pool has everything written by hand that a person reads: Markdown pages, docstrings, comments, error messages, help
texts of the command line, and descriptions in the configuration. Each sentence is equally likely. The seed is committed
before the sentences are read. After changing the English text, commit a new seed.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SEED = 20261205
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".smk", ".c")
GENERATED = ("paper/tables/", "results/", "docs/results.md")
DESCRIPTIONS = ("about", "statement", "reading", "note", "title")
ABBREVIATIONS = r"(?<!\bal\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)"
NOT_PROSE = re.compile(r"%%|[-=]{3}|.*[-=]{3}$|#|!|yaml-language-server|noqa|fmt:|type:|pragma|ruff:|mypy:")
CODE = re.compile(r" {4}|>>>|```")
ENTRY = r"\n(?=\s*[-*] )|\n(?=\s*\d+\. )"


def main() -> None:
    """Print numbered sentences, each with its file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    pool = sorted({(sentence, name) for name in files() for sentence in sentences(name, (ROOT / name).read_text())})
    for i, (sentence, name) in enumerate(random.Random(args.seed).sample(pool, args.count), 1):
        print(f"{i}. {sentence}  [{name}]")


def files() -> list[str]:
    """List the tracked files that are written by hand."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [n for n in run.stdout.splitlines() if n.endswith(SUFFIXES) and not n.startswith(GENERATED)]


def sentences(name: str, text: str) -> Iterator[str]:
    """Yield the sentences of at least five words in the prose of a file."""
    for passage in passages(name, text):
        for sentence in re.split(rf"(?<=[.!?]){ABBREVIATIONS}\s+(?=[A-Z`(])", " ".join(passage.split())):
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) >= 5 and len(sentence) <= 400:
                yield sentence


def passages(name: str, text: str) -> Iterator[str]:
    """Yield the passages of prose in a file."""
    if name.endswith(".py"):
        yield from in_python(text, messages=not name.startswith("tests/"))
    elif name.endswith(".md"):
        yield from in_markdown(text)
    elif name.endswith(".c"):
        yield from (re.sub(r"\n\s*\*", " ", c) for c in re.findall(r"/\*(.*?)\*/", text, flags=re.DOTALL))
    else:
        yield from in_comments(text.splitlines())
        yield from re.findall(r"^[^#\n]*\S[^#\n]* # (.+)$", text, flags=re.MULTILINE)
        if not name.endswith(".smk"):
            yield from descriptions(yaml.compose(text))


def in_markdown(text: str) -> Iterator[str]:
    """Yield the paragraphs and list entries of Markdown; headings, tables, code and HTML are left out."""
    prose = re.sub(r"^ *```.*?^ *```|<!--.*?-->", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(rf"\n\s*\n|\n(?=[#|])|{ENTRY}", prose):
        if block.strip() and not block.lstrip().startswith(("|", "<", "#", ":::", "!!!", "---")):
            yield re.sub(r"^\s*([-*>]|\d+\.) +", "", block)


def in_comments(lines: Iterable[str]) -> Iterator[str]:
    """Join consecutive comment lines to passages; code, headings, markers and section banners are left out."""
    block: list[str] = []
    for line in (*lines, ""):
        comment = re.match(r"\s*#(?!!) ?(.*)", line)
        said = comment[1] if comment else ""
        if row := re.match(r" {2,}\S+ {2,}(\S.*)", said):
            yield row[1]
        ends = not said.strip() or NOT_PROSE.match(said) or re.match(r" {2}", said)
        if (ends or re.match(r"[-*] ", said)) and block:
            yield " ".join(block)
            block = []
        if not ends:
            block.append(re.sub(r"^[-*] ", "", said))


def descriptions(node: yaml.Node | None) -> Iterator[str]:
    """Yield the values of all keys of a YAML document that hold descriptions, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from descriptions(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in DESCRIPTIONS and isinstance(value, yaml.ScalarNode):
                yield value.value
            else:
                yield from descriptions(value)


def in_python(text: str, messages: bool = True) -> Iterator[str]:
    """Yield docstrings, comments, help texts and, if wanted, the messages of exceptions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            yield from in_docstring(doc)
        elif messages and isinstance(node, ast.Raise) and node.exc is not None:
            for part in ast.walk(node.exc):
                if isinstance(part, ast.JoinedStr | ast.Constant):
                    yield message(part)
                    break
        elif isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            yield message(node.value)
    whole = [""] * (text.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.line[: token.start[1]].strip():
                yield from in_comments([token.string])
            else:
                whole[token.start[0] - 1] = token.string
    yield from in_comments(whole)


def in_docstring(doc: str) -> Iterator[str]:
    """Yield the paragraphs, list entries and described names of a docstring; code and headings are left out."""
    for paragraph in re.split(r"\n\s*\n", doc):
        section = re.match(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):\n", paragraph)
        if section and section[1].startswith("Example"):
            continue
        body = paragraph[section.end() :] if section else paragraph
        if section or not CODE.match(body):
            for entry in re.split(rf"{ENTRY}|(?<=[.:;)`])\n(?=(?: {{4}})?[\w`]+: )", body):
                yield re.sub(r"^\s*([-*]|\d+\.) +", "", entry)


def message(node: ast.AST) -> str:
    """Return the text of a message, with {…} for each inserted value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{…}" for v in node.values)
    return ""


if __name__ == "__main__":
    main()
