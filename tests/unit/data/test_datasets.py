import dataclasses

from crbg.data.datasets import DATA


def test_the_registry_is_consistent():
    for name, entry in DATA.items():
        assert entry.name == name
        assert len(entry.mean) == len(entry.std) == (entry.shape[0] if entry.kind == "images" else 0)
        assert min(dataclasses.astuple(entry)[3:6]) > 0
