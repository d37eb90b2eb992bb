"""Hold the cases of a data set: table, findings, splits, quarantined images."""
