r"""Weight clipping, and the Lipschitz bound that it implies for every network it can lead to. Floor 5.

Of the alternatives to spectral normalisation this one does bound the Lipschitz constant. The bound grows with the size
of the layers and a trained network uses little of it, because a norm of a matrix is far from what its largest entry
allows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lipcert.certifiers import Product
from lipcert.domain import WholeSpace
from lipcert.errors import InvalidInput, UnsupportedOperation
from lipcert.freeze import freeze
from lipcert.graph import Affine, Graph, Node
from lipcert.linear import Shape, modulus
from lipcert.norms import L2, Norms
from lipcert.trace import trace
from lipcert.trace.interpret import module_path
from lipcert.trace.record import record

# Of these the map or the slope grows, entry by entry, with the magnitude of the parameters.
_MONOTONE = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU),
)


def clip_weights(model: nn.Module, c: float) -> None:
    r"""Clip every parameter to :math:`[-c, c]`, in place: what the first WGAN does after each step of its critic.

    Biases and the scales of normalisations are parameters too. Afterwards no parameter is above c in magnitude, as an
    exact number: where c lies between two numbers of the parameter's format, the smaller one is the limit.

    Args:
        model: Its parameters are changed.
        c: The limit, positive.

    Raises:
        InvalidInput: If c is not positive and finite.
        UnsupportedOperation: If a weight is computed from parameters, so that clipping those does not clip it.

    References:
        | Wasserstein GAN (Arjovsky et al., 2017), algorithm 1, https://arxiv.org/abs/1701.07875

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> clip_weights(layer, 0.1)
        >>> bool(layer.weight.double().abs().max() <= 0.1)
        True
    """
    _require_limit(c)
    for path, module in model.named_modules():
        _require_own_weights(path, module)
    with torch.no_grad():
        for parameter in model.parameters():
            limit = _at_most(c, parameter.dtype)
            parameter.clamp_(-limit, limit)


def clipping_bound(model: nn.Module, input_shape: Shape, c: float, norms: Norms = L2) -> float:
    r"""An upper bound of the Lipschitz constant of this model with any parameters of magnitude at most c.

    Where :math:`|W| \le C` entry by entry, :math:`|W x| \le C |x|`, and p-norms are monotone: no linear map, alone or
    after another, has a larger norm than in the network of absolute values with c for every parameter. The layerwise
    bound (`lipcert.certifiers.Product`) of that network is returned; it is above that of any clipped one. For a chain
    of linear layers and ReLU in l2 it is :math:`\prod_l c \sqrt{n_l n_{l+1}}`, and it is attained (all weights c, all
    inputs positive): no smaller bound holds for all clipped networks.

    Guaranteed: never below the constant of any such network, rounding included. Buffers, such as the running statistics
    of batch normalisation, are those of the model now. Not guaranteed: that the bound is near the constant of the
    network that training finds; certify that one for its own.

    Args:
        model: Its architecture and buffers; parameters are not read. Never changed.
        input_shape: Shape of one sample, without the batch dimension.
        c: The limit; what weights hold must be at most this as exact numbers, as `clip_weights` leaves them.
        norms: Norms on input and output. Default: l2 on both.

    Raises:
        InvalidInput: If c is not positive and finite.
        UnsupportedOperation: If parameters are used otherwise than by plain layers, or the model cannot be traced.
        NotLipschitz: If an operation has no finite constant.

    References:
        | Wasserstein GAN (Arjovsky et al., 2017), https://arxiv.org/abs/1701.07875

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 1))
        >>> round(clipping_bound(model, (4,), 0.1), 6)  # 0.1^2 * sqrt(4 * 9) * sqrt(9 * 1)
        0.18
    """
    _require_limit(c)
    for path, module in model.named_modules():
        _require_own_weights(path, module)
        _require_monotone(path, module)
    largest = freeze(model)
    with torch.no_grad():
        for parameter in largest.parameters():
            parameter.fill_(c)
    shape = tuple(input_shape)
    _require_no_loose_parameters(largest, shape)
    return Product()(Graph(tuple(map(_magnitudes, trace(largest, shape)))), norms).bound


def _require_limit(c: float) -> None:
    if not 0.0 < c < math.inf:
        raise InvalidInput(f"weights are clipped to [-c, c] for a positive, finite c, got {c}.")


def _require_own_weights(path: str, module: nn.Module) -> None:
    hooks = [type(hook) for hook in module._forward_pre_hooks.values()]
    if parametrize.is_parametrized(module) or SpectralNorm in hooks or WeightNorm in hooks:
        at = path or "(the model itself)"
        message = f"`{at}` computes its weight from other parameters, and clipping those does not clip the weight"
        raise UnsupportedOperation(f"{message}. Remove the parametrization, or certify the model instead.", path=path)


def _require_monotone(path: str, module: nn.Module) -> None:
    if type(module) not in _MONOTONE and any(True for _ in module.parameters(recurse=False)):
        at, known = path or "(the model itself)", ", ".join(each.__name__ for each in _MONOTONE)
        message = f"`{at}` ({type(module).__name__}) has parameters of which it is not known what the largest ones do"
        raise UnsupportedOperation(f"{message}. Known: {known}. Certify the model itself instead.", path=path)


def _require_no_loose_parameters(model: nn.Module, shape: Shape) -> None:
    """Refuse parameters that are read past the plain layer that holds them: anything may be done with them."""
    names = dict(model.named_parameters(remove_duplicate=False))
    for node in record(model, shape, WholeSpace()).graph.nodes:
        name = module_path(str(node.target))
        if node.op == "get_attr" and name in names:
            message = f"the parameter `{name}` is read past its layer, so what the largest one does is unknown"
            raise UnsupportedOperation(f"{message}. Apply the layer, or certify the model itself.", path=name)
        if node.op == "call_module" and type(called := model.get_submodule(name)) not in _MONOTONE:
            if any(True for _ in called.parameters()):
                message = f"`{name}` has a rule of its own, so what the largest parameters do in it is unknown"
                raise UnsupportedOperation(f"{message}. Certify the model itself instead.", path=name)


def _magnitudes(node: Node) -> Node:
    """The node with a linear map in absolute values; others have bounds that grow with those before them."""
    return replace(node, map=modulus(node.map), bias=None) if isinstance(node, Affine) else node


def _at_most(c: float, dtype: torch.dtype) -> float:
    """The largest number of a format that is at most c."""
    nearest = torch.tensor(c, dtype=dtype)
    if float(nearest) > c:
        nearest = torch.nextafter(nearest, torch.zeros_like(nearest))
    return float(nearest)
