import contextlib
import dataclasses

import pytest
import torch
from safetensors.torch import save
from winning import BASE, SPECS, with_options

from crbg.experiments import attempts
from crbg.experiments.spec import folder
from crbg.runs.execute import execute
from crbg.runs.setup import Workspace, set_up, stage_cache_for
from crbg.runs.stage_cache import StageCache
from crbg.storage import lock
from crbg.storage.atomic import write_bytes
from crbg.training.clock import Clock


@pytest.fixture
def bench(tmp_path, digits):
    return Workspace(tmp_path / "results", loaded={"digits": digits})


# --- stages shared by runs ---


@pytest.fixture
def counted(monkeypatch):
    """Record each training step that is actually executed."""
    done = []
    real = Clock.tell
    monkeypatch.setattr(Clock, "tell", lambda self, a, b: done.append(a) or real(self, a, b))
    return done


@pytest.mark.parametrize("name", ["cts", "imp"])
def test_a_shared_stage_changes_no_byte_and_saves_its_steps(bench, digits, counted, tmp_path, name):
    spec = SPECS[name]
    execute(with_options(spec, control="shuffle"), 0, bench)
    alone = len(counted)
    execute(spec, 0, bench)
    shared = len(counted) - alone
    fresh = Workspace(tmp_path / "other", loaded={"digits": digits})
    execute(spec, 0, fresh)
    assert shared < alone == len(counted) - alone - shared
    for file in ("record.json", "history.jsonl", "gates.safetensors"):
        assert (folder(bench.results, spec, 0) / file).read_bytes() == (
            folder(fresh.results, spec, 0) / file
        ).read_bytes()


def test_a_shared_stage_costs_what_it_cost(tmp_path):
    clock = Clock()
    cache = StageCache(tmp_path, {}, clock)

    def make():
        clock.earlier += 100.0  # as if the stage had been interrupted and resumed
        clock.base += 7
        return {"a": torch.ones(2)}

    assert cache("part", {"x": 1}, make)["a"].tolist() == [1.0, 1.0]
    later = Clock()
    found = StageCache(tmp_path, {}, later)("part", {"x": 1}, lambda: pytest.fail("made twice"))
    assert found["a"].tolist() == [1.0, 1.0]
    assert later.earlier == pytest.approx(100.0, abs=1.0)
    assert later.base == 7


def test_a_stage_that_another_run_is_computing_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("crbg.runs.stage_cache.PATIENCE", 0.01)
    cache = StageCache(tmp_path, {}, Clock())
    path = cache.path("part", {})
    with lock.hold(path.with_suffix(".making")), pytest.raises(lock.HeldError, match="another process is working on"):
        cache("part", {}, lambda: pytest.fail("made twice"))
    assert cache("part", {}, lambda: {"a": torch.ones(1)})["a"].tolist() == [1.0]
    with lock.hold(path.with_suffix(".making")):  # reading a stored stage needs no lock
        assert cache("part", {}, lambda: pytest.fail("made twice"))["a"].tolist() == [1.0]


def test_a_stage_stored_while_waiting_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("crbg.runs.stage_cache.PATIENCE", 5.0)
    monkeypatch.setattr("crbg.runs.stage_cache.time.sleep", lambda s: other())
    cache, held = StageCache(tmp_path, {}, Clock()), contextlib.ExitStack()
    path = cache.path("part", {})
    held.enter_context(lock.hold(path.with_suffix(".making")))

    def other():
        write_bytes(path, save({"a": torch.zeros(1)}, {"seconds": "3.0", "steps": "4"}))
        held.close()

    assert cache("part", {}, lambda: pytest.fail("made twice"))["a"].tolist() == [0.0]


def test_a_run_that_waits_for_a_stage_is_put_off(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("crbg.runs.stage_cache.PATIENCE", 0.01)
    bench = Workspace(tmp_path, loaded={"digits": digits})
    spec = dataclasses.replace(BASE, method="imp", density=0.5, options={"rewind": 1})
    part = stage_cache_for(set_up(spec, 0, digits), tmp_path, Clock()).path("warmup", spec.resolved().training())
    with lock.hold(part.with_suffix(".making")), pytest.raises(lock.HeldError):
        execute(spec, 0, bench)
    where = folder(tmp_path, spec, 0)
    assert attempts.read(where) == []  # no attempt was started
    assert "waited" in (where / attempts.FILE).read_text()
    assert execute(spec, 0, bench).status == "ok"
    assert [a["outcome"] for a in attempts.read(where)] == [attempts.DONE]


def test_stages_of_other_seeds_networks_and_settings_are_kept_apart(tmp_path, digits):
    clock = Clock()
    paths = {
        stage_cache_for(set_up(spec, seed, digits), tmp_path, clock).path(what, parts)
        for spec in (
            BASE,
            dataclasses.replace(BASE, scale=0.5),
            dataclasses.replace(BASE, limit=500),
            dataclasses.replace(BASE, epochs=5),
        )
        for seed in (0, 1)
        for what in ("warmup", "level")
        for parts in ({"lr": 1}, {"lr": 2})
    }
    assert len(paths) == 32
    other = dataclasses.replace(BASE, method="imp", density=0.5, options={})
    assert stage_cache_for(set_up(other, 0, digits), tmp_path, clock).path("warmup", {}) == stage_cache_for(
        set_up(BASE, 0, digits), tmp_path, clock
    ).path("warmup", {})


def test_a_damaged_stage_is_computed_again(tmp_path):
    cache = StageCache(tmp_path, {}, Clock())
    path = cache.path("part", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no tensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert cache("part", {}, lambda: {"a": torch.ones(1)})["a"].tolist() == [1.0]
    assert cache("part", {}, lambda: pytest.fail("made twice"))["a"].tolist() == [1.0]
