"""Many grids at once: the MG/OPT cycle, nested iteration, and when they change grids."""
