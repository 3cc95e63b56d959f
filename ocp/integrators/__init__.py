"""One step of a time integrator, its tangent and its transpose; no loop over time."""
