"""Digests, records and defaults do not change; `tests/golden/write.py` says what may be added or replaced."""

import copy
import dataclasses
import shutil

import pytest
from golden import write
from paths import ROOT

from crbg.experiments import config, record_store
from crbg.experiments.spec import spec_from

pytestmark = pytest.mark.xdist_group("golden")

CELLS, RECORDED, RECORDS, METHODS = write.FILES


@pytest.fixture(scope="module", autouse=True)
def at_home():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def golden():
    return write.read()


@pytest.fixture(scope="module")
def now(at_home):
    return write.present()


@pytest.fixture(scope="module")
def lost(golden, now):
    out = {name: [] for name in write.FILES}
    for file, line, _ in write.lost(golden, now):
        out[file].append(line)
    return out


def test_every_golden_cell_is_planned_under_its_digest(lost, golden):
    assert len(golden.cells) > 2000
    assert sum(map(len, golden.cells.values())) > 6000
    assert lost[CELLS] == []


def test_every_recorded_run_reads_the_same(lost, golden):
    assert len(golden.recorded) > 1500
    assert lost[RECORDED] == []


def test_every_recorded_run_is_found_by_the_spec_in_its_record(golden, now):
    """Looking up a run by its spec, as the report does, returns the recorded run; the stored spec keeps its digest."""
    made = config.read(["config.yaml"], ["results=results/none", "reuse=recorded"])
    for digest in golden.recorded:
        for seed, run in now.recorded[digest].items():
            spec = spec_from(run["record"]["spec"])
            assert spec.digest() == digest
            assert record_store.find(made, spec, int(seed)) == run | {"origin": "recorded"}


def test_the_tidy_table_has_the_same_numbers(lost, golden):
    assert {line[0] for line in golden.numbers} >= set(write.EXPERIMENTS)
    assert lost[RECORDS] == []


def test_no_version_and_no_default_of_a_method_changed(lost, golden):
    assert len(golden.methods) >= 16
    assert lost[METHODS] == []


# --- the script ---


@pytest.fixture(scope="module")
def folder(now, tmp_path_factory):
    """Write golden files of the current state, so that tests of the script do not depend on the committed ones."""
    made = tmp_path_factory.mktemp("golden")
    for name, text in write.dump(now).items():
        (made / name).write_text(text)
    return made


@pytest.fixture(scope="module")
def whole(folder):
    return write.read(folder)


def test_what_was_written_reads_back(whole, now):
    assert list(write.lost(whole, now)) == []
    assert (whole.cells, whole.numbers, whole.methods) == (now.cells, now.numbers, now.methods)


def test_additions_lose_nothing(whole, now):
    line, digest = next(iter(whole.cells)), next(d for d, (seeds, _) in whole.recorded.items() if "+" not in seeds)
    runs = copy.deepcopy(now.recorded[digest])
    next(iter(runs.values()))["evaluation"] = {}
    more = dataclasses.replace(
        now,
        cells=now.cells | {line: [*now.cells[line], 98, 99], ("new", "arm", "0" * 16): [0]},
        recorded=now.recorded | {digest: runs | {"99": {}}, "0" * 16: {}},
        methods=copy.deepcopy(now.methods) | {"new": {"VERSION": 1, "options": {}}},
    )
    more.methods["crbg"]["options"]["new"] = 1
    assert list(write.lost(whole, more)) == []


def shared(state):
    """Return a recorded digest that belongs to two experiments, and the names of the two."""
    for digest in state.recorded:
        names = {e for e, _, d in state.cells if d == digest}
        if len(names) == 2:
            return digest, names
    pytest.fail("no digest belongs to two experiments")


def test_a_changed_line_is_refused_unless_all_it_belongs_to_is_named(whole, now):
    digest, names = shared(whole)
    run = copy.deepcopy(now.recorded[digest])
    next(iter(run.values()))["record"]["density"] += 1e-10
    changed = dataclasses.replace(now, recorded=now.recorded | {digest: run})
    for replace in (set(), set(list(names)[:1]), {"crbg"}):
        (said,) = write.refused(whole, changed, replace)
        assert digest in said
        assert all(name in said for name in names)
    assert write.refused(whole, changed, names) == []
    assert "no experiment" in write.refused(whole, changed, names | {"no_such_thing"})[0]


def test_the_script_writes_nothing_where_a_line_would_go(now, folder, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write, "present", lambda: now)
    for name in write.FILES:
        shutil.copy(folder / name, tmp_path)
    assert write.main([], tmp_path) == 0
    assert write.read(tmp_path) == whole
    path = tmp_path / CELLS
    path.write_text(path.read_text() + "lenet_mu0,gone,0123456789abcdef,0 1\n")
    before = {name: (tmp_path / name).read_bytes() for name in write.FILES}
    assert write.main(["--replace", "lenet_curve"], tmp_path) == 1
    assert "lenet_mu0 gone 0123456789abcdef: no cell with seed 0, 1 (--replace lenet_mu0)" in capsys.readouterr().err
    assert {name: (tmp_path / name).read_bytes() for name in write.FILES} == before
    assert write.main(["--replace", "lenet_mu0"], tmp_path) == 0
    assert write.read(tmp_path) == whole
