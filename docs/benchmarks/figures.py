"""Run the comparisons that the documentation shows, and write their results, tables and figures.

    python docs/benchmarks/figures.py [--redraw]

Raw results go to bench-out/NAME/compare.json, tables to docs/results/tables.md, figures and what they draw to
docs/figures/NAME.png and NAME.csv. With --redraw, figures and tables are made from the raw results of an earlier run.
"""

from functools import partial

import click
import torch
from outputs import DOCS, RAW, write_convergence

from ocp import Stop, plots
from ocp.cli import catalog
from ocp.cli.words import METHODS, SMOOTHERS
from ocp.run.comparison import Comparison, RunSpec, compare

ADAM = SMOOTHERS["adam"](1e-2)
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
        folder = RAW / name
        if not redraw:
            runs = [RunSpec(method, **options) for method in METHODS.values()]
            compare(problem, partial(load, problem), runs, SEEDS).save(folder)
        comparison = Comparison.load(folder)
        plots.convergence(comparison.runs, comparison.target).savefig(DOCS / "figures" / f"{name}.png", dpi=110)
        write_convergence(name, comparison)
        tables.append(f"## {name}\n\n```text\n{comparison}\n```\n")
    head = (
        "# Comparisons: results\n\n"
        "The tables that `ocp compare` prints for the figures of the documentation, N = 128.\n"
        "[Reading the plots](../plots.md#the-tables-of-ocp-compare) explains the columns. Written by\n"
        "`docs/benchmarks/figures.py`.\n\n"
    )
    (DOCS / "results" / "tables.md").write_text(head + "\n".join(tables))


def load(name: str, seed: int):
    return catalog.load(name, seed=seed)


if __name__ == "__main__":
    main()
