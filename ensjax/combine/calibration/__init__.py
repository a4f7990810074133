"""Maps from scores to probabilities and spreads, fitted on held-out rows."""
