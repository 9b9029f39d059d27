"""The norm pairs a claim can be about, and how they print. Floor 0: standard library only."""

import math
from dataclasses import dataclass

from lipcert.errors import InvalidInput

_NAMES = {1.0: "l1", 2.0: "l2", math.inf: "linf"}


@dataclass(frozen=True, order=True)
class Norms:
    """A pair of vector norms: ``p`` measures the input, ``q`` the output.

    A Lipschitz claim for ``Norms(p, q)`` reads ``|f(x) - f(y)|_q <= bound * |x - y|_p`` for all x, y.
    Tensors are measured as flat vectors, the batch dimension excluded.

    Example:
        >>> str(L2), str(Norms(1.0, math.inf))
        ('l2->l2', 'l1->linf')
    """

    p: float
    q: float

    def __post_init__(self) -> None:
        """Refuse exponents other than 1, 2 and infinity."""
        for exponent in (self.p, self.q):
            if exponent not in _NAMES:
                raise InvalidInput(f"norm exponent {exponent!r} is not one of 1, 2, inf; choose one of those.")

    def __str__(self) -> str:
        """Print as ``l2->linf``."""
        return f"{_NAMES[self.p]}->{_NAMES[self.q]}"

    @classmethod
    def parse(cls, text: str) -> "Norms":
        """Read ``"l2"`` (the same norm on both sides) or ``"l1->linf"``.

        Raises:
            InvalidInput: If the text names no supported pair.

        Example:
            >>> Norms.parse("l2") == L2, Norms.parse("l1->linf") == L1_LINF
            (True, True)
        """
        exponents = {name: exponent for exponent, name in _NAMES.items()}
        ends = [end.strip() for end in text.split("->")]
        if len(ends) > 2 or any(end not in exponents for end in ends):
            raise InvalidInput(f"cannot read the norms {text!r}; write l1, l2, linf, or a pair such as l2->linf.")
        return cls(exponents[ends[0]], exponents[ends[-1]])


L1 = Norms(1.0, 1.0)
L2 = Norms(2.0, 2.0)
LINF = Norms(math.inf, math.inf)
L1_LINF = Norms(1.0, math.inf)
L2_LINF = Norms(2.0, math.inf)

SUPPORTED = (L2, L1, LINF, L1_LINF, L2_LINF)
"""The pairs every linear map has a rigorous operator norm for."""


def require_supported(norms: Norms) -> None:
    """Refuse a pair that has no rigorous operator norm here.

    Raises:
        InvalidInput: If ``norms`` is not one of ``SUPPORTED``.
    """
    if norms not in SUPPORTED:
        listed = ", ".join(str(pair) for pair in SUPPORTED)
        raise InvalidInput(f"no rigorous operator norm for {norms}; the supported pairs are {listed}.")
