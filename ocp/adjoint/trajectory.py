"""States, costates and gradient of a control on one grid, also as a table for other programs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from torch import Tensor

__all__ = ["Trajectory"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A control with its states and costates.

    Attributes
    ----------
    t : Tensor
        Shape (N + 1,): the nodes.
    x, p : Tensor
        Shape (N + 1, batch, *state): states and costates at the nodes.
    u : Tensor
        Shape (N, m): the control, held from node k to node k + 1.
    gradient : Tensor
        Shape (N, m): the gradient by the control (not the derivative), which approximates the derivative of the
        Hamiltonian p f + L by u. Zero where an optimal control is free, and of one sign where a bound holds it.
    lower, upper : Tensor or None
        Shape (N, m): the bounds on the control; None if the problem has none.
    names : mapping
        Names of the numbers in the state under ``"x"``, and in the control under ``"u"``, if they have any.
    """

    t: Tensor
    x: Tensor
    p: Tensor
    u: Tensor
    gradient: Tensor
    lower: Tensor | None = None
    upper: Tensor | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def take(self, indices: Tensor) -> Trajectory:
        """The states and costates of some of the samples; the control is the same for all."""
        return replace(self, x=self.x[:, indices], p=self.p[:, indices])

    def save(self, path: str | Path) -> Path:
        """Write a table of comma-separated values, with a row for each node.

        The columns are t, u1, u2, ..., x1, x2, ..., p1, p2, ..., or the `names`, with p_ in front for costates. The
        control of a step is in the row of the node at which the step begins; in the last row it is empty. The folder is
        created if necessary.

        Raises
        ------
        ValueError
            If there is more than one sample: `take` one.
        """
        samples = self.x.shape[1]
        if samples != 1:
            raise ValueError(
                f"trajectory: expected a single sample for a table, got {samples}; take one of them, such as "
                "take(torch.tensor([0]))"
            )
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The shortest texts that give back the same numbers.
        t, u, x, p = (
            v.reshape(len(v), -1).cpu().numpy().astype(str).tolist() for v in (self.t, self.u, self.x, self.p)
        )
        u.append([""] * self.u.shape[1])
        header = [*self._columns("u", len(u[0])), *self._columns("x", len(x[0])), *self._columns("p", len(p[0]))]
        with path.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["t", *header])
            table.writerows(chain(*row) for row in zip(t, u, x, p, strict=True))
        return path

    def _columns(self, symbol: str, size: int) -> list[str]:
        names = self.names.get("x" if symbol == "p" else symbol)
        if not names:
            return [f"{symbol}{i + 1}" for i in range(size)]
        return [f"p_{name}" if symbol == "p" else name for name in names]
