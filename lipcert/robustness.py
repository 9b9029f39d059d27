r"""Radii within which a classifier cannot change its decision, and how much of a data set has them. Floor 5.

The decision at x is the largest output, i. Where L_ij bounds the Lipschitz constant of :math:`f_i - f_j`, no input
closer to x than :math:`\min_{j \ne i} (f_i(x) - f_j(x)) / L_{ij}` has another decision, or a tie. Everything here errs
to the small side: outputs are known with their rounding error, and differences and quotients are rounded down.

References:
    | Lipschitz-Margin Training (Tsuzuku, Sato and Sugiyama, 2018)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.certificate import Certificate, Validity, require_everywhere
from lipcert.errors import InvalidInput, NotFinite
from lipcert.evaluation import evaluated
from lipcert.graph import Graph
from lipcert.kernel.rounding import mul_up, require_ieee
from lipcert.margins import Margins
from lipcert.outputs import difference, vector_size
from lipcert.trace import trace

Constants = Margins | Certificate

_SPREAD = {1.0: 1.0, 2.0: math.nextafter(math.sqrt(2.0), 2.0), math.inf: 2.0}
"""How many times ``|v|_q`` a difference ``v_i - v_j`` may be, by q: the dual norm of ``e_i - e_j``, rounded up."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a classifier decides about a batch, and how far that is proved to hold.

    Attributes:
        classes: The decisions, shape ``(N,)``, int64; the largest output in float64.
        radii: Shape ``(N,)``, float64, rounded down: no input less than this far away, and not the sample itself
            either, has another largest output or a tie. A radius 0 says nothing.
        p: The norm that the radii are measured in.
    """

    classes: Tensor
    radii: Tensor
    p: float


@dataclass(frozen=True, eq=False)
class CertifiedAccuracy:
    """How many samples of a labelled set are decided as labelled, and remain so at every distance up to eps.

    Attributes:
        total: The size of the set.
        correct: How many are decided as labelled (in float64, without a proof).
        eps: Distances, in the norm of the decisions.
        certified: For each of them, how many are decided as labelled with a radius above it: proved for the real
            network, for every input at a distance of at most eps.
        decisions: Of every sample.
    """

    total: int
    correct: int
    eps: tuple[float, ...]
    certified: tuple[int, ...]
    decisions: Decisions

    @property
    def clean(self) -> float:
        """The accuracy, in ``[0, 1]``."""
        return self.correct / self.total

    @property
    def rates(self) -> tuple[float, ...]:
        """The certified accuracies, in ``[0, 1]``."""
        return tuple(count / self.total for count in self.certified)


def pair_constants(constants: Constants, classes: int, *, p: float = 2.0) -> Tensor:
    r"""What the difference of two outputs is divided by: bounds of the constants of all :math:`f_i - f_j`.

    Args:
        constants: `Margins`, which bound every pair by itself, or a certificate of the whole output in q on the output
            side: then every pair gets it times 1, :math:`\sqrt 2` or 2 for q = 1, 2 or infinity.
        classes: How many outputs there are.
        p: The input norm wanted.

    Returns:
        ``(classes, classes)``, float64, symmetric, rounded up; zero on the diagonal, infinite for pairs that are not
        known.

    Raises:
        InvalidInput: If the constants are not proved, not in this norm, or about another number of outputs; or if
            there are not two outputs.

    Example:
        >>> from lipcert import certify, trace, margins
        >>> model = nn.Flatten()
        >>> pair_constants(certify(model, (3,)), 3)[0].tolist()
        [0.0, 1.4142135623730954, 1.4142135623730954]
    """
    if classes < 2:
        raise InvalidInput(f"a decision is between two classes at least, this network has {classes} output.")
    if isinstance(constants, Certificate):
        _require_proved(constants, p)
        bound = float(mul_up(constants.bound, _SPREAD[constants.norms.q]))
        return torch.full((classes, classes), bound, dtype=torch.float64).fill_diagonal_(0.0)
    if constants.constants.shape != (classes, classes):
        raise InvalidInput(f"margins of shape {tuple(constants.constants.shape)} for {classes} outputs.")
    known = torch.full((classes, classes), math.inf, dtype=torch.float64).fill_diagonal_(0.0)
    for (i, j), certificate in constants.certificates.items():
        _require_proved(certificate, p)
        known[i, j] = known[j, i] = certificate.bound
    return known


def certified_radius(logits: Tensor, constants: Constants, *, error: Tensor | float = 0.0, p: float = 2.0) -> Tensor:
    """How far from each sample the decision is proved to be the same, given what the network maps the samples to.

    The outputs are read as exact numbers, up to ``error``. Outputs of a forward pass are none: give what rounding may
    have done to them, or use `certified_radii`, which finds out by itself.

    Args:
        logits: Shape ``(N, classes)``, floating point.
        constants: Bounds of the network's constant: see `pair_constants`.
        error: At most how far each output of a sample is from the real one: a number, or shape ``(N,)``.
        p: The input norm that radii are wanted in.

    Returns:
        Shape ``(N,)``, float64, rounded down: at every input less than this far away, the largest output is the same
        and no other equals it. Zero for a tie; infinite only where constants are zero.

    Raises:
        InvalidInput: If the shapes or the norm do not fit, or the constants are not proved.
        NotFinite: If an output is NaN or infinite.

    Example:
        >>> from lipcert import certify
        >>> identity = certify(nn.Flatten(), (2,))
        >>> found = certified_radius(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), identity)
        >>> [round(radius, 6) for radius in found.tolist()]
        [1.414214, 0.0]
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise InvalidInput(f"outputs are real numbers of shape (N, classes), not {logits.dtype} {tuple(logits.shape)}.")
    if not bool(torch.isfinite(logits).all()):
        raise NotFinite("an output of the network is NaN or infinite, and then there is no decision to keep.")
    require_ieee()
    off = torch.as_tensor(error, dtype=torch.float64).detach().cpu()
    if (off.ndim and off.shape != (len(logits),)) or not bool((off >= 0).all()):
        raise InvalidInput(f"an error is a number >= 0, or one for each of {len(logits)} samples; got {error}.")
    L = pair_constants(constants, logits.shape[1], p=p).numpy()
    f = logits.detach().double().cpu().numpy()
    return torch.from_numpy(_radii(f, L, np.broadcast_to(off.numpy(), len(f))))


