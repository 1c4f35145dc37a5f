"""Cora and the generated graph: nodes, edges, order, normalisation, naive predictors, and errors for damaged files."""

import dataclasses
import hashlib
import os
import pickle
import urllib.request
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from crbg.data import graph
from crbg.data.datasets import DATA, DataInfo
from crbg.data.files import Source
from crbg.data.loader import BatchLoader
from crbg.data.sources import load
from crbg.errors import CrbgError

# --- the generated graph ---


@pytest.fixture(scope="module")
def toy():
    return load("toy_graph")


def edges_of(adjacency):
    """Return the undirected edges of a normalised adjacency without self loops, (2, E)."""
    edges = adjacency.to_dense().nonzero().T
    return edges[:, edges[0] < edges[1]]


def test_the_generated_graph_is_the_same_everywhere(toy):
    assert toy.digest == load("toy_graph").digest
    assert toy.digest == "c3ffd996e4e9ee50d18188e730312c13cde9d7ee0dd18c797cd7bf957d8c4cba"
    nodes = torch.cat([part.x for part in (toy.train, toy.validation, toy.test)])
    assert nodes.tolist() == list(range(400))
    assert [part.y.bincount().tolist() for part in (toy.train, toy.validation, toy.test)] == [
        [20] * 4,
        [30] * 4,
        [50] * 4,
    ]
    assert toy.in_shape == DATA["toy_graph"].shape == (32,)
    assert toy.metric == DATA["toy_graph"].metric


def test_the_digest_covers_words_edges_labels_and_parts(toy):
    entry, made = DATA["toy_graph"], graph._toy_graph(DATA["toy_graph"])
    other = made.labels.copy()
    other[3] = 0
    fewer = dataclasses.replace(entry, train=79, validation=121)
    graphs = [
        (entry, made._replace(words=made.words[:, 1:])),
        (entry, made._replace(edges=made.edges[:, 1:])),
        (entry, made._replace(labels=other)),
        (fewer, made),
    ]
    with pytest.MonkeyPatch.context() as patch:
        digests = {toy.digest}
        for info, changed in graphs:
            patch.setattr(graph, "_toy_graph", lambda _, changed=changed: changed)
            digests.add(graph.load(info, Path()).digest)
        mixed = made._replace(words=made.words[:, ::-1], edges=made.edges[:, ::-1])
        patch.setattr(graph, "_toy_graph", lambda _: mixed)
        assert graph.load(entry, Path()).digest == toy.digest, "the order in which pairs are listed is irrelevant"
    assert len(digests) == 5


def test_features_sum_to_one_and_the_adjacency_is_normalised(toy):
    features, adjacency = (t.to_dense().double() for t in toy.train.common)
    some = features.sum(1) > 0
    assert torch.allclose(features.sum(1)[some], torch.ones(int(some.sum())).double())
    assert all(row[row > 0].unique().numel() == 1 for row in features[some])
    assert all(t.layout == torch.sparse_csr and t.dtype == torch.float32 for t in toy.train.common)
    a = (adjacency > 0).double()
    assert torch.equal(a, a.T)
    assert torch.equal(a.diagonal(), torch.ones(400).double())
    root = a.sum(1).rsqrt().diag()
    assert torch.allclose(adjacency, root @ a @ root, atol=1e-7)


def test_batches_share_the_graph_and_select_nodes(toy):
    part = toy.validation
    (features, adjacency, nodes), labels = part.batch(torch.tensor([5, 2]))
    assert features is part.common[0]
    assert adjacency is part.common[1]
    assert nodes.tolist() == [85, 82]
    assert labels.tolist() == [85 % 4, 82 % 4]
    assert len(list(part.batches())) == 1
    assert [len(y) for _, y in part.batches(50)] == [50, 50, 20]
    everything = part.take(part.y == 1).join(toy.test).to(torch.device("cpu"))
    assert everything.x.tolist() == [*range(81, 200, 4), *range(200, 400)]
    assert torch.equal(everything.common[1].values(), adjacency.values())
    (_, _, nodes), _ = next(BatchLoader(toy.train, 80, 0).epoch(0))
    assert sorted(nodes.tolist()) == list(range(80))


