"""The tasks of the zoo: small networks with torch's own initial weights, and the data of each.

The tasks marked `dev` serve to choose the defaults of `find_ticket`; those marked `judged` only to judge them.
Each task has fixed training, validation and test examples. Images come from the data sets of `crbg.data`, texts from
the descriptions that scikit-learn ships with its data sets.

The defaults have been chosen twice. A task that has been read cannot judge any more, so the tasks that judged the first
defaults are now in `dev`. So are eight tasks whose searches were read before the second defaults were frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, make_friedman1, make_friedman3
from torch import Tensor, nn
from torch.nn import functional as F

from crbg.data.datasets import info, root

Split = tuple[Tensor, Tensor]
Splits = tuple[Split, Split, Split]


@dataclass(frozen=True)
class Task:
    """A network and its data.

    Attributes:
        half: `dev` or `judged`, the set of tasks that this one belongs to.
        data: Returns the training, validation and test examples.
        network: Builds the network, with torch's own initial weights.
        epochs: Epochs of a normal search; a short one takes a quarter of them.
        batch: Batch size.
        loss: Mean loss over the batch.
        dense_lr: Learning rate of Adam for training all weights.
    """

    half: str
    data: Callable[[], Splits]
    network: Callable[[], nn.Module]
    epochs: int
    batch: int = 64
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    dense_lr: float = 2e-3


class Shuffled:
    """Batches in a new random order in each epoch; the order depends only on the seed and the number of epochs."""

    def __init__(self, split: Split, batch: int, seed: int) -> None:
        self.x, self.y = split
        self.batch, self.order = batch, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.x) // self.batch

    def __iter__(self) -> Iterator[Split]:
        for rows in torch.randperm(len(self.x), generator=self.order).split(self.batch)[: len(self)]:
            yield self.x[rows], self.y[rows]


def mlp(*sizes: int) -> nn.Module:
    """Build a multilayer perceptron with ReLU: one linear layer between two consecutive sizes."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int, *widths: int, side: int) -> nn.Module:
    """Build a plain convolutional network: 3x3 convolution, ReLU, 2x2 pooling; at the end two linear layers."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 64), nn.ReLU(), nn.Linear(64, 10))


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2016)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def resnet(width: int, channels: int = 3) -> nn.Module:
    """Build a residual network of three blocks."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


class Transformer(nn.Module):
    """A transformer encoder on images (as patches) or on texts (as characters).

    Args:
        width: Width of the residual stream.
        depth: Number of encoder layers.
        classes: Number of outputs.
        length: Number of patches or characters.
        patch: Side of a patch; 0 for texts.
        channels: Channels of the image, or number of different characters.
        causal: Whether each position sees only earlier ones, and has outputs of its own (a small GPT).
    """

    def __init__(
        self, width: int, depth: int, classes: int, length: int, patch: int, channels: int, causal: bool = False
    ) -> None:
        super().__init__()
        self.causal = causal
        self.embed: nn.Module = nn.Conv2d(channels, width, patch, patch) if patch else nn.Embedding(channels, width)
        self.position = nn.Parameter(0.5 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        # The encoder copies its first layer, so all layers start from the same numbers: draw each anew.
        for module in self.body.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = (h.flatten(2).transpose(1, 2) if h.ndim == 4 else h) + self.position
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1]) if self.causal else None
        h = self.body(h, mask=mask, is_causal=self.causal)
        return self.head(h).transpose(1, 2) if self.causal else self.head(h.mean(1))


class Recurrent(nn.Module):
    """A recurrent network that reads an image row by row, and a linear layer on its last state."""

    def __init__(self, inputs: int, width: int, kind: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.gru, self.head = kind(inputs, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.squeeze(1))[0][:, -1])


class NextCharacter(nn.Module):
    """An LSTM that predicts the next character at each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(LETTERS), width)
        self.lstm, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0]).transpose(1, 2)


def mobile() -> nn.Module:
    """Build timm's smallest LCNet, a mobile network of depthwise convolutions."""
    import timm

    return timm.create_model("lcnet_035", num_classes=10)


def _split(x: Tensor, y: Tensor, validation: int, test: int) -> Splits:
    train = len(x) - validation - test
    a, b, c = (s for s in zip(x.split([train, validation, test]), y.split([train, validation, test]), strict=True))
    return a, b, c


