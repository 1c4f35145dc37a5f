import pandas as pd
import pytest

from crbg import methods
from crbg.errors import CrbgError
from crbg.report import documents
from crbg.report.claims import Judgement

MARKS = "<!-- {0}: written by `crbg report`, do not edit -->\n{1}<!-- end of {0} -->\n"
HEADLINE = {"reading": "binary", "part": "test", "value": 95.0, "asked": 0.05, "seed": 0}


def verdict(name, word, source="thesis", evidence="97 %"):
    return Judgement(name, source, f"quote of {name}", word, evidence)


def made(*verdicts):
    rows = pd.DataFrame([HEADLINE | {"experiment": "another", "arm": "crbg"}])
    return documents.blocks([], rows, verdicts)


def test_only_what_stands_between_marks_changes():
    text = "before\n" + MARKS.format("a", "old\n") + "between\n" + MARKS.format("b", "") + "after"
    out = documents.filled(text, {"a": "new [x](paper/x.md)\n", "b": "more\n"}, "../")
    assert (
        out
        == "before\n"
        + MARKS.format("a", "new [x](../paper/x.md)\n")
        + "between\n"
        + MARKS.format("b", "more\n")
        + "after"
    )
    assert documents.filled(out, {"a": "new [x](paper/x.md)\n", "b": "more\n"}, "../") == out


def test_an_unknown_block_is_one_error_with_the_nearest_name():
    with pytest.raises(CrbgError, match=r"'method': .*methods"):
        documents.filled(MARKS.format("method", ""), {"methods": "", "numbers": ""})


def test_claims_are_counted_and_goals_and_contrasts_are_not():
    judged = [verdict("a", "exceeded"), verdict("b", "exceeded"), verdict("c", "not testable on MNIST")]
    others = [verdict("goal 98 %", "met", "our aim"), verdict("x - y", "indistinguishable", "confirmatory contrast")]
    assert "2 exceeded, 1 not testable, of 3 declared rules (" in made(*judged, *others)["verdicts"]


def test_the_telling_claims_are_shown_in_their_order_as_far_as_they_are_there():
    last, first = documents.TELLING[-1], documents.TELLING[0]
    block = made(verdict(last, "not run"), verdict("other", "reproduced"), verdict(first, "exceeded"))["verdicts"]
    assert block.index(f"quote of {first}") < block.index(f"quote of {last}")
    assert "quote of other" not in block


def test_long_evidence_is_cut_outside_brackets():
    long = "a" * 100 + ", b [-1.0, +0.1], c [-1.2, -0.2]"  # the last comma within the length limit is inside brackets
    cell = made(verdict(documents.TELLING[0], "exceeded", evidence=long))["verdicts"].splitlines()[-1]
    assert "| " + "a" * 100 + " … |" in cell


def test_every_method_has_one_row():
    lines = made()["methods"].splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == methods.names()
    assert all(line.replace("\\|", "").count("|") == 6 for line in lines)


def sizes():
    """Return rows for the four small files of the README, and a larger ticket."""
    files = [(arm, density, 3000.0 + i) for i, (arm, density) in enumerate(documents.SMALL.values())]
    rows = [
        {"reading": "binary", "part": "test", "experiment": "lenet_bytes", "arm": arm, "asked": density, "bytes": size}
        | {"value": 90.0 + seed, "seed": seed, "data": "mnist", "setting": "", "digest": f"{arm}{density}"}
        for arm, density, size in [*files, ("crbg_polished", 0.1, 15000.0)]
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_small_files_are_one_line_of_the_results():
    line = documents.blocks([], sizes(), [])["results"].splitlines()[0]
    assert line.startswith("- **MNIST, files of 2 to 5 kB:** a polished ticket 90.50 ")
    assert line.count("90.50") == len(documents.SMALL)
    assert "% (3,000 bytes)" in line
    assert "15,000" not in line


def test_all_files_of_a_finished_experiment_are_tabulated():
    class Sized:
        name, labels = "lenet_bytes", {"imp_4_bits": "pruned"}

    table = documents.blocks([], sizes(), [], [Sized])["sizes"].splitlines()
    assert [c.strip() for c in table[0].split("|")[1:-1]] == ["network", "sparsity, %", "bytes, MNIST", "MNIST, %"]
    assert len(table) == 2 + len(documents.SMALL) + 1
    assert [c.strip() for c in table[3].split("|")[1:4]] == ["pruned", "99.0", "3,001"]
    assert documents.blocks([], sizes(), [])["sizes"] == "Not run.\n"
