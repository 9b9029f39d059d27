"""Solvers: weak duality, agreement with one another, batches of complex constraints, shared multipliers."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert.lmi import Layer, NormalForm, Signal, dual_value, feasible, multipliers_of, tighten
from lipcert.lmi.dual import directions_of
from lipcert.solvers import Auto, FirstOrder, InteriorPoint, LowRank, Recursion
from tests.test_lipsdp import chain, form_of, positive

SLOPES = {"relu": (0.0, 1.0), "leaky": (0.1, 1.0), "abs": (-1.0, 1.0), "silu": (-0.1, 1.1), "steep": (0.5, 2.0)}


def drawn(form: NormalForm, rank: int, seed: int) -> dict[str, Tensor]:
    """Directions without any relation to the network."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"": form.inputs} | {layer.name: len(layer.alpha) for layer in form.layers}
    batch = form.output.blocks[form.layers[-1].name].shape[:-2]
    dtype = form.zeros().dtype
    return {name: torch.randn(*batch, size, rank, generator=generator, dtype=dtype) for name, size in sizes.items()}


def circular(channels: list[int], positions: int, slopes: tuple[float, float], seed: int) -> tuple[NormalForm, ...]:
    """A chain of circular convolutions with one multiplier a channel: written out, and by frequencies."""
    generator = torch.Generator().manual_seed(seed)
    kernels = [torch.randn(b, a, 3, generator=generator).double() / a for a, b in itertools.pairwise(channels)]
    shift = torch.eye(positions, dtype=torch.float64).roll(1, 0)
    dense = [sum(torch.kron(k[:, :, t], torch.matrix_power(shift, t)) for t in range(3)) for k in kernels]
    angles = 2j * torch.pi * torch.arange(positions) / positions
    waves = [sum(k[None, :, :, t] * torch.exp(-angles * t)[:, None, None] for t in range(3)) for k in kernels]
    forms = []
    for blocks, repeat in ((dense, positions), (waves, 1)):
        layers = []
        for number, block in enumerate(blocks[:-1]):
            width = channels[number + 1]
            index = torch.arange(width).repeat_interleave(repeat) if repeat > 1 else None
            ends = (torch.full((width * repeat,), end, dtype=torch.float64) for end in slopes)
            layers.append(Layer(f"u{number}", Signal({f"u{number - 1}" if number else "": block}), *ends, index))
        forms.append(NormalForm(channels[0] * repeat, tuple(layers), Signal({layers[-1].name: blocks[-1]})))
    return tuple(forms)


