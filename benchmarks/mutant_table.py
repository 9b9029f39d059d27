"""Mutants written by hand, those of the kernel here, and which tests cover which file; `mutants` runs them.

A mutant replaces one snippet of a file. Its reason says what is lost; ``equivalent`` why no test can see it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One way to break a file: ``old``, which stands there once, becomes ``new``; ``tests`` are to fail."""

    file: str
    old: str
    new: str
    tests: str
    why: str
    equivalent: str = ""


def of(file: str, tests: str, *changes: tuple[str, str, str] | tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants of one file with one selection of tests: old, new, why, and why nobody can tell."""
    return [Mutant(f"lipcert/{file}", old, new, tests, why, *rest) for old, new, why, *rest in changes]


KERNEL_LAWS, CHECK_LAWS, RULE_LAWS = (f"tests/laws/{folder}" for folder in ("kernel", "check", "rules"))


def first(folder: str, *names: str) -> tuple[str, str]:
    """The files that mirror what is broken; then the others of their folder, which may meet it too."""
    files = [f"{folder}/test_{name}.py" for name in names]
    return " ".join(files), " ".join([folder, *(f"--ignore={file}" for file in files)])


KERNEL = "tests/test_kernel.py"
SCALARS = f"{KERNEL} -k 'scalar or round_up or scaling or sums_round or squares or simple_norms or gamma or finite'"
DENSE = f"{KERNEL} -k 'nasty or lying or every_term or simple_norms or finite or blocks or last_scaling'"
FOURIER = f"{KERNEL} -k 'lying or every_term or symbol or torus or grid or difference or chunks or ceiling'"
DEFECT = f"{KERNEL} -k 'defect or stack or imaginary or non_negative or lying'"
BLOCKWISE = "tests/test_lipsdp.py -k 'defect or factor or neither_proof'"
SINGLE = "tests/test_single.py"
RULES = "tests/test_rules.py"
OPERATIONS = f"{RULES} -k 'replayed or gains or refused or rule_itself'"
OPNORM = "tests/test_opnorm.py"
PARTS = "tests/test_lipsdp.py -k 'tampered or passed or neither_proof or loose or pivot or wrong_factor'"
GROUPS = "tests/test_sorting.py -k 'checker or neither or certificate_is or changed or groups or angles or loosely_as'"
TORUS = "tests/test_torus.py -k 'claim_of_any or tampered or same_matrices or flatter or prices or every_frequency'"
COVERED_BY: dict[str, tuple[str, ...]] = {
    "lipcert/kernel/rounding.py": (*first(KERNEL_LAWS, "rounding"), SCALARS, KERNEL),
    "lipcert/kernel/dense.py": (f"{KERNEL_LAWS}/test_dense.py", DENSE, KERNEL),
    "lipcert/kernel/psd.py": (*first(KERNEL_LAWS, "psd"), DEFECT, KERNEL),
    "lipcert/kernel/backend.py": (*first(KERNEL_LAWS, "fourier", "dense"), KERNEL, OPNORM),
    "lipcert/kernel/fourier.py": (*first(KERNEL_LAWS, "fourier"), KERNEL, OPNORM),
    "lipcert/kernel/roots.py": (*first(KERNEL_LAWS, "roots"), KERNEL, OPNORM),
    "lipcert/kernel/angles.py": (f"{KERNEL_LAWS}/test_roots.py", "tests/test_sorting.py -k 'cosine or direction'"),
    "lipcert/kernel/blockwise.py": (
        f"{KERNEL_LAWS}/test_blockwise.py",
        BLOCKWISE,
        "tests/test_lipsdp.py -k 'bounds or proof or prove'",
    ),
    "lipcert/kernel/single.py": (*first(KERNEL_LAWS, "single"), SINGLE),
    **{
        f"lipcert/rules/{name}.py": (*first(RULE_LAWS, "slopes"), OPERATIONS)
        for name in "activations bounded nonlinear normalisation".split()
    },
    **{
        f"lipcert/rules/{name}.py": (*first(RULE_LAWS, "maps"), OPERATIONS)
        for name in "arithmetic convolution linear pooling refused resampling structure".split()
    },
}
"""The selections that are tried on automatic mutants, in this order, until one fails."""

CHECK, CLAIMS = "tests/test_check.py", "tests/test_check_refusals.py"
SECTIONS: dict[str, tuple[str, ...]] = {
    "the verdict": (*first(CHECK_LAWS, "verdict"), CLAIMS, CHECK, PARTS),
    "proving a gain from the weights": (*first(CHECK_LAWS, "gains"), CHECK, CLAIMS),
    "proving a part from its multipliers": (*first(CHECK_LAWS, "parts", "signals", "groups"), PARTS, GROUPS),
    "the same on a torus, frequency by frequency": (
        *first(CHECK_LAWS, *"torus kernels grids waves heads integers".split()),
        CHECK,
        TORUS,
    ),
    "maps as matrices, by index": (*first(CHECK_LAWS, "matrices"), CHECK, TORUS),
    "what the other nodes do to distances: two tables": (*first(CHECK_LAWS, "tables"), CHECK, CLAIMS, GROUPS),
    "reading the network": (*first(CHECK_LAWS, "network", "maps"), CLAIMS, CHECK, GROUPS, TORUS),
    "reading files, field for field": (*first(CHECK_LAWS, "files"), CLAIMS, CHECK),
}
"""Likewise for the sections of the checker."""

HINTS = frozenset(
    # What only guesses, or decides how long to try: a wrong answer costs tightness or time, never truth. Of them
    # `top_eigenvalue_upper` only picks the shifts to try: every bound that it hands on was proven by another function.
    "_cholesky _top_eigenvalue _lanczos _ritz top_eigenvalue _top squared_guess _panel _factor work _by_energy "
    "norm2_hint _floating _floats _show _solve _named _cast _misfit _batched top_eigenvalue_upper".split()
)

MUTANTS: list[Mutant] = [
    *of(
        "kernel/rounding.py",
        SCALARS,
        ("np.nextafter(total, np.inf))", "total)", "a sum rounds to nearest"),
        ("np.where(exact, product, np.nextafter(product, np.inf))", "product", "a product rounds to nearest"),
        (
            "np.where(exact, product, np.nextafter(product, np.inf))",
            "np.where(exact, product, np.nextafter(product, -np.inf))",
            "a product rounds down",
        ),
        ("return np.nextafter(np.divide(x, y), np.inf)", "return np.divide(x, y)", "a quotient rounds to nearest"),
        ("np.where(np.equal(x, 0.0), root, np.nextafter(root, np.inf))", "root", "a root rounds to nearest"),
        (
            "return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)",
            "return nearest",
            "a fraction rounds to nearest",
        ),
        (
            "return math.inf if value > 0 else -1.7976931348623157e308",
            "return 1.7976931348623157e308",
            "what overflows is finite",
        ),
        ("steps = count + 2\n", "steps = count\n", "gamma counts two roundings less"),
        (
            "round_up(Fraction(steps, 2**53 - steps))",
            "float(Fraction(steps, 2**53))",
            "gamma without its denominator, to nearest",
        ),
        (
            "return round_up(Fraction(value) * (Fraction(2) ** exponent))",
            "return math.ldexp(value, exponent) if exponent < 1000 else math.inf",
            "scaling rounds to nearest",
        ),
        (
            "mul_up(total, 1.0 + 2.0 * gamma(count))\n\n\ndef sum_of",
            "total\n\n\ndef sum_of",
            "a long sum counts as exact",
        ),
        (
            "mul_up(total, 1.0 + 2.0 * gamma(count + 1)), count * 2.0**-1021)",
            "total, count * 2.0**-1021)",
            "a sum of squares counts as exact",
        ),
        (
            "    bound = add_up(mul_up(total, 1.0 + 2.0 * gamma(count + 1)), count * 2.0**-1021)",
            "    bound = mul_up(total, 1.0 + 2.0 * gamma(count + 1))",
            "squares that underflow are not paid for",
        ),
        (
            "nearest if math.fsum([*terms, -nearest]) <= 0.0 else math.nextafter(nearest, math.inf)",
            "nearest",
            "an exact sum rounds to nearest",
        ),
        (
            "candidates = rows[ceilings >= np.max(np.sum(rows, axis=1)) * (1.0 - 2.0 * gamma(rows.shape[1]))]",
            "candidates = rows[np.argmin(ceilings) :][:1]",
            "another row than the largest is summed",
        ),
        ("max(np.max(values), -np.min(values))", "np.max(values)", "magnitude without negative entries"),
        ("if not math.isfinite(magnitude):", "if magnitude == math.inf:", "NaN passes"),
        (
            "return max(_exact_sum_up(row) for row in candidates.tolist())",
            "return min(_exact_sum_up(row) for row in candidates.tolist())",
            "the smallest of the largest rows",
        ),
    ),
    *of(
        "kernel/rounding.py",
        "tests/test_kernel.py -k 'flushes or not_a_matrix'",
        (
            "if values.size and (int(values.max()) >= limit or int(values.min()) <= -limit):",
            "if False:",
            "integers beyond 2^53 pass",
        ),
        ("if not (kept > 0.0 and scalar > 0.0 and", "if not (kept >= 0.0 and", "flushing to zero passes"),
        (
            'values.dtype.kind != "f" or values.dtype.itemsize > 8',
            'values.dtype.kind not in "fcb"',
            "complex and boolean entries pass",
        ),
    ),
    *of(
        "kernel/dense.py",
        DENSE,
        (
            "squared = add_up(_gram_eigenvalue_upper(B, backend), gram_error(B))",
            "squared = _gram_eigenvalue_upper(B, backend)",
            "the Gram matrix's rounding is dropped",
        ),
        (
            "bound = add_up(sqrt_up(squared), B.dropped)",
            "bound = sqrt_up(squared)",
            "dropped entries cost nothing",
            "2^-300 beside a norm of at least 1/2, whose bound has two spare roundings",
        ),
        ("np.fmin(bound, add_up(simple, B.dropped))", "np.fmin(bound, 0.9 * simple)", "the simple bound is lowered"),
        ("size = magnitude((block,))", "size = block", "the error term forgets its absolute values"),
        (
            "mul_up(gamma(gram_terms((B.matrix,))), squared)",
            "mul_up(gamma(1), squared)",
            "gamma does not grow with the rows",
        ),
        (
            "total = add_up(total, sum_up(sum_of_squares_up(block[0], 1)[None], 1)[0])",
            "total = max(total, float(np.max(sum_of_squares_up(block[0], 1))))",
            "Frobenius norm of the largest row only",
        ),
        ("largest_sum_up(np.abs(A.T).astype", "largest_sum_up(np.abs(A).astype", "the l1 norm sums rows"),
        ("largest_sum_up(np.abs(A).astype", "largest_sum_up(np.abs(A.T).astype", "the linf norm sums columns"),
        (
            "largest_sum_up(np.abs(A).astype",
            "largest_sum_up(np.maximum(A, 0.0).astype",
            "the linf norm skips negative entries",
        ),
        (
            "float(np.max(sum_of_squares_up(_times_power(A[i : i + rows], -exponent), 1)))",
            "float(np.min(sum_of_squares_up(_times_power(A[i : i + rows], -exponent), 1)))",
            "the shortest row",
        ),
        ("return row_norms_upper(np.asarray(A).T)", "return row_norms_upper(np.asarray(A))", "columns become rows"),
        (
            "float(np.max(mul_up(columns, 1.0 + 2.0 * gamma(len(A)))))",
            "float(np.min(columns))",
            "Schur's bound takes the smallest column",
        ),
        ("    require_finite(peak)\n    return A, peak", "    return A, peak", "no refusal of NaN"),
        ("G = part if G is None else np.add(G, part, out=G)", "G = part", "only the last block of rows counts"),
        (
            "return scale_up(float(add_up(sqrt_up(max(squares)), _DROPPED_BELOW)), exponent)",
            "return scale_up(float(math.sqrt(max(squares))), exponent)",
            "a row's length rounds to nearest",
            "the sum of squares has room for two more roundings, its root for one",
        ),
    ),
    *of(
        "kernel/psd.py",
        DEFECT,
        (
            "rho = add_up(add_up(residual_norm(residual), product_error(factor)), n * 2.0**-899)",
            "rho = add_up(product_error(factor), n * 2.0**-899)",
            "the residual is dropped",
        ),
        (
            "rho = add_up(add_up(residual_norm(residual), product_error(factor)), n * 2.0**-899)",
            "rho = add_up(residual_norm(residual), n * 2.0**-899)",
            "the factor's product counts as exact",
        ),
        ("return np.where(np.isnan(rho), np.inf, rho)", "return np.where(np.isnan(rho), 0.0, rho)", "NaN is a proof"),
        ("        return np.full(count, np.inf)", "        return np.zeros(count)", "no factor is a proof"),
        (
            "bound = float(add_up(c, add_up(np.max(psd_defect(H, backend=backend)), rounding)))",
            "bound = c",
            "the estimate is believed",
        ),
        (
            "add_up(np.max(psd_defect(H, backend=backend)), rounding)",
            "add_up(np.min(psd_defect(H, backend=backend)), rounding)",
            "the best matrix of a stack speaks for all",
        ),
        (
            "rounding = mul_up(np.max(np.abs(diagonal)), UNIT * (1.0 + 4.0 * UNIT))",
            "rounding = 0.0",
            "the shift's rounding is dropped",
            "covered by the spare roundings of the residual's norm and of the product's",
        ),
        ("squares = add_up(squares, sum_of_squares_up(part, (-2, -1)))", "pass", "the imaginary residual is dropped"),
        (
            "return rows if len(stack) == 1 else 2 * rows + 6",
            "return 1 if len(stack) == 1 else 2 * rows + 6",
            "roundings do not grow with the rows",
        ),
        (
            "np.abs(stack[0]) if len(stack) == 1 else np.abs(stack[0]) + np.abs(stack[1])",
            "np.abs(stack[0])",
            "the modulus without its imaginary part",
        ),
        (
            "np.max(div_up(add_up(mul_up(z, inflation), (rows + columns) * 2.0**-1000), x), axis=1)",
            "np.min(div_up(add_up(mul_up(z, inflation), (rows + columns) * 2.0**-1000), x), axis=1)",
            "Collatz-Wielandt from below",
        ),
        (
            "inflation = 1.0 + 4.0 * (gamma(rows + 1) + gamma(columns + 1))",
            "inflation = 1.0",
            "the power step counts as exact",
        ),
        (
            "return gemm(joined.swapaxes(-1, -2), joined), cross - cross.swapaxes(-1, -2)",
            "return gemm(joined.swapaxes(-1, -2), joined), 0.0 * cross",
            "the imaginary Gram matrix is dropped",
        ),
    ),
    *of(
        "kernel/fourier.py",
        FOURIER,
        (
            "bound = float(add_up(sqrt_up(squared), _entry_error(scaled)))",
            "bound = float(sqrt_up(squared))",
            "the symbol's rounding is dropped",
        ),
        ("return float(add_up(best, gram_error(taps)))", "return float(best)", "the Gram matrix's rounding is dropped"),
        (
            "best, shift = float(np.maximum(best, proof.bound)), proof.shift",
            "best, shift = proof.bound, proof.shift",
            "the last frequencies speak for all",
        ),
        (
            "        if not best <= limit * limit:\n            return math.inf",
            "        if not best <= limit * limit:\n            return limit * limit",
            "a ceiling is a bound",
        ),
        (
            "first = [j for j in range(size) if j <= (-j - offset) % size]",
            "first = [j for j in range(size) if j < (-j - offset) % size] or [0]",
            "frequencies that are their own conjugates are left out",
        ),
        (
            "steps = np.array([grid.order // (2 * size) for size in grid.sizes], dtype=np.int64)",
            "steps = np.array([grid.order // size for size in grid.sizes], dtype=np.int64)",
            "every second frequency twice",
        ),
        (
            "(2 * index + np.array(grid.offsets, dtype=np.int64)) * steps",
            "2 * index * steps",
            "the antiperiodic torus is the periodic one",
        ),
        (
            "Fraction(extent - 1, 2 * size) for extent",
            "Fraction(extent - 1, 4 * size) for extent",
            "the degree is halved",
        ),
        ("    require_finite(peak)\n    if peak == 0.0:", "    if peak == 0.0:", "no refusal of NaN"),
        (
            "return scale_up(bound, exponent) if bound == bound else math.inf",
            "return math.ldexp(bound, exponent) if bound == bound else math.inf",
            "the last scaling rounds to nearest",
        ),
        (
            "add_up(gamma(len(taps)), 2.0 * TABLE_ERROR)",
            "add_up(gamma(1), 2.0 * TABLE_ERROR)",
            "the sum over taps rounds once",
        ),
    ),
    *of(
        "kernel/fourier.py",
        OPNORM,
        (
            "channel = np.asarray(np.ravel_multi_index(tuple(phase.T), stride))",
            "channel = np.zeros(len(phase), dtype=np.int64)",
            "residue classes fall on one another",
        ),
        (
            "coarse, phase = np.divmod(positions, stride)",
            "coarse, phase = positions // stride[0], positions % stride",
            "all dimensions have the first one's stride",
        ),
    ),
    *of(
        "kernel/roots.py",
        "tests/test_kernel.py -k 'roots or sine or secant or coarse or difference'",
        ("c, s = _circle_point(Fraction(2, order))", "c, s = _circle_point(Fraction(2, order + 1))", "another polygon"),
        (
            "return 16 * _arctan_inverse(5) - 4 * _arctan_inverse(239)",
            "return 16 * _arctan_inverse(5) - 4 * _arctan_inverse(238)",
            "another pi",
        ),
        (
            "- _SLOP if multiple < Fraction(1, 2) else 0",
            "if multiple <= Fraction(1, 2) else 1",
            "a quarter turn has a secant",
        ),
        (
            "return round_up(Fraction(_ONE, lower)) if lower > 0 else math.inf",
            "return float(Fraction(_ONE, lower)) if lower > 0 else math.inf",
            "the secant rounds to nearest",
        ),
        ("    if abs(value) < _SLOP:", "    if abs(value) < _ONE >> 12:", "small sines are zero"),
    ),
    *of(
        "kernel/angles.py",
        "tests/test_sorting.py -k 'cosine or direction'",
        (
            "c, s = (c * c - s * s) >> p, (2 * c * s) >> p",
            "c, s = (c * c - s * s) >> p, (c * s) >> p",
            "a doubling forgets its factor",
        ),
        ("return cosine, -sine if angle < 0 else sine", "return cosine, sine", "the sine of a negative angle"),
    ),
    *of(
        "kernel/blockwise.py",
        BLOCKWISE,
        ("mul_up(own, 2.0))", "own)", "blocks off the diagonal count once"),
        (
            "residual[a, b] = residual[a, b] - product if (a, b) in residual else -product",
            "residual[a, b] = residual[a, b] - product if (a, b) in residual else 0.0 * product",
            "fill-in is not a residual",
        ),
        ('        return float("inf")\n    residual', "        return 0.0\n    residual", "no factor is a proof"),
        (
            "found = float(add_up(add_up(norm, mul_up(_size(rows, n), gamma(most + 4))), n * 2.0**-899))",
            "found = float(add_up(norm, n * 2.0**-899))",
            "the products count as exact",
        ),
        (
            'return found if found == found else float("inf")',
            "return found if found == found else 0.0",
            "NaN is a proof",
        ),
    ),
    *of(
        "kernel/blockwise.py",
        f"{KERNEL_LAWS}/test_blockwise.py",
        ("1.0 + 2.0 * gamma(most))", "1.0 + 2.0**-51)", "beside a large residual many subtractions count as one"),
    ),
]
