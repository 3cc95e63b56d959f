"""Fast paths that need a CUDA device; off unless asked for."""
