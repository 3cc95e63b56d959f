"""Optimization methods on one grid, line searches and trust regions."""
