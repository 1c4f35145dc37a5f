"""Time estimates for networks without recorded runs, and the time slice in which each missing run is done."""

import re

import pytest
import torch
import yaml
from records import made_up_record

from crbg import cli, measure, models
from crbg.data.datasets import info
from crbg.experiments import config as configs
from crbg.experiments import estimates, record_store
from crbg.experiments.spec import Spec
from crbg.gates.attach import weights
from crbg.runs import queue
from crbg.storage.atomic import write_json

SPECS = [
    Spec("cifar10", "conv2", "crbg"),
    Spec("cifar10", "conv6", "crbg", model_args={"width": 0.5, "norm": "batch"}),
    Spec("cifar10", "resnet20", "crbg", size=64),
    Spec("cifar10", "vgg16", "crbg", model_args={"width": 0.25}),
    Spec("cifar10", "timm:resnet18", "crbg", model_args={"stem": "cifar"}),
    Spec("cifar10", "timm:resnet18", "crbg", size=64),
    Spec("cifar10", "timm:vit_tiny_patch16_224", "crbg", model_args={"patch_size": 4}),
    Spec("cifar10", "timm:vit_small_patch16_224", "crbg", size=64),
    Spec("cifar10", "timm:swin_tiny_patch4_window7_224", "crbg", model_args={"patch_size": 2, "window_size": 4}),
    Spec("mnist", "lenet-300-100", "crbg"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.model}-{s.size}")
def test_sizes_without_torch_are_near_the_measured_ones(spec):
    entry = info(spec.data)
    shape = (entry.shape[0], *([spec.size] * 2 if spec.size else entry.shape[1:]))
    model = models.build(spec.model, shape, entry.classes, **spec.model_args)
    count, products = estimates.size(spec)
    assert count == pytest.approx(sum(w.numel() for w in weights(model).values()), rel=0.35)
    assert products == pytest.approx(measure.flops(model, torch.zeros(1, *shape))["dense"] / 2, rel=0.35)


@pytest.fixture
def three(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("""
experiments:
  first:
    seeds: [0, 1]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1}
    arms: {a: {method: crbg, grid: {density: [0.5]}}, b: {method: edge_popup, grid: {density: [0.5, 0.1]}}}
  second:
    seeds: [0]
    base: {data: digits, model: lenet-16, batch: 64, epochs: 1}
    arms: {same: {method: crbg, grid: {density: [0.5]}}, c: {method: edge_popup, grid: {density: [0.2]}}}
""")
    return configs.read(["config.yaml"])


def test_slices_follow_the_configuration_and_skip_what_is_done(three, monkeypatch, capsys):
    times = {"a": 100.0, "b": 30.0, "c": 50.0}
    arms = {c.key: c.arm for e in reversed(three.experiments.values()) for c in e.cells}
    monkeypatch.setattr(
        estimates, "estimate_seconds", lambda config, cells, *_: {c.key: times[arms[c.key]] for c in cells}
    )
    assert cli.main(["plan", "--minutes", "2"]) == 0
    text = capsys.readouterr().out
    rows = [
        line.split()[:2] + re.split(r"\s{2,}", line.strip())[2:]
        for line in text.splitlines()
        if line.startswith(("first", "second"))
    ]
    # A slice of two minutes leaves 110.4 seconds for runs. The missing runs need 200 s (`a`), 120 s (`b`) and 50 s
    # (`c`). The run of `same` equals one of `a` and needs no time.
    assert rows == [
        ["first", "a", "2", "CPU", "3", "1 to 2"],
        ["first", "b", "4", "CPU", "2", "2 to 3"],
        ["second", "c", "1", "CPU", "1", "3 to 4"],
    ]
    assert "4 slices of 2 minutes" in text
    assert "crbg run --deadline-minutes 2" in text
    assert estimates.margin(2) == pytest.approx(9.6)


def test_a_plan_of_slices_shrinks_with_what_was_run(three, capsys):
    assert cli.main(["run", "first"]) == 0
    capsys.readouterr()
    assert cli.main(["plan", "--minutes", "9"]) == 0
    text = capsys.readouterr().out
    assert "first" not in text
    assert "1 slices of 9 minutes" in text
    assert cli.main(["run", "--deadline-minutes", "9"]) == 0
    capsys.readouterr()
    assert cli.main(["plan", "--minutes", "9"]) == 0
    assert capsys.readouterr().out.strip() == "nothing is missing"
    assert cli.main(["plan", "--minutes", "0.5"]) == 2
    assert queue.CONTINUE == 75


def test_all_epochs_of_a_run_count():
    base = {"rewind": 2}
    imp, cts, snip = (
        Spec("digits", "lenet-16", method, 0.5, epochs=10, batch=64, options={**base, **own})
        for method, own in (("imp", {}), ("cts", {"search": 6}), ("saliency", {}))
    )
    assert estimates.epochs_of(snip) == 10
    assert estimates.epochs_of(cts) == 10 + 6
    assert estimates.epochs_of(imp) == 10 + 4 * 8  # one round for each of the densities 0.8, 0.64, 0.512 and 0.5
    assert estimates.epochs_of(Spec("digits", "lenet-16", "crbg", 0.5, epochs=10, batch=64)) == 10


def test_recorded_times_are_divided_by_all_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = {"seeds": [0], "base": {"data": "digits", "model": "lenet-16", "batch": 64, "epochs": 10}}
    arms = {"imp": {"method": "imp", "grid": {"density": [0.64, 0.8, 1.0]}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"experiments": {"e": body | {"arms": arms}}}))
    config = configs.read(["config.yaml"])
    cells = config.experiment("e").cells
    where = record_store.run_folder(config, cells[0].spec, 0)
    write_json(where / "record.json", made_up_record(cells[0].spec, 0))
    write_json(where / "provenance.json", {"search_seconds": 60.0})
    found = estimates.estimate_seconds(config, list(cells))
    # 20 s for each training, of which there is one per pruning round and one for the ticket, plus 3 s for the rest.
    assert [round(found[c.key]) for c in cells] == [63, 43, 23]
