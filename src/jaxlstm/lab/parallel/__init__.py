"""Devices, and how a batch is split over them."""