def certified_radii(network: Graph | nn.Module, constants: Constants, x: Tensor) -> Decisions:
    """What a network decides about a batch, and radii that hold for its real function: its rounding is allowed for.

    Outputs are computed in float64, with a bound of everything that rounding may have done; where a function's rounding
    has none (smooth activations, batch normalisation), they are enclosed in exact arithmetic, which takes longer.

    Args:
        network: A graph, or a module, which is captured at the shape of the samples.
        constants: `Margins` or a certificate of this very network; radii are in its input norm.
        x: Shape ``(N, *input shape)``, floating point, read as exact numbers.

    Raises:
        InvalidInput: If the constants are about another network or not proved, or the shapes do not fit.
        NotFinite: If an entry or an output is NaN or infinite.
        UnsupportedOperation: If the module cannot be captured, or a function's values can neither be bounded nor
            enclosed.
        BudgetExceeded: If they can be enclosed, and that would take too long.

    Example:
        >>> from lipcert import margins, trace
        >>> graph = trace(nn.Linear(3, 2), (3,))
        >>> found = certified_radii(graph, margins(graph), torch.zeros(1, 3))
        >>> bool(found.radii[0] > 0)
        True
    """
    samples = x.detach().double().cpu()
    graph = network if isinstance(network, Graph) else trace(network, tuple(x.shape[1:]))
    if not x.is_floating_point() or tuple(x.shape[1:]) != graph.input.shape:
        given = f"{x.dtype} {tuple(x.shape)}"
        raise InvalidInput(f"samples of {given}, the network takes real numbers of shape (N, *{graph.input.shape}).")
    if not bool(torch.isfinite(samples).all()):
        raise NotFinite("a sample has NaN or infinite entries, and then no input is near it.")
    p = _require_about(graph, constants)
    found = evaluated(graph, samples)
    radii = certified_radius(found.at, constants, error=found.each, p=p)
    return Decisions(found.at.argmax(1), radii, p)


