"""Every hostile module is refused, naming where, or captured exactly; none is captured as something else."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipcert.errors import LipcertError
from lipcert.freeze import freeze
from lipcert.trace import trace
from tests.cases import HOSTILE, Hostile
from tests.hostile import UNSEEN

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Initializing zero-element"
)

GUARANTEES = Path(__file__).parent.parent / "docs" / "guarantees.md"
REFUSED = {name: entry for name, entry in HOSTILE.items() if entry.refusal is not None}
EXACT = {name: entry for name, entry in HOSTILE.items() if entry.refusal is None}


def special(shape: tuple[int, ...]) -> Tensor:
    """Inputs where code that hides would show: zeros, units, both signs, tiny and huge sizes, integers."""
    drawn = torch.randn(6, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    size = drawn[0].numel()
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    ones = torch.ones(1, *shape, dtype=torch.float64)
    scales = [drawn * 10.0**k for k in (-12, -6, -1, 0, 2, 6, 9)]
    return torch.cat(
        [0 * ones, ones, -ones, units, -units, 1e3 * units, drawn.abs(), -drawn.abs(), drawn.round(), *scales]
    )


def test_the_zoo_is_large():
    assert len(REFUSED) >= 150
    assert len(EXACT) >= 30


@pytest.mark.parametrize("entry", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_captured_is_refused_with_the_reason_and_the_place(entry: Hostile):
    with pytest.raises(LipcertError) as refusal:
        trace(entry.build(), entry.input_shape)
    message = str(refusal.value)
    assert entry.refusal is not None
    assert entry.refusal in message
    assert re.search(r"`[^`]+`|the model|all modules", message), message


@pytest.mark.parametrize("entry", EXACT.values(), ids=EXACT)
def test_what_is_captured_is_exact_everywhere(entry: Hostile):
    model = entry.build()
    graph, frozen = trace(model, entry.input_shape), freeze(model)
    x = special(entry.input_shape)
    expected = frozen(x.clone())
    assert torch.allclose(graph.replay(x), expected, rtol=1e-12, atol=1e-12)
    original = model.eval()(x.float().clone())
    assert torch.allclose(graph.replay(x.float().double()).float(), original, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("entry", UNSEEN.values(), ids=UNSEEN)
def test_what_cannot_be_seen_is_said_among_the_guarantees(entry: Hostile):
    trace(entry.build(), entry.input_shape)  # once this is refused, the entry belongs among the refused ones
    assert entry.refusal is not None
    assert entry.refusal in " ".join(GUARANTEES.read_text().split())


def test_a_refusal_leaves_torch_and_the_model_as_they_were():
    call, get = nn.Module.__call__, nn.Module.__getattr__
    for entry in REFUSED.values():
        model = entry.build()
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        with pytest.raises(LipcertError):
            trace(model, entry.input_shape)
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
        assert nn.Module.__call__ is call
        assert nn.Module.__getattr__ is get
    model = HOSTILE["PythonState"].build()
    with pytest.raises(LipcertError):
        trace(model, (4,))
    assert model.n == 1.0
