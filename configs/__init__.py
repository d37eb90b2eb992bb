"""Configs by name: one file each, with a function ``get_config``."""
