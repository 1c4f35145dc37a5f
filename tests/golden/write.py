"""Write the golden files: names and results of all runs, so that a refactoring cannot change them unnoticed.

    python tests/golden/write.py                          # add new lines
    python tests/golden/write.py --replace lenet_mu0      # also replace lines of one experiment

tests/project/test_golden.py compares the project with four files in this folder:

- cells.csv: experiment, arm, digest and seeds of every cell of config.yaml.
- recorded.csv: for every recorded digest, the seeds, marked `+` if they have an evaluation, and the first 16 hex digits
  of the SHA-256 of the canonical JSON of these runs.
- records.json: accuracy and density under every reading (see docs/vocabulary.md), for the experiments listed below.
- methods.json: the VERSION and the default options of every method.

Golden lines may only be added: this script writes new experiments, cells, seeds, evaluations, recorded digests, methods
and options. If an existing line has changed or is missing, it writes nothing and exits with an error.

A line may be replaced only if the change is the purpose of the commit and the commit message says so. Possible reasons:
an experiment was removed from config.yaml or tuned again (`--replace EXPERIMENT`), a wrong record was measured again
(`--replace EXPERIMENT`), or the results of a method changed and its VERSION was raised (`--replace METHOD`, together
with every experiment that uses it). Never replace a line because a test fails after a refactoring: the code is wrong.
Lines shared by several experiments are replaced only if all of them are named. For a recorded digest that belongs to
no experiment, give the digest itself.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crbg import methods
from crbg.experiments import config, record_store
from crbg.experiments.config import Config
from crbg.report.records_table import tidy
from crbg.storage.atomic import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = ("cells.csv", "recorded.csv", "records.json", "methods.json")
EXPERIMENTS = (
    "lenet_curve", "lenet_goals", "lenet_rivals", "lenet_fashion", "lenet_structured", "lenet_width", "lenet_penalties",
    "lenet_winning_rewound", "conv2_strong", "cifar_small",
)  # fmt: skip

Line = tuple[str, ...]
Run = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """The contents of the golden files, or the current state of the project.

    cells: the seeds for each (experiment, arm, digest). recorded: for each digest, the pair (seeds, hash) if the state
    was read from the golden files, or the runs by seed if it is the current state. numbers: [accuracy, density] for
    each (experiment, arm, digest), reading and seed.
    """

    cells: Mapping[Line, Sequence[int]]
    recorded: Mapping[str, Any]
    numbers: Mapping[Line, Mapping[str, Mapping[str, Any]]]
    methods: Mapping[str, Mapping[str, Any]]


def present() -> State:
    """Return the current state, from the configuration and the committed records; new local runs are ignored."""
    made = config.read(["config.yaml"], ["results=results/none", "reuse=recorded"])
    cells: dict[Line, list[int]] = {}
    for e in made.experiments.values():
        for c in e.cells:
            cells.setdefault((c.experiment, c.arm, c.spec.digest()), []).append(c.seed)
    recorded = dict(record_store.recorded(made))
    return State({k: sorted(v) for k, v in cells.items()}, recorded, numbers(made), defaults())


def numbers(made: Config) -> dict[Line, dict[str, dict[str, Any]]]:
    """Return accuracy and density under each reading, from the tidy table of the listed experiments."""
    rows = tidy(dataclasses.replace(made, experiments={name: made.experiment(name) for name in EXPERIMENTS}))
    out: dict[Line, dict[str, dict[str, Any]]] = {}
    for row in rows.itertuples():
        reading = f"{row.part}.{row.reading}" if isinstance(row.reading, str) else row.status
        values = [None if pd.isna(v) else round(float(v), 9) for v in (row.value, row.density)]
        out.setdefault((row.experiment, row.arm, row.digest), {}).setdefault(reading, {})[str(row.seed)] = values
    return out


def defaults() -> dict[str, dict[str, Any]]:
    """Return the VERSION and the default options of every method."""
    out = {}
    for name in methods.names():
        module = methods.get(name)
        options = {f.name: f.default for f in dataclasses.fields(module.Options)}
        out[name] = {"VERSION": module.VERSION, "options": json.loads(json.dumps(options))}
    return out


def seeds_of(runs: Mapping[str, Run]) -> str:
    """Format the seeds of recorded runs, with `+` after each that has an evaluation, as in `10+ 11+ 12`."""
    return " ".join(seed + "+" * ("evaluation" in runs[seed]) for seed in sorted(runs, key=int))


def fingerprint(runs: Mapping[str, Run], seeds: str) -> str:
    """Hash the runs of the given seeds, including the evaluations of seeds marked `+`.

    Raises:
        KeyError: a run or an evaluation is missing.
    """
    chosen: dict[str, Run] = {}
    for marked in seeds.split():
        seed, parts = marked.rstrip("+"), ("record", "provenance", *(["evaluation"] if marked.endswith("+") else []))
        chosen[seed] = {part: runs[seed][part] for part in parts}
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(folder: Path = HERE) -> State:
    """Read the golden files; a missing file counts as empty."""
    texts = [path.read_text() if (path := folder / name).exists() else "" for name in FILES]
    cells, recorded = (list(csv.DictReader(io.StringIO(text))) for text in texts[:2])
    records, known = (json.loads(text or "{}") for text in texts[2:])
    return State(
        {(r["experiment"], r["arm"], r["digest"]): list(map(int, r["seeds"].split())) for r in cells},
        {r["digest"]: (r["seeds"], r["sha256"]) for r in recorded},
        {tuple(k.split("/")): v for k, v in records.items()},
        known,
    )


def dump(now: State) -> dict[str, str]:
    """Return the text of each golden file for the current state, keyed by file name."""
    cells = [(*line, " ".join(map(str, seeds))) for line, seeds in sorted(now.cells.items())]
    recorded = [(d, seeds_of(runs), fingerprint(runs, seeds_of(runs))) for d, runs in sorted(now.recorded.items())]
    tables = [[("experiment", "arm", "digest", "seeds"), *cells], [("digest", "seeds", "sha256"), *recorded]]
    texts = ["".join(",".join(row) + "\n" for row in table) for table in tables]
    for body in ({"/".join(k): v for k, v in sorted(now.numbers.items())}, now.methods):
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in body.items()]
        texts.append("{\n" + ",\n".join(lines) + "\n}\n")
    return dict(zip(FILES, texts, strict=True))


def lost(golden: State, now: State) -> Iterator[tuple[str, str, set[str]]]:
    """Yield (file, line, names it belongs to) for each golden line that the current state lacks or contradicts."""
    owners: dict[str, set[str]] = {}
    for experiment, _, digest in (*golden.cells, *now.cells):
        owners.setdefault(digest, set()).add(experiment)
    for line, seeds in golden.cells.items():
        if missing := sorted(set(seeds) - set(now.cells.get(line, ()))):
            yield FILES[0], f"{' '.join(line)}: no cell with seed {', '.join(map(str, missing))}", {line[0]}
    for digest, (marked, sha) in golden.recorded.items():
        try:
            same = fingerprint(now.recorded[digest], marked) == sha
            wrong = "" if same else f"the runs {marked} have another content"
        except KeyError as error:
            wrong = f"{error} of {marked} is not recorded" if digest in now.recorded else "not recorded"
        if wrong:
            yield FILES[1], f"{digest}: {wrong}", owners.get(digest, {digest})
    for line, readings in golden.numbers.items():
        found = now.numbers.get(line, {})
        for reading, by_seed in readings.items():
            for seed, values in by_seed.items():
                if (new := found.get(reading, {}).get(seed, "nothing")) != values:
                    yield FILES[2], f"{' '.join(line)} {reading} seed {seed}: {values} became {new}", {line[0]}
    for method, old in golden.methods.items():
        new = now.methods.get(method, {"VERSION": "nothing", "options": {}})
        pairs = [("VERSION", old["VERSION"], new["VERSION"])]
        pairs += [(f"option {k}", v, new["options"].get(k, "nothing")) for k, v in old["options"].items()]
        for name, before, after in pairs:
            if json.dumps(before) != json.dumps(after):  # unlike `!=`, distinguishes 1, 1.0 and True
                yield FILES[3], f"{method}: {name}: {before!r} became {after!r}", {method}


def refused(golden: State, now: State, replace: set[str]) -> list[str]:
    """List the lost lines that `replace` does not cover; if `replace` contains unknown names, list these instead."""
    known = {line[0] for s in (golden, now) for line in s.cells} | {*golden.methods, *now.methods, *golden.recorded}
    if unknown := sorted(replace - known):
        return [f"--replace {name}: no experiment, method or recorded digest of that name" for name in unknown]
    out = [(file, line, sorted(names)) for file, line, names in lost(golden, now) if not names <= replace]
    return [f"{file}: {line} (--replace {' '.join(names)})" for file, line, names in out]


def main(words: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """Write the golden files, unless an existing line would be lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--replace", nargs="+", action="extend", default=[], metavar="NAME",
        help="experiments, methods or recorded digests with lines that may be replaced",
    )  # fmt: skip
    replace = set(parser.parse_args(words).replace)
    now = present()
    if wrong := refused(read(folder), now, replace):
        print(*wrong[:20], sep="\n", file=sys.stderr)
        print(f"{len(wrong)} lines are refused; nothing was written", file=sys.stderr)
        return 1
    for name, text in dump(now).items():
        write_text(folder / name, text)
        print(f"{name}: {len(text.splitlines())} lines, {len(text)} bytes")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
