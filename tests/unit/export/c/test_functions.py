import re

import pytest
from c_programs import NETWORKS, made

from crbg.export.c.functions import batch_body, predict_body
from crbg.export.c.network import Pointwise, read


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_a_step_reads_and_writes_does_not_overlap(kind):
    model, x = made(kind)
    steps = read(model, tuple(x.shape[1:]))
    calls, work = predict_body(steps)
    calls = [call for call in calls if call != "(void)work;"]
    spans, written = [], [("input", 0, x[0].numel())]
    for step, call in zip(steps, calls, strict=True):
        source, target = re.fullmatch(r"\w+\(&layer\d+, (.+), (.+)\);", call).groups()
        assert source == spans[-1] if spans else source == "input"
        spans.append(target)
        memory, _, offset = target.partition(" + ")
        written.append((memory, int(offset or 0), step.outputs))
    for step, (before, start, size), (after, place, count) in zip(steps, written, written[1:], strict=False):
        if before == after == "work" and not isinstance(step, Pointwise):
            assert start + size <= place or place + count <= start
        assert after != "work" or place + count <= work
    assert spans[-1] == "output"


def test_a_network_without_linear_layers_at_the_end_has_no_tiles():
    model, x = made("pools")
    body, work = batch_body(read(model, tuple(x.shape[1:])), "net")
    assert body[0].startswith("for (; count; count--")
    assert work == predict_body(read(model, tuple(x.shape[1:])))[1]
