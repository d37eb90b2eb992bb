"""Draw simulated chest X-rays."""
