"""The loops over time: states forward, costates backward, tangents, and what they store on the way."""
