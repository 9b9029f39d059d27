"""Layers that torch lacks and that do not expand distances: activations, pooling, residual blocks. Floor 1."""

from lipcert.nn.activations import FullSort, GroupSort, Householder, MaxMin, reflect
from lipcert.nn.pooling import AveragePool2d, L2Pool2d, MaxPool2d
from lipcert.nn.residual import Inverse, InvertibleResidual, steps_needed

__all__ = [
    "AveragePool2d",
    "FullSort",
    "GroupSort",
    "Householder",
    "Inverse",
    "InvertibleResidual",
    "L2Pool2d",
    "MaxMin",
    "MaxPool2d",
    "reflect",
    "steps_needed",
]
