"""Sets and intervals that cover as often as they say."""
