"""Find a strong lottery ticket on one page of plain PyTorch: LeNet-300-100 on MNIST, without training a weight.

Each weight w ~ U[-a, a] keeps its initial value and is multiplied by a gate z = clip(mu + eps, 0, 1) with
eps ~ N(0, noise^2). Only mu is trained: Adam minimises cross-entropy + lambda * mean Phi(mu / sigma), where
Phi(mu / sigma) is the probability that a gate is open. At the end, the weights with mu > 1/2 are kept.

    python examples/one_page.py

A run takes a few minutes on two cores. MNIST is read from $CRBG_DATA/mnist.npz, or downloaded to ./data. The settings
were chosen on held-out training images; the test set is used once, at the end.
"""

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

EPOCHS, BATCH, LR, ALPHA, NOISE, SIGMA, LAMBDA = 15, 256, 0.03, 0.25, 0.25, 0.5, 3.0


def mnist():
    """Return (images, labels) of the training and the test set; images are standardised, float32, of shape (N, 784)."""
    path = Path(os.environ.get("CRBG_DATA", "data")) / "mnist.npz"
    if path.exists():
        f = np.load(path)
        parts = [(f[f"{p}_x"], f[f"{p}_y"]) for p in ("train", "test")]
    else:
        from torchvision.datasets import MNIST

        try:
            sets = [MNIST("data", train=t, download=True) for t in (True, False)]
        except (OSError, RuntimeError) as error:
            arrays = "with the arrays train_x, train_y, test_x, test_y"
            raise SystemExit(
                f"MNIST cannot be downloaded ({' '.join(str(error).split())}): put it at {path}, {arrays}"
            ) from None
        parts = [(s.data.numpy(), s.targets.numpy()) for s in sets]
    flat = [(torch.tensor(x).reshape(-1, 784).float() / 255, torch.tensor(y).long()) for x, y in parts]
    return [((x - 0.1307) / 0.3081, y) for x, y in flat]


def forward(x, weights):
    """Apply a 784-300-100-10 network without biases; leaky ReLUs with slope 1/4 are PReLUs with a frozen slope."""
    for w in weights[:-1]:
        x = F.leaky_relu(x @ w.T, 0.25)
    return x @ weights[-1].T


def main():
    torch.manual_seed(0)
    (train_x, train_y), (test_x, test_y) = mnist()
    shapes = [(300, 784), (100, 300), (10, 100)]
    weights = [(2 * torch.rand(s) - 1) * ALPHA for s in shapes]  # frozen
    drawn = [w.clone() for w in weights]
    mus = [(0.5 + 0.01 * torch.randn(s)).requires_grad_() for s in shapes]
    total = sum(mu.numel() for mu in mus)
    steps = EPOCHS * (len(train_x) // BATCH)
    adam = torch.optim.Adam(mus, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    start = time.time()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(train_x))
        for i in range(len(train_x) // BATCH):
            batch = order[i * BATCH : (i + 1) * BATCH]
            gated = [w * (mu + NOISE * torch.randn_like(mu)).clamp(0, 1) for w, mu in zip(weights, mus, strict=True)]
            penalty = sum(torch.special.ndtr(mu / SIGMA).sum() for mu in mus) / total
            loss = F.cross_entropy(forward(train_x[batch], gated), train_y[batch]) + LAMBDA * penalty
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
        kept = sum(int((mu > 0.5).sum()) for mu in mus)
        print(
            f"epoch {epoch + 1:2d}  loss {loss.item():.3f}  kept {kept / total:.1%}  {time.time() - start:.0f} s",
            flush=True,
        )
    assert all(torch.equal(w, d) for w, d in zip(weights, drawn, strict=True))  # every weight is bit-identical
    ticket = [w * (mu > 0.5) for w, mu in zip(weights, mus, strict=True)]
    accuracy = (forward(test_x, ticket).argmax(1) == test_y).float().mean().item()
    print(f"strong ticket: test accuracy {accuracy:.2%} at {1 - kept / total:.1%} sparsity")
    print(f"{kept} of {total} weights kept, none trained")


if __name__ == "__main__":
    main()
