"""The stand-alone checker: exact arithmetic, maps by index, tables, composition, and everything it must refuse."""

import importlib
import itertools
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_checker import networks, norm
from lipcert.certificate import Certificate, Gain, Gains, Validity
from lipcert.check import Malformed, Network, Reject, TooLarge, read_network, sqrt_up, verify
from lipcert.errors import CheckFailed
from lipcert.graph import Activation, Affine, Graph, Input, Opaque
from lipcert.linear import Adjoint, Conv, Dense, Diagonal, Factor, LinearMap, Reshape, Selection, Separable, dense
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, SUPPORTED, Norms
from lipcert.recheck import check
from tests.maps import MAPS
from tests.semidefinite import semidefinite

checker = importlib.import_module("lipcert.check")  # the package offers a function of the same name

ROOT = Path(__file__).parent.parent
NETWORKS = networks()
PAIRS = {str(norms): norms for norms in SUPPORTED}


def exact(A: np.ndarray) -> tuple[np.ndarray, Fraction]:
    return checker.exact(np.asarray(A, dtype=np.float64))


def fractions(A: np.ndarray) -> np.ndarray:
    return np.array([Fraction(entry) for entry in A.ravel().tolist()], dtype=object).reshape(A.shape)


def is_norm2_bound(A: np.ndarray, value: Fraction) -> bool:
    X = fractions(A)
    return semidefinite(
        value * value * np.array([[Fraction(int(i == j)) for j in range(X.shape[1])] for i in range(X.shape[1])])
        - X.T @ X
    )


def node_of(linear: LinearMap) -> Network:
    graph = Graph((Input("x", tuple(linear.in_shape)), Affine("a", "x", linear, None)))
    return network_of(graph)


def network_of(graph: Graph) -> Network:
    document, arrays = graph.document()
    return read_network(json.loads(json.dumps(document)), arrays)


# ------------------------------------------------------------------------------------------------ exact arithmetic

big = st.integers(-(2**120), 2**120) | st.integers(-(2**30), 2**30)


@given(st.data(), st.integers(1, 6), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=60)
def test_the_product_of_integer_matrices_is_exact(data, m: int, k: int, n: int):
    X = np.array(data.draw(st.lists(big, min_size=m * k, max_size=m * k)), dtype=object).reshape(m, k)
    Y = np.array(data.draw(st.lists(big, min_size=k * n, max_size=k * n)), dtype=object).reshape(k, n)
    assert (checker.exact_product(X, Y) == X @ Y).all()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 63, 65, 127, 129, 1023, 1025, 4095, 65535])
def test_the_product_is_exact_where_digits_are_odd_and_as_large_as_they_get(k: int):
    b = (53 - k.bit_length()) // 2 + 1
    for j in range(b - 4, b + 5):  # 2^j - 1 is the largest digit in base 2^(j+1): the worst cases of bases near b
        X = np.full((1, k), (1 << j) - 1, dtype=np.int64)
        assert max(np.abs(digit).max() for digit in checker.digits(X, b)) <= 1 << (b - 1)
        assert checker.exact_product(X, X.T)[0, 0] == k * ((1 << j) - 1) ** 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=12))
def test_floats_become_integers_without_loss(numbers: list[float]):
    X, unit = exact(np.array(numbers))
    assert [int(x) * unit for x in X] == [Fraction(number) for number in numbers]


@given(st.lists(big, min_size=1, max_size=8), st.integers(-130, 20))
def test_rounding_moves_an_entry_by_at_most_one_half_and_counts_what_moved(numbers: list[int], shift: int):
    X = np.array([n >> 70 for n in numbers], dtype=object)
    A, cut = checker.rounded(X, max(shift, -60)) if shift <= 0 else checker.rounded(X >> 30, 0)
    target = [Fraction(int(x)) * Fraction(2) ** max(shift, -60) for x in X] if shift <= 0 else [int(x) for x in X >> 30]
    moved = [abs(int(a) - t) for a, t in zip(A, target, strict=True)]
    assert max(moved) <= Fraction(1, 2)
    assert cut == sum(m != 0 for m in moved)


