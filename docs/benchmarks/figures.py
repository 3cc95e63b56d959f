"""Run the comparisons that the documentation shows, and write their results, tables and figures.

    python docs/benchmarks/figures.py [--redraw]

Results go to docs/results/NAME/compare.json and tables.md, figures to docs/figures/NAME.png. With --redraw the figures
and tables are made anew from the saved results, without running anything.
"""

from functools import partial
from pathlib import Path

import click
import torch

from ocp import Stop, plots
from ocp.cli import catalog
from ocp.cli.words import SMOOTHERS
from ocp.run.comparison import Comparison, RunSpec, compare

ADAM = SMOOTHERS["adam"](1e-2)
DOCS = Path(__file__).parents[1]
#: From the name of a comparison to its problem and to what its runs have in common.
CASES: dict[str, tuple[str, dict]] = {
    "digits": ("digits", {}),
    "digits_adam": ("digits", {"smoother": ADAM, "batch_size": 64, "stop": Stop(1e-4, max_work=15)}),
    "spiral": ("spiral", {}),
    "peaks": ("peaks", {}),
    "swiss_roll": ("swiss_roll", {}),
    "van_der_pol": ("van_der_pol", {}),
}
SEEDS = 5


@click.command(help=__doc__)
@click.option("--redraw", is_flag=True)
def main(redraw: bool) -> None:
    torch.set_num_threads(1)
    (DOCS / "figures").mkdir(exist_ok=True)
    tables = []
    for name, (problem, options) in CASES.items():
        folder = DOCS / "results" / name
        if not redraw:
            runs = [RunSpec(method, **options) for method in ("single", "nested", "mgopt")]
            compare(problem, partial(load, problem), runs, SEEDS).save(folder)
        comparison = Comparison.load(folder)
        plots.convergence(comparison.runs, comparison.target).savefig(DOCS / "figures" / f"{name}.png", dpi=110)
        tables.append(f"## {name}\n\n```text\n{comparison}\n```\n")
    head = "# Results\n\nWritten by `docs/benchmarks/figures.py`; N = 128.\n\n"
    (DOCS / "results" / "tables.md").write_text(head + "\n".join(tables))


def load(name: str, seed: int):
    return catalog.load(name, seed=seed)


if __name__ == "__main__":
    main()
