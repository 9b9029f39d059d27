"""Rigorous float64 bounds: what every other number in lipcert rests on. Floor 1: numpy and errors only.

Trusted: IEEE 754 binary64 scalar operations, and that a float64 matrix product computes each entry as a sum of k
products in some order, with or without fused multiply-add, so that its error is at most ``gamma_k |A| |B|``.
Not trusted: LAPACK, eigenvalue estimates, the choice of tries. They decide how tight a bound is, never whether it
is one.
"""
