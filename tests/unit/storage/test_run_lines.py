"""Files with one line for each run: lines can be read back, and unchanged lines stay byte-identical."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from crbg.errors import CrbgError
from crbg.experiments import config as configs
from crbg.experiments import estimates, record_store
from crbg.experiments.spec import as_dict
from crbg.storage import run_lines
from crbg.storage.atomic import read_json, write_json

A, B = "0a" * 8, "ff" * 8
RUN = {
    "spec": {"b": 1e-05, "a": None},
    "record": {"density": 0.1000014836, "é": [1.0, 1, "\n"]},
    "provenance": {"seconds": 12.50},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "recorded" / "runs.jsonl"


def test_what_was_put_reads_back(path):
    run_lines.put(path, {(B, 2): RUN, (B, 10): RUN | {"evaluation": {"test": 1}}, (A, 0): RUN})
    found = run_lines.lines(path)
    assert list(found) == [(A, 0), (B, 2), (B, 10)]  # seeds are sorted as numbers
    assert [line.number for line in found.values()] == [1, 2, 3]
    assert found[B, 2].parse() == {"digest": B, "seed": 2, **RUN}
    assert found[B, 10].parse()["evaluation"] == {"test": 1}
    assert path.read_bytes().startswith(b'{"digest":"%s","seed":0,"spec":{"a":null,"b":1e-05},"record":' % A.encode())
    assert run_lines.lines(path.with_name("other.jsonl")) == {}


def test_lines_that_nobody_touches_keep_their_bytes(path):
    run_lines.put(path, {(A, 1): RUN})
    strange = b'{"digest":"%s","seed":7, "record" : {"x":1.50e0}, "provenance":{} }' % B.encode()
    path.write_bytes(strange + b"\n" + path.read_bytes())
    before = path.read_bytes().splitlines()
    run_lines.put(path, {(A, 0): RUN, (B, 8): RUN})
    after = path.read_bytes().splitlines()
    assert (after[1], after[2]) == (before[1], strange)
    assert [json.loads(line)["seed"] for line in after] == [0, 1, 7, 8]
    run_lines.put(path, {})
    assert path.read_bytes().splitlines() == after


def test_a_file_is_read_again_when_it_changed(path):
    run_lines.put(path, {(A, 1): RUN})
    assert run_lines.lines(path) is run_lines.lines(path)
    first = path.read_text()
    path.write_text(first.replace('"seed":1', '"seed":22'))
    assert list(run_lines.lines(path)) == [(A, 22)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [lines[0], lines[1][:-9], lines[2]], "line 2 is not a recorded run"),
        (lambda lines: [lines[0], "<<<<<<< HEAD", *lines[1:]], "line 2 is not a recorded run"),
        (lambda lines: [lines[0], "", *lines[1:]], "line 2 is not a recorded run"),
        (lambda lines: [lines[0], lines[1].replace("digest", "Digest"), lines[2]], "line 2 is not a recorded run"),
        (lambda lines: [lines[0], lines[1], lines[0]], "line 3 has the same digest and seed as line 1; remove one"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_written_over_it(path, damage, words):
    run_lines.put(path, {(A, seed): RUN for seed in range(3)})
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    before = path.read_bytes()
    for use in (run_lines.lines, lambda path: run_lines.put(path, {(B, 0): RUN})):
        with pytest.raises(CrbgError) as caught:
            use(path)
        assert str(caught.value).startswith(f"{path}, {words}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("body", ["[1,}", "NaN}", "[" * 100_000 + "}"])
def test_a_line_that_is_no_json_is_named_when_it_is_read_and_stands_in_nobodys_way(path, body):
    run_lines.put(path, {(A, 0): RUN, (A, 1): RUN})
    path.write_bytes(path.read_bytes() + b'{"digest":"%s","seed":3,"record":%s\n' % (B.encode(), body.encode()))
    assert run_lines.lines(path)[A, 1].parse()["record"] == RUN["record"]
    with pytest.raises(
        CrbgError, match=r"runs\.jsonl, line 3 is not a recorded run: .*; restore the line from version control"
    ):
        run_lines.lines(path)[B, 3].parse()
    damaged = path.read_bytes().splitlines()[2]
    run_lines.put(path, {(B, 0): RUN})
    assert path.read_bytes().splitlines()[3] == damaged


def test_a_line_of_absurd_size_is_not_read(path, monkeypatch):
    run_lines.put(path, {(A, 0): RUN})
    monkeypatch.setattr(run_lines, "LARGEST_JSON", 20)
    with pytest.raises(CrbgError, match="line 1 is too large for a record"):
        run_lines.lines(path)[A, 0].parse()


def test_a_file_without_a_last_line_break_is_whole(path):
    run_lines.put(path, {(A, 0): RUN, (A, 1): RUN})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    run_lines.put(path, {(A, 1): RUN})
    assert path.read_bytes() == whole


def test_who_waits_too_long_is_told(path, monkeypatch):
    monkeypatch.setattr(run_lines, "PATIENCE", 0.05)
    with (
        run_lines.writing(path.parent),
        pytest.raises(CrbgError, match="another process has been writing"),
        run_lines.writing(path.parent),
    ):
        pass
    with run_lines.writing(path.parent):
        pass


# --- recording ---


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a configuration of three specs with two seeds each, its cells, and a function that writes runs."""
    monkeypatch.chdir(tmp_path)
    base = {"data": "digits", "model": "lenet-16", "epochs": 2, "batch": 64}
    arms = {"ours": {"method": "crbg", "grid": {"density": [0.5, 0.1]}}, "dense": {"method": "dense"}}
    Path("config.yaml").write_text(
        yaml.safe_dump({"experiments": {"main": {"seeds": [0, 1], "base": base, "arms": arms}}}, sort_keys=False)
    )
    config = configs.read(["config.yaml"])

    def put(cells, seconds=3.0, evaluation=None):
        for c in cells:
            where = record_store.run_folder(config, c.spec, c.seed)
            write_json(
                where / "record.json",
                {"digest": c.spec.digest(), "status": "ok", "seed": c.seed, "density": 0.1000014836},
            )
            write_json(where / "provenance.json", {"search_seconds": seconds})
            if evaluation:
                write_json(where / "evaluation.json", evaluation)

    cells = config.experiment("main").cells
    put(cells)
    return config, cells, put


