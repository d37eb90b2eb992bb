"""List, edit and replace the memory bank of a run."""
