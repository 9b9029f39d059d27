"""Oracles that lie as much as they may, and for every kernel that asks one whether it stays on the safe side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from lipcert import trace
from lipcert.certifiers import LipSDP
from lipcert.kernel import dense, fourier, psd, single
from lipcert.kernel.backend import Backend, Parts
from lipcert.kernel.fourier import Grid, polyphase
from lipcert.kernel.single import Oracles
from lipcert.lmi import NormalForm
from lipcert.opnorm import swift
from lipcert.solvers import Progress, Recursion, Solution
from lipcert.solvers.solution import silent
from tests.adversarial import exact_integers, rayleigh, squared_norm_below
from tests.semidefinite import lifted, semidefinite, turned

Array = np.ndarray
Generator = np.random.Generator
UNIT = 2.0**-53
ESTIMATES = (1.0, 1.0 - 1e-14, 1.0 - 3e-14, 1.0 - 1e-13, 0.9, 0.0, float("nan"))


def _positive_root(H: Array) -> Array:
    """A factor of the positive part of H: it never fails."""
    values, vectors = np.linalg.eigh(H)
    return np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.conj().swapaxes(1, 2)


def _projection(H: Array, _: Generator) -> Array:
    return _positive_root(H)


def _noise(H: Array, rng: Generator) -> Array:
    return rng.standard_normal(H.shape) * float(np.max(np.abs(H))) ** 0.5 * 10.0 ** rng.uniform(-9.0, 3.0)


def _of_another(H: Array, rng: Generator) -> Array:
    moved = H + 10.0 ** rng.uniform(-16.0, 0.0) * float(np.max(np.abs(H))) * np.eye(H.shape[-1])
    return _positive_root(moved)


FACTORS: dict[str, Callable[[Array, Generator], Array | None]] = {
    "projection": _projection,
    "of another matrix": _of_another,
    "noise": _noise,
    "too large": lambda H, rng: (1.0 + 10.0 ** rng.uniform(-17.0, 1.0)) * _positive_root(H),
    "zero": lambda H, _: np.zeros_like(H),
    "one row": lambda H, rng: _positive_root(H)[:, -1:],
    "huge": lambda H, _: 1e200 * np.ones_like(H),
    "tiny": lambda H, _: 1e-200 * np.ones_like(H),
    "not a number": lambda H, _: np.full_like(H, np.nan),
    "infinite": lambda H, _: np.full_like(H, np.inf),
    "refused": lambda H, _: None,
}


@dataclass
class Liar:
    """A backend that stays within the gemm error model and otherwise does what flatters a certificate most.

    Gram matrices come out as small, in the direction of the top eigenvector, as the error ball allows; the factor is
    of the positive part of H and never fails, or anything else; its product comes out as near to H as the ball
    allows; and the eigenvalue estimate is ``estimate`` times what would make the certifier start without any slack.

    Attributes:
        estimate: What the eigenvalue estimate is multiplied by.
        copies: How often the factor is repeated (and scaled down): the same product, from longer and looser sums.
        factor: What the factor is, by its name in `FACTORS`.
        seed: Of the factors that are drawn.
    """

    estimate: float = 1.0
    copies: int = 1
    factor: str = "projection"
    seed: int = 0
    target: Parts | None = field(default=None, init=False)
    vectors: Array | None = field(default=None, init=False)

    def backend(self) -> Backend:
        """Fresh hooks."""
        self.target = self.vectors = None
        self._rng = np.random.default_rng(self.seed)
        return Backend(self._gemm, self._cholesky, self._top_eigenvalue)

    def _gemm(self, a: Array, b: Array) -> Array:
        product = np.matmul(a.astype(np.longdouble), b.astype(np.longdouble))
        # One rounding of the ball is kept for the conversion of the result to float64, some for longdouble's own.
        k = a.shape[-1]
        radius = np.longdouble((k - 1 - k / 1024) * UNIT) * np.matmul(np.abs(a).astype(np.longdouble), np.abs(b))
        radius = np.maximum(radius, 0.0)
        if product.ndim == 2:
            return (product - radius * np.sign(product)).astype(np.float64)
        if self.target is not None:
            wanted = self._wanted(a, b, product)
            return np.clip(wanted, product - radius, product + radius).astype(np.float64)
        return (product - radius * self._direction(a, b, product)).astype(np.float64)

    def _wanted(self, a: Array, b: Array, product: Array) -> Array:
        """What makes the residual smallest; of a complex factor the product ``Re' Im`` comes first, then the other."""
        assert self.target is not None
        if len(self.target) == 2 and not np.shares_memory(a, b):
            skew = product - product.swapaxes(1, 2)
            return product + (self.target[1].astype(np.longdouble) - skew) / 2
        wanted, self.target = self.target[0].astype(np.longdouble), None
        return wanted

    def _direction(self, a: Array, b: Array, product: Array) -> Array:
        """The signs in which an error lowers the largest eigenvalue."""
        if not np.shares_memory(a, b):
            F = a.swapaxes(1, 2) + 1j * b
            self.vectors = np.linalg.eigh(F.conj().swapaxes(1, 2) @ F)[1][:, :, -1]
            return -np.sign(self._outer(self.vectors).imag)
        vectors, self.vectors = self.vectors, None
        if vectors is None or vectors.shape[-1] != product.shape[-1]:
            vectors = np.linalg.eigh((product + product.swapaxes(1, 2)).astype(np.float64) / 2)[1][:, :, -1]
        return np.sign(self._outer(vectors).real)

    def _outer(self, v: Array) -> Array:
        return v.conj()[:, :, None] * v[:, None, :]

    def _cholesky(self, H: Parts) -> Parts | None:
        found = FACTORS[self.factor](H[0] if len(H) == 1 else H[0] + 1j * H[1], self._rng)
        if found is None:
            return None
        self.target = H
        R = np.tile(found / self.copies**0.5, (1, self.copies, 1))
        return (R,) if len(H) == 1 else (R.real.copy(), R.imag.copy())

    def _top_eigenvalue(self, G: Parts) -> float:
        top = float(np.max(np.linalg.eigvalsh(G[0] if len(G) == 1 else G[0] + 1j * G[1])))
        return top / (1.0 + 4e-14 * G[0].shape[-1] ** 0.5) * self.estimate


