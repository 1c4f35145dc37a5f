"""Text: windows, parts, n-gram models, the generated text, and files that do not fit."""

import dataclasses
import math
import os
import urllib.error
from collections import Counter
from pathlib import Path

import pytest
import torch

from crbg.data import files, text
from crbg.data.datasets import DATA
from crbg.data.loader import BatchLoader
from crbg.data.metrics import BITS
from crbg.data.parts import TensorPart
from crbg.data.sources import load
from crbg.errors import CrbgError

LETTERS = 60


@pytest.fixture(scope="module")
def toy():
    return load("toy_text")


def numbered(length=LETTERS, context=4):
    """Return the parts of a text in which every character is its own position."""
    entry = dataclasses.replace(DATA["toy_text"], shape=(context,), classes=length)
    data = text.from_codes(entry, torch.arange(length))
    return data.train, data.validation, data.test


# --- windows and parts ---


def test_labels_are_the_next_characters():
    for part in numbered():
        assert part.x.shape == part.y.shape
        assert part.x.dtype == part.y.dtype == torch.int64
        assert part.y.equal(part.x + 1)


def test_windows_and_parts_do_not_overlap():
    train, validation, test = numbered()
    assert train.x.flatten().tolist() == list(range(44)), "consecutive, and the last 3 of 48 characters are dropped"
    assert train.x[1].tolist() == [4, 5, 6, 7]
    assert validation.x.tolist() == [[48, 49, 50, 51]]
    assert test.x.tolist() == [[54, 55, 56, 57]]
    for part, end in ((train, 48), (validation, 54), (test, 60)):
        assert int(part.y.max()) < end, "no label lies in a later part"


def test_the_last_window_needs_its_last_label():
    assert len(text.windows(torch.arange(9), 4)) == 2
    assert len(text.windows(torch.arange(8), 4)) == 1


def test_the_parts_have_the_registered_sizes(toy):
    entry = DATA["toy_text"]
    assert [len(p) for p in (toy.train, toy.validation, toy.test)] == [entry.train, entry.validation, entry.test]
    assert (toy.in_shape, toy.classes, toy.metric) == (entry.shape, entry.classes, BITS)
    assert isinstance(toy.train, TensorPart)
    x, y = next(BatchLoader(toy.train, 8, seed=0).epoch(0))
    assert x.shape == y.shape == (8, 32)
    assert x[:, 1:].equal(y[:, :-1])


def test_characters_are_numbered_in_sorted_order():
    assert text.encoded("hello").tolist() == [1, 0, 2, 2, 3]
    assert text.encoded("bé\n𝄞a").tolist() == [2, 3, 0, 4, 1], "by code point, also beyond the first 65536"


def test_a_text_without_a_window_in_a_part_is_one_error():
    with pytest.raises(CrbgError, match="a text of 4 characters has no window of 4 characters and the label after"):
        text.windows(torch.arange(4), 4)
    with pytest.raises(
        CrbgError, match=r"^toy_text is too short for its three parts: a text of 4 characters"
    ) as caught:
        numbered(49)
    assert "\n" not in str(caught.value)


# --- n-gram models ---


def naive_bits(training, windows, classes, order):
    """Return the bits per character of an interpolated n-gram model, counted with dictionaries, one label at a time."""
    grams = [Counter(tuple(training[i : i + n]) for i in range(len(training) - n + 1)) for n in range(order + 1)]

    def probability(context, c):
        if not context:
            return (grams[1][(c,)] + 1) / (len(training) + classes)
        after = {g[-1]: count for g, count in grams[len(context) + 1].items() if g[:-1] == context}
        shorter = probability(context[1:], c)
        if not after:
            return shorter
        return (after.get(c, 0) + len(after) * shorter) / (sum(after.values()) + len(after))

    total = [
        -math.log2(probability(tuple(window[max(0, t + 2 - order) : t + 1]) if order > 1 else (), window[t + 1]))
        for window in windows
        for t in range(len(window) - 1)
    ]
    return sum(total) / len(total)


