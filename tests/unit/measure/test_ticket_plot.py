import io

import pytest
import torch
from torch import nn

from crbg import find_ticket


@pytest.mark.parametrize(("method", "lines"), [("crbg", 2), ("edge_popup", 1), ("random", 0)])
def test_the_figure_shows_densities_and_the_course_of_the_search(method, lines):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(32, 4)
    found = find_ticket(model, (x, (x[:, 0] > 0).long()), 0.5, method, epochs=3, batch=16)
    figure = found.plot()
    left, right, *twin = figure.axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(
        [float(t.float().mean()) for t in found.mask.values()]
    )
    assert [label.get_text() for label in left.get_yticklabels()] == ["0.weight", "2.weight"]
    drawn = [*right.lines, *(line for axes in twin for line in axes.lines)]
    assert len(drawn) == lines
    if drawn:
        assert list(drawn[0].get_ydata()) == [row["loss"] for row in found.history]
    else:
        assert "no history" in right.texts[0].get_text()
    figure.savefig(file := io.BytesIO(), format="png")
    assert file.tell() > 1000
