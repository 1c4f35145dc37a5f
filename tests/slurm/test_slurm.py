"""`snakemake --profile slurm all` runs unedited on a real cluster, and no result is lost when processes are killed."""

import os
import shutil
import subprocess
import time
from datetime import datetime

import pytest
import yaml
from cluster import ROOT, Clone, results_of, sh, wait

from crbg.experiments import attempts

pytestmark = pytest.mark.slurm


def queue():
    return sh("squeue", "-h", "-o", "%i %T %P").stdout


def wants_gpu(clone):
    """Return the states of this clone's one-GPU jobs; SLURM may still list jobs of earlier tests, which are ignored."""
    jobs = sh("scontrol", "show", "job", "--oneliner").stdout.splitlines()
    mine = [job for job in jobs if f"WorkDir={clone.path} " in f"{job} "]
    return [job.split("JobState=")[1].split()[0] for job in mine if "TresPerJob=gres:gpu:1" in job]


def spans(tries):
    """Yield the start and end time of each attempt, in seconds."""
    for folder, found in tries.items():
        for a in found:
            ended = (folder / "provenance.json").stat().st_mtime
            yield datetime.fromisoformat(a["time"]).timestamp(), ended


def finished_as_undisturbed(clone, undisturbed):
    assert clone.files() == undisturbed
    assert (clone.path / "results/report-all.html").exists()
    assert (clone.path / "results/paper/tables/curve.md").exists()


def test_the_literal_command(clone, undisturbed):
    """`snakemake --profile slurm all` needs no other argument; three GPU jobs queue for the two available GPUs."""
    clone.start()
    states = wait(lambda: len(now := wants_gpu(clone)) == 3 and now, 120, clone.log.read_text)
    assert states.count("PENDING") >= 1
    assert clone.end() == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, undisturbed)
    # With three jobs for two GPUs, the last job starts after one of the others has ended.
    begun, ended = zip(*spans(clone.tries("edge_popup-*")), strict=True)
    assert len(begun) == 3
    assert max(begun) >= min(ended) - 2
    assert {len(a) for a in clone.tries().values()} == {1}
    assert clone.crbg("status").stdout.startswith("7 done, 0 collapsed, 0 running, 0 failed, 0 paused, 0 missing")


def test_a_cancelled_job(clone, undisturbed):
    job = clone.start().searching()["slurm_job"]
    assert sh("scancel", job).returncode == 0
    assert clone.end() == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, undisturbed)
    assert max(len(a) for a in clone.tries("crbg-*").values()) == 2


def test_out_of_memory(clone, undisturbed):
    """The first memory limit is too small for a process that imports torch; later attempts get more memory."""
    clone.start("--set-resources", "search:mem_mb=attempt*attempt*500")
    assert clone.end() == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, undisturbed)
    assert "Error in rule search:" in clone.log.read_text()
    assert "Trying to restart job" in clone.log.read_text()


