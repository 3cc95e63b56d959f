"""All steps at once: states, controls, parameters and multipliers as unknowns of one structured Newton system."""
