"""Tests of Lipschitz claims: assertions, networks drawn by hypothesis, a training machine. Floor 6.

It needs hypothesis: ``pip install lipcert[testing]``. The pytest plugin (marker, options, summary line) works without.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lipcert.testing draws networks with hypothesis, which is not installed; pip install lipcert[testing]."
    ) from error

from lipcert.falsify import violating_pair
from lipcert.testing.assertions import assert_lipschitz, lipcheck
from lipcert.testing.claimed import CLAIMS, Claimed
from lipcert.testing.layers import (
    Layer,
    abs_,
    avgpool,
    conv,
    flatten,
    gelu,
    groupsort,
    leaky_relu,
    linear,
    maxmin,
    maxpool,
    relu,
    sigmoid,
    softplus,
    tanh,
    transposed_conv,
)
from lipcert.testing.machine import TrainingMachine
from lipcert.testing.networks import LAYERS, Network, residual
from lipcert.testing.profiles import register_profiles
from lipcert.testing.strategies import conv_layers, domains, input_pairs, linear_maps, lipschitz_modules, networks

__all__ = [
    "CLAIMS",
    "LAYERS",
    "Claimed",
    "Layer",
    "Network",
    "TrainingMachine",
    "abs_",
    "assert_lipschitz",
    "avgpool",
    "conv",
    "conv_layers",
    "domains",
    "flatten",
    "gelu",
    "groupsort",
    "input_pairs",
    "leaky_relu",
    "linear",
    "linear_maps",
    "lipcheck",
    "lipschitz_modules",
    "maxmin",
    "maxpool",
    "networks",
    "register_profiles",
    "relu",
    "residual",
    "sigmoid",
    "softplus",
    "tanh",
    "transposed_conv",
    "violating_pair",
]
