"""Exact Lipschitz constants of small piecewise linear networks, by branch and bound. Floor 5.

On a convex set with interior points the constant of a continuous piecewise linear function is the largest norm of the
Jacobians of its full-dimensional linear regions. The signs of the network's kinks are decided one by one. What is left
undecided is bounded by a semidefinite programme and proved with outward rounding; signs that no input has are refuted
in integers; points found on the way give pairs of inputs that are measured without rounding.
"""

from lipcert.branching.exact import Bracket, exact_constant

__all__ = ["Bracket", "exact_constant"]
