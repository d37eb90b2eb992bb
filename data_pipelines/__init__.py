"""Turn image files into batches: sources, splits, decoding, loading, augmentation."""
