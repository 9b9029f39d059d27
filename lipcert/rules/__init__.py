"""The built-in rules: importing this package registers them. Floor 3."""

from lipcert.rules import (
    activations,
    arithmetic,
    bounded,
    convolution,
    linear,
    nonlinear,
    normalisation,
    pooling,
    refused,
    resampling,
    structure,
)

__all__ = [
    "activations",
    "arithmetic",
    "bounded",
    "convolution",
    "linear",
    "nonlinear",
    "normalisation",
    "pooling",
    "refused",
    "resampling",
    "structure",
]
