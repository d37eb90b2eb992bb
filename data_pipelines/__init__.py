"""From files on a disk to batches: sources, splits, decoding, loading and augmentation."""
