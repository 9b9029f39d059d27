"""Reports never shorten a number towards danger, and the layer table adds up to the bound."""

import io
import math
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import lipcert
from lipcert import L1, L1_LINF, L2, Certificate, Gains, Validity, Witness, trace, witness
from lipcert.certifiers import Product
from lipcert.errors import InvalidInput
from lipcert.graph import Activation, Graph, Input
from lipcert.report import assumptions, format_down, format_up, layer_rows, layer_table, plot_layers, report

finite = st.floats(min_value=0.0, allow_infinity=False, allow_nan=False)
certify = partial(lipcert.certify, by=Product())
SHAPE = (1, 6, 6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.inner.weight.data = torch.arange(9.0).reshape(1, 1, 3, 3) / 10
        self.head = nn.Linear(36, 2, bias=False)
        self.head.weight.data = torch.eye(2, 36) * 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + torch.relu(self.inner(x))).flatten(1))


def certificate(
    bound: float, validity: Validity = Validity.RIGOROUS, network: str = "sha256:0", norms=L2
) -> Certificate:
    return Certificate(bound, norms, validity, "Product()", network, Gains(()))


def pair(ratio: float, norms=L2) -> Witness:
    return Witness(ratio, norms, torch.zeros(2), torch.ones(2))


@given(finite, st.integers(1, 17))
def test_printed_bounds_are_never_below_and_ratios_never_above(value: float, digits: int):
    up, down = Fraction(format_up(value, digits)), Fraction(format_down(value, digits))
    assert down <= Fraction(value) <= up
    assert up - down <= Fraction(value) * Fraction(10) ** (1 - digits)


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (1.0, "1", "1"),
        (120.0, "120", "120"),
        (1.0000001, "1.00001", "1"),
        (0.1, "0.100001", "0.1"),  # the float64 nearest to 1/10 is above 1/10
        (9.9999999, "10", "9.99999"),
        (1234567.0, "1.23457e6", "1.23456e6"),
        (1e22, "1e22", "1e22"),
        (5e-324, "4.94066e-324", "4.94065e-324"),
        (0.0, "0", "0"),
        (math.inf, "inf", "inf"),
    ],
)
def test_numbers_print_as_a_person_writes_them(value: float, up: str, down: str):
    assert (format_up(value), format_down(value)) == (up, down)


def test_a_bracket_joins_the_best_pair_with_the_tightest_bound_of_the_most_trusted_validity():
    text = report([certificate(1.5, Validity.NUMERICAL), pair(1.0), certificate(3.0), pair(1.25), certificate(2.0)])
    first, *rest = text.splitlines()
    assert first == "1.25 <= Lip(f; l2->l2) <= 2   RIGOROUS"
    assert [line.split()[:2] for line in rest] == [
        ["upper", "2"],
        ["upper", "3"],
        ["upper", "1.5"],
        ["lower", "1.25"],
        ["lower", "1"],
    ]


def test_each_norm_pair_has_its_own_bracket():
    lines = report([certificate(2.0), certificate(3.0, norms=L1), pair(1.0, norms=L1)]).splitlines()
    assert lines[0] == "Lip(f; l2->l2) <= 2   RIGOROUS"
    assert lines[2] == "1 <= Lip(f; l1->l1) <= 3   RIGOROUS"


def test_a_pair_above_a_bound_is_called_a_contradiction():
    assert "CONTRADICTION" in report([certificate(1.0), pair(math.nextafter(1.0, 2.0))])
    assert "CONTRADICTION" not in report([certificate(1.0), pair(1.0)])
    assert "CONTRADICTION" not in report([certificate(1.0, Validity.ESTIMATE), pair(2.0)])


def test_certificates_about_different_networks_make_no_bracket():
    with pytest.raises(InvalidInput, match="different networks"):
        report([certificate(1.0, network="sha256:0"), certificate(1.0, network="sha256:1")])


def test_a_real_bracket_holds():
    model = Residual()
    found = [witness(model, SHAPE), certify(model, SHAPE)]
    low, _, _, _, _, high, *_ = report(found).splitlines()[0].split()
    assert float(low) <= float(high)


def test_the_last_row_is_the_bound_and_shares_are_signed_parts_of_one():
    model = Residual()
    graph, found = trace(model, SHAPE), certify(model, SHAPE)
    rows = layer_rows(graph, found)
    assert rows[-1].cumulative == found.bound
    assert sum(abs(row.share) for row in rows) == pytest.approx(1.0)
    assert [row.op for row in rows] == ["input", "conv 3x3", "relu", "add", "reshape", "dense"]
    assert rows[0].gain is None
    assert rows[2].gain == 1.0
    assert rows[-1].gain == pytest.approx(3.0, rel=1e-8)
    assert rows[-1].gain >= 3.0
    # The sum adds the skip's 1 to the branch.
    assert rows[3].cumulative == pytest.approx(1.0 + rows[1].cumulative, rel=1e-12)


def test_on_a_chain_the_factors_multiply_to_the_bound():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid())
    rows = layer_rows(trace(model, (3,)), certify(model, (3,)))
    assert math.prod(row.gain for row in rows[1:]) == pytest.approx(rows[-1].cumulative, rel=1e-12)


def test_a_network_that_is_constant_has_no_shares_but_a_table():
    model = nn.Linear(3, 2)
    model.weight.data.zero_()
    rows = layer_rows(trace(model, (3,)), certify(model, (3,)))
    assert rows[-1].cumulative == 0.0
    assert all(row.share == 0.0 for row in rows)


@pytest.mark.parametrize("norms", [L2, L1_LINF], ids=str)
def test_the_table_prints_every_node_and_rounds_up(norms):
    model = Residual()
    graph, found = trace(model, SHAPE), certify(model, SHAPE, norms=norms)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(layer_table(graph, found))
    text = console.export_text()
    assert all(f" {node.name} " in text for node in graph)
    assert f"Lip(f; {norms}) <= {format_up(found.bound)}" in text
    assert str(norms) in text


def test_a_certificate_of_another_network_is_refused():
    graph, other = trace(Residual(), SHAPE), certify(nn.Flatten(), SHAPE)
    with pytest.raises(InvalidInput, match="about network sha256:"):
        layer_rows(graph, other)


def test_a_plot_is_a_picture(tmp_path: Path):
    model = Residual()
    plot_layers(trace(model, SHAPE), certify(model, SHAPE), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    plot_layers(trace(nn.Flatten(), SHAPE), certify(nn.Flatten(), SHAPE), tmp_path / "nothing.png")


def test_declared_slopes_are_listed_as_assumptions():
    ends = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    nodes = Input("x", (2,)), Activation("wave", "x", (2,), "declared:me", {}, ends, torch.relu)
    assert assumptions(Graph(nodes)) == ("wave (declared:me)",)
    assert assumptions(trace(nn.ReLU(), (2,))) == ()
