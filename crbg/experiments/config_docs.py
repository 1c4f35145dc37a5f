"""Generate config/schema.json (for editors) and the tables of docs/configuration.md from the configuration models.

    python -m crbg.experiments.config_docs

tests/unit/experiments/test_config_docs.py fails if one of the files is out of date.
"""

from __future__ import annotations

import json
import re
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from crbg import rng
from crbg.experiments.config_models import DOTTED, RUN_FIELDS, Arm, Experiment, Settings
from crbg.experiments.spec import Spec

SCHEMA, PAGE = Path("config/schema.json"), Path("docs/configuration.md")
CHOICES = {"init": [*rng.LAWS, "imagenet"], "precision": ["fp32", "bf16"], "fit_on": ["train", "all"]}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema() -> dict[str, Any]:
    """Build the JSON Schema of a configuration file, including the fields of a run wherever they may be set."""
    made = Settings.model_json_schema()
    made |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A configuration file of crbg"}
    run = {key: _run_field(key) for key in RUN_FIELDS}
    dotted: dict[str, Any] = {rf"^({'|'.join(DOTTED)})\.": {}}
    names = {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "bases that these fields extend and override",
    }
    lists = {key: {"type": "array", "minItems": 1, "description": body["description"]} for key, body in run.items()}
    definitions = made["$defs"]
    definitions["Body"] = _closed(run | {"extends": names}, dotted)
    definitions["Grid"] = _closed(lists, {next(iter(dotted)): {"type": "array", "minItems": 1}})
    body = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Body"}]}
    grid = {"anyOf": [{"$ref": "#/$defs/Grid"}, {"type": "array", "items": {"$ref": "#/$defs/Grid"}}]}
    for holder, key, new in (
        (made, "override", body),
        (definitions["Experiment"], "base", body),
        (definitions["Arm"], "set", body),
        (definitions["Arm"], "grid", grid),
    ):
        old = holder["properties"][key]
        holder["properties"][key] = {"description": old["description"], **new}
    made["properties"]["bases"]["additionalProperties"] = body
    return made


def _closed(properties: dict[str, Any], patterns: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": patterns,
        "additionalProperties": False,
    }


def _run_field(key: str) -> dict[str, Any]:
    out: dict[str, Any] = {"description": RUN_FIELDS[key]}
    if key in CHOICES:
        return out | {"enum": CHOICES[key]}
    hint = typing.get_type_hints(Spec)[key]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    names = [JSON_TYPES.get(kind, "null" if kind is type(None) else "object") for kind in kinds]
    # YAML parses 1e-2 as a string, which `spec_from` accepts as a number.
    names += ["string"] if "number" in names else []
    return out | {"type": names[0] if len(names) == 1 else names}


def tables() -> str:
    """Return the tables of fields in Markdown."""
    parts = []
    for title, model, before in (
        ("Top level", Settings, ""),
        ("An experiment", Experiment, "The fields of each entry of `experiments`, and of `defaults`."),
        ("An arm", Arm, "The fields of each entry of `arms`."),
    ):
        rows = [(key, _default(model, key), str(f.description)) for key, f in model.model_fields.items()]
        parts.append(_table(title, before, rows))
    intro = (
        "The fields of `base`, `set`, `override` and each entry of `bases`. A `grid` lists the values of each field."
    )
    defaults = {f.name: "required" if f.default is f.default_factory is MISSING else f.default for f in fields(Spec)}
    run = [(key, _plain(defaults[key]), text) for key, text in RUN_FIELDS.items()]
    parts.append(_table("A run", intro, run))
    return "\n".join(parts)


def _default(model: type[BaseModel], key: str) -> str:
    return _plain(model.model_fields[key].default)


def _plain(value: Any) -> str:
    """Return a default in YAML notation, or an empty string if the default means that the field is absent."""
    if value == "required":
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (int, float)) or (isinstance(value, str) and value) or value == [0]:
        return f"`{value}`"
    return ""


def _table(title: str, before: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"## {title}", "", *([before, ""] if before else []), "| field | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {text} |" for key, default, text in rows]
    return "\n".join(lines) + "\n"


def page(old: str) -> str:
    """Replace the tables of a page, which follow a marker comment, and keep the introduction before the marker."""
    mark = "<!-- Generated by python -m crbg.experiments.config_docs; edit the models, not the tables. -->"
    before = re.split(r"<!-- Generated by .*-->", old)[0].rstrip()
    return f"{before}\n\n{mark}\n\n{tables()}"


def main() -> None:
    """Rewrite both files."""
    SCHEMA.write_text(json.dumps(schema(), indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
