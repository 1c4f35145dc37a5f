"""The JSON schema for editors and the tables in docs/configuration.md agree with the pydantic models."""

import json
from dataclasses import fields

import pytest
import yaml
from paths import ROOT

from crbg import rng
from crbg.experiments import config_docs, config_models
from crbg.experiments.spec import Spec

jsonschema = pytest.importorskip("jsonschema")
AGAIN = "run `python -m crbg.experiments.config_docs`"
FILES = [ROOT / "config.yaml", *sorted((ROOT / "config").rglob("*.yaml")), ROOT / "tests/slurm/config.yaml"]


def test_the_schema_is_that_of_the_models():
    assert json.loads((ROOT / config_docs.SCHEMA).read_text()) == config_docs.schema(), AGAIN


def test_the_page_is_that_of_the_models():
    text = (ROOT / config_docs.PAGE).read_text()
    assert text == config_docs.page(text), AGAIN
    for field in (
        *config_models.Settings.model_fields,
        *config_models.Experiment.model_fields,
        *config_models.Arm.model_fields,
    ):
        assert f"| `{field}` |" in text
    assert all(f"| `{f.name}` |" in text for f in fields(Spec))
    assert all(f"`{law}`" in text for law in rng.LAWS)


def errors(body):
    validator = jsonschema.Draft202012Validator(config_docs.schema())
    return [e.message for e in validator.iter_errors(json.loads(json.dumps(body)))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_schema_accepts_every_file_of_the_project(path):
    assert errors(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    "body",
    [
        {"resluts": "x"},
        {"threads": "two"},
        {"experiments": {"e": {"role": "mian"}}},
        {"experiments": {"e": {"base": {"epocs": 3}}}},
        {"experiments": {"e": {"arms": {"a": {"set": {"precision": "fp16"}}}}}},
        {"experiments": {"e": {"arms": {"a": {"grid": {"density": 0.5}}}}}},
        {"bases": {"b": {"extends": 3}}},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(body):
    assert errors(body)


def test_the_main_file_names_its_schema():
    assert (ROOT / "config.yaml").read_text().startswith(f"# yaml-language-server: $schema={config_docs.SCHEMA}\n")
