"""Read a prepared data set."""
