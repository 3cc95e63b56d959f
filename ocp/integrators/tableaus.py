"""Runge-Kutta tableaus, explicit or diagonally implicit; each checks its own order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isclose

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
    "Tableau",
    "Weights",
]

#: The terms of a sum: the index of a tensor, and its weight. Terms with weight zero are left out.
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
    def rows(self) -> tuple[Weights, ...]:
        """For each stage, the weights of those before it."""
        return tuple([(j, a) for j, a in enumerate(row[:i]) if a] for i, row in enumerate(self.A))

    @cached_property
    def weights(self) -> Weights:
        """The weights b of the stages at the end of the step."""
        return [(i, b) for i, b in enumerate(self.b) if b]

    @cached_property
    def later(self) -> tuple[tuple[int, Weights, float], ...]:
        """(i, row i, c_i) for every stage after the first."""
        return tuple(zip(range(1, len(self.b)), self.rows[1:], self.c[1:], strict=True))

    @cached_property
    def backward(self) -> tuple[tuple[int, float, Weights], ...]:
        """(i, b_i, column i) for the same stages, the last one first."""
        return tuple((i, self.b[i], self._column(i)) for i in reversed(range(1, len(self.b))))

    @cached_property
    def opening(self) -> tuple[float, Weights]:
        """(b_0, column 0) of the first stage."""
        return self.b[0], self._column(0)

    def _column(self, i: int) -> Weights:
        """The weights of stage i in the stages after it, which are counted from the last one, 0, backward."""
        after = [(len(self.b) - 1 - j, self.A[j][i]) for j in range(i + 1, len(self.b))]
        return [(k, a) for k, a in reversed(after) if a]

    def __post_init__(self) -> None:
        if len(self.A) != len(self.b) or any(len(row) not in (i, i + 1) for i, row in enumerate(self.A)):
            raise ValueError(
                f"A: expected {len(self.b)} rows of lengths 0, 1, ... where explicit, 1, 2, ... where implicit, "
                f"got lengths {[len(r) for r in self.A]}"
            )
        stages, c = range(len(self.b)), self.c

        def apply(v: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(sum(a * w for a, w in zip(row, v, strict=False)) for row in self.A)

        def product(*vs: tuple[float, ...]) -> tuple[float, ...]:
            out = [1.0 for _ in stages]
            for v in vs:
                out = [o * w for o, w in zip(out, v, strict=True)]
            return tuple(out)

        # One elementary weight for each rooted tree: (order, left side, right side).
        conditions = [
            (1, product(), 1.0),
            (2, c, 1 / 2),
            (3, product(c, c), 1 / 3),
            (3, apply(c), 1 / 6),
            (4, product(c, c, c), 1 / 4),
            (4, product(c, apply(c)), 1 / 8),
            (4, apply(product(c, c)), 1 / 12),
            (4, apply(apply(c)), 1 / 24),
            (5, product(c, c, c, c), 1 / 5),
            (5, product(c, c, apply(c)), 1 / 10),
            (5, product(c, apply(product(c, c))), 1 / 15),
            (5, product(c, apply(apply(c))), 1 / 30),
            (5, product(apply(c), apply(c)), 1 / 20),
            (5, apply(product(c, c, c)), 1 / 20),
            (5, apply(product(c, apply(c))), 1 / 40),
            (5, apply(apply(product(c, c))), 1 / 60),
            (5, apply(apply(apply(c))), 1 / 120),
        ]
        for order, left, right in conditions:
            weight = sum(b * v for b, v in zip(self.b, left, strict=True))
            if order <= self.order and not isclose(weight, right, abs_tol=1e-12):
                raise ValueError(f"{self.name}: an order-{order} condition expects {right}, got {weight}")


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
