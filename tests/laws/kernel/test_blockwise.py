"""The defect of a matrix in blocks, each error term held to its own count."""

import math
from fractions import Fraction

import numpy as np

from lipcert.kernel import blockwise
from lipcert.kernel.rounding import round_up, sum_of_squares_up
from tests.laws.kernel.exact import RNG, Array, U, above, exactly, higham, integers, root_above

ORDER = ["a", "b", "c"]
WIDTHS = {"a": 2, "b": 3, "c": 4}


def block_rows(rng: np.random.Generator, batch: tuple[int, ...] = ()) -> list[dict[str, Array]]:
    """Rows of 5, 1 and 3, of which not all have all the blocks."""
    having = ((5, "abc"), (1, "ac"), (3, "b"), (2, "cb"))
    return [{name: integers(rng, *batch, height, WIDTHS[name]) for name in names} for height, names in having]


def written_out(rows: list[dict[str, Array]]) -> Array:
    heights = [next(iter(row.values())).shape[-2] for row in rows]
    return np.block(
        [[row.get(name, np.zeros((h, WIDTHS[name]))) for name in ORDER] for h, row in zip(heights, rows, strict=True)]
    )


def blocks_of(H: Array) -> dict[tuple[str, str], Array]:
    ends = np.cumsum([0, *WIDTHS.values()])
    place = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(ORDER)}
    pairs = [(a, b) for i, a in enumerate(ORDER) for b in ORDER[i:]]
    return {(a, b): H[..., place[a], place[b]] for a, b in pairs}


def test_the_size_of_block_rows_is_their_largest_row_sum_times_their_largest_column_sum():
    for seed in range(20):
        rows = block_rows(RNG(seed))
        F = np.abs(written_out(rows))
        assert above(blockwise._size(rows, 9), Fraction(F.sum(axis=1).max() * F.sum(axis=0).max()))
    assert above(blockwise._size([{"a": np.full((1, 1), -1.0)}], 1), Fraction(1))
    for n in (1, 2, 5, 40):
        row = {"a": np.full((n, n), 0.1)}
        assert above(blockwise._size([row], n), (n * Fraction(0.1)) ** 2)


def test_block_rows_in_a_stack_have_one_size_for_all():
    rows = block_rows(RNG(3), (2,))
    each = [np.abs(written_out([{name: block[i] for name, block in row.items()} for row in rows])) for i in (0, 1)]
    truth = max(F.sum(axis=1).max() for F in each) * max(F.sum(axis=0).max() for F in each)
    assert above(blockwise._size(rows, 9), Fraction(truth))


def test_what_block_rows_leave_of_a_matrix_is_its_defect(monkeypatch):
    rng = RNG(8)
    monkeypatch.setattr(blockwise, "_size", lambda rows, n: 0.0)
    for fill_in in (False, True):
        rows = block_rows(rng)
        F = written_out(rows)
        monkeypatch.setattr(blockwise, "_factor", lambda H, order, rows=rows: rows)
        E = integers(rng, 9, 9)
        H = blocks_of(F.T @ F + E + E.T)
        if fill_in:
            del H["a", "b"], H["b", "c"]
        given = np.zeros((9, 9))
        for (a, b), block in H.items():
            at = [sum(list(WIDTHS.values())[: ORDER.index(name)]) for name in (a, b)]
            given[at[0] : at[0] + WIDTHS[a], at[1] : at[1] + WIDTHS[b]] = block
            given[at[1] : at[1] + WIDTHS[b], at[0] : at[0] + WIDTHS[a]] = block.T
        left = int(((given - F.T @ F) ** 2).sum())
        assert root_above(blockwise.blockwise_defect(H, ORDER), Fraction(left))


def test_every_product_of_block_rows_counts_as_often_as_it_rounds(monkeypatch):
    # Nothing is left over, so that all of the defect is for the products: so many roundings of the size.
    H = {("a", "a"): np.full((2, 2), 33.0)}
    rows = [{"a": np.ones((3, 2))} for _ in range(11)]
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: rows)
    monkeypatch.setattr(blockwise, "_size", lambda rows, n: 1.0)
    assert above(blockwise.blockwise_defect(H, ["a"]), higham(11 * (3 + 1), U), 8.0 / 44)
    fill = {("a", "a"): 33.0 * np.ones((2, 2)), ("b", "b"): 33.0 * np.ones((1, 1))}
    rows[:] = [{"a": np.ones((3, 2)), "b": np.zeros((3, 1))} for _ in range(11)]
    fill["b", "b"][:] = 0.0
    assert above(blockwise.blockwise_defect(fill, ["a", "b"]), higham(11 * (3 + 1), U), 8.0 / 44)


