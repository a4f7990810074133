"""Forecast verification: each score as statistics that merge, and a final function."""
