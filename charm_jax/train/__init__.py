"""Train a model from a config."""