@given(st.sampled_from(sorted(SLOPES)), st.integers(1, 4), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_no_multipliers_go_below_the_value_of_any_vectors(slopes: str, rank: int, waves: bool, seed: int):
    form = circular([2, 3, 2, 2], 3, SLOPES[slopes], seed)[waves]
    directions = drawn(form, rank, seed)
    value = float(dual_value(form, directions))
    z = feasible(form, directions)
    for layer in form.layers:
        u, v = z[layer.name], layer.v.value(z, len(layer.alpha))
        each = ((u - layer.alpha[:, None] * v).conj() * (u - layer.beta[:, None] * v)).real.sum(-1)
        assert float(layer.gather(each.reshape(-1, each.shape[-1]).sum(0)).max()) <= 1e-12 * float(u.abs().max()) ** 2
    for spread in (0.0, 0.5):
        assert value <= tighten(form, positive(form, seed, spread)) * (1 + 1e-12)
    assert value <= InteriorPoint()(form).rho * (1 + 1e-9)


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("solver", [InteriorPoint(), LowRank(tolerance=1e-10), FirstOrder(), Recursion()])
def test_frequencies_and_positions_are_one_problem(slopes: tuple[float, float], solver: Callable):
    dense, waves = circular([2, 3, 3, 1], 5, slopes, 0)
    here, there = solver(dense), solver(waves)
    best = InteriorPoint()(dense).rho
    assert tighten(dense, there.multipliers) == pytest.approx(there.rho, rel=1e-10)
    if isinstance(solver, InteriorPoint):
        assert there.rho == pytest.approx(here.rho, rel=4e-6)
        assert there.dual == pytest.approx(here.dual, rel=4e-6)
    for found in (here, there):
        assert found.dual <= best * (1 + 1e-9)
        assert found.rho >= best * (1 - 4e-6)
        # The descent has no barrier: where u does not depend on v it stops at the boundary of feasibility.
        stuck = isinstance(solver, FirstOrder) and slopes[0] + slopes[1] == 0.0
        assert stuck or isinstance(solver, Recursion) or found.rho <= best * 1.02


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize(("sizes", "gap"), [([4, 10, 10, 3], 1e-4), ([6, 12, 12, 12, 12, 2], 2e-3)])
def test_the_ascent_nearly_closes_the_gap(activation: Callable[[], nn.Module], sizes: list[int], gap: float):
    form = form_of(chain(sizes, 3, activation), sizes[0])
    found = LowRank(3000, 1e-12)(form)
    best = InteriorPoint()(form)
    assert found.dual <= best.rho * (1 + 1e-9)
    assert found.dual >= best.dual * (1 - gap)
    assert best.dual * (1 - 1e-9) <= found.rho <= best.rho * (1 + 20 * gap)


def test_stationary_vectors_name_the_multipliers():
    form = form_of(chain([4, 8, 8, 2], 1), 4)
    best = InteriorPoint(1e-9)(form)
    ascent = LowRank(3000, 1e-14)(form)
    assert ascent.rho == pytest.approx(best.rho, rel=1e-5)
    big = {name: lam > 1e-3 * lam.max() for name, lam in best.multipliers.items()}
    for name, lam in ascent.multipliers.items():
        torch.testing.assert_close(lam[big[name]], best.multipliers[name][big[name]], rtol=2e-2, atol=0.0)


@pytest.mark.parametrize(
    "solver", [FirstOrder(iterations=3), FirstOrder(), LowRank(5), LowRank(), InteriorPoint(iterations=2)]
)
def test_what_every_solver_says_it_found_is_what_the_elimination_finds(solver: Callable):
    form = form_of(chain([5, 9, 8, 4], 3, nn.SiLU), 5)
    told: list[tuple[int, float, float]] = []
    found = solver(form, progress=lambda *news: told.append(news))
    assert tighten(form, found.multipliers) == pytest.approx(found.rho, rel=1e-10)
    assert found.dual <= InteriorPoint()(form).rho * (1 + 1e-9)
    assert [news[0] for news in told] == sorted(news[0] for news in told)
    assert all(dual <= rho * (1 + 1e-9) for _, rho, dual in told)


@pytest.mark.parametrize(("depth", "width"), [(1, 7), (30, 30), (99, 20)])
def test_positive_weights_are_decided_by_the_linear_network(depth: int, width: int):
    model = chain([4, *[width] * depth, 1], depth)
    for layer in model[::2]:
        layer.weight.data.abs_()
        layer.weight.data /= torch.linalg.matrix_norm(layer.weight.data, ord=2)
    exact = torch.linalg.multi_dot([layer.weight.data for layer in reversed(model[::2])]).norm().item()
    found = Auto()(form_of(model, 4))
    assert "linear network" in found.method
    assert found.rho**0.5 == pytest.approx(exact, rel=1e-9)


def test_directions_keep_vectors_that_are_feasible():
    form = form_of(chain([4, 6, 5, 3], 2, nn.SiLU), 4)
    z = feasible(form, drawn(form, 3, 0))
    again = feasible(form, directions_of(form, z))
    for name, vectors in z.items():
        torch.testing.assert_close(again[name], vectors)
    assert min(float(lam.min()) for lam in multipliers_of(form, z).values()) >= 0.0
