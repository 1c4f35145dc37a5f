from pathlib import Path

import yaml
from made_up import around
from paths import ROOT
from records import made_up_record

from crbg import methods
from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.experiments.spec import Spec
from crbg.report import compare
from crbg.report.records_table import tidy
from crbg.storage.atomic import write_json

# --- comparison of methods ---


def test_sparsity_at_equal_accuracy_is_read_both_ways(project):
    project.put("ours", 0.5, around(97.0))
    project.put("ours", 0.1, around(96.6))
    project.put("theirs", 0.5, around(97.2))
    project.put("theirs", 0.1, around(96.4))
    table = compare.equal_accuracy(
        tidy(project.config), project.config.experiment("main"), ("theirs", "ours")
    ).set_index("arm")
    assert list(table) == ["within 0.5 of theirs (97.20 % at 50 %)", "within 0.5 of ours (97.00 % at 50 %)"]
    assert list(table.loc["ours"]) == ["50 %", "90 %"]
    assert list(table.loc["theirs"]) == ["50 %", "50 %"]
    project.put("ours", 0.5, around(80.0))
    project.put("ours", 0.1, around(79.0))
    assert (
        compare.equal_accuracy(tidy(project.config), project.config.experiment("main"), ("theirs",))
        .set_index("arm")
        .loc["ours"]
        .item()
        == "nowhere"
    )


def test_step_ratios_are_those_of_the_benchmark(tmp_path):
    table = tmp_path / "step.md"
    lines = (
        "step | median ms | ratio",
        ":--|--:|--:",
        "dense | 3.82 | 1.00 | 1 | 1",
        "gated, normal, controlled | 5.99 | 1.58 | 1 | 2",
    )
    table.write_text("".join(f"| {line} |\n" for line in lines))
    assert compare.step_ratios(table) == {"dense": "1.00", "gated, normal, controlled": "1.58"}
    assert compare.step_ratios(tmp_path / "absent.md") == {}
    assert set(compare.ROWS.values()) <= set(compare.step_ratios(ROOT / "benchmarks/step.md"))


def test_properties_say_what_was_tuned_what_failed_and_what_the_controls_say(project):
    Path("more.yaml").write_text(yaml.safe_dump({"experiments": {"main": {"tuned_by": "tuning", "view": "methods"}}}))
    project.config = configs.read(["config.yaml", "more.yaml"])
    project.put(
        "ours",
        0.1,
        around(96.0),
        mean=around(97.0),
        sanity={"reinit": [10.0] * 4, "shuffle": [12.0] * 4, "invert": [9.0] * 4},
    )
    project.put("theirs", 0.1, around(95.0), sanity={"reinit": [10.0] * 4, "shuffle": [40.0] * 4, "invert": [9.0] * 4})
    for i, cell in enumerate(project.cells("ours", 0.1, "tuning")):
        where = record_store.run_folder(project.config, cell.spec, cell.seed)
        status = {"status": "collapse", "reason": "closed"} if i == 0 else {"status": "ok"}
        seen = {} if i == 0 else {"validation": {"readings": {"binary": {"accuracy": 40.0 + 20 * i, "density": 0.1}}}}
        write_json(where / "record.json", made_up_record(cell.spec, cell.seed, **status, **seen))
        write_json(where / "provenance.json", {"revision": "abc", "device": "a CPU", "search_seconds": 1.0})
    table = compare.properties(tidy(project.config), project.config.experiment("main"), project.config).set_index("arm")
    ours, theirs = table.loc["ours"], table.loc["theirs"]
    assert (ours["tuned"], theirs["tuned"]) == ("lr", "")
    assert ours["trials below 50 %"] == "1 of 4"
    assert (ours["real-valued gates"], ours["shuffle"], ours["finds weights"]) == ("97.0", "12", "yes")
    assert theirs["finds weights"] == "in part"
    assert "accuracy at 0.1" in table  # the lowest density, because no run has 0.05
    assert ours["step / dense"] == "", "steps were timed in another network"
    assert ours["collapsed"] == "0 of 4"
    project.put("theirs", 0.1, around(9.0), sanity={"reinit": [10.0] * 4, "shuffle": [10.0] * 4, "invert": [9.0] * 4})
    chance = (
        compare.properties(tidy(project.config), project.config.experiment("main"), project.config)
        .set_index("arm")
        .loc["theirs"]
    )
    assert chance["finds weights"] == ""  # a ticket at chance accuracy says nothing about its method
    assert ours["gradient"] == methods.get("crbg").TRAITS.gradient
    assert methods.get("crbg").TRAITS.differentiable
    assert not methods.get("edge_popup").TRAITS.differentiable


def test_a_method_without_traits_has_none_in_the_table(monkeypatch):
    monkeypatch.delattr(methods.get("edge_popup"), "TRAITS")
    line = compare._method(Spec("digits", "lenet-300-100", "edge_popup", density=0.1))
    assert set(line.values()) == {"not stated"}
    assert not methods.traits("edge_popup").per_layer
