"""Training killed at random moments gives the same bytes as an uninterrupted run, even if killed at a checkpoint."""

import os
import random
import signal
import time

import pytest
import torch

from crbg.experiments.spec import Spec, folder
from crbg.runs.artifacts import reopen
from crbg.runs.execute import execute
from crbg.runs.setup import Workspace, initial_model
from crbg.training.clock import Clock, OutOfTime

SPECS = [
    Spec(
        "digits",
        "lenet-32-16",
        "crbg",
        0.2,
        scale=0.3,
        epochs=60,
        batch=64,
        options={"noise": 0.25, "source": "antithetic"},
    ),
    Spec("digits", "lenet-32-16", "edge_popup", 0.2, scale=0.3, epochs=60, batch=64),
    Spec("digits", "lenet-32-16", "dense", init="kaiming_normal", epochs=60, batch=64),
]


def attempt(spec, results, digits, kill_at, seconds):
    """Continue a run in a child process that is killed at a step or after some seconds; return whether it finished."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            left = [kill_at]

            def report(done, total):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            execute(spec, 0, Workspace(results, loaded={"digits": digits}), Clock(save_every=0.0, report=report))
            status = 0
        finally:
            os._exit(status)
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    assert ended in (0, signal.SIGKILL)
    return ended == 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.method)
def test_killed_at_random_and_gone_on_a_run_ends_as_if_left_alone(spec, tmp_path, digits):
    assert torch.get_num_threads() == 1, "forked processes must not inherit a pool of threads"
    execute(spec, 0, Workspace(tmp_path / "whole", loaded={"digits": digits}))
    dice, kills = random.Random(spec.method), 0
    while kills < 17:
        # Half of the kills happen at a given step, the others after a random time. A checkpoint is written at every
        # step, so some of the kills hit the middle of a write.
        at, seconds = (dice.randrange(1, 30), 0) if kills % 2 else (0, dice.uniform(0.0, 0.12))
        if attempt(spec, tmp_path / "killed", digits, at, seconds):
            break
        kills += 1
    attempt(spec, tmp_path / "killed", digits, 0, 0)
    one, other = (folder(tmp_path / name, spec, 0) for name in ("whole", "killed"))
    for name in ("record.json", "gates.safetensors", "history.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{name} after {kills} kills"
    assert kills >= 12, "the run ended before it was killed often enough to say anything"
    assert not list(other.glob("checkpoint.*"))


TOLERANCE = 0.5  # largest allowed difference, in accuracy points and in per cent of the kept weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.method)
def test_a_resumed_run_on_a_gpu_is_within_the_stated_tolerance(spec, tmp_path, digits):
    """Kernels may sum in a different order in each run; only random streams, data order and schedule resume exactly."""
    gpu, found = torch.device("cuda"), {}
    for name, stops in (("whole", ()), ("stopped", (300, 200))):
        bench = Workspace(tmp_path / name, device=gpu, loaded={"digits": digits.to(gpu)})
        for steps in stops:
            with pytest.raises(OutOfTime):
                execute(spec, 0, bench, Clock(stop_after=steps))
        record = execute(spec, 0, bench)
        model, _ = initial_model(spec, bench.data("digits"), 0)
        found[name] = record, reopen(folder(tmp_path / name, spec, 0), model).mask
    (one, a), (other, b) = found["whole"], found["stopped"]
    assert one.digests.initial == other.digests.initial
    accuracies = [r.value() for r in (one, other)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=TOLERANCE)
    assert sum(int((a[n] != b[n]).sum()) for n in a) <= TOLERANCE / 100 * 2 * a.kept
