"""Combinations that are fitted: stacking, selection, weights, fusion, experts."""
