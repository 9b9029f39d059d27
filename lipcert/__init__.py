"""Lipschitz claims about torch networks: true, tight and checked."""

from lipcert import certifiers, errors, nn, parametrizations
from lipcert.branching import Bracket, exact_constant
from lipcert.certificate import Certificate, Gain, Gains, Validity, Witness
from lipcert.certify import certify
from lipcert.frontends import trace_exported, trace_onnx
from lipcert.graph import Graph
from lipcert.lowering import lower, lowers
from lipcert.margins import Margins, margins
from lipcert.norms import L1, L1_LINF, L2, L2_LINF, LINF, Norms
from lipcert.opnorm import opnorm
from lipcert.outputs import difference, select
from lipcert.recheck import check, check_float64
from lipcert.sandwich import Sandwich, sandwich
from lipcert.trace import trace
from lipcert.witness import Budget, witness

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L1_LINF",
    "L2",
    "L2_LINF",
    "LINF",
    "Bracket",
    "Budget",
    "Certificate",
    "Gain",
    "Gains",
    "Graph",
    "Margins",
    "Norms",
    "Sandwich",
    "Validity",
    "Witness",
    "certifiers",
    "certify",
    "check",
    "check_float64",
    "difference",
    "errors",
    "exact_constant",
    "lower",
    "lowers",
    "margins",
    "nn",
    "opnorm",
    "parametrizations",
    "sandwich",
    "select",
    "trace",
    "trace_exported",
    "trace_onnx",
    "witness",
]
