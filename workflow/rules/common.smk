# What the rules share: which jobs are still to do, and what a job needs.


def planned(experiment):
    """Jobs of an experiment that have a cell neither run nor recorded, as manifests to make."""
    todo = [
        job.name
        for job in CONFIG.experiments[experiment].jobs()
        if Path(f"{RESULTS}/jobs/{job.name}.json").exists()
        or not all(record_store.find(CONFIG, c.spec, c.seed) for c in job.cells)
    ]
    return [f"{RESULTS}/jobs/{name}.json" for name in todo]


def gpus(job):
    return CONFIG.experiments[JOBS[job].experiment].gpu


def nodes(job):
    return CONFIG.experiments[JOBS[job].experiment].nodes


def data_of(job):
    return [
        f"{RESULTS}/data/{name}.json" for name in {c.spec.data for c in JOBS[job].cells}
    ]


GPU_MODEL = os.environ.get("CRBG_SLURM_GPU_MODEL")
# What every search does, whoever starts it.
RUN = (
    "crbg run {params.experiment} {params.common} --job {wildcards.job} --threads {threads} "
    "${{SLURM_JOB_ID:+--deadline-minutes {resources.runtime} --attempt {resources.attempt} --slices {resources.slices}}} "
    "--out {output} > {log} 2>&1"
)
# The longest wall time of a job that the cluster allows; longer jobs go on from their checkpoint in another slice.
LONGEST = int(os.environ.get("CRBG_SLURM_MAX_MINUTES", 24 * 60))


def cut(wildcards):
    cells = list(JOBS[wildcards.job].cells)
    return estimates.slices(CONFIG, cells, bool(gpus(wildcards.job)), LONGEST)


def minutes(wildcards, attempt):
    slices = cut(wildcards)
    return slices.minutes[min(attempt, slices.most) - 1]


def memory(wildcards):
    """As much again for every time that the job was killed, up to four times: it may have been for that."""
    killed = min(3, estimates.kills(CONFIG, wildcards.job))
    return cut(wildcards).memory_mb * max(1, gpus(wildcards.job)) * (1 + killed)


# What a search asks of a cluster, and is told about itself.
LIMITS = {
    "runtime": minutes,
    "mem_mb": memory,
    "attempt": lambda wildcards, attempt: attempt,
    "slices": lambda wildcards: cut(wildcards).most,
}


def one_of(names):
    """A pattern for wildcards that matches these names and, if there are none, nothing."""
    return "|".join(names) or "(?!)"


def reports(target):
    """What a target asks for: the page, which pulls in all its runs, evaluations, tables and figures."""
    return f"{RESULTS}/report-{target}.html"
