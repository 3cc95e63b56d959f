"""All steps at once, against one step at a time by definition, differentiated by autograd."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from ocp.adjoint import rows as on_rows
from ocp.adjoint.all_steps import RecordedSteps, RungeKuttaSteps
from ocp.adjoint.rows import Rows, pointwise
from ocp.integrators.integrator import INTEGRATORS
from ocp.integrators.tableaus import BACKWARD_EULER, EULER, RK4, TABLEAUS

N, n, m, h = 3, 2, 2, 0.3


def f(t, x, v):
    return torch.stack((x[1] * v[0], v[1] * torch.cos(x[0]) - t * x[1] ** 3))


def L(t, x, v):
    return torch.exp(x[0] * v[1]) * (1 + t) + v[0] ** 2 * x[1]


def rows(f=f, L=L):
    return Rows(
        pointwise(
            lambda t, x, v: torch.cat((f(t, x, v), L(t, x, v)[None])), torch.zeros(n).double(), torch.zeros(m).double()
        ),
        n + 1,
    )


def by_definition(step, t, z):
    """The end of one step and its cost, as a vector."""
    F = lambda t, x: (f(t, x[0], z[n:])[None], L(t, x[0], z[n:]))  # noqa: E731
    end, cost = step(F, float(t), h, z[None, :n])
    return torch.cat((end[0], cost.view(1)))


def check(steps, step, rand):
    t, x, v, w = torch.tensor([0.0, 0.3, 0.6]).double(), rand(N, n), rand(N, m), rand(N, n + 1)
    ends, taken = steps.take(t, x, v)
    J, H = steps.differentiate(t, taken, v, w)
    for k, z in enumerate(torch.cat((x, v), 1)):
        one = lambda z, k=k: by_definition(step, t[k], z)  # noqa: E731
        torch.testing.assert_close(ends[k], one(z), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(J[..., k], jacobian(one, z), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(H[..., k], hessian(lambda z, k=k: w[k] @ one(z), z), rtol=1e-9, atol=1e-10)  # noqa: B023


@pytest.mark.parametrize("tableau", TABLEAUS, ids=lambda tableau: tableau.name)
def test_ends_costs_and_derivatives_are_those_of_single_steps(tableau, definitions, rand):
    check(RungeKuttaSteps(rows(), tableau, h), definitions[tableau.name], rand)


def test_steps_of_any_integrator_can_be_recorded_as_a_whole(definitions, rand):
    def step(t, x, v):
        F = lambda t, x: (f(t, x[0], v)[None], L(t, x[0], v))  # noqa: E731
        end, cost = definitions["verlet"](F, t, h, x[None])
        return torch.cat((end[0], cost.view(1)))

    check(
        RecordedSteps(Rows(pointwise(step, torch.zeros(n).double(), torch.zeros(m).double()), n + 1)),
        definitions["verlet"],
        rand,
    )


@pytest.mark.parametrize("tableau", [EULER, RK4, BACKWARD_EULER], ids=lambda tableau: tableau.name)
def test_the_number_of_rows_on_a_tape_makes_no_difference(tableau, rand, monkeypatch):
    t, v, w = torch.linspace(0, 1, 7).double(), rand(7, m), rand(7, n + 1)
    steps = RungeKuttaSteps(rows(), tableau, h)
    _, taken = steps.take(t, rand(7, n), v)
    whole = steps.differentiate(t, taken, v, w)
    monkeypatch.setattr(on_rows, "TAPE_ROWS", 1)
    for a, b in zip(whole, steps.differentiate(t, taken, v, w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_an_implicit_step_without_a_solution_is_not_a_number(rand):
    """x = r + h (x^2 + 1) has no real solution for h = 1 and r > -3/4."""
    steps = RungeKuttaSteps(rows(lambda t, x, v: x**2 + 1), BACKWARD_EULER, 1.0)
    x = torch.tensor([[1.0, 1.0], [-5.0, -5.0]]).double()
    ends, _ = steps.take(torch.zeros(2).double(), x, rand(2, m))
    assert bool(ends[0, :n].isnan().all())
    assert bool(ends[1].isfinite().all())


def test_stiff_implicit_steps_are_solved_to_rounding(rand):
    steps = RungeKuttaSteps(rows(lambda t, x, v: -1e8 * (x - v), lambda t, x, v: x.sum()), BACKWARD_EULER, h)
    x, v = rand(N, n), rand(N, m)
    ends, _ = steps.take(torch.zeros(N).double(), x, v)
    torch.testing.assert_close(ends[:, :n], (x + 1e8 * h * v) / (1 + 1e8 * h), rtol=1e-14, atol=0)


def test_functions_without_curvature_or_dependence_have_zero_derivatives():
    t, x, v, w = torch.zeros(4), torch.ones(4, 2), torch.ones(4, 1), torch.ones(4, 2)
    for function in (lambda t, x, v: 0 * x + 1, lambda t, x, v: torch.ones(len(x), 2)):
        recorded = Rows(function, 2).record(t, x, v)
        assert recorded.jacobian().shape == (2, 3, 4)
        assert not recorded.jacobian().any()
        assert not recorded.hessian(w).any()


class Cube(torch.autograd.Function):
    """x^3 without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, p):
        if torch._C._functorch.is_batchedtensor(p):
            raise RuntimeError("not for vmap")
        return 3 * ctx.saved_tensors[0] ** 2 * p


def test_derivatives_that_vmap_cannot_map_are_taken_one_by_one():
    recorded = Rows(lambda t, x, v: Cube.apply(x), 2).record(
        torch.zeros(1), torch.tensor([[1.0, 2.0]]), torch.ones(1, 0)
    )
    assert recorded.jacobian()[..., 0].tolist() == [[3.0, 0.0], [0.0, 12.0]]
    assert recorded.hessian(torch.ones(1, 2))[..., 0].tolist() == [[6.0, 0.0], [0.0, 12.0]]


def test_the_steps_are_those_of_the_integrators(rand):
    """They share tableaus, and the rule that slopes of implicit stages come from the stage states."""
    from ocp.problem.control_problem import ControlProblem

    problem = ControlProblem(
        lambda t, x, u: f(t, x[0], u)[None], rand(1, n), running_cost=lambda t, x, u: L(t, x[0], u), control_size=m
    )
    x, v = rand(1, n), rand(1, m)
    for tableau in TABLEAUS:
        ends, _ = RungeKuttaSteps(rows(), tableau, h).take(torch.zeros(1).double(), x, v)
        end, cost = INTEGRATORS[tableau.name].step(problem, 0.0, h, x, v[0])
        torch.testing.assert_close(ends[0], torch.cat((end[0], cost.view(1))), rtol=1e-12, atol=1e-13)