@cache
def digits() -> Splits:
    """Return scikit-learn's 8x8 digits: 997, 400 and 400 images."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = torch.tensor(x[order], dtype=torch.float32).reshape(-1, 1, 8, 8)
    return _split((images - 4.88) / 6.02, torch.tensor(y[order]), 400, 400)


@cache
def images(name: str, train: int, pooled: int = 1) -> Splits:
    """Return `train`, 1000 and 1000 images; the test images are the first ones of the official test set.

    Args:
        name: A data set of `crbg.data`.
        train: Number of training images.
        pooled: Factor by which average pooling reduces the sides.
    """
    about = info(name)
    with np.load(root() / f"{name}.npz") as stored:
        rows = np.random.default_rng(0).permutation(len(stored["train_x"]))[: train + 1000]
        x = torch.from_numpy(np.concatenate([stored["train_x"][rows], stored["test_x"][:1000]])).float() / 255
        y = torch.from_numpy(np.concatenate([stored["train_y"][rows], stored["test_y"][:1000]])).long()
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (about.mean, about.std))
    return _split(F.avg_pool2d((x - mean) / std, pooled), y, 1000, 1000)


@cache
def friedman() -> Splits:
    """Return the regression problem of Friedman (1991), of 10 inputs: 2000, 1000 and 1000 examples."""
    x, y = make_friedman1(4000, noise=0.5, random_state=0)
    return _split(
        torch.tensor(2 * x - 1, dtype=torch.float32), torch.tensor((y - 14.4) / 4.9).float()[:, None], 1000, 1000
    )


def autoencoded(splits: Splits) -> Splits:
    """Return images with their own pixels as labels, for an autoencoder."""
    a, b, c = ((x, x.flatten(1)) for x, _ in splits)
    return a, b, c


@cache
def cancer() -> Splits:
    """Return scikit-learn's breast cancer data, 30 standardised inputs and 2 classes: 269, 150 and 150 examples."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    standard = (x - x.mean(0)) / x.std(0)
    return _split(torch.tensor(standard[order], dtype=torch.float32), torch.tensor(y[order]), 150, 150)


LETTERS = "\n !\"'(),-./:=_0123456789abcdefghijklmnopqrstuvwxyz"


def _text(*names: str) -> Tensor:
    """Return the characters of files of scikit-learn's data sets, as positions in `LETTERS`; others are left out."""
    text = "".join((files("sklearn.datasets") / name).read_text().lower() for name in names)
    return torch.tensor([LETTERS.index(c) for c in text if c in LETTERS])


def _prose() -> Tensor:
    names = ("breast_cancer", "iris", "kddcup99", "lfw", "twenty_newsgroups", "wine_data", "rcv1", "digits")
    return _text(*(f"descr/{name}.rst" for name in names))


@cache
def snippets() -> Splits:
    """Return passages of 24 characters: prose, prose backwards, Python or numbers (1600, 400 and 400 examples)."""
    prose = _prose()
    kinds = (prose[:14400], prose[14400:].flip(0), _text("_base.py"), _text("data/breast_cancer.csv"))
    x = torch.cat([kind[:14400].unfold(0, 24, 24) for kind in kinds])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    return _split(x[order], torch.arange(len(kinds)).repeat_interleave(600)[order], 400, 400)


@cache
def circuit() -> Splits:
    """Return the phase of a circuit, a regression of 4 inputs (Friedman 1991): 2000, 1000 and 1000 examples."""
    x, y = make_friedman3(4000, noise=0.05, random_state=0)
    standard = (x - x.mean(0)) / x.std(0)
    return _split(
        torch.tensor(standard, dtype=torch.float32), torch.tensor((y - y.mean()) / y.std()).float()[:, None], 1000, 1000
    )


@cache
def characters() -> Splits:
    """Return passages of prose; see `_passages`."""
    return _passages(_prose())


@cache
def python() -> Splits:
    """Return passages of a Python module; see `_passages`."""
    return _passages(_text("_base.py"))


def _passages(text: Tensor) -> Splits:
    """Return passages of 32 characters, each labelled with its next character (60 %, 20 % and 20 %)."""
    part = len(text) // 5
    parts = text.split([3 * part, part, len(text) - 4 * part])
    a, b, c = ((w[:, :-1], w[:, 1:]) for w in (part.unfold(0, 33, 16) for part in parts))
    return a, b, c


def _fashion(train: int = 3000) -> Splits:
    return images("fashion_mnist", train)


def _small_fashion() -> Splits:
    return images("fashion_mnist", 2000, 2)


def _mnist(train: int = 3000) -> Splits:
    return images("mnist", train)


