# Data sets are located or downloaded, and verified, before any search starts.


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
        "python -m crbg data {wildcards.name:q} {params.common} --out {output:q} > {log:q} 2>&1"
