"""CHARM-Xray as pure functions over explicit state, in JAX and Flax."""
