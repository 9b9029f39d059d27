"""`spectral_norm` on the layers that are no single matrix, and on drawn convolutions, against matrices written out."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert.parametrizations import Deployed, Everywhere, PowerIteration, spectral_norm
from lipcert.parametrizations.options import Level
from tests.parametrized import operator_norm

Blocks = Callable[[Tensor], list[Tensor]]


def stacked(count: int) -> Blocks:
    return lambda weight: list(weight.chunk(count))


def rows(weight: Tensor) -> list[Tensor]:
    """A table acts on one-hot vectors in l1: its norm is that of its longest row."""
    return [weight[weight.norm(dim=1).argmax()][None]]


def use(module: nn.Module) -> Tensor:
    """Some differentiable output of a module."""
    match module:
        case nn.Embedding() | nn.EmbeddingBag():
            return module(torch.tensor([[0, 1, 2], [3, 1, 0]]))
        case nn.Bilinear():
            return module(torch.randn(5, 3), torch.randn(5, 4))
        case nn.MultiheadAttention():
            key = torch.randn(2, 6, module.kdim)
            return module(torch.randn(2, 5, 4), key, torch.randn(2, 6, module.vdim))[0]
        case nn.RNNBase():
            return module(torch.randn(2, 5, 3))[0]
        case _:
            out = module(torch.randn(5, 3))
            return out[0] if isinstance(out, tuple) else out


CASES: dict[str, tuple[Callable[[], nn.Module], str, Blocks]] = {
    "Embedding": (lambda: nn.Embedding(9, 4), "weight", rows),
    "Embedding, padding row": (lambda: nn.Embedding(9, 4, padding_idx=1), "weight", rows),
    "EmbeddingBag, mean": (lambda: nn.EmbeddingBag(9, 4), "weight", rows),
    "EmbeddingBag, sum": (lambda: nn.EmbeddingBag(9, 4, mode="sum"), "weight", rows),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 6), "weight", lambda weight: [weight.flatten(1)]),
    "RNNCell": (lambda: nn.RNNCell(3, 5), "weight_hh", stacked(1)),
    "LSTMCell, input": (lambda: nn.LSTMCell(3, 5), "weight_ih", stacked(4)),
    "LSTMCell, state": (lambda: nn.LSTMCell(3, 5), "weight_hh", stacked(4)),
    "GRUCell": (lambda: nn.GRUCell(3, 5), "weight_hh", stacked(3)),
    "RNN": (lambda: nn.RNN(3, 5, batch_first=True), "weight_hh_l0", stacked(1)),
    "LSTM, second layer backwards": (
        lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True),
        "weight_ih_l1_reverse",
        stacked(4),
    ),
    "LSTM, projection": (lambda: nn.LSTM(3, 5, proj_size=2, batch_first=True), "weight_hr_l0", stacked(1)),
    "GRU": (lambda: nn.GRU(3, 5, batch_first=True), "weight_ih_l0", stacked(3)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), "in_proj_weight", stacked(3)),
    "MultiheadAttention, keys": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True),
        "k_proj_weight",
        stacked(1),
    ),
    "MultiheadAttention, out": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        "out_proj.weight",
        stacked(1),
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
by_case = pytest.mark.parametrize(("make", "path", "blocks"), CASES.values(), ids=CASES)


def put(module: nn.Module, path: str, **options: object) -> Callable[[], Tensor]:
    """Claim a weight of a module or of its child; the weight of now."""
    *owners, name = path.split(".")
    owner = module.get_submodule(".".join(owners))
    spectral_norm(owner, name, **options)  # type: ignore[arg-type]
    return lambda: getattr(owner, name)


def norms(blocks: list[Tensor]) -> list[float]:
    return [float(torch.linalg.matrix_norm(block.detach().double(), 2)) for block in blocks]


def train(module: nn.Module, steps: int) -> None:
    rule = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(steps):
        rule.zero_grad()
        use(module.train()).sin().sum().backward()
        rule.step()


@by_case
@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_every_block_is_at_the_bound_in_evaluation_after_training(make, path, blocks, bound):
    torch.manual_seed(0)
    module = make()
    weight = put(module, path, bound=bound)
    before = weight().detach().clone()
    for _ in range(3):
        train(module, 2)
        module.eval()
        assert use(module).isfinite().all()
        assert all(0.9999 * bound <= norm <= bound for norm in norms(blocks(weight())))
    assert not torch.equal(weight(), before)


@by_case
def test_every_block_is_below_the_bound_in_training_at_the_level_everywhere(make, path, blocks):
    torch.manual_seed(0)
    module = make()
    weight = put(module, path, level=Everywhere())
    for _ in range(4):
        train(module, 1)
        assert all(0.9 <= norm <= 1.0 for norm in norms(blocks(weight())))


@by_case
def test_removal_leaves_blocks_at_the_bound(make, path, blocks):
    torch.manual_seed(0)
    module = make()
    weight = put(module, path)
    *owners, name = path.split(".")
    train(module, 2)
    nn.utils.parametrize.remove_parametrizations(module.get_submodule(".".join(owners)), name)
    assert all(0.9999 <= norm <= 1.0 for norm in norms(blocks(weight())))


def test_a_row_of_a_table_that_no_lookup_has_met_is_below_the_bound_too():
    table = nn.Embedding(5, 3)
    with torch.no_grad():
        table.weight[4] = 100.0
    spectral_norm(table).eval()
    images = table(torch.arange(5))
    assert images.norm(dim=1).max() <= 1.0
    assert images[:4].norm(dim=1).max() < 0.1


def test_a_product_of_two_unit_vectors_is_not_stretched_by_a_bilinear_layer():
    torch.manual_seed(0)
    layer = spectral_norm(nn.Bilinear(2, 2, 3, bias=False)).eval().double()
    x, y = torch.nn.functional.normalize(torch.randn(2, 10_000, 2, dtype=torch.float64), dim=-1)
    assert 0.3 < layer(x, y).norm(dim=-1).max() <= 1.0


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution with drawn settings, and the shape of an input that it takes."""
    dimensions = draw(st.sampled_from([1, 2]))

    def per_dimension(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.tuples(*[st.integers(low, high)] * dimensions)))

    transposed = draw(st.booleans())
    groups, into, out = (draw(st.integers(1, 2)) for _ in range(3))
    stride, dilation = per_dimension(1, 3), per_dimension(1, 2)
    if transposed:
        options = {
            "output_padding": tuple(
                draw(st.integers(0, max(sizes) - 1)) for sizes in zip(stride, dilation, strict=True)
            )
        }
    else:
        options = {"padding_mode": draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))}
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    layer = kind(
        groups * into,
        groups * out,
        per_dimension(1, 4),
        stride,
        per_dimension(0, 2),
        dilation=dilation,
        groups=groups,
        **options,
    )
    shape = (groups * into, *per_dimension(2, 7))
    try:
        numel = layer(torch.zeros(2, *shape)).numel()
    except RuntimeError:  # the kernel or the padding does not fit
        numel = 0
    assume(numel > 0)
    return layer, shape


