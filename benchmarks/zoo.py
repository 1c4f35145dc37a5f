"""Judge the defaults of `find_ticket` on a zoo of small tasks.

    python benchmarks/zoo.py [--half dev|judged] [--table]

For each task and each of three cells (density 0.5, density 0.1, density 0.1 with a quarter of the epochs), the script
runs the variants of CRBG, other methods, and twelve trials of CRBG's options. `tuned` is the trial with the best
validation score. Defaults are chosen by the validation scores of the tasks marked `dev`. The tasks marked `judged` are
run after the defaults are frozen by a commit. Finished cells are in benchmarks/zoo.jsonl and do not run again.

`--table` writes benchmarks/zoo.md from the records. zoo_first.jsonl and zoo_first.md are the records of the
defaults before these and the table that the script of that time wrote.

The score is the accuracy in per cent, or 100 R^2 for regression (0 if R^2 is negative).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from zoo_table import table
from zoo_tasks import TASKS, Shuffled, Split, Task

from crbg import find_ticket, weights
from crbg.errors import CrbgError

HERE = Path(__file__).parent
CELLS = {"density 0.5": (0.5, 1.0), "density 0.1": (0.1, 1.0), "density 0.1, short": (0.1, 0.25)}
THESIS = {
    "noise": 0.5,
    "firmness": 1.0,
    "polish": 0.0,
    "steer": "penalty",
    "mu0_spread": 0.01,
    "lr": 0.03,
    "schedule": "cosine",
    "beta1": 0.9,
    "beta2": 0.999,
    "spread": 1.0,
    "gain": "none",
}
POLISHED = THESIS | {"noise": 0.0, "firmness": 0.0, "polish": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "thesis": THESIS,
    "polished": POLISHED,
    "library": {},
    "edge_popup": {"method": "edge_popup"},
    "biprop": {"method": "biprop"},
    "concrete": {"method": "concrete"},
}
TRIALS: list[dict[str, Any]] = [
    {"lr": 0.02},
    {"lr": 0.08},
    {"polish": 0.3},
    {"polish": 0.7},
    {"mu0_spread": 0.05},
    {"mu0_spread": 0.5},
    {"reach": 0.2},
    {"steer": "penalty"},
    {"schedule": "cosine", "beta1": 0.9, "beta2": 0.999},
    {"spread": 1.0},
    {"noise": 0.25, "anneal_to": 0.0},
    {"gain": "none"},
]


def planned(half: str | None, tasks: list[str], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the key of every record: task, cell, variant and its options."""
    settings = VARIANTS | {f"trial {i}": o for i, o in enumerate(TRIALS)}
    for name, task in ((name, TASKS[name]) for name in tasks or TASKS):
        if half not in (None, task.half):
            continue
        if not names or "dense" in names:
            yield {"task": name, "half": task.half, "cell": "", "variant": "dense", "options": {}}
        for cell in CELLS:
            for variant, options in settings.items():
                if not names or variant.split()[0] in names:
                    yield {"task": name, "half": task.half, "cell": cell, "variant": variant, "options": options}


def run(key: dict[str, Any]) -> dict[str, Any]:
    """Run one search, or the training of the dense network, and return its record."""
    task, (train, validation, test) = TASKS[key["task"]], TASKS[key["task"]].data()
    torch.manual_seed(0)
    model = task.network()
    started, wall = time.process_time(), time.monotonic()
    more: dict[str, Any] = {}
    if key["variant"] == "dense":
        _train(model, task, train)
    else:
        density, part = CELLS[key["cell"]]
        if key["options"].get("method") == "biprop":
            _binarise(model)
        epochs = max(1, round(part * task.epochs))
        batches = Shuffled(train, task.batch, 0)
        try:
            found = find_ticket(model, batches, density, loss=task.loss, epochs=epochs, seed=0, **key["options"])
            found.apply(model)
            more = {"density": round(found.mask.density, 5)}
        except CrbgError as error:
            more = {"error": str(error)[:200]}
    scores = {"validation": score(model, task, validation), "test": score(model, task, test)}
    if "error" in more:
        scores = dict.fromkeys(scores, floor(task, test))
    spent = {"cpu_s": round(time.process_time() - started, 2), "wall_s": round(time.monotonic() - wall, 2)}
    return {**key, **scores, **more, **spent, "chance": floor(task, test)}


def _train(model: nn.Module, task: Task, train: Split) -> None:
    """Train all weights with Adam and a cosine schedule, for the epochs of a normal search."""
    batches = Shuffled(train, task.batch, 0)
    adam = torch.optim.Adam(model.parameters(), lr=task.dense_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, task.epochs * len(batches))
    for _ in range(task.epochs):
        for x, y in batches:
            adam.zero_grad()
            task.loss(model(x), y).backward()
            adam.step()
            schedule.step()


@torch.no_grad()
def _binarise(model: nn.Module) -> None:
    """Replace every gated weight by its sign times one size per tensor, because biprop needs weights of one size."""
    for w in weights(model).values():
        w.copy_(torch.where(w < 0, -1.0, 1.0) * w.square().mean().sqrt())


@torch.no_grad()
def score(model: nn.Module, task: Task, split: Split) -> float:
    """Return the accuracy in per cent, or 100 R^2 (at least 0) for regression."""
    model.eval()
    outputs = torch.cat([model(x) for x in split[0].split(500)])
    if task.loss is F.cross_entropy:
        return round(100 * float((outputs.argmax(1) == split[1]).float().mean()), 2)
    return round(100 * max(0.0, 1 - float((outputs - split[1]).square().mean() / _variance(split[1]))), 2)


def floor(task: Task, split: Split) -> float:
    """Return the score of the best constant answer: the share of the most frequent class, or 0 for regression."""
    if task.loss is not F.cross_entropy:
        return 0.0
    return round(100 * float(split[1].flatten().bincount().max() / split[1].numel()), 2)


def _variance(y: Tensor) -> Tensor:
    return (y - y.mean(0)).square().mean()


def key_of(record: dict[str, Any]) -> str:
    """Return the text that identifies a record."""
    return json.dumps([record[k] for k in ("task", "cell", "variant", "options")], sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("dev", "judged"), help="only the tasks with this mark")
    parser.add_argument("--tasks", nargs="*", default=[], help="only these tasks")
    parser.add_argument("--variants", nargs="*", default=[], help="only these variants")
    parser.add_argument("--table", action="store_true", help="write the table of the records, without running anything")
    parser.add_argument("--records", type=Path, default=HERE / "zoo.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in args.records.read_text().splitlines()] if args.records.exists() else []
    if args.table:
        text = table(done)
        print(text)
        args.records.with_suffix(".md").write_text(text)
        return
    have = {key_of(r) for r in done}
    open_keys = [k for k in planned(args.half, args.tasks, args.variants) if key_of(k) not in have]
    with args.records.open("a") as file, tqdm(open_keys, unit="run", smoothing=0.05) as bar:
        for key in bar:
            bar.set_description(f"{key['task']} {key['variant']}")
            file.write(json.dumps(run(key)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
