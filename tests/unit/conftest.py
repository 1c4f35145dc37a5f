import json
from pathlib import Path

import pytest
import yaml
from made_up import GOOD, READINGS, SEEDS
from records import made_up_evaluation, made_up_record

from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.report import claims
from crbg.report.records_table import tidy
from crbg.storage.atomic import write_json

# --- a small project with synthetic records ---


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a small project; its method `put` writes synthetic runs of an arm."""
    monkeypatch.chdir(tmp_path)
    densities = {"density": [0.5, 0.1]}
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}
    arms = {
        "ours": {"method": "crbg", "grid": densities},
        "quiet": {"method": "crbg", "set": {"options.noise": 0.0}, "grid": densities},
        "theirs": {"method": "edge_popup", "grid": densities},
        "dense": {"method": "dense"},
    }
    other = {"ours": {"method": "crbg", "set": {"options.source": "antithetic"}, "grid": {"density": [0.5]}}}
    experiments = {
        "main": {"about": "ours & theirs", "role": "main", "seeds": SEEDS, "base": base, "arms": arms},
        "other": {
            "about": "another noise",
            "role": "ablation",
            "against": "main",
            "seeds": SEEDS,
            "base": base,
            "arms": other,
        },
        "tuning": {
            "role": "tune",
            "seeds": SEEDS[:2],
            "base": base | {"epochs": 1},
            "arms": {"ours": {"method": "crbg", "grid": densities | {"options.lr": [0.02, 0.04]}}},
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump({"experiments": experiments}, sort_keys=False))
    Path("demo.yaml").write_text(yaml.safe_dump({"results": "demo", "paper": "demo/paper", "override": {"limit": 640}}))
    Path("paper").mkdir()
    Path("paper/claims.yaml").write_text(yaml.safe_dump({"claims": [], "contrasts": []}))
    return Project()


class Project:
    """A small project that writes synthetic records with given accuracies."""

    def __init__(self):
        self.config = configs.read(["config.yaml"])

    def demonstrate(self):
        self.config = configs.read(["config.yaml", "demo.yaml"])

    def cells(self, arm, density, experiment="main"):
        return [c for c in self.config.experiment(experiment).cells if (c.arm, c.spec.density) == (arm, density)]

    def put(
        self,
        arm,
        density,
        accuracies,
        experiment="main",
        draw="d",
        order="o",
        missed=False,
        sanity=None,
        tested=True,
        file_bytes=None,
        **readings,
    ):
        for i, cell in enumerate(self.cells(arm, density, experiment)[: len(accuracies)]):
            where = record_store.run_folder(self.config, cell.spec, cell.seed)
            seen = {r: {"accuracy": readings.get(r, accuracies)[i], "density": density or 1.0} for r in READINGS}
            part = {
                "readings": seen,
                "sanity": {k: {"accuracy": v[i]} for k, v in (sanity or {}).items()},
                "density_missed": missed,
            }
            lower = json.loads(json.dumps(part))
            for reading in lower["readings"].values():
                reading["accuracy"] -= 1
            size = {} if file_bytes is None else {"file_bytes": file_bytes}
            record = made_up_record(cell.spec, cell.seed, validation=lower, **size)
            record["digests"] |= {"draw": f"{draw}{cell.seed}", "order": f"{order}{cell.seed}"}
            write_json(where / "record.json", record)
            write_json(where / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 2.0 + i})
            (where / "evaluation.json").unlink(missing_ok=True)
            if tested:
                write_json(where / "evaluation.json", made_up_evaluation(cell.spec, cell.seed, part))

    def judge(self, *rules, contrasts=()):
        made = [GOOD | {"id": f"c{i}", "rule": rule} for i, rule in enumerate(rules)]
        declared = claims.parse_claims({"claims": made, "contrasts": list(contrasts)})
        return claims.judge(declared, tidy(self.config), self.config)

    def verdict(self, **rule):
        return self.judge({"experiment": "main", "arm": "ours"} | rule)[0]


GRID = {
    "sweep": {
        "role": "ablation",
        "seeds": SEEDS,
        "base": {"data": "digits", "model": "lenet-16", "method": "crbg", "epochs": 2, "batch": 64},
        "arms": {
            "knobs": {"grid": {"options.weight": [1.0, 10.0], "options.mu0": [0.25, 1.0]}},
            "kinds": {"grid": {"options.penalty": ["induce_sparse", "induce_decision"], "options.weight": [1.0, 2.0]}},
        },
    },
    "widths": {
        "role": "main",
        "view": "width",
        "seeds": SEEDS,
        "base": {"data": "digits", "density": 0.5, "epochs": 2, "batch": 64},
        "arms": {
            "ours": {"method": "crbg", "grid": {"model": ["lenet-100", "lenet-10"]}},
            "dense": {"method": "dense", "set": {"density": None}, "grid": {"model": ["lenet-100", "lenet-10"]}},
        },
    },
}


@pytest.fixture
def sweep(project):
    """Return the small project with a sweep and a width experiment; `fill` writes synthetic runs of these."""
    Path("sweep.yaml").write_text(yaml.safe_dump({"experiments": GRID}))
    project.config = configs.read(["config.yaml", "sweep.yaml"])

    def put(experiment, where, accuracies, density=0.5, gated=100, soft=None):
        hits = [c for c in project.config.experiment(experiment).cells if where(c)]
        assert len(hits) == len(accuracies)
        each = density if isinstance(density, list) else [density] * len(hits)
        for cell, value, kept in zip(hits, accuracies, each, strict=True):
            part = {"readings": {"binary": {"accuracy": value, "density": kept}}}
            if soft is not None:
                part["readings"]["mean"] = {"accuracy": soft, "density": 1.0}
            record = made_up_record(cell.spec, cell.seed, validation=part, gated=gated)
            folder = record_store.run_folder(project.config, cell.spec, cell.seed)
            write_json(folder / "record.json", record)
            write_json(folder / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 2.0})
            if experiment == "widths":
                write_json(folder / "evaluation.json", made_up_evaluation(cell.spec, cell.seed, part))

    project.fill = put
    return project
