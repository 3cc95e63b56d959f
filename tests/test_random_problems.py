"""Random problems: values, derivatives and final states are those that autograd gives for a plain loop over time."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_dynamics import FUNCTIONS, IMAGE, LAYERS, MODULES, SHAPES, SIZES, VECTOR, Written
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import ocp
from ocp.objective.reduced import ReducedObjective

# Data, costs, grids, and what to do with them.


def backwards(x):
    return x.permute(*reversed(range(x.ndim)))


def per_sample(x):
    return x.flatten(1).sum(1)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: backwards(backwards(x).contiguous()),
    "strided": lambda x: torch.stack((x, x + 1), -1)[..., 0],
    "shifted": lambda x: torch.cat((x[:1], x))[1:],
    "expanded": lambda x: x[:1].expand_as(x),
}
RUNNING = {
    "none": None,
    "smooth": lambda t, x, u: math.cos(t) * per_sample(x.square()).mean() + u.square().sum(),
    "kinked": lambda t, x, u: per_sample((x - t).abs()).mean() + u.clamp_min(0.1).sum(),
    "switched": lambda t, x, u: per_sample(x * u[0]).mean() if t < 0.1234 else u.square().mean(),
    "control only": lambda t, x, u: 0.5 * (u * u).sum(),
    "quadratic": None,
}
METHODS = {
    "descent": ocp.GradientDescent(),
    "conjugate gradients": ocp.NonlinearCG(),
    "L-BFGS": ocp.LBFGS(),
    "Newton-CG": ocp.NewtonCG(),
    "SciPy": ocp.SciPy("L-BFGS-B", iterations=2),
    "Adam": ocp.TorchOptimizer(torch.optim.Adam, {"lr": 0.02}),
    "nested": ocp.Nested(2),
    "cycle": ocp.Cycle(2),
    "MG/OPT": ocp.MGOPT(2, ocp.NonlinearCG()),
}
IMPLICIT = ["backward_euler", "implicit_midpoint", "crank_nicolson", "sdirk2"]
EXPLICIT = ["euler", "midpoint", "heun", "rk4", "dopri5"]
SCHEDULES = [ocp.StoreAll(), ocp.Binomial(1), ocp.Binomial(2), ocp.Binomial(3, block=2), ocp.Binomial(1, block=3)]
REVERSIBLE = [ocp.Reversible(), ocp.Reversible(every=2, block=1)]
COSTS = [(), (ocp.Tikhonov(0.1),), (ocp.TimeSmoothness(0.1), ocp.Tikhonov(0.1))]
BOUNDS = {"none": None, "box": (-0.3, 0.4), "of time": (lambda t: -0.2 - t, None)}
ACTS = ["value", "derivative", "final state", "Hessian product", "slope", "elsewhere"]


@st.composite
def cases(draw):
    """What a random problem is made of, and what to ask for, in which order."""
    choose = lambda options: draw(st.sampled_from(list(options)))  # noqa: E731
    case = SimpleNamespace(
        seed=draw(st.integers(0, 10**6)), dynamics=choose([*FUNCTIONS, "written", *LAYERS, *MODULES])
    )
    name, network = case.dynamics, case.dynamics in LAYERS | MODULES
    shapes = {"convolution": IMAGE, **{n: VECTOR for n in LAYERS if n != "convolution"}}
    shapes |= {n: SIZES.get(n, (SHAPES,))[0] for n in [*FUNCTIONS, "written"]} | {n: m[0] for n, m in MODULES.items()}
    case.state = choose(shapes[name])
    implicit = name not in ("pairs", "samples meet") and choose(range(5)) == 4  # these take longer
    case.scheme = choose(["verlet", "rk4"] if name == "pairs" else IMPLICIT if implicit else EXPLICIT)
    case.schedule = choose([*SCHEDULES, *(REVERSIBLE if case.scheme == "verlet" else [])])
    case.opening = choose(["none", "linear", "deep", "embedding"] if network else ["none", "function"])
    case.closing = network and draw(st.booleans())
    classes = case.closing or (len(case.state) == 1 and case.state != (1,))
    terminal = ["least squares", *(["cross entropy"] if classes else []), *([] if network else ["none", "function"])]
    case.terminal, case.control_cost, case.bounds = choose(terminal), choose(COSTS), choose(BOUNDS)
    case.running = choose([r for r in RUNNING if r != "none" or case.terminal != "none"])
    divisible = case.opening != "function" and name != "samples meet"
    then = choose([*(["processes", "rows"] if divisible else []), "grid", "method"])
    case.then = choose(METHODS) if then == "method" else then
    case.batch = choose([1, 2] if implicit else [1, 2, 5])
    case.steps = choose(
        [2, 4] if case.then in ("nested", "cycle", "MG/OPT") else [1, 2, 3] if implicit else [1, 2, 3, 4]
    )
    case.layout = choose(LAYOUTS)
    case.dtype = torch.float32 if case.opening == "embedding" else choose([torch.float64, torch.float32])
    case.order = tuple(draw(st.permutations(ACTS)))
    if name == "weight norm":  # torch differentiates it twice, but wrongly; so it is refused
        case.order = tuple(act for act in case.order if act != "Hessian product")
        case.then = "grid" if case.then == "Newton-CG" else case.then
    return case


def as_function(module):
    """A module in double precision as a function of a vector with its parameters, and their number."""
    module = module.double()
    for part in module.modules():
        part.again = False
    shapes = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
    sizes = [shape.numel() for shape in shapes.values()]

    def run(q, x):
        parts = {n: part.view(shapes[n]) for n, part in zip(shapes, q.split(sizes), strict=True)}
        return torch.func.functional_call(module, parts, (x,))

    return run, sum(sizes)


def build(case):
    """The problem as a user hands it over, and the pieces of its definition on some rows of the samples."""
    torch.manual_seed(case.seed)
    laid, state, name, n = LAYOUTS[case.layout], case.state, case.dynamics, math.prod(case.state)

    def data(*shape):
        return laid(torch.randn(case.batch, *shape, dtype=case.dtype))

    def made(make):
        torch.manual_seed(case.seed)
        return make().to(case.dtype)

    x0, goal, target = data(*state), data(*state), data(*([3] if case.closing else state))
    labels = laid(torch.randint(3 if case.closing else state[0], (case.batch,)))
    by_hand = lambda x, *q: per_sample(x.sin()).mean() + sum(p.exp().sum() for p in q)  # noqa: E731
    terminal, Phi = {
        "least squares": (ocp.LeastSquares(target, 0.7), lambda y, q, r: 0.35 * miss(y, target[r])),
        "cross entropy": (ocp.CrossEntropy(labels), lambda y, q, r: F.cross_entropy(y, labels[r])),
        "function": (by_hand, lambda y, q, r: by_hand(y, *[q][: len(q)])),
        "none": (None, lambda y, q, r: 0.0),
    }[case.terminal]
    L = RUNNING[case.running]
    pieces = SimpleNamespace(Phi=Phi, X0=lambda q, r: x0[r].double(), L=lambda t, x, u, r: L(t, x, u) if L else 0.0)
    others = {"control_cost": case.control_cost, "bounds": BOUNDS[case.bounds], "running_cost": L}
    if case.running == "quadratic":
        others["running_cost"] = ocp.QuadraticRunning(0.6, 0.8, goal)
        pieces.L = lambda t, x, u, r: 0.3 * miss(x, goal[r]) + 0.4 * u.square().sum()
    horizon = 0.2 * case.steps if case.scheme in IMPLICIT else 1.3
    if case.dynamics not in LAYERS | MODULES:
        pieces.f, start, m, s = FUNCTIONS.get(name, Written()), x0, SIZES.get(name, ("", 2))[1], 0
        if case.opening == "function":
            s, start = 2, lambda q: x0.to(q) + q[0] * x0.to(q).sin() + q[1]
            pieces.X0 = lambda q, r: start(q)
        # A start gives the parameters of the initial state their type.
        others["start"] = ocp.Control(ocp.ControlSpace(ocp.TimeGrid(horizon, 1), m, s), x0.new_zeros(m + s))
        sizes = {"horizon": horizon, "control_size": m, "parameters": s}
        return ocp.ControlProblem(pieces.f, start, terminal, **sizes, **others), pieces
    inputs, closing = x0, (lambda: nn.Sequential(nn.Flatten(), nn.Linear(n, 3))) if case.closing else nn.Identity
    ends = {
        "none": nn.Identity,
        "linear": lambda: nn.Sequential(nn.Linear(4, n), nn.Unflatten(1, state)),
        "deep": lambda: nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, n), nn.Unflatten(1, state)),
        "embedding": lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, n), nn.Unflatten(1, state)),
    }
    if case.opening != "none":
        inputs = laid(torch.randint(5, (case.batch, 2))) if case.opening == "embedding" else data(4)
    (first, s), (last, _) = as_function(made(ends[case.opening])), as_function(made(closing))
    pieces.X0 = lambda q, r: first(q[:s], inputs[r].double() if inputs.is_floating_point() else inputs[r])
    pieces.Phi = lambda x, q, r: Phi(last(q[s:], x), q, r)
    if name in LAYERS:
        block, pieces.f = LAYERS[name]
    else:
        block, run = made(MODULES[name][1]), as_function(made(MODULES[name][1]))[0]
        pieces.f = lambda t, x, u: run(u, x)
    parts = block, made(ends[case.opening]), made(closing)
    return replace(ocp.residual_network(inputs, terminal, *parts, horizon), **others), pieces


def miss(x, target):
    return per_sample((x - target.double()).square()).mean()


def reference(case, pieces, step, space, flat, direction=None, rows=None):
    """All numbers by autograd through a plain loop in double precision, on some rows of the samples."""
    rows, h = torch.arange(case.batch) if rows is None else rows, space.grid.h
    flat = flat.double().clone().requires_grad_()
    path, q = space.path(flat), space.parameters(flat)
    with sdpa_kernel(SDPBackend.MATH):
        x, value = pieces.X0(q, rows), 0.0 * flat.sum()
        for k, u in enumerate(path):
            x, cost = step(lambda t, x, u=u: (pieces.f(t, x, u), pieces.L(t, x, u, rows)), k * h, h, x)
            value = value + cost
        value = value + pieces.Phi(x, q, rows)
        if case.control_cost:
            value = value + 0.05 * (h * path.square().sum() + q.square().sum())
        if len(case.control_cost) > 1:
            value = value + 0.05 * path.diff(dim=0).square().sum() / h
        (p,) = torch.autograd.grad(value, flat, create_graph=direction is not None)
        found = {"value": value, "derivative": p, "final state": x}
        if direction is not None:
            found["slope"] = p @ direction.double() + 0.0 * flat.sum()
            (found["Hessian product"],) = torch.autograd.grad(found["slope"], flat)
    return {what: number.detach() for what, number in found.items()}


#: What rounding may amount to, relative to the largest entry: for values and derivatives, and for second derivatives.
ROUNDING = {torch.float64: (1e-9, 1e-7), torch.float32: (2e-3, 2e-2)}


def assert_equal(case, what, found, expected):
    tolerance, found = ROUNDING[case.dtype][what == "Hessian product"], torch.as_tensor(found, dtype=torch.float64)
    assert found.shape == expected[what].shape, f"{what}: {case}"
    error, size = (float(a.abs().max()) for a in (found - expected[what], expected[what]))
    assert error <= tolerance * (1 + size), f"{what} differs by {error:.3g} of {size:.3g}: {case}"


@dataclass(frozen=True)
class Part:
    """One of several processes, which leaves the sum to the caller."""

    rank: int
    size: int

    def weighted_sum(self, share, *tensors):
        return tuple(share * tensor for tensor in tensors)


def check(case, steps):
    """Compare all that an objective gives, asked in the order of the case, with the reference."""
    problem, pieces = build(case)
    objective = ocp.discretize(problem, case.steps, case.scheme, case.schedule)
    start = objective.discretization.start().flat
    laid = LAYOUTS["strided" if case.layout in ("transposed", "strided") else "contiguous"]
    u, d = (laid(a * torch.randn_like(start) + b) for a, b in ((0.3, start), (1.0, 0.0)))
    by_autograd = partial(reference, case, pieces, steps[case.scheme])
    expected, point = by_autograd(objective.space, u, d), objective.at(u)
    acts = {
        "value": lambda: point.value,
        "derivative": lambda: point.derivative,
        "final state": lambda: point.final_state,
        "Hessian product": lambda: point.hessian_product(d),
        "slope": lambda: objective.directional(u, d),
    }
    for act in case.order:
        if act == "elsewhere":
            objective.derivative(start)
        else:
            assert_equal(case, act, acts[act](), expected)
    if case.then == "processes":
        parts = [ReducedObjective(objective.discretization, None, case.schedule, Part(k, 3)) for k in range(3)]
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(lambda part: part.value_and_derivative(u), parts))
        found = [sum(shares) for shares in zip(*found, strict=True)]
    elif case.then == "rows":
        rows = torch.randint(case.batch, (2,))
        found, expected = objective.take(rows).value_and_derivative(u), by_autograd(objective.space, u, rows=rows)
    elif case.then == "grid":
        finer, path = objective.on(2 * case.steps), objective.space.path(u).repeat_interleave(2, dim=0)
        v = finer.space.join(path, objective.space.parameters(u))
        found, expected = finer.value_and_derivative(v), by_autograd(finer.space, v)
    else:
        return check_method(case, problem, by_autograd)
    assert_equal(case, "value", found[0], expected)
    assert_equal(case, "derivative", found[1], expected)


def check_method(case, problem, by_autograd):
    """After one or two iterations, recorded numbers are those of a fresh evaluation at the recorded controls."""
    seen = []
    result = ocp.minimize(
        problem,
        case.steps,
        METHODS[case.then],
        integrator=case.scheme,
        schedule=case.schedule,
        stop=ocp.Stop(max_iterations=1 + case.seed % 2),
        watch=ocp.Watch(callback=lambda record, control: seen.append((record, control)), progress=False),
    )
    assert result.status is not ocp.Status.WRONG_DERIVATIVE, f"{result.message}: {case}"
    on_finest = [(record, control) for record, control in seen if record.steps == case.steps]
    for record, control in [*on_finest, (result, result.control)]:
        if control.flat.abs().max() < 4:  # implicit equations have one solution as long as h |f_x| < 1
            expected = by_autograd(control.space, control.flat)
            assert_equal(case, "value", record.value, expected)
            if case.bounds == "none":
                expected["norm"] = torch.tensor(control.space.dual_norm(expected["derivative"]), dtype=torch.float64)
                assert_equal(case, "norm", record.derivative_norm, expected)


def compare(definitions, examples, **options):
    """Run the comparison on random problems, the same at every call if derandomized."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck], **options)
    @given(cases())
    def run(case):
        check(case, definitions)

    run()


@pytest.mark.filterwarnings("ignore")  # of modules that people have and torch deprecates
def test_a_few_random_problems_agree_with_autograd(definitions):
    compare(definitions, 30, derandomize=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_random_problems_agree_with_autograd(definitions, request):
    compare(definitions, request.config.option.random_problems)
