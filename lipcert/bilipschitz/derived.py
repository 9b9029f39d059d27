"""What both sides of every step mean for its inverse and its log-determinant, as a table. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from lipcert.bilipschitz.claim import BiLipschitz
from lipcert.bilipschitz.steps import Kind
from lipcert.contraction import inverse_constant, iterations_needed, logdet_terms_needed
from lipcert.errors import BudgetExceeded
from lipcert.report import format_down, format_up


@dataclass(frozen=True)
class DerivedRow:
    """Numbers that follow from both sides of a step.

    Attributes:
        name: The step.
        kind: Its shape.
        lower: Its lower side.
        upper: Its upper side.
        constant: L of the branch; ``None`` where there is none.
        inverse: A Lipschitz constant of the inverse.
        iterations: How many iterations reduce a first step of length 1 to the error asked for; 2 for couplings;
            ``None`` where the inverse is not iterated, or never gets there.
        terms: How many terms of the log-determinant's power series leave no more nats than asked for; ``None`` except
            for contracting residual blocks. The log-determinant of a coupling is 0.
    """

    name: str
    kind: Kind
    lower: float
    upper: float
    constant: float | None
    inverse: float
    iterations: int | None
    terms: int | None


def derived_rows(found: BiLipschitz, *, error: float = 1e-6, nats: float = 1e-3) -> tuple[DerivedRow, ...]:
    """The numbers of every step, from the input to the output.

    Args:
        found: Both sides of a network.
        error: l2 error of a block's inverse, relative to the length of the first step of its iteration.
        nats: Error of a block's log-determinant.

    Raises:
        InvalidInput: If ``error`` or ``nats`` is not positive and finite.
    """
    rows = []
    for step in found.steps:
        iterations, terms = (2 if step.kind is Kind.COUPLING else None), None
        if step.rate is not None and step.rate < 1.0:
            iterations = _counted(iterations_needed, step.rate, 1.0, error)
            if step.centre == 1.0:
                terms = _counted(logdet_terms_needed, step.rate, math.prod(step.block.input.shape), nats)
        inverse = inverse_constant(step.lower)
        rows.append(DerivedRow(step.name, step.kind, step.lower, step.upper, step.constant, inverse, iterations, terms))
    return tuple(rows)


def derived_table(found: BiLipschitz, *, error: float = 1e-6, nats: float = 1e-3) -> Table:
    """`derived_rows` for a terminal: lower sides rounded down, everything else rounded up.

    Example:
        >>> from torch import nn
        >>> from lipcert.bilipschitz import bilipschitz
        >>> derived_table(bilipschitz(nn.LeakyReLU(0.5), (2,))).row_count
        1
    """
    sides = f"[{format_down(found.lower)}, {format_up(found.upper)}]"
    table = Table(
        title=f"|f(x) - f(y)|_2 / |x - y|_2 in {sides}, inverse <= {format_up(found.inverse_constant)}",
        caption=f"iterations: to {error:g} of the first step; terms: of the log-determinant, to {nats:g} nats",
    )
    table.add_column("step", overflow="fold")
    for header in ("kind", "both sides", "L", "inverse", "iterations", "terms"):
        table.add_column(header, justify="left" if header == "kind" else "right", no_wrap=True)
    for row in derived_rows(found, error=error, nats=nats):
        low, high = format_down(row.lower, 4), format_up(row.upper, 4)
        numbers = ("" if number is None else str(number) for number in (row.iterations, row.terms))
        constant = "" if row.constant is None else format_up(row.constant, 4)
        table.add_row(
            escape(row.name), row.kind.value, escape(f"[{low}, {high}]"), constant, format_up(row.inverse, 4), *numbers
        )
    return table


def _counted(count, *arguments) -> int | None:
    try:
        return count(*arguments)
    except BudgetExceeded:
        return None
