# Searches and evaluations. A job executes many short runs in one process, because importing torch takes longer than
# a short run.
# Experiments that need a GPU have separate rules, so that a cluster profile can send them to another partition.
# Deadline and number of attempts are passed only inside SLURM jobs, because elsewhere nothing restarts a job.

GPU_JOBS = [name for name in JOBS if gpus(name) == 1 and nodes(name) == 1]
WIDE_JOBS = [name for name in JOBS if gpus(name) > 1 and nodes(name) == 1]
NODE_JOBS = [name for name in JOBS if nodes(name) > 1]
GPU_EXPERIMENTS = [e.name for e in CONFIG.experiments.values() if e.gpu]


rule search:
    input:
        lambda wildcards: ancient(data_of(wildcards.job)),
    output:
        "<results>/jobs/{job}.json",
    log:
        "<results>/logs/{job}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **LIMITS,
    params:
        experiment=lambda wildcards: JOBS[wildcards.job].experiment,
        common=COMMON,
    shell:
        f"python -m {RUN}"


use rule search as search_gpu with:
    wildcard_constraints:
        job=one_of(GPU_JOBS),
    resources:
        **LIMITS,
        gpu=lambda wildcards: gpus(wildcards.job),


# One run on several GPUs of one node (`gpu: 4`). Each batch is split over the GPUs.
rule search_wide:
    input:
        lambda wildcards: ancient(data_of(wildcards.job)),
    output:
        "<results>/jobs/{job}.json",
    log:
        "<results>/logs/{job}.log",
    wildcard_constraints:
        job=one_of(WIDE_JOBS),
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **LIMITS,
        nodes=1,
        gpu=lambda wildcards: gpus(wildcards.job),
        cpus_per_task=lambda wildcards: CONFIG.threads * gpus(wildcards.job),
    params:
        experiment=lambda wildcards: JOBS[wildcards.job].experiment,
        common=COMMON,
    shell:
        "python -m torch.distributed.run --standalone --nproc-per-node={resources.gpu} "
        f"-m {RUN}"


# One run on several nodes (`nodes: 2`), which needs SLURM: one torchrun per node, with the rendezvous on the node of this shell. Because
# of `mpi`, the executor does not call srun itself. It does set --gpus, so `gres` requests the GPUs per node.
rule search_nodes:
    input:
        lambda wildcards: ancient(data_of(wildcards.job)),
    output:
        "<results>/jobs/{job}.json",
    log:
        "<results>/logs/{job}.log",
    wildcard_constraints:
        job=one_of(NODE_JOBS),
    conda:
        "../../environment.yml"
    threads: CONFIG.threads
    resources:
        **LIMITS,
        mpi="srun",
        nodes=lambda wildcards: nodes(wildcards.job),
        tasks_per_node=lambda wildcards: gpus(wildcards.job),
        gres=lambda wildcards: ":".join(
            filter(None, ("gpu", GPU_MODEL, str(gpus(wildcards.job))))
        ),
    params:
        experiment=lambda wildcards: JOBS[wildcards.job].experiment,
        common=COMMON,
    shell:
        "{resources.mpi} --nodes={resources.nodes} --ntasks={resources.nodes} --ntasks-per-node=1 "
        "--cpus-per-task=$(({threads} * {resources.tasks_per_node})) "
        "python -m torch.distributed.run --nnodes={resources.nodes} --nproc-per-node={resources.tasks_per_node} "
        "--rdzv-backend=c10d --rdzv-endpoint=$(hostname):$((20000 + SLURM_JOB_ID % 20000)) --rdzv-id=$SLURM_JOB_ID "
        f"-m {RUN}"


ruleorder: search_nodes > search_wide > search_gpu > search


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
        "python -m crbg evaluate {wildcards.experiment} {params.common} --out {output:q} > {log:q} 2>&1"


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


# Needs the networks of all runs that it measures, so it is part of the workflow only if no committed record is reused.
rule robustness:
    input:
        [f"{RESULTS}/evaluated/{e}.json" for e in CONFIG.robustness],
    output:
        "<results>/robustness.csv",
    log:
        "<results>/logs/robustness.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=60,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
    params:
        common=COMMON,
    shell:
        "python -m crbg robustness {params.common} --out {output:q} > {log:q} 2>&1"
