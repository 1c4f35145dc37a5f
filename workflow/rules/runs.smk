# Searches and evaluations. A job is many short cells in one process: importing torch costs more than a small run.
# What needs a GPU has a rule of its own, so that a cluster's profile can send it elsewhere.
# A deadline and a number of tries are given inside SLURM jobs only: elsewhere nobody would call again.

GPU_JOBS = [name for name in JOBS if gpus(name)]
GPU_EXPERIMENTS = [e.name for e in CONFIG.experiments.values() if e.gpu]


rule search:
    input:
        lambda wildcards: ancient(
            [
                f"{RESULTS}/data/{name}.json"
                for name in {c.spec.data for c in JOBS[wildcards.job].cells}
            ]
        ),
    output:
        "<results>/jobs/{job}.json",
    log:
        "<results>/logs/{job}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        runtime=minutes,
        mem_mb=memory,
        attempt=lambda wildcards, attempt: attempt,
        slices=lambda wildcards: cut(wildcards).most,
    params:
        experiment=lambda wildcards: JOBS[wildcards.job].experiment,
        common=COMMON,
    shell:
        "python -m crbg run {params.experiment} {params.common} --job {wildcards.job} --threads {threads} "
        "${{SLURM_JOB_ID:+--deadline-minutes {resources.runtime} --attempt {resources.attempt} --slices {resources.slices}}} --out {output} > {log} 2>&1"


use rule search as search_gpu with:
    wildcard_constraints:
        job=one_of(GPU_JOBS),
    resources:
        runtime=minutes,
        mem_mb=memory,
        attempt=lambda wildcards, attempt: attempt,
        slices=lambda wildcards: cut(wildcards).most,
        gpu=lambda wildcards: gpus(wildcards.job),


ruleorder: search_gpu > search


rule evaluate:
    input:
        lambda wildcards: planned(wildcards.experiment),
    output:
        "<results>/evaluated/{experiment}.json",
    log:
        "<results>/logs/evaluate-{experiment}.log",
    group:
        "evaluate"
    conda:
        "../../environment.yml"
    resources:
        runtime=30,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
    params:
        common=COMMON,
    shell:
        "python -m crbg evaluate {wildcards.experiment} {params.common} --out {output} > {log} 2>&1"


use rule evaluate as evaluate_gpu with:
    wildcard_constraints:
        experiment=one_of(GPU_EXPERIMENTS),
    group:
        "evaluate_gpu"
    resources:
        runtime=30,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        gpu=1,


ruleorder: evaluate_gpu > evaluate
