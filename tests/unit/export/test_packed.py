import pytest
from exports import noise, small_ticket
from networks import random_mask, tiny

from crbg import Ticket
from crbg.errors import CrbgError
from crbg.export import export_ticket, packed
from crbg.models.initial_weights import stored_weights, tensor_digest


@pytest.fixture
def ticket():
    return small_ticket(0.1)


EXAMPLES = noise()


def test_a_packed_ticket_is_the_same_ticket(ticket, tmp_path):
    report = export_ticket(ticket, "packed", tmp_path / "net", examples=EXAMPLES, bench=True)
    assert Ticket.load(tmp_path / "net/ticket.safetensors") == ticket
    assert report.details == {"format": 3, "contexts": "seed"}
    assert report.check["equal_predictions"] == 30
    assert report.check["largest_difference"] == 0
    assert report.sizes["written"] == (tmp_path / "net/ticket.safetensors").stat().st_size
    assert {"packed_read_seconds", "packed_write_seconds", "bits_read_seconds"} < set(report.bench)


def test_a_ticket_that_cannot_be_packed_is_stored_as_bits(ticket, tmp_path):
    half = Ticket(
        random_mask(ticket.model(), 0.5), *(getattr(ticket, f) for f in ("seed", "law", "scale")), "", (), 0, ""
    )
    assert export_ticket(half, "packed", tmp_path / "net").details == {"format": 1, "contexts": "bits"}


def test_a_ticket_of_a_model_of_your_own_is_packed_without_its_weights(tmp_path):
    model = tiny(outputs=30)
    ticket = Ticket(random_mask(model, 0.02), 0, "given", 1.0, "", (), 0, tensor_digest(stored_weights(model)))
    assert export_ticket(ticket, "packed", tmp_path / "net").details == {"format": 3, "contexts": "none"}
    with pytest.raises(CrbgError, match="outside the registry"):
        export_ticket(ticket, "packed", tmp_path / "checked", examples=EXAMPLES)
    assert not (tmp_path / "checked").exists()


def test_another_mask_in_the_file_is_an_error(ticket, tmp_path, monkeypatch):
    other = Ticket(random_mask(ticket.model(), 0.2), 7, "uniform", 1.0, "lenet-20-10", (1, 6, 6), 3, ticket.initial)
    monkeypatch.setattr(packed.Ticket, "load", lambda path: other)
    with pytest.raises(CrbgError, match="another mask"):
        export_ticket(ticket, "packed", tmp_path / "net")
    assert not list(tmp_path.iterdir())
