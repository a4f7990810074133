"""Model ensembles as one sharded JAX program."""

__version__ = "0.1.0"
