"""Exported programs: the same bounds as tracing the module, the same refusals, and nothing that hides in a program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional as F
from typer.testing import CliRunner

from lipcert import check, trace
from lipcert.certifiers import Product
from lipcert.cli import app
from lipcert.errors import InvalidInput, LipcertError, NotFinite, NotLipschitz, UnsupportedOperation
from lipcert.frontends import aten, trace_exported
from lipcert.frontends import exported as frontend
from lipcert.norms import L1, L2, LINF
from lipcert.witness import Budget, witness
from tests.cases import NETWORKS, OPS, Case, Operation

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

DECOMPOSED = ["relu mlp", "u-net", "one dimension", "spectral norms", "resnet"]
APART = {
    # torch.export takes these apart, or writes what this package does not follow; all are refused.
    "householder": "computes with constants",
    "L.Householder(4) on (4, 6)": "computes with constants",
    "L.Householder(6, dim=2) on (4, 6)": "computes with constants",
    "x[:, torch.tensor([True, False, True, False])] on (4, 6, 6)": "depends on data",
}
NOT_EXPORTED = {"x.data on (4, 6, 6)"}
"""torch.export itself fails."""


def exported(model: nn.Module, shape: tuple[int, ...], *, dynamic: bool = True, batch: int = 3) -> ExportedProgram:
    dtype = next((tensor.dtype for tensor in model.parameters()), torch.float32)
    x = torch.zeros(batch, *shape, dtype=dtype)
    return export(model, (x,), dynamic_shapes=({0: Dim("batch", min=1)},) if dynamic else None)


def require_same_bounds(
    model: nn.Module, program: ExportedProgram, shape: tuple[int, ...], norms: Iterable[Any]
) -> None:
    ours, theirs = trace_exported(program), trace(model, shape)
    for pair in norms:
        try:
            expected = Product()(theirs, pair).bound
        except LipcertError:
            with pytest.raises(LipcertError):
                Product()(ours, pair)
            continue
        certificate = Product()(ours, pair)
        assert certificate.bound == pytest.approx(expected, rel=1e-9)
        assert check(certificate, ours).bound == certificate.bound


QUICK = set(
    "absolute value|batch norm|softmax of two|spectral norms|orthogonal group sort|householder|half precision|resnet|"
    "u-net|generator|strided dilated groups|circular and reflected|patches|residual mlp".split("|")
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_a_program_has_the_bounds_of_its_module(name: str):
    case = NETWORKS[name]
    model = case.model()
    program = exported(model, case.input_shape)
    if name in APART:
        with pytest.raises(UnsupportedOperation, match=APART[name]):
            trace_exported(program)
        return
    require_same_bounds(model, program, case.input_shape, (L2, L1, LINF))


def require_as_module(name: str, case: Operation | Case, dynamic: bool) -> None:
    model = case.model()
    try:
        program = exported(model, case.input_shape, dynamic=dynamic)
    except Exception:
        assert dynamic or name in NOT_EXPORTED  # some spellings of a size fix the batch
        return
    try:
        require_same_bounds(model, program, case.input_shape, (L2, LINF))
    except UnsupportedOperation as reason:
        refusal = str(reason)
    else:
        return
    assert APART.get(name, "running the program changes") in refusal
    assert name in APART or "_(" in name or "inplace" in name


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_an_operation_in_a_program_is_the_one_in_its_module(name: str, dynamic: bool):
    require_as_module(name, OPS[name], dynamic)


@pytest.mark.parametrize("name", list(OPS)[::40])
def test_some_operations_in_a_program_are_the_ones_in_their_module(name: str):
    require_as_module(name, OPS[name], False)


@pytest.mark.parametrize("name", ["conv critic", *(pytest.param(n, marks=pytest.mark.slow) for n in DECOMPOSED)])
def test_a_decomposed_program_has_the_bounds_of_its_module(name: str):
    case = NETWORKS[name]
    model = case.model()
    program = exported(model, case.input_shape).run_decompositions()
    graph = trace_exported(program)
    bound = Product()(graph, L2).bound
    assert bound == pytest.approx(Product()(trace(model, case.input_shape), L2).bound, rel=2e-4)  # SELU in two pieces
    assert witness(model, case.input_shape, budget=Budget(seconds=0.3)).ratio <= bound


def test_files_are_read_and_fixed_batches_stand_for_all(tmp_path: Path):
    model = NETWORKS["conv critic"].model()
    bounds = []
    for batch in (1, 2, 5):
        path = tmp_path / f"{batch}.pt2"
        torch.export.save(exported(model, (2, 7, 8), dynamic=False, batch=batch), path)
        bounds.append(Product()(trace_exported(str(path)), L2).bound)
    torch.export.save(exported(model, (2, 7, 8)), path)
    bounds.append(Product()(trace_exported(path, (2, 7, 8)), L2).bound)
    assert bounds == [Product()(trace(model, (2, 7, 8)), L2).bound] * 4
    with pytest.raises(InvalidInput, match=r"\(2, 7, 8\), not \(3, 7, 8\)"):
        trace_exported(path, (3, 7, 8))
    with pytest.raises(InvalidInput, match="no file"):
        trace_exported(tmp_path / "none.pt2")
    path.write_text("nothing")
    with pytest.raises(InvalidInput, match="cannot be read as an exported program"):
        trace_exported(path)


def test_nodes_are_named_by_module_paths():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    graph = trace_exported(exported(Of(lambda x, m=model: x + m["body"](x), model), (2,)))
    assert [node.name for node in graph] == ["input", "inner.body.0", "inner.body.1", "add"]


class Of(nn.Module):
    """A function as a module, with a module of its own."""

    def __init__(self, function: Callable[..., Tensor], inner: nn.Module | None = None, **buffers: Tensor) -> None:
        super().__init__()
        self.function, self.inner = function, inner
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class State(nn.Module):
    """Counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        return x * 2.0


