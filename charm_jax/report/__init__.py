"""Render an evaluation as one HTML page."""
