"""Pydantic models of a configuration file, used to check it and to generate its JSON Schema and documentation.

Only `config.check` and `config_docs` import this module, so `crbg run` works without pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from crbg.errors import suggest
from crbg.experiments.config_files import wrong_name
from crbg.experiments.spec import Spec

DOTTED = ("options", "model_args")  # mappings in a run whose entries can be set individually, as in `options.noise`
RUN_FIELDS = {f.name: str(f.metadata["help"]) for f in fields(Spec)}
TEXT_OF_TYPE = {
    "int_type": "a whole number", "string_type": "text", "bool_type": "true or false", "dict_type": "a mapping",
    "list_type": "a list", "model_type": "a mapping", "model_attributes_type": "a mapping", "float_type": "a number",
}  # fmt: skip


def _refuse(text: str) -> PydanticCustomError:
    return PydanticCustomError("crbg", "{text}", {"text": text})


def _body(value: Any) -> Any:
    """Check that all keys of a mapping are fields of a run, `options.NAME`, `model_args.NAME` or `extends`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise _refuse("must be a mapping, or the name of a base")
    known = [*RUN_FIELDS, "extends"]
    wrong = [k for k in value if k not in known and k.partition(".")[0] not in DOTTED]
    if wrong:
        raise _refuse("; ".join(f"unknown key {k!r}: {suggest(str(k), known)}" for k in wrong))
    if "extends" in value and not _is_names(value["extends"]):
        raise _refuse(f"extends must name a base, or be a list of such names, not {value['extends']!r}")
    return value


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _texts(value: Any) -> Any:
    if not _is_names(value):
        raise _refuse(f"must be text or a list of text values, not {value!r}")
    return value


def _grid(value: Any) -> Any:
    for grid in value if isinstance(value, list) else [value]:
        if not isinstance(grid, dict):
            raise _refuse(f"must be a mapping of lists or a list of such mappings; {grid!r} is not a mapping")
        _body(grid)
        if "extends" in grid:
            raise _refuse("cannot extend a base; name the base in `set`")
        if empty := [k for k, v in grid.items() if not isinstance(v, list) or not v]:
            raise _refuse("; ".join(f".{k} must be a list of at least one value, not {grid[k]!r}" for k in empty))
    return value


def _seeds(value: Any) -> Any:
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value)
    if not whole or not value:
        raise _refuse(f"must be a list of whole numbers >= 0, not {value!r}")
    if len(set(value)) < len(value):
        raise _refuse(f"names a seed twice: {value!r}")
    return value


def _groups(value: Any) -> Any:
    def fine(density: Any) -> bool:
        number = isinstance(density, (int, float)) and not isinstance(density, bool)
        return density is None or (number and 0 < density <= 1)

    bad = not isinstance(value, dict) or not all(
        isinstance(v, list) and all(map(fine, (k, *v))) for k, v in value.items()
    )
    if bad:
        raise _refuse(f"must map a tuned density in (0, 1] to a list of densities in (0, 1], not {value!r}")
    return value