class Noisy(nn.Module):
    """A parametrization that draws random numbers."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.rand_like(weight)


class Buffered(nn.Module):
    """Applies a function of the input and a buffer."""

    def __init__(self, function: Callable[..., Tensor], buffer: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("weight", buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class Overwritten(nn.Module):
    """Reads a tensor after an in-place operation: right in a functional program, and so not refused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        z = F.relu_(y)
        return z + y


REFUSED: dict[str, tuple[nn.Module, type[LipcertError], str]] = {
    "an exponential": (Of(torch.exp), NotLipschitz, "`exp` at `exp` grows faster"),
    "a product": (Of(lambda x: x * x), NotLipschitz, "multiplies two tensors"),
    "attention": (Of(lambda x: F.softmax(x, 1) @ x.mT), NotLipschitz, "multiplies two tensors"),
    "a layer norm": (nn.Sequential(nn.LayerNorm(6)), NotLipschitz, "bounded domain"),
    "an unknown operation": (Of(torch.erfinv), UnsupportedOperation, r"`aten\.erfinv\.default` at `erfinv`"),
    "training batch norm": (nn.BatchNorm1d(4).train(), UnsupportedOperation, "changes|statistics of the batch"),
    "batch statistics": (nn.BatchNorm1d(4, track_running_stats=False), UnsupportedOperation, "statistics of the batch"),
    "training dropout": (nn.Dropout(0.5).train(), UnsupportedOperation, "at random"),
    "randomness": (Of(lambda x: x + torch.rand(6)), UnsupportedOperation, r"aten\.rand"),
    "random inputs": (Of(lambda x: x + torch.randn_like(x)), UnsupportedOperation, "random"),
    "a random parametrization": (
        nn.utils.parametrize.register_parametrization(nn.Linear(6, 6), "weight", Noisy()),
        UnsupportedOperation,
        r"no lowering for `aten\.rand",
    ),
    "state": (State(), UnsupportedOperation, "changes `count`"),
    "an overwritten input": (nn.ReLU(inplace=True), UnsupportedOperation, "changes"),
    "spectral norm in training": (
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)).train(),
        UnsupportedOperation,
        "changes|no tensor operation",
    ),
    "two results": (Of(lambda x: (x, 2 * x)), UnsupportedOperation, "returns 2 results"),
    "indices": (Of(lambda x: x * x.max(1, keepdim=True)[1]), UnsupportedOperation, "indices"),
    "a value as a number": (Of(lambda x: x * x.max().item()), UnsupportedOperation, "max|item|scalar"),
    "a cast that rounds": (Of(lambda x: x.half().float()), UnsupportedOperation, "float32 to torch.float16"),
    "constants at work": (Buffered(lambda x, w: x @ (w * 0.1), torch.ones(6, 2)), UnsupportedOperation, "constants"),
    "mixed samples": (Of(lambda x: x - x.mean(0)), UnsupportedOperation, "batch"),
    "a flipped batch": (Of(lambda x: x.flip(0)), UnsupportedOperation, "one sample of the batch to another"),
    "samples cut": (Of(lambda x: x[:1]), UnsupportedOperation, "batch"),
    "samples joined": (Of(lambda x: torch.cat([x, x])), UnsupportedOperation, "batch"),
    "one long vector": (Of(lambda x: x.reshape(-1)), UnsupportedOperation, "batch"),
    "a constant": (Buffered(lambda x, w: w * 1, torch.ones(6, 2)), UnsupportedOperation, "constant"),
    "an infinite weight": (Buffered(lambda x, w: x @ w, torch.full((6, 2), torch.inf)), NotFinite, "12 of 12"),
    "integers": (Of(lambda x: (x > 0).float()), UnsupportedOperation, "selects by the values"),
    "descending order": (Of(lambda x: x.sort(1, descending=True)[0]), UnsupportedOperation, "descending"),
    "gradients switched off": (
        Of(lambda x: _without_gradients(x)),
        UnsupportedOperation,
        "no tensor operation|no lowering|constant",
    ),
}