@given(st.fractions(min_value=0, max_value=10**9))
def test_the_square_root_is_never_below_and_hardly_above(value: Fraction):
    root = sqrt_up(value)
    assert value <= root**2 <= value * (1 + Fraction(1, 2**120))
    assert sqrt_up(value**2) == value


@st.composite
def matrices(draw, largest: int = 5):
    m, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    kind = draw(st.sampled_from(["integers", "floats", "graded", "rank one", "float32"]))
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "integers":
        return seed.integers(-3, 4, (m, n)).astype(float)
    A = seed.standard_normal((m, n))
    if kind == "graded":
        A = A * 10.0 ** seed.uniform(-200, 100, (m, n))
    if kind == "rank one":
        A = np.outer(A[:, 0], A[0])
    return A.astype(np.float32).astype(float) if kind == "float32" else A


@given(matrices(largest=12))
@settings(max_examples=150)
def test_a_true_2_norm_bound_is_proven_and_a_false_one_refused(A: np.ndarray):
    largest = np.abs(A).max() or 1.0
    true = Fraction(float(np.linalg.norm(A / largest, 2))) * Fraction(float(largest))
    X, unit = exact(A)
    assert checker.norm2_at_most(X, unit, true * (1 + Fraction(1, 10**9)))
    assert checker.norm2_at_most(X, unit, true * (1 + Fraction(5, 10**10)))
    assert true == 0 or not checker.norm2_at_most(X, unit, true * (1 - Fraction(1, 10**7)))


@given(matrices(), st.integers(-40, 40), st.sampled_from([0, 2**-52, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11]))
@settings(max_examples=300)
def test_what_is_proven_is_true_in_exact_rationals(A: np.ndarray, steps: int, relative: float):
    largest = np.abs(A).max() or 1.0
    value = Fraction(float(np.linalg.norm(A / largest, 2)) * (1 + steps * relative)) * Fraction(float(largest))
    X, unit = exact(A)
    if checker.norm2_at_most(X, unit, value):
        assert is_norm2_bound(A, value)


