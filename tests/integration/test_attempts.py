import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from filelock import FileLock
from paths import ROOT
from records import made_up_record

from crbg import cli
from crbg.errors import CrbgError, GpuFullError, WriteError
from crbg.experiments import attempts, estimates, record_store
from crbg.experiments import config as configs
from crbg.experiments.spec import Spec
from crbg.experiments.spec import folder as run_folder
from crbg.methods import crbg as method
from crbg.runs import queue
from crbg.runs.execute import _outcome
from crbg.storage import atomic, lock, run_lines
from crbg.storage.lock import HeldError
from crbg.training import device
from crbg.training.checkpoint import save_checkpoint

# --- one writer ---

HOLDER = """
import sys, time
from pathlib import Path
from crbg.storage import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder):
    words = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "77"}
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_held_folder_names_its_owner_and_is_free_when_that_is_killed(tmp_path):
    process = holder(tmp_path)
    words = f"process {process.pid} on {socket.gethostname()}, SLURM job 77"
    assert lock.held(tmp_path) == words
    with pytest.raises(HeldError, match=f"another process is working on .*: {words}"), lock.hold(tmp_path):
        pass
    process.kill()
    process.wait()
    assert lock.owner(tmp_path)["pid"] == process.pid  # the killed process could not release the lock
    assert lock.held(tmp_path) == ""
    with lock.hold(tmp_path):
        assert lock.owner(tmp_path)["pid"] == os.getpid()
    assert lock.owner(tmp_path) == {}


def elsewhere(folder, age):
    path = folder / "owner.json"
    path.write_text('{"host": "node17", "pid": 4, "slurm_job": "5"}')
    os.utime(path, (time.time() - age,) * 2)


def test_an_owner_on_another_host_is_believed_while_it_gives_signs_of_life(tmp_path):
    """A file lock may be invisible to other hosts, so a recent heartbeat counts as well; here the file lock is free."""
    elsewhere(tmp_path, 30)
    with pytest.raises(HeldError, match="process 4 on node17, SLURM job 5"), lock.hold(tmp_path):
        pass
    assert lock.held(tmp_path) == "process 4 on node17, SLURM job 5"
    assert lock.owner(tmp_path)["host"] == "node17"
    elsewhere(tmp_path, lock.SILENT + 30)
    assert lock.held(tmp_path) == ""
    with lock.hold(tmp_path):
        assert lock.owner(tmp_path)["host"] == socket.gethostname()


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.hold(tmp_path):
        os.utime(tmp_path / "owner.json", (0, 0))
        end = time.monotonic() + 5
        while (tmp_path / "owner.json").stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert (tmp_path / "owner.json").stat().st_mtime > 0


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_sign_is_no_owner(tmp_path, text):
    (tmp_path / "owner.json").write_text(text)
    with lock.hold(tmp_path):
        pass


# --- the log of attempts ---


def test_attempts_are_told_in_order_with_their_ends(tmp_path):
    assert attempts.last(tmp_path) is None
    assert attempts.reason(attempts.read(tmp_path), tmp_path) == ("", "")
    attempts.begin(tmp_path, device="cpu")
    attempts.end(tmp_path, attempts.PAUSED, RuntimeError("stopped after 3 of 9 steps"))
    attempts.begin(tmp_path)
    with (tmp_path / attempts.FILE).open("a") as out:
        out.write('\n{"event": "end", "outco')  # a line cut off because the process was killed while writing it
    attempts.begin(tmp_path)
    attempts.end(tmp_path, attempts.CODE, ZeroDivisionError("by nought"))
    found = attempts.read(tmp_path)
    assert [a["outcome"] for a in found] == ["paused", "killed", "code error"]
    assert found[0]["device"] == "cpu"
    assert found[0]["pid"] == os.getpid()
    word, said = attempts.reason(found, tmp_path)
    assert word == "code error"
    assert said.splitlines()[-1] == "ZeroDivisionError: by nought"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-21T10:00:00 DUE TO TIME LIMIT ***", "time limit"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.0.", "out of memory"),
        ("slurmstepd: error: Step 9.0 exceeded memory limit (900 > 500), being killed", "out of memory"),
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-21T10:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-21T10:00:00 ***", "cancelled"),
        ("all is well", "killed"),
    ],
)
def test_slurm_says_why_a_job_was_killed(tmp_path, monkeypatch, line, word):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    attempts.begin(tmp_path)
    (tmp_path / "logs/slurm/rule").mkdir(parents=True)
    (tmp_path / "logs/slurm/rule/9.log").write_text(f"something\n{line}\n")
    (tmp_path / "logs/slurm/rule/10.log").write_text("DUE TO TIME LIMIT\n")
    found, said = attempts.reason(attempts.read(tmp_path), tmp_path / "logs")
    assert found == word
    assert said == line if word != "killed" else "SLURM job 9" in said


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "out of memory"), (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (WriteError("cannot write x: No space left on device"), "disk"),
        (OSError(28, "No space left on device"), "disk"),
        (CrbgError("bad"), "bad input"), (ZeroDivisionError("x"), "code error"), (KeyboardInterrupt(), "killed"),
    ],
)  # fmt: skip
def test_outcomes_say_what_another_try_could_mend(error, outcome):
    assert _outcome(error) == outcome


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def full(state, to):
        to.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        WriteError, match=r"cannot write .*checkpoint\.pt: PytorchStreamWriter failed .*; free some space there"
    ):
        save_checkpoint(path, {"step": 2})
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(WriteError, match=r"checkpoint\.pt: No space left on device; free some space there"):
        save_checkpoint(path, {"step": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt"]
    assert torch.load(path)["step"] == 1


# --- many runs in one process ---


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {"data": "digits", "model": "lenet-32-16", "scale": 0.3, "epochs": 1, "batch": 64}
    arms = {
        "crbg": {"method": "crbg", "grid": {"density": [0.5, 0.2]}},
        "popup": {"method": "edge_popup", "grid": {"density": [0.5]}},
    }
    one = {"role": "ablation", "seeds": [0], "base": base, "arms": arms}
    Path("config.yaml").write_text(
        yaml.safe_dump({"experiments": {"one": one, "gpu": one | {"gpu": 1, "seeds": [5]}}}, sort_keys=False)
    )
    return tmp_path


@pytest.fixture
def run(project, crbg):
    def call(*words):
        status, out, err = crbg("run", *words)
        return status, out + err

    return call


def folders(name="one"):
    config = configs.read(["config.yaml"])
    return [record_store.run_folder(config, c.spec, c.seed) for c in config.experiment(name).cells]


def broken(*_):
    raise ZeroDivisionError("by nought")


def test_a_run_that_fails_does_not_stop_the_others_and_is_not_tried_twice(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(method, "find", broken)
        status, text = run("one")
    assert status == queue.FAILED
    assert text.count("ZeroDivisionError: by nought") == 2
    assert "2 of 3 runs failed; `crbg status` shows why" in text
    assert [(f / "record.json").exists() for f in folders()] == [False, False, True]
    # A second attempt of the workflow skips runs that failed with a code error, even if the code now works. A first
    # attempt runs them again.
    status, text = run("one", "--attempt", "2")
    assert status == queue.FAILED
    assert text.count("not repeated after a code error: by nought") == 2
    # If every time slice is a first attempt, runs that failed before are scheduled last.
    order = []
    with monkeypatch.context() as patch:
        patch.setattr(
            queue,
            "search",
            lambda bench, config, cells, minutes: (
                order.extend(folders().index(record_store.run_folder(config, c.spec, c.seed)) for c in cells) or 0
            ),
        )
        (folders()[2] / "record.json").rename(folders()[2] / "aside")
        run("one")
        (folders()[2] / "aside").rename(folders()[2] / "record.json")
    assert order == [2, 0, 1]
    cli.main(["status", "one"])
    text = capsys.readouterr().out
    assert text.startswith("1 done, 0 collapsed, 0 running, 2 failed")
    assert text.count("ZeroDivisionError: by nought") == 2
    assert run("one")[0] == 0


def test_what_was_paused_is_tried_again_as_often_as_the_slices_allow(run, project):
    attempts.begin(folders()[0])
    attempts.end(folders()[0], attempts.PAUSED)
    status, text = run("one", "--attempt", "4", "--slices", "3")
    assert status == 2
    assert "3 runs are not done after 3 attempts" in text
    assert run("one", "--attempt", "3", "--slices", "3")[0] == 0


def test_a_run_that_another_process_holds_is_waited_for(run, monkeypatch):
    folder = folders()[0]
    folder.mkdir(parents=True)
    other = FileLock(folder / "lock")
    other.acquire()
    naps, sleep = [], time.sleep

    def nap(seconds):
        if seconds < 5:  # short sleeps wait for a subprocess and are executed
            return sleep(seconds)
        naps.append(seconds)
        other.release()

    monkeypatch.setattr(queue.time, "sleep", nap)
    status, text = run("one")
    assert status == 0
    assert len(naps) == 1
    lines = [line for line in text.splitlines() if "validation" in line or "waiting" in line]
    assert "waiting: another process is working on" in lines[2]  # the other two runs were finished first
    assert len(lines) == 4


def test_waiting_ends_at_the_deadline(run, monkeypatch):
    for folder in folders():
        folder.mkdir(parents=True)
    locks = [FileLock(f / "lock") for f in folders()]
    for one in locks:
        one.acquire()
    assert run("one", "--deadline-minutes", "0.1")[0] == queue.CONTINUE
    for one in locks:
        one.release()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_at_the_next_step_with_a_checkpoint(run, monkeypatch, number, status):
    before = signal.getsignal(number)
    seen = []

    def step(self, done, total):
        seen.append(done)
        if len(seen) == 7:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(queue.Progress, "step", step)
        code, text = run("one")
    assert code == status
    assert "stopped after 7 of 18 steps" in text
    assert signal.getsignal(number) is before
    assert (folders()[0] / "checkpoint.pt").exists()
    assert attempts.last(folders()[0])["outcome"] == "paused"


def test_a_full_disk_stops_the_job_with_one_message(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(method, "find", full)
    status, text = run("one")
    assert status == 2
    assert text.count("No space left on device; free some space there") == 1
    assert attempts.last(folders()[0])["outcome"] == "disk"
    assert not folders()[2].exists()


def test_the_margin_before_a_deadline_grows_with_it():
    assert estimates.margin(1) == pytest.approx(7.8)
    assert estimates.margin(600) == 120
    assert estimates.margin(float("inf")) == 120


# --- GPUs ---


def test_an_experiment_that_asks_for_a_gpu_never_runs_on_the_cpu_unasked(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, text = run("gpu")
    assert status == 2
    assert (
        "gpu asks for a GPU (`gpu` in its configuration) and torch finds none; `--device cpu` runs it on the CPU"
        in text
    )
    assert not any(f.exists() for f in folders("gpu"))
    assert run("gpu", "--device", "cpu")[0] == 0


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick("auto") == torch.device("cpu")
    assert device.pick("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(CrbgError, match=f"'{name}' was requested, but torch finds no GPU"):
            device.pick(name)
    with pytest.raises(CrbgError, match="unknown device 'gpu'"):
        device.pick("gpu")


TAKE = """
import sys, time, torch
from pathlib import Path
from crbg.training import device
torch.cuda.is_available = lambda: True
device.identities = lambda: ["GPU-a", "GPU-b"]
device.slots = lambda: Path(sys.argv[1])
print(device.pick(sys.argv[2], int(sys.argv[3]), lambda text: print(text, flush=True)), flush=True)
time.sleep(60)
"""


@pytest.fixture
def take(tmp_path):
    """Return a function that starts a process which claims one of two GPUs, and reports the GPU it received."""
    started = []

    def call(name="auto", share=1):
        words = [sys.executable, "-c", TAKE, str(tmp_path / "slots"), name, str(share)]
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        )
        return started[-1], started[-1].stdout.readline().strip()

    yield call
    for process in started:
        process.kill()
        process.wait()


def test_processes_take_free_gpus_and_wait_for_one_when_all_are_taken(take):
    first, got = take()
    assert got == "cuda:0"
    assert take()[1] == "cuda:1"
    third, said = take()
    assert said.startswith("waiting for a free GPU: 1 process(es) run on each of 2 ")
    first.kill()
    assert third.stdout.readline().strip() == "cuda:0"


def test_small_runs_share_a_gpu_once_every_gpu_has_one(take):
    assert [take(share=2)[1] for _ in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert take("cuda:1", share=2)[1].startswith("waiting for a free GPU: 2 process(es) run on each of 1 ")


def test_a_process_takes_one_place_however_often_it_asks(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "identities", lambda: ["GPU-a"])
    monkeypatch.setattr(device, "slots", lambda: tmp_path / "slots")
    monkeypatch.setattr(device, "_taken", {})
    assert device.pick("auto") == device.pick("cuda") == torch.device("cuda:0")
    assert len(list((tmp_path / "slots").iterdir())) == 1
    with pytest.raises(CrbgError, match="'cuda:3' was requested, but the last of 1 GPUs is cuda:0"):
        device.pick("cuda:3")
    for held in device._taken.values():
        held.release()


# --- estimates of time and memory ---


def recorded(seconds, megabytes, gpu=False):
    record = made_up_record(Spec("digits", "lenet-32-16", "crbg", 0.5, epochs=2), 0, train_images=1197)
    one = {"search_seconds": seconds, "peak_memory_mb": megabytes} | ({"gpu": True} if gpu else {})
    run_lines.put(
        Path("results/recorded/digits__lenet-32-16__crbg.jsonl"),
        {(f"{seconds}-{gpu}", 0): {"record": record, "provenance": one}},
    )


def test_estimates_come_from_recorded_runs_of_the_same_kind_even_where_nothing_is_reused(project):
    for seconds in (20.0, 40.0, 600.0):
        recorded(seconds, 800 + seconds)
    recorded(2.0, 100, gpu=True)
    config = configs.read(["config.yaml"], ["reuse=never"])
    cells = [c for c in config.experiment("one").cells if c.arm == "crbg"]
    for gpu, seconds in ((False, 20.0), (True, 1.0)):  # the median of the recorded runs, scaled to one epoch
        assert list(estimates.estimate_seconds(config, cells, gpu).values()) == pytest.approx(
            [seconds + 3] * len(cells)
        )
    # The time limit is twice the estimated 46 seconds plus five minutes. The memory is 1.5 times the largest peak.
    assert estimates.slices(config, cells, False, 1440) == estimates.Slices((7, 14, 28), 3500)
    assert estimates.slices(config, cells, False, 10).minutes == (7, 10, 10)
    assert estimates.slices(config, cells, False, 2).minutes == (2,) * 6
    assert estimates.slices(config, cells, True, 1440).memory_mb == 8000


def test_a_job_that_was_killed_counts_until_the_next_workflow(run, project):
    config = configs.read(["config.yaml"])
    job = config.experiment("one").jobs()[0].name
    folder = record_store.job_folder(config, job)
    assert estimates.kills(config, job) == 0
    for n in (1, 2, 1, 2):
        attempts.begin(folder, attempt=n)  # four attempts that never ended; the first two belong to an earlier workflow
    assert estimates.kills(config, job) == 2
    assert run("one", "--job", job, "--attempt", "3", "--deadline-minutes", "0")[0] == queue.CONTINUE
    assert estimates.kills(config, job) == 2
    assert run("one", "--job", job, "--attempt", "4", "--slices", "3")[0] == 2
    assert run("one", "--job", job, "--attempt", "4")[0] == 0
    assert [a["outcome"] for a in attempts.read(folder)] == ["killed"] * 4 + ["paused", "failed", "done"]
    attempts.begin(folder, attempt=1)
    attempts.end(folder, attempts.DONE)
    assert estimates.kills(config, job) == 0


def test_without_records_there_are_defaults(project):
    config = configs.read(["config.yaml"])
    assert estimates.slices(config, list(config.experiment("one").cells), False, 1440).memory_mb == 4000


# --- status ---


def test_status_tells_each_state_with_its_reason(project, capsys):
    paused, killed, held = folders()
    for folder in (paused, killed):
        attempts.begin(folder)
    attempts.end(paused, attempts.PAUSED, RuntimeError("stopped after 3 of 9 steps"))
    attempts.begin(killed)
    Path("results/logs").mkdir(parents=True)
    Path("results/logs/data-digits.log").write_text("one\ncrbg: no such data\n")
    with lock.hold(held):
        cli.main(["status", "one"])
    text = capsys.readouterr().out
    assert text.startswith("0 done, 0 collapsed, 1 running, 1 failed, 1 paused, 0 missing")
    rows = {
        line.split()[0]: line
        for line in text.splitlines()
        if line and line.split()[0] in ("running", "failed", "paused")
    }
    assert rows["running"].endswith(f"process {os.getpid()} on {socket.gethostname()}")
    assert rows["failed"].split()[5:] == ["2", "killed"]
    assert "nothing was logged after" in text
    assert "data set digits, results/logs/data-digits.log:\n  one\n  crbg: no such data" in text
    assert text.count("crbg run one --where digest=") == 2


def test_status_quotes_jobs_that_ended_before_their_first_run(project, capsys):
    one, two, three = configs.read(["config.yaml"]).experiment("one").jobs()
    logs = Path("results/logs")
    slurm = logs / "slurm/rule_search" / one.name
    slurm.mkdir(parents=True)
    (slurm / "7.log").write_text("x\nslurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.\n")
    for job, text in ((one, ""), (two, "crbg: config.yaml: unknown key\n"), (three, "")):
        (logs / f"{job.name}.log").write_text(text)
    cli.main(["status", "one"])
    text = capsys.readouterr().out
    assert (
        f"job {one.name}, results/logs/{one.name}.log:\n  out of memory: slurmstepd: error: Detected 1 oom-kill event"
        in text
    )
    assert f"job {two.name}, results/logs/{two.name}.log:\n  crbg: config.yaml: unknown key" in text
    assert f"job {three.name}, results/logs/{three.name}.log:\n  it ended without a message" in text


def test_the_thread_of_a_lock_ends_with_it(tmp_path):
    before = threading.active_count()
    with lock.hold(tmp_path):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_full_gpu_names_the_batch_that_would_fit(tmp_path, monkeypatch):
    """A method that fails for batches of more than 20 examples imitates activations that exceed the GPU's memory."""
    from crbg import methods
    from crbg.experiments.spec import Spec
    from crbg.runs.execute import execute
    from crbg.runs.setup import Workspace

    edge_popup = methods.get("edge_popup")
    find, tried = edge_popup.find, []

    def full_above_20(model, task, options):
        size = len(next(iter(task.batches.epoch(0)))[1])
        tried.append(size)
        if size > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return find(model, task, options)

    monkeypatch.setattr(edge_popup, "find", full_above_20)
    spec, bench = Spec("digits", "lenet-16", "edge_popup", 0.5, epochs=1, batch=128), Workspace(tmp_path)
    with pytest.raises(GpuFullError, match=r"the GPU's memory is full \(CUDA out of memory\); a batch of 16 would fit"):
        execute(spec, 0, bench)
    assert tried == [128, 64, 32, 16]
    assert attempts.last(run_folder(tmp_path, spec, 0))["outcome"] == attempts.MEMORY
    monkeypatch.setattr(edge_popup, "find", find)
    assert execute(spec, 0, bench).status == "ok", "nothing was spoilt"


