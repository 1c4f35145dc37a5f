import dataclasses

import pytest

from crbg import methods
from crbg.errors import CrbgError
from crbg.experiments.spec import Spec, as_dict, spec_from


@pytest.fixture(autouse=True)
def first_versions(monkeypatch):
    # A digest includes the method's VERSION. It is fixed here, so that pinned digests test only the canonical form.
    for name in methods.names():
        monkeypatch.setattr(methods.get(name), "VERSION", 1)


# --- digests and names of runs ---


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (
            Spec("mnist", "lenet-300-100", "crbg", 0.05, scale=0.22, epochs=12, options={"lr": 0.04, "noise": 0.25}),
            "6c72f983d0fd17e2",
        ),
        (Spec("mnist", "lenet-300-100", "edge_popup", 0.5), "bd779b8015c6710b"),
        (
            Spec(
                "cifar10",
                "timm:resnet18",
                "dense",
                init="kaiming_normal",
                flip=True,
                epochs=2,
                model_args={"drop_rate": 0.1},
            ),
            "e0d747e0f8403ea9",
        ),
    ],
    ids=["crbg", "edge_popup", "dense"],
)
def test_digest_is_pinned(spec, digest):
    assert spec.digest() == digest, (
        "all records of such runs would be lost; a new field must have a default that names the old runs"
    )
    assert spec.slug().endswith(digest)


DEFAULTS = {
    "density": None,
    "init": "uniform",
    "scale": 1.0,
    "epochs": 40,
    "batch": 256,
    "flip": False,
    "fit_on": "train",
    "limit": 0,
    "crop": 0,
    "size": 0,
    "precision": "fp32",
    "model_args": {},
    "options": {},
}


OPTIONS = {
    "crbg": {
        "noise": 0.5,
        "penalty_sigma": 0.5,
        "mu0": 0.5,
        "mu0_spread": 0.01,
        "penalty": "induce_sparse",
        "weight": 1.0,
        "lr": 0.03,
        "anneal_to": -1.0,
        "source": "normal",
        "learn_sigma": False,
        "reach": 0.4,
        "decide": 0.5,
        "firmness": 1.0,
        "tolerance": 0.0,
        "granularity": "weight",
        "temperature": 1.0,
    },
    "edge_popup": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "scaled": True},
    "dense": {"optimiser": "adam", "lr": 1e-3},
    "random": {},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_field_at_its_default_renames_nothing(method):
    asked = {"density": 0.5} if getattr(methods.get(method), "NEEDS_DENSITY", False) else {}
    short = Spec("mnist", "lenet-16", method, **asked)
    full = Spec("mnist", "lenet-16", method, **(DEFAULTS | asked | {"options": OPTIONS[method]}))
    assert short.canonical() == {"data": "mnist", "model": "lenet-16", "method": method, "version": 1} | asked
    assert full.canonical() == short.canonical(), (
        "a default changed: old digests would now name other runs, so raise VERSION"
    )
    assert full.digest() == short.digest()
    assert as_dict(short)["options"].items() >= OPTIONS[method].items()


def test_every_field_enters_the_digest():
    other = {
        "data": "fashion_mnist",
        "model": "lenet-17",
        "method": "edge_popup",
        "density": 0.25,
        "init": "uniform_fan",
        "scale": 0.5,
        "epochs": 41,
        "batch": 128,
        "flip": True,
        "crop": 4,
        "size": 64,
        "precision": "bf16",
        "fit_on": "all",
        "limit": 1000,
        "control_images": 500,
        "watch_images": 100,
        "split": 1,
        "weight_bits": 8,
        "model_args": {"activation": "relu"},
        "options": {"lr": 0.2},
    }
    start = Spec("mnist", "lenet-16", "imp", 0.5)
    assert set(other) == {f.name for f in dataclasses.fields(Spec)}
    digests = {start.digest()} | {dataclasses.replace(start, **{k: v}).digest() for k, v in other.items()}
    assert len(digests) == len(other) + 1


def test_whole_numbers_and_decimals_are_one_run():
    values = {"data": "mnist", "model": "lenet-16", "method": "crbg", "options": {"noise": 1}, "density": 1, "scale": 2}
    decimals = values | {"options": {"noise": 1.0}, "density": 1.0, "scale": 2.0}
    assert spec_from(values).digest() == spec_from(decimals).digest()
    assert spec_from(values).slug() == spec_from(decimals).slug()
    assert type(spec_from(values).scale) is float
    # Python treats True as 1, but a boolean is not accepted as a number.
    with pytest.raises(CrbgError, match="noise = True is bool"):
        spec_from(values | {"options": {"noise": True}})


def test_a_raised_version_renames_the_runs_of_its_method_alone(monkeypatch):
    def digests():
        return [Spec("mnist", "lenet-16", m, 0.5).digest() for m in ("crbg", "edge_popup")]

    before = digests()
    monkeypatch.setattr(methods.get("crbg"), "VERSION", 2)
    after = digests()
    assert after[0] != before[0]
    assert after[1] == before[1]


# --- mistakes in a spec ---


def spec_error(**values):
    with pytest.raises(CrbgError) as caught:
        spec_from({"data": "mnist", "model": "lenet-16", "method": "crbg"} | values, "somewhere")
    return str(caught.value)


def test_all_wrong_keys_and_types_of_a_spec_are_in_one_error():
    text = spec_error(epocs=3, batch="many", flip=1, limit=True, options=3, data=5)
    assert text.startswith("somewhere: ")
    assert "'epocs': did you mean 'epochs'?" in text
    for part in (
        "batch = 'many' is str",
        "flip = 1 is int",
        "limit = True is bool",
        "options must be a mapping",
        "data = 5 is int",
    ):
        assert part in text
    with pytest.raises(CrbgError, match="data is missing; model is missing; method is missing"):
        spec_from({})


def test_all_wrong_names_and_ranges_of_a_spec_are_in_one_error():
    text = spec_error(
        data="mnst",
        model="lenett-16",
        init="unifrom",
        density=1.5,
        fit_on="test",
        scale=-1.0,
        epochs=-1,
        options={"nois": 1.0, "lr": "x"},
    )
    assert "unknown data set 'mnst': did you mean 'mnist'?" in text
    assert "unknown model 'lenett-16': did you mean 'lenet-300-100'?" in text
    assert "unknown init 'unifrom': did you mean 'uniform'?" in text
    assert "crbg has no option 'nois': did you mean 'noise'?" in text
    for part in (
        "crbg.lr = 'x' is str, not float",
        "density 1.5",
        "fit_on is 'train' or 'all', not 'test'",
        "scale -1.0",
        "epochs -1",
    ):
        assert part in text


def test_an_unknown_method_names_the_nearest():
    assert "unknown method 'edgepopup': did you mean 'edge_popup'?" in spec_error(method="edgepopup")


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0000001, float("nan")])
def test_density_lies_above_0_and_up_to_1(density):
    assert "is not in (0, 1]" in spec_error(density=density)


def test_a_batch_larger_than_the_images_is_refused_before_data_are_loaded():
    assert "batch 1198 is larger" in spec_error(data="digits", batch=1198)
    assert "batch 101 is larger" in spec_error(data="digits", batch=101, limit=100)
    assert (
        spec_from({"data": "digits", "model": "lenet-16", "method": "crbg", "batch": 1497, "fit_on": "all"}).batch
        == 1497
    )
