"""Quotes of the claims: known sources, and word-for-word occurrence in their texts."""

import hashlib

import pytest
import yaml
from made_up import GOOD
from paths import ROOT

from crbg.errors import CrbgError
from crbg.report import claims, quotes

TEXT = "They reach 99.3% spar-\nsity with ﬁne\ttickets, “as\n claimed”."


def claim(quote, source="paper"):
    return claims.parse_claims({"claims": [GOOD | {"quote": quote, "quoted_from": source}]}).claims[0]


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("99.3% sparsity with fine tickets", True),
        ('tickets, "as claimed"', True),
        ("99.3 % sparsity", False),
        ("99.3% Sparsity", False),
    ],
)
def test_a_quote_is_compared_word_for_word_and_not_by_line_ends_or_glyphs(quote, found):
    missing = quotes.missing_quotes([claim(quote)], {"paper": TEXT})
    assert missing == ([] if found else [f"a: not in paper: {quote}"])
    assert quotes.missing_quotes([claim(quote, "our question")], {"paper": TEXT}) == []


def test_the_command_finds_texts_by_their_digest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("paper", "texts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts/any-name.txt").write_text(TEXT)
    sources = {
        name: {"title": "t", "address": "a", "sha256": hashlib.sha256(body.encode()).hexdigest()}
        for name, body in (("paper", TEXT), ("away", "x"))
    }
    (tmp_path / "paper/sources.yaml").write_text(yaml.safe_dump(sources))

    def check(*bodies):
        (tmp_path / "paper/claims.yaml").write_text(yaml.safe_dump({"claims": list(bodies)}))
        return quotes.main(["texts"])

    good = GOOD | {"quote": "fine tickets", "quoted_from": "paper"}
    assert check(good, GOOD | {"id": "b", "quoted_from": "away"}) == 0
    assert (
        "1 quotes checked, 0 wrong\nnot checked, because their texts are not in texts: away" in capsys.readouterr().out
    )
    assert check(good | {"quote": "invented"}) == 1
    assert "a: not in paper: invented" in capsys.readouterr().out
    assert check(good | {"quoted_from": "papre"}) == 1
    assert quotes.main([]) == 2


def test_malformed_sources_are_named(tmp_path):
    with pytest.raises(CrbgError, match=r"cannot read .*absent\.yaml"):
        quotes.read_sources(tmp_path / "absent.yaml")
    (tmp_path / "s.yaml").write_text("thesis: {title: t, address: a, sha256: abc}")
    with pytest.raises(CrbgError, match="thesis: field 'sha256'"):
        quotes.read_sources(tmp_path / "s.yaml")


def test_every_claim_of_the_project_quotes_a_known_source_or_says_that_it_does_not(monkeypatch):
    monkeypatch.chdir(ROOT)
    declared, sources = claims.read_claims().claims, quotes.read_sources()
    assert quotes.unknown_sources(declared, sources) == []
    assert len([c for c in declared if c.verbatim]) > 60
    assert {c.quoted_from for c in declared} >= set(sources)
    for c in declared:
        assert c.declared or not c.rule, f"{c.id}: was its rule declared before or after its runs were read?"
