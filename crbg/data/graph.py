"""Graphs: the citation network Cora, and a small generated graph. Examples are nodes, and labels are their classes.

The whole graph is visible in training, with the features of all nodes, as usual in the field (the transductive
setting). Only the labels of the validation and test nodes are held out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crbg import rng
from crbg.data.datasets import DataInfo
from crbg.data.files import Source, fetch
from crbg.data.parts import Data, Part, TensorPart
from crbg.errors import CrbgError, reason

ADDRESS = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"
DIGESTS = {
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
}
FILES = {file: Source(ADDRESS + file, digest) for file, digest in DIGESTS.items()}

# The names in the files are those of Python 2. A matrix becomes a plain record, so that scipy executes no code.
ALLOWED: Mapping[tuple[str, str], Any] = {
    ("scipy.sparse.csr", "csr_matrix"): types.SimpleNamespace,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # its module depends on numpy's version
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,
}

PROPAGATION = 50  # steps of label propagation
INVERSE_PENALTY = 100.0  # C of the logistic regression; the row-normalised features are small

# The generated graph: probabilities of an edge and of a word, within a class and otherwise.
EDGE_INSIDE, EDGE_OUTSIDE = 0.03, 0.006
WORD_INSIDE, WORD_OUTSIDE = 0.4, 0.15


class Graph(NamedTuple):
    """A graph before its features and its adjacency are normalised.

    Attributes:
        words: Pairs (node, word) of the words that a node contains, without repetition, int64 (2, W).
        edges: Undirected edges (u, v) with u < v, without repetition, int64 (2, E).
        labels: Class of each node, int64 (N,).
    """

    words: np.ndarray
    edges: np.ndarray
    labels: np.ndarray


def load(entry: DataInfo, root: Path, download: bool = True) -> Data:
    """Load Cora with the standard split of Planetoid, or generate `toy_graph`.

    The first nodes form the training part, those that follow the validation part, and the last ones the test part. The
    inputs of a batch are (features, adjacency, nodes):

    - features: Word counts of all nodes divided by their sum per node, float32 (N, F), sparse CSR.
    - adjacency: D^-1/2 (A + I) D^-1/2 with the adjacency A and the degrees D of A + I, float32 (N, N), sparse CSR.
    - nodes: The nodes to classify, int64 (n,).

    `Data.digest` is the SHA-256 of `Graph.words` and `Graph.edges`, both sorted by their first and then their second
    row, of `Graph.labels`, and of the nodes of the three parts: for each array, its shape as Python prints it and its
    values as little-endian int64.

    The naive predictors are `label_propagation`, which uses the graph and no features, and `logistic_regression`, which
    uses the features and no graph. Both use the labels of the training part only.

    Args:
        entry: Description of the data set.
        root: The data root; the files of Cora are in its subfolder `cora`.
        download: Whether missing files may be downloaded.

    Raises:
        CrbgError: a file is missing and cannot be downloaded, or is damaged.
    """
    graph = _toy_graph(entry) if entry.name == "toy_graph" else _cora(fetch(entry.name, FILES, root, download))
    words, edges, labels = graph
    n, held = len(labels), entry.train + entry.validation
    every = np.arange(n)
    nodes = every[: entry.train], every[entry.train : held], every[n - entry.test :]
    features, adjacency = _features(words, (n, *entry.shape)), _adjacency(edges, n)
    train, validation, test = (
        TensorPart(torch.from_numpy(at), torch.from_numpy(labels[at]), (features, adjacency)) for at in nodes
    )
    digest = hashlib.sha256()
    for array in (_sorted(words), _sorted(edges), labels, *nodes):
        digest.update(str(array.shape).encode() + array.astype("<i8").tobytes())
    naive = {
        "label_propagation": _accuracy(functools.partial(_propagated, train, n, entry.classes)),
        "logistic_regression": _accuracy(functools.partial(_regressed, train)),
    }
    digits, metric = digest.hexdigest(), entry.metric
    return Data(entry.name, train, validation, test, entry.classes, digits, metric=metric, naive=naive)


def _cora(files: Mapping[str, bytes]) -> Graph:
    """Assemble the graph. The test nodes are the last ones, and `test.index` says which node each test row is."""
    known, test = (_unpickled(files[f"ind.cora.{name}"], f"ind.cora.{name}") for name in ("allx", "tx"))
    places = np.array(files["ind.cora.test.index"].split(), np.int64)
    count = len(known.indptr) - 1
    pairs = [_pairs(known, np.arange(count)), _pairs(test, places)]
    labels = np.empty(count + len(places), np.int64)
    labels[:count] = _unpickled(files["ind.cora.ally"], "ind.cora.ally").argmax(1)
    labels[places] = _unpickled(files["ind.cora.ty"], "ind.cora.ty").argmax(1)
    neighbours = _unpickled(files["ind.cora.graph"], "ind.cora.graph")
    # Each edge is listed at both of its nodes, and some are listed more than once.
    edges = {(min(u, v), max(u, v)) for u, others in neighbours.items() for v in others if u != v}
    return Graph(np.concatenate(pairs, 1), np.array(sorted(edges), np.int64).T, labels)


def _pairs(matrix: Any, nodes: np.ndarray) -> np.ndarray:
    """Return the pairs (node, word) of a CSR matrix of zeros and ones whose rows belong to `nodes`, int64 (2, W)."""
    return np.stack([np.repeat(nodes, np.diff(matrix.indptr)), matrix.indices.astype(np.int64)])


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds objects of the classes in `ALLOWED` only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not allowed")
        return ALLOWED[module, name]


def _unpickled(content: bytes, file: str) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # pickle raises errors of many types for damaged content
        raise CrbgError(f"{file} cannot be read: {reason(error)}; delete it and run `crbg data` again") from None


def _toy_graph(entry: DataInfo) -> Graph:
    """Generate a stochastic block model. Neighbours mostly share the class; words indicate the class weakly.

    Node i has the class i mod 4, and a quarter of the words is more frequent in each class.
    """
    n, width = entry.train + entry.validation + entry.test, entry.shape[0]
    labels = np.arange(n) % entry.classes
    edges = np.stack(np.triu_indices(n, 1))
    near = np.where(labels[edges[0]] == labels[edges[1]], EDGE_INSIDE, EDGE_OUTSIDE)
    likely = np.where(labels[:, None] == np.arange(width) % entry.classes, WORD_INSIDE, WORD_OUTSIDE)
    words = rng.uniform(n * width, 0, entry.name, "words").reshape(n, width) < likely
    edges = edges[:, rng.uniform(edges.shape[1], 0, entry.name, "edges") < near]
    return Graph(np.stack(words.nonzero()).astype(np.int64), edges.astype(np.int64), labels)


def _features(words: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return _sparse(words, 1.0 / np.bincount(words[0], minlength=shape[0])[words[0]], shape)


def _adjacency(edges: np.ndarray, n: int) -> Tensor:
    loops = np.arange(n)
    both = np.concatenate([edges, edges[::-1], np.stack([loops, loops])], 1)
    degrees = np.bincount(both[0], minlength=n).astype(np.float64)
    return _sparse(both, 1.0 / np.sqrt(degrees[both[0]] * degrees[both[1]]), (n, n))


def _sparse(places: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Return a sparse CSR matrix, float32; on one thread, products with it are faster than with a dense one."""
    order = np.lexsort(places[::-1])
    starts = np.concatenate([[0], np.bincount(places[0], minlength=shape[0]).cumsum()])
    columns, kept = torch.from_numpy(places[1, order]), torch.from_numpy(values[order].astype(np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(torch.from_numpy(starts), columns, kept, shape, check_invariants=True)


def _sorted(pairs: np.ndarray) -> np.ndarray:
    return pairs[:, np.lexsort(pairs[::-1])]


def _accuracy(predict: Callable[[], Tensor]) -> Callable[[Part], float]:
    """Return a function that measures, in per cent, the predictions for all nodes on a part; they are computed once."""
    predicted = functools.cache(predict)

    def of(part: Part) -> float:
        nodes = cast(TensorPart, part).x.cpu()
        return 100.0 * float((predicted()[nodes] == part.y.cpu()).double().mean())

    return of


def _propagated(train: TensorPart, n: int, classes: int) -> Tensor:
    """Predict the class of every node by label propagation. A node that no label reaches gets class 0."""
    (_, adjacency), given = train.common, F.one_hot(train.y, classes).float()
    scores = torch.zeros(n, classes)
    scores[train.x] = given
    for _ in range(PROPAGATION):
        scores = adjacency @ scores
        scores[train.x] = given
    return scores.argmax(1)


def _regressed(train: TensorPart) -> Tensor:
    """Predict the class of every node by a logistic regression on its features."""
    from sklearn.linear_model import LogisticRegression

    features = train.common[0].to_dense().numpy()
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
    model.fit(features[train.x.numpy()], train.y.numpy())
    return torch.from_numpy(model.predict(features))
