"""Parameters in every function of a problem, and a free final time, against autograd through a loop; names."""

import math

import pytest
import torch
from torch import nn

import ocp
from ocp import ControlProblem, Parameter, discretize, verify

STEPS = 6
X0 = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)
MASS, SPRING = 1.3, torch.tensor([0.7, 0.2], dtype=torch.float64)


def swing(t, x, u, q):
    push = u[0] * torch.cos(torch.as_tensor(t, dtype=x.dtype))
    force = push - q.spring[0] * torch.sin(x[:, 0]) - q["spring"][1] * x[:, 1]
    return torch.stack((x[:, 1], force / q["mass"]), dim=1)


def effort(t, x, u, q):
    return 0.5 * u.square().sum() * q["mass"] + x.square().sum() * (1 + torch.as_tensor(t, dtype=x.dtype)) / len(x)


def at_end(x, q):
    return (x - q["spring"]).square().sum() + q["horizon"] if "horizon" in q else (x - q["spring"]).square().sum()


def first(q):
    return X0 * q["mass"]


def problem(**changes):
    pieces = {
        "dynamics": swing,
        "initial_state": first,
        "terminal_cost": at_end,
        "running_cost": effort,
        "horizon": 1.5,
        "control_size": 1,
        "parameters": {"mass": torch.tensor(MASS, dtype=torch.float64), "spring": SPRING},
    }
    return ControlProblem(**{**pieces, **changes})


def step(scheme, f, L, t, h, x, u):
    """One step of Euler or of the midpoint rule, with the running cost."""
    if scheme == "euler":
        return x + h * f(t, x, u), h * L(t, x, u)
    middle = x + h / 2 * f(t, x, u)
    return x + h * f(t + h / 2, middle, u), h * L(t + h / 2, middle, u)


def reference(flat, scheme, free):
    u, mass, spring = flat[:STEPS].view(STEPS, 1), flat[STEPS], flat[STEPS + 1 : STEPS + 3]
    T = flat[-1] if free else torch.tensor(1.5, dtype=torch.float64)
    q = ocp.problem.parameters.Named(mass=mass, spring=spring, **({"horizon": T} if free else {}))
    x, cost, h = first(q), 0.0, T / STEPS
    for k in range(STEPS):
        x, more = step(scheme, lambda t, x, u: swing(t, x, u, q), lambda t, x, u: effort(t, x, u, q), k * h, h, x, u[k])
        cost = cost + more
    return cost + at_end(x, q)


