"""The cost as a function of the control alone, with its derivative and its count of work."""