def _cifar() -> Splits:
    return images("cifar10", 2000, 2)


TASKS = {
    "digits-mlp2": Task("dev", digits, lambda: mlp(64, 128, 10), 20),
    "digits-mlp6": Task("dev", digits, lambda: mlp(64, 128, 128, 128, 128, 128, 10), 20),
    "fashion-mlp3": Task("dev", _fashion, lambda: mlp(784, 200, 100, 10), 10, 100),
    "mnist-cnn": Task("dev", lambda: images("mnist", 3000, 2), lambda: cnn(1, 16, 32, side=14), 8, 100),
    "cifar-resnet": Task("dev", _cifar, lambda: resnet(8), 6, 50),
    "digits-vit": Task("dev", digits, lambda: Transformer(32, 2, 10, 16, 2, 1), 15),
    "snippets-transformer": Task("dev", snippets, lambda: Transformer(32, 2, 4, 24, 0, len(LETTERS)), 6, 32),
    "friedman-mlp4": Task("dev", friedman, lambda: mlp(10, 64, 64, 64, 1), 20, 100, F.mse_loss),
    "mnist-mlp2": Task("dev", _mnist, lambda: mlp(784, 200, 10), 10, 100),
    "fashion-mlp8": Task("dev", _fashion, lambda: mlp(784, *[100] * 7, 10), 12, 100),
    "fashion-cnn": Task("dev", lambda: images("fashion_mnist", 3000, 2), lambda: cnn(1, 16, 32, 32, side=14), 8, 100),
    "cifar-mobile": Task("dev", _cifar, mobile, 3, 50),
    "cifar-vit": Task("dev", _cifar, lambda: Transformer(32, 2, 10, 16, 4, 3), 6, 50),
    "mnist-gru": Task("dev", lambda: images("mnist", 3000, 2), lambda: Recurrent(14, 64), 10, 100),
    "characters-gpt": Task(
        "dev", characters, lambda: Transformer(32, 2, len(LETTERS), 32, 0, len(LETTERS), True), 6, 32
    ),
    "digits-autoencoder": Task(
        "dev", lambda: autoencoded(digits()), lambda: mlp(64, 96, 24, 96, 64), 20, 64, F.mse_loss
    ),
    "mnist-mlp5": Task("dev", _mnist, lambda: mlp(784, 128, 128, 128, 128, 10), 10, 100),
    "fashion-resnet": Task("dev", _small_fashion, lambda: resnet(8, 1), 6, 50),
    "cifar-cnn": Task("dev", _cifar, lambda: cnn(3, 16, 32, side=16), 8, 50),
    "digits-lstm": Task("dev", digits, lambda: Recurrent(8, 64, nn.LSTM), 20),
    "mnist-vit": Task("dev", lambda: images("mnist", 2000, 2), lambda: Transformer(32, 2, 10, 49, 2, 1), 8, 50),
    "characters-lstm": Task("dev", characters, lambda: NextCharacter(96), 8, 32),
    "cancer-mlp3": Task("dev", cancer, lambda: mlp(30, 64, 64, 2), 20, 32),
    "fashion-autoencoder": Task(
        "dev", lambda: autoencoded(_small_fashion()), lambda: mlp(196, 128, 32, 128, 196), 10, 64, F.mse_loss
    ),
    "mnist-mlp7": Task("judged", _mnist, lambda: mlp(784, *[100] * 6, 10), 12, 100),
    "mnist-resnet": Task("judged", lambda: images("mnist", 2000, 2), lambda: resnet(8, 1), 6, 50),
    "cifar-cnn3": Task("judged", _cifar, lambda: cnn(3, 16, 32, 64, side=16), 8, 50),
    "fashion-lstm": Task(
        "judged", lambda: images("fashion_mnist", 3000, 2), lambda: Recurrent(14, 64, nn.LSTM), 10, 100
    ),
    "fashion-vit": Task("judged", _small_fashion, lambda: Transformer(32, 2, 10, 49, 2, 1), 8, 50),
    "python-gpt": Task("judged", python, lambda: Transformer(32, 2, len(LETTERS), 32, 0, len(LETTERS), True), 8, 32),
    "circuit-mlp3": Task("judged", circuit, lambda: mlp(4, 64, 64, 1), 20, 100, F.mse_loss),
    "mnist-autoencoder": Task(
        "judged", lambda: autoencoded(images("mnist", 2000, 2)), lambda: mlp(196, 128, 32, 128, 196), 10, 64, F.mse_loss
    ),
}
