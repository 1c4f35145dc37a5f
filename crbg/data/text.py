"""Texts, predicted character by character: their windows, a generated text, and n-gram models.

The last tenth of the characters is the test part, the tenth before it the validation part, and the rest the training
part. An example is a window of `context` characters, and its labels are the character after each of them. The windows
of a part do not overlap. Every window starts with an empty state: a prediction depends only on characters of its own
window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crbg import rng
from crbg.data.datasets import DataInfo
from crbg.data.files import Source, fetch
from crbg.data.parts import Data, Part, TensorPart, digest_of
from crbg.data.splits import SPLIT_SEED
from crbg.errors import CrbgError

FILE = "input.txt"
SHAKESPEARE = Source(
    f"https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/{FILE}",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
TOY_LENGTH = 12_815  # characters; 320 training windows of 32 characters, and 40 in each of the other parts
LONGEST = 5  # characters in the longest n-gram model
BATCH = 64  # windows in a batch of `TensorPart.batches`; the states of larger batches do not fit into a CPU's cache


def load(entry: DataInfo, root: Path, download: bool) -> Data:
    """Load a text, with n-gram models as naive predictors.

    The parts have inputs and labels of shape (N, context), int64. A character is coded as its position among the sorted
    characters of the text.

    Args:
        entry: `shakespeare` (tiny Shakespeare, from the repository char-rnn), or `toy_text`, which is generated.
        root: The data root.
        download: Whether a missing file may be downloaded.

    Raises:
        CrbgError: the file is missing or damaged, or a part of the text is shorter than a window.
    """
    if entry.name == "shakespeare":
        codes = encoded(fetch(entry.name, {FILE: SHAKESPEARE}, root, download)[FILE].decode())
    else:
        codes = toy_text(TOY_LENGTH, entry.classes)
    return from_codes(entry, codes)


def from_codes(entry: DataInfo, codes: Tensor) -> Data:
    """Divide a text into its three parts and their windows.

    Args:
        entry: Description of the data set; its shape is (context,).
        codes: The characters as numbers below `entry.classes`, int64 (n,).

    Raises:
        CrbgError: a part of the text is shorter than a window.
    """
    tenth = len(codes) // 10
    texts = codes.tensor_split([len(codes) - 2 * tenth, len(codes) - tenth])
    try:
        train, validation, test = (windows(text, *entry.shape) for text in texts)
    except CrbgError as error:
        raise CrbgError(f"{entry.name} is too short for its three parts: {error}") from None
    digest = digest_of((train, validation, test))
    naive = {name: partial(bits, model) for name, model in n_grams(texts[0], entry.classes).items()}
    return Data(entry.name, train, validation, test, entry.classes, digest, metric=entry.metric, naive=naive)


def encoded(text: str) -> Tensor:
    """Return the position of each character among the sorted distinct characters of the text, int64 (n,)."""
    _, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64))


def windows(codes: Tensor, context: int) -> TensorPart:
    """Cut a text into windows without overlap; the incomplete window at its end is dropped.

    Args:
        codes: Characters, (n,).
        context: Number of characters in a window. The label of the last one is the first character of the next window.

    Raises:
        CrbgError: the text is shorter than a window and its last label.
    """
    count = (len(codes) - 1) // context
    if count < 1:
        raise CrbgError(
            f"a text of {len(codes)} characters has no window of {context} characters and the label after them; use a "
            "longer text or a smaller context"
        )
    end = count * context
    return TensorPart(codes[:end].view(count, context), codes[1 : end + 1].view(count, context), size=BATCH)


def toy_text(count: int, classes: int) -> Tensor:
    """Generate a text from a random Markov chain of order two, int64 (count,).

    The next character depends on the last two characters with probability 1/2, on the last one with probability 3/8,
    and on none with probability 1/8.
    """

    def draw(size: int, name: str) -> list[int]:
        return (rng.integers(size, SPLIT_SEED, "toy_text", name) % np.uint64(classes)).tolist()  # type: ignore[no-any-return]

    after_two, after_one, free = draw(classes**2, "two"), draw(classes, "one"), draw(count, "free")
    before = last = 0
    text = []
    for eighth, any_character in zip(rng.integers(count, SPLIT_SEED, "toy_text", "eighths") % 8, free, strict=True):
        chosen = after_two[before * classes + last] if eighth < 4 else after_one[last] if eighth < 7 else any_character
        before, last = last, chosen
        text.append(last)
    return torch.tensor(text)


NGram = Callable[[Tensor, Tensor], Tensor]  # (inputs, labels), both (N, context) -> the probabilities of the labels


def n_grams(codes: Tensor, classes: int) -> dict[str, NGram]:
    """Fit n-gram models to a text, from one character to `LONGEST`.

    An n-gram model is interpolated with the next shorter one (Witten and Bell 1991), which has no free constants:

        p(c | h) = (count(h c) + kinds(h) p(c | shorter h)) / (count(h) + kinds(h)),

    where kinds(h) is the number of distinct characters after h. The unigram model has additive smoothing,
    (count(c) + 1) / (n + classes). At the first characters of a window, the context is as long as it can be.

    Args:
        codes: Characters, int64 (n,).
        classes: Number of distinct characters.
    """
    single = (codes.bincount(minlength=classes).double() + 1) / (len(codes) + classes)
    tables = [_Table.of(codes, classes, order) for order in range(2, LONGEST + 1)]

    def model(order: int) -> NGram:
        def probability(x: Tensor, y: Tensor) -> Tensor:
            p, context = single[y], torch.zeros_like(x)
            for back, table in enumerate(tables[: order - 1]):
                # The context of position t, from position `back` on: the characters x[t - back] to x[t] as one number.
                context = context[:, 1:] if back else context
                context = context + x[:, : x.shape[1] - back] * classes**back
                p = torch.cat([p[:, :back], table.interpolated(context, y[:, back:], p[:, back:])], 1)
            return p

        return probability

    names = {1: "unigram", 2: "bigram", 3: "trigram"}
    return {names.get(order, f"{order}-gram"): model(order) for order in range(1, LONGEST + 1)}


@dataclass(frozen=True)
class _Table:
    """Counts of the sequences of some length in a text. A sequence is a number in base `classes`, sorted in `found`."""

    classes: int
    found: Tensor
    counts: Tensor
    contexts: Tensor
    after: Tensor  # number of characters after each context
    kinds: Tensor  # number of distinct characters after each context

    @classmethod
    def of(cls, codes: Tensor, classes: int, order: int) -> _Table:
        keys = torch.zeros(max(0, len(codes) - order + 1), dtype=torch.int64)
        for i in range(order):
            keys = keys * classes + codes[i : i + len(keys)]
        found, counts = torch.unique(keys, return_counts=True)
        contexts, place = torch.unique(found // classes, return_inverse=True)
        after = torch.zeros(len(contexts), dtype=torch.float64).index_add_(0, place, counts.double())
        return cls(classes, found, counts.double(), contexts, after, place.bincount(minlength=len(contexts)).double())

    def interpolated(self, context: Tensor, y: Tensor, shorter: Tensor) -> Tensor:
        """Return p(y | context), given the probabilities of the shorter model; after an unknown context, these."""
        count = _looked_up(self.found, self.counts, context * self.classes + y)
        after, kinds = (_looked_up(self.contexts, values, context) for values in (self.after, self.kinds))
        kinds = kinds.clamp(min=1)
        return (count + kinds * shorter) / (after + kinds)


def _looked_up(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Return the values of the wanted keys; 0 for a key that is not there."""
    if not len(keys):
        return torch.zeros(wanted.shape, dtype=values.dtype)
    at = torch.searchsorted(keys, wanted.contiguous()).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == wanted, values[at], 0.0)


def bits(model: NGram, part: Part) -> float:
    """Return the mean of -log2 of the probability that an n-gram model gives to the labels of a part."""
    x, y = part.batch(slice(None))
    return float(-model(x.cpu(), y.cpu()).log2().mean())