def certified_accuracy(
    network: Graph | nn.Module, constants: Constants, x: Tensor, labels: Tensor, eps: Sequence[float], *, p: float = 2.0
) -> CertifiedAccuracy:
    """Count how much of a labelled set is decided as labelled, and how much of it at every distance up to eps.

    Args:
        network: A graph or a module.
        constants: `Margins` or a certificate of this network.
        x: Shape ``(N, *input shape)``, N > 0.
        labels: Shape ``(N,)``, integers: numbers of outputs.
        eps: Distances >= 0, in the input norm.
        p: The input norm that distances are meant in.

    Raises:
        InvalidInput: If labels, distances or the norm are none of these; and as `certified_radii`.
        NotFinite: As `certified_radii`.
        UnsupportedOperation: As `certified_radii`.
        BudgetExceeded: As `certified_radii`.

    Example:
        >>> from lipcert import certify
        >>> x = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
        >>> identity = nn.Flatten()
        >>> found = certified_accuracy(identity, certify(identity, (2,)), x, torch.tensor([0, 1, 1]), [0.0, 1.5])
        >>> found.total, found.correct, found.certified
        (3, 2, (2, 0))
    """
    distances = tuple(float(each) for each in eps)
    if not all(0.0 <= each < math.inf for each in distances):
        raise InvalidInput(f"distances are finite numbers >= 0, got {distances}.")
    if len(x) == 0 or tuple(labels.shape) != (len(x),) or labels.is_floating_point() or labels.is_complex():
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise InvalidInput(
            f"labels of {given} for {len(x)} samples; give one integer for each, and one sample at least."
        )
    found = certified_radii(network, constants, x)
    if found.p != p:
        raise InvalidInput(f"distances are meant in the norm p = {p}, these constants are in p = {found.p}.")
    right = found.classes == labels.cpu()
    certified = tuple(int((right & (found.radii > each)).sum()) for each in distances)
    return CertifiedAccuracy(len(x), int(right.sum()), distances, certified, found)


def _radii(f: np.ndarray, L: np.ndarray, error: np.ndarray) -> np.ndarray:
    """``min over j of (f_i - f_j - 2 error) / L_ij``, every operation rounded down, and at least 0."""
    rows = np.arange(len(f))
    first = f.argmax(axis=1)
    with np.errstate(all="ignore"):
        gap = np.nextafter(f[rows, first][:, None] - f, 0.0)
        off = 2.0 * error[:, None]
        sure = np.where(off == 0.0, gap, np.nextafter(gap - off, -np.inf))
        radius = np.where(L[first] == 0.0, np.inf, np.nextafter(sure / L[first], 0.0))
    radius = np.where(sure > 0.0, radius, 0.0)
    radius[rows, first] = np.inf
    return radius.min(axis=1)


def _require_about(graph: Graph, constants: Constants) -> float:
    """Refuse constants of another network; their input norm."""
    vector_size(graph)
    if isinstance(constants, Certificate):
        _require_network(constants, graph, "certificate")
        return constants.norms.p
    if not constants.certificates:
        raise InvalidInput("margins without any pair bound nothing; find them with lipcert.margins(graph).")
    for (i, j), certificate in constants.certificates.items():
        _require_network(certificate, difference(graph, i, j), f"margin of outputs {i} and {j}")
    return next(iter(constants.certificates.values())).norms.p


def _require_network(certificate: Certificate, graph: Graph, what: str) -> None:
    digest = graph.digest()
    if certificate.network != digest:
        raise InvalidInput(
            f"the {what} is about the network {certificate.network}, this one is {digest}. "
            f"Weights have changed, or the input shape is another; certify again."
        )


def _require_proved(certificate: Certificate, p: float) -> None:
    if certificate.validity is not Validity.RIGOROUS:
        raise InvalidInput(
            f"a bound of validity {certificate.validity.name} ({certificate.method}) certifies no radius; "
            f"lipcert.check returns it as RIGOROUS if it can be proved."
        )
    require_everywhere(certificate, "a radius")
    if certificate.norms.p != p:
        raise InvalidInput(
            f"radii are wanted in the norm p = {p}, the bound is {certificate.norms}; certify for p = {p}."
        )
