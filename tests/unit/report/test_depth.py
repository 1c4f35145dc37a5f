"""Sparsity by layer and by attention head: statistics of depth, the rule that judges them, and the figures."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import ruled

from crbg import measure, models
from crbg.cli import main
from crbg.experiments import config as configs
from crbg.experiments.record import Count
from crbg.gates.attach import weights
from crbg.masks.mask import Mask
from crbg.report import depth, figures, stats
from crbg.report.records_table import layer_ranks, tidy


def record(sparsities, order=None, sizes=None):
    names = order or [f"l{i}" for i in range(len(sparsities))]
    totals = dict(zip(names, sizes or [1000] * len(names), strict=True))
    kept = {n: round(totals[n] * (1 - s)) for n, s in zip(names, sparsities, strict=True)}
    return {n: Count(kept[n], totals[n]) for n in names}, names


def test_depth_is_the_order_of_the_network_not_of_the_names():
    rising = record([0.1, 0.3, 0.5, 0.7, 0.9], ["stem", "conv10", "conv2", "body", "fc"])
    assert layer_ranks(*rising)["depth"] == pytest.approx(1.0)
    assert layer_ranks(*record([0.9, 0.7, 0.5, 0.3]))["depth"] == pytest.approx(-1.0)
    assert layer_ranks(*record([0.5] * 6)) == dict.fromkeys(("depth", "by_size", "depth_alone", "by_chance"))
    assert set(layer_ranks(*record([0.1, 0.2, 0.3])).values()) == {None}
    assert set(layer_ranks({}, []).values()) == {None}


def test_depth_alone_is_what_size_does_not_explain():
    # Sparsity depends on layer size only, and size grows with depth except in two places. No effect of depth remains.
    sizes = [100, 300, 200, 400, 500, 700, 600, 800]
    owed = layer_ranks(*record([s / 1000 for s in sizes], sizes=sizes))
    assert (owed["by_size"], owed["depth_alone"], owed["by_chance"]) == (pytest.approx(1.0), None, None)
    assert owed["depth"] > 0.9
    # If all layers have the same size, the partial correlation equals the plain correlation.
    even = layer_ranks(*record([0.1, 0.3, 0.2, 0.7, 0.9, 0.8]))
    assert even["depth_alone"] == pytest.approx(even["depth"])
    assert even["by_size"] is None
    # Partial rank correlation, controlling for size, follows from the three pairwise rank correlations.
    x, y, g = [0.0, 1, 2, 3, 4, 5, 6, 7], [0.1, 0.4, 0.2, 0.6, 0.35, 0.9, 0.5, 0.8], [1.0, 2, 1, 2, 1, 2, 3, 3]
    xy, xg, yg = (stats.rank_correlation(*p) for p in ((x, y), (x, g), (y, g)))
    assert stats.partial_rank_correlation(x, y, g) == pytest.approx((xy - xg * yg) / ((1 - xg**2) * (1 - yg**2)) ** 0.5)
    found = layer_ranks(*record(y, sizes=[int(1000 * s) for s in g]))
    assert found["depth_alone"] == pytest.approx(stats.partial_rank_correlation(x, y, g))


def test_what_chance_gives_depth_alone_holds_its_level():
    # Sparsity depends on size and noise only, and size correlates with depth. The bound should hold in 95 of 100 cases.
    rng, beyond = np.random.default_rng(1), 0
    place = tuple(float(i) for i in range(30))
    for _ in range(300):
        size = tuple(i + rng.normal(0, 4) for i in range(30))
        sparsity = tuple(s + rng.normal(0, 5) for s in size)
        bound = stats.partial_by_chance(place, sparsity, size, draws=199)
        beyond += abs(stats.partial_rank_correlation(place, sparsity, size)) > bound
    assert 0.02 < beyond / 300 < 0.09
    assert stats.rank_correlation(place, sparsity) > 0.6, "the raw correlation would have called each of them deeper"
    # Layer size is regressed out of each permutation too; the reference here uses least squares.
    x, y, size = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (2.0, 1.0, 4.0, 6.0, 3.0, 5.0), (1.0, 2.0, 3.0, 5.0, 4.0, 6.0)

    def left(v):
        on = np.column_stack([np.ones(6), size])
        return v - on @ np.linalg.lstsq(on, v, rcond=None)[0]

    drawn = np.random.default_rng(0).permuted(np.tile(left(np.array(y)), (1999, 1)), axis=1)
    sizes = [abs(np.corrcoef(left(np.array(x)), left(d))[0, 1]) for d in drawn]
    assert stats.partial_by_chance(x, y, size) == pytest.approx(np.quantile(sizes, 0.95))
    many = tuple(float(i) for i in range(53))
    free = stats.partial_by_chance(many, tuple(rng.permutation(53).astype(float)), (1.0,) * 53)
    # With equal sizes, the bound is that of layers in random order.
    assert free == pytest.approx(1.96 / 52**0.5, abs=0.03)


def rows(correlations, tensors=54, raw=0.9):
    common = {"experiment": "e", "arm": "a", "asked": 0.1, "part": "test", "reading": "binary", "tensors": tensors}
    common |= {"depth": raw, "by_size": 0.98, "by_chance": 0.27}
    return pd.DataFrame([common | {"seed": i, "depth_alone": c} for i, c in enumerate(correlations)])


@pytest.mark.parametrize(
    ("correlations", "verdict"),
    [
        ([0.8, 0.82, 0.79], "reproduced"),
        ([0.1, 0.12, 0.09], "not reproduced"),
        ([-0.8, -0.7, -0.75], "not reproduced"),
        ([0.1, 0.9, 0.4], "inconclusive"),
        ([0.8], "inconclusive"),
        ([None, None], "not run"),
        ([], "not run"),
    ],
)
def test_deeper_is_sparser_is_judged_beside_size_and_against_layers_in_random_order(correlations, verdict):
    frame = rows(correlations) if correlations else rows([0.0]).iloc[:0]
    found, evidence = ruled({"type": "deeper", "experiment": "e", "arm": "a", "density": 0.1}, frame)
    assert found == verdict
    if verdict != "not run":
        assert "up to 0.27; with depth alone +0.90, with size alone +0.98" in evidence
        assert ("[" in evidence) == (len(correlations) > 1)


def test_kept_weights_of_each_head_are_counted():
    model = models.build("timm:vit_tiny_patch16_224", (1, 28, 28), 10, patch_size=7, depth=2, embed_dim=12, num_heads=3)
    mask = {n: torch.zeros_like(w, dtype=torch.bool) for n, w in weights(model).items()}
    mask["blocks.1.attn.qkv.weight"][12 + 8 : 12 + 12] = True  # the four rows for the keys of the third head
    mask["blocks.0.attn.qkv.weight"][0, :5] = True
    found = measure.heads(model, Mask(mask))
    assert found["blocks.1.attn.qkv.weight"] == {"q": [0, 0, 0], "k": [0, 0, 48], "v": [0, 0, 0]}
    assert found["blocks.0.attn.qkv.weight"] == {"q": [5, 0, 0], "k": [0, 0, 0], "v": [0, 0, 0]}
    assert len(found) == 2
    torch_own = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2, bias=False))
    assert set(measure.heads(torch_own, Mask.full(weights(torch_own)))) == {"0.in_proj_weight"}
    network = models.build("resnet20", (3, 32, 32), 10)
    assert measure.heads(network, Mask.full(weights(network))) == {}


CONFIG = """
experiments:
  deep:
    role: main
    view: dots
    seeds: [0, 1]
    base: {data: digits, method: crbg, density: 0.5, init: kaiming_normal, epochs: 1, batch: 64, limit: 128}
    arms:
      vit:
        set:
          model: "timm:vit_tiny_patch16_224"
          model_args: {patch_size: 7, depth: 2, embed_dim: 24, num_heads: 3}
      swin:
        set:
          model: "timm:swin_tiny_patch4_window7_224"
          model_args:
            {patch_size: 2, window_size: 7, depths: [1, 1], num_heads: [2, 4], embed_dim: 16, drop_path_rate: 0.0}
      mlp: {set: {model: lenet-16}}