def drawn_liar(rng: Generator) -> Liar:
    """A liar of any kind, half the time the most flattering one."""
    factor = "projection" if rng.random() < 0.5 else str(rng.choice(list(FACTORS)))
    return Liar(float(rng.choice(ESTIMATES)), int(rng.choice([1, 16])), factor, int(rng.integers(2**32)))


# ------------------------------------------------------------------------------------------------ double precision


def dense_is_safe(rng: Generator, liar: Liar) -> bool:
    """`dense.norm2_upper` of a matrix, against its exact Rayleigh quotient."""
    A = rng.standard_normal((72, 24) if rng.random() < 0.5 else tuple(rng.integers(2, 40, 2)))
    A = np.ldexp(A, int(rng.choice([0, 0, -1060, 1000])))
    bound = dense.norm2_upper(A, backend=liar.backend())
    return bound == np.inf or Fraction(bound) ** 2 >= squared_norm_below(A)


_SYMBOLS = ((9, 48, 24), (400, 2, 2), (1, 200, 1), (5, 4, 7))
"""Taps, rows, columns: both of some size, rounding in the sum over taps, in the Gram matrix, and more inputs."""
_GRIDS = (Grid((1,), (0,)), Grid((1,), (1,)), Grid((2,), (0,)), Grid((2,), (1,)), Grid((4,), (0,)))


def fourier_is_safe(rng: Generator, liar: Liar) -> bool:
    """`fourier.torus_norm_upper` on frequencies that are quarter turns, where the symbol is a sum of taps, exactly."""
    count, out, into = _SYMBOLS[int(rng.integers(len(_SYMBOLS)))]
    grid = _GRIDS[0] if rng.random() < 0.5 else _GRIDS[int(rng.integers(len(_GRIDS)))]
    taps = rng.standard_normal((count, 1, out, into))
    if rng.random() < 0.7:
        taps = taps**2  # the largest value is at frequency zero, and nothing cancels
    bound = fourier.torus_norm_upper(polyphase(np.arange(count)[:, None], taps, (1,)), grid, backend=liar.backend())
    return bound == np.inf or Fraction(bound) ** 2 >= symbol_norm_below(taps[:, 0], grid)


