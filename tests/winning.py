"""Specs of small winning-ticket runs, shared by several tests."""

import dataclasses

from crbg.experiments.spec import Spec

RECIPE = {"lr": 0.05, "rewind": 1}
BASE = Spec(
    "digits", "lenet-32-16", "cts", 0.2, init="kaiming_normal", epochs=4, batch=64, options={**RECIPE, "search": 3}
)
SPECS = {
    "cts": BASE,
    "clipped": dataclasses.replace(BASE, options={**BASE.options, "gate": "clipped", "objective": "loss"}),
    "lagrange": dataclasses.replace(BASE, options={**BASE.options, "controller": "lagrange", "objective": "feature"}),
    "imp": dataclasses.replace(BASE, method="imp", options={**RECIPE, "drop": 0.6}),
    "saliency": dataclasses.replace(BASE, method="saliency", options={**RECIPE, "rounds": 2}),
}


def with_options(spec, **options):
    return dataclasses.replace(spec, options={**spec.options, **options})
