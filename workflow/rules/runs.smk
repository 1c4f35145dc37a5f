# Searches and evaluations. A job is many short cells in one process: importing torch costs more than a small run.


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
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        gpu=gpus,
    params:
        experiment=lambda wildcards: JOBS[wildcards.job].experiment,
        common=COMMON,
    shell:
        "python -m crbg run {params.experiment} {params.common} --job {wildcards.job} --threads {threads} "
        "--deadline-minutes {resources.runtime} --out {output} > {log} 2>&1"


rule evaluate:
    input:
        lambda wildcards: planned(wildcards.experiment),
    output:
        "<results>/evaluated/{experiment}.json",
    log:
        "<results>/logs/evaluate-{experiment}.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=30,
        mem_mb=4000,
    params:
        common=COMMON,
    shell:
        "python -m crbg evaluate {wildcards.experiment} {params.common} --out {output} > {log} 2>&1"
