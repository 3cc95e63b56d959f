"""Explicit Runge-Kutta tableaus, as data that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose

__all__ = ["EULER", "HEUN", "MIDPOINT", "RK4", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge-Kutta scheme.

    Parameters
    ----------
    name : str
    A : tuple of tuple of float
        Strictly lower triangular: row i holds the i coefficients left of the diagonal.
    b : tuple of float
        Weights.
    order : int
        Claimed order, checked up to 4.

    Raises
    ------
    ValueError
        If the shapes do not fit or an order condition fails (Hairer, Norsett & Wanner 1993, table II.2.2).

    Examples
    --------
    >>> RK4.c
    (0.0, 0.5, 0.5, 1.0)
    """

    name: str
    A: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    @property
    def c(self) -> tuple[float, ...]:
        """Stage times, the row sums of A."""
        return tuple(float(sum(row)) for row in self.A)

    def __post_init__(self) -> None:
        if len(self.A) != len(self.b) or any(len(row) != i for i, row in enumerate(self.A)):
            raise ValueError(
                f"A: expected {len(self.b)} rows of lengths 0, 1, ..., got lengths {[len(r) for r in self.A]}"
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
        ]
        for order, left, right in conditions:
            weight = sum(b * v for b, v in zip(self.b, left, strict=True))
            if order <= self.order and not isclose(weight, right, abs_tol=1e-12):
                raise ValueError(f"{self.name}: an order-{order} condition expects {right}, got {weight}")


EULER = Tableau("euler", ((),), (1.0,), order=1)
MIDPOINT = Tableau("midpoint", ((), (0.5,)), (0.0, 1.0), order=2)
HEUN = Tableau("heun", ((), (1.0,)), (0.5, 0.5), order=2)
RK4 = Tableau("rk4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