def _without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.exp()
    return x + y


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_by_name(name: str):
    model, error, message = REFUSED[name]
    try:
        program = exported(model, (4, 6), dynamic=False)
    except Exception as reason:
        pytest.skip(f"torch.export refuses it: {type(reason).__name__}")
    with pytest.raises(error, match=message):
        trace_exported(program)


def test_a_refusal_names_the_module_and_the_line_of_source():
    with pytest.raises(UnsupportedOperation, match=r"`inner\.erfinv`.*test_exported\.py\", line") as refusal:
        trace_exported(exported(Outer(), (2,)))
    assert refusal.value.path == "inner.erfinv"


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x)


def test_two_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    x = torch.zeros(2, 3)
    with pytest.raises(UnsupportedOperation, match=r"2 inputs \(`x`, `y`\)"):
        trace_exported(export(Two(), (x, x)))


def test_only_the_batch_may_be_dynamic():
    program = export(nn.ReLU(), (torch.zeros(2, 5),), dynamic_shapes=({0: Dim("n"), 1: Dim("m")},))
    with pytest.raises(UnsupportedOperation, match="only the leading dimension may be dynamic"):
        trace_exported(program)


def test_a_program_that_drops_a_batch_of_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    """For one sample this is a softmax over 4, for a batch it would be one over 3; seen before any replay."""
    monkeypatch.setattr(frontend, "require_same_as_program", lambda *arguments: None)
    program = exported(Of(lambda x: F.softmax(x.squeeze(0), 1)), (3, 4), dynamic=False, batch=1)
    with pytest.raises(UnsupportedOperation, match="batch"):
        trace_exported(program)


def test_in_place_operations_are_read_as_the_program_means_them():
    model = Overwritten()
    graph = trace_exported(exported(model, (3,)))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(graph.replay(x), 2 * torch.relu(model.layer(x)), atol=1e-6)
    with pytest.raises(UnsupportedOperation):  # torch.fx cannot say who reads what
        trace(model, (3,))


def test_parametrized_weights_are_the_ones_that_the_program_computes():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6, bias=False)).eval()
    graph = trace_exported(exported(model, (6,)))
    assert torch.equal(graph.nodes[1].map.weight, model.weight.detach().double())  # type: ignore[union-attr]


def test_a_rule_that_lies_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(aten._SPELLED, "tanh", torch.sin)
    with pytest.raises(UnsupportedOperation, match="does not reproduce"):
        trace_exported(exported(nn.Tanh(), (3,)))


def test_maxima_beside_minima_are_one_layer_and_maxima_beside_maxima_are_not():
    def joined(first: Callable[..., Tensor], second: Callable[..., Tensor]) -> nn.Module:
        def function(x: Tensor) -> Tensor:
            a, b = x.chunk(2, 1)
            return torch.cat([first(a, b), second(a, b)], 1)

        return Of(function)

    for pair in ((torch.maximum, torch.maximum), (torch.minimum, torch.maximum)):
        model = joined(*pair)
        bound = Product()(trace_exported(exported(model, (4,))), L2).bound
        assert bound == pytest.approx(Product()(trace(model, (4,)), L2).bound)
        assert bound >= 2**0.5
    assert Product()(trace_exported(exported(joined(torch.maximum, torch.minimum), (4,))), L2).bound == 1.0


def test_gates_are_recognised_and_other_products_are_not():
    for gate, whole in ((torch.sigmoid, F.silu), (lambda x: torch.tanh(F.softplus(x)), F.mish)):
        graph = trace_exported(exported(Of(lambda x, g=gate: x * g(x)), (3,)))
        assert Product()(graph, L2).bound == Product()(trace(Of(whole), (3,)), L2).bound
    for gate in (torch.tanh, lambda x: torch.sigmoid(2 * x), lambda x: torch.tanh(F.softplus(x, beta=2.0))):
        with pytest.raises(NotLipschitz, match="multiplies two tensors"):
            trace_exported(exported(Of(lambda x, g=gate: x * g(x)), (3,)))


def test_the_command_line_takes_a_file(tmp_path: Path):
    path = tmp_path / "net.pt2"
    torch.export.save(exported(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), (3,)), path)
    result = CliRunner().invoke(app, ["certify", str(path), "--method", "product", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["input_shape"] == [3]
    assert json.loads(result.stdout)["bound"] == Product()(trace_exported(path), L2).bound
    assert CliRunner().invoke(app, ["show", str(path), "--input-shape", "3"]).exit_code == 0
    for options, says in (
        (["certify", str(path), "--input-shape", "4"], "not (4,)"),
        (["certify", str(path), "--state-dict", "w.pt"], "holds its own weights"),
        (["certify", "package.module:name"], "needs --input-shape"),
        (["certify", str(path), "--sandwich"], "searches a model in Python"),
        (["falsify", str(path), "--input-shape", "3"], "not searched"),
    ):
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 2
        assert says in result.stderr
    torch.export.save(exported(Of(torch.exp), (3,)), path)
    assert CliRunner().invoke(app, ["certify", str(path)]).exit_code == 3