def test_the_last_subtraction_of_a_block_is_paid_for(monkeypatch):
    def rounded_once(terms: Array, axis: tuple[int, ...]) -> Array:
        return np.vectorize(round_up, otypes=[float])((exactly(terms) ** 2).sum(axis=axis))

    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": np.zeros((1, 1))}])
    for counted in (sum_of_squares_up, rounded_once):
        monkeypatch.setattr(blockwise, "sum_of_squares_up", counted)
        assert root_above(blockwise.blockwise_defect({("a", "a"): np.ones((1, 1))}, ["a"]), (1 + U) ** 2, 1e-14)


def test_what_a_matrix_loses_to_many_block_rows_is_in_its_defect(monkeypatch):
    # The least eigenvalue of the matrix is -2. Every product is half an ulp, of which a subtraction makes a whole one
    # beside the diagonal and nothing on it: what is left of the matrix is smaller than the matrix by one ulp for each.
    f = (0.51 * 2.0**-53) ** 0.5
    rows = [{"a": np.full((1, 1), f), "b": np.full((1, 1), -f)} for _ in range(100)]
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: rows)
    minus = np.full((1, 1), -1.0)
    assert blockwise.blockwise_defect({("a", "a"): minus, ("a", "b"): minus, ("b", "b"): minus}, ["a", "b"]) >= 2.0


def test_what_underflow_adds_to_a_product_in_blocks_is_in_its_defect(monkeypatch):
    # In units of the smallest number the products 0.4, 0.75 and 1.4 are 0, 1 and 1, of which no semidefinite matrix is.
    smallest, ones = 5e-324, np.ones(20)
    f = np.concatenate([0.632 * ones, 1.18 * ones])[None] * 2.0**-537
    H = smallest * np.block([[np.zeros((20, 20)), np.ones((20, 20))], [np.ones((20, 20)), np.ones((20, 20))]])
    assert np.array_equal(f.T @ f, H)
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": f}])
    assert blockwise.blockwise_defect({("a", "a"): H}, ["a"]) >= 13 * smallest  # 20 (1 - sqrt 5) / 2 = -12.4


def test_the_squares_of_many_blocks_are_rounded_up(monkeypatch):
    names = [f"{i}" for i in range(14)]
    H = {(a, b): np.full((1, 1), 0.99 * 2.0**-27) for i, a in enumerate(names) for b in names[i:]}
    H["0", "0"] = np.ones((1, 1))  # beside it twice the square of another is less than half an ulp
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"0": np.zeros((1, 1))}])
    square = 1 + (14**2 - 1) * Fraction(0.99 * 2.0**-27) ** 2
    assert root_above(blockwise.blockwise_defect(H, names), square)


def test_a_stack_of_one_matrix_in_blocks_is_that_matrix():
    rng = RNG(9)
    R = rng.standard_normal((9, 9))
    H = blocks_of(R.T @ R + 9.0 * np.eye(9))
    alone = blockwise.blockwise_defect(H, ORDER)
    assert 0.0 < alone < 1e-10
    assert blockwise.blockwise_defect({pair: block[None] for pair, block in H.items()}, ORDER) == alone
    worse = {pair: np.stack([block, 4.0 * block]) for pair, block in H.items()}
    assert 3.0 * alone < blockwise.blockwise_defect(worse, ORDER) < 5.0 * alone
    assert blockwise.blockwise_defect({pair: -block for pair, block in H.items()}, ORDER) == math.inf


def test_a_block_factor_that_is_no_number_proves_nothing(monkeypatch):
    monkeypatch.setattr(blockwise, "_factor", lambda H, order: [{"a": np.full((1, 1), math.nan)}])
    with np.errstate(all="ignore"):
        assert blockwise.blockwise_defect({("a", "a"): np.ones((1, 1))}, ["a"]) == math.inf
