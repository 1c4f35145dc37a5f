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


def gpus(wildcards):
    return CONFIG.experiments[JOBS[wildcards.job].experiment].gpu


def minutes(wildcards, attempt):
    """Twice the estimate and five minutes, doubled on every further attempt."""
    cells = list(JOBS[wildcards.job].cells)
    seconds = sum(store.estimate_seconds(CONFIG, cells, bool(gpus(wildcards))).values())
    return int(seconds / 30 + 5) * 2 ** (attempt - 1)


def reports(target):
    """What a target asks for: the page, which pulls in all its runs, evaluations, tables and figures."""
    return f"{RESULTS}/report-{target}.html"