def _names(kind: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        names = value if isinstance(value, (dict, list)) else []
        if wrong := [text for n in names if isinstance(n, str) and (text := wrong_name(kind, n))]:
            raise _refuse("; ".join(wrong))
        return value

    return check


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise _refuse(f"unknown device {value!r}; choose auto, cpu, cuda or cuda:N")
    return value


Strict = ConfigDict(extra="forbid", strict=True, frozen=True)
Count = Annotated[int, Field(ge=1)]
Seeds = Annotated[list[int], BeforeValidator(_seeds)]
Texts = Annotated[str | list[str], BeforeValidator(_texts)]
Body = Annotated[str | dict[str, Any], BeforeValidator(_body)]


class Arm(BaseModel):
    """One side of a comparison: a method, values for some fields of a run, and a grid of values for others."""

    model_config = Strict

    about: str = Field("", description="a note for readers of the file")
    label: str = Field("", description="its name in figures (default: its entry in the top-level `labels`, or its key)")
    method: str | None = Field(None, description="name of a method (default: the method in `base`)")
    set: Body = Field({}, description="fields of a run that differ from `base`, or the name of a base")
    grid: Annotated[dict[str, list[Any]] | list[dict[str, list[Any]]], BeforeValidator(_grid)] = Field(
        {},
        description="a list of values for each field; all combinations are run. Several grids may be given in a list",
    )
    seeds: Seeds | None = Field(None, description="seeds of this arm (default: the seeds of the experiment)")


class Experiment(BaseModel):
    """Arms that are compared to answer one question."""

    model_config = Strict

    about: str = Field("", description="the question it answers, in one phrase; used as the caption of its table")
    role: Literal["tune", "ablation", "main"] = Field(
        "ablation",
        description="`tune` (trials from which `crbg select` chooses) and `ablation` use validation images only; "
        "`main` is evaluated once on the test set",
    )
    targets: Annotated[list[str], AfterValidator(_names("target"))] = Field(
        [], description="names that run several experiments at once, as in `crbg run lenet` or `snakemake lenet`"
    )
    seeds: Seeds = Field(
        [0], description="seeds of every grid point; use different seeds for tuning and main experiments"
    )
    base: Body = Field({}, description="fields of a run that all arms share, or the name of a base")
    arms: Annotated[dict[str, Arm], AfterValidator(_names("arm"))] = Field({}, description="the compared arms by name")
    tuned_by: Texts = Field(
        [],
        description="tuning experiments whose chosen settings (in `paper/selected.yaml`) override those of the arms "
        "with the same names",
    )
    groups: Annotated[dict[Any, list[Any]], BeforeValidator(_groups)] = Field(
        {},
        description="in a tuning experiment: maps each tuned density to the densities that use its chosen settings; "
        "null means runs without a density (default: each tuned density for itself)",
    )
    cells_per_job: Count | None = Field(
        None, description="number of runs in one job of the workflow (default: the number of seeds)"
    )
    gpu: Annotated[int, Field(ge=0)] = Field(
        0, description="number of GPUs on each node that share the batches of one run; 0: no GPU is required"
    )
    nodes: Count = Field(
        1, description="number of nodes that share the batches of one run; more than one needs `gpu: 2` or more"
    )
    view: (
        Literal[
            "curve",
            "methods",
            "winners",
            "cost",
            "dots",
            "lines",
            "width",
            "penalties",
            "controls",
            "bytes",
            "representation",
        ]
        | None
    ) = Field(
        None,
        description="kind of its figure: `curve` (accuracy against sparsity), `methods` (one panel per density), "
        "`winners` (with published curves), `cost` (accuracy against the length of the search), `dots`, `lines` "
        "(accuracy against `x`), `width`, `penalties`, `controls` (accuracy lost under each control), `bytes` "
        "(accuracy against the size of the file) or `representation` (error against the width of the network); "
        "default: `curve` for main experiments, `dots` for others",
    )
    x: str = Field(
        "density", description="the field on the x-axis of a `lines` figure, such as `scale` or `options.noise`"
    )
    against: str | None = Field(
        None, description="an experiment whose arms have the same names; the two are compared on validation images"
    )


class Settings(BaseModel):
    """A configuration file."""

    model_config = Strict

    about: str = Field("", description="one sentence that describes this configuration")
    include: Texts = Field(
        [],
        description="files to include, relative to the folder of this file; later ones override earlier ones, and this "
        "file overrides all of them",
    )
    order: list[str] = Field(
        [], description="the order in which experiments run and are reported; experiments not listed follow"
    )
    bases: dict[str, Body] = Field(
        {}, description="named mappings of run fields that `base`, `set` and other bases can extend"
    )
    defaults: Experiment | None = Field(None, description="default fields of the experiments that this file introduces")
    labels: dict[str, str] = Field({}, description="names of arms and penalties in figures")
    experiments: Annotated[dict[str, Experiment], AfterValidator(_names("experiment"))] = Field(
        {}, description="the experiments by name"
    )
    robustness: dict[str, Annotated[list[str], BeforeValidator(_texts)]] = Field(
        {},
        description="runs that `crbg robustness` measures: conditions KEY=VALUE as for `--where`, by experiment",
    )
    results: str = Field(
        "results", description="folder of runs, records, tables and logs; `~` and `$NAME` are expanded"
    )
    paper: str = Field(
        "paper", description="folder of committed tables, figures and chosen settings; `~` and `$NAME` are expanded"
    )
    data_dir: str | None = Field(
        None, description="folder of the data sets (default: the environment variable `CRBG_DATA`, else `data`)"
    )
    reuse: Literal["recorded", "never"] = Field(
        "recorded",
        description="`recorded`: runs with a record under `results/recorded` are not repeated; `never`: every run is "
        "executed",
    )
    device: Annotated[str, AfterValidator(_device)] = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`")
    threads: Count = Field(1, description="number of CPU threads of one run")
    gpu_share: Count = Field(1, description="number of processes that may use one GPU at the same time")
    save_every: Count = Field(60, description="seconds between two checkpoints of a run")
    override: Body = Field(
        {},
        description="fields that override those of every run, for example with a small data set and few epochs; the "
        "results are marked as a demonstration",
    )
    stand_ins: dict[str, str] = Field(
        {},
        description="with `override`: for a data set, the one that replaces it, instead of the data set of `override`",
    )
    seeds_at_most: Count | None = Field(None, description="maximum number of seeds of each arm")
    points_at_most: Count | None = Field(None, description="maximum number of grid points for each density")
    jobs_at_most: Count | None = Field(None, description="maximum number of jobs of each experiment")


@dataclass(frozen=True)
class Problem:
    """A problem in a configuration: its location, given by the keys that lead to it, and the message."""

    loc: tuple[str, ...]
    text: str


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each key and type in the merged files that does not conform to the models."""
    try:
        Settings.model_validate(dict(values))
    except ValidationError as error:
        for e in error.errors(include_url=False):
            yield _problem(tuple(str(part) for part in e["loc"]), e["type"], e["input"], e.get("ctx") or {})


def _problem(loc: tuple[str, ...], kind: str, value: Any, context: Mapping[str, Any]) -> Problem:
    place, key = ".".join(loc[:-1]), loc[-1]
    before = f"{place}: " if place else ""
    if kind == "extra_forbidden":
        text = f"{before}unknown key {key!r}: {suggest(key, _model_at(loc).model_fields)}"
    elif kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        text = f"{before}unknown {key} {value!r}: {suggest(str(value), options)}"
    elif kind == "greater_than_equal":
        text = f"{before}{key} = {value!r} must be at least {context['ge']}"
    elif kind == "crbg":
        said = str(context["text"])
        text = (
            ".".join(loc)
            + ("" if said[0] == "." else " " if said.startswith(("must", "names", "cannot")) else ": ")
            + said
        )
    elif len(loc) in (2, 4) and kind.startswith("model"):
        text = f"{'.'.join(loc)} must be a mapping, not {value!r}"
    else:
        key = f"entry {int(key) + 1}" if key.isdecimal() else key  # an index in a list
        text = f"{before}{key} = {value!r} must be {TEXT_OF_TYPE.get(kind, 'of another type')}"
    return Problem(loc, text)


def _model_at(loc: tuple[str, ...]) -> type[BaseModel]:
    """Return the model that should contain the last key of a location."""
    if loc[0] == "defaults":
        return Experiment if len(loc) == 2 else Arm
    by_depth: dict[int, type[BaseModel]] = {1: Settings, 3: Experiment, 5: Arm}
    return by_depth.get(len(loc), Settings)
