"""The zoo: enough tasks that judge, unique keys of records, and the summary of the gaps."""

import importlib
import re
from collections import Counter

import pytest
from paths import ROOT


@pytest.fixture
def zoo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("zoo")


def record(variant, validation, test, task="a"):
    base = {"half": "judged", "task": task, "cell": "c", "chance": 10.0}
    return base | {"variant": variant, "validation": validation, "test": test, "options": {"lr": 0.1}}


def test_eight_tasks_judge_and_each_run_has_one_key(zoo):
    assert Counter(task.half for task in zoo.TASKS.values()) == {"dev": 24, "judged": 8}
    keys = [zoo.key_of(key) for key in zoo.planned(None, [], [])]
    assert len(keys) == len(set(keys)) == 32 * (1 + 3 * (len(zoo.VARIANTS) + 12))


def test_the_table_has_a_column_for_each_variant(zoo):
    assert tuple(zoo.VARIANTS) == importlib.import_module("zoo_table").COLUMNS


def test_the_tuned_trial_is_chosen_by_validation_and_the_gap_is_on_test(zoo):
    records = [record("library", 90, 70), record("trial 0", 80, 99), record("trial 1", 85, 78)]
    records += [record("library", 11, 11, "b"), record("trial 0", 50, 50, "b")]
    text = zoo.table(records)
    assert "median 23.5" in text
    assert "a, c (8.0); b, c (39.0)" in text
    assert "learns (aim: none): b, c\n" in text
    assert re.search(r"\| lr 0\.1 +\| \+34\.0 +\|", text)  # the mean of 99 - 70 and 50 - 11
