"""Draw sentences of the project at random, for a reader who does not know it.

    python tests/project/draw_sentences.py [--count 120] [--seed 20261129]

Sources are everything that a person reads: Markdown pages, docstrings, comments, messages of errors and of the command
line, comments and descriptions of the configuration. Each sentence is equally likely. The seed was committed before the
sentences were read; whoever changes the English draws with a new one.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEED = 20261129
GENERATED = ("paper/tables/", "results/", "docs/results.md", "tests/golden/")


def main() -> None:
    """Print numbered sentences with the file that holds each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    pool = sorted({(sentence, name) for name in files() for sentence in sentences(name)})
    for i, (sentence, name) in enumerate(random.Random(args.seed).sample(pool, args.count), 1):
        print(f"{i}. {sentence}  [{name}]")


def files() -> list[str]:
    """Name the tracked files that are written by hand."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [
        n for n in tracked if n.endswith((".py", ".md", ".yaml", ".yml", ".smk", ".c")) and not n.startswith(GENERATED)
    ]


def sentences(name: str) -> Iterator[str]:
    """Split the prose of one file into sentences of at least five words."""
    text = (ROOT / name).read_text()
    for passage in passages(name, text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`(])", " ".join(passage.split())):
            if len(re.findall(r"[A-Za-z]{2,}", sentence)) >= 5 and len(sentence) <= 400:
                yield sentence


def passages(name: str, text: str) -> Iterator[str]:
    """Give the passages of prose of one file."""
    if name.endswith(".py"):
        yield from of_python(text)
    elif name.endswith(".md"):
        prose = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
        for block in re.split(r"\n\s*\n|\n(?=[-*#|] ?)|\n(?=\d+\. )", prose):
            if not block.lstrip().startswith(("|", "<", "#")):
                yield block.strip().lstrip("-*> ")
    elif name.endswith(".c"):
        yield from (re.sub(r"\n\s*\*", " ", c) for c in re.findall(r"/\*(.*?)\*/", text, flags=re.DOTALL))
    else:
        yield from of_comments(re.findall(r"^\s*#(?!!)(.*)$|\s#\s(.*)$", text, flags=re.MULTILINE))
        yield from re.findall(r"^\s*(?:about|statement|reading|note|title): (.+)$", text, flags=re.MULTILINE)


def of_comments(found: list[tuple[str, str]]) -> Iterator[str]:
    """Give comments, each line for itself."""
    yield from (whole or after for whole, after in found)


def of_python(text: str) -> Iterator[str]:
    """Give docstrings, comments and the messages that reach a user."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            yield from re.split(r"\n\s*\n|\n(?=\s*\w+: )|\n(?=\s*- )", doc)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            for part in ast.walk(node.exc):
                if isinstance(part, ast.JoinedStr | ast.Constant):
                    yield message(part)
                    break
        elif isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            yield message(node.value)
    block: list[str] = []
    last = -2
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.search(r"noqa|fmt:|type:|pragma", token.string):
            if token.start[0] != last + 1:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    yield " ".join(block)


def message(node: ast.AST) -> str:
    """Give the text of a message, its inserted values as {…}."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{…}" for v in node.values)
    return ""


if __name__ == "__main__":
    main()
