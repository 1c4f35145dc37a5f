import importlib.util
import re

import pytest
import torch
from c_programs import needs_compiler
from networks import random_mask

from crbg import CrbgError, Ticket
from crbg.export import Examples, inputs
from crbg.export.c import target
from crbg.models import build
from crbg.models.initial_weights import initialise, tensor_digest


@pytest.fixture
def ticket():
    net = build("lenet-12", (1, 4, 4), 3)
    initialise(net, "signed_constant", 1.0, 2)
    return Ticket(
        random_mask(net, 0.4), 2, "signed_constant", 1.0, "lenet-12", (1, 4, 4), 3, tensor_digest(net.state_dict())
    )


@needs_compiler
@pytest.mark.parametrize("draw", [None, "fly"])
def test_the_program_is_checked_on_examples(ticket, draw, tmp_path):
    details = target.write(ticket, tmp_path, draw)
    assert details["draw"] == draw or draw is None
    examples = Examples("made up", torch.randn(40, 1, 4, 4), torch.zeros(40, dtype=torch.int64))
    found = target.check(ticket, tmp_path, examples)
    assert (found["examples"], found["equal_predictions"]) == (40, 40)
    assert found["largest_difference"] < 1e-5
    code = (tmp_path / "model.c").read_text()
    (tmp_path / "model.c").write_text(
        code.replace("{0, 0, 0, 0.25f}", "{0, 0, 0, -3.0f}")
    )  # the slope of the activation
    with pytest.raises(CrbgError, match="of 40 predictions on made up equal"):
        target.check(ticket, tmp_path, examples)


@needs_compiler
def test_speed_is_measured_for_single_images_and_batches(ticket, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "ROUNDS", 2)
    threads = torch.get_num_threads()
    target.write(ticket, tmp_path, "stored")
    found = target.bench(ticket, tmp_path)
    others = ["torch", "C", *(["onnxruntime"] if importlib.util.find_spec("onnxruntime") else [])]
    columns = ["microseconds", *(f"times faster than dense {other}" for other in others)]
    expected = {f"C program, batch {n}, {what}" for n in (1, 32, 256) for what in columns}
    assert {name for name in found if "batch" in name} == expected
    assert all(value > 0 for value in found.values())
    assert torch.get_num_threads() == threads
    target.write(ticket, tmp_path, "fly")
    timed = [name for name in target.bench(ticket, tmp_path) if "microseconds" in name]
    assert timed == ["C program, batch 1, microseconds"], "drawn on the fly, a program has no function for batches"


def test_the_sizes_on_a_microcontroller_are_those_of_the_object_file(ticket, tmp_path, monkeypatch):
    """A script stands in for the cross compiler, which is not installed everywhere."""
    target.write(ticket, tmp_path, "stored")
    for name, text in (("arm-none-eabi-gcc", ""), ("arm-none-eabi-size", "text data bss dec hex\n100 20 3 123 7b x")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    header = (tmp_path / "model.h").read_text()
    memory = sum(int(re.search(rf"MODEL_{key} (\d+)", header)[1]) for key in ("INPUTS", "WORK", "OUTPUTS"))
    found = target.arm_sizes(tmp_path)
    assert found == {"Cortex-M4: flash, bytes": 120, "Cortex-M4: RAM, bytes": 23 + 4 * memory}
    (tmp_path / "arm-none-eabi-gcc").write_text("#!/bin/sh\nexit 1\n")
    assert target.arm_sizes(tmp_path) == {}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert target.arm_sizes(tmp_path) == {}
