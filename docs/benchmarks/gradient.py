"""Time and memory of one value with its full gradient, against what autograd makes of the same network.

    python docs/benchmarks/gradient.py [--quick] [--json FILE] [--device NAME] [--threads N] [--redraw]

The network is x_{k+1} = x_k + h sigma(A_k x_k + b_k), or another explicit scheme, with weights of its own in each step,
and the loss is the squared distance of x_N from a target. Ours is `ReducedObjective.value` and `derivative`, through
the public interface. The baselines:

- loop: the plain loop over a list of weights, ``F.linear`` or ``F.conv2d``, and ``loss.backward()``;
- compiled: the same loop under ``torch.compile``, where that compiles within a minute;
- odeint, odeint_adjoint: ``torchdiffeq`` with the fixed step and method of the network, where it is installed.

Both sides run in one process and in alternation; a ratio is the median of paired ratios, ours divided by the
baseline's. On one thread of a CPU the clock is the CPU time of the process, which other processes on the machine do not
run up; otherwise it is wall-clock. Peak memory is that of tensors: what torch's allocator hands out, as its profiler
reports it, beyond the weights and data that both sides are given; ours includes the buffers it keeps.

On a GPU the dense rows also tell what share of its ceilings ours reaches, which are measured first: of the rate of a
large product of matrices, with three products for each stage, and of the rate of a large copy, with what has to be
moved at least: weights twice, their derivative once, and the values of f there and back.

Raw rows go to bench-out/gradient.json, the table to docs/results/gradient.md, the figure and what it draws to
docs/figures/gradient.png and gradient.csv; on another device than the CPU its name is appended to each. With --quick
the sizes are few and small, and only FILE is written.
"""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
import torch.nn.functional as F
from outputs import DOCS, RAW, write_csv
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ocp import Binomial, ControlProblem, LeastSquares, Stop, StoreAll, Watch, discretize, minimize
from ocp.adjoint import sweeps
from ocp.integrators.tableaus import EULER, HEUN, RK4
from ocp.optimize.lbfgs import LBFGS
from ocp.problem.layers import Antisymmetric, Convolution, Dense

try:
    import torchdiffeq
except ImportError:  # pip install ocp[bench]
    torchdiffeq = None

TABLEAUS = {tableau.name: tableau for tableau in (EULER, HEUN, RK4)}
#: Edge of the images of a convolution.
EDGE = 8
COMPILE_SECONDS = 60


@dataclass(frozen=True)
class Case:
    """One network, and what is measured on it."""

    layer: str
    width: int
    batch: int
    steps: int
    integrator: str = "euler"
    threads: int = 1
    slots: int | None = None
    block: int = 1
    baselines: tuple[str, ...] = ("loop",)
    dtype: str = "float32"


ALL = ("loop", "compiled", "odeint", "odeint_adjoint")
QUICK = [
    Case("dense", 8, 64, 32, baselines=("loop", "odeint", "odeint_adjoint")),
    Case("dense", 32, 256, 32),
    Case("dense", 128, 64, 32),
    Case("dense", 16, 64, 32, integrator="rk4"),
    Case("convolution", 8, 64, 16),
    Case("dense", 8, 64, 1000, slots=10),
]
FULL = [
    *(Case("dense", n, 64, 32, baselines=ALL) for n in (8, 32)),
    *(Case("dense", n, batch, 32, baselines=(ALL[0], *ALL[2:])) for n, batch in ((16, 64), (128, 64), (32, 256))),
    *(Case("dense", n, 256, 32) for n in (8, 128, 512)),
    *(Case("dense", n, 256, 128) for n in (8, 16, 32, 64, 128, 256)),
    *(Case("dense", n, 1024, 32) for n in (8, 32, 128, 256)),
    *(Case("dense", n, 4096, 32) for n in (8, 32, 128)),
    *(Case("dense", n, 64, 1024) for n in (8, 16, 32, 64)),
    *(Case("dense", 1024, batch, 32) for batch in (64, 256)),
    *(Case("dense", n, 256, 32, integrator=name) for n in (16, 128) for name in ("heun", "rk4")),
    *(Case("antisymmetric", n, 256, 32) for n in (8, 32, 128, 256)),
    *(Case("convolution", n, 64, 32) for n in (4, 8, 16)),
    Case("convolution", 16, 256, 32),
    *(Case("convolution", 8, 64, 32, integrator=name) for name in ("heun", "rk4")),
    Case("dense", 16, 1024, 1024),
    *(Case("dense", n, batch, 1000, slots=10) for n, batch in ((8, 64), (16, 1024))),
    Case("dense", 8, 64, 1000, slots=10, block=16),
    *(Case("dense", n, 256, 32, threads=2) for n in (8, 32, 128, 512)),
    *(Case("dense", n, 4096, 32, threads=2) for n in (8, 32, 128)),
    Case("convolution", 16, 256, 32, threads=2),
]


