"""Load a trained model, run it, and explain its predictions."""
