"""Serve a model as a web page and an HTTP interface."""
