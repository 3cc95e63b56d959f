"""What many grids are worth: MG/OPT and nested iteration against tuned training on one grid.

    python docs/benchmarks/multilevel.py [--quick] [--redraw] [--part runs|ablation]

Raw results go to bench-out/multilevel/, a file for each problem and number of steps, written after every run; what is
there already is not run again. The tables go to docs/results/multilevel.md, the figures to docs/figures/. The cases
are worked on by as many processes as there are cores, each with one thread; within a case the methods take turns.

Learning rates are tuned on the seeds 100 and 101 with N = 128, for a single grid and for nested iteration apart, MG/OPT
takes that of nested iteration. The targets come from these seeds, too. The seeds that are reported are 0 to 4.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import inf, isfinite
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from outputs import DOCS, RAW, write_csv
from tabulate import tabulate

import ocp
from ocp.cli import catalog, words
from ocp.multilevel.cycle import coherent
from ocp.run import json_files, plots
from ocp.run.comparison import RunSpec, solve

PROBLEMS = ("spiral", "peaks", "digits", "mnist")
STEPS = (128, 512)
SEEDS, TUNING = (0, 1, 2, 3, 4), (100, 101)
#: Learning rates for gradients in the time-weighted inner product, where a rate means the same on every grid.
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
#: Smoothers, each with its batch size; None is the full batch, where a line search needs no rate.
SMOOTHERS = {"gd": None, "sgd": 64, "adam": 64, "lbfgs": None}
METHODS = ("single", "nested", "mgopt")
#: Those that are drawn.
DRAWN = ("lbfgs", "adam")
#: Work units that a run may take.
BUDGET = {"single": 60.0, "nested": 30.0, "mgopt": 30.0}


def main_run(problem: str, steps: int, smoother: str, method: str, seed: int, rate: float, budget: float) -> dict:
    """One run, as a curve of its improvements."""
    run = RunSpec(
        words.METHODS[method],
        words.SMOOTHERS[smoother](rate),
        steps=steps,
        batch_size=SMOOTHERS[smoother],
        seed=seed,
        stop=ocp.Stop(max_work=budget, max_iterations=10**6, tolerance=1e-6),
        watch=ocp.Watch(finest=True),
    )
    result = solve(problem, catalog.load(problem, seed=seed), run)
    return {"smoother": smoother, "method": method, "seed": seed, "rate": rate, **curve(result)}


def curve(result: ocp.Result) -> dict:
    """The records at which the best value fell by a percent, or the best accuracy rose, and how the run ended."""
    points, value, accuracy = [], inf, -inf
    for r in result.history:
        seen, right = r.finest_value, r.validation_accuracy
        if (seen is not None and isfinite(seen) and seen < 0.99 * value) or (right is not None and right > accuracy):
            value = min(value, seen) if seen is not None and isfinite(seen) else value
            accuracy = max(accuracy, right or 0.0)
            points.append([r.work_units, r.seconds, r.steps, value, accuracy])
    ended = {"status": result.status.name, "counts": dict(result.counts)}
    return {"points": points, **ended, "work": result.work_units, "test": result.test_accuracy}


def pair(target: ocp.Target) -> tuple[str, float]:
    return target.quantity, target.threshold


def reached(run: dict, target: tuple[str, float], column: int = 0) -> float:
    """Work (column 0) or seconds (1) to a target; infinite where it was missed."""
    quantity, threshold = target
    for point in run["points"]:
        if point[4] >= threshold if quantity == "accuracy" else point[3] <= threshold:
            return point[column]
    return inf


def middle(runs: Sequence[dict], target: tuple[str, float], column: int = 0) -> float:
    """Median over the runs; one that missed counts as infinite."""
    return median([reached(run, target, column) for run in runs]) if runs else inf


def tune(problem: str, smoother: str, budget: dict) -> dict:
    """The rates of a smoother, and the targets that follow from the tuning runs."""
    goal = pair(catalog.load(problem, seed=TUNING[0]).target)
    assert goal is not None
    tuned: dict = {"tried": []}
    ends = {}
    for method in ("single", "nested"):
        trials = {}
        for rate in RATES if SMOOTHERS[smoother] else (0.0,):
            trials[rate] = [main_run(problem, 128, smoother, method, s, rate, budget[method]) for s in TUNING]
            tuned["tried"].append([method, rate, middle(trials[rate], goal), *end(trials[rate])])
        # First comes the work to the target, then the accuracy reached, then the value.
        best = min(trials, key=lambda r: (middle(trials[r], goal), -end(trials[r])[0], end(trials[r])[1]))
        tuned[method], ends[method] = best, end(trials[best])
    accuracy = min(goal[1], ends["single"][0] - 0.005)
    tuned["targets"] = {
        "accuracy": ["accuracy", accuracy],
        "value": ["value", 1.05 * ends["single"][1]],
        "deep value": ["value", 1.05 * ends["nested"][1]],
    }
    return tuned


def end(runs: Sequence[dict]) -> tuple[float, float]:
    """Median of the best accuracy and of the best value."""
    return median([r["points"][-1][4] for r in runs]), median([r["points"][-1][3] for r in runs])


def tuning(problem: str, smoother: str, folder: Path, budget: dict) -> dict:
    """The rates and targets of a smoother on a problem, found once."""
    torch.set_num_threads(1)
    path = folder / f"{problem}-{smoother}.json"
    if not path.exists():
        json_files.write(path, json_files.plain(tune(problem, smoother, budget)))
    return json_files.read(path)


def case(problem: str, steps: int, folder: Path, seeds: Sequence[int], smoothers: Sequence[str], budget: dict) -> None:
    """All runs of one problem and number of steps; seeds are the outer loop, so that methods take turns."""
    torch.set_num_threads(1)
    path = folder / f"{problem}-{steps}.json"
    runs: list[dict] = json_files.read(path)["runs"] if path.exists() else []
    there = {(r["smoother"], r["method"], r["seed"]) for r in runs}
    for seed in seeds:
        for smoother in smoothers:
            for method in METHODS:
                if (smoother, method, seed) in there:
                    continue
                rate = tuning(problem, smoother, folder, budget)["single" if method == "single" else "nested"]
                runs.append(main_run(problem, steps, smoother, method, seed, rate, budget[method]))
                json_files.write(path, {"problem": problem, "steps": steps, "runs": runs})


# ---------------------------------------------------------------------------------------------------------- ablation


def incoherent(derivative, origin, transfer, radius, box):
    """Without tau: the coarse objective as it is."""
    return ocp.ShiftedObjective(origin.objective, origin.control, torch.zeros_like(origin.control), radius, box)


def injected(derivative, origin, transfer, radius, box):
    """With a derivative restricted by injection, in place of the transposed prolongation."""
    ratio = transfer.fine.grid.steps // transfer.coarse.grid.steps
    path = ratio * transfer.fine.path(derivative)[::ratio]
    restricted = transfer.coarse.join(path, transfer.fine.parameters(derivative))
    return ocp.ShiftedObjective(origin.objective, origin.control, origin.derivative - restricted, radius, box)


def unlimited(derivative, origin, transfer, radius, box):
    """Without a radius."""
    return coherent(derivative, origin, transfer, inf, box)


def variants(levels: int) -> dict[str, ocp.Method]:
    """What is compared in the ablation; each differs from `always` or from the line above it by one thing."""
    always = {"levels": levels, "visits": ocp.Always()}
    return {
        "single": ocp.LBFGS(),
        "nested, memory dropped": ocp.Nested(levels, ocp.Forgetful(ocp.LBFGS())),
        "nested, memory carried": ocp.Nested(levels, ocp.LBFGS()),
        "nested, carried, linear prolongation": ocp.Nested(levels, ocp.LBFGS(), interpolation=ocp.LINEAR),
        "mgopt (default)": ocp.MGOPT(levels),
        "mgopt, W": ocp.MGOPT(levels, shape="W"),
        "mgopt, F": ocp.MGOPT(levels, shape="F"),
        "mgopt, visit_ratio 0": ocp.MGOPT(levels, visit_ratio=0.0),
        "mgopt, without tau": ocp.MGOPT(levels, model=incoherent),
        "mgopt, injection": ocp.MGOPT(levels, model=injected),
        "mgopt, no radius": ocp.MGOPT(levels, model=unlimited),
        "always visiting": ocp.MGOPT(**always),
        "always, without tau": ocp.MGOPT(**always, model=incoherent),
        "always, injection": ocp.MGOPT(**always, model=injected),
        "always, no radius": ocp.MGOPT(**always, model=unlimited),
        "always, visit_ratio 0": ocp.MGOPT(**always, visit_ratio=0.0),
        "cycles alone, from the finest grid": ocp.Cycle(**always),
    }


def ablation(problem: str, folder: Path, seeds: Sequence[int], budget: float) -> None:
    """The variants on one problem, N = 128, L-BFGS."""
    torch.set_num_threads(1)
    path = folder / f"{problem}-ablation.json"
    runs: list[dict] = json_files.read(path)["runs"] if path.exists() else []
    there = {(r["variant"], r["seed"]) for r in runs}
    for seed in seeds:
        study = catalog.load(problem, seed=seed)
        for name, method in variants(study.levels).items():
            if (name, seed) in there:
                continue
            result = ocp.minimize(
                study.problem,
                128,
                method,
                integrator=study.integrator,
                watch=ocp.Watch(validation=study.validation, finest=True),
                stop=ocp.Stop(max_work=budget, tolerance=1e-6),
            )
            runs.append({"variant": name, "seed": seed, **curve(result)})
            json_files.write(path, {"problem": problem, "runs": runs})


# ------------------------------------------------------------------------------------------------------------ report


def number(x: float, form: str = ".2f") -> str:
    return format(x, form) if isfinite(x) else "missed"


def ratio(a: float, b: float) -> str:
    """a / b, where it can be told; a lower bound cannot be told from a run that was cut."""
    return f"{a / b:.1f}x" if isfinite(a) and isfinite(b) and b > 0 else "-"


def load(folder: Path) -> Iterator[tuple[str, int, list[dict]]]:
    for problem in PROBLEMS:
        for steps in STEPS:
            path = folder / f"{problem}-{steps}.json"
            if path.exists():
                yield problem, steps, json_files.read(path)["runs"]


def report(folder: Path) -> str:
    parts = [HEAD, "## Same smoother, one grid against many\n", SAME]
    for kind in ("accuracy", "value", "deep value"):
        rows = []
        for problem, steps, runs in load(folder):
            for smoother in {r["smoother"]: None for r in runs}:
                target = tuple(tuning(problem, smoother, folder, BUDGET)["targets"][kind])
                rows += same(problem, steps, smoother, target, runs)
        headers = ("problem", "N", "smoother", "target", *METHODS, "s", "s", "s", "gain", "in s", "on nested", "failed")
        parts.append(f"To {kind}:\n\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n")
    parts += ["## Against the best on one grid\n", BEST, best(folder)]
    parts += ["## Rates\n", rates(folder), "## Ablation\n", ABLATION, ablated(folder)]
    return "\n".join(parts)


def same(problem: str, steps: int, smoother: str, target: tuple[str, float], runs: list[dict]) -> list[list[str]]:
    by_method = {m: [r for r in runs if (r["smoother"], r["method"]) == (smoother, m)] for m in METHODS}
    if not all(by_method.values()):
        return []
    work = [middle(by_method[m], target) for m in METHODS]
    seconds = [middle(by_method[m], target, 1) for m in METHODS]
    missed = [sum(not isfinite(reached(r, target)) for r in by_method[m]) for m in METHODS]
    gains = [ratio(work[0], work[2]), ratio(seconds[0], seconds[2]), ratio(work[1], work[2])]
    threshold = f"{target[1]:.3g}"
    cells = [*(number(w) for w in work), *(number(s) for s in seconds), *gains]
    return [[problem, str(steps), smoother, threshold, *cells, "/".join(map(str, missed))]]


def best(folder: Path) -> str:
    rows = []
    for problem, steps, runs in load(folder):
        target = pair(catalog.load(problem).target)
        found = {}
        for smoother in SMOOTHERS:
            for method in METHODS:
                group = [r for r in runs if (r["smoother"], r["method"]) == (smoother, method)]
                if group:
                    found[smoother, method] = (middle(group, target), middle(group, target, 1))
        row = [problem, str(steps), f"{target[1]:g}"]
        chosen = []
        for methods in (("single",), ("mgopt",)):
            candidates = {k: v for k, v in found.items() if k[1] in methods}
            for column in (0, 1):
                name = min(candidates, key=lambda k, c=column, f=candidates: f[k][c])
                chosen.append(candidates[name][column])
                row.append(f"{number(candidates[name][column])} ({name[0]})")
        rows.append([*row, ratio(chosen[0], chosen[2]), ratio(chosen[1], chosen[3])])
    headers = ("problem", "N", "accuracy", "single, work", "single, s", "mgopt, work", "mgopt, s", "gain", "in s")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def rates(folder: Path) -> str:
    rows = []
    for problem in PROBLEMS:
        paths = {s: folder / f"{problem}-{s}.json" for s in ("sgd", "adam")}
        found = {s: json_files.read(path) for s, path in paths.items() if path.exists()}
        cells = [f"{found[s][m]:g}" if s in found else "-" for s in paths for m in ("single", "nested")]
        rows.append([problem, *cells])
    headers = ("problem", "sgd, single", "sgd, many grids", "adam, single", "adam, many grids")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def ablated(folder: Path) -> str:
    paths = {p: folder / f"{p}-ablation.json" for p in PROBLEMS}
    found = {p: json_files.read(path)["runs"] for p, path in paths.items() if path.exists()}
    targets = {}
    for problem in found:
        tuned = tuning(problem, "lbfgs", folder, BUDGET)["targets"]
        targets[problem] = [tuple(tuned[kind]) for kind in ("accuracy", "deep value")]
    rows = []
    for name in variants(1):
        row = [name]
        for problem, runs in found.items():
            own = [r for r in runs if r["variant"] == name]
            row += [*(number(middle(own, t)) for t in targets[problem]), str(len(own))]
        rows.append(row)
    headers = ["variant"]
    for problem, goals in targets.items():
        headers += [*(f"{problem}, {quantity} {value:.3g}" for quantity, value in goals), "seeds"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def figures(folder: Path, out: Path) -> None:
    """For each smoother of `DRAWN` the objective on the finest grid against work and seconds; medians over seeds."""
    for smoother in DRAWN:
        found = ((p, n, [r for r in runs if r["smoother"] == smoother]) for p, n, runs in load(folder))
        cases = [case for case in found if case[2]]
        grids = sorted({steps for _, steps, _ in cases})
        if not cases:
            continue
        drawn: list[tuple] = []
        figure = Figure(figsize=(3 * len(PROBLEMS), 2.6 * 2 * len(grids)), layout="constrained")
        axes = figure.subplots(2 * len(grids), len(PROBLEMS), squeeze=False)
        for problem, steps, runs in cases:
            column, row = PROBLEMS.index(problem), 2 * grids.index(steps)
            for abscissa, unit in enumerate(("work units", "seconds")):
                axis = axes[row + abscissa, column]
                for method, color in zip(METHODS, plots.COLORS, strict=False):
                    own = [r["points"] for r in runs if r["method"] == method]
                    if own:
                        x, y = median_curve(own, abscissa)
                        axis.loglog(x, y, color=color, label=method)
                        drawn += [
                            (problem, steps, method, unit, float(a), float(b))
                            for a, b in zip(x[::20], y[::20], strict=True)
                        ]
                axis.set(title=f"{problem}, N = {steps}", xlabel=unit)
        for axis in axes[:, 0]:
            axis.set_ylabel("objective")
        handles, labels = axes[0, PROBLEMS.index(cases[0][0])].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
        figure.savefig(out / f"multilevel_{smoother}.png", dpi=90)
        if out == DOCS / "figures":
            write_csv(f"multilevel_{smoother}", ("problem", "steps", "method", "unit", "spent", "objective"), drawn)


def median_curve(runs: Iterable[Sequence], abscissa: int) -> tuple[np.ndarray, np.ndarray]:
    """Median over the runs of the best objective so far, from where all of them have one."""
    curves = [np.array([(p[abscissa], p[3]) for p in points if p[abscissa] > 0 and isfinite(p[3])]) for points in runs]
    begin, end = max(c[0, 0] for c in curves), max(c[-1, 0] for c in curves)
    x = np.geomspace(begin, max(end, 1.01 * begin), 200)
    steps = [c[np.searchsorted(c[:, 0], x, side="right") - 1, 1] for c in curves]
    return x, np.median(steps, axis=0)


HEAD = f"""# Many grids: results