LIES = {
    "a factor that is too large": (lambda H: np.linalg.eigvalsh(H), lambda H: 2.0 * np.eye(len(H))),
    "a factor of something else": (lambda H: np.ones(len(H)), lambda H: np.tril(H) + np.eye(len(H))),
    "a zero factor": (lambda H: np.ones(len(H)), lambda H: np.zeros_like(H)),
    "an indefinite matrix called definite": (
        lambda H: np.full(len(H), 1e-12),
        lambda H: np.linalg.qr((np.linalg.eigh(H)[1] * np.sqrt(np.maximum(np.linalg.eigvalsh(H), 0.0))).T)[1].T,
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_hints_never_prove_a_false_bound(lie: str, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    cases = [
        rng.integers(-4, 5, (m, n)).astype(float) for m, n in itertools.product((2, 3, 5), (2, 4, 5)) for _ in range(8)
    ]
    false = [(A, Fraction(float(np.linalg.norm(A, 2)) * (1 - gap))) for A in cases for gap in (1e-9, 1e-6, 1e-3, 0.3)]
    least, factor = LIES[lie]
    honest, told = np.linalg.eigvalsh, []
    monkeypatch.setattr(np.linalg, "cholesky", factor)

    def lying(H: np.ndarray) -> np.ndarray:
        if sys._getframe(1).f_code.co_name != "semidefinite":
            return honest(H)
        told.append(H)
        return least(H)

    if lie != "a factor that is too large":
        monkeypatch.setattr(np.linalg, "eigvalsh", lying)
    assert not any(checker.norm2_at_most(*exact(A), value) for A, value in false if value > 0)
    assert told or lie == "a factor that is too large"


def test_norms_that_need_no_room_are_proven_without_any():
    exactly = [(np.eye(4), 1), (np.diag([3.0, -2.0]), 3), (np.eye(5)[[2, 0, 1]], 1), (np.zeros((2, 3)), 0)]
    for A, value in [*exactly, (np.array([[-7.0]]), 7), (np.array([[3.0, 4.0]]), 5)]:
        assert checker.norm2_at_most(*exact(A), Fraction(value))
        assert not checker.norm2_at_most(*exact(A), value * (1 - Fraction(1, 2**100)) - Fraction(1, 2**100))
        assert not checker.norm2_at_most(*exact(A), Fraction(-2 * value - 1))


@pytest.mark.parametrize("n", [100, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["generic", "orthogonal", "orthogonal float32"])
def test_large_matrices_are_proven_with_half_a_billionth_of_room(n: int, kind: str):
    A = np.random.default_rng(1).standard_normal((n, n))
    A = A if kind == "generic" else np.linalg.qr(A)[0]
    A = A.astype(np.float32).astype(float) if "32" in kind else A
    true = Fraction(float(np.linalg.norm(A, 2)))
    assert checker.norm2_at_most(*exact(A), true * (1 + Fraction(5, 10**10)))
    assert not checker.norm2_at_most(*exact(A), true * (1 - Fraction(1, 10**7)))


# --------------------------------------------------------------------------------------------------- linear maps


@st.composite
def convolutions(draw):
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    dims, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sizes, stride, padding, dilation, kernel, outs = [], [], [], [], [], []
    for _ in range(dims):
        n, k, s, d = (draw(st.integers(a, b)) for a, b in ((1, 5), (1, 3), (1, 3), (1, 2)))
        most = {"zeros": 3, "replicate": 3, "circular": n, "reflect": n - 1}[mode]
        before, after = draw(st.integers(0, most)), draw(st.integers(0, most))
        natural = (n + before + after - d * (k - 1) - 1) // s + 1
        if natural < 1:
            k, d, natural = 1, 1, (n + before + after - 1) // s + 1
        for values, value in zip(
            (sizes, stride, padding, dilation, kernel), (n, s, (before, after), d, k), strict=True
        ):
            values.append(value)
        outs.append(draw(st.integers(1, natural)))
    weight = torch.randn(
        2 * groups, draw(st.integers(1, 2)), *kernel, generator=torch.Generator().manual_seed(0)
    ).double()
    shape = (weight.shape[1] * groups, *sizes)
    return Conv(weight, shape, tuple(outs), tuple(stride), tuple(padding), tuple(dilation), groups, mode)


def assert_map_is_read_right(linear: LinearMap) -> None:
    network = node_of(linear)
    read = network["a"].map
    assert read is not None
    A = dense(linear).numpy()
    numbers = np.array(checker.matrix(read) * read.unit, dtype=object)
    scale = np.abs(A).max() or 1.0
    assert np.abs(np.array([float(x / Fraction(scale)) for x in numbers.ravel()]) - A.ravel() / scale).max() <= 1e-14
    for norms in SUPPORTED:
        true = Fraction(norm(A / scale, norms)) * Fraction(scale)
        assert checker.prove_gain(network, ("a",), str(norms), true * (1 + Fraction(1, 10**9))) >= true
        if true > 0:
            with pytest.raises(Reject, match=r"gain of a .* is not an upper bound"):
                checker.prove_gain(network, ("a",), str(norms), true * (1 - Fraction(1, 10**7)))


@pytest.mark.parametrize("build", MAPS.values(), ids=MAPS)
def test_every_map_has_the_matrix_and_the_norms_that_torch_gives_it(build):
    assert_map_is_read_right(build())


@given(convolutions())
@settings(max_examples=120)
def test_convolutions_by_index_are_torch_s_convolutions(conv: Conv):
    assert_map_is_read_right(conv)
    reads = zip(conv.out_sizes, conv.stride, conv.dilation, conv.weight.shape[2:], conv.padding, strict=True)
    # torch cannot crop a transposed convolution to less than nothing
    if conv.padding_mode == "zeros" and all((out - 1) * s + d * (k - 1) >= pad[0] for out, s, d, k, pad in reads):
        assert_map_is_read_right(Adjoint(conv))


@pytest.mark.parametrize("norms", ["l1->l1", "linf->linf", "l1->linf", "l2->linf"])
def test_norms_that_are_sums_and_maxima_are_proven_without_room(norms: str):
    weight = torch.arange(1.0, 19.0).double().reshape(1, 2, 3, 3) - 7
    conv = Conv(weight, (2, 4, 4), (4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros")
    value = norm(dense(conv).numpy(), Norms.parse(norms))
    least = Fraction(value) if norms != "l2->linf" else sqrt_up(Fraction(int((weight**2).sum())))
    assert checker.prove_gain(node_of(conv), ("a",), norms, least) == least
    with pytest.raises(Reject):
        checker.prove_gain(node_of(conv), ("a",), norms, least * (1 - Fraction(1, 2**50)))


def test_taps_that_meet_are_added_without_overflow():
    weight = torch.tensor([2.0**60] * 8 + [1.0], dtype=torch.float64).reshape(1, 1, 9)
    network = node_of(Conv(weight, (1, 1), (1,), (1,), ((4, 4),), (1,), 1, "replicate"))
    for norms in SUPPORTED:
        room = 2**34 if norms == L2 else 0  # the l2 proof keeps 46 of these 64 bits, and needs room for the others
        assert checker.prove_gain(network, ("a",), str(norms), Fraction(2**63 + 1 + room))
        with pytest.raises(Reject):
            checker.prove_gain(network, ("a",), str(norms), Fraction(2**63 - room))


def chain(*maps: LinearMap) -> Graph:
    nodes = [Affine(f"n{i}", f"n{i - 1}" if i else "x", linear, None) for i, linear in enumerate(maps)]
    return Graph((Input("x", tuple(maps[0].in_shape)), *nodes))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double()


CONV = Conv(drawn(2, 1, 3, 3), (1, 4, 4), (4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros")
HALVE = Factor(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]), 2)
SIGNAL = Conv(drawn(2, 1, 2), (1, 4), (3,), (1,), ((0, 0),), (1,), 1, "zeros")
CHAINS = {
    "dense dense": [Dense(drawn(4, 3), (3,)), Dense(drawn(2, 4), (4,))],
    "dense dense on positions": [Dense(drawn(4, 3), (2, 3)), Dense(drawn(2, 4), (2, 4))],
    "dense reshape dense": [Dense(drawn(4, 3), (2, 3)), Reshape((2, 4), (4, 2)), Dense(drawn(3, 2), (4, 2))],
    "conv scale": [CONV, Diagonal(drawn(2, 1, 1), (2, 4, 4))],
    "conv number": [CONV, Diagonal(torch.tensor(-0.3).double(), (2, 4, 4))],
    "conv scale per entry": [CONV, Diagonal(drawn(2, 4, 4), (2, 4, 4))],
    "conv reshape scale": [SIGNAL, Reshape((2, 3), (6,)), Diagonal(drawn(6), (6,))],
    "conv reshape scale of one dimension": [SIGNAL, Reshape((2, 3), (3, 2)), Diagonal(drawn(3, 1), (3, 2))],
    "conv reshape scale of a middle dimension": [
        Conv(drawn(2, 1, 2), (1, 7), (6,), (1,), ((0, 0),), (1,), 1, "zeros"),
        Reshape((2, 6), (3, 2, 2)),
        Diagonal(drawn(2, 1), (3, 2, 2)),
    ],
    "scale conv": [Diagonal(drawn(1, 4, 4), (1, 4, 4)), CONV],
    "selection dense": [Selection(torch.tensor([2, 2, -1, 0]), (3,)), Dense(drawn(2, 4), (4,))],
    "dense selection": [Dense(drawn(3, 2), (2,)), Selection(torch.tensor([2, 2, -1, 0]), (3,))],
    "selection selection": [Selection(torch.tensor([2, 2, -1, 0]), (3,)), Selection(torch.tensor([1, 0]), (4,))],
    "wide numbers": [Dense(drawn(3, 3) * 10.0 ** (100 * drawn(3, 3)), (3,)), Dense(drawn(2, 3), (3,))],
    "cancelling": [
        Dense(torch.tensor([[1.0], [1.0]]).double(), (1,)),
        Dense(torch.tensor([[1.0, -1.0]]).double(), (2,)),
    ],
    "reshapes": [Reshape((2, 3), (6,)), Reshape((6,), (3, 2))],
    "conv separable reshape dense": [
        CONV,
        Separable((None, HALVE, None), (2, 4, 4)),
        Reshape((2, 2, 4), (16,)),
        Dense(drawn(3, 16), (16,)),
    ],
}


@pytest.mark.parametrize("maps", CHAINS.values(), ids=CHAINS)
def test_a_path_of_several_nodes_is_proven_as_one_matrix(maps: list[LinearMap]):
    network = network_of(chain(*maps))
    A = np.linalg.multi_dot([np.eye(dense(maps[-1]).shape[0]), *[dense(linear).numpy() for linear in reversed(maps)]])
    path = tuple(f"n{i}" for i in range(len(maps)))
    for norms in SUPPORTED:
        scale = np.abs(A).max() or 1.0
        true = Fraction(norm(A / scale, norms)) * Fraction(float(scale)) if A.any() else Fraction(0)
        checker.prove_gain(network, path, str(norms), true * (1 + Fraction(1, 10**9)))
        if true > 0:
            with pytest.raises(Reject, match=" > ".join(path)):
                checker.prove_gain(network, path, str(norms), true * (1 - Fraction(1, 10**7)))


def test_matrices_beyond_exact_arithmetic_are_called_too_large_with_their_sizes():
    conv = Conv(drawn(4, 4, 3, 3), (4, 30, 30), (30, 30), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "zeros")
    network = node_of(conv)
    with pytest.raises(TooLarge, match=r"3600 x 3600 .*lipcert check --float64"):
        checker.prove_gain(network, ("a",), "l2->l2", Fraction(10**6))
    weights = int(sum(Fraction(float(w)) for w in abs(drawn(4, 4, 3, 3)).ravel())) + 1
    checker.prove_gain(network, ("a",), "linf->linf", Fraction(weights))  # sums are found by counting, not by a matrix
    grouped = Conv(drawn(4, 1, 3, 3), (4, 20, 20), (20, 20), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, "zeros")
    checker.prove_gain(node_of(grouped), ("a",), "l2->l2", Fraction(30))  # one block per group


# -------------------------------------------------------------------------------------------------------- tables

X = mpmath.mpf
mpmath.mp.dps = 50


def sech2(u):
    return 1 / mpmath.cosh(u) ** 2


def gelu_tanh(x):
    u, du = (mpmath.sqrt(2 / mpmath.pi) * v for v in (x + X("0.044715") * x**3, 1 + 3 * X("0.044715") * x**2))
    return (1 + mpmath.tanh(u)) / 2 + x * sech2(u) * du / 2


def logistic(x):
    return 1 / (1 + mpmath.exp(-x))


DERIVATIVES = {  # the derivative, where it is not constant; by hand from the definitions in torch's documentation
    "gelu": lambda x: mpmath.ncdf(x) + x * mpmath.npdf(x),
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: logistic(x) * (1 + x * (1 - logistic(x))),
    "mish": lambda x: mpmath.tanh(mpmath.log1p(mpmath.exp(x))) + x * sech2(mpmath.log1p(mpmath.exp(x))) * logistic(x),
    "selu": lambda x: (
        X("1.0507009873554804934193349852946")
        * (1 if x > 0 else X("1.6732632423543772848170429916717") * mpmath.exp(x))
    ),
    "erf": lambda x: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-(x**2)),
    "sigmoid": lambda x: logistic(x) * (1 - logistic(x)),
    "log_sigmoid": lambda x: logistic(-x),
    "softsign": lambda x: 1 / (1 + abs(x)) ** 2,
    "tanh": sech2,
    "tanhshrink": lambda x: 1 - sech2(x),
    "atan": lambda x: 1 / (1 + x**2),
    "asinh": lambda x: 1 / mpmath.sqrt(1 + x**2),
    "sin": mpmath.cos,
    "cos": lambda x: -mpmath.sin(x),
    "hardswish": lambda x: 0 if x < -3 else 1 if x > 3 else (2 * x + 3) / 6,
    "hardsigmoid": lambda x: X(1) / 6 if abs(x) < 3 else 0,
    **dict.fromkeys(("relu", "softshrink", "threshold"), lambda x: int(x > 1)),
    **dict.fromkeys(("relu6", "hardtanh", "clamp"), lambda x: int(0 < x < 1)),
    "abs": mpmath.sign,
}


def extremes(derivative) -> tuple[mpmath.mpf, mpmath.mpf]:
    """The least and largest value, a grid's best points refined by golden sections."""
    grid = [X(i) / 16 for i in range(-320, 321)] + [X(i) for i in (-(10**6), -60, -40, 40, 60, 10**6)]
    grid += [X(s) / 10**9 for s in (-1, 1)] + [X(s) * (3 + X(t) / 10**9) for s in (-1, 1) for t in (-1, 1)]
    found = []
    for sign in (1, -1):
        best = min(grid, key=lambda x: sign * derivative(x))
        low, high = best - X(1) / 16, best + X(1) / 16
        for _ in range(120):
            a, b = low + (high - low) * X("0.382"), low + (high - low) * X("0.618")
            low, high = (low, b) if sign * derivative(a) <= sign * derivative(b) else (a, high)
        found.append(min((derivative(best), derivative(low)), key=lambda v: sign * v))
    return found[0], found[1]


@pytest.mark.parametrize("function", checker.SLOPES)
def test_the_slopes_of_the_table_hold_the_derivative_and_hardly_more(function: str):
    low, high = extremes(DERIVATIVES[function])
    least, most = (X(f.numerator) / f.denominator for f in checker.own_slope(function, {}))
    assert least <= low + X(10) ** -40
    assert high <= most + X(10) ** -40
    assert low - least <= 2e-5
    assert most - high <= 2e-5


PARAMETRIC = [  # function, parameter, value, the slopes: from the definitions
    ("leaky_relu", "negative_slope", 0.25, 0.25, 1),
    ("leaky_relu", "negative_slope", -2.0, -2, 1),
    ("leaky_relu", "negative_slope", 3.0, 1, 3),
    ("prelu", "weight", -0.5, -0.5, 1),
    ("elu", "alpha", 0.5, 0, 1),
    ("elu", "alpha", 2.0, 0, 2),
    ("elu", "alpha", -3.0, -3, 1),
    ("celu", "alpha", 0.5, 0, 1),
    ("softplus", "beta", 7.0, 0, 1),
    ("contraction", "epsilon", 0.125, 0.875, 1),
]


@pytest.mark.parametrize(("function", "name", "value", "low", "high"), PARAMETRIC)
def test_slopes_with_a_parameter_follow_from_it(function: str, name: str, value: float, low: float, high: float):
    assert checker.own_slope(function, {name: np.array(Fraction(value), dtype=object)}) == (low, high)


def elementwise(function: str, slope: tuple[object, object], **parameters: object) -> Graph:
    ends = tuple(torch.as_tensor(end, dtype=torch.float64) for end in slope)
    return Graph((Input("x", (2, 3)), Activation("f", "x", (2, 3), function, parameters, ends, torch.relu)))  # type: ignore


def claimed(graph: Graph, bound: float, norms: Norms = L2, gains: tuple[Gain, ...] = ()) -> Certificate:
    return Certificate(float(bound), norms, Validity.ESTIMATE, "by hand", graph.digest(), Gains(gains))


@pytest.mark.parametrize(("function", "name", "value", "low", "high"), PARAMETRIC)
def test_a_declared_slope_must_contain_the_table_s(function: str, name: str, value: float, low: float, high: float):
    parameter = torch.tensor([[value], [value]]).double() if function == "prelu" else value
    steepest = max(abs(low), abs(high))
    good = elementwise(function, (low, high), **{name: parameter})
    assert check(claimed(good, steepest), good).validity is Validity.RIGOROUS
    for slope in ((math.nextafter(low, 9), high), (low, math.nextafter(high, -9)), (high, low)):
        narrowed = elementwise(function, slope, **{name: parameter})
        with pytest.raises(CheckFailed, match="does not contain"):
            check(claimed(narrowed, steepest), narrowed)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("relu", {"a": 1.0}),
        ("nothing", {}),
        ("celu", {"alpha": -1.0}),
        ("celu", {"alpha": 0.0}),
        ("softplus", {"beta": 0.0}),
        ("contraction", {"epsilon": 1.5}),
        ("contraction", {"epsilon": -0.5}),
        ("leaky_relu", {}),
        ("hardshrink", {}),
        ("prelu", {"weight": torch.ones(5).double()}),
    ],
)
def test_functions_outside_the_table_are_malformed(function: str, parameters: dict):
    graph = elementwise(function, (-9.0, 9.0), **parameters)
    with pytest.raises(CheckFailed) as failure:
        check(claimed(graph, 1e9), graph)
    assert isinstance(failure.value.__cause__, Malformed)


def test_slopes_per_channel_are_compared_entry_by_entry():
    weight = torch.tensor([[0.5], [-4.0]]).double()
    low, high = torch.minimum(weight, torch.ones(())), torch.maximum(weight, torch.ones(()).double())
    graph = elementwise("prelu", (low, high), weight=weight)
    assert check(claimed(graph, 4.0), graph).bound == 4.0
    swapped = elementwise("prelu", (low.flip(0), high), weight=weight)
    with pytest.raises(CheckFailed, match="does not contain"):
        check(claimed(swapped, 4.0), swapped)


def opaque(function: str, shape: tuple[int, ...], out: tuple[int, ...], gains: dict, **parameters: object) -> Graph:
    return Graph((Input("x", shape), Opaque("f", "x", out, function, parameters, gains, torch.relu)))


POOL = {
    "windows": [None, [[0, 3, 1], [2, 5, 1], [4, 5, 1]], [[0, 3, 2], [1, 4, 2]]]
}  # positions 2 and 4 are read twice
ONE = {L2: 1.0, L1: 1.0, LINF: 1.0}
ROOT2 = 1.4142135623730952
OPAQUE = {
    "max_windows": ((2, 5, 4), (2, 3, 2), {L2: ROOT2, L1: 2.0, LINF: 1.0, L1_LINF: 1.0, L2_LINF: 1.0}, POOL),
    "softmax": ((2, 3), (2, 3), {L2: 0.5, L1: 0.5, LINF: 0.5}, {"dim": 1}),
    "logsumexp": ((2, 3), (2,), ONE, {"dim": [1]}),
    "sort": ((4, 3), (4, 3), ONE, {"dim": 0, "group": 2, "arrangement": "interleaved"}),
    "householder": ((4,), (4,), {L2: 1.0, L1: ROOT2, LINF: ROOT2}, {"dim": 0, "theta": torch.tensor([0.3, 4.0])}),
    "norm2": ((2, 3, 4), (2, 1, 1), {L2: 1.0}, {"dim": [1, 2]}),
}


@pytest.mark.parametrize("function", OPAQUE)
def test_gains_of_other_functions_are_held_against_the_table(function: str):
    shape, out, gains, parameters = OPAQUE[function]
    for norms, gain in gains.items():
        graph = opaque(function, shape, out, gains, **parameters)
        assert check(claimed(graph, gain, norms), graph).bound == gain
        below = opaque(function, shape, out, {norms: math.nextafter(gain, 0)}, **parameters)
        with pytest.raises(CheckFailed, match=rf"gain of f \({function}\): .* is below"):
            check(claimed(below, 9.0, norms), below)
    for wrong in ((*out, 2), (7, *out[1:])):
        graph = opaque(function, shape, wrong, gains, **parameters)
        with pytest.raises(CheckFailed, match="turns"):
            check(claimed(graph, 9.0, next(iter(gains))), graph)


def test_a_gain_in_a_norm_pair_outside_the_table_is_not_used():
    graph = opaque("norm2", (4,), (), {L2: 1.0, L1: 0.0, LINF: 0.0}, dim=[0])
    assert check(claimed(graph, 1.0), graph).bound == 1.0
    for norms in (L1, LINF):
        with pytest.raises(CheckFailed, match="no proven gain"):
            check(claimed(graph, 9.0, norms), graph)


def test_the_gains_of_the_table_are_attained_or_approached():
    # Overlapping maxima: one entry raises every window that holds it. 3 x 3 windows at stride 2 share it 2 x 2 times.
    x = torch.zeros(1, 1, 5, 5).double()
    y = x.clone()
    y[0, 0, 2, 2] = 1.0
    moved = torch.nn.functional.max_pool2d(y, 3, 2) - torch.nn.functional.max_pool2d(x, 3, 2)
    windows = [None, *[[[0, 3, 1], [2, 5, 1]]] * 2]
    own = checker.own_gains("max_windows", {"windows": windows}, (1, 5, 5), (1, 2, 2))
    assert (own["l2->l2"], own["l1->l1"], own["linf->linf"]) == (4, 16, 1)  # squares
    assert (moved.norm() ** 2, moved.sum() ** 2, moved.max()) == (4, 16, 1)
    # The softmax of two equal entries: its Jacobian is [[1, -1], [-1, 1]] / 4, of norm 1/2 in l1, l2 and linf.
    x = torch.zeros(2).double().requires_grad_()
    jacobian = torch.stack([torch.autograd.grad(torch.softmax(x, 0)[i], x)[0] for i in range(2)]).numpy()
    for norms in (L2, L1, LINF):
        assert norm(jacobian, norms) ** 2 == pytest.approx(
            float(checker.own_gains("softmax", {"dim": 0}, (2,), (2,))[str(norms)])
        )


@pytest.mark.parametrize(
    "windows",
    [
        [None, None],
        [None, [[0, 9, 1]], None],
        [None, [], None],
        [None, [[2, 2, 1]], None],
        [None, [[0, 2, 0]], None],
        [None, [[-1, 2, 1]], None],
        [None, [[0, 2]], None],
        [None, 3, None],
        "all",
    ],
)
def test_windows_outside_the_input_are_malformed(windows):
    with pytest.raises((Malformed, ValueError)):
        checker.own_gains("max_windows", {"windows": windows}, (2, 5, 4), (2, 1, 4))


def test_what_a_user_declared_is_listed_as_an_assumption():
    graph = Graph(
        (
            Input("x", (3,)),
            Activation(
                "f", "x", (3,), "declared:me", {}, (torch.tensor(-2.0).double(), torch.tensor(1.0).double()), torch.relu
            ),
            Opaque(
                "g", "f", (2,), "declared:me", {"why": "paper", "table": torch.ones(2).double()}, {L2: 3.0}, torch.relu
            ),
        )
    )
    document, arrays = graph.document()
    accepted = verify(claimed(graph, 6.0).to_json(), document, arrays)
    assert accepted.assumptions == (
        "slope of f (declared:me) lies in [-2.0, 1.0]",
        "gain of g (declared:me) is at most l2->l2: 3.0",
    )
    with pytest.raises(Reject, match=r"bound 5\.9 .* below 6\.0"):
        verify(claimed(graph, 5.9).to_json(), document, arrays)
