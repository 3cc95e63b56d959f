"""Where benchmarks write: raw results to bench-out/, which is not committed, and one small CSV for each figure."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ocp.run.comparison import Comparison

DOCS = Path(__file__).parents[1]
#: Raw results, in the working folder.
RAW = Path("bench-out")
#: Records of a run that a CSV holds at most.
RECORDS = 20


def write_csv(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write what a figure draws to docs/figures/NAME.csv, numbers with six digits."""
    with (DOCS / "figures" / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)


def write_convergence(name: str, comparison: Comparison) -> None:
    """The curves of a comparison, thinned to `RECORDS` records a run."""
    rows = []
    for label, results in comparison.runs.items():
        for number, result in enumerate(results):
            records = result.history
            kept = sorted({round(k * (len(records) - 1) / (RECORDS - 1)) for k in range(RECORDS)})
            for r in (records[k] for k in kept):
                value = r.value if r.finest_value is None else r.finest_value
                lower = r.derivative_norm if r.validation_accuracy is None else r.validation_accuracy
                rows.append((label, number, r.steps, r.work_units, r.seconds, value, lower))
    header = ("run", "seed", "steps", "work_units", "seconds", "objective", "accuracy_or_derivative_norm")
    write_csv(name, header, rows)
