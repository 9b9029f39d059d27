"""Layers that keep a Lipschitz claim by construction, as `torch.nn.utils.parametrize` parametrizations. Floor 3.

Certifiers never trust them: a claim is certified from the weights a model deploys.
"""

from lipcert.parametrizations.aol import aol
from lipcert.parametrizations.conv_cayley import CayleyConv2d
from lipcert.parametrizations.conv_exponential import SkewExponentialConv2d
from lipcert.parametrizations.estimates import Exact, Fourier, Gram, Lanczos, PowerIteration
from lipcert.parametrizations.migrate import migrate
from lipcert.parametrizations.options import Deployed, Everywhere, Gain, Hard, Soft
from lipcert.parametrizations.orthogonal import orthogonal
from lipcert.parametrizations.orthogonal_conv import BlockOrthogonal, FourierCayley, orthogonal_convolution
from lipcert.parametrizations.residual import ConvexMix, CPLConv2d, CPLLinear, SLLConv2d, SLLLinear
from lipcert.parametrizations.sandwich import SandwichLinear
from lipcert.parametrizations.spectral import spectral_norm
from lipcert.parametrizations.stiefel import QR, Exponential, Householder
from lipcert.parametrizations.stiefel_cayley import Cayley
from lipcert.parametrizations.stiefel_polar import Bjorck, NewtonSchulz

__all__ = [
    "QR",
    "Bjorck",
    "BlockOrthogonal",
    "CPLConv2d",
    "CPLLinear",
    "Cayley",
    "CayleyConv2d",
    "ConvexMix",
    "Deployed",
    "Everywhere",
    "Exact",
    "Exponential",
    "Fourier",
    "FourierCayley",
    "Gain",
    "Gram",
    "Hard",
    "Householder",
    "Lanczos",
    "NewtonSchulz",
    "PowerIteration",
    "SLLConv2d",
    "SLLLinear",
    "SandwichLinear",
    "SkewExponentialConv2d",
    "Soft",
    "aol",
    "migrate",
    "orthogonal",
    "orthogonal_convolution",
    "spectral_norm",
]
