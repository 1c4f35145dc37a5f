import copy
import json

import pytest
from paths import ROOT

from crbg.errors import CrbgError
from crbg.experiments import record_store
from crbg.experiments.record import Count, Evaluation, Measurement, Reading, Record

FILES = sorted((ROOT / "results/recorded").glob("*.jsonl"))
BODY = {
    "schema": 1,
    "digest": "d",
    "spec": {"data": "digits"},
    "version": 1,
    "seed": 3,
    "status": "ok",
    "steps": 8,
    "train_images": 64,
    "digests": {"initial": "i", "draw": "w", "data": "x", "order": "o", "mask": "m"},
    "density": 0.25,
    "layers": {"fc1.weight": {"kept": 1, "total": 4}},
    "anatomy": {"units": {"fc1.weight": {"kept": 2, "total": 3}}},
    "validation": {
        "readings": {"binary": {"accuracy": 70.0, "density": 0.25}, "mean": {"accuracy": None, "density": 1.0}},
        "images": 20,
        "constant": 10.0,
        "sanity": {"shuffle": {"accuracy": 12.5}},
        "density_missed": True,
    },
}


def plain(value):
    return json.dumps(value, sort_keys=True)


@pytest.mark.skipif(not FILES, reason="no records in this clone")
def test_every_recorded_run_is_read_in_full_and_written_as_it_is():
    runs = evaluations = 0
    for path in FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            run = json.loads(line)
            record = Record.from_json(run["record"], f"{path}, line {number}")
            assert plain(record.to_json()) == plain(run["record"])
            assert record.ok == (run["record"]["status"] == "ok")
            runs += 1
            if "evaluation" in run:
                evaluation = Evaluation.from_json(run["evaluation"], f"{path}, line {number}")
                assert plain(evaluation.to_json()) == plain(run["evaluation"])
                binary = run["evaluation"]["test"]["readings"]["binary"]
                assert evaluation.value() == binary[evaluation.test.readings["binary"].metric]
                evaluations += 1
    assert (runs, evaluations) >= (4315, 1622)


def test_a_record_answers_by_name():
    record = Record.from_json(BODY, "here")
    assert record.to_json() == BODY
    assert (record.value(), record.value("mean"), record.value("half")) == (70.0, None, None)
    assert record.controls() == {"shuffle": 12.5, "constant": 10.0}
    assert (record.missed_density, record.ok, record.digests.mask, record.digests.gates) == (True, True, "m", None)
    assert record.layers == {"fc1.weight": Count(1, 4)}
    assert record.layers["fc1.weight"].density == 0.25
    assert record.units() == {"fc1.weight": Count(2, 3)}
    collapsed = Record.from_json(
        {k: v for k, v in BODY.items() if k not in ("validation", "layers", "anatomy")}, "here"
    )
    assert (collapsed.value(), collapsed.controls(), collapsed.missed_density) == (None, {}, False)
    assert (collapsed.units(), collapsed.layers) == ({}, None)


def test_keys_of_a_later_version_are_ignored():
    assert Record.from_json(BODY | {"later": 1}, "here") == Record.from_json(BODY, "here")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 3, r"^here has schema 3, but this version reads 1 and 2"),
        (("digest",), None, r"^here: digest: text was expected, not None"),
        (("seed",), True, r"^here: seed: a whole number was expected, not True"),
        (("steps",), 1.5, r"^here: steps: a whole number"),
        (("density",), "0.25", r"^here: density: a number was expected, not '0\.25'"),
        (("spec",), [], r"^here: spec: an object was expected, not \[\]"),
        (("digests", "draw"), ..., r"^here: digests lacks 'draw'; delete it and repeat the run"),
        (("layers", "fc1.weight"), 3, r"^here: layers: fc1\.weight: an object was expected, not 3"),
        (("layers", "fc1.weight", "kept"), "1", r"^here: layers: fc1\.weight: kept: a whole number"),
        (("validation", "readings"), ..., r"^here: validation lacks 'readings'"),
        (("validation", "readings", "binary", "accuracy"), ..., r"validation: readings: binary lacks 'accuracy'"),
        (("validation", "readings", "binary", "accuracy"), "70", r"binary: accuracy: a number was expected, not '70'"),
        (("validation", "density_missed"), 1, r"^here: validation: density_missed: true or false was expected, not 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(path, value, message):
    body = copy.deepcopy(BODY)
    *way, last = path
    part = body
    for name in way:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    with pytest.raises(CrbgError, match=message):
        Record.from_json(body, "here")


def test_a_body_that_is_no_object_is_refused():
    with pytest.raises(CrbgError, match=r"here: an object was expected, not \[1\]"):
        Record.from_json([1], "here")


def test_what_was_not_measured_is_not_written():
    assert Measurement({"binary": Reading(None, 0.5)}).to_json() == {
        "readings": {"binary": {"accuracy": None, "density": 0.5}}
    }


def test_the_store_gives_typed_runs(monkeypatch, tmp_path):
    body = {"digest": "d", "seed": 3, "mask": "m", "data": "x", "test": BODY["validation"]}
    runs = {True: {"record": BODY, "provenance": {"threads": 1}, "evaluation": body, "origin": "recorded"}, False: None}
    monkeypatch.setattr(record_store, "find", lambda config, spec, seed, evaluated=False: runs[evaluated])

    class spec:
        slug = staticmethod(lambda: "slug")

    run = record_store.find_best(None, spec, 3)
    assert (run.record.value(), run.evaluation.value(), run.origin) == (70.0, 70.0, "recorded")
    runs[True], runs[False] = None, {"record": BODY, "provenance": {}, "origin": "this run"}
    assert record_store.find_best(None, spec, 3).evaluation is None
    runs[False] = {"record": BODY | {"status": 1}, "provenance": {}, "origin": "this run"}
    with pytest.raises(CrbgError, match=r"the record of slug seed 3 \(this run\): status: text was expected"):
        record_store.find_run(None, spec, 3)
    runs[False] = None
    assert record_store.find_run(None, spec, 3) is None
