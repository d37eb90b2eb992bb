"""Hold the cases of a data set: tables, findings, splits and quarantined images."""
