import numpy as np
import pytest
from made_up_data import SMALL

from crbg import data


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return arrays of a data set `mnist` with 39 training and 12 test images, and a function that writes its file."""
    monkeypatch.setitem(data.DATA, "mnist", SMALL)
    monkeypatch.setenv("CRBG_DATA", str(tmp_path / "data"))
    pixels = np.random.default_rng(0)
    arrays = {
        "train_x": pixels.integers(0, 256, (39, 2, 4, 4), dtype=np.uint8),
        "train_y": np.arange(39) % 3,
        "test_x": pixels.integers(0, 256, (12, 2, 4, 4), dtype=np.uint8),
        "test_y": np.arange(12) % 3,
    }

    def write(drop=(), **changes):
        path = tmp_path / "data/mnist.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **{k: v for k, v in (arrays | changes).items() if k not in drop})
        return path

    return arrays, write
