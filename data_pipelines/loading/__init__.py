"""Load, augment and batch images."""
