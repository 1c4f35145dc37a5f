# Records -> tables, figures, verdicts. These rules are cheap and run on the machine where Snakemake was started.


localrules:
    selection,
    chapter,
    paper,


# Repeats the choice of settings from the tuning records, to compare it with the committed choice.
rule selection:
    input:
        lambda wildcards: [
            m
            for e in TARGETS[wildcards.target]
            if e.role == "tune"
            for m in planned(e.name)
        ],
    output:
        "<results>/selected-{target}.yaml",
    log:
        "<results>/logs/selection-{target}.log",
    conda:
        "../../environment.yml"
    params:
        common=COMMON,
    shell:
        "python -m crbg select {params.common} --out {output:q} > {log:q} 2>&1"


# Table and figure of one main experiment.
rule chapter:
    input:
        "<results>/evaluated/{experiment}.json",
    output:
        report(
            "<paper>/figures/{experiment}.png",
            caption="../report/curve.rst",
            category="{experiment}",
        ),
        "<paper>/figures/{experiment}.pdf",
        "<paper>/tables/{experiment}.tex",
        report(
            "<paper>/tables/{experiment}.md",
            caption="../report/table.rst",
            category="{experiment}",
        ),
    log:
        "<results>/logs/chapter-{experiment}.log",
    conda:
        "../../environment.yml"
    params:
        common=COMMON,
    shell:
        "python -m crbg report {wildcards.experiment} {params.common} > {log:q} 2>&1"


# Verdicts, numbers and the page, from all new and committed records.
rule paper:
    input:
        lambda wildcards: [
            m for e in TARGETS[wildcards.target] for m in planned(e.name)
        ],
        lambda wildcards: [
            f"{PAPER}/tables/{e.name}.md"
            for e in TARGETS[wildcards.target]
            if e.role == "main"
        ],
        lambda wildcards: robustness_of(wildcards.target),
        "<results>/selected-{target}.yaml",
        claims=ancient("paper/claims.yaml"),
    output:
        report(
            "<results>/report-{target}.html",
            caption="../report/page.rst",
            category="everything",
        ),
    log:
        "<results>/logs/report-{target}.log",
    conda:
        "../../environment.yml"
    params:
        common=COMMON,
    shell:
        "python -m crbg report {params.common} --page {output:q} > {log:q} 2>&1"
