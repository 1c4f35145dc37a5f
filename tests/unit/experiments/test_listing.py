"""`crbg list` shows networks, methods and chosen settings."""

import pytest
import torch

from crbg import measure, methods, models
from crbg.experiments import listing
from crbg.experiments.estimates import SIZES
from crbg.gates.attach import weights


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in SIZES if "base" not in n and "wide" not in n])
def test_the_sizes_shown_are_those_of_the_networks(name):
    _, _, built = SIZES[name]
    arguments = {"stem": built} if isinstance(built, str) else {"patch_size": built} if built else {}
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    model = models.build(name, shape, 10, **arguments)
    shown = (sum(w.numel() for w in weights(model).values()), measure.flops(model, torch.zeros(1, *shape))["dense"] / 2)
    assert SIZES[name][:2] == pytest.approx(shown, rel=0.02)


def test_every_family_has_a_network_or_says_which_names_it_takes(monkeypatch):
    text = "\n".join(listing.networks())
    assert "lenet-A-B-..." in text
    assert "timm:NAME" in text
    assert "  lenet-300-100                        266 k weights,  266 k multiply-adds" in text
    assert "11.2 M weights,  555 M multiply-adds  (stem: cifar)" in text
    monkeypatch.setattr(models, "families", lambda: {"tiny": r"tiny-\d+"})
    assert "names that match tiny-\\d+" in "\n".join(listing.networks())


def test_a_method_is_described_by_its_whole_first_paragraph(monkeypatch):
    lines = list(listing.method_names())
    assert max(len(line) for text in lines for line in text.splitlines()) <= listing.WIDTH
    monkeypatch.setattr(methods.get("dense"), "__doc__", "All weights\nare trained.\n\nAnd more.")
    monkeypatch.setattr(methods, "names", lambda: ["dense"])
    assert next(listing.method_names()) == "dense                 All weights are trained."


def test_choices_are_counted_by_experiment(tmp_path):
    path = tmp_path / "selected.yaml"
    path.write_text("""
curve:
  ours: [{densities: [0.5], trials: 4, set: {}}, {densities: [0.1], trials: 2, set: {}}]
  theirs: [{densities: [0.5], trials: 3, set: {}}]
evaluate: {curve: {aa: x, bb: y}, plain: {cc: z}}
""")
    assert listing.chosen(path).rows == [("curve", 2, 3, 9, 2), ("plain", 0, 0, 0, 1)]
