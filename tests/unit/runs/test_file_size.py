import dataclasses
import json
import math
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from crbg import packing
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, folder
from crbg.masks.mask import Mask
from crbg.runs.artifacts import reopen
from crbg.runs.execute import execute
from crbg.runs.file_size import round_weights, stored_bytes
from crbg.runs.readings import read_all
from crbg.runs.setup import Workspace, set_up
from crbg.ticket import Ticket

SMALL = Spec("digits", "lenet-8-8", "dense", init="kaiming_normal", epochs=2, batch=64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4), nn.PReLU(4), nn.Linear(4, 2)
    )


def mask_of(model, density):
    names = ("0.weight", "3.weight", "5.weight")
    return Mask({n: torch.rand(model.get_parameter(n).shape) < density for n in names})


def rounded(rows, kept, bits):
    """Round a matrix, weight by weight."""
    most, out, integers = 2 ** (bits - 1) - 1, [], []
    for row, keep in zip(rows, kept, strict=True):
        scale = max((abs(w) for w, k in zip(row, keep, strict=True) if k), default=0) / most
        q = [min(max(round(w / scale), -most), most) if k and scale else 0 for w, k in zip(row, keep, strict=True)]
        out.append([i * scale if k else w for i, w, k in zip(q, row, keep, strict=True)])
        integers += [i for i, k in zip(q, keep, strict=True) if k]
    return out, integers


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_and_size_against_naive_code(bits):
    model, reference = network(), network()
    mask, integers, scales = mask_of(model, 0.6), [], 0
    mask["3.weight"][1] = False  # a unit without weights has the scale 0
    round_weights(model, mask, bits)
    for name in mask:
        w = reference.get_parameter(name).detach()
        rows, found = rounded(w.flatten(1).tolist(), mask[name].flatten(1).tolist(), bits)
        torch.testing.assert_close(model.get_parameter(name).detach().flatten(1), torch.tensor(rows))
        integers, scales = integers + found, scales + len(rows)
    others = {n: p for n, p in reference.named_parameters() if n not in mask}
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in others.items())
    floats = scales + 3 + 4 + 4 + 2  # channels of batch norm, biases of the first layer, slopes, biases of the second
    code = min(math.ceil(len(integers) * bits / 8), len(zlib.compress(np.array(integers, np.int8).tobytes(), 9)))
    assert stored_bytes(model, mask, bits) == len(packing.pack(mask, packing.contexts.none)) + code + 4 * floats


def test_the_size_of_floats_and_of_a_network_without_a_mask():
    model = network()
    mask = mask_of(model, 0.6)
    assert stored_bytes(model, mask, 0) == len(packing.pack(mask, packing.contexts.none)) + 4 * (mask.kept + 13)
    assert stored_bytes(model, Mask.full({n: model.get_parameter(n) for n in mask}), 0) == 4 * (mask.total + 13)


def test_integers_with_little_entropy_are_compressed():
    model = nn.Linear(4096, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    assert stored_bytes(model, Mask.full({"weight": model.weight}), 8) < 100


def test_a_run_measures_the_rounded_weights(tmp_path):
    bench = Workspace(tmp_path)
    plain, coarse = execute(SMALL, 0, bench), execute(dataclasses.replace(SMALL, weight_bits=2), 0, bench)
    total = 784 * 8 + 64 + 80
    assert plain.file_bytes == 4 * total
    assert total / 8 < coarse.file_bytes <= total / 4 + 4 * 26
    assert plain.value() != coarse.value()
    spec = dataclasses.replace(SMALL, weight_bits=2)
    setup = set_up(spec, 0, bench.data(spec.data))
    found = reopen(folder(bench.results, spec, 0), setup.model)
    weight = setup.model.get_parameter("fc1.weight")
    assert all(len(row.unique()) <= 3 for row in weight)
    assert read_all(setup, found, setup.data.validation).value() == coarse.value()


def test_the_size_of_a_ticket_is_that_of_its_packed_file(tmp_path):
    spec = Spec("digits", "lenet-32-16", "edge_popup", 0.1, scale=0.3, epochs=1, batch=64)
    record = execute(spec, 0, Workspace(tmp_path))
    ticket = Ticket.load(folder(tmp_path, spec, 0) / "ticket.safetensors")
    ticket.save(tmp_path / "small")
    assert record.file_bytes == (tmp_path / "small").stat().st_size
    assert json.loads((folder(tmp_path, spec, 0) / "record.json").read_text())["file_bytes"] == record.file_bytes


def test_errors():
    with pytest.raises(CrbgError, match=r"weight_bits: edge_popup does not train weights.*leave weight_bits out"):
        Spec("digits", "lenet-32-16", "edge_popup", 0.1, weight_bits=8)
    for bits in (1, 9, -8):
        with pytest.raises(CrbgError, match=r"weight_bits .* must be 0 or from 2 to 8"):
            dataclasses.replace(SMALL, weight_bits=bits)
