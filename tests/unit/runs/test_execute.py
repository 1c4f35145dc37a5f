import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from paths import ROOT
from safetensors.torch import load_file, save_file
from torch import nn

from crbg import measure, methods
from crbg.data.loader import BatchLoader
from crbg.errors import CrbgError
from crbg.experiments.estimates import search_seconds
from crbg.experiments.record import Count
from crbg.experiments.spec import Spec, folder
from crbg.models.initial_weights import tensor_digest
from crbg.runs import execute as execution
from crbg.runs.artifacts import reopen
from crbg.runs.execute import execute
from crbg.runs.open_test_set import evaluate
from crbg.runs.readings import read_all
from crbg.runs.setup import Workspace, initial_model, set_up
from crbg.search.roles import CHANGED_ROLES
from crbg.search.run_search import guard_roles, run_search
from crbg.storage.atomic import write_text
from crbg.storage.lock import HeldError
from crbg.ticket import Ticket
from crbg.ticket_file import read_header
from crbg.training import device
from crbg.training.clock import Clock, OutOfTime

CRBG = Spec("digits", "lenet-32-16", "crbg", 0.5, scale=0.3, epochs=2, batch=64)
POPUP = dataclasses.replace(CRBG, method="edge_popup")
RANDOM = dataclasses.replace(CRBG, method="random", epochs=0)
DENSE = Spec("digits", "lenet-32-16", "dense", init="kaiming_normal", epochs=2, batch=64)


@pytest.fixture
def bench(tmp_path, digits):
    return Workspace(tmp_path / "results", loaded={"digits": digits}, selected=None)


def another(bench, name):
    return dataclasses.replace(bench, results=bench.results.parent / name)


def kept_files(bench, spec, seed=0):
    where = folder(bench.results, spec, seed)
    names = ("record.json", "history.jsonl", "ticket.safetensors", "gates.safetensors")
    return {n: (where / n).read_bytes() for n in names if (where / n).exists()}


# --- reproducibility ---


