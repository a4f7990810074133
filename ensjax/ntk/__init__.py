"""Tangent kernels: closed forms, Gaussian processes, and those of trained members."""

from ensjax.ntk.empirical import empirical_ntk

__all__ = [
    "empirical_ntk",
]