def test_a_time_limit_shorter_than_the_run(tmp_path, cluster):
    """If the cluster allows one minute, a longer run stops before the limit and continues in the next time slice."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    expected = results_of(Clone(tmp_path / "whole", epochs=900))
    clone = Clone(tmp_path / "cut", epochs=900).start(CRBG_SLURM_MAX_MINUTES="1", CRBG_SLURM_RETRIES="20")
    assert clone.end(900) == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, expected)
    outcomes = [a["outcome"] for a in clone.tries("crbg-*")[clone.runs("crbg-*")[0]]]
    assert len(outcomes) >= 2
    assert set(outcomes[:-1]) == {attempts.PAUSED}


def test_preemption_with_requeue(clone, undisturbed):
    clone.start(CRBG_SLURM_PARTITION="low")
    clone.searching()
    done = sh("sbatch", "-p", "cpu", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    assert done.returncode == 0, done.stderr
    assert clone.end() == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, undisturbed)
    assert max(len(a) for a in clone.tries("crbg-*").values()) >= 2


def test_a_controller_killed_while_jobs_run(clone, undisturbed):
    """The jobs keep running; a new Snakemake process submits them again, and the new jobs wait for the old ones."""
    clone.start().searching()
    clone.kill()
    assert "RUNNING" in queue()
    assert clone.start().end() == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, undisturbed)


def test_a_full_disk(clone, undisturbed):
    results = clone.path / "results"
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", results], check=True)
    try:
        assert clone.start(CRBG_SLURM_RETRIES="0").end() != 0
        said = clone.crbg("status").stdout
        assert "No space left on device" in said, said
        subprocess.run(["mount", "-o", "remount,size=500m", results], check=True)
        assert clone.start().end() == 0, clone.log.read_text()[-3000:]
        finished_as_undisturbed(clone, undisturbed)
    finally:
        sh("scancel", "--user", "root")
        wait(lambda: not sh("squeue", "-h").stdout.strip(), 60)
        subprocess.run(["umount", "--lazy", results], check=True)


def test_a_node_that_goes_down_and_comes_back(clone, undisturbed):
    clone.start().searching()
    node = os.uname().nodename.split(".")[0]
    assert sh("scontrol", "update", f"nodename={node}", "state=down", "reason=test").returncode == 0
    time.sleep(5)
    sh("scontrol", "update", f"nodename={node}", "state=resume")  # this fails if the node has already resumed by itself
    wait(lambda: "down" not in sh("sinfo", "-h", "-o", "%T").stdout, 60)
    assert clone.end() == 0, clone.log.read_text()[-3000:]
    finished_as_undisturbed(clone, undisturbed)
    assert max(len(a) for a in clone.tries("crbg-*").values()) >= 2


def test_a_gpu_that_is_not_there_is_no_silent_cpu_run(clone):
    """Without `device: cpu`, runs that request a GPU must fail here, because the GPUs of this cluster are fake."""
    clone.start("--config", "device=auto", CRBG_SLURM_RETRIES="0")
    assert clone.end() != 0
    assert not clone.runs("edge_popup-*")
    log = next((clone.path / "results/logs").glob("on_gpus-*.log")).read_text()
    assert "asks for a GPU" in log


def test_the_quickstart(clone):
    """`make quickstart`, which uses every rule and every method, also works with the SLURM profile."""
    shutil.copy(ROOT / "config.yaml", clone.path)
    clone.start(target=("--configfile", "config.yaml", "config/overlays/quickstart.yaml", "--", "quickstart"))
    assert clone.end(2400) == 0, clone.log.read_text()[-3000:]
    assert (clone.path / "results/quickstart/report-quickstart.html").exists()
    words = ("--config", "config.yaml", "config/overlays/quickstart.yaml")
    said = clone.crbg("status", "quickstart", *words).stdout
    assert "0 running, 0 failed, 0 paused, 0 missing" in said, said


def test_a_run_on_two_gpus(clone):
    """torchrun inside a SLURM job shares each batch between two processes; a cancelled job resumes later."""
    config = yaml.safe_load((clone.path / "config.yaml").read_text())
    config["experiments"] = {"on_gpus": config["experiments"]["on_gpus"] | {"gpu": 2, "seeds": [0]}}
    (clone.path / "config.yaml").write_text(yaml.safe_dump(config))
    # After a kill, the second attempt on two GPUs would request more memory than a small machine has.
    job = clone.start("--set-resources", "search_wide:mem_mb=4000").searching("edge_popup-*")["slurm_job"]
    assert "TresPerJob=gres:gpu:2" in sh("scontrol", "show", "job", job, "--oneliner").stdout
    assert sh("scancel", job).returncode == 0
    assert clone.end() == 0, clone.log.read_text()[-3000:]
    (tries,) = clone.tries().values()
    assert [a["outcome"] for a in tries][-1] == attempts.DONE
    assert len(tries) == 2
