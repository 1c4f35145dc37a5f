import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.version import Version
from paths import ROOT

FILES = {
    p: ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for p in (ROOT / "crbg").rglob("*.py")
}


@cache
def tree(path):
    return ast.parse(path.read_text())


def test_packages_import_as_the_contracts_say():
    """The contracts, each with its reason, are in pyproject.toml."""
    run = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


def test_every_package_and_module_has_its_layer():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = {name for row in contract["layers"] for name in row.split(" | ")}
    there = {f"crbg.{m.split('.')[1]}" for m in FILES.values() if "." in m}
    assert there - layers == {"crbg.__main__"}
    assert layers <= there


# --- dependencies ---

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = {"torch": "pytorch", "snakemake": "snakemake-minimal"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def bound(requirement):
    """Split a requirement such as `name>=1.2` into the name and the lower bound, which is empty if absent."""
    name, _, version = requirement.partition(">=")
    assert re.fullmatch(r"[\w.-]+", name), requirement
    return plain(name), version


EXTRAS = PYPROJECT["optional-dependencies"]
TESTING = [r for r in EXTRAS["dev"] if bound(r)[0] in ("pytest", "hypothesis")]  # packages that the tests import
CORE = dict(map(bound, PYPROJECT["dependencies"] + EXTRAS["workflow"] + TESTING))
LOCK = {
    plain(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
}


def test_the_conda_environment_has_the_same_bounds():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    wanted = {CONDA.get(name, name): version for name, version in CORE.items()}
    assert dict(map(bound, environment)) == wanted | {"python": PYPROJECT["requires-python"].removeprefix(">=")}
    assert {"pytest", "hypothesis"} <= set(wanted)


def test_the_lock_satisfies_every_bound():
    every = CORE | dict(map(bound, EXTRAS["dev"] + EXTRAS["clients"]))
    assert set(every) <= set(LOCK)
    low = {n: (LOCK[n], v) for n, v in every.items() if v and Version(LOCK[n]) < Version(v)}
    assert not low
    assert all(CORE.values()), "a dependency without a lower bound"
    assert (LOCK["torch"], LOCK["torchvision"]) == ("2.14.1", "0.29.1")


def test_the_license_is_mit():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n")
    assert "without restriction" in text
    assert PYPROJECT["license"] == "MIT"


# --- documentation in the code ---


def documented(path):
    """Yield (qualified name, name of its class or None, node) for each public definition of a file."""
    module = tree(path)
    yield FILES[path], None, module
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, None, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", node.name, inner


@pytest.mark.parametrize("path", sorted(p for p in FILES if p.name != "__main__.py"), ids=lambda p: FILES[p])
def test_everything_public_says_what_it_is_for(path):
    module = importlib.import_module(FILES[path])
    bare = []
    for name, owner, node in documented(path):
        if ast.get_docstring(node):
            continue
        if owner:
            # An overriding method is documented in its base class, and the methods of a Protocol in its docstring.
            kind, method = getattr(module, owner), name.split(".")[1]
            if getattr(kind, "_is_protocol", False) or any(
                inspect.getdoc(vars(b).get(method)) for b in kind.__mro__[1:]
            ):
                continue
        bare.append(name)
    assert not bare


# --- commands ---


def test_make_help_lists_the_targets_that_the_documents_name():
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README")
    if not shutil.which("make"):
        pytest.skip("there is no make")
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
    named = {target for text in texts for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE)}
    assert {"quickstart", "test", "lint"} <= named <= listed
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert listed == set(phony)


def test_what_has_to_pass_is_what_a_reader_runs():
    text = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^  make (.*)$", text, re.M) == ["lint", "test", "quickstart", "docs", "pdf", "dist"]
    stages = re.search(r"stages=\((lint .*)\)", text)[1].split()
    assert stages == re.findall(r"^stage_(\w+)\(\)", text, re.M)
    assert "set -euo pipefail" in text
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
    done = subprocess.run([ROOT / ".ci/run", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "stages: " + " ".join(stages) in done.stderr


def test_workflows_call_stages_on_every_supported_python():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    called = [s["run"] for job in jobs.values() for s in job["steps"] if "run" in s]
    stages = ("lint", "tests", "quickstart", "docs", "paper", "wheel")
    assert sorted(c for c in called if "apt-get install" not in c) == sorted(f".ci/run {s}" for s in stages)
    lowest = PYPROJECT["requires-python"].removeprefix(">=")
    assert jobs["tests"]["strategy"]["matrix"]["python"] == [lowest, "3.12", "3.13"]


def test_hooks_before_a_commit_are_those_of_make_lint():
    """Pre-commit hooks run the tools of the environment, so a commit needs no network."""
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    lint = re.search(r"^lint:.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)[0]
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        assert f"$(BIN)/{hook['entry'].split()[0]}" in lint


def test_the_tests_import_this_project():
    # If a stale copy in site-packages were imported, every other test would be meaningless.
    assert Path(sys.modules.get("crbg", importlib.import_module("crbg")).__file__) == ROOT / "crbg/__init__.py"
