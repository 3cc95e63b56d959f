"""Runge-Kutta tableaus, explicit or diagonally implicit; each checks its own order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isclose

import numpy as np

__all__ = [
    "BACKWARD_EULER",
    "CRANK_NICOLSON",
    "DOPRI5",
    "EULER",
    "HEUN",
    "IMPLICIT_MIDPOINT",
    "MIDPOINT",
    "RK4",
    "SDIRK2",
    "TABLEAUS",
    "Tableau",
    "Weights",
]

#: The terms of a sum: the index of a tensor, and its weight, which is not zero.
Weights = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit or diagonally implicit Runge-Kutta scheme.

    Parameters
    ----------
    name : str
    A : tuple of tuple of float
        Lower triangular: row i holds the i coefficients left of the diagonal and, for an implicit stage, the one on it.
    b : tuple of float
        Weights.
    order : int
        Claimed order, checked up to 5.

    Raises
    ------
    ValueError
        If the shapes do not match or an order condition fails (Hairer, Norsett & Wanner 1993, table II.2.2).

    Examples
    --------
    >>> RK4.c
    (0.0, 0.5, 0.5, 1.0)
    """

    name: str
    A: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    @cached_property
    def c(self) -> tuple[float, ...]:
        """Stage times, the row sums of A."""
        return tuple(float(sum(row)) for row in self.A)

    @cached_property
    def diagonal(self) -> tuple[float, ...]:
        """The diagonal of A, zero at explicit stages."""
        return tuple(row[i] if len(row) > i else 0.0 for i, row in enumerate(self.A))

    @property
    def explicit(self) -> bool:
        """Whether no stage is implicit."""
        return not any(self.diagonal)

    @cached_property
    def weights(self) -> Weights:
        """The weights b of the stages at the end of the step."""
        return [(i, b) for i, b in enumerate(self.b) if b]

    @cached_property
    def later(self) -> tuple[tuple[int, Weights, float], ...]:
        """(i, the weights of the stages before stage i, c_i) for every stage after the first."""
        rows = [[(j, a) for j, a in enumerate(row[:i]) if a] for i, row in enumerate(self.A)]
        return tuple((i, rows[i], self.c[i]) for i in range(1, len(rows)))

    @cached_property
    def columns(self) -> tuple[Weights, ...]:
        """For each stage, its weights in the stages after it."""
        stages = range(len(self.b))
        return tuple([(i, self.A[i][j]) for i in stages[j + 1 :] if self.A[i][j]] for j in stages)

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.A) != stages or any(len(row) not in (i, i + 1) for i, row in enumerate(self.A)):
            raise ValueError(
                f"A: expected {stages} rows of lengths 0, 1, ... where explicit, 1, 2, ... where implicit, "
                f"got lengths {[len(row) for row in self.A]}"
            )
        A = np.array([(*row, *[0.0] * (stages - len(row))) for row in self.A])
        b, c = np.array(self.b), A.sum(1)
        Ac = A @ c
        # For each order, a vector v for each rooted tree, and the numbers d for which b v = 1/d.
        vectors = [
            [c**0],
            [c],
            [c**2, Ac],
            [c**3, c * Ac, A @ c**2, A @ Ac],
            [c**4, c**2 * Ac, c * (A @ c**2), c * (A @ Ac), Ac**2, A @ c**3, A @ (c * Ac), A @ A @ c**2, A @ A @ Ac],
        ]
        densities = [[1], [2], [3, 6], [4, 8, 12, 24], [5, 10, 15, 30, 20, 20, 40, 60, 120]]
        for order in range(min(self.order, 5)):
            for v, d in zip(vectors[order], densities[order], strict=True):
                if not isclose(b @ v, 1 / d, abs_tol=1e-12):
                    raise ValueError(f"{self.name}: an order-{order + 1} condition expects {1 / d}, got {b @ v}")


EULER = Tableau("euler", ((),), (1.0,), order=1)
MIDPOINT = Tableau("midpoint", ((), (0.5,)), (0.0, 1.0), order=2)
HEUN = Tableau("heun", ((), (1.0,)), (0.5, 0.5), order=2)
RK4 = Tableau("rk4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
#: The six stages and the weights of order 5 of Dormand & Prince (1980), "A family of embedded Runge-Kutta formulae".
DOPRI5 = Tableau(
    "dopri5",
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    order=5,
)
BACKWARD_EULER = Tableau("backward_euler", ((1.0,),), (1.0,), order=1)
IMPLICIT_MIDPOINT = Tableau("implicit_midpoint", ((0.5,),), (1.0,), order=2)
CRANK_NICOLSON = Tableau("crank_nicolson", ((), (0.5, 0.5)), (0.5, 0.5), order=2)
_GAMMA = 1 - 0.5**0.5
#: Second order and L-stable: Alexander (1977), "Diagonally implicit Runge-Kutta methods for stiff O.D.E.'s", theorem 5.
SDIRK2 = Tableau("sdirk2", ((_GAMMA,), (1 - _GAMMA, _GAMMA)), (1 - _GAMMA, _GAMMA), order=2)

#: All of them.
TABLEAUS = (EULER, MIDPOINT, HEUN, RK4, DOPRI5, BACKWARD_EULER, IMPLICIT_MIDPOINT, CRANK_NICOLSON, SDIRK2)
