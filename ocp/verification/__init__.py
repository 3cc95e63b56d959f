"""Checks of derivatives: Taylor tests, dot products, coherence between grids."""
