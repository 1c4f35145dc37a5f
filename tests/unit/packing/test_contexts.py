import numpy as np

from crbg import rng
from crbg.models.initial_weights import unit_draw
from crbg.packing import contexts


def test_contexts_from_a_seed_are_the_quantiles_of_the_drawn_weights():
    found = contexts.from_seed(7)("fc1.weight", 1000)
    assert found.dtype == np.uint8
    assert found.tolist() == (rng.integers(1000, 7, "init", "fc1.weight") >> np.uint64(59)).tolist()
    drawn = unit_draw("fc1.weight", (1000,), "uniform", 7)
    assert found.tolist() == np.floor((drawn + 1) * 16).tolist()


def test_contexts_are_drawn_in_pieces(monkeypatch):
    whole = contexts.from_seed(7)("w", 1000)
    monkeypatch.setattr(contexts, "_PIECE", 13)
    assert contexts.from_seed(7)("w", 1000).tolist() == whole.tolist()


def test_contexts_from_weights_order_weights_by_value():
    values = np.array([0.5, -0.0, -1e30, 0.0, np.inf, -1e-45, -np.inf, 2.0], np.float32)
    found = contexts.from_weights({"w": values.reshape(2, 4)})("w", 8)
    assert found.tolist() == [20, 12, 4, 16, 28, 8, 0, 24]


def test_equal_weights_are_ordered_by_position():
    assert contexts.from_weights({"w": np.ones(64, np.float32)})("w", 64).tolist() == [i // 2 for i in range(64)]
