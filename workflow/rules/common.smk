# What the rules share: which jobs are still to do, and what a job needs.


def planned(experiment):
    """Jobs of an experiment that have a cell neither run nor recorded, as manifests to make."""
    todo = [
        job.name
        for job in CONFIG.experiments[experiment].jobs()
        if Path(f"{RESULTS}/jobs/{job.name}.json").exists()
        or not all(store.find(CONFIG, c.spec, c.seed) for c in job.cells)
    ]
    return [f"{RESULTS}/jobs/{name}.json" for name in todo]


def gpus(job):
    return CONFIG.experiments[JOBS[job].experiment].gpu


# The longest wall time of a job that the cluster allows; longer jobs go on from their checkpoint in another slice.
LONGEST = int(os.environ.get("CRBG_SLURM_MAX_MINUTES", 24 * 60))


def cut(wildcards):
    cells = list(JOBS[wildcards.job].cells)
    return plan.slices(CONFIG, cells, bool(gpus(wildcards.job)), LONGEST)


def minutes(wildcards, attempt):
    slices = cut(wildcards)
    return slices.minutes[min(attempt, slices.most) - 1]


def memory(wildcards):
    """As much again for every time that the job was killed, up to four times: it may have been for that."""
    killed = min(3, plan.kills(CONFIG, wildcards.job))
    return cut(wildcards).memory_mb * (1 + killed)


def one_of(names):
    """A pattern for wildcards that matches these names and, if there are none, nothing."""
    return "|".join(names) or "(?!)"


def reports(target):
    """What a target asks for: the page, which pulls in all its runs, evaluations, tables and figures."""
    return f"{RESULTS}/report-{target}.html"