def forget(config, cell):
    for file in record_store.run_folder(config, cell.spec, cell.seed).iterdir():
        file.unlink()


def test_each_run_is_found_by_its_spec_and_seed(project):
    config, cells, _ = project
    fresh = [record_store.find(config, c.spec, c.seed) for c in cells]
    assert record_store.record(config, cells) == len(cells) == 6
    assert sorted(p.name for p in Path("results/recorded").glob("*.json*")) == [
        "digits__lenet-16__crbg.jsonl",
        "digits__lenet-16__dense.jsonl",
    ]
    for c in cells:
        forget(config, c)
    for c, was in zip(cells, fresh, strict=True):
        found = record_store.find(config, c.spec, c.seed)
        assert found == was | {"origin": "recorded"}
        assert (found["record"]["digest"], found["record"]["seed"]) == c.key
        assert run_lines.lines(record_store.recorded_file(config, c.spec))[c.key].parse()["spec"] == as_dict(c.spec)
        assert record_store.find(config, c.spec, 5) is None
        assert record_store.find(config, c.spec, c.seed, evaluated=True) is None
    assert {d: sorted(runs) for d, runs in record_store.recorded(config)} == {
        c.spec.digest(): ["0", "1"] for c in cells
    }


def test_recording_touches_only_what_says_something_new(project):
    config, cells, put = project
    record_store.record(config, cells)
    paths = sorted(Path("results/recorded").glob("*.jsonl"))
    before, stats = [p.read_bytes() for p in paths], [p.stat().st_ino for p in paths]
    assert record_store.record(config, cells) == 6
    assert [p.stat().st_ino for p in paths] == stats
    put([cells[0]], evaluation={"test": {}})
    record_store.record(config, cells)
    old, new = before[0].splitlines(), paths[0].read_bytes().splitlines()
    (changed,) = [i for i in range(len(old)) if old[i] != new[i]]
    assert json.loads(new[changed]) == json.loads(old[changed]) | {"evaluation": {"test": {}}}
    assert paths[1].stat().st_ino == stats[1]
    # The committed evaluation is kept even if this machine has none, provided that the record is the same.
    (record_store.run_folder(config, cells[0].spec, cells[0].seed) / "evaluation.json").unlink()
    record_store.record(config, cells)
    assert paths[0].read_bytes().splitlines() == new


