"""The checker as a function of library values: exact, or in float64 with outward rounding. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from lipcert.certificate import Certificate, Validity
from lipcert.check import Malformed, Network, PartProver, Prover, Reject, verify
from lipcert.check import Row as CheckedRow
from lipcert.check_domain import verify_domain
from lipcert.domain import WholeSpace
from lipcert.errors import CheckFailed
from lipcert.graph import Affine, Graph
from lipcert.linear import LinearMap
from lipcert.lmi import Multipliers, NormalForm, holds, normal_form
from lipcert.lmi.proof import Price
from lipcert.lmi.rows import column, row, stretched
from lipcert.lmi.torus import torus_form
from lipcert.lmi.waves import holds_on
from lipcert.norms import L1, L1_LINF, LINF, Norms
from lipcert.opnorm import composed_norm, opnorm
from lipcert.regions import require_ranges, restricted, stated_by


def check(certificate: Certificate, graph: Graph) -> Certificate:
    """Prove a certificate again, in exact arithmetic, with the stand-alone checkers.

    They are `lipcert.check` and, for certificates about a domain, `lipcert.check_domain`.

    Args:
        certificate: The claim and its evidence.
        graph: The network it is about.

    Returns:
        The certificate, with validity ``RIGOROUS``.

    Raises:
        CheckFailed: If the certificate is not proven for this network; the reason says which comparison failed, or
            that the matrices are too large for exact arithmetic (then see `check_float64`).
    """
    try:
        verify_domain(certificate.to_json(), *graph.document())
    except (Reject, Malformed) as reason:
        raise CheckFailed(str(reason)) from reason
    return replace(certificate, validity=Validity.RIGOROUS)


def check_float64(certificate: Certificate, graph: Graph) -> Certificate:
    """Prove a certificate again in float64; about a domain, after its ranges are proven as they were found.

    See `check_everywhere` for what is proven how.

    Returns:
        The certificate, with validity ``RIGOROUS``.

    Raises:
        CheckFailed: If the certificate is not proven for this network.
    """
    if certificate.everywhere:
        return check_everywhere(certificate, graph)
    if certificate.network != graph.digest():
        raise CheckFailed(f"the certificate is about the network {certificate.network}, this one is {graph.digest()}.")
    form, ranges = stated_by(graph, certificate)
    require_ranges(form, certificate.domain, ranges)
    left = restricted(form, ranges)
    check_everywhere(replace(certificate, network=left.digest(), domain=WholeSpace(), ranges={}), left)
    return replace(certificate, validity=Validity.RIGOROUS)


def check_everywhere(certificate: Certificate, graph: Graph) -> Certificate:
    """Prove a certificate about the whole space again with the float64 kernel in place of exact operator norms.

    For networks too large for `check`. Graph, digest, slopes, gains of other nodes and the composition are verified
    as by `check`, in exact arithmetic; only the operator norms are the kernel's. A certificate that the kernel
    itself produced is thus compared with itself: this catches tampering, not an error of the kernel.

    Returns:
        The certificate, with validity ``RIGOROUS``.

    Raises:
        CheckFailed: If the certificate is not proven for this network.
    """

    def prove(network: Network, path: tuple[str, ...], norms: str, value: Fraction) -> Fraction:
        found = _kernel_norm([_map(graph, name) for name in path], Norms.parse(norms))
        if found is None or not found <= value:
            where = f"gain of {' > '.join(path)} ({norms})"
            raise Reject(f"{where}: {float(value)!r} is below {found!r}, the float64 kernel's bound.")
        return value

    def prove_multipliers(
        network: Network,
        source: str,
        target: str,
        value: Fraction,
        multipliers: dict[str, list[Fraction]],
        torus: tuple[int, ...],
        row: CheckedRow,
    ) -> Fraction:
        if torus:
            waves = torus_form(graph, source, target, torus)
            counts = {bend.name: bend.count for bend in waves.bends}
            shown: Callable[[Multipliers], bool] = partial(holds_on, waves, bound=float(value))
        else:
            form, price = _measured(normal_form(graph, source, target), row, value, math.prod(graph[target].shape))
            counts = {layer.name: layer.count for layer in form.layers}
            shown = partial(holds, form, bound=price)
        given = {
            name: torch.tensor(list(map(float, listed)), dtype=torch.float64) for name, listed in multipliers.items()
        }
        if {name: len(lam) for name, lam in given.items()} != counts:
            raise Malformed(f"the multipliers of the part from {source} to {target} are not those of its activations")
        if not shown(given):
            where = f"the part from {source} to {target}" + ("" if row is None else f", row {row[1]} in {row[0]}")
            raise Reject(f"{where}: the multipliers do not prove the bound {float(value)!r}.")
        return value

    return _checked(certificate, graph, prove, prove_multipliers)


def _checked(certificate: Certificate, graph: Graph, prove: Prover, prove_multipliers: PartProver) -> Certificate:
    try:
        verify(certificate.to_json(), *graph.document(), prove, prove_multipliers)
    except (Reject, Malformed) as reason:
        raise CheckFailed(str(reason)) from reason
    return replace(certificate, validity=Validity.RIGOROUS)


def _kernel_norm(maps: list[LinearMap], norms: Norms) -> float | None:
    if len(maps) == 1:
        return opnorm(maps[0], norms).value
    found = composed_norm(maps, norms)
    return None if found is None else found.value


def _measured(form: NormalForm, found: CheckedRow, value: Fraction, outputs: int) -> tuple[NormalForm, Price]:
    """What a row of a part in other norms than l2 is about: a form, and a bound or weights of its input's entries."""
    if found is None:
        return form, float(value)
    norms, number, tau = Norms.parse(found[0]), found[1], found[2]
    if norms == L1:
        if len(tau) != outputs or min(tau) <= 0 or sum(r**-2 for r in tau) > 1:
            raise Malformed(f"column {number} in {norms}: {len(tau)} numbers for {outputs} outputs, or too small ones")
        return stretched(column(form, number), torch.tensor(list(map(float, tau)), dtype=torch.float64)), float(value)
    if len(tau) != (form.inputs if norms == LINF else 0) or any(weight < 0 for weight in tau):
        raise Malformed(f"row {number} in {norms}: {len(tau)} weights for {form.inputs} inputs, or one is negative")
    if sum(tau) > value**2:
        raise Reject(f"row {number} in {norms}: the sum of its weights is above the square of {float(value)!r}.")
    if norms == L1_LINF:
        number, moved = divmod(number, form.inputs)
        form = column(form, moved)
    return row(form, number), np.array(list(map(float, tau))) if tau else float(value)


def _map(graph: Graph, name: str) -> LinearMap:
    node = graph[name]
    if not isinstance(node, Affine):
        raise Malformed(f"`{name}` is not an affine node")
    return node.map
