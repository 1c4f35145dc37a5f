"""Synthetic records in the format that runs write, for tests that need no run."""

from crbg.experiments.spec import as_dict


def made_up_record(spec, seed, **fields):
    """Return a complete record.json for a spec; `fields` override its values."""
    digests = {"initial": "i", "draw": f"d{seed}", "data": "x", "order": f"o{seed}"}
    record = {"schema": 1, "digest": spec.digest(), "spec": as_dict(spec), "version": 1, "seed": seed, "status": "ok"}
    return record | {"steps": 10, "train_images": 100, "digests": digests} | fields


def made_up_evaluation(spec, seed, test):
    """Return a complete evaluation.json for a spec, with the test-set measurements `test`."""
    return {"digest": spec.digest(), "seed": seed, "mask": "m", "data": "x", "test": test}
