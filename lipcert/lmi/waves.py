"""Proofs on a torus: the constraint at every frequency, rounding included. Floor 2."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lipcert.kernel.psd import top_eigenvalue_upper
from lipcert.kernel.rounding import Array, add_up, gamma, mul_up, round_up
from lipcert.lmi.elimination import factorise, tighten
from lipcert.lmi.head import OUTPUT, summed
from lipcert.lmi.normal_form import Multipliers, NormalForm, Signal
from lipcert.lmi.proof import WEAKEST, Proof, holds, least_room, proven
from lipcert.lmi.torus import TorusForm
from lipcert.ranks import Map, in_process

_CHUNK_BYTES = 2**26
_ROOM = (2.0**-20, 2.0**-17, 2.0**-14, 2.0**-11)


def chunks(form: TorusForm) -> list[Tensor]:
    """The frequencies, a few at a time: so many that the matrices of a proof fit a small memory."""
    each = 8 * sum((2 * len(bend.alpha)) ** 2 * 6 for bend in form.bends) + 8 * (2 * form.inputs) ** 2
    return list(form.frequencies().split(max(1, _CHUNK_BYTES // each)))


def holds_on(form: TorusForm, multipliers: Multipliers, bound: float, over: Map = in_process) -> bool:
    """Whether multipliers, ``(rows,)`` each, prove ``bound`` at every frequency, rounding included."""
    if form.head is not None:
        return _holds_with_head(form, multipliers, bound, over)
    double = twice(multipliers)
    every = chunks(form)
    # Where a proof fails, it mostly fails at once: the first chunk is looked at before the others are dealt out.
    if not holds(form.real_at(every[0]), double, bound):
        return False
    return all(over(lambda some: holds(form.real_at(some), double, bound), every[1:]))


def prove_on(
    form: TorusForm,
    small: NormalForm,
    multipliers: Multipliers,
    interior: Multipliers | None = None,
    over: Map = in_process,
) -> tuple[float, Multipliers]:
    """A bound proven at every frequency from multipliers, and the multipliers that prove it; see `lipcert.lmi.prove`.

    Args:
        form: The part on its torus, without a head.
        small: Its complex form at every frequency, reduced.
        multipliers: What a solver proposes.
        interior: Multipliers that are feasible with room.
        over: Where the frequencies are proved, a few at a time.
    """
    sample = form.real_at(chunks(form)[0])
    room = partial(least_room, sample, twice(multipliers))
    # A look at all frequencies is dear, and a solver's multipliers are mostly feasible: a little room will do.
    rho = tighten(small, multipliers)
    if 0.0 < rho < float("inf"):
        least = max(room(rho**0.5), WEAKEST)
        for strength in (least, 16.0 * least, 256.0 * least):
            bound = round_up(Fraction(rho**0.5) * (1 + Fraction(strength)))
            if holds_on(form, multipliers, bound, over):
                return bound, multipliers
    return proven(small, multipliers, interior, room, partial(holds_on, form, over=over), apart=False)


def prove_with_head(
    form: TorusForm, multipliers: Multipliers, rho: float, over: Map = in_process
) -> tuple[float, Multipliers]:
    """A bound of a part with its head, and the multipliers that prove it; infinity if none is proven.

    Args:
        form: The part on its torus.
        multipliers: What a solver proposes, for ``rho``; they are raised with it.
        rho: The least squared bound they give, in floating point.
        over: Where the frequencies are proved, a few at a time.
    """
    for room in _ROOM:
        bound = round_up(Fraction(rho**0.5) * (1 + Fraction(room)))
        raised = {name: lam * (bound**2 / rho) for name, lam in multipliers.items()}
        if holds_on(form, raised, bound, over):
            return bound, raised
    return float("inf"), multipliers


def _holds_with_head(form: TorusForm, multipliers: Multipliers, bound: float, over: Map) -> bool:
    every = chunks(form)
    found = [N for N in over(lambda some: _left_on_output(form, some, multipliers, bound), every) if N is not None]
    if len(found) < len(every):
        return False
    P = _prices(np.concatenate(found), form.weights(form.frequencies()).numpy())
    if P is None:
        return False
    largest = np.max(np.abs(P), axis=0)
    ends = np.cumsum([len(some) for some in every]).tolist()
    items = [(some, P[end - len(some) : end]) for some, end in zip(every, ends, strict=True)]
    double = twice(multipliers)
    return all(over(lambda item: _holds_at(form, *item, largest, double, bound), items))


def _left_on_output(form: TorusForm, some: Tensor, multipliers: Multipliers, bound: float) -> Array | None:
    """``B H^-1 B*`` at some frequencies, in floating point: nothing rests on it."""
    full = form.headed_at(some)
    factors = factorise(replace(full, output=Signal({})), multipliers)
    found = None if factors is None else summed(full, factors, bound**2)
    return None if found is None else found.N.numpy()


def _prices(N: Array, weights: Array) -> Array | None:
    """Real matrices ``[[Re P, -Im P], [Im P, Re P]]``, P above N, with ``sum of weights Re P <= I`` shown."""
    re, im = np.real(N), np.imag(N)
    total = np.einsum("f,fij->ij", weights, re)
    if not np.all(np.isfinite(re)) or not np.all(np.isfinite(im)):
        return None
    top = float(np.linalg.eigvalsh(total)[-1])
    if not top < 1.0:
        return None
    room, one = (1.0 - top) / 4.0, np.eye(N.shape[-1])
    re = (1.0 + room) * 0.5 * (re + re.swapaxes(-1, -2)) + 2.0 * room * one
    im = (1.0 + room) * 0.5 * (im - im.swapaxes(-1, -2))
    total = np.einsum("f,fij->ij", weights, re)
    # Weights are 1/F or 2/F, rounded.
    size = mul_up(np.einsum("f,fij->ij", weights, np.abs(re)), 1.0 + 4.0 * gamma(len(re) + 4))
    error = np.max(mul_up(np.sum(size, axis=-1), 2.0 * gamma(len(re) + len(total) + 8)))
    if not add_up(top_eigenvalue_upper((0.5 * (total + total.T)[None],)).bound, error) <= 1.0:
        return None
    return np.concatenate([np.concatenate([re, -im], axis=-1), np.concatenate([im, re], axis=-1)], axis=-2)


def _holds_at(form: TorusForm, some: Tensor, P: Array, largest: Array, multipliers: Multipliers, bound: float) -> bool:
    proof = Proof(replace(form.real_at(some), output=Signal({})), multipliers)
    proof.border(OUTPUT, P, largest, form.head_at(some))
    return proof.holds(bound)


def twice(multipliers: Multipliers) -> dict[str, Tensor]:
    """Multipliers for `TorusForm.real_at`."""
    return {name: torch.cat([lam, lam]) for name, lam in multipliers.items()}
