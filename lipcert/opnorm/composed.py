"""Norms of compositions, without multiplying norms. Floor 2."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lipcert.errors import InvalidInput
from lipcert.linear import LinearMap, Reshape
from lipcert.norms import L2, Norms, require_supported
from lipcert.opnorm.fused import fused_norm
from lipcert.opnorm.maps import Effort, NormBound, opnorm
from lipcert.opnorm.product import product_norm


def composed_norm(maps: Sequence[LinearMap], norms: Norms = L2, *, effort: Effort = Effort()) -> NormBound | None:  # noqa: B008
    """Bound the norm of ``maps[-1] o ... o maps[0]`` as one linear map, rigorously.

    Covers per-channel and scalar multiplications before and after one convolution or matrix (they scale its
    weights), elementwise multiplications alone, and any maps whose product is small enough to be written out.
    Shape changes are transparent.

    Args:
        maps: First applied first; each accepts the previous one's output shape.
        norms: p on the input, q on the output. Default: ``L2``.
        effort: What it may cost.

    Returns:
        A ``RIGOROUS`` bound, or ``None`` if this composition is not covered: multiply the norms instead.

    Raises:
        InvalidInput: If there are no maps, their shapes do not fit, or the norms are not supported.
        NotFinite: If a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> from lipcert.linear import Dense
        >>> column = Dense(torch.tensor([[1.0], [1.0]], dtype=torch.float64), (1,))
        >>> row = Dense(torch.tensor([[1.0, -1.0]], dtype=torch.float64), (2,))
        >>> bound = composed_norm([column, row])
        >>> bound is not None and bound.value < 1e-13
        True
    """
    require_supported(norms)
    if not maps:
        raise InvalidInput("a composition needs at least one map, got none.")
    for before, after in itertools.pairwise(maps):
        if tuple(before.out_shape) != tuple(after.in_shape):
            raise InvalidInput(f"a map with output {before.out_shape} is followed by one with input {after.in_shape}.")
    proper = [one for one in maps if not isinstance(one, Reshape)]
    if len(proper) <= 1:
        return opnorm((proper or maps)[0], norms, effort=effort)
    return fused_norm(maps, norms, effort) or product_norm(proper, norms, effort)
