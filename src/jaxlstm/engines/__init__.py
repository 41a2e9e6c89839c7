"""Engines: the same many steps by different means, behind one signature."""
