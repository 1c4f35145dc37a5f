"""The experiments with missing runs, and the hours that these runs would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from crbg.experiments import plan
from crbg.experiments.config import Config
from crbg.report.claims import Judgement, kind_of
from crbg.report.tables.markup import pipe

HEAD = """The experiments with runs that have no record yet, by target. Hours are estimates for one process on an idle
machine, from the recorded runs of the same network where there are any. `waiting` counts the claims whose verdict is
*not run* until the experiment is finished. `crbg run NAME` runs an experiment, and `crbg plan NAME` shows its arms.
"""


def missing_table(found: Sequence[Judgement], config: Config) -> str:
    """Write the table of missing runs as Markdown, with an introduction."""
    needs, total = plan.totals(config, [c for e in config.experiments.values() for c in e.cells])
    waiting = Counter(v.experiment for v in found if kind_of(v.verdict) == "not run")
    incomplete = [config.experiment(name) for name, need in needs.items() if need.missing]
    lines = [
        {"target": target, "experiment": name, "about": config.experiment(name).about}
        | _columns(needs[name], waiting[name])
        for name, (target, _, _) in plan.by_target(incomplete)
    ]
    if not lines:
        return f"{HEAD}\nNo run is missing.\n"
    last = {"target": "total", "experiment": "", "about": ""} | _columns(total, sum(waiting.values()))
    return f"{HEAD}\n{pipe([*lines, last])}\n"


def _columns(need: plan.Need, waiting: int) -> dict[str, str]:
    cpu, gpu = (f"{seconds / 3600:.1f}" if seconds else "" for seconds in (need.cpu_seconds, need.gpu_seconds))
    runs = {"runs": str(need.runs), "missing": str(need.missing), "CPU hours": cpu, "GPU hours": gpu}
    return runs | {"waiting": str(waiting or "")}
