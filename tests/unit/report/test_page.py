"""The report page: its contents, and its layout in a browser at the widths of a desktop and a phone."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from crbg.data.metrics import ACCURACY
from crbg.report import chapters, page, svg
from crbg.report.claims import Judgement
from crbg.report.figures import style
from crbg.report.records_table import COLUMNS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000"),
    "--allow-file-access-from-files",
]
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement, seen = e => e.getBoundingClientRect();
  root.dataset.fits = root.scrollWidth <= innerWidth;
  root.dataset.width = innerWidth;
  root.dataset.first = seen(document.querySelector("#summary h2")).bottom < innerHeight
    && seen(document.querySelector(".tally, .demo")).bottom < innerHeight;
  const large = f => seen(f).width > 100 && seen(f).height > 30;
  root.dataset.drawn = [...document.querySelectorAll("figure svg, figure img")].filter(large).length;
  root.dataset.reached = [...document.querySelectorAll("nav.contents a")].filter(a => {
    const to = document.querySelector(a.getAttribute("href"));
    return to && seen(to).height > 0 && seen(to).left < innerWidth;
  }).length;
  const form = document.querySelector(".filter");
  if (!form) return;
  const shown = () => [...document.querySelectorAll(".verdicts tbody tr:not([hidden]) th")];
  const rows = () => shown().map(r => r.firstChild.textContent).join("|");
  document.querySelector(".sortable thead button").click();
  root.dataset.up = rows();
  document.querySelector(".sortable thead button").click();
  root.dataset.down = rows();
  form.kind.value = "reproduced";
  form.dispatchEvent(new Event("input"));
  root.dataset.filtered = rows();
});</script>"""