@pytest.mark.parametrize(
    ("method", "options"), [("imp", {"drop": 0.1}), ("cts", {"search": 50}), ("saliency", {"control": "reinit"})]
)
def test_the_batch_that_would_fit_is_tried_in_few_steps(tmp_path, monkeypatch, method, options):
    """A trial of a batch size skips the warm-up, further pruning rounds and all but the first steps of the search."""
    from crbg import methods
    from crbg.experiments.spec import Spec
    from crbg.runs.execute import execute
    from crbg.runs.setup import Workspace
    from crbg.training.clock import Clock

    module, steps = methods.get(method), []
    find, tell = module.find, Clock.tell

    def full_above_40(model, task, chosen):
        if len(next(iter(task.batches.epoch(0)))[1]) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return find(model, task, chosen)

    monkeypatch.setattr(module, "find", full_above_40)
    monkeypatch.setattr(Clock, "tell", lambda self, a, b: steps.append(a) or tell(self, a, b))
    spec = Spec("digits", "lenet-16", method, 0.2, epochs=5, batch=128, options={"rewind": 2, **options})
    with pytest.raises(GpuFullError, match="a batch of 32 would fit"):
        execute(spec, 0, Workspace(tmp_path))
    assert 2 <= len(steps) <= 6  # two steps per trial: the optimiser allocates its state in the first
