"""Helpers that do not depend on runs: errors, files, messages, signals, timing."""
