"""Analysis of the units of a trained model."""