class Tags(HTMLParser):
    """A parser that collects tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


LABELS = {"crbg": "CRBG", "crbg_polished": "CRBG, polished", "edge_popup": "edge-popup (per layer)"}


def experiment(name, **fields):
    return SimpleNamespace(
        metric=ACCURACY,
        **{"name": name, "about": f"what <{name}> & others do", "role": "main", "view": "curve", "labels": LABELS}
        | fields,
    )


@pytest.fixture(scope="module")
def rows():
    made = []
    common = {"setting": "", "reading": "binary", "finished": "2026-01-02", "origin": "recorded"}
    common |= {"device": "cpu", "revision": "r", "density_missed": False}
    for name, data in (
        ("lenet_curve", "mnist"),
        ("cts_curve", "cifar10"),
        ("sideways", "digits"),
        ("lenet_tune", "mnist"),
    ):
        role, part = ("tune", "validation") if name == "lenet_tune" else ("main", "test")
        for method, arm, level in (
            ("crbg", "crbg", 95.0),
            ("crbg", "crbg_polished", 96.0),
            ("edge_popup", "edge_popup", 94.0),
        ):
            for asked in (0.5, 0.1):
                for seed in (0, 1, 2):
                    row = {"experiment": name, "arm": arm, "run": f"{method}-x", "digest": f"{name}{arm}{asked}"}
                    row |= {"asked": asked, "density": asked, "seed": seed, "value": level + seed} | common
                    made.append(dict.fromkeys(COLUMNS) | row | {"data": data, "role": role, "part": part})
    return pd.DataFrame(made, columns=COLUMNS)


@pytest.fixture(scope="module")
def sections(rows, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("figures"), []
    wide = pd.DataFrame([{f"a rather long column {i}": "0.123456 ± 0.01" for i in range(20)}])
    for name in ("sideways", "lenet_curve", "cts_curve"):
        with style.figure(folder / name):
            _, axes = plt.subplots(figsize=(6.8, 2) if name == "cts_curve" else (3.4, 2.4))
            axes.plot([1, 2, 3], marker="o", label="$\\sigma$")
            axes.legend()
        out.append(page.Section(experiment(name), wide, folder / name, "origin", {"more": wide}))
    return out


VERDICTS = [
    Judgement("a", "thesis", "Beta <b>claim</b>", "reproduced", "95.1 %", "the test set", "before", "lenet_curve"),
    Judgement("b", "thesis", "alpha claim", "not run", "no runs", "", "after", "lenet_curve"),
    Judgement("c", "a paper", "gamma claim", "crbg is better", "+1.0 points", experiment="cts_headline"),
    Judgement("d", "draft", "delta claim", "not testable on MNIST", "both saturate"),
]


MISSING = {"cts_headline": {("m", 0), ("m", 1), ("m", 2)}}


def rendered(sections, rows, verdicts=VERDICTS, demonstration=False, pictures=(), missing=MISSING):
    comparison = pd.DataFrame([{"row": "ours", "published": "96"}])
    content = page.Content(rows, sections, verdicts, pictures, comparison, missing)
    return page.html(SimpleNamespace(demonstration=demonstration), content)


def between(text, start, end="</section>"):
    return text[text.index(start) :].split(end, 1)[0]


def test_a_shared_run_counts_once_in_the_summary_and_for_each_of_its_experiments(sections, rows):
    shared = rows[rows.experiment == "sideways"].assign(experiment="again")
    missing = MISSING | {"again": {("m", 0)}}
    text = rendered(sections, pd.concat([rows, shared]), missing=missing)
    summary, origin = between(text, '<section id="summary">'), between(text, '<section id="origin">')
    assert "<strong>72 runs</strong> of 5 experiments" in summary
    assert "Still missing: 3 planned runs of 2 experiments." in summary
    counts = re.findall(r'<th scope="row">(\w+)</th>.*<td>(\d+)</td></tr>', origin)
    assert dict(counts) == dict.fromkeys(("lenet_curve", "cts_curve", "sideways", "lenet_tune", "again"), "18")


def test_the_summary_comes_first_and_the_chapters_have_names_for_people(sections, rows):
    text = rendered(sections, rows)
    summary = between(text, '<section id="summary">')
    assert text.index('<section id="summary">') < text.index("<article")
    assert "<strong>72 runs</strong> of 4 experiments on MNIST, CIFAR-10 and handwritten digits" in summary
    assert "Still missing: 3 planned runs of 1 experiment." in summary
    assert re.findall(r"<b>(\d+)</b> ([a-z ]+)</a>", summary) == [
        ("1", "reproduced"),
        ("1", "one is better"),
        ("1", "not run"),
        ("1", "not testable"),
    ]
    assert "<svg" in summary
    assert re.findall(r'scope="row">(.*?)</th><td>(.*?)</td>', summary) == [
        ("CRBG, polished", "97.00 ± 2.48"),
        ("edge-popup (per layer)", "95.00 ± 2.48"),
    ]
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads[:4] == [
        "Summary",
        "LeNet-300-100 on MNIST",
        "Winning tickets on CIFAR-10",
        "sideways on handwritten digits",
    ]
    assert heads[4:] == ["Verdicts", "The thesis's comparison table", "Where the numbers come from", "Tuning trials"]


def test_verdicts_stand_by_chapter_and_quotes_are_text(sections, rows):
    part = between(rendered(sections, rows), '<section id="verdicts"')
    groups = part.split('<div class="group">')[1:]
    assert [re.search(r"<h3[^>]*>(.*?)</h3>", g)[1] for g in groups] == [
        "LeNet-300-100 on MNIST",
        "Winning tickets",
        "Not tied to an experiment",
    ]
    assert "Beta &lt;b&gt;claim&lt;/b&gt;" in groups[0]
    assert "alpha claim" in groups[0]
    assert "<details><summary>How we interpret the claim</summary>the test set</details>" in groups[0]
    assert "hidden" in re.search(r'<form class="filter".*?>', part)[0], (
        "what only scripts can do is shown by the script"
    )


def test_a_demonstration_lists_no_claims(sections, rows):
    text = rendered(sections, rows, demonstration=True)
    assert "not run" not in text
    assert "Still missing" not in text, "most of the study is no part of a demonstration"
    assert 'class="demo"' in between(text, '<section id="summary">')
    assert 'id="verdicts"' not in text


def test_tables_and_trials_are_folded_and_figures_are_not(sections, rows):
    text = rendered(sections, rows)
    article = between(text, '<article id="lenet_curve">', "</article>")
    assert article.index("<svg") < article.index("<details")
    assert "<table" not in article[: article.index("<details")]
    assert "<details open" not in text
    tuning = between(text, '<section id="tuning">')
    assert "<summary>lenet_tune: 6 trials</summary>" in tuning
    assert "<table" not in re.sub(r"<details.*?</details>", "", tuning, flags=re.DOTALL)


def test_the_page_is_self_contained_and_can_be_read_by_machines(sections, rows):
    text = rendered(sections, rows)
    tags = Tags(text).seen
    names = [a["id"] for _, a in tags if "id" in a]
    assert len(names) == len(set(names)), "figures share identifiers"
    pointed = set(re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', text))
    assert pointed <= set(names)
    outside = [
        a
        for _, a in tags
        for k, v in a.items()
        if k.split(":")[-1] in ("src", "href") and not (v or "").startswith(("#", "data:"))
    ]
    assert not outside
    levels = [int(t[1]) for t, _ in tags if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for t, a in tags if t == "th")
    assert all(a.get("role") == "img" and a["aria-labelledby"] in names for t, a in tags if t == "svg")
    assert text.count("<table") == text.count('<div class="scroll" role="region" tabindex="0"')
    assert "*{stroke-linejoin" not in text, "a figure's style must not reach the page"


def test_a_large_figure_is_a_picture(sections, rows, monkeypatch):
    monkeypatch.setattr(svg, "LARGEST", 100)
    text = rendered(sections, rows)
    assert "<svg" not in text
    images = [a for t, a in Tags(text).seen if t == "img"]
    assert len(images) == 4
    assert all(a["src"].startswith("data:image/png;base64,iVBOR") and len(a["alt"]) > 20 for a in images)


def test_chapters_are_found_by_name():
    assert (
        chapters.chapter("lenet_winning_long")[1]
        == chapters.chapter("cts_small")[1]
        == chapters.chapter("deep_cts_tune")[1]
        == "Winning tickets"
    )
    assert chapters.chapter("lenet_curve")[1] == "LeNet-300-100"
    assert (
        chapters.chapter("deep_swin")[1]
        == chapters.chapter("conv2_strong")[1]
        == "Convolutional networks and transformers"
    )
    assert chapters.chapter("mine") == ("of-mine", "mine")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
@pytest.mark.parametrize("demonstration", [False, True])
def test_a_browser_shows_everything_without_scrolling_sideways(sections, rows, tmp_path, width, height, demonstration):
    pictures = [page.Picture("lenet_curve", "inside", sections[2].figure, ticket=True)]
    text = rendered(sections, rows, demonstration=demonstration, pictures=pictures)
    text = text.replace("<details>", "<details open>").replace('<details class="data">', '<details class="data" open>')
    file = tmp_path / "page.html"
    # A headless browser window has a minimum width, but a frame has none.
    file.write_text(text.replace("</body>", PROBE + "</body>"))
    (tmp_path / "frame.html").write_text(
        f"<body style='margin:0'><iframe src='page.html' style='border:0;width:{width}px;height:{height}px'></iframe>"
        "<script>"
        "addEventListener('load', () => setTimeout(() => { const d = frames[0].document.documentElement.dataset;"
        "for (const k in d) document.documentElement.dataset[k] = d[k]; }, 500))</script>"
    )
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = {k.removeprefix("data-"): v for k, v in Tags(done.stdout).seen[0][1].items()}
    assert (seen["fits"], seen["width"], seen["first"]) == ("true", str(width), "true"), seen
    assert int(seen["drawn"]) == 5
    links = len(re.findall(r"<a ", between(text, '<nav class="contents"', "</nav>")))
    shown = int(seen["reached"])
    assert shown == links >= 10
    if not demonstration:
        assert seen["up"].startswith("alpha claim|Beta <b>claim</b>")
        assert seen["down"].startswith("Beta <b>claim</b>|alpha claim")
        assert seen["filtered"] == "Beta <b>claim</b>"
