"""Proofs on a torus: the constraint at every frequency, rounding included. Floor 2."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from lipcert.kernel.rounding import round_up
from lipcert.lmi.elimination import tighten
from lipcert.lmi.normal_form import Multipliers, NormalForm
from lipcert.lmi.proof import WEAKEST, holds, least_room, proven
from lipcert.lmi.torus import TorusForm
from lipcert.ranks import Map, in_process

_CHUNK_BYTES = 2**26


def chunks(form: TorusForm) -> list[Tensor]:
    """The frequencies, a few at a time: so many that the matrices of a proof fit a small memory."""
    each = 8 * sum((2 * len(bend.alpha)) ** 2 * 6 for bend in form.bends) + 8 * (2 * form.inputs) ** 2
    return list(form.frequencies().split(max(1, _CHUNK_BYTES // each)))


def holds_on(form: TorusForm, multipliers: Multipliers, bound: float, over: Map = in_process) -> bool:
    """Whether multipliers, ``(rows,)`` each, prove ``bound`` at every frequency, rounding included."""
    twice = _twice(multipliers)
    every = chunks(form)
    # Where a proof fails, it mostly fails at once: the first chunk is looked at before the others are dealt out.
    if not holds(form.real_at(every[0]), twice, bound):
        return False
    return all(over(lambda some: holds(form.real_at(some), twice, bound), every[1:]))


def prove_on(
    form: TorusForm,
    small: NormalForm,
    multipliers: Multipliers,
    interior: Multipliers | None = None,
    over: Map = in_process,
) -> tuple[float, Multipliers]:
    """A bound proven at every frequency from multipliers, and the multipliers that prove it; see `lipcert.lmi.prove`.

    Args:
        form: The part on its torus.
        small: Its complex form at every frequency, reduced.
        multipliers: What a solver proposes.
        interior: Multipliers that are feasible with room.
        over: Where the frequencies are proved, a few at a time.
    """
    sample = form.real_at(chunks(form)[0])
    room = partial(least_room, sample, _twice(multipliers))
    # A look at all frequencies is dear, and a solver's multipliers are mostly feasible: a little room will do.
    rho = tighten(small, multipliers)
    if 0.0 < rho < float("inf"):
        least = max(room(rho**0.5), WEAKEST)
        for strength in (least, 16.0 * least, 256.0 * least):
            bound = round_up(Fraction(rho**0.5) * (1 + Fraction(strength)))
            if holds_on(form, multipliers, bound, over):
                return bound, multipliers
    return proven(small, multipliers, interior, room, partial(holds_on, form, over=over), apart=False)


def _twice(multipliers: Multipliers) -> dict[str, Tensor]:
    return {name: torch.cat([lam, lam]) for name, lam in multipliers.items()}
