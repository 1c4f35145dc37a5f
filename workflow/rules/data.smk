# Data sets are found (or downloaded) and checked before any search starts, so that missing data stops nothing half-way.


localrules:
    data,


rule data:
    output:
        "<results>/data/{name}.json",
    log:
        "<results>/logs/data-{name}.log",
    conda:
        "../../environment.yml"
    params:
        common=COMMON,
    shell:
        "python -m crbg data {wildcards.name} {params.common} --out {output} > {log} 2>&1"
