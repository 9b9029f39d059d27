r"""A user's gradient penalty, held against the definition where arithmetic gives the answer. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipcert.errors import InvalidInput, PenaltyMismatch
from lipcert.freeze import evaluation_copy, unchanged_randomness
from lipcert.linear import Shape
from lipcert.penalties.gradient import Critic, Side, TwoSided, require_batch, require_own_gradients
from lipcert.penalties.probes import Along, Definition, Quadratic, close, lengths, points, recognised

Penalty = Callable[[Critic, Tensor, Tensor], Tensor]


def require_gradient_penalty(
    penalty: Penalty,
    critic: Critic,
    x: Tensor,
    y: Tensor,
    *,
    target: float = 1.0,
    side: Side = TwoSided(),  # noqa: B008
    weight: float = 1.0,
    tolerance: float = 1e-4,
) -> None:
    r"""Require that a function is the penalty :math:`w \cdot mean (|\nabla f(\hat x)|_2 - t)^2` between x and y.

    It is called on linear and quadratic critics of the shapes of yours, whose gradients are known, and on a copy of
    your critic in evaluation mode at (x, x) and (y, y), where there is nothing to interpolate and a loop over samples
    gives the answer. Values and derivatives with respect to parameters are compared; that gradients are taken between x
    and y is seen from critics that are steep elsewhere.

    Guaranteed: at these critics and points, value and derivatives are those of the definition, to the tolerance. Not
    seen: one :math:`\epsilon` for the whole batch (the same in the mean), and an epsilon under the root that is below
    the tolerance (up to about 2e-9, when the target is 1).

    Args:
        penalty: Called as ``penalty(critic, x, y)``; gives a scalar. Bind generators and options before.
        critic: Gives one number per sample. Never changed.
        x: Shape ``(N, ...)`` with at least two samples.
        y: As x.
        target: The norm t that it is to aim at.
        side: Whether it is to penalise shorter gradients too.
        weight: What it is to multiply the mean with: 10 in the paper, if that is inside the function.
        tolerance: Relative; absolute in units of the weight.

    Raises:
        PenaltyMismatch: If it is something else; the message names the mistake where it is a known one.
        InvalidInput: If x and y are no batches of one shape with two samples, or the penalty gives no scalar.
        UnsupportedOperation: If the critic normalises by batch statistics.

    References:
        | Improved Training of Wasserstein GANs (Gulrajani et al., 2017), https://arxiv.org/abs/1704.00028

    Example:
        >>> def mistaken(critic, x, y):
        ...     x = x.detach().requires_grad_(True)
        ...     (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        ...     return (g.norm(2, dim=1) - 1).square().mean()
        >>> critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
        >>> require_gradient_penalty(mistaken, critic, torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
        Traceback (most recent call last):
        lipcert.errors.PenaltyMismatch: ... the norm is over dim=1 only, ...
    """
    require_batch(x, "x")
    require_batch(y, "y")
    if x.shape != y.shape or len(x) < 2 or not weight or not math.isfinite(weight):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}, and weight={weight}"
        raise InvalidInput(f"a penalty is told from its mistakes by two batches of two samples or more, got {shapes}.")
    require_own_gradients(critic)
    definition = Definition(target, side, weight)
    x, y = x.detach(), y.detach()
    with unchanged_randomness(), torch.enable_grad():
        own = evaluation_copy(critic) if isinstance(critic, nn.Module) else critic
        out = tuple(own(x).shape[1:])
        if math.prod(out) != 1:
            message = f"a gradient penalty needs one number per sample, the critic gives {out}"
            raise InvalidInput(f"{message}; pass a function that selects one, such as `lambda x: net(x)[:, 0]`.")
        _require_values(penalty, points(x), out, definition, tolerance)
        _require_derivative_at_zero(penalty, points(x), out, definition, tolerance)
        _require_between(penalty, points(x), out, definition, tolerance)
        for name, z in (("x", x), ("y", y)):
            expected = _by_loop(own, z, definition)
            parameters = _parameters(own) if isinstance(own, nn.Module) else []
            value = _scalar(penalty(own, z, z))
            where = f"your critic at x = y = {name}"
            if not close(value.item(), expected.item(), definition, tolerance):
                raise _mismatch(where, value, expected)
            _require_derivatives(where, value, expected, parameters, definition, tolerance)


def _require_values(penalty: Penalty, z: Tensor, out: Shape, definition: Definition, tolerance: float) -> None:
    T = definition.target or 1.0
    direction = z[-1] / lengths(z[-1:])
    probes = {
        "a linear critic with a gradient of three times the target": Quadratic(3.0 * T * direction, 0.0, out),
        "a linear critic with a gradient of half the target": Quadratic(0.5 * T * direction, 0.0, out),
        "a quadratic critic, with gradients from below the target to above": Quadratic(0.0 * direction, 2.0 * T, out),
    }
    values = [_scalar(penalty(probe, z, z)) for probe in probes.values()]
    truths = [definition.of(probe.gradients(z)) for probe in probes.values()]
    found = list(zip(probes.items(), values, truths, strict=True))
    for (name, _), value, expected in found:
        if not close(value.item(), expected.item(), definition, tolerance):
            seen = [(probe, z, value.item()) for (_, probe), value, _ in found]
            raise _mismatch(name, value, expected, recognised(seen, definition, tolerance))
    for (name, probe), value, expected in found:
        _require_derivatives(name, value, expected, _parameters(probe), definition, tolerance)


def _require_derivative_at_zero(
    penalty: Penalty, z: Tensor, out: Shape, definition: Definition, tolerance: float
) -> None:
    """Where the gradient is zero, an epsilon under the root shows in the value, and a bare root in the derivative."""
    probe = Quadratic(torch.zeros_like(z[0]), 0.0, out)
    value, expected = _scalar(penalty(probe, z, z)), definition.of(probe.gradients(z))
    where = "a critic that is zero"
    if not close(value.item(), expected.item(), definition, tolerance):
        bias = definition.target - math.sqrt(max(0.0, value.item() / definition.weight))
        what = f"about {bias * bias:.1e} is added under the square root" if 0.0 < bias < 0.5 * definition.target else ""
        raise _mismatch(where, value, expected, what)
    if value.requires_grad:
        if not bool(torch.isfinite(_derivatives(value, _parameters(probe))).all()):
            advice = "take torch.linalg.vector_norm, whose derivative at zero is zero"
            raise PenaltyMismatch(f"on {where}, the penalty's derivatives are NaN: a bare square root; {advice}.")


def _require_between(penalty: Penalty, z: Tensor, out: Shape, definition: Definition, tolerance: float) -> None:
    T = definition.target or 1.0
    x, y = (each.expand_as(z).contiguous() for each in (z[:1], z[-1:]))
    # From y to x the slope is alpha = 2 T to alpha + beta = 3 T; off the line it is kappa times the distance.
    value = _scalar(penalty(Along(y[0], x[0], (0.0, 0.0, 1e3 * T), out), x, y))
    expected = definition.of(torch.zeros_like(z))
    if not close(value.item(), expected.item(), definition, 10.0 * tolerance):
        what = "gradients are taken off the segments between x and y; use one number epsilon for each sample"
        raise _mismatch("a critic that is flat along x - y and steep off it", value, expected, what)
    value = _scalar(penalty(Along(y[0], x[0], (2.0 * T, T, 0.0), out), x, y))
    ends = [definition.mean(torch.tensor([end * T], dtype=z.dtype)).item() for end in (2.0, 3.0)]
    for end, name in zip(ends, ("y", "x"), strict=True):
        if close(value.item(), end, definition, tolerance):
            message = f"gradients are taken at {name} alone; take them at random points between x and y"
            raise PenaltyMismatch(f"the penalty is not the definition: {message}.")
    low, high = sorted(ends)
    room = tolerance * (abs(low) + abs(high))
    if not low - room <= value.item() <= high + room:
        message = f"{value.item():.8g} is outside [{low:.8g}, {high:.8g}], what points between x and y can give"
        raise PenaltyMismatch(f"the penalty is not the definition: {message}; use epsilon in [0, 1].")


def _require_derivatives(
    where: str,
    value: Tensor,
    expected: Tensor,
    parameters: Sequence[Tensor],
    definition: Definition,
    tolerance: float,
) -> None:
    if not parameters or not expected.requires_grad:
        return
    wanted = _derivatives(expected, parameters)
    size = torch.linalg.vector_norm(wanted).item()
    if not value.requires_grad:
        if size > tolerance * abs(definition.weight):
            advice = "pass create_graph=True to torch.autograd.grad, and detach nothing after it"
            raise PenaltyMismatch(f"on {where}, the penalty has no derivatives, so it trains nothing; {advice}.")
        return
    got = _derivatives(value, parameters)
    error = torch.linalg.vector_norm(got - wanted).item()
    if not error <= 10.0 * tolerance * (size + abs(definition.weight)):
        none = "they are zero: create_graph=True is missing, or the gradient is detached" if not got.any() else ""
        ratio = none or f"their lengths are {torch.linalg.vector_norm(got).item():.6g} and {size:.6g}"
        advice = "differentiate through the whole penalty"
        raise PenaltyMismatch(f"on {where}, value is right and derivatives by parameters are not: {ratio}; {advice}.")


def _by_loop(critic: Critic, z: Tensor, definition: Definition) -> Tensor:
    norms = []
    for sample in z:
        leaf = sample[None].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(
            critic(leaf).sum(), leaf, create_graph=True, allow_unused=True, materialize_grads=True
        )
        norms.append(lengths(gradient))
    return definition.mean(torch.cat(norms))


def _parameters(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _scalar(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInput(f"a penalty gives one number, as a tensor that can be differentiated; got {shown}.")
    return value.reshape(())


def _derivatives(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """With respect to all parameters, side by side; zero where there are none."""
    each = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([tensor.flatten() for tensor in each])


def _mismatch(where: str, value: Tensor, expected: Tensor, what: str = "") -> PenaltyMismatch:
    gives = f"on {where} it gives {value.item():.8g}, the definition {expected.item():.8g}"
    advice = what or "no known mistake explains it; compare with lipcert.penalties.gradient_penalty"
    return PenaltyMismatch(f"the penalty is not the definition: {gives}. Probably: {advice}.")
