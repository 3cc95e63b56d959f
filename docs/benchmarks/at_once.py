"""Sweeps that take all steps at once, against the steps in turn: value, and value with derivative, on one core.

Both sides evaluate the same controls alternately; a time is the CPU time of the process, the median over the controls,
and a ratio is the median of the ratios at each control.

    python docs/benchmarks/at_once.py
"""

from __future__ import annotations

import importlib
import time
from statistics import median

import torch

import ocp
from ocp.adjoint import paths

CASES = [
    ("van_der_pol", "rk4", 256, 9),
    ("van_der_pol", "rk4", 1024, 9),
    ("van_der_pol", "rk4", 10_000, 5),
    ("van_der_pol", "euler", 256, 9),
    ("van_der_pol", "euler", 1024, 9),
    ("van_der_pol", "euler", 10_000, 5),
    ("cart_pole", "rk4", 256, 9),
    ("cart_pole", "rk4", 1024, 9),
    ("cart_pole", "rk4", 10_000, 3),
    ("van_der_pol", "crank_nicolson", 256, 3),
]


def objective(problem: ocp.ControlProblem, scheme: str, steps: int, least: int) -> ocp.ReducedObjective:
    """An objective that takes all steps at once if there are at least ``least``."""
    paths.EXPLICIT_STEPS = paths.IMPLICIT_STEPS = least
    found = ocp.discretize(problem, steps, scheme)
    found.derivative(found.discretization.start())
    return found


def seconds(objective: ocp.ReducedObjective, u: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """For the value, for both, and the derivative."""
    begin = time.process_time()
    point = objective.at(u)
    point.value  # noqa: B018
    middle = time.process_time()
    derivative = point.derivative
    return middle - begin, time.process_time() - begin, derivative


def main() -> None:
    torch.set_num_threads(1)
    print("| problem | N | value: at once, in turn, ratio | value and derivative | difference |")
    for name, scheme, steps, times in CASES:
        problem = importlib.import_module(f"ocp.problems.{name}").problem().problem
        at_once, in_turn = (objective(problem, scheme, steps, least) for least in (1, 10**9))
        start, generator, pairs, apart = at_once.discretization.start().flat, torch.Generator().manual_seed(0), [], 0.0
        for _ in range(times):
            u = start + 0.3 * torch.randn(start.shape, generator=generator, dtype=start.dtype)
            (*new, d), (*old, e) = seconds(at_once, u), seconds(in_turn, u)
            pairs.append((new, old))
            apart = max(apart, float((d - e).norm() / e.norm()))
        row = [
            f"{1e3 * median(new[k] for new, _ in pairs):.1f} ms, {1e3 * median(old[k] for _, old in pairs):.0f} ms, "
            f"{median(old[k] / new[k] for new, old in pairs):.1f}"
            for k in (0, 1)
        ]
        print(f"| {name}, {scheme} | {steps} | {' | '.join(row)} | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main()
