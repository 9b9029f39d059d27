"""Proofs on a torus: the constraint at every frequency, rounding included. Floor 2."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lipcert.lmi.normal_form import Multipliers, NormalForm
from lipcert.lmi.proof import holds, least_room, proven
from lipcert.lmi.torus import TorusForm

_CHUNK_BYTES = 2**26


def chunks(form: TorusForm) -> list[Tensor]:
    """The frequencies, a few at a time: so many that the matrices of a proof fit a small memory."""
    each = 8 * sum((2 * len(bend.alpha)) ** 2 * 6 for bend in form.bends) + 8 * (2 * form.inputs) ** 2
    return list(form.frequencies().split(max(1, _CHUNK_BYTES // each)))


def holds_on(form: TorusForm, multipliers: Multipliers, bound: float) -> bool:
    """Whether multipliers, ``(rows,)`` each, prove ``bound`` at every frequency, rounding included."""
    twice = _twice(multipliers)
    return all(holds(form.real_at(some), twice, bound) for some in chunks(form))


def prove_on(
    form: TorusForm, small: NormalForm, multipliers: Multipliers, interior: Multipliers | None = None
) -> tuple[float, Multipliers]:
    """A bound proven at every frequency from multipliers, and the multipliers that prove it; see `lipcert.lmi.prove`.

    Args:
        form: The part on its torus.
        small: Its complex form at every frequency, reduced.
        multipliers: What a solver proposes.
        interior: Multipliers that are feasible with room.
    """
    sample = form.real_at(chunks(form)[0])
    room = partial(least_room, sample, _twice(multipliers))
    return proven(small, multipliers, interior, room, partial(holds_on, form), apart=False)


def _twice(multipliers: Multipliers) -> dict[str, Tensor]:
    return {name: torch.cat([lam, lam]) for name, lam in multipliers.items()}
