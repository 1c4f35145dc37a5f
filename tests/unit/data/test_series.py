"""Series: windows, chronological parts, naive forecasts, and the table of sunspot numbers."""

import dataclasses
import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from crbg import methods, models
from crbg.data import series
from crbg.data.datasets import DATA
from crbg.data.files import Source
from crbg.data.loader import BatchLoader
from crbg.data.parts import TensorPart
from crbg.data.sources import load
from crbg.errors import CrbgError
from crbg.measure.accuracy import eval_mode
from crbg.methods.contract import SearchTask
from crbg.search.run_search import run_search

LENGTH, HORIZON, STEPS = 7, 3, 100
ENDS = (60, 80, 100)  # of the parts of 100 values


@pytest.fixture(scope="module")
def toy():
    return load("toy_series")


def numbered(steps=STEPS):
    """Return the parts of the series 0, 1, 2, ..., with each value replaced by its number."""
    parts = series.split(range(steps), LENGTH, HORIZON)
    mean, std = np.arange(60).mean(), np.arange(60).std()
    back = [[(t.double() * std + mean).round().long() for t in (p.x, p.y)] for p in parts]
    return [torch.cat(pair, 1) for pair in back]


# --- windows and parts ---


def test_windows_are_consecutive_and_the_targets_follow():
    for part, windows in zip(series.split(range(STEPS), LENGTH, HORIZON), numbered(), strict=True):
        assert part.x.shape == (len(windows), LENGTH)
        assert part.y.shape == (len(windows), HORIZON)
        assert windows.equal(windows[:, :1] + torch.arange(LENGTH + HORIZON))
        assert windows[:, 0].diff().eq(1).all(), "stride 1"


def test_targets_lie_in_their_own_part_and_no_window_reaches_into_a_later_part():
    for windows, start, end in zip(numbered(), (LENGTH, 60, 80), ENDS, strict=True):
        targets = windows[:, LENGTH:]
        assert sorted(set(targets.flatten().tolist())) == list(range(start, end))
        assert int(windows.max()) < end
    train, validation, test = numbered()
    assert int(train.min()) == 0
    assert validation[0].tolist() == list(range(60 - LENGTH, 60 + HORIZON)), "the first inputs are the months before"
    assert test[0, LENGTH] == 80


def test_values_are_standardised_with_the_training_months_only():
    values = [math.sin(t) + t / 30 for t in range(STEPS)]
    train, validation, _ = series.split(values, LENGTH, HORIZON)
    first = np.array(values[:60])
    np.testing.assert_allclose(train.x[0], (first[:LENGTH] - first.mean()) / first.std(), rtol=1e-6)
    np.testing.assert_allclose(validation.y[0], (np.array(values[60:63]) - first.mean()) / first.std(), rtol=1e-6)
    other, _, _ = series.split([*values[:60], *(9 * v for v in values[60:])], LENGTH, HORIZON)
    assert other.x.equal(train.x)
    assert other.y.equal(train.y)


def test_series_that_cannot_be_split_are_refused():
    least = LENGTH + 6 * HORIZON
    series.split(range(math.ceil(least / 0.6)), LENGTH, HORIZON)
    with pytest.raises(CrbgError, match=f"series of 41 values is too short .* 60 % must have at least {least} values"):
        series.split(range(41), LENGTH, HORIZON)
    with pytest.raises(CrbgError, match="training part of the series is constant"):
        series.split([0.1] * 60 + [2.0] * 40, LENGTH, HORIZON)


@pytest.mark.parametrize("steps", range(42, 60))
def test_every_part_of_the_shortest_series_has_windows(steps):
    train, validation, test = series.split(range(steps), LENGTH, HORIZON)
    assert min(len(train), len(validation), len(test)) >= 1
    assert math.isfinite(series.ridge(train, test))


# --- naive forecasts ---


def test_persistence_repeats_the_last_value(toy):
    part = toy.validation
    total = sum((float(x[-1]) - float(y)) ** 2 for x, targets in zip(part.x, part.y, strict=True) for y in targets) / (
        len(part) * 6
    )
    assert series.persistence(part) == pytest.approx(total, rel=1e-6)