@pytest.mark.parametrize("scheme", ["euler", "midpoint"])
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_value_derivative_and_hessian_products_are_those_of_autograd_through_the_loop(scheme, free, rand):
    horizon = Parameter(torch.tensor(1.2, dtype=torch.float64), lower=0.1) if free else 1.5
    objective = discretize(problem(horizon=horizon), STEPS, scheme)
    flat = torch.cat((rand(STEPS), objective.space.parameters(objective.discretization.start().flat)))
    assert len(flat) == objective.space.dimension == STEPS + 3 + free
    u, direction = flat.clone().requires_grad_(), rand(len(flat))
    expected = reference(u, scheme, free)
    (derivative,) = torch.autograd.grad(expected, u, create_graph=True)
    (product,) = torch.autograd.grad((derivative * direction).sum(), u)
    point = objective.at(flat)
    assert point.value == pytest.approx(float(expected.detach()), rel=1e-13)
    torch.testing.assert_close(point.derivative, derivative.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(point.hessian_product(direction), product, rtol=1e-11, atol=1e-12)
    slope = float(torch.dot(derivative.detach(), direction))
    assert objective.directional(flat, direction) == pytest.approx(slope, rel=1e-11)


@pytest.mark.parametrize("scheme", ["implicit_midpoint", "rk4"])
@pytest.mark.parametrize("schedule", [ocp.StoreAll(), ocp.Binomial(2)], ids=["all", "binomial"])
def test_verify_passes_with_parameters_and_a_free_horizon(scheme, schedule):
    horizon = Parameter(torch.tensor(1.2, dtype=torch.float64), lower=0.1)
    report = verify(discretize(problem(horizon=horizon), 8, scheme, schedule))
    assert report.passed, report
    assert not report.skipped


class Forced:
    """x' = u - x with derivatives of its own."""

    control_size = 2

    def __call__(self, t, x, u):
        return u - x

    def vjp(self, t, x, u, p):
        return -p, p.sum(0)

    def jvp(self, t, x, u, dx, du):
        return (du - dx).expand_as(x)

    def hvp(self, t, x, u, p, dx, du):
        return torch.zeros_like(x), torch.zeros_like(u)


@pytest.mark.parametrize(
    "dynamics", [Forced(), nn.Linear(2, 2).double(), lambda t, x, u: u - x], ids=["own", "module", "function"]
)
def test_pieces_that_do_not_use_parameters_keep_their_short_signature(dynamics):
    size = 2 if callable(dynamics) and not isinstance(dynamics, nn.Module | Forced) else None
    changes = {"terminal_cost": lambda x: x.square().sum(), "initial_state": X0, "control_size": size}
    report = verify(
        discretize(problem(dynamics=dynamics, **changes, running_cost=lambda t, x, u, q: q.mass * u.sum()), 8)
    )
    assert report.passed, report


def test_own_derivatives_do_not_allow_for_a_free_horizon():
    with pytest.raises(ValueError, match=r"dynamics: expected a function with a free horizon, .* got Forced"):
        problem(dynamics=Forced(), control_size=None, horizon=Parameter(1.0))


def test_a_free_horizon_is_the_time_of_trajectories():
    horizon = Parameter(torch.tensor(2.0, dtype=torch.float64))
    objective = discretize(problem(horizon=horizon), 4)
    torch.testing.assert_close(
        objective.trajectory(objective.discretization.start()).t, torch.linspace(0, 2, 5, dtype=torch.float64)
    )


def test_parameters_start_at_and_stay_within_their_bounds():
    bounded = {"mass": Parameter(torch.tensor(1.0, dtype=torch.float64), lower=0.5, upper=2.0), "spring": SPRING}
    objective = discretize(problem(parameters=bounded), 4)
    lower, upper = (objective.space.parameters(side).tolist() for side in (objective.box.lower, objective.box.upper))
    assert lower == [0.5, -torch.inf, -torch.inf]
    assert upper == [2.0, torch.inf, torch.inf]
    result = ocp.minimize(problem(parameters=bounded), 4)
    assert result.success
    mass = float(result.control.parameters[0])
    assert 0.5 <= mass <= 2.0
    assert result.about["parameters"] == {"mass": mass, "spring": result.control.parameters[1:].tolist()}
    assert f"mass: {mass:.8g}" in str(result)


def test_only_parameters_are_found_without_a_control():
    """x' = -k x with x(1) = 1/2 has k = log 2."""
    decay = ControlProblem(
        lambda t, x, u, q: -q["k"] * x,
        torch.ones(1, 1, dtype=torch.float64),
        lambda x: (x - 0.5).square().sum(),
        control_size=0,
        parameters={"k": 0.1},
    )
    result = ocp.minimize(decay, 16, integrator="rk4", stop=ocp.Stop(tolerance=1e-8))
    assert result.success
    assert float(result.control.parameters) == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"parameters": {"2m": 1.0}}, ValueError, r"parameters: expected names that are identifiers .* got '2m'"),
        ({"parameters": {"horizon": 1.0}}, ValueError, r"parameters: expected names .* other than 'horizon'"),
        ({"parameters": {"mass": "1"}}, TypeError, r"parameters: mass: start: expected a number or a tensor, got str"),
        ({"parameters": [1.0]}, TypeError, r"parameters: expected a mapping from names to starts, .* got \[1.0\]"),
        ({"horizon": Parameter(-1.0)}, ValueError, r"horizon: expected a Parameter whose start is a number > 0"),
        ({"horizon": Parameter(1.0, -1.0)}, ValueError, r"horizon: expected a lower bound >= 0, got -1"),
        (
            {"horizon": Parameter(1.0), "control_cost": ocp.Tikhonov(1.0)},
            ValueError,
            "control_cost: expected none with",
        ),
        ({"parameters": 3, "horizon": Parameter(1.0)}, ValueError, r"parameters: expected a mapping .* free horizon"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        problem(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 2.0, 1.0), r"lower, upper: expected lower <= upper, got 2.0 and 1.0"),
        ((torch.ones(2), torch.zeros(3)), r"lower: expected a number or the shape \(2,\), got \(3,\)"),
        ((float("nan"),), "start: expected finite numbers"),
    ],
)
def test_a_parameter_whose_bounds_do_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parameter(*arguments)


