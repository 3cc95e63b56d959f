"""The statement: dynamics, layers, costs and the initial state of a continuous control problem."""
