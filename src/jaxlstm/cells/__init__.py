"""Cells: one instant of a recurrent network. No time axis lives on this floor."""
