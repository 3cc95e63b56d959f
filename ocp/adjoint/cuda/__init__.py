"""Fast paths that need a CUDA device; off unless ``OCP_CUDA_FAST_PATHS=1`` is set."""
