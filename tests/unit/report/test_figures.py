from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml
from made_up import around, kind, knob

from crbg.experiments import config as configs
from crbg.report import claims, figures, tables
from crbg.report.build import build
from crbg.report.figures import curves, panels, style, theory
from crbg.report.published import Published
from crbg.report.records_table import tidy


@pytest.mark.parametrize("view", ["dots", "lines", "penalties", "cost"])
def test_every_view_draws_an_ablation(sweep, view):
    body = {"experiments": {"sweep": {"view": view, "x": "options.mu0", "arms": {"shared": {}}}}}
    Path("view.yaml").write_text(yaml.safe_dump(body))
    sweep.config = configs.read(["config.yaml", "sweep.yaml", "view.yaml"])
    if view != "lines":
        for penalty in ("induce_sparse", "induce_decision"):
            for weight in (1.0, 2.0):
                sweep.fill("sweep", kind(penalty, weight), around(90))
    else:
        for weight, mu0 in ((1.0, 0.25), (1.0, 1.0), (10.0, 1.0)):
            sweep.fill("sweep", knob(weight, mu0), around(90))
    build(sweep.config, "sweep")
    assert Path("paper/figures/sweep.png").read_bytes().startswith(b"\x89PNG")
    table = Path("paper/tables/sweep.md").read_text()
    assert ("mu0 0.25, weight 1.0" if view == "lines" else "penalty induce_sparse, weight 1.0") in table
    assert ("| shared" in table) == (view != "lines")  # the only run of `shared` also belongs to another arm
    assert "reference" in table
    assert r"\begin{tabular}" in Path("paper/tables/sweep.tex").read_text()


def test_the_width_view_draws_what_is_there(sweep):
    sweep.fill("widths", lambda c: c.arm == "ours" and c.spec.model == "lenet-100", around(96), gated=1000)
    build(sweep.config, "widths")
    sweep.fill("widths", lambda c: c.arm == "dense" and c.spec.model == "lenet-100", around(97), gated=1000)
    alone = Path("paper/figures/widths.png").read_bytes()
    build(sweep.config, "widths")
    assert Path("paper/figures/widths.png").read_bytes() != alone


def test_the_comparison_sets_published_beside_measured(project):
    project.put("ours", 0.5, around(90.0))
    declared = [
        {"row": "ours", "published": "96 % at 45 %", "experiment": "main", "arm": "ours", "density": 0.5},
        {"row": "dense", "published": "", "experiment": "main", "arm": "dense", "density": None},
        {"row": "somebody's", "published": "98 % at 97 %"},
    ]
    lines = claims.parse_claims({"comparison": declared}).comparison
    table = tables.comparison(lines, tidy(project.config)).set_index("row")
    assert list(table.loc["ours"][["published", "measured %", "sparsity %", "n"]]) == [
        "96 % at 45 %",
        "90.00 ± 0.13",
        "50.0",
        "4",
    ]
    assert list(table["measured %"]) == ["90.00 ± 0.13", "not run", "not run"]
    project.put("ours", 0.5, around(90.0), missed=True)
    assert (
        tables.comparison(lines, tidy(project.config)).set_index("row").loc["ours", "sparsity %"]
        == "50.0 (4 runs did not reach it before the cut)"
    )


def test_lines_of_many_arms_differ_in_colour_or_marker():
    looks = [(style.colour(i), style.marker(i)) for i in range(49)]
    assert len(set(looks)) == 49


def test_an_arm_without_the_field_of_the_axis_is_a_level(sweep, monkeypatch, tmp_path):
    given = {
        "sweep": {
            "view": "lines",
            "x": "options.mu0",
            "arms": {"popup": {"method": "edge_popup", "set": {"density": 0.5}}},
        }
    }
    Path("lines.yaml").write_text(yaml.safe_dump({"experiments": given}))
    sweep.config = configs.read(["config.yaml", "sweep.yaml", "lines.yaml"])
    for mu0 in (0.25, 1.0):
        sweep.fill("sweep", knob(1.0, mu0), around(90))
    sweep.fill("sweep", lambda c: c.arm == "popup", around(88))
    seen, real = [], plt.close
    monkeypatch.setattr(plt, "close", lambda f: seen.append(f) or None)
    figures.draw(tidy(sweep.config), sweep.config.experiment("sweep"), tmp_path / "f", Published(), False)
    top = seen[0].axes[0]
    assert [float(y) for line in top.lines if line.get_linestyle() == "--" for y in line.get_ydata()] == pytest.approx(
        [88.0, 88.0], abs=0.1
    )
    assert top.get_xlim()[1] < 2, "the level does not stretch the axis"
    real("all")


@pytest.mark.parametrize(
    ("seeds", "shown"), [([90.0, 91.0, 92.0], 3), ([90.0, 91.0, 92.0, 91.0, 91.0], 0), ([90.0], 0)]
)
def test_few_seeds_are_drawn_one_by_one_and_more_as_an_interval(seeds, shown):
    for draw, axis in (
        (lambda a: style.band(a, [1], [seeds], 0, None), 1),
        (lambda a: style.dot(a, 1, seeds, 0, 0, "o"), 0),
    ):
        axes = plt.figure().add_subplot()
        draw(axes)
        single = [line for line in axes.lines if line.get_gid() == "seeds"]
        assert [sorted(line.get_data()[axis]) for line in single] == ([sorted(seeds)] if shown else [])
        bars = axes.containers[0][2]
        lengths = [abs(b - a) for bar in bars for (*_, a), (*_, b) in bar.get_segments()] if axis else [len(bars)]
        assert any(lengths) == (len(seeds) >= style.FEW)
    plt.close("all")


