from types import SimpleNamespace

from crbg.report.claims import Judgement
from crbg.report.names import in_words, latex_name, readable

LABELS = {
    "crbg": "CRBG",
    "crbg_no_noise": "CRBG, no noise",
    "edge_popup": "edge-popup (per layer)",
    "units": "hidden units",
    "cts_deltaloss": "CTS, $\\Delta$ loss",
}


def test_keys_of_arms_become_names_and_words_stay():
    text = "crbg_no_noise - crbg at 0.1: 77 % of the units, +0.2 against edge_popup"
    assert in_words(text, LABELS) == (
        "CRBG (no noise) - CRBG at 0.1: 77 % of the units, +0.2 against edge-popup (per layer)"
    )
    assert in_words("crbg_other and lenet_crbg", LABELS) == "crbg_other and lenet_crbg"
    assert in_words("against snip, units", {"snip": "SNIP", "units": "hidden units"}) == "against SNIP, units"
    assert in_words("anything", {}) == "anything"


def test_judgements_use_the_labels_of_their_experiment():
    own = SimpleNamespace(labels={"crbg": "ours"})
    config = SimpleNamespace(experiments={"e": own}, labels=LABELS)
    known = Judgement("c", "s", "q", "crbg is better", "crbg: 1", experiment="e")
    other = Judgement("c", "s", "q", "crbg is better", "crbg: 1")
    assert [(v.verdict, v.measured) for v in readable([known, other], config)] == [
        ("ours is better", "ours: 1"),
        ("CRBG is better", "CRBG: 1"),
    ]


def test_latex_keeps_formulas_and_escapes_the_rest():
    assert latex_name("cts_deltaloss", LABELS) == "CTS, $\\Delta$ loss"
    assert latex_name("a_b", {}) == "a b"
    assert latex_name("x", {"x": "50 % & more"}) == r"50 \% \& more"
