"""Mutants of the stand-alone checker; see `mutant_table`."""

from __future__ import annotations

from benchmarks.mutant_table import CHECK, CLAIMS, GROUPS, PARTS, TORUS, Mutant, of

ARITHMETIC = f"{CHECK} -k 'exact or integers or rounding or root or proven or hints or 2_norm'"
TABLES = f"{CHECK} -k 'slope or table or gains or windows or declared or outside'"
NORMS = f"{CHECK} -k 'every_map or convolutions or sums_and_maxima or taps or path or large'"

LAWS = (
    "tests/laws/check/test_parts.py tests/laws/check/test_signals.py tests/laws/check/test_waves.py tests/test_linf.py"
)

MUTANTS: list[Mutant] = [
    *of(
        "check.py",
        ARITHMETIC,
        ("+ 1, 1 << shift)", ", 1 << shift)", "a root rounds down"),
        ("- sqrt_up(Fraction(cut, 4))\n", "\n", "bits that are cut off cost nothing"),
        ("    if room < 0:\n        return False\n", "", "a negative bound is squared"),
        ("level = math.floor(room * room)", "level = math.ceil(room * room) + 1", "the level rounds up"),
        (
            "(2 * E.diagonal() >= (abs(E) + spare).sum(1))",
            "(2 * E.diagonal() >= (E + spare).sum(1))",
            "signs cancel in Gershgorin's discs",
        ),
        (
            "(2 * E.diagonal() >= (abs(E) + spare).sum(1))",
            "(2 * E.diagonal() >= abs(E).max(1))",
            "discs of the largest entry",
        ),
        (
            "return dominant(H - (exact_product(Z.T, Z)",
            "return True or dominant(H - (exact_product(Z.T, Z)",
            "the factor is believed",
        ),
        (
            "b = (53 - X.shape[1].bit_length()) // 2 + 1",
            "b = (53 - X.shape[1].bit_length()) // 2 + 3",
            "digits whose sums round",
        ),
        ("total = (total << b) + levels.pop()", "total = (total << b) + levels.pop() * 0", "low digits are dropped"),
        ("A = (X + (1 << (-shift - 1))) >> -shift", "A = X >> -shift", "rounding moves by up to one"),
        ("int(np.count_nonzero((A << -shift) != X))", "0", "nothing is said to be cut"),
        ("- 54  # exponent", "- 53  # exponent", "the last bit is lost"),
    ),
    *of(
        "check.py",
        NORMS,
        (
            "shares.append(value / math.prod(shares, start=Fraction(1)))",
            "shares.append(2 * value / math.prod(shares, start=Fraction(1)))",
            "shares of factors are too large",
        ),
        ('"l1->l1": ("columns"', '"l1->l1": ("rows"', "the l1 norm sums rows"),
        (
            '"linf->linf": ("rows", lambda v: v.sum(1)',
            '"linf->linf": ("rows", lambda v: v.max(1)',
            "the linf norm is the largest entry",
        ),
        (
            '"l2->linf": ("rows", lambda v: (v * v).sum(1))',
            '"l2->linf": ("rows", lambda v: (v * v).max(1))',
            "the largest entry of a row",
        ),
        ("how(abs(v[start : start + step])", "how((v[start : start + step])", "absolute values are forgotten"),
        (
            "holds, about = squared <= value * value, sqrt_up(squared)",
            "holds, about = squared <= 2 * value * value, sqrt_up(squared)",
            "twice the square",
        ),
        ("unit *= linear.unit\n", "pass\n", "units of later maps are forgotten"),
        (
            '    if not holds:\n        raise Reject(f"{where}: {_show(value)} is not',
            '    if False:\n        raise Reject(f"{where}: {_show(value)} is not',
            "every gain is proven",
        ),
        ('times if side == "columns" else min(times, 1)', "1", "copies of an entry are not counted"),
        ("Counter(row) <= Counter(other) for", "Counter(row) >= Counter(other) for", "the smaller pattern is kept"),
        (
            'linear, side = linear.parts[0], "rows" if side == "columns" else "columns"',
            "linear = linear.parts[0]",
            "an adjoint is its convolution",
        ),
        ("return t % size", "return np.where((t >= 0) & (t < size), t, -1)", "circles are zeros"),
        (
            "np.clip(t, 0, size - 1) if mode",
            "np.where((t >= 0) & (t < size), t, -1) if mode",
            "replicated edges are zeros",
        ),
        ("np.arange(out)[:, None] * stride +", "np.arange(out)[:, None] +", "strides are 1"),
        ("np.arange(kernel) * dilation - before", "np.arange(kernel) - before", "dilations are 1"),
        ("X[:, row, :, column] += weight", "X[:, row, :, column] = weight", "taps that meet overwrite one another"),
        ("before.unit * after.unit)\n        elif", "before.unit)\n        elif", "a product's unit"),
    ),
    *of(
        "check.py",
        TABLES,
        ('"selu": ("0", "1.7580994")', '"selu": ("0", "1.7580993")', "selu's slope is too small by a digit"),
        ('("-0.1289042", "1.1289042")', '("-0.1289", "1.1289")', "gelu's slope is too small by a digit"),
        ('("-0.0998394", "1.0998394")', '("-0.09983", "1.09983")', "silu's slope is too small by a digit"),
        ('"erf": ("0", "1.1283792")', '"erf": ("0", "1.1283791")', "erf's slope is too small by a digit"),
        ('"hardswish": ("-1/2", "3/2")', '"hardswish": ("0", "3/2")', "hardswish falls nowhere"),
        (
            '"alpha", lambda a: (np.minimum(a, 0), np.maximum(a, 1))',
            '"alpha", lambda a: (np.minimum(a, 0), 1)',
            "a steep elu has slope 1",
        ),
        ("(e >= 0) & (e <= 1)", "(e >= 0)", "contractions turn around"),
        (
            "np.all(lower <= least) and np.all(most <= upper)",
            "np.all(most <= upper)",
            "declared lower slopes are believed",
        ),
        (
            "np.all(lower <= least) and np.all(most <= upper)",
            "np.any(lower <= least) and np.any(most <= upper)",
            "one channel speaks for all",
        ),
        (
            "slope = max(abs(end) for end in (*lower.flat, *upper.flat))",
            "slope = max(abs(end) for end in upper.flat)",
            "only rising slopes count",
        ),
        ("if not own[pair] <= gains[pair] ** 2:", "if False:", "declared gains are believed"),
        ('"softmax": (one / 4, one / 4)', '"softmax": (one / 16, one / 4)', "softmax in l2"),
        ('"householder": (one, Fraction(2))', '"householder": (one, one)', "householder in l1"),
        ('"l1->l1": most**2', '"l1->l1": most', "overlapping maxima in l1"),
        ("    return int(times.max())", "    return int(times.min())", "the least seen entry"),
        (
            "for pair, value in gains.items() if pair in own}",
            "for pair, value in gains.items()}",
            "gains outside the table",
        ),
    ),
    *of(
        "check.py",
        CLAIMS,
        ('    if found != claim["network"]:', "    if False:", "any network's digest"),
        ("    if not total <= bound:", "    if total > 2 * bound:", "the bound may be half of what is proven"),
        (
            '    if value < 0:\n        raise Malformed(f"the gain',
            '    if False:\n        raise Malformed(f"the gain',
            "negative gains",
        ),
        ("if not follows or any(network[name].kind", "if any(network[name].kind", "nodes that are no chain"),
        (
            'if not follows or any(network[name].kind != "affine" for name in path):',
            "if not follows:",
            "nodes that are not affine",
        ),
        ("if path[-1] == node.name and end == r:", "if path[-1] == node.name:", "a gain in another norm"),
        (
            "                if s in start:\n",
            "                if start:\n                    s = next(iter(start))\n",
            "a gain from another norm",
        ),
        ("yield sum(parts, Fraction(0))", "yield max(parts)", "a sum is a maximum"),
        (
            'yield max(parts) if r == "linf" else sqrt_up(',
            'yield max(parts) if r != "l1" else sqrt_up(',
            "concatenation in l2",
        ),
        ("    if remaining:\n", "    if False:\n", "tensors that no node uses"),
        ("or not np.isfinite(found).all():", "or np.isinf(found).any():", "NaN weights"),
        ("not math.isfinite(value) or value.hex() != text", "value.hex() != text", "NaN as a number"),
        (
            '"sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),',
            '"sha256": "",',
            "numbers are not under the digest",
        ),
        ('"dtype": str(array.dtype),', '"dtype": "",', "types are not under the digest"),
        ("    if len(found) != len(pairs):", "    if False:", "keys twice"),
        ("value.keys() != types.keys()", "not value.keys() >= types.keys()", "fields of any name"),
        ("    if not math.ulp(0.0) * 1.0 > 0.0:", "    if False:", "a processor that flushes"),
        (
            "spans[key] != (end, end + np.dtype(dtype).itemsize * math.prod(shape))",
            "spans[key][1] - spans[key][0] != np.dtype(dtype).itemsize * math.prod(shape)",
            "overlapping tensors",
        ),
        ("    if end != len(content) - 8 - length:", "    if False:", "bytes after the end"),
        ('[*network][-1] != head["output"]', 'head["output"] not in network', "the output is anywhere"),
        (
            "shapes == [linear.in_shape] and shape == linear.out_shape",
            "shape == linear.out_shape",
            "inputs of another shape",
        ),
    ),
    *of(
        "check.py",
        PARTS,
        (
            "    if any(value < 0 for value in multipliers):",
            "    if False:",
            "negative multipliers",
            "let the last such neuron move and those after it at the mean of their slopes: the form is negative",
        ),
        ("_integers(tau or [value**2]", "_integers(tau or [2 * value**2]", "rho is doubled"),
        ("-int(row is None or i == number))", "-int(row is None or i == number), 2)", "half the output"),
        (
            'if node.kind == "input":\n                raise Malformed(f"{target}',
            'if False:\n                raise Malformed(f"{target}',
            "a part that is passed by",
        ),
        ("spare = off * math.ceil(loosest * 2**60) // 2**60 + 3", "spare = 3", "what is known loosely is known"),
        ("X, unit = _integers([-(a + b) * value", "X, unit = _integers([-b * value", "the lower slope is zero"),
        (
            '    if not holds:\n        raise Reject(f"{where}: the mul',
            '    if False:\n        raise Reject(f"{where}: the mul',
            "every part is proven",
        ),
        (
            "    if not (H.diagonal() > 0).all():\n        return not len(H)\n",
            "    if not (H.diagonal() > 0).all():\n        return True\n",
            "a negative diagonal is semidefinite",
        ),
    ),
    *of(
        "check.py",
        GROUPS,
        (
            "length = 1 if node.angles else node.members\n    each",
            "length = 1\n    each",
            "multipliers of sorts are too small",
        ),
        ("return cosine, -sine if angle < 0 else sine", "return cosine, sine", "the sine of a negative angle"),
        ("shape[dim] % n == 0 and", "", "groups that do not fit"),
        ("[k * (k + 1) for k in range(1, n)] * groups", "[1 for k in range(1, n)] * groups", "squares of columns"),
        ("loose = unit if node.angles else Fraction(0)", "loose = Fraction(0)", "rounded cosines count as exact"),
    ),
    *of(
        "check.py",
        TORUS,
        ("if not (first + n >= size and last < n):", "if not (first + n >= size):", "a kernel reaches around the end"),
        ("if not (first + n >= size and last < n):", "if not (last < n):", "a kernel reaches around the start"),
        ("            if list(fine.shape[1:]) != have:", "            if False:", "circles on another torus"),
        (
            "if not wave.inside and not kernel.circular and (padded or kernel.turned):",
            "if False:",
            "a state is padded twice",
        ),
        (
            "frequencies = [w for w in np.ndindex(*torus) if w <= tuple",
            "frequencies = [w for w in np.ndindex(*torus) if w < tuple",
            "frequencies that are their own conjugates",
        ),
        (
            "return all(_semidefinite_sum(found, widths, alike=True) for found in loose)",
            "return any(_semidefinite_sum(found, widths, alike=True) for found in loose)",
            "one frequency speaks for all",
        ),
        (
            "    if not inside:\n        lower, upper = np.minimum(lower, 0), np.maximum(upper, 0)\n",
            "",
            "slopes outside the image",
        ),
        (
            "if not semidefinite(np.diag([level] * outputs).astype(object) - sums, level):",
            "if False:",
            "prices may cost anything",
        ),
        (
            "shares = [1 if w == tuple(-a % n for a, n in zip(w, torus, strict=True)) else 2 for w in frequencies]",
            "shares = [1 for w in frequencies]",
            "conjugates count once",
        ),
        ("if any(size > n for size, n in zip(node.shape[1:], have, strict=True)):", "if False:", "images overlap"),
    ),
    *of(
        "check.py",
        LAWS,
        ("sum(r**-2 for r in tau) > 1", "sum(r**-2 for r in tau) > 2", "twice the sum to l1"),
        ("[-(r**2) for r in tau]", "[-r for r in tau]", "squares to l1 are not squared"),
        ("dtype=np.int64)[:, [k]], []", "dtype=np.int64)[:, [0]], []", "from l1 to l1 the first entry moves, always"),
        ('"l1->l1": inputs}.get(norms, outputs)', '"l1->l1": 1}.get(norms, outputs)', "one row to l1"),
        ("narrow(abs(X)[:, None] * size.astype", "narrow(X[:, None] * size.astype", "sizes with signs"),
        ("narrow(abs(column) * size)", "narrow(column * size)", "sizes with signs, on a torus"),
    ),
]
