"""A claim in, a verdict out. Floor 5."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lipcert.certificate import Certificate, Validity, Witness
from lipcert.certifiers import Auto, Certifier, Product, certify_on
from lipcert.domain import Domain, WholeSpace
from lipcert.enclosure import Stretch, stretch
from lipcert.errors import (
    BudgetExceeded,
    InvalidInput,
    LipschitzViolation,
    NotLipschitz,
    Unproved,
    UnsupportedOperation,
)
from lipcert.falsify.blame import blamed
from lipcert.falsify.problem import Problem
from lipcert.falsify.search import Confirm, Effort, Found, search
from lipcert.falsify.shrink import shrink
from lipcert.falsify.verdict import Claim, Proved, Refuted, Unknown, Verdict
from lipcert.freeze import freeze
from lipcert.graph import Graph
from lipcert.linear import Shape
from lipcert.norms import L2, Norms, require_supported
from lipcert.trace import trace

SHRINKING, AFTERWARDS = 2.0, 0.5
"""Seconds at most for making a pair readable, and for looking for a steeper one."""


def lipcheck(
    model: nn.Module,
    example_input: Tensor | Shape,
    bound: float,
    *,
    norms: Norms = L2,
    domain: Domain = WholeSpace(),  # noqa: B008
    effort: Effort = Effort(),  # noqa: B008
    by: Certifier | None = None,
    generator: torch.Generator | None = None,
) -> Verdict:
    """Decide a Lipschitz claim about a model's evaluation function: proved, refuted, or unknown with both numbers.

    A proof is a certificate whose bound is at most the claimed one. A refutation is a pair of inputs in the domain
    whose quotient exceeds the claimed bound in exact arithmetic, on the stored weights read as exact numbers. Anything
    else, a violation that only float64 sees included, is unknown.

    Args:
        model: Copied, never changed.
        example_input: One or more inputs with a batch dimension, from which the search also starts; or the shape of one
            input, without it.
        bound: The claim, read as an exact number.
        norms: Norms on input and output.
        domain: Where both inputs must lie.
        effort: Of the search for a pair.
        by: What proves. Default: layer by layer before the search, and by `Auto` in about as many seconds after it.
        generator: Source of the search. Default: a generator seeded with 0.

    Raises:
        InvalidInput: If the bound is not a finite number >= 0, or the example or the norms are none.
        UnsupportedOperation: If the model cannot be captured faithfully, or does what no rule covers.
        NotFinite: If a weight is NaN or infinite.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> str(lipcheck(layer, (2,), 4.01))[:33], type(lipcheck(layer, (2,), 3.999)).__name__
        ('PROVED  Lip(f; l2->l2) <= 4.01: 4', 'Refuted')
    """
    case = _case(model, example_input, bound, norms, domain)
    if case.graph is None:
        return _searched(case, effort, generator)
    first = certify_on(case.graph, domain, norms, by or Product())
    if _proves(first, bound):
        return Proved(case.claim, first, case.graph)
    verdict = _searched(case, effort, generator)
    if isinstance(verdict, Refuted):
        return verdict
    second = first if by is not None else certify_on(case.graph, domain, norms, Auto(seconds=effort.seconds))
    if _proves(second, bound):
        return Proved(case.claim, second, case.graph)
    upper = min((c.bound for c in (first, second) if c.validity is Validity.RIGOROUS), default=math.inf)
    return replace(verdict, upper=upper)


def refute(
    model: nn.Module,
    example_input: Tensor | Shape,
    bound: float,
    *,
    norms: Norms = L2,
    domain: Domain = WholeSpace(),  # noqa: B008
    effort: Effort = Effort(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Refuted | Unknown:
    """Only search for a pair that breaks a claim: what `lipcheck` does between its two proofs.

    Raises:
        InvalidInput: As `lipcheck`.
        UnsupportedOperation: As `lipcheck`.
        NotFinite: As `lipcheck`.

    Example:
        >>> pair = refute(nn.AvgPool2d(1), (1, 1, 1), 0.5).witness
        >>> pair.x.tolist(), pair.y.tolist()
        ([[[0.0]]], [[[1.0]]])
    """
    return _searched(_case(model, example_input, bound, norms, domain), effort, generator)


def assert_lipschitz(
    model: nn.Module,
    bound: float,
    example_input: Tensor | Shape,
    *,
    require: Literal["proof", "no-counterexample"] = "proof",
    norms: Norms = L2,
    domain: Domain = WholeSpace(),  # noqa: B008
    effort: Effort = Effort(),  # noqa: B008
    by: Certifier | None = None,
    generator: torch.Generator | None = None,
) -> Verdict:
    """Fail unless a Lipschitz claim holds.

    Args:
        model: As for `lipcheck`, like everything else but `require`.
        bound: The claim.
        example_input: Inputs with a batch dimension, or the shape of one without it.
        require: ``"proof"`` fails unless the claim is proved; ``"no-counterexample"`` fails only if it is refuted.
        norms: Norms on input and output.
        domain: Where both inputs must lie.
        effort: Of the search.
        by: What proves.
        generator: Source of the search.

    Returns:
        The verdict, which is `Proved`, or `Unknown` if no proof was required.

    Raises:
        LipschitzViolation: If the claim is refuted; the message has the pair.
        Unproved: If a proof was required and the verdict is unknown.
        InvalidInput: As `lipcheck`.
        UnsupportedOperation: As `lipcheck`.
        NotFinite: As `lipcheck`.

    Example:
        >>> try:
        ...     assert_lipschitz(nn.MaxPool2d(3, 2), 1.0, (1, 5, 5))
        ... except LipschitzViolation as violation:
        ...     str(violation)[:54]
        'REFUTED  Lip(f; l2->l2) <= 1.0: two inputs are stretch'
    """
    require_known(require)
    verdict = lipcheck(
        model, example_input, bound, norms=norms, domain=domain, effort=effort, by=by, generator=generator
    )
    return judged(verdict, require)


def require_known(require: str) -> None:
    """Refuse a requirement that does not exist: a typing mistake must not weaken a test.

    Raises:
        InvalidInput: If it is neither "proof" nor "no-counterexample".
    """
    if require not in ("proof", "no-counterexample"):
        raise InvalidInput(f"require={require!r} is neither 'proof' nor 'no-counterexample'.")


def judged(verdict: Verdict, require: str) -> Verdict:
    """The verdict itself, if it is what is required.

    Raises:
        LipschitzViolation: If the claim is refuted.
        Unproved: If a proof is required and there is none.
    """
    if isinstance(verdict, Refuted):
        raise LipschitzViolation(str(verdict))
    if isinstance(verdict, Unknown) and require == "proof":
        hint = "require='no-counterexample' accepts a claim that is only not refuted."
        raise Unproved(f"{verdict}\n  A proof was required. {hint}")
    return verdict


def violating_pair(
    model: nn.Module,
    example_input: Tensor | Shape,
    bound: float,
    *,
    norms: Norms = L2,
    domain: Domain = WholeSpace(),  # noqa: B008
    effort: Effort = Effort(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Witness | None:
    """The simplified pair of `refute`, or ``None`` if none was found.

    Raises:
        InvalidInput: As `lipcheck`.
        UnsupportedOperation: As `lipcheck`.
        NotFinite: As `lipcheck`.

    Example:
        >>> violating_pair(nn.Identity(), (2,), 1.0, effort=Effort(rounds=1)) is None
        True
    """
    verdict = refute(model, example_input, bound, norms=norms, domain=domain, effort=effort, generator=generator)
    return verdict.witness if isinstance(verdict, Refuted) else None


@dataclass(frozen=True, eq=False)
class _Case:
    """A claim about a model: what is searched, and the graph that pairs are confirmed on, or why there is none."""

    model: nn.Module
    frozen: nn.Module
    claim: Claim
    seeds: Tensor
    graph: Graph | None
    reason: str


def _case(model: nn.Module, example: Tensor | Shape, bound: float, norms: Norms, domain: Domain) -> _Case:
    claim, seeds = claim_of(example, bound, norms, domain)
    frozen = freeze(model)
    try:
        return _Case(model, frozen, claim, seeds, trace(model, claim.shape, domain), "")
    except NotLipschitz as reason:
        return _Case(model, frozen, claim, seeds, None, str(reason))


def _searched(case: _Case, effort: Effort, generator: torch.Generator | None) -> Refuted | Unknown:
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    seed, hindered = drawn.initial_seed(), []
    problem = problem_of(case.frozen, case.claim, case.seeds)
    confirm = _never if case.graph is None else confirmation(case.graph, case.claim.norms, hindered)
    found = search(problem, case.claim.bound, effort, drawn, confirm)
    if found.stretch is not None and case.graph is not None:
        return _refuted(case.model, case.claim, case.graph, problem, found, confirm, seed)
    witness = Witness(found.ratio, case.claim.norms, found.x, found.y)
    reason = case.reason or _reason(found, case.claim.bound, hindered)
    return Unknown(case.claim, witness, math.inf, reason, case.graph)


def _never(x: Tensor, y: Tensor) -> Stretch | None:
    """Without a graph nothing is confirmed."""
    return None


def claim_of(example: Tensor | Shape, bound: float, norms: Norms, domain: Domain) -> tuple[Claim, Tensor]:
    """A claim, and the inputs of the example that lie in its domain, without gradients, in float64.

    Raises:
        InvalidInput: If the bound, the norms or the example are none.
    """
    require_supported(norms)
    if not (isinstance(bound, int | float) and 0.0 <= bound < math.inf):
        raise InvalidInput(f"a claimed bound is a finite number >= 0, got {bound!r}.")
    if isinstance(example, Tensor):
        if example.ndim < 1 or not bool(torch.isfinite(example).all()):
            raise InvalidInput(f"an example, {tuple(example.shape)}, needs a batch dimension and finite numbers.")
        shape, seeds = tuple(example.shape[1:]), example.detach().double().cpu()
    else:
        shape, seeds = tuple(example), torch.zeros(0, *example, dtype=torch.float64)
    if any(size <= 0 for size in shape):
        raise InvalidInput(f"inputs of shape {shape} have an empty dimension; a pair needs at least one number.")
    inside = [domain.contains(seed) for seed in seeds]
    return Claim(float(bound), norms, domain, shape), seeds[torch.tensor(inside, dtype=torch.bool)]


def problem_of(frozen: nn.Module, claim: Claim, seeds: Tensor) -> Problem:
    """What a search needs: the frozen model as a function of flat batches."""
    device = next((tensor.device for tensor in frozen.state_dict().values()), torch.device("cpu"))

    def function(x: Tensor) -> Tensor:
        return frozen(x.reshape(len(x), *claim.shape)).reshape(len(x), -1)

    return Problem(function, claim.shape, claim.norms, claim.domain, seeds.flatten(1).to(device))


def _proves(certificate: Certificate, bound: float) -> bool:
    return certificate.validity is Validity.RIGOROUS and certificate.bound <= bound


def confirmation(graph: Graph, norms: Norms, hindered: list[str]) -> Confirm:
    """Exact arithmetic on a pair; where it refuses, the reason is kept."""

    def confirm(x: Tensor, y: Tensor) -> Stretch | None:
        try:
            return stretch(graph, x, y, norms)
        except (UnsupportedOperation, BudgetExceeded, InvalidInput) as reason:
            hindered.append(str(reason))
            return None

    return confirm


def _refuted(
    model: nn.Module, claim: Claim, graph: Graph, problem: Problem, found: Found, confirm: Confirm, seed: int
) -> Refuted:
    def confirmed(x: Tensor, y: Tensor) -> bool:
        seen = confirm(x, y)
        inside = claim.domain.contains(x) and claim.domain.contains(y)
        return seen is not None and inside and seen.exceeds(claim.bound)

    # A little more search, to say how false the claim is; the first pair found is only just above it.
    further = search(problem, math.inf, Effort(AFTERWARDS, 3), torch.Generator().manual_seed(seed), confirm)
    steepest = confirm(further.x, further.y) if confirmed(further.x, further.y) else found.stretch
    x, y = shrink(problem, claim.bound, found.x, found.y, confirmed, SHRINKING)
    seen = confirm(x, y)
    assert seen is not None and seen.exceeds(claim.bound)  # noqa: PT018
    blame = blamed(model, graph, x, y, claim.norms)
    witness = Witness(seen.ratio, claim.norms, x, y)
    assert steepest is not None
    return Refuted(
        claim, witness, max(steepest.ratio, seen.ratio), seen.exact, graph, found.engine, found.seconds, blame, seed
    )


def _reason(found: Found, bound: float, hindered: list[str]) -> str:
    if found.ratio > bound:
        why = hindered[-1] if hindered else "exact arithmetic does not confirm it"
        return f"float64 sees a violation, {found.ratio!r}, by {found.engine}; it does not count: {why}"
    lost = "".join(f"; {name} could not run: {why.splitlines()[0]}" for name, why in found.lost.items())
    return f"no pair found; the best quotient is from {found.engine} after {found.seconds:.2f} s{lost}"