@pytest.mark.parametrize(
    ("name", "order"), [("unigram", 1), ("bigram", 2), ("trigram", 3), ("4-gram", 4), ("5-gram", 5)]
)
def test_n_gram_models_are_those_of_a_loop(name, order):
    said = "abracadabra, simsalabim! " * 8 + "a new word: abrasive, and an unseen one: Xylophone-Zoo (quick)"
    codes, classes = text.encoded(said), len(set(said))
    entry = dataclasses.replace(DATA["toy_text"], shape=(7,), classes=classes)
    data = text.from_codes(entry, codes)
    training = codes[: len(codes) - 2 * (len(codes) // 10)].tolist()
    assert set(data.test.y.flatten().tolist()) - set(training), "characters that the training part does not have"
    for part in (data.train, data.validation, data.test):
        windows = [[*x.tolist(), int(y[-1])] for x, y in zip(part.x, part.y, strict=True)]
        assert data.naive[name](part) == pytest.approx(naive_bits(training, windows, classes, order), rel=1e-12)


def test_probabilities_sum_to_one_in_every_context(toy):
    labels = torch.arange(16)[:, None].expand(16, 4)
    for before in ([0, 0, 0, 0], [3, 1, 4, 1]):
        contexts = torch.tensor(before).expand(16, 4)
        for model in text.n_grams(toy.train.x.flatten()[:100], 16).values():  # most contexts do not occur
            assert model(contexts, labels).sum(0) == pytest.approx([1.0] * 4)


def test_a_prediction_uses_no_character_of_another_window(toy):
    """A trigram model knows one character at the first position of a window, and two from the second position on."""
    model, (x, y) = text.n_grams(toy.train.x.flatten(), 16)["trigram"], toy.validation.batch(slice(0, 20))
    alone = torch.cat([model(a[None], b[None]) for a, b in zip(x, y, strict=True)])
    assert model(x, y).equal(alone)
    changed = x.clone()
    changed[:, 0] = (x[:, 0] + 1) % 16
    differs = model(changed, y) != model(x, y)
    assert differs[:, :2].any(0).all()
    assert not differs[:, 2:].any()


def test_n_gram_models_are_fitted_to_the_training_part_only(toy):
    codes = text.toy_text(text.TOY_LENGTH, 16)
    codes[-2 * (len(codes) // 10) :] = 0
    other = text.from_codes(DATA["toy_text"], codes)
    for name, measure in other.naive.items():
        assert measure(toy.test) == toy.naive[name](toy.test)


def test_the_toy_text_needs_its_context(toy):
    for part in (toy.train, toy.validation, toy.test):
        one, two, three = (toy.naive[name](part) for name in ("unigram", "bigram", "trigram"))
        assert 4 > one > two + 1 > three + 1.5


# --- the generated text ---


def test_the_toy_text_is_pinned(toy):
    codes = text.toy_text(text.TOY_LENGTH, 16)
    assert codes.equal(text.toy_text(text.TOY_LENGTH, 16))
    assert codes[:100].equal(text.toy_text(100, 16))
    assert codes.bincount(minlength=16).gt(0).all()
    assert len(codes.bincount()) == 16
    assert toy.digest == load("toy_text").digest
    assert toy.digest.startswith("5f8b8ae21c")


def test_the_digest_covers_inputs_and_labels_of_all_parts(toy):
    codes = text.toy_text(text.TOY_LENGTH, 16)
    seen = {toy.digest}
    for place in (0, -2 * (len(codes) // 10), -(len(codes) // 10), 32 * 320):  # the last one is only a label
        changed = codes.clone()
        changed[place] = (changed[place] + 1) % 16
        seen.add(text.from_codes(DATA["toy_text"], changed).digest)
    assert len(seen) == 5


# --- files ---


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(CrbgError, match=r"shakespeare/input\.txt is missing; `crbg data shakespeare` downloads it"):
        load("shakespeare", str(tmp_path), download=False)


def test_a_damaged_file_is_named_and_kept(tmp_path):
    path = tmp_path / "shakespeare/input.txt"
    path.parent.mkdir()
    path.write_text("First Citizen:\nBefore we proceed any further")
    with pytest.raises(CrbgError, match=rf"{path} has the SHA-256 .* but 86c4e6aa9db7\.\.\. was expected; delete it"):
        load("shakespeare", str(tmp_path))
    assert path.exists()


def test_without_network_the_address_and_the_place_are_named(tmp_path, monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(files.urllib.request, "urlopen", refuse)
    with pytest.raises(CrbgError, match="no route to host") as caught:
        load("shakespeare", str(tmp_path))
    for part in (text.SHAKESPEARE.url, str(tmp_path / "shakespeare"), "CRBG_DATA", "input.txt"):
        assert part in str(caught.value)


def test_the_parts_cannot_be_drawn_anew():
    with pytest.raises(CrbgError, match="the parts of toy_text are fixed"):
        load("toy_text", split=1)


@pytest.mark.data
def test_the_real_text_has_the_stated_characters_and_windows():
    folder = Path(os.environ.get("CRBG_DATA", "")).expanduser()
    if not (folder / "shakespeare" / text.FILE).exists():
        pytest.skip("CRBG_DATA has no tiny Shakespeare")
    said = (folder / "shakespeare" / text.FILE).read_text()
    assert (len(said), len(set(said))) == (1_115_394, 65)
    data, entry = load("shakespeare", str(folder), download=False), DATA["shakespeare"]
    assert [len(p) for p in (data.train, data.validation, data.test)] == [entry.train, entry.validation, entry.test]
    assert (data.in_shape, data.classes) == (entry.shape, entry.classes)
    letters = sorted(set(said))
    assert "".join(letters[c] for c in data.train.x[0]) == said[:128]
    assert "".join(letters[c] for c in data.test.x[0]) == said[-111_539:][:128]
    errors = {name: measure(data.validation) for name, measure in data.naive.items()}
    known = {"unigram": 4.772, "bigram": 3.600, "trigram": 2.926, "4-gram": 2.487, "5-gram": 2.345}
    assert errors == pytest.approx(known, abs=1e-3)