"""


@pytest.mark.long
def test_deep_networks_are_drawn_layer_by_layer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert main(["run", "deep"]) == 0
    config = configs.read(["config.yaml"])
    vit, swin = depth.layers(config, config.experiment("deep"))
    assert swin.heads.shape == (2, 2, 3, 4)
    assert np.isnan(swin.heads[:, 0, :, 2:]).all()  # the first stage of this network has two heads
    assert not np.isnan(swin.heads[:, 1]).any()
    stage = swin.names.index("layers.0.blocks.0.attn.qkv.weight")
    assert np.allclose(swin.heads[:, 0, :, :2].mean((1, 2)), swin.sparsity[:, stage])
    assert figures.by_head(swin, tmp_path / "swin", False, {}).with_suffix(".png").stat().st_size > 5000
    assert vit.arm == "vit"
    assert vit.sparsity.shape == (2, 10)
    assert vit.names[0] == "patch_embed.proj.weight"
    assert vit.names[-1] == "head.weight"
    assert vit.heads is not None
    assert vit.heads.shape == (2, 2, 3, 3)
    # The mean sparsity over the heads equals the sparsity of the tensor.
    qkv = vit.names.index("blocks.1.attn.qkv.weight")
    assert np.allclose(vit.heads[:, 1].mean((1, 2)), vit.sparsity[:, qkv])
    for path in (
        figures.by_depth([vit], tmp_path / "layers", False, {}),
        figures.by_head(vit, tmp_path / "heads", False, {}),
    ):
        assert path.with_suffix(".png").stat().st_size > 5000
    table = tidy(config)
    assert table[table.arm == "vit"].depth.notna().all()
    assert table[table.arm == "mlp"].depth.isna().all()


@pytest.mark.long
def test_tables_say_what_batch_norm_and_inexact_images_change(tmp_path, monkeypatch):
    from crbg.data.sources import load
    from crbg.report import tables

    plain = load("digits")
    three = dataclasses.replace(
        plain, lossy_test=torch.tensor([0, 5, 299]), lossy={"train": 4, "validation": 0, "test": 3}
    )
    monkeypatch.setattr("crbg.runs.setup.load", lambda name, folder, **options: three)
    monkeypatch.chdir(tmp_path)
    conv = "      conv: {set: {model: conv2, model_args: {width: 0.125, norm: batch}}}"
    (tmp_path / "config.yaml").write_text(CONFIG.replace("      mlp: {set: {model: lenet-16}}", conv))
    (tmp_path / "paper").mkdir()
    assert main(["select"]) == 0
    assert main(["run", "deep", "--where", "arm=conv"]) == 0
    assert main(["evaluate", "deep", "--where", "arm=conv"]) == 0
    config = configs.read(["config.yaml"])
    rows = tidy(config)
    test = rows[(rows.part == "test") & (rows.reading == "binary")]
    assert (test.clean != test.value).all()
    table = tables.main_table(rows, "deep")
    assert table["exact images %"].tolist() == [f"{test.clean.mean():.2f}"]
    assert table["not recalibrated %"].tolist() == [f"{test.plain.mean():.2f}"]
    assert "7 images of the data set (3 of them test images) were decoded from JPEG copies." in tables.origin(
        rows, config.experiment("deep")
    )
