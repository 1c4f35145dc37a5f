import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import around

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import estimates, record_store
from crbg.storage.atomic import read_json

calm = settings(deadline=None)  # a slow machine must not make the test fail


# --- committed records ---


def strip(found):
    return {k: v for k, v in found.items() if k != "origin"}


def forget(project, cell):
    where = record_store.run_folder(project.config, cell.spec, cell.seed)
    for file in where.iterdir():
        file.unlink()


def test_recorded_runs_stand_in_for_runs(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    fresh = [record_store.find(project.config, c.spec, c.seed) for c in cells]
    assert {f["origin"] for f in fresh} == {"this run"}
    assert record_store.record(project.config, cells) == 4
    assert [p.name for p in Path("results/recorded").glob("*.json*")] == ["digits__lenet-16__crbg.jsonl"]
    for cell in cells:
        forget(project, cell)
    again = [record_store.find(project.config, c.spec, c.seed) for c in cells]
    assert {f["origin"] for f in again} == {"recorded"}
    assert list(map(strip, again)) == list(map(strip, fresh))
    assert record_store.find(project.config, cells[0].spec, 77) is None
    never = configs.read(["config.yaml"], ["reuse=never"])
    assert record_store.find(never, cells[0].spec, 0) is None


def test_a_fresh_run_goes_before_a_recorded_one(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    project.put("ours", 0.5, around(70.0), tested=False)
    found = record_store.find(project.config, cells[1].spec, 1)
    assert found["origin"] == "this run"
    assert found["record"]["validation"]["readings"]["binary"]["accuracy"] == 69.0
    # If an evaluation is required, the recorded run is found, because the new run has none.
    evaluated = record_store.find(project.config, cells[1].spec, 1, evaluated=True)
    assert evaluated["origin"] == "recorded"
    assert evaluated["evaluation"]["test"]["readings"]["binary"]["accuracy"] == 90.0


def test_an_evaluated_run_is_not_replaced_by_a_different_one_without_evaluation(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    before = record_store.recorded_file(project.config, cells[0].spec).read_text()
    project.put("ours", 0.5, around(70.0), tested=False)
    with pytest.warns(UserWarning, match=r"records of 4 runs are kept, .* seed 0, .*`crbg evaluate`"):
        assert record_store.record(project.config, cells) == 0
    assert record_store.recorded_file(project.config, cells[0].spec).read_text() == before


def test_recording_keeps_seeds_without_a_fresh_run(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    for cell in cells[1:]:
        forget(project, cell)
    project.put("ours", 0.5, [70.0])
    assert record_store.record(project.config, cells) == 1
    kept = list(map(json.loads, record_store.recorded_file(project.config, cells[0].spec).read_text().splitlines()))
    assert [r["seed"] for r in kept] == [0, 1, 2, 3]
    assert [r["evaluation"]["test"]["readings"]["binary"]["accuracy"] for r in kept][:2] == [70.0, 90.0]
    assert {r["digest"] for r in kept} == {cells[0].spec.digest()}
    assert kept[0]["spec"]["options"]["noise"] == 0.5


def test_a_demonstration_is_never_recorded_nor_filled_from_records(project):
    project.put("ours", 0.5, around(90.0))
    cells = project.cells("ours", 0.5)
    record_store.record(project.config, cells)
    project.demonstrate()
    demo = project.cells("ours", 0.5)
    path = record_store.recorded_file(project.config, cells[0].spec)
    path.write_text(path.read_text().replace(cells[0].spec.digest(), demo[0].spec.digest()))
    assert record_store.recorded_file(project.config, demo[0].spec) == path
    assert record_store.find(project.config, demo[0].spec, 0) is None
    with pytest.raises(CrbgError, match="never recorded as evidence"):
        record_store.record(project.config, demo)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b["record"].update(digest="0" * 16), "contains a record whose spec differs from its key"),
        (lambda b: b.pop("record"), "is not a recorded run: it has no record"),
        (lambda b: b.update(provenance=5), "is not a recorded run: it has no record or no provenance"),
    ],
)
def test_a_recorded_line_that_is_not_what_it_says_is_refused(project, spoil, words):
    project.put("ours", 0.5, around(90.0))
    cell = project.cells("ours", 0.5)[0]
    record_store.record(project.config, [cell])
    forget(project, cell)
    path = record_store.recorded_file(project.config, cell.spec)
    body = json.loads(path.read_text())
    spoil(body)
    path.write_text(json.dumps(body, separators=(",", ":")))
    with pytest.raises(CrbgError) as caught:
        record_store.find(project.config, cell.spec, 0)
    assert str(caught.value).startswith(f"{path}, line 1 ")
    assert words in str(caught.value)
    assert "restore the line from version control" in str(caught.value)


def test_times_are_estimated_from_runs_of_the_same_kind(project):
    cells = project.cells("ours", 0.5)
    blind = estimates.estimate_seconds(project.config, cells)
    assert all(v > 3 for v in blind.values())
    project.put("ours", 0.5, [90.0, 90.0])  # these runs took 2 and 3 seconds
    assert set(estimates.estimate_seconds(project.config, cells).values()) == {2.5 + 3}


# --- untrusted JSON ---

VALID = json.dumps(
    {"digest": "abc", "status": "ok", "list": [1, 2.5, None, True, {"a": "é\u2028"}], "deep": {"x": {"y": [[]]}}},
    indent=1,
).encode()


def only_a_dict_or_an_error(folder, data):
    path = folder / "record.json"
    path.write_bytes(data)
    try:
        value = read_json(path)
    except CrbgError as error:
        value = {"message": str(error)} if str(path) in str(error) else None
    assert isinstance(value, dict)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


@calm
@given(st.binary(max_size=200))
@example(b"")
@example(b"{")
@example(b"[" * 200_000)
@example(b'{"a":' * 100_000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe{}")
@example(b'{"a": "\\ud800"}')
def test_any_bytes_are_a_dict_or_one_error(folder, data):
    only_a_dict_or_an_error(folder, data)


@calm
@given(st.integers(0, len(VALID)), st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_record_is_a_dict_or_one_error(folder, length, changes):
    body = bytearray(VALID)
    for where, value in changes:
        body[where] = value
    only_a_dict_or_an_error(folder, bytes(body[:length]))


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '"a"', '{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}', "{'a': 1}", "{} {}"]
)
def test_what_is_no_record_is_refused(folder, text):
    (folder / "x.json").write_text(text)
    with pytest.raises(CrbgError, match=r"x\.json is not a record"):
        read_json(folder / "x.json")


def test_a_record_of_absurd_size_is_not_read(folder, monkeypatch):
    (folder / "big.json").write_text('{"a": 1}')
    monkeypatch.setattr("crbg.storage.atomic.LARGEST_JSON", 7)
    with pytest.raises(CrbgError, match=r"big\.json is too large for a record: 8 bytes"):
        read_json(folder / "big.json")
    with pytest.raises(CrbgError, match=r"cannot read the record .*absent\.json"):
        read_json(folder / "absent.json")
