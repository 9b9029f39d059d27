"""`lipcheck` and `assert_lipschitz` as hypothesis sees them: the search is steered, the outcome is counted. Floor 6."""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from typing import Any

from hypothesis import currently_in_test_context, event, target
from hypothesis.errors import InvalidArgument
from torch import Tensor, nn

from lipcert import falsify
from lipcert.falsify import Proved, Refuted, Verdict
from lipcert.linear import Shape


@wraps(falsify.lipcheck)
def lipcheck(*arguments: Any, **options: Any) -> Verdict:
    """As `lipcert.falsify.lipcheck`; inside a hypothesis test the verdict is reported to hypothesis.

    The best quotient over the claim is a target, so that hypothesis looks for networks near the claim, and the kind of
    the verdict an event in its statistics.
    """
    verdict = falsify.lipcheck(*arguments, **options)
    if currently_in_test_context():
        _report(verdict)
    return verdict


@wraps(falsify.assert_lipschitz)
def assert_lipschitz(
    model: nn.Module, bound: float, example_input: Tensor | Shape, *, require: Any = "proof", **options: Any
) -> Verdict:
    """As `lipcert.falsify.assert_lipschitz`; inside a hypothesis test the verdict is reported to hypothesis."""
    falsify.require_known(require)
    return falsify.judged(lipcheck(model, example_input, bound, **options), require)


def _report(verdict: Verdict) -> None:
    kind = type(verdict).__name__.lower()
    event(f"lipcert: {kind}", verdict.engine if isinstance(verdict, Refuted) else "")
    seen = verdict.certificate.bound if isinstance(verdict, Proved) else verdict.witness.ratio
    if verdict.claim.bound > 0.0:
        with suppress(InvalidArgument):  # hypothesis takes one number a label and test case: the first claim's
            target(min(seen / verdict.claim.bound, 1e6), label=f"lipschitz quotient, {kind}")
