import dataclasses
from collections import UserDict

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from crbg import find_ticket
from crbg.errors import CrbgError
from crbg.training.columns import check_finite
from crbg.training.forward import UserBatch, outputs_and_labels
from crbg.training.user_data import Reader, keywords, keywords_with_own_loss

CPU = torch.device("cpu")
X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3


def reader(**changed):
    return Reader(**{"batch": 4, "seed": 0, "device": CPU, "dtype": torch.float32} | changed)


class Items(Dataset):
    """A map-style data set made from a function of the index."""

    def __init__(self, make, count=6):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.make(i)


class Duck:
    """A data set of another library, which is iterable over examples but no subclass of torch's."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return X[i], Y[i]

    def __iter__(self):
        return iter([self[i] for i in range(6)])


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


PAIRS = {
    "tensors": (X, Y),
    "list of tensors": [X, Y],
    "float64": (X.double(), Y),
    "arrays": (X.numpy(), Y.numpy().astype(np.int32)),
    "big-endian arrays": (X.numpy().astype(">f8"), Y.numpy().astype(np.uint16)),
    "data frames": (pandas.DataFrame(X.double().numpy()), pandas.Series(Y.numpy())),
    "nullable columns": (
        pandas.DataFrame(X.double().numpy()).astype("Float64"),
        pandas.Series(Y.numpy(), dtype="Int64"),
    ),
    "lists": (X.tolist(), Y.tolist()),
    "data set of tensors": TensorDataset(X, Y),
    "data set": Items(lambda i: (X[i], Y[i])),
    "data set of another library": Duck(),
    "loader": DataLoader(TensorDataset(X, Y), 4),
    "list of batches": [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "two batches in a tuple": ((X[:4], Y[:4]), (X[4:], Y[4:])),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_of_any_kind_become_batches_of_tensors(kind):
    batches, held = reader().training(PAIRS[kind])
    assert held is None
    assert len(batches) == 2
    seen = [(x, y) for x, y in batches.epoch(0)]
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in seen)
    rows = sorted((*x, y) for xs, ys in seen for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
    assert rows == [(*x, y) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]


def test_labels_may_be_nested():
    (x, y), *_ = reader().ordered((X, (Y, Y + 1))).epoch(0)
    assert isinstance(x, torch.Tensor)
    assert torch.equal(y[1], y[0] + 1)


def test_arrays_have_the_type_of_the_model():
    halves = dataclasses.replace(reader(), dtype=torch.bfloat16)
    (x, _), *_ = halves.ordered((X.numpy(), Y.numpy())).epoch(0)
    assert x.dtype == torch.bfloat16


def test_classes_may_be_booleans():
    (_, y), *_ = reader().ordered((X, Y > 2)).epoch(0)
    assert y.dtype == torch.int64


def test_inputs_may_be_nested():
    for inputs in ((X, X + 1), {"a": X, "b": X + 1}):
        (x, y), *_ = reader().ordered((inputs, Y)).epoch(0)
        assert type(x) is type(inputs)
        assert len(y) == 3
    (x, y), *_ = reader().ordered(Items(lambda i: ((X[i], X[i]), Y[i]))).epoch(0)
    assert [t.shape for t in x] == [(3, 2), (3, 2)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((X, Y[:5]), "6 inputs and 5 labels"),
        ((X[:0], Y[:0]), "empty"),
        (Items(None, 0), "empty"),
        (X, "a pair"),
        ((X, X, Y), "a tuple of 3"),
        ({"x": X, "labels": Y[:5]}, "different lengths: 5, 6"),
        (([["a", "b"]], [1]), "not numbers"),
        (([[1.0], [1.0, 2.0]], [1, 2]), "different lengths; pad"),
        (pandas.DataFrame({"a": ["x"]}), "without labels"),
        (5, "the data are int"),
        (DataLoader(TensorDataset(X, Y), 64, drop_last=True), "no batch"),
        (Stream(), "pass `steps`"),
        (DataLoader(Stream(), 2), "pass `steps`"),
        (iter([(X, Y)]), "only once"),
        (pandas.DataFrame({"a": [1.0], "label": [0], "b": [2.0]}), r"drop\(columns=\['label'\]\), df\['label'\]\)"),
        ((pandas.DataFrame({"a": [1.0], "b": ["x"]}), Y[:1]), r"no numbers: 'b'; .*pd\.factorize\(df\['b'\]\)\[0\]"),
        ((X, pandas.Series(list("abcabc"))), r"pd\.factorize\(values\)"),
        (list(zip(X, Y, strict=True)), "a list is a list of batches, .* DataLoader"),
        (list(zip(X, Y.tolist(), strict=True)), "a list is a list of batches"),
        (([torch.rand(1 + i % 2) for i in range(6)], Y), r"list of 6 arrays; .*`nn\.utils\.rnn\.pad_sequence`"),
        ((X * float("inf"), Y), r"inputs of example \d contain"),
    ],
)
def test_other_data_are_refused(data, words):
    with pytest.raises(CrbgError, match=words):
        reader().training(data)


def test_a_stream_is_read_in_steps():
    for stream in (Stream(), DataLoader(Stream(), 4)):
        batches, _ = reader(steps=3).training(stream)
        assert [len(y) for _, y in batches.epoch(0)] == [4, 2, 4]


def test_validation_reads_each_example_once_whatever_the_steps():
    loader = DataLoader(TensorDataset(X, Y), 2)
    for data, steps, sizes in ((loader, 7, [2, 2, 2]), (Stream(), 7, [4, 2]), (Stream(), 1, [4])):
        batches = reader(steps=steps).ordered(data)
        for _ in range(2):
            assert [len(y) for _, y in batches.epoch(0)] == sizes


def test_a_part_is_held_out_of_pairs_and_data_sets():
    x = torch.arange(100.0)
    for data in ((x, x), Items(lambda i: (x[i], x[i]), 100)):
        rest, held = reader().training(data, 0.1)
        seen = [torch.cat([a for a, _ in part.epoch(0)]) for part in (rest, held)]
        assert len(seen[1]) == 10
        assert torch.cat(seen).sort().values.equal(x)
        assert seen[1].equal(seen[1].sort().values)
        assert not seen[1].equal(x[:10]), "a random part"
        assert reader().training(data, 0.09)[1] is None, "nine examples are too few"
    assert reader().training(DataLoader(TensorDataset(x, x), 10), 0.5)[1] is None


def test_a_part_that_is_held_out_shares_the_data_that_were_moved():
    x = torch.arange(100.0)
    rest, held = reader(device=torch.device("meta")).training((x, x), 0.1)
    assert rest.data is held.data
    assert rest.data[0].is_meta


def test_a_batch_that_is_no_pair_needs_forward():
    batches, _ = reader().training(Items(lambda i: (X[i], Y[i], i)))
    with pytest.raises(CrbgError, match=r"a batch must be a pair.*pass `forward`.*model\(batch\[0\]\), batch\[1\]"):
        next(iter(batches.epoch(0)))
    with pytest.raises(CrbgError, match=r"and 92 more\); pass `forward`") as raised:
        reader().pack([X] * 100)
    assert len(str(raised.value)) < 500
    batches, _ = reader(forward=lambda m, b: (b[0], b[2])).training((X, X, Y))
    out, labels = outputs_and_labels(nn.Identity(), *next(iter(batches.epoch(0))))
    assert out.shape == (3, 2)
    assert labels.dtype == torch.int64


class Out(UserDict):
    logits = property(lambda self: self["logits"])
    loss = property(lambda self: self.get("loss"))


class Labelled(nn.Module):
    """A model that computes its own loss if it is given labels, as those of transformers."""

    def forward(self, x, labels=None):
        return Out(logits=x, **({} if labels is None else {"loss": x.mean()}))


class Plain(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_dict_with_labels_is_passed_as_keywords(kind):
    batches, _ = reader().training([kind(x=X, labels=Y)])
    x, y = next(iter(batches.epoch(0)))
    assert isinstance(x, UserBatch)
    out, labels = outputs_and_labels(Plain(), x, y)
    assert out.equal(X)
    assert labels.equal(Y)


def test_a_model_may_compute_its_own_loss_unless_it_is_a_classifier():
    out, labels = keywords_with_own_loss(Labelled(), {"x": X, "labels": Y})
    assert out.logits is X
    assert labels is Y
    tokens = X.reshape(1, 6, 2)
    assert keywords_with_own_loss(Labelled(), {"x": tokens, "labels": Y[None]}) == X.mean()
    assert keywords_with_own_loss(Labelled(), {"x": X, "labels": X}) == X.mean(), "a regression"
    assert keywords(Labelled(), {"x": tokens, "labels": Y[None]})[0].loss is None


def test_a_mask_of_attention_may_contain_infinity():
    (_, mask), _ = next(iter(reader().ordered(((X, X.log()), Y)).epoch(0)))
    assert mask.isinf().any()


def test_finite_inputs_whose_sum_overflows_are_no_error():
    x = torch.full((8, 4), 3e38)
    assert x.sum().isinf()
    check_finite("inputs", x)
    x[5, 1] = float("inf")
    with pytest.raises(CrbgError, match=r"inputs of example 5 contain infinity \(1 of 8"):
        check_finite("inputs", x)


def test_a_nan_in_any_example_is_found_before_the_search():
    """A NaN among the held-out examples would not stop the search."""
    x, y = torch.randn(100, 4), torch.randint(0, 3, (100,))
    x[77, 2] = float("nan")
    with pytest.raises(CrbgError, match=r"inputs of example 77 contain NaN \(1 of 100"):
        find_ticket(torch.nn.Linear(4, 3), (x, y), 0.5, epochs=1)
    with pytest.raises(CrbgError, match="labels of example 0 contain NaN"):
        find_ticket(torch.nn.Linear(4, 1), (x.nan_to_num(), x[:, 2:3] * float("nan")), 0.5, epochs=1)
