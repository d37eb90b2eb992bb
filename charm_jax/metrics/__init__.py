"""Score predictions: metrics, intervals, calibration and out-of-distribution measures."""
