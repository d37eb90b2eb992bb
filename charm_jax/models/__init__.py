"""Define the network, its losses and its state as pure functions."""
