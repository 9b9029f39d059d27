"""Certifiers: frozen values that turn a graph into a certificate when called. Floor 3."""

from lipcert.certifiers.auto import Auto
from lipcert.certifiers.combine import Best, Certifier
from lipcert.certifiers.fourier import FourierLipSDP
from lipcert.certifiers.lipsdp import LipSDP, Part, Solved
from lipcert.certifiers.product import Product
from lipcert.certifiers.regional import certify_on
from lipcert.certifiers.rows import RowLipSDP
from lipcert.certifiers.split import Split

__all__ = [
    "Auto",
    "Best",
    "Certifier",
    "FourierLipSDP",
    "LipSDP",
    "Part",
    "Product",
    "RowLipSDP",
    "Solved",
    "Split",
    "certify_on",
]
