"""What a verification returns: checks with numbers and a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
from tabulate import tabulate

from ocp.verification.taylor import Taylor

__all__ = ["Check", "Report", "agreement"]


@dataclass(frozen=True)
class Check:
    """One line of a report: what was measured, what was expected, whether they agree."""

    name: str
    measured: float
    expected: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """The outcome of `verify`.

    Attributes
    ----------
    passed : bool
        Whether all checks passed.
    checks : tuple of Check
    taylor : Taylor
    """

    checks: tuple[Check, ...]
    taylor: Taylor

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        # No order can be seen where a remainder is zero up to rounding.
        seen = ["none" if c.passed and isnan(c.measured) else f"{c.measured:.3g}" for c in self.checks]
        rows = [(c.name, s, c.expected, "pass" if c.passed else "FAIL") for c, s in zip(self.checks, seen, strict=True)]
        table = tabulate(rows, headers=("check", "measured", "expected", ""), disable_numparse=True)
        failed = sum(not check.passed for check in self.checks)
        verdict = "All checks passed." if self.passed else f"{failed} of {len(self.checks)} checks FAILED."
        return f"{table}\n{verdict}"

    def to_dict(self) -> dict[str, Any]:
        """The report as nested dictionaries and lists."""
        return {"passed": self.passed, **asdict(self)}


def agreement(name: str, a: float, b: float, scale: float, dtype: torch.dtype) -> Check:
    """A check that two numbers agree up to rounding relative to a scale."""
    bound = 1e-11 if dtype == torch.float64 else 1e-4
    difference = abs(a - b) / scale if scale > 0 else abs(a - b)
    return Check(name, difference, f"<= {bound:.0e}", difference <= bound)