def reset(layer: nn.Module, seed: int, *, aligned: bool) -> None:
    """Draw the weight: at random, or all taps of an output the same."""
    drawn = torch.Generator().manual_seed(seed)
    weight = torch.randn(layer.weight.shape, generator=drawn)
    if aligned:
        weight = weight[:, :1, *[slice(1)] * (weight.dim() - 2)].expand_as(weight)
    layer.weight = nn.Parameter(weight.clone())


def ascend(layer: nn.Module, shape: tuple[int, ...], steps: int) -> None:
    """Raise the norm of the operator along its weight, from an input that is stretched most."""
    rule = torch.optim.Adam(layer.parameters(), lr=0.3)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for _ in range(steps):
        rule.zero_grad()
        x.grad = None
        gain = (layer(x) - layer(torch.zeros_like(x))).norm() / x.norm()
        (-gain).backward()
        rule.step()
        with torch.no_grad():
            assert x.grad is not None
            x -= x.norm() * torch.nn.functional.normalize(x.grad.flatten(), dim=0).reshape(x.shape)


@settings(max_examples=50, deadline=None)
@given(
    case=convolutions(),
    seed=st.integers(0, 99),
    aligned=st.booleans(),
    sized=st.booleans(),
    level=st.sampled_from([Deployed(), Deployed(2), Everywhere()]),
    bound=st.sampled_from([0.4, 1.0, 3.0]),
)
def test_no_convolution_breaks_its_claim_even_where_its_weight_is_driven_against_it(
    case: tuple[nn.Module, tuple[int, ...]], seed: int, aligned: bool, sized: bool, level: Level, bound: float
):
    layer, shape = case
    reset(layer, seed, aligned=aligned)
    size = shape[1:] if sized else None
    spectral_norm(layer, input_size=size, level=level, bound=bound, estimate=PowerIteration(1))
    for _ in range(2):
        norm = operator_norm(layer.eval(), shape)
        assert norm <= bound
        assert not sized or norm == 0.0 or norm >= 0.999 * bound
        ascend(layer.train(), shape, 3)
        if isinstance(level, Everywhere):
            assert operator_norm(layer, shape) <= bound
    assert operator_norm(layer.eval(), shape) <= bound
