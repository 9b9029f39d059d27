"""Random chains by published recipes, as float64 matrices and as torch modules.

| recipe | origin | sizes |
|---|---|---|
| `gaussian` | ours | ``10, width x hidden, 5`` |
| `positive` | the nets of ECLipsE's paper, checked against a published file | ``4, width x (layers - 1), 1`` |
| `contractive` | ``generate_random_weights.py`` in ECLipsE's repository since commit 183b945 | as `positive` |

`contractive(20, 20)` is the chain whose product of norms is .63541 and whose ECLipsE-Fast value is 8.996e-3. It comes
from the stream of ``np.random.seed(7 * width + 13 * layers)`` (here 400) with, layer by layer, one uniform number for
the norm and one normal matrix, and no bias drawn between layers; the older recipe draws a bias there, and its seed
depends on a round.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

Weights = list[np.ndarray]


def gaussian_dims(dims: Sequence[int]) -> Weights:
    """Entries of variance ``1 / inputs``, drawn in order from ``RandomState(0)``."""
    rng = np.random.RandomState(0)
    return [rng.randn(out, into) / into**0.5 for into, out in itertools.pairwise(dims)]


def gaussian(hidden: int, width: int) -> Weights:
    """The net "hidden x width"."""
    return gaussian_dims([10, *[width] * hidden, 5])


def positive(layers: int, width: int, round: int = 0) -> Weights:
    """Positive entries: the exact constant with ReLU is the norm of the product of the matrices."""
    rng = np.random.RandomState(round * 77 + width * 7 + layers * 13)
    weights = []
    for into, out in itertools.pairwise([4, *[width] * (layers - 1), 1]):
        norm, W = rng.uniform(0.4, 1.8), rng.rand(out, into)
        weights.append(norm * W / np.linalg.norm(W, 2))
        rng.rand(out)  # the bias
    return weights


def contractive(layers: int, width: int) -> Weights:
    """Normal entries with norms between .4 and 1.8: deep ones have tiny constants."""
    rng = np.random.RandomState(width * 7 + layers * 13)
    weights = []
    for into, out in itertools.pairwise([4, *[width] * (layers - 1), 1]):
        norm, W = rng.uniform(0.4, 1.8), rng.randn(out, into)
        weights.append(norm * W / np.linalg.norm(W, 2))
    return weights


def chain(weights: Sequence[np.ndarray], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Layers with these weights and biases of zero, with activations between them."""
    layers: list[nn.Module] = []
    for W in weights:
        layer = nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = torch.from_numpy(W.astype(np.float64)), torch.zeros(len(W)).double()
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def norm_of_product(weights: Sequence[np.ndarray]) -> float:
    """The norm of the product of positive matrices that end in one row, to the last digits of a double."""
    row = np.ones(1, dtype=np.longdouble)
    for W in reversed(weights):
        row = row @ W.astype(np.longdouble)
    return float(np.sqrt(row @ row))
