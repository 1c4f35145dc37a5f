"""A search on the generated text, for tests of its networks."""

import torch

from crbg import methods, models
from crbg.data.loader import BatchLoader
from crbg.data.metrics import BITS
from crbg.data.sources import load
from crbg.measure.accuracy import quality
from crbg.methods.contract import SearchTask
from crbg.search.run_search import run_search


def text_ticket(name, epochs):
    """Search at density 0.4; return the result, its bits per character on the validation part, and the data set."""
    toy = load("toy_text")
    model, roles = models.initial(name, toy.in_shape, toy.classes, "kaiming_normal", 1.0, 0)
    task = SearchTask(BatchLoader(toy.train, 32, seed=0), 0.4, epochs, 0, toy.loss)
    options = {"noise": 0.0, "firmness": 0.0, "polish": 0.5, "lr": 0.05, "temperature": 0.0, "steer": "shift"}
    found = run_search(model, task, methods.get("crbg"), methods.options("crbg", options), roles)
    found.apply(model)
    with torch.no_grad():
        model.out.weight.mul_(found.logit_scale)  # the search multiplied the logits in its loss by this factor
    return found, quality(model, toy.validation.batches(), metric=BITS), toy
