"""Records as runs write them, made up for tests that need no run."""

from crbg.experiments.spec import as_dict


def made_up_record(spec, seed, **fields):
    """A complete record.json of a spec, with `fields` in place of its own."""
    digests = {"initial": "i", "draw": f"d{seed}", "data": "x", "order": f"o{seed}"}
    record = {"schema": 1, "digest": spec.digest(), "spec": as_dict(spec), "version": 1, "seed": seed, "status": "ok"}
    return record | {"steps": 10, "train_images": 100, "digests": digests} | fields


def made_up_evaluation(spec, seed, test):
    """A complete evaluation.json of a spec, with what was measured on the test set."""
    return {"digest": spec.digest(), "seed": seed, "mask": "m", "data": "x", "test": test}
