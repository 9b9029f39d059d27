"""Mutants of the checker of certificates about a domain; see `mutant_table`."""

from __future__ import annotations

from benchmarks.mutant_table import Mutant, of

DOMAIN = "tests/laws/check_domain tests/test_check_domain.py"

MUTANTS: list[Mutant] = [
    *of(
        "check_domain.py",
        DOMAIN,
        (
            "            self.numbers = self.numbers + unit * sum(np.maximum(x.high.ravel(), 0), Fraction(0))\n",
            "",
            "cut coefficients cost nothing",
        ),
        (
            "np.maximum(x.high.ravel(), 0), Fraction(0))",
            "np.maximum(x.low.ravel(), 0), Fraction(0))",
            "cut coefficients cost the lower end",
        ),
        (
            "np.maximum(A, 0) @ _whole(high, own, math.ceil)",
            "np.maximum(A, 0) @ _whole(high, own, math.floor)",
            "upper ends rounded down",
        ),
        (
            "np.minimum(A, 0) @ _whole(low, own, math.floor)",
            "np.minimum(A, 0) @ _whole(low, own, math.ceil)",
            "lower ends rounded up",
        ),
        ("np.minimum(A, 0) @ _whole(low,", "np.minimum(A, 0) @ _whole(high,", "negative coefficients times upper ends"),
        (
            "        if proof.domain.radius is not None:\n            squares",
            "        if False:\n            squares",
            "ball is its centre backward",
        ),
        (
            "sums.numbers = sums.numbers + _array(map(sqrt_up",
            "sums.numbers = sums.numbers - _array(map(sqrt_up",
            "radius subtracted",
        ),
        ("return through, chord, zero, max(heights)", "return through, chord, zero, min(heights)", "chord too low"),
        ("return chord, through, min(heights), zero", "return chord, through, max(heights), zero", "chord too high"),
        ("    if left <= right:\n", "    if left >= right:\n", "convex and concave change places"),
        (
            "through = right if high > -low else left",
            "through = left if high > -low else right",
            "the other line through zero",
        ),
        (
            "return least, least, first[0] - least * low, last[1] - least * high",
            "return least, least, first[1] - least * low, last[0] - least * high",
            "lines through the wrong ends of values",
        ),
        (
            "return most, most, last[0] - most * high, first[1] - most * low",
            "return most, most, first[0] - most * low, last[1] - most * high",
            "beta lines change places",
        ),
        (
            "if rise - least * width <= most * width - rise",
            "if rise - least * width > most * width - rise",
            "the wider gap",
        ),
        ("return min(found) + fall, max(found) - fall", "return min(found), max(found)", "no fall between the ends"),
        ("if least < 0 < most else Fraction(0)", "if least < 0 < 0 else Fraction(0)", "no fall ever"),
        ("for a, b in ((L, H), (H, L))]", "for a, b in ((L, L), (H, H))]", "one end for both signs"),
        (
            "((low, math.floor), (high, math.ceil))",
            "((low, math.ceil), (high, math.floor))",
            "intervals rounded inward",
        ),
        (
            "return Range(ends.min(0), ends.max(0)).reshape(*linear.out_shape)",
            "return Range(ends[0], ends[1]).reshape(*linear.out_shape)",
            "negative scales do not turn intervals",
        ),
        (
            "np.append(end, np.array([Fraction(0)], dtype=object))[index]",
            "end[index]",
            "a selected zero is the last entry",
        ),
        (
            "np.add.at(found, linear.tensor.ravel(), A.T.astype(object))",
            "found[linear.tensor.ravel()] = A.T",
            "entries read twice count once",
        ),
        (
            "        if known.bias is not None:\n            sums.most(A, unit, Range(known.bias, known.bias))\n",
            "",
            "no bias backward",
        ),
        ("return moved if known.bias is None else Range(", "return moved if True else Range(", "no bias forward"),
        (
            "pieces = np.split(places, cuts, node.dim)",
            "pieces = np.split(places, cuts, 0)",
            "concatenations along the first dimension",
        ),
        (
            "np.maximum(A, 0) * high + np.minimum(A, 0) * low, unit * one)",
            "np.maximum(A, 0) * low + np.minimum(A, 0) * high, unit * one)",
            "lines change places",
        ),
        ("        sums.most(A, unit, lines.at_zero)\n", "", "heights of lines forgotten"),
        (
            "bottom = math.floor((bottom - CURVED * (1 + abs(bottom))) / GRID) * GRID",
            "bottom = math.ceil((bottom - CURVED * (1 + abs(bottom))) / GRID) * GRID",
            "least slope rounded up",
        ),
        (
            "top = math.ceil((top + CURVED * (1 + abs(top))) / GRID) * GRID",
            "top = math.floor((top + CURVED * (1 + abs(top))) / GRID) * GRID",
            "largest slope rounded down",
        ),
        ("bottom - CURVED * (1", "bottom + CURVED * (1", "least slope narrowed"),
        (
            "CURVED = Fraction(1, 1 << 38) - Fraction(1, 1 << 48)",
            "CURVED = Fraction(1, 1 << 60)",
            "slopes hardly widened",
        ),
        (
            "CURVED = Fraction(1, 1 << 38) - Fraction(1, 1 << 48)",
            "CURVED = Fraction(1, 1 << 38) + Fraction(1, 1 << 44)",
            "slopes widened more than the library's",
        ),
        (
            "near = Fraction(0) if low <= 0 <= high else",
            "near = Fraction(0) if False else",
            "steepest point of a bell forgotten",
        ),
        (
            "derivative(max(abs(low), abs(high)))",
            "derivative(min(abs(low), abs(high)))",
            "flattest point of a bell forgotten",
        ),
        (
            "low, high = total - 2 * j - 6, total + 2 * j + 6",
            "low, high = total + 2 * j + 6, total + 2 * j + 6",
            "exponential from above only",
        ),
        ("return t + low - low * low, t + high", "return t + low, t + high", "logarithm without its square"),
        ("room += (abs(lacks) + room) ** 3", "room = Fraction(0)", "arctangent without room"),
        (
            "    room = Fraction(3, 1 << 64) + abs(lacks) / 2**100",
            "    room = Fraction(0)",
            "arctangent without rounding",
        ),
        ("tail = Fraction(1, 1 << 107)", "tail = Fraction(1, 1 << 120)", "tail too small"),
        ("(-term if j & 1 else term)", "(term if j & 1 else term)", "series does not alternate"),
        ("/ len(low) ** 2", "/ len(low)", "variance n times too large"),
        ("least += min(_variance", "least += max(_variance", "the largest variance"),
        (
            "gaps = (max(low[i] - high[j], low[j] - high[i], 0)",
            "gaps = (max(high[i] - low[j], high[j] - low[i], 0)",
            "widest gaps",
        ),
        (
            '"half", [node.shape] * 2), (b, a), strict=True)',
            '"half", [node.shape] * 2), (a, b), strict=True)',
            "factors change places",
        ),
        ('"part", shapes), (b, a), strict=True)', '"part", shapes), (a, b), strict=True)', "matrices change places"),
        (
            "return sqrt_up(moduli.sum(-1).max() * moduli.sum(-2).max())",
            "return sqrt_up((moduli * moduli).max())",
            "largest entry for the spectral norm",
        ),
        (
            "below = every if found is None else np.flatnonzero(found.low.ravel() < low)",
            "below = every[:0]",
            "lower ends are believed",
        ),
        (
            "above = every if found is None else np.flatnonzero(found.high.ravel() > high)",
            "above = every[:0]",
            "upper ends are believed",
        ),
        (
            "if bound is None or bound > claim:",
            "if bound is None or bound > claim + Fraction(1, 1 << 20):",
            "ranges may be a little too narrow",
        ),
        (
            "if bound is None or bound > claim:",
            "if bound is not None and bound > claim:",
            "ranges of which nothing is known are believed",
        ),
        (
            "claim = high[entry] if sign > 0 else -low[entry]",
            "claim = high[entry] if sign > 0 else low[entry]",
            "lower ends with the wrong sign",
        ),
        (
            "proof.slopes[node.name] = Range(*slopes).within(everywhere)",
            "proof.slopes[node.name] = Range(*slopes)",
            "slopes not cut to those known everywhere",
        ),
        ("        if not (found[name].low <= found[name].high).all():", "        if False:", "empty ranges"),
        ("* 2**40 > np.maximum(upper, 0)", "* 2**40 > upper", "negative slopes bend"),
        ("    lower[place] = upper[place] = Fraction(0)\n", "", "bending neurons count twice"),
        (
            "back[place] = np.arange(len(place))",
            "back[place] = np.arange(len(place))[::-1]",
            "put back in another order",
        ),
        (
            "np.sort(groups, 1) if node.consecutive else np.sort(groups, 0)[::-1]",
            "np.sort(groups, 1)[:, ::-1] if node.consecutive else np.sort(groups, 0)",
            "sorted the other way",
        ),
        (
            'x.high, about, node.shape))\n    if function == "norm2"',
            'x.low, about, node.shape))\n    if function == "norm2"',
            "logsumexp of the lower ends",
        ),
        (
            "return Range(ends.min(0).sum(-2), ends.max(0).sum(-2))",
            "return Range(ends.sum(-2).min(0), ends.sum(-2).max(0))",
            "sums of products at one corner",
        ),
        (
            "np.take(end, range(*window), axis=dim).max(dim)",
            "np.take(end, range(*window), axis=dim).min(dim)",
            "minima for maxima",
        ),
        (
            "yield _factor(node, Range(low, high)) if bounded else node",
            "yield _factor(node, Range(low, high))",
            "infinite slopes",
        ),
        ("r = self.radius or Fraction(0)", "r = Fraction(0)", "ball is its centre forward"),
        (
            "A = A.astype(object) * int(unit / common) + other.astype(object) * int(own / common)",
            "A = A.astype(object) * int(own / common) + other.astype(object) * int(unit / common)",
            "units change places",
        ),
        (
            "steepest = max(abs(end) for end in (*slopes.low.flat, *slopes.high.flat))",
            "steepest = max(abs(end) for end in slopes.high.flat)",
            "lower slopes forgotten",
        ),
        (
            "return (min(left[0], one), max(left[1], one)) if high > 0 else left",
            "return left",
            "the right half of elu forgotten",
        ),
        (
            "slopes(low, high, p) if low > 0 else nothing",
            "slopes(low, high, p) if high > 0 else nothing",
            "too steep near zero",
        ),
        ("(low == high and start <= low <= stop)", "False", "points at knots"),
        (
            '    if node.kind == "opaque" and (known.parameters',
            "    if False and (known.parameters",
            "shapes of elementwise functions",
        ),
        ("or radius < 0:", "or False:", "negative radius"),
        ("if not (box.low <= box.high).all():", "if False:", "empty box"),
        ("left[:-2] == right[:-2] and", "", "batches that repeat"),
        (
            "_outward(*_scaled(1 / beta, _softplus(beta * x)))",
            "_outward(*_scaled(beta, _softplus(beta * x)))",
            "softplus times beta",
        ),
        ("    if len(ends) < len(read):\n        return None\n", "", "unknown branches are left out"),
        ("_filled(node.shape, Fraction(0)), most)", "most, most)", "norms are at their largest"),
        ("there.out_shape, Fraction(1, 2))", "there.out_shape, Fraction(1, 4))", "a quarter of sums and moduli"),
        ("back[first if node.consecutive else second, second]", "back[second, second]", "ascending is descending"),
        ("Fraction(-1 if (row < 0).any() else 1)", "Fraction(1)", "differences keep their signs"),
        (
            "ends = (weight, np.full_like(weight, Fraction(1)))",
            "ends = (abs(weight), abs(weight))",
            "moduli never fall",
        ),
        ("there[second, second] = -1", "there[second, second] = 1", "sums in place of differences"),
        ("range(1 if node.members == 2 else node.members)", "range(1)", "one step sorts all"),
        ("if new.name in network and new.name != node.name:", "if False:", "names of parts of sorts"),
        ("step % 2 : -1 : 2", "0 : -1 : 2", "the odd pairs only"),
        (
            "signs = ((1, 1), (1, -1)) if pair[1:]",
            "signs = ((1, 1), (1, 1)) if pair[1:]",
            "tournaments without differences",
        ),
        ("{len(rows) + k: 2 // len(pair)", "{len(rows) + k: 1", "who is alone is halved"),
    ),
]