def test_the_graph_helps_beyond_the_features(toy):
    """A regression on the features of all nodes within two steps is clearly better than one on the own features."""
    from sklearn.linear_model import LogisticRegression

    features, adjacency = (t.to_dense() for t in toy.train.common)

    def accuracy(x):
        model = LogisticRegression(C=graph.INVERSE_PENALTY, max_iter=1000).fit(x[toy.train.x], toy.train.y)
        return 100 * model.score(x[toy.validation.x], toy.validation.y)

    alone = accuracy(features)
    assert alone == pytest.approx(toy.naive["logistic_regression"](toy.validation))
    assert 40 < alone < 70
    assert accuracy(adjacency @ adjacency @ features) > alone + 10


# --- naive predictors ---


def small_graph(labels, edges, words, monkeypatch):
    """Return a data set with two training nodes and one validation node; all other nodes are test nodes."""
    made = graph.Graph(np.array(words).T, np.array(edges).T, np.array(labels))
    monkeypatch.setattr(graph, "_toy_graph", lambda entry: made)
    n = len(labels)
    return graph.load(DataInfo("toy_graph", (2,), 2, 2, 1, n - 3, kind="graph"), Path())


def test_label_propagation_follows_edges_and_the_regression_follows_words(monkeypatch):
    words = [(0, 0), (1, 1), (2, 1), (3, 1), (4, 0), (5, 0)]
    data = small_graph([0, 1, 0, 0, 1, 1], [(0, 2), (2, 3), (1, 4), (4, 5)], words, monkeypatch)
    found = {
        name: [predict(part) for part in (data.train, data.validation, data.test)]
        for name, predict in data.naive.items()
    }
    # Nodes 2 and 3 hang on node 0 and contain the word of node 1; nodes 4 and 5 hang on node 1.
    assert found == {"label_propagation": [100, 100, 100], "logistic_regression": [100, 0, 0]}


def test_naive_predictors_do_not_see_held_out_labels(toy, monkeypatch):
    made = graph._toy_graph(DATA["toy_graph"])
    shifted = made._replace(labels=np.where(np.arange(400) < 80, made.labels, (made.labels + 1) % 4))
    monkeypatch.setattr(graph, "_toy_graph", lambda _: shifted)
    other = graph.load(DATA["toy_graph"], Path())
    for name, predict in toy.naive.items():
        assert predict(toy.train) == other.naive[name](other.train)
        assert predict(toy.validation) > 55
        assert other.naive[name](other.validation) < 30, "the predictions are the same, and the labels others"


# --- files ---


