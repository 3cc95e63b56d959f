"""A run from start to end: the loop, stopping, checkpoints, results, comparisons."""
