"""Evaluate a run or a weight file."""
