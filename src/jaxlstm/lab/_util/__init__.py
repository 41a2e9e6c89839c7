"""Helpers that know no run: errors, files, wording, signals, timing."""
