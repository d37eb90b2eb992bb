"""Batch norm and convolutions with their own gradients."""
