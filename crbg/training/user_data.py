"""What a user passes as data: tensors, arrays, data frames, lists, data sets, loaders; and how it becomes batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

from crbg import rng
from crbg.errors import CrbgError
from crbg.training.batches import Batches, LoaderBatches, TensorBatches, length, resident
from crbg.training.columns import check_finite, is_columns, label_column, tensor_tree
from crbg.training.forward import Forward, UserBatch
from crbg.training.trees import shapes, tensors

FEWEST = 10  # a held-out part with fewer examples would say nothing

_SMALL_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Reader:
    """The settings with which a user's data become batches.

    Attributes:
        batch: Number of examples in a batch, for data that are not batches yet.
        seed: Seed of the order of the examples and of the held-out part.
        device: Device of the model.
        dtype: Floating-point type of the model; float64 data, the default of NumPy, are converted to it.
        forward: The user's function (model, batch), if any.
        steps: Number of batches per epoch for loaders without a length.
        own_loss: Whether a model that computes its own loss from a batch with the key `labels` may do so.
    """

    batch: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    forward: Forward | None = None
    steps: int | None = None
    own_loss: bool = True

    def training(self, data: Any, held_out: float = 0.0) -> tuple[Batches, Batches | None]:
        """Return shuffled batches, and the batches of a held-out part in a fixed order.

        Args:
            data: The user's data.
            held_out: Fraction of the examples to hold out. A loader cannot be divided, and neither can a data set of
                which fewer than `FEWEST` examples would be held out; the second return value is then None.

        Raises:
            CrbgError: the data are empty, not numeric or in no known format.
        """
        found = self._recognise(data)
        if not isinstance(found, Dataset):
            return found, None
        count = _examples(found)
        apart = int(held_out * count)
        if apart < FEWEST:
            return self._batches(found, None, self.seed), None
        order = torch.from_numpy(rng.permutation(count, self.seed, "held out"))
        rest, held = order[apart:].sort().values, order[:apart].sort().values
        return self._batches(found, rest, self.seed), self._batches(found, held, None)

    def validation(self, data: Any) -> Batches:
        """Return `ordered(data)`; the message of an error starts with "validation"."""
        try:
            return self.ordered(data)
        except CrbgError as error:
            raise CrbgError(f"validation: {error}") from error

    def ordered(self, data: Any) -> Batches:
        """Return the batches of validation data in a fixed order.

        A loader with a length is read to its end, whatever `steps` is. Any other loader is read from its start to its
        end, or for `steps` batches.
        """
        found = self._recognise(data, once=True)
        return self._batches(found, None, None) if isinstance(found, Dataset) else found

    def _recognise(self, data: Any, once: bool = False) -> Dataset[Any] | Batches:
        """Return a data set whose examples have positions, such as `_Tensors`, or the batches of a loader.

        With `once`, each epoch reads a loader from its start to its end.
        """
        if type(data) is TensorDataset:  # a subclass may return something else than its tensors
            data = data.tensors
        if (columns := self._columns(data)) is not None:
            return _Tensors(resident(columns, self.device))
        if isinstance(data, IterableDataset | DataLoader):
            return self._loader(data, once)
        if isinstance(data, Dataset):
            return data
        if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, list | tuple | Mapping):
            return _Indexed(data)  # a map-style data set of another library, as that of Hugging Face
        if isinstance(data, list | tuple) and self.forward is None:
            _check_list(data)
        if isinstance(data, Iterable) and not isinstance(data, str | Mapping):
            return self._loader(data, once)
        raise CrbgError(
            f"the data are {shapes(data)}; pass a pair (inputs, labels), a data set, a loader, or a list of batches"
        )

    def _columns(self, data: Any) -> Any:
        """Return tensors with one entry per example, if the data are in memory; otherwise None."""
        single = isinstance(data, Tensor | np.ndarray) or hasattr(data, "to_numpy")
        if single and self.forward is None:
            if (name := label_column(data)) is not None:
                raise CrbgError(
                    "the data are one data frame; give inputs and labels apart, for a data frame `df` "
                    f"`(df.drop(columns=[{name!r}]), df[{name!r}])`"
                )
            raise CrbgError(
                "the data are one array without labels; give a pair (inputs, labels), a data set or a loader, or pass "
                "`forward`, which returns the loss of a batch"
            )
        if not single and not is_columns(data):
            return None
        data = tuple(data) if isinstance(data, list) else data
        pair = isinstance(data, tuple) and len(data) == 2
        if isinstance(data, tuple) and not pair and self.forward is None:
            raise CrbgError(
                f"the data are a tuple of {len(data)} arrays; give a pair (inputs, labels), or {_example(data)}"
            )
        found = tensor_tree(data, self.dtype)
        counts = sorted({t.shape[0] if t.ndim else 0 for t in tensors(found)})
        if pair and len(counts) > 1:
            x, y = (next(tensors(part)) for part in found)
            raise CrbgError(f"there are {len(x)} inputs and {len(y)} labels")
        if len(counts) != 1:
            raise CrbgError(f"the arrays have different lengths: {', '.join(map(str, counts))}")
        if counts[0] == 0:
            raise CrbgError("the data are empty; give at least one example")
        if pair and isinstance(found[1], Tensor) and found[1].dtype in _SMALL_INTEGERS:
            found = (found[0], found[1].long())  # the type of class indices in torch
        if pair and self.forward is None:
            check_finite("inputs", found[0])
            check_finite("labels", found[1])
        return found

    def _batches(self, data: Dataset[Any], rows: Tensor | None, seed: int | None) -> Batches:
        if isinstance(data, _Tensors):
            return TensorBatches(data.columns, self.batch, self.device, self.pack, seed, rows)
        part = data if rows is None else Subset(data, rows.tolist())
        loader = DataLoader(part, batch_sampler=EvenBatches(_examples(part), self.batch, seed))
        return LoaderBatches(loader, self.device, self.pack)

    def _loader(self, data: Any, once: bool) -> Batches:
        if isinstance(data, IterableDataset):
            data = DataLoader(data, self.batch)
        steps = None if once and length(data) is not None else self.steps
        found = LoaderBatches(data, self.device, self.pack, steps, once)
        if len(found) == 0:
            raise CrbgError(
                "the loader has no batch; with `drop_last=True`, its batch size must not exceed the number of examples"
            )
        return found

    def pack(self, batch: Any) -> tuple[Any, Any]:
        """Convert what a loader returned to (inputs, labels); `forward`, if given, receives it unchanged.

        Raises:
            CrbgError: the batch is not a pair, a mapping with the key `labels`, or a batch for `forward`.
        """
        if self.forward is not None:
            return UserBatch(batch, self.forward), None
        if isinstance(batch, tuple | list) and len(batch) == 2:
            return batch[0], batch[1]
        if isinstance(batch, Mapping) and "labels" in batch:
            return UserBatch(batch, keywords_with_own_loss if self.own_loss else keywords), None
        raise CrbgError(f"a batch must be a pair (inputs, labels), but it is {shapes(batch)}; {_example(batch)}")


def _example(batch: Any) -> str:
    """Return the advice to pass `forward`, with an example for a mapping or a tuple."""
    x, y = ("batch['x']", "batch['y']") if isinstance(batch, Mapping) else ("batch[0]", "batch[1]")
    return f"pass `forward`, for example `forward=lambda model, batch: (model({x}), {y})`"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)


def _check_list(data: Sequence[Any]) -> None:
    """Check that a list or tuple, which is read as batches, is no list of examples and no pair with a list of inputs.

    Raises:
        CrbgError: the labels of the first element are one number, or the inputs are a list of tensors.
    """
    first = data[0] if data else None
    if isinstance(first, list | tuple) and len(first) == 2 and _is_number(first[1]):
        raise CrbgError(
            "a list is a list of batches, but this one contains examples; pass a data set or a DataLoader, for example "
            "`DataLoader(data, batch_size=64, shuffle=True)`"
        )
    arrays = Tensor | np.ndarray
    listed = first if isinstance(first, list) and first and isinstance(first[0], arrays) else []
    if listed and len(data) == 2 and isinstance(data[1], arrays) and len(data[1]) == len(listed):
        raise CrbgError(
            f"the inputs are a list of {len(listed)} arrays; join them with `torch.stack`, or pad them to one length "
            "with `nn.utils.rnn.pad_sequence`"
        )


def keywords(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Pass all entries of a batch except `labels` to the model as keyword arguments."""
    return model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"]