How much work and time MG/OPT and nested iteration save against a single grid; [Many grids](../multilevel.md#what-pays)
discusses the numbers. Written by `docs/benchmarks/multilevel.py`.

Medians over {len(SEEDS)} seeds; a seed that misses the target counts as infinite. Work is counted in gradients on the
finest grid and all samples. `single` may take {BUDGET["single"]:g} units, the others {BUDGET["nested"]:g}. Rates were
tuned on other seeds, with N = 128, among {", ".join(f"{rate:g}" for rate in RATES)}, separately for `single` and
`nested`; `mgopt` uses those of `nested`. Gradient descent and L-BFGS choose their steps by line searches. SGD (momentum
0.9) and Adam take batches of 64.
"""
SAME = """`gain` and `in s` are the work and seconds of `single` divided by those of `mgopt`; `on nested` is the work
of `nested` divided by that of `mgopt`. `failed` counts the seeds that missed the target, for the three
methods in turn. The targets:

- *accuracy*: the problem's own target, or what the smoother reaches on one grid minus 0.005 if that is
  lower;
- *value*: the objective at which the smoother ends on one grid, plus 5 %;
- *deep value*: the objective at which nested iteration ends, plus 5 %; both on the tuning seeds.
"""
BEST = """The best method of any kind on one grid, by work and by seconds, against the best smoother with MG/OPT.
"""
ABLATION = f"""What each part of MG/OPT is worth, with L-BFGS and N = 128: work to the accuracy and to the deep value of
the tables above, and the number of seeds run. Every variant, `single` included, may take {BUDGET["nested"]:g} units.
"""


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="One seed, L-BFGS, N = 128, two problems; into another folder.")
@click.option("--redraw", is_flag=True, help="Tables from what is there, without running anything.")
@click.option("--part", type=click.Choice(["runs", "ablation"]), multiple=True, default=("runs", "ablation"))
@click.option("--problem", "chosen", type=click.Choice(PROBLEMS), multiple=True, default=PROBLEMS)
@click.option("--steps", type=click.Choice([str(n) for n in STEPS]), multiple=True, default=[str(n) for n in STEPS])
@click.option("--smoother", type=click.Choice(list(SMOOTHERS)), multiple=True, default=list(SMOOTHERS))
@click.option("--workers", type=int, default=2, help="Processes.")
def main(quick, redraw, part, chosen, steps, smoother, workers) -> None:
    folder = RAW / "multilevel"
    seeds, budget = SEEDS, BUDGET
    if quick:
        folder, seeds, budget = Path("ocp-out/multilevel"), (0,), dict.fromkeys(BUDGET, 15.0)
        chosen, steps, smoother = ("spiral", "digits"), ("128",), ("lbfgs",)
    folder.mkdir(parents=True, exist_ok=True)
    if not redraw:
        with ProcessPoolExecutor(workers) as pool:
            if "runs" in part:
                for done in [pool.submit(tuning, p, s, folder, budget) for p in chosen for s in smoother]:
                    done.result()
            waiting = []
            if "runs" in part:
                pairs = [(problem, int(n)) for n in steps for problem in chosen]
                waiting += [pool.submit(case, *pair, folder, seeds, smoother, budget) for pair in pairs]
            if "ablation" in part:
                waiting += [pool.submit(ablation, problem, folder, seeds, budget["nested"]) for problem in chosen]
            for done in waiting:
                done.result()
    text = report(folder)
    (folder / "README.md" if quick else DOCS / "results" / "multilevel.md").write_text(text)
    figures(folder, folder if quick else DOCS / "figures")
    click.echo(text)


if __name__ == "__main__":
    main()
