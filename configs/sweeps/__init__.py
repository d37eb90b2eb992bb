"""Sweeps that ``charm-jax sweep`` finds by their names."""
