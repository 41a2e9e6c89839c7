"""Objects that receive the progress of a run."""
