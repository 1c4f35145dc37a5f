"""Log lines about finished runs."""

from crbg.experiments import config as configs
from crbg.experiments.record import Measurement, Reading, Record
from crbg.experiments.spec import Spec
from crbg.runs import lines


def test_a_run_says_how_it_came_out():
    cell = configs.Cell("e", "a", Spec("digits", "lenet-16", "edge_popup", 0.5), 3)

    def record(**fields):
        known = {"spec": {}, "digests": None} | dict.fromkeys(("version", "seed", "steps", "train_images"), 0)
        return Record(schema=1, digest="", **{"status": "ok"} | known | fields)

    reading = {"readings": {"binary": Reading(10.0)}, "constant": 10.0}
    says = [
        lines.line(cell, record(density=0.5, validation=Measurement(**reading | more)))
        for more in ({}, {"constant": 9.9}, {"constant": 9.9, "density_missed": True})
    ]
    common = f"{lines.title(cell)}: validation 10.00 % at density 0.5"
    poor = ", no better than always predicting the most frequent class"
    cut = ", cut to this density because the search did not reach it"
    assert says == [common + poor, common, common + cut]
    old = record(density=0.5, validation=Measurement(reading["readings"]))
    assert lines.line(cell, old) == common
    assert lines.line(cell, record(status="collapse")) == f"{lines.title(cell)}: collapse"
