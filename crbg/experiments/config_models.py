"""The shape of a configuration file as pydantic models, from which the check, the JSON Schema and the docs are made.

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

DOTTED = ("options", "model_args")  # fields of a run whose parts can be named
RUN_FIELDS = {f.name: str(f.metadata["help"]) for f in fields(Spec)}
TEXT_OF_TYPE = {
    "int_type": "a whole number", "string_type": "text", "bool_type": "true or false", "dict_type": "a mapping",
    "list_type": "a list", "model_type": "a mapping", "model_attributes_type": "a mapping", "float_type": "a number",
}  # fmt: skip


def _refuse(text: str) -> PydanticCustomError:
    return PydanticCustomError("crbg", "{text}", {"text": text})


def _body(value: Any) -> Any:
    """Check the keys of a body: fields of a run, `options.NAME`, `model_args.NAME`, `extends`."""
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
        raise _refuse(f"must be text or a list of texts, not {value!r}")
    return value


def _grid(value: Any) -> Any:
    for grid in value if isinstance(value, list) else [value]:
        if not isinstance(grid, dict):
            raise _refuse(f"must be a mapping of lists, or a list of such mappings, not {grid!r} in it")
        _body(grid)
        if "extends" in grid:
            raise _refuse("cannot extend a base: name it in `set`")
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
        raise _refuse(f"must map a tuned density in (0, 1] to a list of such densities, not {value!r}")
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
    """What an experiment compares: a method, with fixed fields and a grid."""

    model_config = Strict

    about: str = Field("", description="a note for readers of the file")
    label: str = Field("", description="its name in figures; otherwise `labels` of the top level, otherwise its key")
    method: str | None = Field(None, description="a method; otherwise the one in `base`")
    set: Body = Field({}, description="fields of a run that differ from `base`, or the name of a base")
    grid: Annotated[dict[str, list[Any]] | list[dict[str, list[Any]]], BeforeValidator(_grid)] = Field(
        {}, description="lists of values by field; all combinations are run. A list of grids is their union"
    )
    seeds: Seeds | None = Field(None, description="its seeds, where they differ from the experiment's")


class Experiment(BaseModel):
    """Arms with one purpose."""

    model_config = Strict

    about: str = Field("", description="what it asks; the headline of its table")
    role: Literal["tune", "ablation", "main"] = Field(
        "ablation",
        description="`tune` (trials from which `crbg select` chooses) and `ablation` read validation images only; "
        "`main` is evaluated once on the test part",
    )
    targets: Annotated[list[str], AfterValidator(_names("target"))] = Field(
        [], description="names under which several experiments run: `crbg run lenet`, `snakemake lenet`"
    )
    seeds: Seeds = Field([0], description="seeds of every point; tuning and main experiments share none")
    base: Body = Field({}, description="fields of a run that all arms have, or the name of a base")
    arms: Annotated[dict[str, Arm], AfterValidator(_names("arm"))] = Field({}, description="what is compared, by name")
    tuned_by: Texts = Field(
        [],
        description="tuning experiments whose choice, in `paper/selected.yaml`, is laid over arms of the same names",
    )
    groups: Annotated[dict[Any, list[Any]], BeforeValidator(_groups)] = Field(
        {},
        description="in a tuning experiment: a tuned density, and the densities that use its choice; null stands "
        "for runs without a density",
    )
    cells_per_job: Count | None = Field(
        None, description="runs in one job of the workflow; otherwise as many as there are seeds"
    )
    gpu: Annotated[int, Field(ge=0)] = Field(
        0, description="GPUs on each node that share the batches of one run; 0 for none"
    )
    nodes: Count = Field(1, description="nodes that share the batches of one run; several need `gpu: 2` or more")
    view: Literal["curve", "methods", "winners", "cost", "dots", "lines", "width", "penalties"] | None = Field(
        None,
        description="its figure: `curve` (accuracy against sparsity), `methods` (one panel per density), `winners` "
        "(with published curves), `cost` (against the length of the search), `dots`, `lines` (along `x`), "
        "`width`, `penalties`; otherwise `curve` for main experiments and `dots` for others",
    )
    x: str = Field("density", description="the field along the axis of `lines`, such as `scale` or `options.noise`")
    against: str | None = Field(
        None, description="an experiment with arms of the same names with which it is compared on validation images"
    )


class Settings(BaseModel):
    """A configuration file."""

    model_config = Strict

    about: str = Field("", description="one sentence on the whole")
    include: Texts = Field(
        [], description="files that lie under this one, relative to its folder; later ones lie over earlier ones"
    )
    order: list[str] = Field(
        [], description="experiments in the order in which they run and are reported; others follow"
    )
    bases: dict[str, Body] = Field(
        {}, description="named bodies: fields of a run that `base`, `set` and other bases extend"
    )
    defaults: Experiment | None = Field(
        None, description="fields of the experiments that this file introduces, where they do not give them"
    )
    labels: dict[str, str] = Field({}, description="names of arms and penalties in figures")
    experiments: Annotated[dict[str, Experiment], AfterValidator(_names("experiment"))] = Field(
        {}, description="the experiments by name"
    )
    results: str = Field(
        "results", description="folder of runs, records, tables and logs; `~` and `$NAME` are expanded"
    )
    paper: str = Field("paper", description="folder of the committed tables, figures and choices; expanded likewise")
    data_dir: str | None = Field(None, description="folder of the data sets; otherwise `CRBG_DATA`, otherwise `data`")
    reuse: Literal["recorded", "never"] = Field(
        "recorded",
        description="`recorded` takes a record under `results/recorded` in place of a run; `never` runs everything",
    )
    device: Annotated[str, AfterValidator(_device)] = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`")
    threads: Count = Field(1, description="CPU threads of one run")
    gpu_share: Count = Field(1, description="processes that may use one GPU at the same time")
    save_every: Count = Field(60, description="seconds between two checkpoints of a run")
    override: Body = Field(
        {},
        description="fields laid over every run, such as a small data set and few epochs; results are marked as a "
        "demonstration",
    )
    seeds_at_most: Count | None = Field(None, description="use at most so many seeds of each arm")
    points_at_most: Count | None = Field(None, description="use at most so many points of a grid for each density")
    jobs_at_most: Count | None = Field(None, description="cut each experiment into at most so many jobs")


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where: the keys that lead there."""

    loc: tuple[str, ...]
    text: str


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield everything in which merged files differ from the models."""
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
        key = f"entry {int(key) + 1}" if key.isdecimal() else key  # of a list
        text = f"{before}{key} = {value!r} must be {TEXT_OF_TYPE.get(kind, 'of another type')}"
    return Problem(loc, text)


def _model_at(loc: tuple[str, ...]) -> type[BaseModel]:
    """Find the model whose key stands last in a place."""
    if loc[0] == "defaults":
        return Experiment if len(loc) == 2 else Arm
    by_depth: dict[int, type[BaseModel]] = {1: Settings, 3: Experiment, 5: Arm}
    return by_depth.get(len(loc), Settings)
