"""Mutants of the single-precision kernel, of the norms of maps and of proofs from multipliers; see `mutant_table`."""

from __future__ import annotations

from benchmarks.mutant_table import OPNORM, SINGLE, TORUS, Mutant, of

STEPS = (
    f"{SINGLE} -k 'no_factor or paid_for or non_negative or gamma or twice or complex or reaches or missing or finite'"
)

COMPOSED = f"{OPNORM} -k 'composition or scale or that_round or leaves_out or long_products or finite'"
PROOF = "tests/test_lipsdp.py tests/test_torus.py -k 'tampered or neither_proof or wrong_factor or same_matrices'"

MUTANTS: list[Mutant] = [
    *of(
        "kernel/single.py",
        STEPS,
        ("steps = count + 2\n", "steps = 1\n", "gamma does not grow"),
        ("squared_norm([np.abs(B)[None]])", "squared_norm([B[None]])", "the error term forgets its absolute values"),
        ("error = add_up(mul_up(gamma(terms), size), lost(B.shape[1] * B.shape[0]))", "error = 0.0", "G is exact"),
        ("if A.dtype != np.float32 else 0.0", "if A.dtype == np.float16 else 0.0", "conversion to float32 is free"),
        ("add_up(squares_up(corner), mul_up(2.0, squares_up(rest)))", "squares_up(corner)", "the rest is no residual"),
        (
            "add_up(squares_up(corner), mul_up(2.0, squares_up(rest)))",
            "add_up(squares_up(corner), squares_up(rest))",
            "the rest counts once",
        ),
        (
            "return mul_up(2.0 * UNIT, np.max(np.abs(diagonal)",
            "return mul_up(0.0, np.max(np.abs(diagonal)",
            "the shift is exact",
        ),
        (
            "add_up(mul_up(rounding, _factor_size(panels)), lost(",
            "add_up(0.0, lost(",
            "the factor's products are exact",
        ),
        ("return np.where(np.isnan(rho), np.inf, rho)", "return np.where(np.isnan(rho), 0.0, rho)", "NaN is a proof"),
        ("mul_up(2.0, add_up(*squares))", "squares[0]", "the imaginary part of a factor"),
        (
            "inflation = 1.0 + 4.0 * (gamma(rows + 1) + gamma(columns + 1))",
            "inflation = 1.0",
            "the power step is exact",
        ),
        ("    require_finite(peak)\n", "", "no refusal of NaN"),
        ("return G, rows + -(-m // rows)", "return G, 1", "an entry of G is rounded once"),
        ("add_up(add_up(c, psd_defect(H, oracles)), rounding)", "add_up(c, rounding)", "the factor is believed"),
        (
            "    return scale_up(float(bound), exponent)",
            "    return math.ldexp(float(bound) / 1.03, exponent)",
            "too low by the slack",
        ),
    ),
    *of(
        "opnorm/maps.py",
        OPNORM,
        ("L2: sqrt_fraction_up(Fraction(copies))}", "L2: 1.0}", "copies of an entry in l2"),
        ("{L1: float(copies), L2", "{LINF: float(copies), L2", "copies of an entry in l1"),
        (
            "schur = math.prod((_factor_norm(f, L1, effort) * _factor",
            "schur = math.prod((_factor",
            "the l1 norm of a factor",
        ),
        ("denominator << shift))", "denominator << (shift + 1)))", "a root is halved"),
        (
            "(math.isqrt(product << (2 * shift)) + 1, denom",
            "(math.isqrt(product << (2 * shift)), denom",
            "a root rounds down",
            "no float64 is within 2^-128 of a root that is not rational",
        ),
        ("denominator ** (2 if norms == L2_LINF else 1))", "denominator ** 2)", "denominators are squared"),
        (
            "return Fraction(value) / factor.denominator",
            "return Fraction(value) / factor.denominator**2",
            "likewise in l2",
        ),
        (
            "L1: norm1_upper, L2: norm2_upper, LINF: norminf_upper",
            "LINF: norm1_upper, L2: norm2_upper, L1: norminf_upper",
            "rows and columns change places",
        ),
    ),
    *of(
        "opnorm/counting.py",
        OPNORM,
        ("conv_norm(conv, LINF if norms == L1 else L1)", "conv_norm(conv, norms)", "an adjoint is its convolution"),
        ("counted[p] <= counted[other] for", "counted[other] <= counted[p] for", "the smaller pattern is kept"),
        (
            "    if not shared:\n        return np.abs(merged)\n",
            "    return np.abs(merged)\n",
            "sums of taps are exact",
        ),
        ("np.moveaxis(grouped, 2, 1)", "np.moveaxis(grouped[:1], 2, 1)", "the first group only"),
        ("        if shared:\n            size =", "        if False:\n            size =", "sizes of one tap"),
        (
            "setdefault(i, [0] * len(row))[j] = 1",
            "setdefault(0, [0] * len(row))[j] = 1",
            "outputs that read an input are one",
        ),
        ("    require_finite(largest_magnitude(weight))\n", "", "no refusal of NaN"),
    ),
    *of(
        "opnorm/geometry.py",
        OPNORM,
        ("self.stride + 1) // self.stride)", "self.stride + 1) // self.stride - 1)", "a torus one step too small"),
        ("max(self.last, end - self.first, (self", "max(self.last, (self", "taps meet around the torus"),
        (
            "min(end, -(-(last - start) // dilation))",
            "min(end, (last - start) // dilation)",
            "the last input of a line",
        ),
        ("outer.first <= inner.first and inner.last <= outer.last and", "", "lines that are no part of another"),
        ("2 * (n - 1) - reflected", "2 * n - 1 - reflected", "edges are reflected, too"),
        ("np.arange(axis.taps) * axis.dilation - axis.before", "np.arange(axis.taps) - axis.before", "dilations are 1"),
        (
            "int(np.max(np.unique(used, return_counts=True)[1])) if",
            "int(np.min(np.unique(used, return_counts=True)[1])) if",
            "the rarest copy",
        ),
    ),
    *of(
        "opnorm/spectral.py",
        OPNORM,
        (
            "schur = float(sqrt_up(mul_up(conv_norm(conv, L1), conv_norm(conv, LINF))))",
            "schur = float(sqrt_up(conv_norm(conv, L1)))",
            "Schur's bound without rows",
        ),
        ("float(mul_up(best, embedding.factor)), f", "float(best), f", "padding is free"),
        (
            "mul_up(mul_up(torus_norm_upper(symbol, grid), factor), embedding.factor)",
            "mul_up(torus_norm_upper(symbol, grid), embedding.factor)",
            "a coarse grid is fine",
        ),
        ("(m if m < n else None for m", "(None for m", "no dimension is thinned"),
        ("stride if axis.inputs % axis.stride == 0 else 1\n", "stride\n", "strides that do not divide"),
        ('math.prod(copies))))), "unfolding")', '1)))), "unfolding")', "patches do not overlap"),
        (
            "kernel = max(norm2_upper(group) for group in groups)",
            "kernel = min(norm2_upper(group) for group in groups)",
            "the smallest group",
        ),
        ('return rigorous(max(values), "matrix")', 'return rigorous(min(values), "matrix")', "the smallest line"),
        ("    return float(add_up(norm, error))", "    return norm", "sums of taps are exact"),
        ("return 1 + (axis.before > 0) + (after > 0)", "return 1", "reflections repeat nothing"),
        (
            "return 1 + max(0, axis.before) + max(0, after)",
            "return 1 + max(0, axis.before, after)",
            "one edge is replicated",
        ),
        ("axis.dilation * (axis.taps - 1) else 3", "axis.dilation * (axis.taps - 1) else 1", "circles repeat nothing"),
        ('wraps = conv.padding_mode == "circular"', "wraps = False", "sizes that the stride does not divide"),
    ),
    *of(
        "opnorm/fused.py",
        COMPOSED,
        (
            "add_up(mul_up(np.abs(factor), self.error), rounding)",
            "mul_up(np.abs(factor), self.error)",
            "products of weights are exact",
        ),
        (
            "return rigorous(float(add_up(main.value, error)), f",
            "return rigorous(main.value, f",
            "errors are not added",
        ),
        (
            "return None  # a reshape in between",
            "pass  # a reshape in between",
            "channels that are positions",
            "with a dimension of the same size they are the same channels, else nothing broadcasts",
        ),
        (
            "inward = before != isinstance(core, Adjoint)",
            "inward = before",
            "an adjoint's weight is scaled on the other side",
        ),
        (
            "np.repeat(channels.reshape(groups, -1), weight.shape[0] // groups, axis=0)",
            "np.repeat(channels.reshape(groups, -1)[:1], weight.shape[0], axis=0)",
            "all groups are scaled like the first",
        ),
        ("add_up(np.abs(weights.value), weights.error)))", "weights.value))", "signs of scales"),
    ),
    *of(
        "opnorm/product.py",
        COMPOSED,
        ("_sum(rounding, underflow, spread)", "_sum(underflow)", "products of matrices are exact"),
        ("_rounding(scaled, UNIT)))", "0.0))", "products with scales are exact"),
        (
            "matrix_norm(product.matrix, norms), mul_up(spread, product.error)",
            "matrix_norm(product.matrix, norms), 0.0",
            "errors are not added",
        ),
        (
            "np.vstack([near.matrix, np.zeros((1, near.matrix.shape[1]))])",
            "near.matrix",
            "zeros of a selection are copies",
        ),
        (
            "return Near(np.ascontiguousarray(straight.matrix.T), straight.error)",
            "return straight",
            "an adjoint is its convolution",
        ),
    ),
    *of(
        "lmi/proof.py",
        PROOF,
        ("add_up(add_up(defect, error), 2.0**-48) <= shift", "defect < np.inf", "any factor is a proof"),
        (
            "add_up(add_up(defect, error), 2.0**-48) <= shift",
            "add_up(error, 2.0**-48) <= shift",
            "the defect is dropped",
        ),
        (
            "return self._above(H, -least - shift, error, shift)",
            "return self._above(H, 1.0 - shift, error, 1.0 + shift)",
            "one is added to the diagonal",
        ),
        (
            "self.valid &= bool(np.all(np.isfinite(lam)) and np.all(lam >= 0.0))",
            "pass",
            "negative multipliers",
            "let the last such neuron move and those after it at the mean of their slopes: the form is negative",
        ),
        (
            "self._add((name, layer.name), -_t(total",
            "self._add((name, layer.name), -0.5 * _t(total",
            "half of what couples",
        ),
        ("self._subtract_gram(form.output, None)", "pass", "the output is zero"),
        (
            "                if place[a] <= place[b]:\n                    size",
            "                if a == b:\n                    size",
            "products of two variables",
        ),
        (
            "return np.full(inputs, float(np.nextafter(np.float64(bound) * bound, 0.0)))",
            "return np.full(inputs, 1.01 * bound * bound)",
            "rho is larger than the bound's square",
        ),
        ("self._add((a, name), -_t(block), _t(size))", "pass", "a border that nothing is paired with"),
        ("total = (alpha + beta) * lam", "total = beta * lam", "the lower slope is zero"),
    ),
    *of(
        "lmi/waves.py",
        TORUS,
        (
            "    return all(over(lambda some: holds(form.real_at(some), double, bound), every[1:]))",
            "    return True",
            "the first frequencies speak for all",
        ),
        (
            "    if not holds(form.real_at(every[0]), double, bound):\n        return False\n",
            "",
            "all but the first frequencies",
        ),
        ("bound, error) <= 1.0:", "bound, error) <= 2.0:", "prices may cost twice as much"),
        (
            "    if len(found) < len(every):\n        return False\n",
            "",
            "frequencies without a price",
            "then there are fewer prices than weights, and nothing is summed",
        ),
        (
            "return all(over(lambda item: _holds_at(",
            "return any(over(lambda item: _holds_at(",
            "one frequency speaks for all",
        ),
        ("torch.cat([lam, lam])", "torch.cat([lam, 2.0 * lam])", "other multipliers than given"),
    ),
]
