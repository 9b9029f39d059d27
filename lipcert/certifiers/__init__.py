"""Certifiers: frozen values that turn a graph into a certificate when called. Floor 3."""

from lipcert.certifiers.lipsdp import LipSDP
from lipcert.certifiers.product import Product

__all__ = ["LipSDP", "Product"]
