"""What a user passes as data: tensors, arrays, data frames, lists, data sets, loaders; and how it becomes batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

from crbg import rng
from crbg.errors import CrbgError
from crbg.training.batches import Batches, LoaderBatches, TensorBatches, resident
from crbg.training.forward import Forward, UserBatch
from crbg.training.trees import shapes, tensors

FEWEST = 10  # a held-out part with fewer examples would say nothing

_SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)

FORWARD_EXAMPLE = "pass `forward`, for example `forward=lambda model, batch: (model(batch['x']), batch['y'])`"


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

    def ordered(self, data: Any) -> Batches:
        """Return the batches of validation data in a fixed order."""
        found = self._recognise(data)
        return self._batches(found, None, None) if isinstance(found, Dataset) else found

    def _recognise(self, data: Any) -> Dataset[Any] | Batches:
        """Return a data set whose examples have positions, such as `_Tensors`, or the batches of a loader."""
        if type(data) is TensorDataset:  # a subclass may return something else than its tensors
            data = data.tensors
        if (columns := self._columns(data)) is not None:
            return _Tensors(resident(columns, self.device))
        if isinstance(data, IterableDataset | DataLoader):
            return self._loader(data)
        if isinstance(data, Dataset):
            return data
        if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, list | tuple | Mapping):
            return _Indexed(data)  # a map-style data set of another library, as that of Hugging Face
        if isinstance(data, Iterable) and not isinstance(data, str | Mapping):
            return self._loader(data)
        raise CrbgError(
            f"the data are {shapes(data)}; pass a pair (inputs, labels), a data set, a loader, or a list of batches"
        )

    def _columns(self, data: Any) -> Any:
        """Return tensors with one entry per example, if the data are in memory; otherwise None."""
        single = isinstance(data, Tensor | np.ndarray) or hasattr(data, "to_numpy")
        if single and self.forward is None:
            raise CrbgError(
                "the data are one array without labels; give a pair (inputs, labels), a data set or a loader, or pass "
                "`forward`, which returns the loss of a batch"
            )
        if not single and not _is_columns(data):
            return None
        data = tuple(data) if isinstance(data, list) else data
        pair = isinstance(data, tuple) and len(data) == 2
        if isinstance(data, tuple) and not pair and self.forward is None:
            raise CrbgError(
                f"the data are a tuple of {len(data)} arrays; give a pair (inputs, labels), or {FORWARD_EXAMPLE}"
            )
        found = _tensor_tree(data, self.dtype)
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
            _check_no_nan("inputs", found[0])
            _check_no_nan("labels", found[1])
        return found

    def _batches(self, data: Dataset[Any], rows: Tensor | None, seed: int | None) -> Batches:
        if isinstance(data, _Tensors):
            return TensorBatches(data.columns, self.batch, self.device, self.pack, seed, rows)
        part = data if rows is None else Subset(data, rows.tolist())
        loader = DataLoader(part, batch_sampler=_EvenBatches(_examples(part), self.batch, seed))
        return LoaderBatches(loader, self.device, self.pack)

    def _loader(self, data: Any) -> Batches:
        if isinstance(data, IterableDataset):
            data = DataLoader(data, self.batch)
        found = LoaderBatches(data, self.device, self.pack, self.steps)
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
        raise CrbgError(f"a batch must be a pair (inputs, labels), but it is {shapes(batch)}; {FORWARD_EXAMPLE}")


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


class _EvenBatches(Sampler[list[int]]):
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


def _check_no_nan(name: str, columns: Any) -> None:
    """Check all examples, because a NaN among the held-out ones would not stop the search."""
    for t in tensors(columns):
        if t.is_floating_point() and bool((bad := t.isnan().reshape(len(t), -1).any(1)).any()):
            raise CrbgError(
                f"the {name} of example {int(bad.nonzero()[0])} contain NaN ({int(bad.sum())} of {len(t)} do); "
                "remove or replace missing values"
            )


def _is_columns(data: Any) -> bool:
    """Return whether data are arrays with one entry per example, and not a sequence of batches."""
    if isinstance(data, Mapping):
        return bool(data) and all(_is_column(v) for v in data.values())
    if isinstance(data, list):
        return len(data) == 2 and all(map(_is_column, data))
    if not isinstance(data, tuple) or not data:
        return False
    if len(data) == 2 and _is_column(data[1]):  # the inputs may be several arrays
        several = isinstance(data[0], Mapping | tuple) and _is_columns(data[0])
        return several or _is_column(data[0])
    return all(map(_is_column, data))


def _is_column(value: Any) -> bool:
    if isinstance(value, list):
        while isinstance(value, list) and value:
            value = value[0]
        return isinstance(value, int | float | str | list | np.generic)
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy")


def _tensor_tree(data: Any, dtype: torch.dtype) -> Any:
    if isinstance(data, Mapping):
        return {k: _tensor_tree(v, dtype) for k, v in data.items()}
    return tuple(_tensor_tree(v, dtype) for v in data) if isinstance(data, tuple) else _tensor(data, dtype)


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Convert one column to a tensor; float64 becomes `dtype`.

    Raises:
        CrbgError: the values are not numbers, or rows have different lengths.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
        except ValueError:
            raise CrbgError("the rows of a list have different lengths; pad them to one length") from None
        if array.dtype.kind not in "biuf":
            raise CrbgError(f"the data contain values of type {array.dtype}, not numbers; encode them as numbers")
        unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch lacks most operations for these types
        native = np.int64 if unsigned else array.dtype.newbyteorder("=")
        value = torch.from_numpy(np.require(array, native, ["C", "W"]))
    column: Tensor = value.to(dtype) if value.dtype == torch.float64 else value
    return column