def array(values, kind):
    """Return the opcodes of an array as Python 2 pickled it; `kind` is i4, i8 or f4."""
    values = np.asarray(values, kind)
    sizes = b"".join(b"K" + bytes([n]) for n in values.shape)
    shape = b"(" + sizes + b"t"
    dtype = (
        b"cnumpy\ndtype\nU\x02"
        + kind.encode()
        + b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    data = values.tobytes()
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return start + b"(K\x01" + shape + dtype + b"\x89T" + len(data).to_bytes(4, "little") + data + b"tb"


def matrix(rows, words):
    """Return the opcodes of a scipy CSR matrix; `rows` lists the words of each row."""
    starts = np.cumsum([0, *map(len, rows)])
    flat = [word for row in rows for word in row]
    fields = {
        "_shape": b"K" + bytes([len(rows)]) + b"K" + bytes([words]) + b"\x86",
        "indptr": array(starts, "i4"),
        "indices": array(flat, "i4"),
        "data": array([1] * len(flat), "f4"),
    }
    state = b"".join(b"U" + bytes([len(k)]) + k.encode() + v for k, v in fields.items())
    return b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + state + b"ub"


def one_hot(labels):
    return array(np.eye(3)[list(labels)], "i4")


TINY = DataInfo("cora", (4,), 3, 2, 1, 3, kind="graph", examples="nodes")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Write the files of a graph with three known nodes and three test nodes; return a function that loads it."""
    neighbours = {0: [1, 1, 5], 1: [0, 0], 5: [0, 3, 5], 3: [5], 4: [], 2: []}
    contents = {
        "allx": matrix([[0], [1, 3], [2]], 4),
        "ally": one_hot([2, 0, 1]),
        "tx": matrix([[3], [0, 1], [2, 3]], 4),
        "ty": one_hot([1, 2, 0]),
        "graph": pickle.dumps(defaultdict(list, neighbours), 2)[2:-1],
    }
    contents = {name: b"\x80\x02" + opcodes + b"." for name, opcodes in contents.items()}
    contents["test.index"] = b"5\n3\n4\n"
    folder = tmp_path / "cora"
    folder.mkdir()

    def write(name, content):
        (folder / f"ind.cora.{name}").write_bytes(content)
        source = Source(f"https://example.org/ind.cora.{name}", hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(graph.FILES, f"ind.cora.{name}", source)

    for name, content in contents.items():
        write(name, content)
    return write, lambda: graph.load(TINY, tmp_path, download=False)


def test_rows_of_the_test_files_belong_to_the_nodes_of_the_index(tiny):
    data = tiny[1]()
    words = [np.flatnonzero(row).tolist() for row in data.train.common[0].to_dense().numpy()]
    assert words == [[0], [1, 3], [2], [0, 1], [2, 3], [3]]
    assert (data.train.y.tolist(), data.validation.y.tolist(), data.test.y.tolist()) == ([2, 0], [1], [2, 0, 1])
    assert data.test.x.tolist() == [3, 4, 5]
    assert edges_of(data.train.common[1]).T.tolist() == [[0, 1], [0, 5], [3, 5]]


class Forbidden:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Forbidden(), 2), r"ind\.cora\.tx cannot be read: .*posix\.system, which is not allowed"),
        (pickle.dumps(defaultdict(set), 2), r"__builtin__\.set, which is not allowed"),
        (b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)\x81}(", r"ind\.cora\.tx cannot be read"),
        (b"", r"ind\.cora\.tx cannot be read"),
    ],
)
def test_a_pickle_of_anything_else_is_refused(tiny, content, message):
    write, load_tiny = tiny
    write("tx", content)
    with pytest.raises(CrbgError, match=message):
        load_tiny()


def test_missing_and_damaged_files_are_named(tiny, tmp_path, monkeypatch):
    _, load_tiny = tiny
    path = tmp_path / "cora/ind.cora.graph"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CrbgError, match=r"ind\.cora\.graph has the SHA-256 .* was expected; delete it"):
        load_tiny()
    path.unlink()
    with pytest.raises(CrbgError, match=r"ind\.cora\.graph is missing; `crbg data cora` downloads it"):
        load_tiny()

    def offline(address, timeout):
        raise OSError(f"no route to {address}")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(CrbgError, match=r"could not be downloaded .*no route to https://example\.org/ind\.cora\.graph"):
        graph.load(TINY, tmp_path)


def test_the_parts_are_fixed():
    with pytest.raises(CrbgError, match="the parts of cora are fixed"):
        load("cora", split=1)


# --- Cora ---


@pytest.fixture(scope="module")
def cora():
    folder = Path(os.environ.get("CRBG_DATA") or "none").expanduser()
    if not all((folder / "cora" / file).exists() for file in graph.FILES):
        pytest.skip("CRBG_DATA holds no files of Cora")
    return load("cora", str(folder), download=False)


@pytest.mark.data
def test_cora_has_the_published_statistics(cora):
    parts = (cora.train, cora.validation, cora.test)
    features, adjacency = cora.train.common
    assert features.shape == (2708, 1433)
    assert features.values().numel() == 49_216
    edges = edges_of(adjacency)
    assert edges.shape[1] == 5278
    assert [len(part) for part in parts] == [140, 500, 1000]
    assert cora.train.y.bincount().tolist() == [20] * 7
    assert [int(part.x[0]) for part in parts] == [0, 140, 1708]
    assert cora.test.y.bincount().tolist() == [130, 91, 144, 319, 149, 103, 64]
    # Neighbours share words and classes. With the test rows in the order of the file, they would not.
    labels = torch.full((2708,), -1)
    for part in parts:
        labels[part.x] = part.y
    inside = edges[:, (labels[edges] >= 0).all(0)]
    assert 0.8 < (labels[inside[0]] == labels[inside[1]]).double().mean() < 0.85
    x = features.to_dense()
    late = edges[:, (edges >= 1708).all(0)]
    overlap = (x[late[0]] * x[late[1]]).sum(1).mean()
    assert overlap > 3 * (x[late[0]] * x[late[1].flip(0)]).sum(1).mean()
    assert cora.digest == "1dc5d060e4ce90f6958c8b8a04141ce64845270279aa3ff5d041b70437b5cfcb"


@pytest.mark.data
def test_naive_predictors_of_cora_are_as_good_as_published(cora):
    found = {name: predict(cora.validation) for name, predict in cora.naive.items()}
    assert found["label_propagation"] == pytest.approx(71.6, abs=0.5)
    assert found["logistic_regression"] == pytest.approx(58.6, abs=1)
