r"""Wasserstein-1 distances between samples: lower bounds by certified critics, upper bounds by couplings. Floor 5.

By Kantorovich duality :math:`W_1(P, Q) = \max E_P f - E_Q f` over all f with Lipschitz constant at most 1. So what a
critic reports, divided by a *certified* constant of it, is never above the distance. Divided by a constant that it only
claims, it may be: then the claim is false.

References:
    | Optimal transport: old and new (Villani, 2009), theorem 5.10 and remark 6.5
"""

from lipcert.transport.coupling import Transport, empirical_w1
from lipcert.transport.dual import DualBound, dual_bound
from lipcert.transport.intervals import Interval
from lipcert.transport.overshoot import Overshoot, overshoot
from lipcert.transport.values import Between, dual_value
from lipcert.transport.wae import Bracket, wae_bracket

__all__ = [
    "Between",
    "Bracket",
    "DualBound",
    "Interval",
    "Overshoot",
    "Transport",
    "dual_bound",
    "dual_value",
    "empirical_w1",
    "overshoot",
    "wae_bracket",
]
