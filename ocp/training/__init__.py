"""Residual networks as control problems, and mini-batches."""
