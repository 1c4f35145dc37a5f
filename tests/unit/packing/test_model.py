import math

import naive_packing
import numpy as np
import pytest

from crbg.packing import model
from crbg.packing.model import BLOCK, CONTEXTS, ONE


def visits(shape):
    """Return the positions that `walk` visits, block by block, for an arbitrary mask."""
    seen, count = [], math.prod(shape)

    def code(p, position):
        seen.append(position.tolist())
        return position % 3 == 0

    model.walk(shape, np.zeros(count, np.uint8), count // 3, code)
    return seen


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 7), (7, 1), (4, 4), (2, 2500)])
def test_every_weight_is_visited_once_in_blocks(shape):
    blocks = visits(shape)
    assert sorted(p for block in blocks for p in block) == list(range(math.prod(shape)))
    assert max(map(len, blocks)) <= BLOCK


def test_a_diagonal_visits_every_column_once_and_rows_evenly():
    first, second, third = visits((3, 5))
    assert first == [0, 6, 12, 3, 9]  # row-major positions of (0, 0), (1, 1), (2, 2), (0, 3), (1, 4)
    assert [p % 5 for p in second] == [p % 5 for p in third] == [0, 1, 2, 3, 4]
    assert [p // 5 for p in second] == [1, 2, 0, 1, 2]


def test_logarithms_are_those_of_the_specification():
    numbers = [*range(1, 5000), 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**40, 2**52, 2**53 - 1]
    assert model.log2(np.array(numbers)).tolist() == [naive_packing.log2(n) for n in numbers]
    assert all(-1.5 < naive_packing.log2(n) - 256 * math.log2(n) < 1e-9 for n in numbers)


def test_probabilities_are_those_of_the_specification_and_never_certain():
    z = np.arange(-5000, 5000)
    p = model.probability(z)
    assert p.tolist() == [naive_packing.probability(int(v)) for v in z]
    assert p.min() >= 1
    assert p.max() < ONE
    assert bool((np.diff(p) >= 0).all())
    assert np.abs(p / ONE - 1 / (1 + 2.0 ** (-z.clip(-3840, 3839) / 256))).max() < 1e-4


def cost(mask, contexts):
    """Return the code length of a mask in bits, according to the probabilities of the model."""
    bits, spent = mask.reshape(-1), [0.0]

    def code(p, position):
        spent[0] -= float(np.log2(np.where(bits[position], p, ONE - p) / ONE).sum())
        return bits[position]

    model.walk(mask.shape, contexts, int(bits.sum()), code)
    return spent[0]


@pytest.mark.parametrize("part", ["rows", "columns", "contexts"])
def test_each_of_the_three_counts_is_used(part):
    rng = np.random.default_rng(0)
    shape = (60, 80)
    contexts = rng.integers(0, CONTEXTS, shape).astype(np.uint8)
    high = {"rows": np.arange(60)[:, None] % 4 == 0, "columns": np.arange(80) % 4 == 0, "contexts": contexts < 8}[part]
    mask = rng.random(shape) < np.where(np.broadcast_to(high, shape), 0.5, 0.01)
    density = mask.mean()
    entropy = -mask.size * (density * math.log2(density) + (1 - density) * math.log2(1 - density))
    assert cost(mask, contexts.reshape(-1)) < 0.75 * entropy


def test_a_random_mask_costs_little_more_than_its_entropy():
    mask = np.random.default_rng(0).random((100, 300)) < 0.1
    p = mask.mean()
    entropy = -mask.size * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert entropy < cost(mask, np.zeros(mask.size, np.uint8)) < 1.04 * entropy
