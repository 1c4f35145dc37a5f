import matplotlib.pyplot as plt
import pytest

from crbg.report import figures, latency

TABLE = """
| network, density     |   batch |   C program |   onnxruntime |   dense C |   torch |   x onnxruntime |
|:---------------------|--------:|------------:|--------------:|----------:|--------:|----------------:|
| LeNet-300-100, 0.01  |       1 |         1.5 |          18.0 |      12.0 |    32.5 |            12.0 |
| LeNet-300-100, 0.5   |       1 |        30.0 |          20.0 |      14.0 |    34.9 |             0.7 |
| LeNet-300-100, 0.01  |      32 |         4.0 |          88.0 |     134.0 |   210.0 |            22.0 |
| LeNet-300-100, 0.5   |      32 |        96.0 |          88.0 |     134.0 |   210.0 |             0.9 |
| Conv-2, 0.1          |       1 |       159.8 |          53.8 |           |   209.9 |             0.3 |
"""


@pytest.fixture
def times(tmp_path):
    (tmp_path / "ship.md").write_text(TABLE)
    return latency.read(tmp_path / "ship.md")


def test_only_complete_rows_of_lenet_are_read(times):
    assert times[["density", "batch"]].values.tolist() == [[0.01, 1], [0.5, 1], [0.01, 32], [0.5, 32]]
    assert times.iloc[1][list(latency.WAYS)].tolist() == [30.0, 20.0, 14.0, 34.9]
    assert latency.read().columns.tolist() == times.columns.tolist()


def test_without_the_benchmark_the_table_is_empty(tmp_path):
    assert latency.read(tmp_path / "missing.md").empty


def test_the_figure_shows_microseconds_per_image(times, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    figures.latency(times, tmp_path / "latency")
    panels = plt.gcf().axes
    assert [a.get_title() for a in panels] == ["batch 1", "batch 32"]
    assert list(panels[1].lines[0].get_ydata()) == [4 / 32, 96 / 32]
    assert panels[0].lines[1].get_ydata()[0] == 19.0  # the mean of the dense network's times
    assert (tmp_path / "latency.pdf").exists()
    monkeypatch.undo()
    plt.close("all")
