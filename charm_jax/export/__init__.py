"""Take a trained model out of its run: a portable folder, StableHLO or ONNX."""
