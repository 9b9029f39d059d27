r"""An equivalent form with fewer variables, for solvers only: the proof is about the form itself. Floor 2.

What layers keep is put where it is read. Of the input, only what is read of it enters the constraint; of the output
Y, only :math:`Y^T Y`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipcert.lmi.normal_form import INPUT, Multipliers, NormalForm, Signal

_RANK = 1e-13
"""Directions of the input that are read less than this, relative to the most, are rounding errors."""


def reduced(form: NormalForm) -> NormalForm:
    """An equivalent form without kept variables, its input no larger than what is read of it, and an output likewise.

    Example:
        >>> from lipcert import trace
        >>> from lipcert.lmi import normal_form
        >>> form = normal_form(trace(torch.nn.Sequential(torch.nn.Linear(9, 4), torch.nn.ReLU()), (9,)))
        >>> form.inputs, reduced(form).inputs
        (9, 4)
    """
    form = settled(form)
    readers = [layer.v for layer in form.layers] + [form.output]
    basis = _basis([signal.blocks[INPUT] for signal in readers if INPUT in signal.blocks])
    if basis is None or basis.shape[-1] >= form.inputs:
        return form
    signals = [
        Signal({**signal.blocks, INPUT: signal.blocks[INPUT] @ basis}) if INPUT in signal.blocks else signal
        for signal in readers
    ]
    layers = tuple(replace(layer, v=signal) for layer, signal in zip(form.layers, signals[:-1], strict=True))
    return NormalForm(basis.shape[-1], layers, signals[-1])


def settled(form: NormalForm) -> NormalForm:
    """An equivalent form without kept variables, with the same input and an output no larger than what it reads."""
    form = without_kept(form)
    return NormalForm(form.inputs, form.layers, _fewer_rows(form.output))


def rescaled(form: NormalForm, multipliers: Multipliers, rho: float | Tensor) -> NormalForm:
    """The same constraint in variables in which ``rho`` and all multipliers become ones. For computing only.

    With weights of the input's entries in place of rho, these become ones.
    """
    root = {INPUT: form.zeros(form.inputs).real + rho**0.5}
    root |= {layer.name: layer.spread(multipliers[layer.name]).sqrt() for layer in form.layers}

    def scaled(signal: Signal, rows: Tensor | None) -> Signal:
        blocks = {name: block / root[name] for name, block in signal.blocks.items()}
        return Signal(blocks if rows is None else {name: rows[:, None] * block for name, block in blocks.items()})

    layers = tuple(replace(layer, v=scaled(layer.v, root[layer.name])) for layer in form.layers)
    return NormalForm(form.inputs, layers, scaled(form.output, None))


def without_kept(form: NormalForm) -> NormalForm:
    """An equivalent form without kept variables, with the same input and output."""
    if all(layer.kept is None for layer in form.layers):
        return form
    known: dict[str, Signal] = {}
    layers = []
    for layer in form.layers:
        layers.append(replace(layer, v=_put(layer.v, known), kept=None))
        if layer.kept is not None:
            known[layer.passed] = _put(layer.kept, known)
    return NormalForm(form.inputs, tuple(layers), _put(form.output, known))


def _put(signal: Signal, known: dict[str, Signal]) -> Signal:
    """A signal with the variables whose own signals are known replaced by these."""
    total: dict[str, Tensor] = {}
    for name, block in signal.blocks.items():
        parts = {a: block @ inner for a, inner in known[name].blocks.items()} if name in known else {name: block}
        for a, part in parts.items():
            total[a] = total[a] + part if a in total else part
    return Signal(total)


def _basis(blocks: list[Tensor]) -> Tensor | None:
    """An orthonormal basis ``(inputs, rank)`` of the rows of all blocks; ``None`` for no blocks."""
    if not blocks:
        return None
    if blocks[0].ndim > 2:  # a batch: every entry keeps as many columns as all rows together need
        return torch.linalg.qr(torch.cat(blocks, dim=-2).mH).Q
    Q = torch.linalg.qr(blocks[0].mT).Q
    largest = max(float(torch.linalg.matrix_norm(block)) for block in blocks)
    for block in blocks[1:]:
        if Q.shape[1] >= Q.shape[0]:
            break
        rest = block - (block @ Q) @ Q.mT
        rest = rest - (rest @ Q) @ Q.mT
        if float(torch.linalg.matrix_norm(rest)) > _RANK * largest:
            U, S, _ = torch.linalg.svd(rest.mT, full_matrices=False)
            Q = torch.cat([Q, U[:, _RANK * largest < S]], dim=1)
    return Q


def _fewer_rows(signal: Signal) -> Signal:
    names = list(signal.blocks)
    joined = torch.cat([signal.blocks[name] for name in names], dim=-1)
    if joined.shape[-2] <= joined.shape[-1]:
        return signal
    R = torch.linalg.qr(joined, mode="r").R
    widths = [signal.blocks[name].shape[-1] for name in names]
    return Signal(dict(zip(names, R.split(widths, dim=-1), strict=True)))
