r"""One entry of a part's output, and its input in other norms than l2. Floor 2.

If multipliers and weights :math:`\tau \ge 0` satisfy

.. math:: \sum_i \tau_i \delta x_i^2 - \delta y^2
          + 2 \sum_j \lambda_j (\delta u_j - \alpha_j \delta v_j)(\delta u_j - \beta_j \delta v_j) \ge 0,

then :math:`|\delta y| \le (\sum_i \tau_i)^{1/2} |\delta x|_\infty`. Of a pair of runs :math:`\delta y = A \delta x`,
where A is made of weights and, for every activation, of a linear map that satisfies the constraint whatever it is
applied to: slopes on a diagonal; of a group, a map that keeps its sum and shortens the rest. So the constraint bounds
every column of A, and from l1 the largest of the constants of every entry of the input alone is one for all. To linf,
the largest of the constants of every entry of the output is one for all. To l1,

.. math:: \bigl(\textstyle\sum_i |\delta y_i|\bigr)^2 \le \sum_i r_i^{-2} \; \sum_i (r_i \delta y_i)^2

by Cauchy and Schwarz: a bound of :math:`r_i y_i` in l2 is one, if the squares of the inverses of r add up to at most 1.

References:
    | A quantitative geometric approach to neural-network smoothness (Wang, Prakriya, Jha, 2022): GeoLIP, linf to one
      output
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from lipcert.kernel.rounding import Array
from lipcert.linear import Diagonal
from lipcert.lmi.normal_form import INPUT, Multipliers, NormalForm, Signal, followed
from lipcert.lmi.proof import holds, least_room, proven
from lipcert.lmi.reduction import reduced


def row(form: NormalForm, number: int) -> NormalForm:
    """The form with one entry of its output.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> form = normal_form(trace(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), (3,)))
        >>> [len(block) for block in row(form, 2).output.blocks.values()]
        [1]
    """
    return replace(form, output=_changed(form.output, lambda name, block: block[number : number + 1]))


def column(form: NormalForm, number: int) -> NormalForm:
    """The form in which one entry of the input moves and the others do not.

    Example:
        >>> import torch
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> column(normal_form(trace(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), (3,))), 1).inputs
        1
    """
    return replace(_inputs(form, lambda block: block[:, number : number + 1]), inputs=1)


def stretched(form: NormalForm, stretches: Tensor) -> NormalForm:
    """The form whose output's entries are multiplied by numbers, ``(outputs,)``."""
    return followed(form, Diagonal(stretches, tuple(stretches.shape)))


def stretches(shares: Tensor) -> Tensor:
    r"""About :math:`w_i^{-1/2}`, for positive w: float64 numbers whose squares' inverses add up to at most 1, exactly.

    Example:
        >>> import torch
        >>> stretches(torch.tensor([1.0, 3.0]).double()).tolist()
        [2.0, 1.1547005383792517]
    """
    found = (shares / shares.sum()).rsqrt()
    while sum((Fraction(r) ** -2 for r in found.tolist()), Fraction(0)) > 1:
        found = torch.nextafter(found, found.new_tensor(torch.inf))
    return found


def live(form: NormalForm) -> Tensor:
    """Which entries of the input anything reads, by number."""
    found = form.zeros(form.inputs) != 0.0
    for signal in _signals(form):
        if INPUT in signal.blocks:
            found = found | (signal.magnitudes()[INPUT] != 0.0).any(0)
    return found.nonzero()[:, 0]


def picked(form: NormalForm, numbers: Tensor) -> NormalForm:
    """The form in which some entries of the input move and the others do not."""
    return replace(_inputs(form, lambda block: block[:, numbers]), inputs=len(numbers))


def divided(form: NormalForm, weights: Tensor) -> NormalForm:
    r"""The form in the variables :math:`\tau_i^{1/2} x_i`, for computing only; weights are positive, ``(inputs,)``."""
    return _inputs(form, lambda block: block / weights.sqrt())


def prove_weighted(
    form: NormalForm, multipliers: Multipliers, weights: Tensor, interior: Multipliers | None = None
) -> tuple[Array | None, Multipliers]:
    r"""Weights :math:`\tau` proven with multipliers, in proportion to those given, and the multipliers that prove them.

    Args:
        form: The network in normal form; its output is bounded in l2.
        multipliers: What a solver proposes.
        weights: Positive ones for every entry of the input, ``(inputs,)``.
        interior: Multipliers that are feasible with room.

    Returns:
        ``None`` in place of weights if no proof is found.
    """
    share = weights / weights.sum()
    small = reduced(divided(form, share))

    def priced(bound: float) -> Array:
        return (bound * bound * share).numpy()

    near = any(layer.kept is not None for layer in form.layers)
    room = lambda bound: least_room(form, multipliers, priced(bound))  # noqa: E731
    shown = lambda candidate, bound: holds(form, candidate, priced(bound))  # noqa: E731
    bound, found = proven(small, multipliers, interior, room, shown, near)
    return (priced(bound) if bound < float("inf") else None), found


def _signals(form: NormalForm) -> list[Signal]:
    kept = [layer.kept for layer in form.layers if layer.kept is not None]
    return [*(layer.v for layer in form.layers), *kept, form.output]


def _inputs(form: NormalForm, change: Callable[[Tensor], Tensor]) -> NormalForm:
    """The form with the columns of the input changed in all that reads it."""
    there = partial(_changed, change=lambda name, block: change(block) if name == INPUT else block)
    layers = tuple(
        replace(layer, v=there(layer.v), kept=None if layer.kept is None else there(layer.kept))
        for layer in form.layers
    )
    return replace(form, layers=layers, output=there(form.output))


def _changed(signal: Signal, change: Callable[[str, Tensor], Tensor]) -> Signal:
    def each(blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: change(name, block) for name, block in blocks.items()}

    sizes = None if signal.sizes is None else each(signal.sizes)
    return Signal(each(signal.blocks), sizes, signal.roundings)
