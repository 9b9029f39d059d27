r"""Penalties on weights: soft orthogonality of reshaped kernels, and spectral norms of operators. Floor 5.

Adding a term to a loss bounds nothing. Where the terms of `frobenius_orthogonality` vanish, the *reshaped kernels* have
orthonormal rows, which for a convolution is not the operator: its norm may still be as large as the root of the number
of taps that read one input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.freeze import evaluation_copy, shapes_read
from lipcert.linear import Shape

Vectors = Mapping[str, Tensor]


@dataclass(frozen=True)
class SpectralTerm:
    r"""Half the sum of squared norms, and where the power iterations ended.

    Attributes:
        value: :math:`\frac12 \sum_l |W_l v_l|^2`, a scalar that is differentiable with respect to the weights. Each
            term is at most half the layer's squared norm, up to rounding.
        vectors: The unit vectors :math:`v_l` by path of the layer, shape ``(1, *input of the layer)``.
    """

    value: Tensor
    vectors: Vectors


def frobenius_orthogonality(model: nn.Module) -> Tensor:
    r"""The sum over layers of :math:`|W W^T - I|_F^2`, W being the kernel reshaped to ``(out, everything else)``.

    Over linear layers and convolutions, as published. A W with more rows than columns cannot reach zero: its least
    value is rows minus columns. The papers' weight is left to the caller.

    Guaranteed: nothing while the value is positive; at zero, rows are orthonormal and the reshaped norm is 1. The
    reshaped kernel is **not** the operator of a convolution, whose norm may be several times larger.

    Args:
        model: Read in its present mode; its own parametrizations are followed.

    Returns:
        A scalar, differentiable with respect to the weights.

    Raises:
        InvalidInput: If there is neither a linear layer nor a convolution.
        UnsupportedOperation: If there is a transposed convolution, for which the papers name no reshaping.

    References:
        | Can We Gain More from Orthogonality Regularizations (Bansal et al., 2018), equation 1 (SO)
        | https://arxiv.org/abs/1810.09102
        | Neural Photo Editing with Introspective Adversarial Networks (Brock et al., 2017), with absolute values there
        | https://arxiv.org/abs/1609.07093

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> frobenius_orthogonality(layer).item()  # (4 - 1)^2
        9.0
    """
    return _sum(model, lambda gram: gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))


def off_diagonal_orthogonality(model: nn.Module) -> Tensor:
    r"""The sum over layers of :math:`|W W^T \odot (1 - I)|_F^2`, W being the kernel reshaped to ``(out, the rest)``.

    The form of BigGAN, which leaves the lengths of the rows alone. Its authors' code adds
    :math:`2 (W W^T \odot (1 - I)) W` to the gradients, half of what this formula's gradient is: a weight taken from
    there is to be halved here.

    Guaranteed: nothing about any norm, not even at zero; rows may have any length. The reshaped kernel is **not** the
    operator of a convolution.

    Args:
        model: As for `frobenius_orthogonality`.

    Returns:
        A scalar, differentiable with respect to the weights.

    Raises:
        InvalidInput: If there is neither a linear layer nor a convolution.
        UnsupportedOperation: If there is a transposed convolution, for which the paper names no reshaping.

    References:
        | Large Scale GAN Training for High Fidelity Natural Image Synthesis (Brock et al., 2019), equation 3
        | https://arxiv.org/abs/1809.11096

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
        >>> off_diagonal_orthogonality(layer).item()  # 3^2 twice
        18.0
    """
    return _sum(model, lambda gram: gram * (1.0 - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))


def starting_vectors(model: nn.Module, input_shape: Shape, *, generator: torch.Generator) -> Vectors:
    """Random unit vectors for `spectral_regularisation`, one per layer, at the input size the layer has in the model.

    Args:
        model: Read, never changed.
        input_shape: Shape of one sample, without the batch dimension.
        generator: Source of the vectors.

    Returns:
        Vectors of shape ``(1, *input of the layer)`` by path, ``""`` for the model itself.

    Raises:
        InvalidInput: If there is neither a linear layer nor a convolution.
        UnsupportedOperation: If a layer is never applied, or at several input sizes.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
        >>> vectors = starting_vectors(model, (1, 4, 4), generator=torch.Generator().manual_seed(0))
        >>> {path: tuple(v.shape) for path, v in vectors.items()}
        {'0': (1, 1, 4, 4), '2': (1, 8)}
    """
    copied = evaluation_copy(model)
    layers = dict(_layers(copied))
    like = next(iter(copied.parameters()))
    x = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    seen = shapes_read(layers.values(), lambda: copied(x))
    vectors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        # A linear layer does the same at all positions: its norm is that of one.
        shapes = {shape[-1:] if isinstance(layer, nn.Linear) else shape[1:] for shape in seen[layer]}
        if len(shapes) != 1:
            applied = f"at several input sizes, {sorted(shapes)}" if shapes else "not at all"
            message = f"`{path or '(the model itself)'}` is applied {applied}, so it is not one operator"
            raise UnsupportedOperation(f"{message}. Regularise the layers of a part that applies it once.", path=path)
        shape = next(iter(shapes))
        v = torch.randn(1, *shape, generator=generator, dtype=torch.float64, device=generator.device)
        vectors[path] = _direction(v).to(like)
    return vectors


def spectral_regularisation(model: nn.Module, vectors: Vectors, *, steps: int = 1) -> SpectralTerm:
    r"""Half the sum of squared layer norms, :math:`\frac12 \sum_l \sigma(W_l)^2`, by power iteration on the operators.

    Unlike in the paper, which reshapes kernels, W is the operator that a convolution applies at its input size, padding
    and stride included. The vectors are carried from call to call, as the paper's code does. The paper's weight
    :math:`\lambda` is left to the caller.

    Guaranteed: each term is at most half the true squared norm, up to rounding, and grows to it with the steps; its
    gradient takes the vectors as fixed, which is exact where they are singular vectors. Not guaranteed: any bound of a
    norm, as a penalty shrinks norms by as much as the loss lets it, and power iteration errs low.

    Args:
        model: Read in its present mode.
        vectors: From `starting_vectors`, or from the last call.
        steps: Power iterations to take first.

    Returns:
        The value, and the vectors for the next call.

    Raises:
        InvalidInput: If there is a layer without a vector, or a vector without a layer, or the steps are negative.

    References:
        | Spectral Norm Regularization for Improving the Generalizability of Deep Learning (Yoshida and Miyato, 2017)
        | https://arxiv.org/abs/1705.10941

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> start = starting_vectors(layer, (2,), generator=torch.Generator().manual_seed(0))
        >>> round(spectral_regularisation(layer, start, steps=50).value.item(), 4)
        4.5
    """
    layers = dict(_layers(model))
    if steps < 0 or layers.keys() != vectors.keys():
        given = f"{steps} steps and vectors of {sorted(vectors)}"
        raise InvalidInput(f"every layer has one vector and steps are not negative: {given} for {sorted(layers)}.")
    ended: dict[str, Tensor] = {}
    terms = []
    for path, layer in layers.items():
        v = vectors[path]
        for _ in range(steps):
            v = _step(layer, v)
        ended[path] = v
        terms.append(0.5 * _apply(layer, v).square().sum())
    return SpectralTerm(torch.stack(terms).sum(), ended)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)]
    if not found:
        raise InvalidInput(f"{type(model).__name__} has no linear layer and no convolution, so no weight to penalise.")
    return iter(found)


def _sum(model: nn.Module, rest: Callable[[Tensor], Tensor]) -> Tensor:
    terms = []
    for path, layer in _layers(model):
        if isinstance(layer, _ConvTransposeNd):
            message = f"`{path or '(the model itself)'}` is a transposed convolution, and the papers reshape none"
            raise UnsupportedOperation(f"{message}; pass the modules that are to be regularised.", path=path)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        W = weight.flatten(1)
        terms.append(rest(W @ W.T).square().sum())
    return torch.stack(terms).sum()


def _apply(layer: nn.Module, v: Tensor) -> Tensor:
    """The layer without its bias."""
    bias = layer.bias
    unbiased = {"bias": torch.zeros_like(bias)} if isinstance(bias, Tensor) else {}
    return functional_call(layer, unbiased, (v,))


def _step(layer: nn.Module, v: Tensor) -> Tensor:
    """``A' A v`` over its length; the transpose of a linear map is its derivative."""
    with torch.enable_grad():
        leaf = v.detach().requires_grad_(True)
        image = _apply(layer, leaf)
        (back,) = torch.autograd.grad(image, leaf, image.detach())
    return _direction(back)


def _direction(v: Tensor) -> Tensor:
    """``v / |v|``; zero stays zero. The largest entry goes first, so that squares neither overflow nor vanish."""
    peak = v.abs().amax()
    v = v / torch.where(peak == 0.0, 1.0, peak)
    length = torch.linalg.vector_norm(v)
    return v / torch.where(length == 0.0, 1.0, length)