@pytest.mark.parametrize("look_up", [lambda q: q.length, lambda q: q["length"]], ids=["attribute", "key"])
def test_a_name_that_is_unknown_is_refused_with_those_that_are_known(look_up):
    with pytest.raises(ValueError, match=r"dynamics: .* expected one of the parameters mass, spring, got 'length'"):
        discretize(problem(dynamics=lambda t, x, u, q: x * look_up(q)), 4)


@pytest.mark.parametrize(
    ("given", "hinted"),
    [
        ({"running_cost": lambda t, x, u: math.sin(t) * u.square().sum()}, True),
        ({"path_constraint": lambda t, x, u: u - float(t)}, True),
        ({"running_cost": lambda t, x, u: u.detach().square().sum()}, False),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_a_free_time_that_becomes_a_number_is_refused_with_what_to_write(given, hinted):
    with pytest.raises(ValueError, match=r"operations that autograd can follow, got the derivative .* by u") as refused:
        discretize(problem(horizon=Parameter(torch.tensor(1.5, dtype=torch.float64)), **given), 4)
    hint = "with a free final time t is a tensor: write torch.sin(t), not math.sin(t) or float(t)"
    assert (hint in str(refused.value)) == hinted


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"path_constraint": 1.0}, TypeError, r"path_constraint: expected a function, got float"),
        ({"path_constraint": lambda x, u, t: x}, ValueError, r"path_constraint: expected the arguments \(t, x, u\)"),
        ({"path_constraint": lambda t, x, u: 1.0}, ValueError, r"path_constraint: expected a tensor, got float"),
        (
            {"terminal_equality": lambda x: x[:, :0]},
            ValueError,
            r"terminal_equality: expected one or more real numbers",
        ),
        (
            {"terminal_equality": lambda x: x.detach()},
            ValueError,
            r"terminal_equality: expected operations that autogr",
        ),
        (
            {"path_constraint": lambda t, x, u, q: x * q.mass.item()},
            ValueError,
            r"path_constraint: expected operations that autograd can follow",
        ),
    ],
)
def test_constraints_that_do_not_fit_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        discretize(problem(**given), 4)


def test_a_method_without_constraints_is_refused_for_a_problem_with_some():
    with pytest.raises(ValueError, match=r"^method: expected one that keeps constraints, .* got LBFGS$"):
        ocp.minimize(problem(terminal_equality=lambda x: x), 4, ocp.LBFGS())


def test_constraints_are_vectors_of_all_samples():
    c = lambda t, x, u, q: torch.stack((x[:, 0] - q.mass, u[0] - x[:, 1]), dim=1)  # noqa: E731
    constraints = problem(path_constraint=c, terminal_inequality=lambda x: x).constraints
    v = torch.tensor([2.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert constraints.path(0.0, X0, v).tolist() == pytest.approx([-0.2, 2.2, 0.5, 1.5])
    assert constraints.inequality(X0, v[1:]).tolist() == X0.flatten().tolist()
    assert constraints.equality is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"x": ["angle"]}, r"names: expected 2 for x, one for each number in the state, got \('angle',\)"),
        ({"u": ["push", "pull"]}, r"names: expected 1 for u, .* got \['push', 'pull'\]"),
        ({"u": "u"}, "names: expected a sequence of names for u, got 'u'"),
        ({"y": ["angle"]}, "names: expected a mapping with names for x and u, got {'y'"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        discretize(problem(names=names), 4)


def test_tables_have_the_names_of_states_and_controls(tmp_path):
    objective = discretize(problem(initial_state=X0[:1], names={"x": ["angle", "speed"], "u": ["push"]}), 4)
    table = objective.trajectory(objective.discretization.start()).save(tmp_path / "table.csv").read_text()
    assert table.splitlines()[0] == "t,push,angle,speed,p_angle,p_speed"


def test_numbers_keep_the_precision_of_the_problem():
    bounded = problem(parameters={"mass": Parameter(0.3, lower=0.1), "spring": SPRING}, initial_state=X0)
    objective = discretize(bounded, 4)
    assert float(objective.discretization.start().parameters[0]) == 0.3
    assert float(objective.space.parameters(objective.box.lower)[0]) == 0.1
