"""Quantiles of several models as one quantile function, in order."""
