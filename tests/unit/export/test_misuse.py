"""Wrong arguments of the functions for models outside the registry, each with one error that says what to change."""

import copy
import dataclasses

import pytest
import torch
from c_programs import needs_compiler
from exports import closed_ticket
from torch import nn
from torch.nn.utils import prune

from crbg import Mask, Ticket
from crbg.errors import CrbgError
from crbg.export import export_ticket, measure, shrink, to_c
from crbg.export.c import Built
from crbg.export.inputs import check_example, copied


def sparse():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight.data[:, 3:] = 0
    return model


def pruned():
    """A network after a step of training with torch.nn.utils.prune."""
    model = sparse()
    prune.identity(model[0], "weight")
    model(torch.ones(2, 4)).sum().backward()
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: shrink(sparse(), None, torch.ones(0, 4)), "`example` must be a batch of at least one input"),
        (lambda folder: shrink(sparse(), None, torch.ones(2, 5)), "the network cannot compute the example: .*shapes"),
        (lambda folder: shrink(sparse(), closed_ticket(), torch.ones(2, 4)), "mask must be .*`ticket.mask`, not Tick"),
        (lambda folder: shrink("model.pt", None, torch.ones(2, 4)), "expected a network, not str"),
        (lambda folder: measure(sparse(), torch.ones(2, 4)), "networks must be a mapping of names to networks"),
        (lambda folder: measure({"a": sparse()}, torch.ones(0, 4)), "`example` must be a batch"),
        (lambda folder: to_c("model.pt", folder, in_shape=(4,)), "expected a network, not str"),
        (lambda folder: to_c(sparse(), folder, in_shape=4), r"in_shape must be a tuple, for example \(4,\)"),
        (lambda folder: to_c(sparse().to("meta"), folder, in_shape=(4,)), "on the meta device and has no weights"),
        (lambda folder: to_c(sparse(), folder, in_shape=(-1,)), "in_shape must contain whole numbers above 0"),
        (lambda folder: to_c(sparse(), folder, in_shape=(4,), pixels=0.5), r"pixels must be a pair \(mean, std\)"),
        (lambda folder: to_c(pruned(), folder, in_shape=(4,)), r"cannot be copied .*`prune.remove\(layer, 'weight'\)`"),
        (lambda folder: shrink(sparse(), None, torch.ones(4)), "the first axis of each tensor must be the batch"),
        (lambda folder: shrink(sparse(), None, torch.full((2, 4), torch.nan)), "for the example contain NaN"),
        (lambda folder: measure({"a": 3}, torch.ones(2, 4)), "'a' must be a network, not int"),
        (lambda folder: measure({"a": sparse()}, torch.ones(2, 5)), "the network cannot compute the example"),
        (
            lambda folder: export_ticket("t.safetensors", "packed", folder),
            "expected a Ticket, not str; .*Ticket",
        ),
        (lambda folder: Built(folder / "missing"), r"cannot read .*model\.h: No such file"),
    ],
)
def test_one_error_says_what_to_change(call, message, tmp_path):
    with pytest.raises(CrbgError, match=message):
        call(tmp_path)


def test_an_example_without_tensors_is_an_error():
    for wrong in ((), {}, torch.tensor(1.0), (torch.ones(2), torch.ones(0))):
        with pytest.raises(CrbgError, match="`example` must be a batch"):
            check_example(wrong)
    check_example({"x": torch.ones(1, 3)})


def test_a_copy_is_on_the_cpu_and_independent():
    model = sparse()
    twin = copied(model)
    twin[0].weight.data.zero_()
    assert bool(model[0].weight.any())


def own_ticket():
    mask = Mask({"0.weight": torch.ones(6, 4, dtype=torch.bool), "2.weight": torch.ones(2, 6, dtype=torch.bool)})
    return Ticket(mask, 0, "given", 1.0, "", (), 0, "digest")


@pytest.mark.parametrize(("target", "function"), [("c", "to_c"), ("onnx", "to_onnx"), ("shrunk", "shrink")])
def test_a_ticket_of_another_model_names_the_function_for_it(target, function, tmp_path):
    with pytest.raises(CrbgError, match=rf"target .{target}. needs a network.*crbg\.export\.{function}"):
        export_ticket(own_ticket(), target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_seeded_ticket_of_another_model_needs_the_model(tmp_path):
    with pytest.raises(CrbgError, match=r"outside crbg.models; pass this model with `model=`"):
        to_c(dataclasses.replace(own_ticket(), law="uniform"), tmp_path, "fly", in_shape=(4,))


@needs_compiler
def test_a_program_checks_its_inputs(tmp_path):
    to_c(sparse(), tmp_path, in_shape=(4,), pixels=((0.5,), (0.5,)))
    program = Built(tmp_path)
    with pytest.raises(CrbgError, match="pixels of type uint8 from 0 to 255, not float32"):
        program.predict(torch.rand(2, 4).numpy())
    assert program.predict(torch.zeros(0, 4, dtype=torch.uint8).numpy()).shape == (0, 2)
    other = copy.copy(program)
    other.batched = False
    with pytest.raises(CrbgError, match="no function for batches"):
        other.predict(torch.zeros(2, 4, dtype=torch.uint8).numpy(), batch=2)
