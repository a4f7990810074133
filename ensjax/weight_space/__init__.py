"""Mixtures, soups, merges, alignment and barriers: ensembles in weight space."""