def keywords_with_own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Pass a batch to a model that can compute its own loss, as those of transformers, and return this loss.

    The logits and the labels are returned instead if the model is a classifier with one label per example, so that
    their scale can be chosen, or if the model does not take labels.
    """
    if "labels" not in inspect.signature(model.forward).parameters:
        return keywords(model, batch)
    out, labels = model(**batch), batch["labels"]
    scores, loss = getattr(out, "logits", None), getattr(out, "loss", None)
    classifier = isinstance(scores, Tensor) and scores.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point()
    return (out, labels) if classifier or loss is None else loss


class _Tensors(Dataset[Any]):
    """A data set of tensors in memory, with one entry per example on the first axis."""

    def __init__(self, columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(tensors(self.columns)))


class EvenBatches(Sampler[list[int]]):
    """Positions of the examples of each batch; the batches of an epoch are of equal size, up to one example.

    With a seed, each iteration yields the next random order of one generator, whatever the number of the epoch.
    """

    def __init__(self, count: int, size: int, seed: int | None) -> None:
        self.count, self.batches = count, -(-count // size)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.count)
        if self.generator is not None:
            order = torch.randperm(self.count, generator=self.generator)
        yield from (part.tolist() for part in order.tensor_split(self.batches))


class _Indexed(Dataset[Any]):
    """A map-style data set that is not a subclass of torch's."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def _examples(data: Dataset[Any]) -> int:
    try:
        count = len(data)  # type: ignore[arg-type]
    except TypeError:
        raise CrbgError("the data set has no length; make it an IterableDataset and pass `steps`") from None
    if count == 0:
        raise CrbgError("the data set is empty")
    return count
