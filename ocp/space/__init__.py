"""Where controls live: time grids, the flat control and its inner product, bounds, transfer between grids."""
