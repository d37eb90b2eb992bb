"""Run on several devices and processes."""