def symbol_norm_below(taps: Array, grid: Grid) -> Fraction:
    """What the squared norm of a symbol in one dimension is not below, on frequencies that are quarter turns."""
    turns = [(2 * j + grid.offsets[0]) * 2 // grid.sizes[0] for j in range(grid.sizes[0])]
    integers, e = exact_integers(taps)

    def symbol(values: Array, turn: int) -> Array:
        quarter = (turn * np.arange(len(values))) % 4
        signs = [[(1, 0, -1, 0)[q] for q in quarter], [(0, 1, 0, -1)[q] for q in quarter]]
        re, im = (np.tensordot(np.array(s, dtype=values.dtype), values, 1) for s in signs)
        return np.block([[re, -im], [im, re]])

    top = max(turns, key=lambda turn: float(np.linalg.norm(symbol(taps, turn), 2)))
    return rayleigh(symbol(integers, top), np.linalg.svd(symbol(taps, top))[2][0]) * Fraction(4) ** e


def _near_singular(rng: Generator, unit: float = UNIT) -> Array:
    """Symmetric, with a least eigenvalue about as far below zero as the product of a factor may hide."""
    n = int(rng.integers(2, 9))
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = rng.uniform(0.1, 1.0, n)
    values[0] = -n * unit * 2.0 ** rng.uniform(-3.0, 6.0)
    H = (Q * values) @ Q.T
    return np.tril(H) + np.tril(H, -1).T


def psd_is_safe(rng: Generator, liar: Liar) -> bool:
    """`psd.psd_defect` of a real or complex matrix that is indefinite by a little, judged exactly."""
    H = _near_singular(rng)
    parts = (H,) if rng.random() < 0.5 else turned(rng, H)
    rho = float(psd.psd_defect(tuple(part[None] for part in parts), backend=liar.backend())[0])
    return rho == np.inf or semidefinite(lifted(H, rho))


def eigenvalue_is_safe(rng: Generator, liar: Liar) -> bool:
    """`psd.top_eigenvalue_upper` of a real or complex matrix, judged exactly."""
    G = _near_singular(rng) * 2.0 ** int(rng.integers(-30, 30))
    parts = (G,) if rng.random() < 0.5 else turned(rng, G)
    shift = float(rng.choice([0.0, 0.0, 0.5, 1.0])) * float(np.linalg.eigvalsh(G)[-1])
    bound = psd.top_eigenvalue_upper(tuple(part[None] for part in parts), shift, backend=liar.backend()).bound
    return bound == np.inf or semidefinite(lifted(-G, bound))


# ------------------------------------------------------------------------------------------------ single precision

TRUSTED = Oracles(swift._cholesky, swift._solve)
LIARS = {
    "honest": TRUSTED,
    "nan": Oracles(lambda H: np.full_like(H, np.nan), TRUSTED.solve),
    "zero": Oracles(np.zeros_like, lambda L, B: np.zeros_like(B)),
    "identity": Oracles(lambda H: np.eye(H.shape[-1], dtype=H.dtype)[None], lambda L, B: np.zeros_like(B)),
    "large": Oracles(lambda H: 1e25 * np.ones_like(H), lambda L, B: 1e25 * np.ones_like(B)),
    "scaled": Oracles(lambda H: np.float32(1.001) * swift._cholesky(H), TRUSTED.solve),
    "of another": Oracles(
        lambda H: swift._cholesky(H + np.float32(0.3) * np.eye(H.shape[-1], dtype=np.float32)), TRUSTED.solve
    ),
    "wrong solution": Oracles(swift._cholesky, lambda L, B: np.float32(0.9) * swift._solve(L, B)),
    "no off-diagonal": Oracles(swift._cholesky, lambda L, B: np.zeros_like(B)),
    "projected": Oracles(lambda H: _lower_projection(H), TRUSTED.solve),
}


def _lower_projection(H: Array) -> Array:
    """A lower factor of the positive part, which never fails on numbers."""
    if not np.all(np.isfinite(H)):
        return np.full_like(H, np.nan)
    whole = np.tril(H) + np.tril(H, -1).conj().swapaxes(1, 2)
    R = np.linalg.qr(_positive_root(whole.astype(np.complex128 if np.iscomplexobj(H) else np.float64)))[1]
    return R.conj().swapaxes(1, 2).astype(H.dtype)


def single_psd_is_safe(rng: Generator, liar: Liar) -> bool:
    """`single.psd_defect` of a float32 matrix, judged exactly."""
    H = _near_singular(rng, single.UNIT).astype(np.float32)
    parts = (H,) if rng.random() < 0.5 else turned(rng, H)
    stacks = tuple(np.ascontiguousarray(part[None], dtype=np.float32) for part in parts)
    oracles = LIARS[str(rng.choice(list(LIARS)))]
    rho = float(single.psd_defect(stacks, oracles)[0])
    return rho == np.inf or semidefinite(lifted(H, rho))


def single_norm_is_safe(rng: Generator, liar: Liar) -> bool:
    """`single.norm2_upper` from any guess and any factors, against the exact Rayleigh quotient."""
    shape = (140, 132) if rng.random() < 0.1 else tuple(rng.integers(2, 40, 2))  # the first has two blocks
    A = rng.standard_normal(shape) * 2.0 ** int(rng.choice([0, 0, -100, 100, -600, 600]))
    if rng.random() < 0.5:
        with np.errstate(over="ignore"):
            A = A.astype(np.float32)
    if not np.all(np.isfinite(A)):
        return True
    below = squared_norm_below(A.astype(np.float64))
    guess = float(below) ** 0.5 * liar.estimate if 0 < below < 10**300 else None
    bound = single.norm2_upper(A, guess, LIARS[str(rng.choice(list(LIARS)))])
    return bound == np.inf or Fraction(bound) ** 2 >= below


# ------------------------------------------------------------------------------------------------ multipliers


@dataclass(frozen=True)
class LyingSolver:
    """Multipliers that are wrong: scaled, exchanged, infeasible by a little, zero, negative, or no numbers."""

    seed: int

    def __call__(self, form: NormalForm, start: object = None, progress: Progress = silent) -> Solution:
        """What `Recursion` finds, spoilt."""
        found, rng = Recursion()(form), np.random.default_rng(self.seed)
        kind = int(rng.integers(7))
        spoilt = {}
        for name, values in found.multipliers.items():
            noise = torch.from_numpy(rng.standard_normal(tuple(values.shape)))
            spoilt[name] = (
                values * (1.0 + 10.0 ** rng.uniform(-17, -3) * noise),
                values * 10.0 ** rng.uniform(-1, 1),
                values.flip(0),
                torch.zeros_like(values),
                -values,
                torch.where(noise > 0, values, torch.full_like(values, float("nan"))),
                noise.abs(),
            )[kind]
        return Solution(spoilt, 0.0, 0.0, 1, "a liar")


def solver_is_safe(rng: Generator, liar: Liar) -> bool:
    """`LipSDP` with a lying solver on weights that are not negative, where the constant is a norm of their product."""
    sizes = rng.integers(1, 6, int(rng.integers(3, 5)))
    weights = [rng.uniform(0.0, 1.0, (int(m), int(n))) for n, m in itertools.pairwise(sizes)]
    layers: list[nn.Module] = []
    for W in weights:
        layer = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data = torch.from_numpy(W)
        layers += [layer, nn.ReLU()]
    bound = LipSDP(LyingSolver(liar.seed))(trace(nn.Sequential(*layers[:-1]), (int(sizes[0]),))).bound
    (product, exponent), near = exact_integers(weights[0]), weights[0]
    for W in weights[1:]:
        integers, e = exact_integers(W)
        product, exponent, near = integers.dot(product), exponent + e, W @ near
    below = rayleigh(product, np.linalg.svd(near)[2][0]) * Fraction(4) ** exponent
    return Fraction(bound) ** 2 >= below


TRIALS: dict[str, Callable[[Generator, Liar], bool]] = {
    "dense": dense_is_safe,
    "fourier": fourier_is_safe,
    "semidefinite": psd_is_safe,
    "eigenvalue": eigenvalue_is_safe,
    "single, semidefinite": single_psd_is_safe,
    "single, norm": single_norm_is_safe,
    "solver": solver_is_safe,
}
"""For every kernel that asks an oracle: whether its answer to a drawn question is on the safe side."""