class Network:
    """A residual network as a control problem, and as autograd is used to see it."""

    def __init__(self, case: Case, device: str):
        self.case, self.device = case, device
        generator = torch.Generator().manual_seed(0)
        like: dict[str, Any] = {"dtype": getattr(torch, case.dtype)}
        n, N = case.width, case.steps
        layers = {
            "dense": Dense(n),
            "antisymmetric": Dense(n, weight=Antisymmetric(0.1)),
            "convolution": Convolution(n),
        }
        self.layer: Any = layers[case.layer]
        shape = (case.batch, n, EDGE, EDGE) if case.layer == "convolution" else (case.batch, n)
        self.x = torch.randn(shape, generator=generator, **like).to(device)
        self.target = torch.randn(shape, generator=generator, **like).to(device)
        self.u = torch.cat([self.layer.initial(generator, **like) for _ in range(N)]).to(device)
        split = [self.layer._split(u) for u in self.u.view(N, -1)]
        self.weights = [tuple(part.clone().requires_grad_() for part in parts) for parts in split]
        self.parameters = [part for parts in self.weights for part in parts]
        self.shift = 0.05 * torch.eye(n, **like).to(device)

    def f(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        K, b = weights
        if self.case.layer == "convolution":
            return torch.tanh(F.conv2d(x, K, b, padding=1))
        if self.case.layer == "antisymmetric":
            K = 0.5 * (K - K.t()) - self.shift
        return torch.tanh(F.linear(x, K, b))

    def loss(self, x: Tensor) -> Tensor:
        return 0.5 * (x - self.target).square().sum() / len(x)

    def forward(self) -> Tensor:
        x, h, tableau = self.x, 1 / self.case.steps, TABLEAUS[self.case.integrator]
        for weights in self.weights:
            if self.case.integrator == "euler":
                x = x + h * self.f(x, weights)
                continue
            slopes: list[Tensor] = []
            for row in tableau.A:
                y = x
                for a, slope in zip(row, slopes, strict=False):
                    if a:
                        y = y + h * a * slope
                slopes.append(self.f(y, weights))
            for b, slope in zip(tableau.b, slopes, strict=True):
                x = x + h * b * slope
        return self.loss(x)

    def gradient(self) -> Tensor:
        """The gradients that a baseline has left, in the order of the control, and none from then on."""
        flat = torch.cat([p.grad.reshape(-1) for p in self.parameters])
        self.forget()
        return flat

    def forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def ours(network: Network) -> Callable[[], Tensor]:
    case = network.case
    schedule = StoreAll() if case.slots is None else Binomial(case.slots, case.block)
    problem = ControlProblem(network.layer, network.x, LeastSquares(network.target))
    objective, u = discretize(problem, case.steps, case.integrator, schedule), network.u

    def call() -> Tensor:
        return objective.value_and_derivative(u)[1]

    return call


def loop(network: Network) -> Callable[[], Any]:
    def call() -> None:
        network.forget()
        network.forward().backward()

    return call


def compiled(network: Network) -> Callable[[], Any] | None:
    forward = torch.compile(network.forward)

    def call() -> None:
        network.forget()
        forward().backward()

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(COMPILE_SECONDS)
    try:
        call()
    except Exception as error:  # out of time, or no compiler
        click.echo(f"  compiled: {type(error).__name__}")
        return None
    finally:
        signal.alarm(0)
    return call


class _Field(nn.Module):
    """The right-hand side as ``torchdiffeq`` wants it: with the weights of the step in which t lies."""

    def __init__(self, network: Network, parameters: list[nn.Parameter], weights: Callable[[int], Any]):
        super().__init__()
        self.network, self.parts, self.weights = network, nn.ParameterList(parameters), weights

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        N = self.network.case.steps
        return self.network.f(x, self.weights(min(int(float(t.detach()) * N + 1e-3), N - 1)))


def by_torchdiffeq(name: str, network: Network) -> Callable[[], Any] | None:
    """The adjoint gets one tensor of all weights: with a tensor for each step it takes many times as long."""
    if torchdiffeq is None or network.case.integrator != "euler":
        return None
    if name == "odeint_adjoint":
        path = nn.Parameter(network.u.view(network.case.steps, -1).clone())
        field = _Field(network, [path], lambda k: network.layer._split(path[k]))
    else:
        parts = [nn.Parameter(part.detach()) for part in network.parameters]
        field = _Field(network, parts, list(zip(parts[::2], parts[1::2], strict=True)).__getitem__)
    network.parameters = list(field.parts)
    t = torch.linspace(0, 1, network.case.steps + 1, dtype=network.x.dtype, device=network.device)
    solve = getattr(torchdiffeq, name)

    def call() -> None:
        network.forget()
        network.loss(solve(field, network.x, t, method="euler")[-1]).backward()

    return call


BASELINES: dict[str, Callable[[Network], Callable[[], Any] | None]] = {
    "loop": loop,
    "compiled": compiled,
    "odeint": lambda network: by_torchdiffeq("odeint", network),
    "odeint_adjoint": lambda network: by_torchdiffeq("odeint_adjoint", network),
}


def seconds(call: Callable[[], Any], network: Network) -> float:
    """Of one call."""
    on_gpu = network.device != "cpu"
    clock = time.process_time if network.case.threads == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()
    begin = clock()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - begin


def peak(make: Callable[[Network], Callable[[], Any] | None], network: Network) -> int:
    """Bytes of tensors at the same time, from nothing but weights and data to the end of the second call."""
    network.forget()
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call = make(network)
        assert call is not None
        call()
        call()
    total = highest = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


@cache
def ceilings(device: str, dtype: str) -> tuple[float, float]:
    """Operations a second of a large product of matrices, and bytes a second, read and written, of a large copy."""
    a = torch.randn(4096, 4096, dtype=getattr(torch, dtype), device=device)
    b, c = torch.empty(2, 8, *a.shape, dtype=a.dtype, device=device)  # larger than any cache
    product, copy = (
        Timer(call, globals={"a": a, "b": b, "c": c}).blocked_autorange(min_run_time=1).median
        for call in ("a @ a", "b.copy_(c)")
    )
    return 2 * len(a) ** 3 / product, 2 * b.nbytes / copy


def shares(case: Case, device: str, elapsed: float) -> dict[str, float | None]:
    """Of the ceilings of a GPU, for a dense layer; see above."""
    if device == "cpu" or case.layer != "dense" or case.slots is not None:
        return {"of_products": None, "of_copies": None}
    n, stages, (products, copies) = case.width, len(TABLEAUS[case.integrator].b), ceilings(device, case.dtype)
    numbers = case.steps * (3 * (n * n + n) + 2 * stages * case.batch * n)
    moved = numbers * getattr(torch, case.dtype).itemsize
    operations = case.steps * stages * 3 * 2 * case.batch * n * n
    return {"of_products": operations / elapsed / products, "of_copies": moved / elapsed / copies}


def measure(case: Case, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each baseline."""
    torch.set_num_threads(case.threads)
    network = Network(case, device)
    mine = ours(network)
    expected = mine().clone()
    for name in case.baselines:
        call = BASELINES[name](network)
        if call is None:
            continue
        call()
        found = network.gradient()
        error = float((found - expected).norm() / expected.norm())
        first = min(seconds(mine, network) + seconds(call, network) for _ in range(2))
        pairs = [(seconds(mine, network), seconds(call, network)) for _ in range(max(5, min(repeats, int(2 / first))))]
        elapsed = median(a for a, _ in pairs)
        shown = {k: v for k, v in asdict(case).items() if k not in ("baselines", "slots", "block")}
        memory = device == "cpu" and name in ("loop", "odeint", "odeint_adjoint") and case.threads == 1
        yield {
            **shown,
            "slots": case.slots,
            "block": None if case.slots is None else case.block,
            "device": device,
            "baseline": name,
            "time_ratio": median(a / b for a, b in pairs),
            "memory_ratio": peak(ours, network) / peak(BASELINES[name], network) if memory else None,
            "milliseconds": 1e3 * elapsed,
            "difference": error,
            **shares(case, device, elapsed),
        }


def overhead() -> dict[str, float]:
    """Share of the solver in an iteration of L-BFGS that is not spent in sweeps; width 8, batch 256, N = 128."""
    torch.set_num_threads(1)
    network = Network(Case("dense", 8, 256, 128), "cpu")
    problem = ControlProblem(network.layer, network.x, LeastSquares(network.target))
    spent, plain = [0.0], {name: getattr(sweeps, name) for name in ("forward", "adjoint")}

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            begin = time.process_time()
            try:
                return call(*arguments)
            finally:
                spent[0] += time.process_time() - begin

        return wrapped

    try:
        for name, call in plain.items():
            setattr(sweeps, name, timed(call))
        begin = time.process_time()
        result = minimize(
            problem, 128, LBFGS(), stop=Stop(tolerance=0.0, max_iterations=100), watch=Watch(progress=False)
        )
        total = time.process_time() - begin
    finally:
        for name, call in plain.items():
            setattr(sweeps, name, call)
    return {"iterations": result.iterations, "seconds": total, "outside_sweeps": 1 - spent[0] / total}


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    shown = [r for r in rows if r["layer"] == "dense" and r["integrator"] == "euler" and r["slots"] is None]
    shown = [r for r in shown if r["baseline"] == "loop" and r["threads"] == 1]
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
    for batch, steps in sorted({(r["batch"], r["steps"]) for r in shown}):
        line = sorted((r["width"], r) for r in shown if (r["batch"], r["steps"]) == (batch, steps))
        for axes, key in ((left, "time_ratio"), (right, "memory_ratio")):
            axes.plot([n for n, _ in line], [r[key] for _, r in line], "o-", ms=3, label=f"batch {batch}, N = {steps}")
    for axes, title in ((left, "time"), (right, "peak memory")):
        axes.axhline(1.0, color="gray", lw=0.8)
        axes.set(xscale="log", xlabel="width", title=f"{title}, ours / autograd loop")
        axes.set_ylim(bottom=0)
    left.legend(fontsize=6)
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)


def table(rows: list[dict[str, Any]], solver: dict[str, float], device: str) -> str:
    columns = ("layer", "integrator", "width", "batch", "steps", "threads", "slots", "block", "baseline")
    ceiling = () if device == "cpu" else ("of_products", "of_copies")
    lines = [
        [
            *("" if r[c] is None else r[c] for c in columns),
            f"{r['time_ratio']:.2f}",
            "" if r["memory_ratio"] is None else f"{r['memory_ratio']:.3f}",
            f"{r['milliseconds']:.2f}",
            *("" if r[c] is None else f"{r[c]:.0%}" for c in ceiling),
        ]
        for r in rows
    ]
    head = [*columns, "time ratio", "memory ratio", "ours, ms", *(name.replace("_", " ") for name in ceiling)]
    where = "one CPU" if device == "cpu" else torch.cuda.get_device_name(device)
    return f"""# The cost of a gradient: results

Time and memory of `ocp` divided by those of the baseline; float32, {where}, torch {torch.__version__}. The page on
[speed](../speed.md) says how they are measured and what they mean. Written by `docs/benchmarks/gradient.py`.

{tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)}

L-BFGS on a CPU, width 8, batch 256, N = 128, {solver["iterations"]} iterations: {solver["outside_sweeps"]:.0%} of the
time is spent outside sweeps.
"""


@click.command(help=__doc__)
@click.option("--quick", is_flag=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--device", default="cpu")
@click.option("--threads", type=int, help="For all cases; by default 1, and 2 for a few of them.")
@click.option("--redraw", is_flag=True)
def main(quick: bool, file: Path | None, device: str, threads: int | None, redraw: bool) -> None:
    name = "gradient" if device == "cpu" else f"gradient_{device.replace(':', '_')}"
    saved = RAW / f"{name}.json"
    RAW.mkdir(exist_ok=True)
    if redraw:
        data = json.loads(saved.read_text())
    else:
        data = {"rows": [], "solver": overhead()}
        for case in QUICK if quick else FULL:
            for row in measure(replace(case, threads=threads or case.threads), device, repeats=11 if quick else 31):
                data["rows"].append(row)
                memory = "" if row["memory_ratio"] is None else f"memory {row['memory_ratio']:.3f}"
                click.echo(f"{asdict(case)} {row['baseline']}: time {row['time_ratio']:.2f} {memory}")
            if not quick:
                saved.write_text(json.dumps(data, indent=1) + "\n")
    if file is not None:
        file.write_text(json.dumps(data["rows"], indent=1) + "\n")
    if not quick:
        (DOCS / "results" / f"{name}.md").write_text(table(data["rows"], data["solver"], device))
        figure(data["rows"], DOCS / "figures" / f"{name}.png")
        drawn = ("layer", "integrator", "width", "batch", "steps", "baseline", "time_ratio", "memory_ratio")
        write_csv(name, drawn, [[row[key] for key in drawn] for row in data["rows"]])


if __name__ == "__main__":
    main()