def by_least_squares(x, y, strength):
    """Return the function that a ridge regression fits, as least squares with one more row for each coefficient."""
    centre, level = x.mean(0), y.mean(0)
    rows = np.concatenate([x - centre, math.sqrt(strength) * np.eye(x.shape[1])])
    found = np.linalg.lstsq(rows, np.concatenate([y - level, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]
    return lambda inputs: level + (inputs - centre) @ found


def test_ridge_is_least_squares_with_the_strength_of_a_later_hold_out(toy):
    x, y = toy.train.x.double().numpy(), toy.train.y.double().numpy()
    held = math.ceil(len(x) * 4 / 5)

    def later_error(strength):
        # Window i has its targets at i + 48, ..., i + 53; those of the hold-out start at held + 48.
        early = [i for i in range(len(x)) if i + 53 < held + 48]
        return ((by_least_squares(x[early], y[early], strength)(x[held:]) - y[held:]) ** 2).mean()

    best = min(series.STRENGTHS, key=later_error)
    assert best not in (series.STRENGTHS[0], series.STRENGTHS[-1])
    inputs, targets = toy.test.x.double().numpy(), toy.test.y.double().numpy()
    naive = ((by_least_squares(x, y, best)(inputs) - targets) ** 2).mean()
    assert series.ridge(toy.train, toy.test) == pytest.approx(naive, rel=1e-6)


def test_the_hold_out_of_ridge_starts_after_the_last_target_that_was_fitted(monkeypatch):
    train, validation, _ = series.split(range(STEPS), LENGTH, HORIZON)
    fit, seen = series._fit, []
    monkeypatch.setattr(series, "_fit", lambda x, y, s: seen.append(y) or fit(x, y, s))
    series.ridge(train, validation)
    *early, last = seen
    held = train.y[len(train) - len(train) // 5 :].double()
    assert all(float(y.max()) < float(held.min()) for y in early)
    assert len(last) == len(train)


# --- the generated series ---


def test_the_generated_series_is_the_same_everywhere(toy):
    assert toy.digest.startswith("621459b90d08054e")
    entry = DATA["toy_series"]
    assert [len(p) for p in (toy.train, toy.validation, toy.test)] == [entry.train, entry.validation, entry.test]
    assert toy.in_shape == entry.shape
    assert toy.train.y.shape[1] == toy.classes == entry.classes
    assert toy.loss is nn.functional.mse_loss


def test_the_digest_covers_inputs_and_targets(toy):
    digest = hashlib.sha256()
    for part in (toy.train, toy.validation, toy.test):
        digest.update(part.x.numpy().tobytes() + part.y.numpy().tobytes())
    assert toy.digest == digest.hexdigest()


def test_a_line_is_a_good_forecast_of_the_generated_series_and_persistence_a_poor_one(toy):
    naive = {name: error(toy.validation) for name, error in toy.naive.items()}
    mean = float(toy.validation.y.square().mean())
    assert naive["persistence"] > 2 * mean
    assert 0.2 * mean < naive["ridge"] < 0.4 * mean


def test_naive_forecasts_stay_fitted_to_the_training_part(toy):
    moved = dataclasses.replace(toy, train=toy.train.join(toy.validation))
    assert moved.naive["ridge"](toy.test) == toy.naive["ridge"](toy.test) == series.ridge(toy.train, toy.test)


def test_a_ticket_forecasts_better_than_a_line(toy):
    model, roles = models.initial("lenet-64-64", toy.in_shape, toy.classes, "kaiming_normal", 1.0, 0)
    task = SearchTask(BatchLoader(toy.train, 64, seed=0), 0.3, 20, 0, toy.loss)
    options = methods.options("crbg", {"noise": 0.0, "firmness": 0.0, "polish": 0.5, "lr": 0.1})
    found = run_search(model, task, methods.get("crbg"), options, roles)
    found.apply(model)
    with eval_mode(model), torch.no_grad():
        error = float(nn.functional.mse_loss(model(toy.validation.x), toy.validation.y))
    assert found.mask.density == pytest.approx(0.3, rel=0.02)
    assert error < 0.75 * toy.naive["ridge"](toy.validation)
    assert error < 0.3 * float((toy.train.y.mean(0) - toy.validation.y).square().mean()), "the training mean"


# --- the table ---


def table(years=(1900, 1901), value=lambda year, month: 10 * (year - 1900) + month):
    rows = [f"{y}  " + "".join(f"{value(y, m):6.1f}" for m in range(12)) for y in years]
    return ["   A TITLE", "Year   Jan   Feb", "----", *rows[:1], "", *rows[1:], "----", "A note on 1900.", ""]


def changed(old, new):
    text = "\n".join(table((1900, 1901, 1902)))
    assert text.count(old) == 1
    return text.replace(old, new)


def test_months_are_read_in_order_without_headers_and_notes():
    assert series.monthly("\n".join(table()), "here") == [*range(12), *range(10, 22)]


def test_blank_months_at_both_ends_shorten_the_series():
    text = changed("1900     0.0   1.0", "1900" + " " * 14).replace("  30.0  31.0", "")
    assert series.monthly(text, "here") == [*range(2, 12), *range(10, 22), *range(20, 30)]
    assert series.monthly(changed("  30.0  31.0", "            "), "here")[-1] == 29


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  15.0  16.0", "  15.0      ", "here has no value for July 1901"),
        ("  10.0  11.0  12.0", "        11.0  12.0", "here has no value for January 1901"),
        ("  20.0  21.0\n1902", "            \n1902", "here has no value for November 1901"),
        ("1902", "1903", "here has no value for January 1902"),
        ("1902", "1901", "the row of 1901 is repeated or out of order"),
        ("1902", "1899", "the row of 1899 is repeated or out of order"),
        ("  15.0  16.0", "  15.0   n/a", "the row of 1901 needs one number"),
        ("  15.0  16.0", "  15.0   nan", "the row of 1901 needs one number"),
        ("  15.0  16.0", "  15.0   inf", "the row of 1901 needs one number"),
        ("  15.0  16.0", "  15.0 -99.9", "the row of 1901 needs one number"),
        ("  15.0  16.0", "  15.016.00 ", "the row of 1901 needs one number"),
        ("  30.0  31.0", "  30.0  31.0  32.0", "the row of 1902 needs one number"),
        ("1902    20.0", "1902 20.0", "the row of 1902 needs one number"),
        ("  30.0  31.0", "  30.0    31.0", "the row of 1902 needs one number"),
    ],
)
def test_gaps_and_damaged_rows_are_named(old, new, message):
    with pytest.raises(CrbgError, match=message) as caught:
        series.monthly(changed(old, new), "here")
    assert "\n" not in str(caught.value)


def test_a_file_without_a_table_is_refused():
    with pytest.raises(CrbgError, match="here has no row that starts with a year"):
        series.monthly("<html>not found</html>", "here")
    with pytest.raises(CrbgError, match="here has no row that starts with a year"):
        series.monthly("1900\n", "here")


# --- the file ---


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a function that writes a table of 60 years as the file of `sunspots`."""
    monkeypatch.setenv("CRBG_DATA", str(tmp_path))

    def write(lines):
        path = tmp_path / "sunspots" / series.FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
        source = Source("file:///nowhere", hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setattr(series, "FILES", {series.FILE: source})
        return path

    return write


def wave(year, month):
    return 50 + 49 * math.sin((12 * year + month) / 20)


def test_sunspot_numbers_are_square_roots(file):
    file(table(range(1900, 1960), wave))
    data = load("sunspots", download=False)
    values = np.sqrt([round(wave(y, m), 1) for y in range(1900, 1960) for m in range(12)])
    first = values[:432]
    np.testing.assert_allclose(data.train.x[0], (first[:96] - first.mean()) / first.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.test.y[-1], (values[-12:] - first.mean()) / first.std(), rtol=1e-5, atol=1e-6)
    assert data.in_shape == (96,)
    assert set(data.naive) == {"persistence", "ridge"}


def test_a_missing_damaged_or_short_file_is_named(file, tmp_path):
    path = file(table(range(1900, 1960), wave))
    path.write_text("damaged")
    with pytest.raises(CrbgError, match=r"sunspots_monthly\.dat has the SHA-256 .* expected"):
        load("sunspots", download=False)
    path.unlink()
    with pytest.raises(CrbgError, match=r"sunspots_monthly\.dat is missing; `crbg data sunspots` downloads it"):
        load("sunspots", download=False)
    with pytest.raises(CrbgError, match=r"'sunspots' is not at .*sunspots, and file:///nowhere could not be downl"):
        load("sunspots")
    file(table(range(1900, 1920), wave))
    with pytest.raises(CrbgError, match="series of 240 values is too short"):
        load("sunspots")


def test_parts_are_fixed():
    with pytest.raises(CrbgError, match="the parts of toy_series are fixed"):
        load("toy_series", split=1)


@pytest.mark.data
def test_the_real_file_has_the_stated_months_and_windows():
    folder = Path(os.environ.get("CRBG_DATA", "")).expanduser()
    if not (folder / "sunspots" / series.FILE).exists():
        pytest.skip("CRBG_DATA has no sunspot numbers")
    text = (folder / "sunspots" / series.FILE).read_text()
    months = series.monthly(text, "here")
    assert len(months) == 260 * 12 + 6
    assert (months[0], months[12 * (1824 - 1749) + 1], months[-1]) == (58.0, 10.8, 2.6)
    data, entry = load("sunspots", str(folder), download=False), DATA["sunspots"]
    assert [len(p) for p in (data.train, data.validation, data.test)] == [entry.train, entry.validation, entry.test]
    assert isinstance(data.train, TensorPart)
    assert data.digest.startswith("7db21e7c0fb03f59")
    errors = {name: error(data.validation) for name, error in data.naive.items()}
    assert errors == pytest.approx({"persistence": 0.4228, "ridge": 0.2392}, abs=1e-3)
