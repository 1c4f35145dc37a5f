import matplotlib.pyplot as plt
import pandas as pd
import pytest

from crbg.report import figures, robustness


@pytest.fixture
def rows():
    made = []

    def add(arm, seed, measure, other, value):
        made.append(("one", arm, 0.1, seed, measure, other, value))

    for seed in (0, 1, 2):
        for arm, level in (("crbg", 97.0), ("edge_popup", 96.0), ("dense_trained", 98.0)):
            add(arm, seed, "accuracy", "clean", level + seed / 10)
            add(arm, seed, "accuracy", "blur", level - 5)
            add(arm, seed, "calibration_error", "as found", 8.0)
            add(arm, seed, "calibration_error", "fitted", 0.5)
        add("crbg", seed, "jaccard", "edge_popup", 0.2 + seed / 100)
        add("crbg", seed, "chance", "edge_popup", 0.05)
    for arm in ("crbg", "edge_popup", "dense_trained"):
        for a, b in ((0, "1"), (0, "2"), (1, "2")):
            add(arm, a, "agreement", b, 98.5)
    return pd.DataFrame(made, columns=["experiment", "arm", "density", "seed", "measure", "with", "value"])


def test_the_table_has_one_row_per_arm(rows):
    found = robustness.table(rows, {"crbg": "CRBG"})
    assert list(found.network) == ["CRBG", "edge popup", "dense trained"]
    assert list(found.columns)[1:4] == ["clean", "blur", "calibration error"]
    assert found.iloc[0].clean == "97.10 ± 0.25"
    assert found.iloc[1][["calibration error", "with temperature", "agreement"]].tolist() == [
        "8.00 ± 0.00",
        "0.50 ± 0.00",
        "98.50",
    ]


def test_overlap_stands_beside_chance(rows):
    assert robustness.overlap(rows, {}).to_dict("records") == [
        {"methods": "crbg / edge popup", "jaccard": "21.00 ± 2.48", "chance": "5.00 ± 0.00"}
    ]
    text = robustness.markdown(rows, {})
    assert text.startswith(robustness.CAPTION)
    assert robustness.OVERLAP in text


def test_numbers_are_means_over_seeds(rows):
    found = dict(robustness.numbers(rows))
    assert found["robust.crbg.accuracy.clean"] == "97.1"
    assert found["robust.crbg.calibration_error.as_found"] == "8.0"
    assert found["robust.crbg.jaccard.edge_popup"] == "21.0"
    assert found["robust.edge_popup.agreement.seeds"] == "98.5"


def test_a_fresh_file_takes_precedence_over_the_recorded_one(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(
        robustness, "robustness_file", lambda config, recorded=False: tmp_path / ("old.csv" if recorded else "new.csv")
    )
    assert robustness.read(None).empty
    rows.iloc[:1].to_csv(tmp_path / "old.csv", index=False)
    assert len(robustness.read(None)) == 1
    rows.to_csv(tmp_path / "new.csv", index=False)
    read = robustness.read(None)
    assert len(read) == len(rows)
    assert set(read[read.measure == "agreement"]["with"]) == {"1", "2"}


def test_the_figure_shows_accuracy_and_overlap(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    figures.robustness(rows, tmp_path / "robustness", {})
    left, right = plt.gcf().axes
    assert [t.get_text() for t in left.get_xticklabels()] == ["clean", "blur"]
    assert [t.get_text() for t in plt.gcf().legends[0].get_texts()] == ["crbg", "edge popup"]
    assert list(left.containers[1].lines[0].get_ydata()) == pytest.approx([-2.0, -2.0])
    assert [t.get_text() for t in right.get_yticklabels()] == ["crbg / edge popup"]
    assert list(right.lines[-1].get_xdata()) == pytest.approx([5.0])
    assert (tmp_path / "robustness.pdf").exists()
    monkeypatch.undo()
    plt.close("all")
