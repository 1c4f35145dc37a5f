"""The table of experiments with missing runs, their hours and the claims that wait for them."""

from made_up import GOOD, around

from crbg.report import claims, missing
from crbg.report.records_table import tidy

BEST = {"type": "best", "experiment": "main", "arm": "ours", "density": 0.5, "others": ["theirs", "quiet"]}


def rows(project):
    """Return the lines of the table as lists of cells; empty if no run is missing."""
    declared = claims.parse_claims({"claims": [GOOD | {"rule": BEST, "declared": "before"}]})
    found = claims.judge(declared, tidy(project.config), project.config)
    lines = [line for line in missing.missing_table(found, project.config).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_runs_without_a_record_are_listed_with_their_hours(project):
    head, _, *body = rows(project)
    line, total = dict(zip(head, body[0], strict=True)), dict(zip(head, body[-1], strict=True))
    cells = project.config.experiment("main").cells
    assert (line["experiment"], line["about"]) == ("main", project.config.experiment("main").about)
    assert line["runs"] == line["missing"] == str(len({(c.spec.digest(), c.seed) for c in cells}))
    assert float(line["CPU hours"] or 0) >= 0
    assert line["waiting"] == total["waiting"] == "1", "the claim has no verdict yet"
    project.put("ours", 0.5, around(90.0))
    fewer = dict(zip(head, rows(project)[2], strict=True))
    assert int(fewer["missing"]) == int(line["missing"]) - 4
    assert fewer["runs"] == line["runs"]