def test_what_continues_beyond_the_axes_is_marked_at_the_edge():
    axes = plt.figure().add_subplot()
    style.band(axes, [1, 2], [[50.0, 95.0, 95.5], [95.0, 95.0, 95.0]], 0, None)
    style.band(axes, [3], [[95.0, 95.0, 95.0, 95.0, 90.0]], 1, None)
    axes.set_ylim(93, 95.6)
    style.mark_cut(axes)
    marks = {(float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_marker()) for line in axes.lines[-3:]}
    assert marks == {(1.0, 93.0, "v"), (3.0, 93.0, "v"), (3.0, 95.6, "^")}
    assert axes.get_ylim() == (93, 95.6)
    plt.close("all")


def test_controls_are_drawn_as_paired_losses(monkeypatch):
    lines = [("snip", c, s, a + s) for c, a in (("none", 95.0), ("shuffle", 93.0), ("reinit", 94.5)) for s in (0, 1)]
    found = pd.DataFrame(lines, columns=["arm", "setting", "seed", "value"])
    found = found.assign(setting="control " + found.setting, asked=0.02, part="validation")
    panels.controls(found, {"snip": "SNIP"})
    axes = plt.gcf().axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["SNIP"]
    assert axes.get_title() == "98 % sparse"
    assert [float(c[0].get_xdata()[0]) for c in axes.containers] == [2.0, 0.5]
    assert [t.get_text() for t in plt.gcf().legends[0].get_texts()] == ["shuffle", "reinit"]
    plt.close("all")


def test_settings_in_figures_have_short_names():
    assert figures.labels.named("search_lr 0.1, begin 0.5, control none, weight 3") == (
        "rate 0.1, open at the start 0.5, none, $\\lambda$ 3"
    )


def test_arms_with_one_label_are_one_line_along_the_size_of_the_file():
    lines = [
        ("ours", "d", 2000, 96.0),
        ("ours", "e", 8000, 98.0),
        ("small_b", "f", 5000, 94.0),
        ("small_a", "g", 3000, 92.0),
    ]
    found = pd.DataFrame(lines, columns=["arm", "digest", "bytes", "value"]).assign(setting="", part="test")
    found = pd.concat([found.assign(seed=0), found.assign(seed=1)])
    curves.size(found, {"ours": "ticket", "small_a": "small", "small_b": "small"})
    axes = plt.gcf().axes[0]
    drawn = {c.get_label(): [list(map(float, v)) for v in c[0].get_data()] for c in axes.containers}
    assert drawn == {"ticket": [[2000, 8000], [96, 98]], "small": [[3000, 5000], [92, 94]]}
    assert axes.get_xscale() == "log"
    plt.close("all")


def test_errors_are_drawn_against_the_hidden_units_beside_the_bounds():
    lines = [("found", "a", "lenet-64", 0.1), ("found", "b", "lenet-16", 0.7), ("built", "c", "lenet-1024", 1e-15)]
    found = pd.DataFrame(lines, columns=["arm", "digest", "model", "value"])
    found = found.assign(setting="", part="test", data="linear_teacher")
    found = pd.concat([found.assign(seed=0), found.assign(seed=1)])
    theory.representation(found, {"found": "search", "built": "construction"})
    axes = plt.gcf().axes[0]
    drawn = {c.get_label(): [list(map(float, v)) for v in c[0].get_data()] for c in axes.containers}
    assert drawn == {"search": [[16, 64], [0.7, 0.1]], "construction": [[1024], [theory.SMALLEST]]}
    bounds = [line for line in axes.lines if line.get_linestyle() in (":", "-.")]
    assert len(bounds) == 2
    for line in bounds:
        width, error = line.get_data()
        assert max(width) <= 1024
        assert list(error) == sorted(error, reverse=True) or list(error) == sorted(error)
    plt.close("all")


def test_the_course_of_a_relaxation_has_undecided_gates_and_the_gap_of_the_losses(tmp_path):
    lines = [("ours", s, e, 0.1 * e, 0.5, 0.5 * 10**e) for s in (0, 1, 2) for e in (1.0, 2.0)]
    courses = pd.DataFrame(lines, columns=["arm", "seed", "epoch", "undecided", "relaxed", "binary"])
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "band", lambda axes, x, groups, i, text: drawn.append((x, groups)))
        path = figures.relaxation(courses, tmp_path / "course", demonstration=False, labels={})
    assert path.with_suffix(".png").exists()
    (_, undecided), (epochs, gaps) = drawn
    assert epochs == [1.0, 2.0]
    assert undecided == [pytest.approx([10.0] * 3), pytest.approx([20.0] * 3)]
    assert gaps == [pytest.approx([1.0] * 3), pytest.approx([2.0] * 3)]
