r"""Penalties on a critic's input gradient: WGAN-GP, WGAN-LP, R1 and R2. Floor 5.

A penalty pulls on gradient norms at the samples it is given. It proves nothing about any other point, and a finite
weight leaves even those samples above the target: none of these functions makes a critic Lipschitz with a constant that
is known. `lipcert.certify` bounds what came out, `lipcert.witness` shows by how much the target is missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from lipcert.errors import InvalidInput, UnsupportedOperation

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TwoSided:
    r"""Pull gradient norms to the target from both sides, :math:`(|\nabla f| - t)^2`: WGAN-GP.

    Example:
        >>> TwoSided().square(torch.tensor([0.5, 3.0]), 1.0)
        tensor([0.2500, 4.0000])
    """

    def square(self, norms: Tensor, target: float) -> Tensor:
        """The penalty of each gradient norm, shape ``(N,)``."""
        return (norms - target).square()


@dataclass(frozen=True)
class OneSided:
    r"""Push gradient norms below the target, and leave smaller ones alone, :math:`\max(0, |\nabla f| - t)^2`: WGAN-LP.

    Example:
        >>> OneSided().square(torch.tensor([0.5, 3.0]), 1.0)
        tensor([0., 4.])
    """

    def square(self, norms: Tensor, target: float) -> Tensor:
        """The penalty of each gradient norm, shape ``(N,)``."""
        return (norms - target).clamp_min(0.0).square()


Side = TwoSided | OneSided


def gradient_penalty(
    critic: Critic,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    target: float = 1.0,
    side: Side = TwoSided(),
) -> Tensor:
    r"""The mean over a batch of :math:`(|\nabla f(\hat x)|_2 - t)^2` at random points between x and y.

    Each pair has its own :math:`\hat x = \epsilon x + (1 - \epsilon) y` with :math:`\epsilon` uniform in [0, 1). The l2
    norm is over all dimensions of a sample. The critic sees each sample as a batch of one, so a layer that mixes
    samples works on that sample alone. The paper's weight (:math:`\lambda = 10`) is left to the caller.

    Guaranteed: the value, up to rounding, and its derivatives with respect to the critic's parameters; where a gradient
    is zero, its norm counts as constant. Not guaranteed: any Lipschitz constant, anywhere.

    Args:
        critic: Takes a batch, gives one number per sample (shape ``(N,)`` or ``(N, 1)``). Used in its present mode.
        x: Shape ``(N, ...)``, real: samples of the data. No gradient flows back to them.
        y: As x: samples of the generator.
        generator: Source of :math:`\epsilon`.
        target: The norm t that is aimed at.
        side: Whether gradients shorter than the target are penalised too. Default: they are.

    Returns:
        A scalar, differentiable with respect to the critic's parameters.

    Raises:
        InvalidInput: If x and y are not real batches of one shape, the target is negative or not finite, or the critic
            gives several numbers per sample.
        UnsupportedOperation: If a layer normalises by batch statistics, so that samples have no gradients of their own.

    References:
        | Improved Training of Wasserstein GANs (Gulrajani et al., 2017), https://arxiv.org/abs/1704.00028
        | On the regularization of Wasserstein GANs (Petzka et al., 2018), https://arxiv.org/abs/1709.08894

    Example:
        >>> critic = nn.Linear(2, 1)
        >>> _ = critic.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> x, y = torch.zeros(8, 2), torch.ones(8, 2)
        >>> gradient_penalty(critic, x, y, generator=torch.Generator().manual_seed(0)).item()  # (5 - 1)^2
        16.0
    """
    require_batch(x, "x")
    require_batch(y, "y")
    if x.shape != y.shape or x.dtype != y.dtype:
        sides = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise InvalidInput(f"points between x and y need batches of one shape and type, got {sides}; cut the longer.")
    if not 0.0 <= target < math.inf:
        raise InvalidInput(f"a gradient norm is aimed at, so the target is finite and at least 0, got {target}.")
    epsilon = torch.rand(len(x), generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    epsilon = epsilon.reshape(-1, *[1] * (x.ndim - 1))
    between = epsilon * x.detach() + (1.0 - epsilon) * y.detach()
    norms = torch.linalg.vector_norm(sample_gradients(critic, between).flatten(1), dim=1)
    return side.square(norms, target).mean()


def r1(critic: Critic, x: Tensor) -> Tensor:
    r"""The mean over real samples of :math:`|\nabla f(x)|_2^2`; multiply it by the paper's :math:`\gamma / 2` yourself.

    Guaranteed: the value, up to rounding, and its derivatives with respect to the critic's parameters. Not guaranteed:
    any Lipschitz constant. It prefers smaller gradients at the samples to larger ones; nothing is said elsewhere.

    Args:
        critic: As for `gradient_penalty`: the number before any sigmoid.
        x: Shape ``(N, ...)``, real: samples of the data.

    Returns:
        A scalar, differentiable with respect to the critic's parameters.

    Raises:
        InvalidInput: If x is no real batch, or the critic gives several numbers per sample.
        UnsupportedOperation: If a layer normalises by batch statistics.

    References:
        | Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018), equation 9
        | https://arxiv.org/abs/1801.04406

    Example:
        >>> critic = nn.Linear(2, 1)
        >>> _ = critic.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> r1(critic, torch.zeros(8, 2)).item()
        25.0
    """
    require_batch(x, "x")
    return sample_gradients(critic, x).flatten(1).square().sum(1).mean()


def r2(critic: Critic, y: Tensor) -> Tensor:
    r"""The mean over generated samples of :math:`|\nabla f(y)|_2^2`; all of `r1` holds for it.

    Args:
        critic: As for `gradient_penalty`: the number before any sigmoid.
        y: Shape ``(N, ...)``, real: samples of the generator. No gradient flows back to them.

    Returns:
        A scalar, differentiable with respect to the critic's parameters.

    Raises:
        InvalidInput: If y is no real batch, or the critic gives several numbers per sample.
        UnsupportedOperation: If a layer normalises by batch statistics.

    References:
        | Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018), equation 10
        | https://arxiv.org/abs/1801.04406

    Example:
        >>> r2(lambda y: y.square().sum(1), torch.ones(4, 3)).item()  # |2 y|^2
        12.0
    """
    require_batch(y, "y")
    return sample_gradients(critic, y).flatten(1).square().sum(1).mean()


def sample_gradients(critic: Critic, x: Tensor) -> Tensor:
    """The gradient of each sample's own output, shape of x, with its graph to the critic's parameters.

    Args:
        critic: As for `gradient_penalty`.
        x: Shape ``(N, ...)``.

    Raises:
        InvalidInput: If the critic gives several numbers per sample.
        UnsupportedOperation: If a layer normalises by batch statistics.

    Example:
        >>> sample_gradients(lambda x: x.square().sum(1), torch.tensor([[1.0], [3.0]])).tolist()
        [[2.0], [6.0]]
    """
    require_own_gradients(critic)

    def score(sample: Tensor) -> Tensor:
        f = critic(sample[None])
        if f.numel() != 1:
            message = f"the gradient of a sample needs one number per sample, the critic gives {tuple(f.shape[1:])}"
            raise InvalidInput(f"{message}; pass a function that selects one, such as `lambda x: net(x)[:, 0]`.")
        return f.reshape(())

    return vmap(grad(score), randomness="different")(x.detach())


def require_batch(x: Tensor, name: str) -> None:
    """Refuse what is no batch of real samples.

    Raises:
        InvalidInput: If it is empty, has no batch dimension, or is not floating point.

    Example:
        >>> require_batch(torch.zeros(2, 3), "x")
    """
    if x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        is_ = f"{x.dtype} of shape {tuple(x.shape)}"
        raise InvalidInput(f"gradients are taken at a batch of real samples, {name} is {is_}; pass floats (N, ...).")


def require_own_gradients(critic: Critic) -> None:
    """Refuse a critic in which the output of one sample depends on the others.

    Raises:
        UnsupportedOperation: If a layer normalises by batch statistics; names it.

    Example:
        >>> require_own_gradients(nn.BatchNorm1d(3).eval())
    """
    if not isinstance(critic, nn.Module):
        return
    for path, module in critic.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            at = path or "(the critic itself)"
            message = f"`{at}` normalises by batch statistics, so samples have no gradients of their own"
            raise UnsupportedOperation(f"{message}. Use one of single samples, or call eval() on it.", path=path)
