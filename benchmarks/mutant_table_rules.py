"""Mutants of the rules and of the composition of bounds; see `mutant_table`."""

from __future__ import annotations

from benchmarks.mutant_table import RULE_LAWS, RULES, Mutant, of

SLOPES = f"{RULES} -k 'slope or activation or outward or batch_norm or reciprocal or prelu or replayed'"
MOVES = f"{RULES} -k 'replayed or gains or rule_itself'"
REFUSED = f"{RULES} -k 'refused or rule_itself'"
INTEGERS = f"{RULE_LAWS}/test_maps.py -k 'says_itself'"
WORDS = "steepest or into_this or residual or mixed or missing or too_large or rational or paths"
COMPOSE = f"tests/test_certifiers.py -k '{WORDS}'"

MUTANTS: list[Mutant] = [
    *of(
        "rules/activations.py",
        SLOPES,
        ("SIXTH = math.nextafter(1 / 6, 1.0)", "SIXTH = 1 / 6", "a sixth rounds to nearest"),
        ("(-0.12891, 1.12891)", "(-0.12890, 1.12890)", "gelu's slope is too small by a digit"),
        ("(-0.12900, 1.12900)", "(-0.12899, 1.12899)", "gelu_tanh's slope is too small by a digit"),
        ('"selu", (0.0, 1.7581)', '"selu", (0.0, 1.7580)', "selu's slope is too small by a digit"),
        ("(-0.09984, 1.09984)", "(-0.09983, 1.09983)", "silu's slope is too small by a digit"),
        ("(-0.11253, 1.08850)", "(-0.11252, 1.08850)", "mish's lower slope is too high by a digit"),
        ('"hardswish", (-0.5, 1.5)', '"hardswish", (0.0, 1.5)', "hardswish falls nowhere"),
        ('"erf", (0.0, 1.12838)', '"erf", (0.0, 1.12837)', "erf's slope is too small by a digit"),
        ("    (0.0, 0.25),", "    (0.0, 0.2499),", "sigmoid's slope is too small"),
        ("(min(1.0, s), max(1.0, s))", "(s, 1.0)", "a steep leaky relu has slope 1"),
        ("(torch.minimum(one, s), torch.maximum(one, s))", "(s, one)", "a steep prelu has slope 1"),
        ("(min(0.0, a), max(1.0, a))", "(0.0, max(1.0, a))", "elu with a negative alpha"),
        ("return leaky_relu(input, (lower + upper) / 2)", "return leaky_relu(input, lower)", "rrelu's lower slope"),
        ("1.0), call, alpha=a)\n\n\n@lowers(nn.CELU)", "0.5), call, alpha=a)\n\n\n@lowers(nn.CELU)", "celu's slope"),
    ),
    *of(
        "rules/activations.py",
        REFUSED,
        ("    if a <= 0:", "    if False:", "celu with a negative alpha passes"),
        ("if b <= 0 or threshold < 20:", "if b <= 0:", "softplus that jumps passes"),
        ("if number(input, lambd) < 0:", "if False:", "softshrink that jumps passes"),
        ("if t != number(input, value):", "if False:", "a threshold that jumps passes"),
        ("    if training:\n", "    if False:\n", "random slopes pass"),
    ),
    *of(
        "rules/arithmetic.py",
        SLOPES,
        ("return add(input, other, alpha=-alpha)", "return add(input, other, alpha=alpha)", "subtraction adds"),
        ("return scaled(input, -1)", "return input", "negation does nothing"),
        ("torch.where(powers, reciprocal, outward)", "reciprocal", "a reciprocal rounds to nearest"),
        ("return y if exact else contracted(y)", "return y", "a quotient rounds without saying so"),
        ("mantissa.abs() == 0.5", "mantissa.abs() <= 0.75", "reciprocals of other numbers are exact"),
    ),
    *of(
        "rules/arithmetic.py",
        REFUSED,
        ("    if bool((divisor == 0).any()):", "    if False:", "division by zero passes"),
        ("if isinstance(input, Value) and isinstance(other, Value):", "if False:", "products of values pass"),
        ("    if rounding_mode is not None:", "    if False:", "a rounded quotient passes"),
        (
            "    require_finite(x.path, tensor)\n",
            "",
            "infinite constants pass",
            "the node that is recorded refuses them, too",
        ),
    ),
    *of(
        "rules/arithmetic.py",
        INTEGERS,
        ("(tensor.long().abs() > 2**53) | ", "", "integers pass that round to 2^53"),
        (" | (tensor.double().abs() > 2**53)", "", "unsigned integers beyond 2^63 pass"),
        (" and not constant.is_complex()", "", "imaginary parts are dropped"),
    ),
    *of(
        "rules/convolution.py",
        MOVES,
        ("d * (k - 1) - 1) // s + 1", "d * (k - 1) - 1) // max(d, s) + 1", "fewer outputs"),
        ("(amount // 2, amount - amount // 2)", "(amount - amount // 2, amount // 2)", "same pads on the other side"),
        (
            "Conv(weight, x.shape, out_sizes, stride, pads",
            "Conv(weight, x.shape, out_sizes, (1,) * dimensions, pads",
            "stride",
        ),
        ("pads, dilation, groups, mode)", "pads, (1,) * dimensions, groups, mode)", "dilation is forgotten"),
        ("pads, dilation, groups, mode)", 'pads, dilation, groups, "zeros")', "all padding is by zeros"),
        ("+ d * (k - 1) + e + 1", "+ d * (k - 1) + 1", "output padding is forgotten"),
        ("return affine(x, Adjoint(conv), _per", "return affine(x, Adjoint(conv), None and _per", "no bias"),
    ),
    *of(
        "rules/linear.py",
        MOVES,
        (
            "return linear(x, matrix.T)",
            "return linear(x, matrix if len(matrix) == len(matrix.T) else matrix.T)",
            "transposed",
        ),
        (
            "return affine(input, Dense(weight, input.shape), bias)",
            "return affine(input, Dense(weight.abs(), input.shape), bias)",
            "signs of weights",
        ),
        ("if beta != 1 or alpha != 1 or", "if", "addmm with factors passes"),
    ),
    *of(
        "rules/nonlinear.py",
        MOVES,
        ("{L2: 0.5, L1: 0.5, LINF: 0.5}", "{L2: 0.25, L1: 0.5, LINF: 0.5}", "softmax in l2"),
        ("{L2: 0.5, L1: 0.5, LINF: 0.5}", "{L2: 0.5, L1: 0.5, LINF: 0.25}", "softmax in linf"),
        ("ROOT_TWO = 1.4142135623730952", "ROOT_TWO = 1.4142135623730950", "the root of two rounds down"),
        ("{L2: 1.0, L1: ROOT_TWO, LINF: ROOT_TWO}", "{L2: 1.0, L1: 1.0, LINF: ROOT_TWO}", "householder in l1"),
        ("return softmax(neg(input), module.dim)", "return softmax(input, module.dim)", "softmin is softmax"),
        ("if ord not in (2, 2.0) or dtype", "if dtype", "norms of other orders pass"),
    ),
    *of(
        "rules/nonlinear.py",
        "tests/test_sorting.py -k direction",
        (
            '_sorting(x, module, module.dim, 2, "interleaved")',
            '_sorting(x, module, module.dim, 2, "consecutive")',
            "maxmin's pairs",
        ),
    ),
    *of(
        "rules/normalisation.py",
        SLOPES,
        (
            "total = torch.nextafter(variance + eps, zero)",
            "total = variance + eps",
            "a variance rounds to nearest",
            "the root halves a sum's error, and its own step has half a unit to spare",
        ),
        (
            "root = torch.nextafter(total.sqrt(), zero)",
            "root = total.sqrt()",
            "a deviation rounds to nearest",
            "the steps of sum and quotient have as much to spare: (1 - 1/m)^2 >= 0, m its mantissa",
        ),
        ("return torch.where(gamma == 0, gamma, outward)", "return quotient", "a scale rounds to nearest"),
        ("return contracted(affine(", "return (affine(", "a scale rounds without saying so"),
        (
            "torch.ones_like(running_var) if weight is None else weight",
            "torch.ones_like(running_var)",
            "the scale is 1",
        ),
    ),
    *of(
        "rules/normalisation.py",
        REFUSED,
        ("if training or running_mean is None", "if running_mean is None", "statistics of the batch pass"),
        (
            "if bool((running_var < 0).any()) or",
            "if",
            "a negative variance passes",
            "above -eps its scale is a number, and the claim is true",
        ),
    ),
    *of(
        "rules/pooling.py",
        MOVES,
        (
            "overlaps *= int(counts.max())",
            "overlaps = max(overlaps, int(counts.max()))",
            "overlaps of one dimension only",
        ),
        ("L1: float(overlaps), LINF: 1.0}", "L1: l2, LINF: 1.0}", "overlapping maxima in l1"),
        ("math.nextafter(math.sqrt(overlaps), math.inf)", "math.sqrt(overlaps)", "a root rounds to nearest"),
        ("counts[start:stop:step] += 1", "counts[start:stop:step] = 1", "overlaps are not counted"),
        ("return neg(amax(neg(input), dim, keepdim))", "return amax(input, dim, keepdim)", "a minimum is a maximum"),
        ("return neg(maximum(neg(input), neg(other)))", "return maximum(input, other)", "the smaller is the larger"),
        ("lambda size: Fraction(1, size))", "lambda size: Fraction(1, size + 1))", "a mean divides by too much"),
        ("min(end, size + pad) - start if count", "end - start if count", "padding beyond the end counts"),
        ("Fraction(1, divisor_override if position == 0 else 1)", "Fraction(1, divisor_override)", "a divisor twice"),
        ("start if start >= 0 else start % d", "max(start, 0)", "a dilated window that starts in the padding"),
    ),
    *of(
        "rules/resampling.py",
        MOVES,
        ("{left: 1 - weight, right: weight}", "{left: weight, right: 1 - weight}", "neighbours change places"),
        ("Fraction(i * (size - 1), target - 1) if", "Fraction(i * size, target) if", "corners are not aligned"),
        ("scale <= 0 or scale.denominator > 2**10", "scale <= 0", "factors that torch rounds pass"),
    ),
    *of(
        "rules/resampling.py",
        f"{RULE_LAWS}/test_maps.py -k 'values_of_torch and resampling'",
        ("if recompute or n == m else", "if recompute else", "what keeps its size is interpolated"),
    ),
    *of(
        "rules/structure.py",
        REFUSED,
        ("or not torch.equal(index, torch.where(first < 0, first, first + steps))", "", "samples may mix"),
        ("    if not dim and not options:", "    if False:", "squeezing a batch of one passes"),
        ("    if training and p > 0:", "    if False:", "dropout in training passes"),
        ("if any(dtype != torch.float64 for dtype in formats):", "if False:", "casts pass"),
    ),
    *of(
        "rules/structure.py",
        MOVES,
        ("    index = moved.long() - 1", "    index = (moved.long() - 1).clamp(min=0)", "zeros are copies of an entry"),
    ),
    *of(
        "certifiers/composition.py",
        COMPOSE,
        (
            "return sum((bounds[name][pair] for name in names), Fraction(0))",
            "return max(bounds[name][pair] for name in names)",
            "a sum is a maximum",
        ),
        (
            "max(abs(float(lower.min())), abs(float(upper.max())))",
            "abs(float(upper.max()))",
            "only rising slopes count",
        ),
        (
            "max(abs(float(lower.min())), abs(float(upper.max())))",
            "max(abs(float(lower.max())), abs(float(upper.min())))",
            "the flattest neuron",
        ),
        ("        return max(parts)\n", "        return min(parts)\n", "concatenation in linf"),
        (
            "return sum(parts, Fraction(0)) if q == 1.0 else sqrt_up(",
            "return max(parts) if q == 1.0 else sqrt_up(",
            "concatenation in l1",
        ),
        ("sqrt_up(sum((part * part for part in parts), Fraction(0)))", "max(parts)", "concatenation in l2"),
        (
            "    if not routes:\n        raise InvalidInput(",
            "    if not routes:\n        return Fraction(1)\n        raise InvalidInput(",
            "a missing gain is one",
        ),
        (
            "if gain.norms.q == pair.q and reach in bounds[before]:",
            "if reach in bounds[before]:",
            "a gain in another norm",
        ),
        ("value.denominator) + 1, math.isqrt(scale))", "value.denominator), math.isqrt(scale))", "a root rounds down"),
        ("finite(round_up(found[norms]), f", "finite(float(found[norms]), f", "the bound rounds to nearest"),
        ("    if value == math.inf:", "    if False:", "an overflow passes"),
        (
            "        if norms.q == pair.q and Norms(pair.p, norms.p) in before",
            "        if Norms(pair.p, norms.p) in before",
            "an opaque gain in another norm",
        ),
    ),
]
