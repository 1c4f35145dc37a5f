# Functions that the rules share: which jobs remain, and which resources a job needs.


def planned(experiment):
    """Return the manifests of an experiment's jobs that exist already, or that have a cell without a record."""
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
# Command line shared by all search jobs.
RUN = (
    "crbg run {params.experiment} {params.common} --job {wildcards.job} --threads {threads} "
    "${{SLURM_JOB_ID:+--deadline-minutes {resources.runtime} --attempt {resources.attempt} --slices {resources.slices}}} "
    "--out {output:q} > {log:q} 2>&1"
)
# The longest wall time that the cluster allows. A longer job continues from its checkpoint in another slice.
LONGEST = int(os.environ.get("CRBG_SLURM_MAX_MINUTES", 24 * 60))


def cut(wildcards):
    cells = list(JOBS[wildcards.job].cells)
    return estimates.slices(CONFIG, cells, bool(gpus(wildcards.job)), LONGEST)


def minutes(wildcards, attempt):
    slices = cut(wildcards)
    return slices.minutes[min(attempt, slices.most) - 1]


def memory(wildcards):
    """Return the memory of a job: the estimate, increased by the same amount after each kill, to at most four times."""
    killed = min(3, estimates.kills(CONFIG, wildcards.job))
    return cut(wildcards).memory_mb * max(1, gpus(wildcards.job)) * (1 + killed)


# Resources that a search requests from a cluster, and values that are passed to its command.
LIMITS = {
    "runtime": minutes,
    "mem_mb": memory,
    "attempt": lambda wildcards, attempt: attempt,
    "slices": lambda wildcards: cut(wildcards).most,
}


def one_of(names):
    """Return a pattern that matches these names; without names, it matches nothing."""
    return "|".join(names) or "(?!)"


def reports(target):
    """Return the input of a target: its report page, which depends on all its runs, evaluations, tables and figures."""
    return f"{RESULTS}/report-{target}.html"


def robustness_of(target):
    """Return the measurements of `crbg robustness` if a target executes all runs that they need."""
    complete = CONFIG.robustness.keys() <= {e.name for e in TARGETS[target]}
    again = CONFIG.reuse == "never" and not CONFIG.demonstration
    return (
        [f"{RESULTS}/robustness.csv"]
        if CONFIG.robustness and complete and again
        else []
    )