@pytest.mark.long
def test_a_run_in_another_process_writes_the_same_bytes(bench):
    execute(CRBG, 3, bench)
    code = (
        "import torch; torch.set_num_threads(1); from pathlib import Path; "
        "from crbg.runs.execute import Workspace, execute; "
        f"from crbg.experiments.spec import Spec; execute({CRBG!r}, 3, Workspace(Path('again')))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code], cwd=bench.results.parent, env=env, check=True)
    assert kept_files(another(bench, "again"), CRBG, 3) == kept_files(bench, CRBG, 3)
    assert len(kept_files(bench, CRBG, 3)) == 4


@pytest.mark.parametrize("spec", [CRBG, POPUP, DENSE], ids=lambda s: s.method)
def test_an_interrupted_run_ends_in_the_same_bytes(bench, spec):
    execute(spec, 1, bench)
    cut = another(bench, "cut")
    where = folder(cut.results, spec, 1)
    # Stop within the first epoch, then exactly at the start of the second, then within it.
    for steps in (7, 11, 5):
        with pytest.raises(OutOfTime):
            execute(spec, 1, cut, Clock(stop_after=steps))
        assert (where / "checkpoint.pt").exists()
        assert not (where / "record.json").exists()
    rest = Clock()
    execute(spec, 1, cut, rest)
    assert rest.steps == 2 * 18 - 7 - 11 - 5
    assert kept_files(cut, spec, 1) == kept_files(bench, spec, 1)
    assert not list(where.glob("checkpoint*"))


def test_a_finished_run_is_not_done_again(bench):
    record = execute(RANDOM, 0, bench)
    where = folder(bench.results, RANDOM, 0)
    marked = record.to_json() | {"reason": "marked"}
    (where / "record.json").write_text(json.dumps(marked))
    assert execute(RANDOM, 0, bench).to_json() == marked
    assert record.status == "ok"


def test_seeds_differ_and_methods_share_the_draw(bench):
    a, b, c = execute(RANDOM, 0, bench), execute(RANDOM, 1, bench), execute(POPUP, 0, bench)
    assert a.digests.mask != b.digests.mask
    for what in ("initial", "draw", "order"):
        assert getattr(a.digests, what) != getattr(b.digests, what)
        assert getattr(a.digests, what) == getattr(c.digests, what)
    d = execute(dataclasses.replace(RANDOM, scale=0.6), 0, bench)
    assert d.digests.draw == a.digests.draw
    assert d.digests.initial != a.digests.initial


# At this learning rate, the controller goes through all its phases within two epochs.
PINNED = {
    "crbg": dataclasses.replace(CRBG, density=0.3, options={"lr": 0.1}),
    "edge_popup": POPUP,
    "dense": DENSE,
}
# The two rows of the training history, for each (method, VERSION). Later numbers are more sensitive to rounding, which
# differs between machines.
NUMBERS = {
    ("crbg", 1): ({"loss": 1.86022, "density": 0.28800}, {"loss": 1.20395, "density": 0.28410, "undecided": 0.43870}),
    ("edge_popup", 1): ({"loss": 1.74089}, {"loss": 0.86675}),
    ("dense", 1): ({"loss": 1.72813}, {"loss": 1.06337}),
}


@pytest.mark.parametrize("method", PINNED)
def test_numerics_of_a_version_are_pinned(bench, method):
    spec, key = PINNED[method], (method, methods.get(method).VERSION)
    assert key in NUMBERS, f"pin the numbers of the new version {key[1]} of {method} here"
    execute(spec, 0, bench)
    rows = [json.loads(line) for line in (folder(bench.results, spec, 0) / "history.jsonl").read_text().splitlines()]
    hint = f"the numerics of {method} changed: new numerics need a new option value or a new method name"
    assert [r["epoch"] for r in rows] == [1.0, 2.0]
    for row, wanted, precision in zip(rows, NUMBERS[key], (1e-3, 4e-3), strict=True):
        assert {k: row[k] for k in wanted} == pytest.approx(wanted, rel=precision), hint


# --- contents of a record ---


def test_a_record_knows_nothing_of_the_test_set(bench):
    execute(CRBG, 0, bench)
    where = folder(bench.results, CRBG, 0)
    assert "test" not in (where / "record.json").read_text()
    assert "test" not in (where / "history.jsonl").read_text()
    assert not (where / "evaluation.json").exists()


@pytest.mark.parametrize("spec", [CRBG, POPUP, RANDOM], ids=lambda s: s.method)
def test_a_ticket_is_the_network_of_its_record(bench, digits, spec):
    record = execute(spec, 0, bench)
    where = folder(bench.results, spec, 0)
    ticket = Ticket.load(where / "ticket.safetensors")
    assert ticket.mask.digest() == record.digests.mask
    assert ticket.initial == record.digests.initial
    model = ticket.model()
    assert sum(int((p != 0).sum()) for p in model.parameters()) == sum(layer.kept for layer in record.layers.values())
    binary = record.validation.readings["binary"]
    assert measure.accuracy(model, digits.validation.batches()) == pytest.approx(binary.value, abs=1e-9)
    assert binary.density == record.density
    assert reopen(where, initial_model(spec, digits, 0)[0]).mask == ticket.mask


def test_tickets_of_runs_are_stored_as_bits_as_before(bench):
    execute(spec := dataclasses.replace(RANDOM, density=0.02), 0, bench)
    assert read_header((folder(bench.results, spec, 0) / "ticket.safetensors").read_bytes())["format"] == 1


def test_a_strong_ticket_has_the_initial_weights(bench, digits):
    untouched = tensor_digest(initial_model(CRBG, digits, 0)[0].state_dict())
    for spec in (CRBG, POPUP, RANDOM):
        record = execute(spec, 0, bench)
        assert record.digests.initial == untouched
        assert record.roles == {"gated": ["fc1.weight", "fc2.weight", "fc3.weight"]}
        assert set(record.validation.sanity) >= {"shuffle", "reinit"}


def test_a_dense_reference_is_no_ticket(bench, digits):
    record = execute(DENSE, 0, bench)
    where = folder(bench.results, DENSE, 0)
    assert record.roles == {"trained": ["fc1.weight", "fc2.weight", "fc3.weight"]}
    assert record.density == 1.0
    assert record.validation.sanity is None
    assert not (where / "ticket.safetensors").exists()
    model, _ = initial_model(DENSE, digits, 0)
    reopen(where, model)
    again = measure.accuracy(model, digits.validation.batches())
    assert again == pytest.approx(record.value(), abs=1e-9)
    assert again > 50


def test_a_method_that_touches_a_weight_leaves_no_record(bench, monkeypatch):
    method = methods.get("random")
    honest = method.find

    def find(model, task, options):
        with torch.no_grad():
            model.fc2.weight[0, 0].mul_(1 + 2**-23)
        return honest(model, task, options)

    monkeypatch.setattr(method, "find", find)
    with pytest.raises(CrbgError, match=r"changed 'fc2\.weight'.*a strong ticket must leave it unchanged"):
        execute(RANDOM, 0, bench)
    assert not (folder(bench.results, RANDOM, 0) / "record.json").exists()


@pytest.mark.parametrize("spec", [CRBG, POPUP, DENSE], ids=lambda s: s.method)
def test_the_runner_searches_as_the_library_does(bench, digits, spec):
    record, setup = execute(spec, 0, bench), set_up(spec, 0, digits)
    task = methods.SearchTask(setup.loader, spec.density, spec.epochs, 0, nn.functional.cross_entropy)
    found = run_search(setup.model, task, methods.get(spec.method), spec.resolved())
    history = (folder(bench.results, spec, 0) / "history.jsonl").read_text()
    assert "".join(json.dumps(row) + "\n" for row in found.history) == history
    assert found.mask.digest() == record.digests.mask


def test_roles_are_guarded_byte_by_byte():
    before = {
        "w": torch.tensor([0.0, 1.0]),
        "b": torch.tensor(2.0),
        "n": torch.tensor([float("nan")]),
        "count": torch.tensor(3),
    }

    def after(**changed):
        return {n: changed.get(n, t.clone()) for n, t in before.items()}

    guard_roles(before, after(), {"w": "gated", "b": "frozen"})
    for name, value in (("w", torch.tensor([-0.0, 1.0])), ("b", torch.tensor(2.0000002)), ("count", torch.tensor(4))):
        for role in ("gated", "frozen", None):
            with pytest.raises(CrbgError, match=f"changed '{name}'"):
                guard_roles(before, after(**{name: value}), {name: role} if role else {})
        for role in (*CHANGED_ROLES, "recalibrated"):
            guard_roles(before, after(**{name: value}), {name: role})


def test_all_images_leave_nothing_to_validate_on(bench):
    record = execute(dataclasses.replace(RANDOM, fit_on="all"), 0, bench)
    assert record.train_images == 1497
    assert record.validation is None
    assert record.status == "ok"


def test_a_limit_uses_the_first_images(bench, digits):
    record = execute(dataclasses.replace(POPUP, limit=200, epochs=1), 0, bench)
    assert (record.train_images, record.steps) == (200, 3)
    x = digits.train.x.clone()
    x[200:] = 0
    blank = dataclasses.replace(digits, train=dataclasses.replace(digits.train, x=x))
    same = execute(
        dataclasses.replace(POPUP, limit=200, epochs=1), 0, Workspace(bench.results / "b", loaded={"digits": blank})
    )
    assert same.digests.mask == record.digests.mask


def test_another_split_holds_out_other_images(bench, digits):
    other = bench.data("digits", split=1)
    assert [len(other.train), len(other.validation)] == [len(digits.train), len(digits.validation)]
    assert not torch.equal(other.validation.x, digits.validation.x)
    assert torch.equal(other.test.x, digits.test.x)
    images = [torch.cat([d.train.x, d.validation.x]).double().flatten(1).sum(0) for d in (digits, other)]
    assert torch.equal(*images), "both splits have the same images"
    first, second = (execute(dataclasses.replace(POPUP, split=split, epochs=1), 0, bench) for split in (0, 1))
    assert second.spec["split"] == 1
    assert first.digests.mask != second.digests.mask
    assert first.digests.draw == second.digests.draw


def test_a_diverged_search_is_recorded_as_a_collapse(bench):
    spec = dataclasses.replace(DENSE, options={"lr": 1e30})
    record = execute(spec, 0, bench)
    where = folder(bench.results, spec, 0)
    assert record.status == "collapse"
    assert "not finite in epoch 1 of 2" in record.reason
    assert record.validation is None
    assert evaluate(spec, 0, bench) is None
    assert not (where / "evaluation.json").exists()


def test_an_empty_layer_is_a_collapse(bench):
    record = execute(dataclasses.replace(RANDOM, density=0.002), 0, bench)
    assert record.layers["fc3.weight"] == Count(0, 160)
    assert (record.status, record.reason) == ("collapse", "nothing is left of fc3.weight")


# --- the test set ---


def test_the_test_set_is_opened_once(bench, digits):
    record = execute(POPUP, 0, bench)
    where = folder(bench.results, POPUP, 0)
    first = evaluate(POPUP, 0, bench)
    assert json.loads((where / "evaluation.json").read_text()) == first.to_json()
    assert (first.mask, first.digest, first.seed) == (record.digests.mask, POPUP.digest(), 0)
    model = Ticket.load(where / "ticket.safetensors").model()
    measured = measure.accuracy(model, digits.test.batches())
    assert first.value() == pytest.approx(measured, abs=1e-9)
    assert first.test.images == 300
    # A stored evaluation is returned unchanged, even if files of the run are missing.
    (where / "gates.safetensors").unlink()
    assert evaluate(POPUP, 0, bench) == first
    marked = dataclasses.replace(first, data="marked")
    (where / "evaluation.json").write_text(json.dumps(marked.to_json()))
    assert evaluate(POPUP, 0, bench) == marked


def test_trained_weights_are_evaluated_as_trained(bench, digits):
    execute(DENSE, 0, bench)
    model, _ = initial_model(DENSE, digits, 0)
    untrained = measure.accuracy(model, digits.test.batches())
    reopen(folder(bench.results, DENSE, 0), model)
    accuracy = evaluate(DENSE, 0, bench).value()
    assert accuracy == pytest.approx(measure.accuracy(model, digits.test.batches()), abs=1e-9)
    assert accuracy > untrained + 20


def test_images_with_lossy_sources_are_counted_apart(bench, digits):
    execute(POPUP, 0, bench)
    lossy = dataclasses.replace(
        bench, loaded={"digits": dataclasses.replace(digits, lossy_test=torch.tensor([0, 5, 299]))}
    )
    out = evaluate(POPUP, 0, lossy)
    kept = [i for i in range(300) if i not in (0, 5, 299)]
    part = dataclasses.replace(digits.test, x=digits.test.x[kept], y=digits.test.y[kept])
    model = Ticket.load(folder(bench.results, POPUP, 0) / "ticket.safetensors").model()
    assert out.test_without_lossy.images == 297
    assert out.test_without_lossy.binary.value == pytest.approx(measure.accuracy(model, part.batches()), abs=1e-9)
    assert out.test.images == 300


def test_another_mask_than_the_recorded_one_is_not_evaluated(bench):
    execute(POPUP, 0, bench)
    where = folder(bench.results, POPUP, 0)
    path = where / "gates.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    tensors["mask"][0] ^= 1
    save_file(tensors, path)
    with pytest.raises(CrbgError, match="differs from the recorded one"):
        evaluate(POPUP, 0, bench)
    path.write_bytes(whole[:-100])
    with pytest.raises(CrbgError, match=r"gates\.safetensors cannot be read"):
        evaluate(POPUP, 0, bench)
    assert not (where / "evaluation.json").exists()
    path.write_bytes(whole)
    assert evaluate(POPUP, 0, bench).test


def test_the_test_set_opens_only_for_selected_specs(bench, tmp_path, monkeypatch):
    execute(POPUP, 0, bench)
    execute(RANDOM, 0, bench)
    stored = folder(bench.results, POPUP, 0) / "evaluation.json"
    guarded = Workspace(bench.results, loaded=bench.loaded)
    assert guarded.selected == Path("paper/selected.yaml"), "the guard is on unless a demonstration turns it off"
    monkeypatch.chdir(tmp_path)
    for listed in (None, {}, {"evaluate": {"curve": {RANDOM.digest(): RANDOM.slug()}}}):
        if listed is not None:
            write_text(guarded.selected, yaml.safe_dump(listed))
        with pytest.raises(CrbgError, match=rf"{POPUP.slug()} is not listed in paper/selected.yaml"):
            evaluate(POPUP, 0, guarded)
    assert not stored.exists()
    assert evaluate(RANDOM, 0, guarded).seed == 0
    write_text(guarded.selected, yaml.safe_dump({"evaluate": {"curve": {POPUP.digest(): POPUP.slug()}}}))
    assert evaluate(POPUP, 0, guarded).digest == POPUP.digest()
    for damage in ("evaluate: [", "evaluate: [a, b]", "[1]"):
        write_text(guarded.selected, damage)
        with pytest.raises(CrbgError, match=r"paper/selected.yaml is damaged"):
            evaluate(POPUP, 0, guarded)


def test_a_run_that_is_not_done_is_not_evaluated(bench):
    with pytest.raises(CrbgError, match=r"cannot read the record .*record\.json: No such file"):
        evaluate(POPUP, 0, bench)


# --- failures ---


def test_a_run_that_another_process_holds_is_left_alone(bench):
    where = folder(bench.results, RANDOM, 0)
    where.mkdir(parents=True)
    with FileLock(where / "lock"), pytest.raises(HeldError, match="another process is working on"):
        execute(RANDOM, 0, bench)
    assert execute(RANDOM, 0, bench).status == "ok"


def test_results_that_cannot_be_written_are_named(tmp_path, bench):
    (tmp_path / "file").write_text("")
    with pytest.raises(CrbgError, match=r"cannot write .*file.*choose another folder .for runs: `--set results"):
        execute(RANDOM, 0, another(bench, "file/results"))


def test_a_damaged_record_is_named(bench):
    execute(RANDOM, 0, bench)
    path = folder(bench.results, RANDOM, 0) / "record.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CrbgError, match=r"record\.json is not a record: .*delete it and run the cell again"):
        execute(RANDOM, 0, bench)


def test_fresh_networks_repeat(digits):
    one, roles = initial_model(CRBG, digits, 5)
    two, _ = initial_model(CRBG, digits, 5)
    other, _ = initial_model(CRBG, digits, 6)
    assert isinstance(one, nn.Module)
    assert tensor_digest(one.state_dict()) == tensor_digest(two.state_dict()) != tensor_digest(other.state_dict())
    assert set(roles) == set(one.state_dict())


# --- deep runs ---

CONV = Spec(
    "digits",
    "conv2",
    "crbg",
    0.5,
    epochs=1,
    batch=64,
    limit=256,
    init="kaiming_normal",
    model_args={"width": 0.125, "norm": "batch"},
)


@pytest.mark.long
def test_sanity_controls_are_measured_on_a_stated_number_of_images(bench):
    few, every = execute(dataclasses.replace(CONV, control_images=20), 0, bench), execute(CONV, 0, bench)
    for name, read in every.validation.readings.items():
        mine = few.validation.readings[name]
        assert (mine.value, mine.density) == (read.value, read.density), name
        assert read.with_search_statistics is not None
        assert (mine.with_search_statistics is not None) == (
            name == "binary" or mine == few.validation.readings["binary"]
        )
    assert (few.validation.sanity_images, few.validation.images) == (20, every.validation.images)
    assert every.validation.sanity_images is None
    assert all(read.value % 5.0 == pytest.approx(0) for read in few.validation.sanity.values()), "twentieths of 100 %"
    assert any(read.value % 5.0 for read in every.validation.sanity.values())


@pytest.mark.long
@pytest.mark.skipif(not device.has_bfloat16(), reason="this processor has no bfloat16")
def test_a_search_in_bf16_is_read_as_precisely_as_one_in_fp32(bench):
    """A ticket found in bf16 has the same accuracies if it is evaluated again in the fp32 setup."""
    spec = dataclasses.replace(CONV, precision="bf16")
    record = execute(spec, 0, bench)
    data = bench.data("digits")
    setup = set_up(CONV, 0, data)
    found = reopen(folder(bench.results, spec, 0), setup.model)
    plain = read_all(setup, found, data.validation)
    for name, read in plain.readings.items():
        assert read.value == pytest.approx(record.value(name), abs=0.7), name


def test_a_pause_costs_seconds_but_no_processor_seconds(bench):
    spec, nap = dataclasses.replace(CRBG, epochs=1), 0.05
    with pytest.raises(OutOfTime):
        execute(spec, 0, bench, Clock(stop_after=5, report=lambda done, total: time.sleep(nap)))
    record = execute(spec, 0, bench, Clock(report=lambda done, total: time.sleep(nap)))
    took = json.loads((folder(bench.results, spec, 0) / "provenance.json").read_text())
    pauses = nap * record.steps
    assert took["search_seconds"] > pauses, "the first attempt's seconds count too"
    assert 0 < took["search_cpu_seconds"] < took["search_seconds"] - 0.9 * pauses
    assert search_seconds(took) == took["search_cpu_seconds"] / took["threads"]
    assert search_seconds({"search_seconds": 3.0, "threads": 2}) == 3.0, "older records have no processor seconds"
    assert search_seconds(took | {"gpu": True}) == took["search_seconds"]


def test_bf16_without_bf16_instructions_is_an_error_that_names_the_setting(bench, monkeypatch):
    monkeypatch.setattr(device, "has_bfloat16", lambda: False)
    with pytest.raises(CrbgError, match="precision is bf16, but this CPU has no bfloat16"):
        execute(dataclasses.replace(CONV, precision="bf16"), 0, bench)
    device.check_precision("fp32", torch.device("cpu"))
    device.check_precision("bf16", torch.device("cuda"))


def test_another_process_of_a_run_only_searches(digits, tmp_path, monkeypatch):
    """It computes no digests, because it writes no record."""

    def needless(*_):
        raise AssertionError("a digest is computed that nobody reads")

    for holder, name in ((execution, "tensor_digest"), (execution, "draw_digest"), (BatchLoader, "digest")):
        monkeypatch.setattr(holder, name, needless)
    spec = Spec("digits", "lenet-16", "edge_popup", 0.5, epochs=1, batch=400)
    orders = iter([(spec, 0), None])
    monkeypatch.setattr(execution.distributed, "broadcast", lambda: next(orders))
    clock, workspace = Clock(), Workspace(tmp_path, loaded={"digits": digits})
    execution.run_as_worker(workspace, clock)
    assert clock.base == clock.whole == 2
    assert not list(tmp_path.rglob("record.json"))
