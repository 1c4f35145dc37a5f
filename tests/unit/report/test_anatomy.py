"""The report page shows the anatomy of tickets (gates, layers, images), here from small real runs."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from crbg.experiments import config as configs
from crbg.experiments import record_store
from crbg.experiments.spec import Spec
from crbg.report import anatomy
from crbg.report.build import build
from crbg.runs.execute import execute
from crbg.runs.setup import Workspace
from crbg.ticket import Ticket

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("anatomy")]


@pytest.fixture(scope="module")
def project(tmp_path_factory, digits):
    """Run one seed of a small experiment with four densities on `digits`, and return the configuration."""
    here = tmp_path_factory.mktemp("anatomy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        base = {"data": "digits", "model": "lenet-24-16", "method": "crbg", "epochs": 3, "batch": 64, "scale": 0.3}
        arms = {
            "crbg": {"grid": {"density": [0.5, 0.3, 0.2, 0.1]}},
            "random_mask": {"method": "random", "set": {"epochs": 0, "density": 0.5}},
        }
        Path("config.yaml").write_text(
            yaml.safe_dump({"experiments": {"c": {"role": "main", "seeds": [3, 4], "base": base, "arms": arms}}})
        )
        Path("paper").mkdir()
        Path("paper/claims.yaml").write_text("{claims: [], contrasts: []}")
        config = configs.read(["config.yaml"])
        bench = Workspace(Path("results"), loaded={"digits": digits})
        for cell in config.experiment("c").cells:
            if cell.seed == 3:
                execute(cell.spec, cell.seed, bench)
        yield config


def test_the_densest_the_middle_and_the_sparsest_are_shown(project):
    assert [(c.arm, c.spec.density, c.seed) for c in anatomy.shown(project)] == [
        ("crbg", d, 3) for d in (0.5, 0.2, 0.1)
    ]


def test_the_first_layer_is_that_of_the_ticket(project):
    found = anatomy.tickets(project)
    assert len(found) == 3
    for a in found:
        ticket = Ticket.load(record_store.ticket_path(project, a.cell.spec, a.cell.seed))
        naive = np.zeros((28, 28), int)
        for unit in ticket.mask["fc1.weight"]:
            naive += unit.reshape(28, 28).int().numpy()
        assert (a.first == naive).all()
        assert a.cell.spec.layer_sizes() == [(784, 24), (24, 16), (16, 10)]


def test_the_first_layer_of_a_run_on_resized_images_has_their_shape(tmp_path):
    spec = Spec("digits", "lenet-3", "crbg", 0.5, size=16)
    assert spec.layer_sizes() == [(256, 3), (3, 10)]
    save_file({"mask": np.packbits(np.ones(3 * 256 + 30, bool))}, tmp_path / "ticket.safetensors")
    assert (anatomy._first_layer(tmp_path / "ticket.safetensors", spec) == np.full((16, 16), 3)).all()


def test_committed_tickets_stand_in_for_fresh_ones(project):
    cell = anatomy.shown(project)[0]
    fresh = record_store.ticket_path(project, cell.spec, cell.seed)
    committed = record_store.recorded_ticket(project, cell.spec, cell.seed)
    committed.parent.mkdir(parents=True)
    committed.write_bytes(fresh.read_bytes())
    fresh.rename(fresh.with_suffix(".away"))
    try:
        assert record_store.ticket_path(project, cell.spec, cell.seed) == committed
        assert record_store.ticket_path(configs.read(["config.yaml"], ["reuse=never"]), cell.spec, cell.seed) is None
    finally:
        fresh.with_suffix(".away").rename(fresh)
        committed.unlink()


def test_the_page_shows_every_ticket(project):
    build(project)
    page = Path("paper/report.html").read_text()
    for a in anatomy.tickets(project):
        name = f"ticket_{a.cell.spec.slug()}_seed3"
        assert Path(f"paper/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{a.cell.spec.slug()} seed 3, density" in page
    assert page.count('<figcaption id="fig') - page.count("Key figure") == 4  # one of the experiment
    assert page.count("The anatomy of a ticket") == 3
