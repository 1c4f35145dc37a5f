"""Classes of Hugging Face with random weights, on the batches that their users have."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(5, 60, (2, 4, 9), generator=torch.Generator().manual_seed(0))


def test_bert_classifier(search_as_a_client):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config).eval()  # as `from_pretrained` returns it
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[:, 0] > 30).long()} for ids in TOKENS
    ]
    found = search_as_a_client(model, batches)
    assert "classifier.weight" in found.mask
    assert "bert.encoder.layer.1.attention.self.query.weight" in found.mask
    assert found.report.ticket.accuracy is not None


@pytest.mark.parametrize("tied", ["left out", "share"])
def test_gpt2_language_model(tied, search_as_a_client):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_positions=9, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    chosen = {"tied": "share"} if tied == "share" else {"where": r"transformer\.h\..*"}
    found = search_as_a_client(model, [{"input_ids": ids, "labels": ids} for ids in TOKENS], **chosen)
    assert "transformer.h.0.attn.c_attn.weight" in found.mask
    assert ("lm_head.weight" in found.mask) == (tied == "share")
