"""Tasks: what a model is built of, what it is asked, and how it is judged."""