def test_two_who_record_at_once_lose_nothing(project):
    config, cells, _ = project
    code = (
        "import sys; from crbg.experiments import config, record_store\n"
        "made = config.read(['config.yaml']); cells = made.experiment('main').cells\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for cell in cells[int(sys.argv[1])::2]: record_store.record(made, [cell])"
    )
    recorders = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for process in recorders:
        assert process.stdout.readline() == "ready\n"
    # This process holds the lock while both start, so neither can have read what the other will write.
    with run_lines.writing(record_store.recorded_folder(config)):
        for process in recorders:
            process.stdin.write("go\n")
            process.stdin.flush()
        path = record_store.recorded_file(config, cells[0].spec)
        with pytest.raises(subprocess.TimeoutExpired):
            recorders[0].wait(timeout=0.5)
        assert run_lines.lines(path) == {}
        run_lines.put(path, {("00" * 8, 9): RUN})
    assert [process.wait(timeout=60) for process in recorders] == [0, 0]
    assert {key for p in Path("results/recorded").glob("*.jsonl") for key in run_lines.lines(p)} == {
        c.key for c in cells
    } | {("00" * 8, 9)}


# --- the older layout ---


@pytest.fixture
def old(project):
    """Write the new runs in the older layout with one file for each spec; return the configuration and the runs."""
    config, cells, _ = project
    found = {c.key: record_store.find(config, c.spec, c.seed) for c in cells}
    for run in found.values():
        del run["origin"]
    for c in cells:
        path = record_store.recorded_folder(config) / f"{c.spec.slug()}.json"
        body = read_json(path) if path.exists() else {"spec": as_dict(c.spec), "digest": c.spec.digest(), "runs": {}}
        body["runs"][str(c.seed)] = found[c.key]
        write_json(path, body)
    return found


def test_files_of_the_older_layout_are_refused_until_they_are_taken_in(project, old, crbg):
    config, cells, _ = project
    for c in cells:
        forget(config, c)
    for use in (
        lambda: record_store.find(config, cells[0].spec, 0),
        lambda: list(record_store.recorded(config)),
        lambda: estimates.costs(config, []),
    ):
        with pytest.raises(
            CrbgError, match=r"contains 3 files of an older layout, such as .*\.json; `crbg record` converts them"
        ):
            use()
    code, out, _ = crbg("record", "main")
    assert (code, out) == (0, "3 files of the older layout converted\n0 runs recorded under results/recorded\n")
    assert {c.key: record_store.find(config, c.spec, c.seed) for c in cells} == {
        k: v | {"origin": "recorded"} for k, v in old.items()
    }
    assert not list(Path("results/recorded").glob("*.json"))
    assert record_store.convert_old_files(config) == 0


def test_an_evaluation_in_the_older_layout_is_added(project, old):
    config, cells, _ = project
    path = record_store.recorded_folder(config) / f"{cells[0].spec.slug()}.json"
    body = read_json(path)
    record_store.convert_old_files(config)
    body["runs"]["0"]["evaluation"] = {"test": {}}
    write_json(path, body)
    assert record_store.convert_old_files(config) == 1
    forget(config, cells[0])
    assert record_store.find(config, cells[0].spec, 0) == old[cells[0].key] | {
        "evaluation": {"test": {}},
        "origin": "recorded",
    }


@pytest.mark.parametrize(
    "spoil",
    [lambda b: b["runs"]["0"]["record"].update(density=0.2), lambda b: b.pop("runs"), lambda b: b.update(runs=5)],
)
def test_an_older_file_that_contradicts_a_line_or_is_none_is_left_alone(project, old, spoil):
    config, cells, _ = project
    path = record_store.recorded_folder(config) / f"{cells[0].spec.slug()}.json"
    body = read_json(path)
    record_store.convert_old_files(config)
    spoil(body)
    write_json(path, body)
    before = {p: p.read_bytes() for p in Path("results/recorded").glob("*.json*")}
    with pytest.raises(
        CrbgError, match=r"contradict each other about the run .*, seed 0; delete one|is not a file of recorded runs"
    ):
        record_store.convert_old_files(config)
    assert {p: p.read_bytes() for p in Path("results/recorded").glob("*.json*")} == before


# --- committed records ---


def test_the_committed_lines_are_sorted_compact_and_in_the_file_of_their_names(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = configs.read(["config.yaml"])
    paths = sorted(record_store.recorded_folder(made).glob("*.jsonl"))
    assert len(paths) > 50
    for path in paths:
        found = run_lines.lines(path)
        assert list(found) == sorted(found)
        for key, line in found.items():
            whole = line.parse()
            assert run_lines.encode(key, {k: v for k, v in whole.items() if k not in ("digest", "seed")}) == line.raw
            spec = whole["spec"]
            assert record_store._file(path.parent, spec["data"], spec["model"], spec["method"]) == path
            assert (whole["record"]["digest"], whole["record"]["seed"]) == key
