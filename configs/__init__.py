"""Recipes: one file a config, each with ``get_config()``."""
