"""The statement: dynamics, layers, costs, constraints and the initial state of a continuous control problem."""
