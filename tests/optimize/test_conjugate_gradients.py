"""Nonlinear conjugate gradients: with exact line searches on a quadratic function they are the linear ones."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from ocp import ControlSpace, NonlinearCG, State, TimeGrid
from ocp.optimize.line_search import Trial
from ocp.space.bounds import Box

#: Three steps of length 0.1 and two parameters.
SPACE = ControlSpace(TimeGrid(0.3, 3), 1, 2)
ZERO = torch.zeros(5, dtype=torch.float64)


@dataclass
class Exact:
    """A line search to the minimum of a quadratic function with the Hessian A; it keeps the directions."""

    A: Tensor
    directions: list[Tensor] = field(default_factory=list)

    def __call__(self, start, direction, step):
        self.directions.append(direction)
        length = float(-torch.dot(start.derivative, direction) / torch.dot(direction, self.A @ direction))
        return Trial(length, start.objective.at(torch.add(start.control, direction, alpha=length)))


@pytest.fixture
def hessian(rand):
    root = rand(5, 5)
    return root @ root.T + torch.eye(5).double()


def test_directions_are_conjugate_and_as_many_steps_as_dimensions_reach_the_minimum(hessian, rand, objective_of, run):
    b, search = rand(5), Exact(hessian)
    objective = objective_of(lambda u: 0.5 * u @ hessian @ u - b @ u, SPACE)
    state = run(NonlinearCG(search), objective.at(ZERO), 5)
    torch.testing.assert_close(state.control, torch.linalg.solve(hessian, b), rtol=1e-9, atol=1e-9)
    D = torch.stack(search.directions)
    products = D @ hessian @ D.T
    scale = products.diagonal().sqrt()
    torch.testing.assert_close(products / torch.outer(scale, scale), torch.eye(5).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(D[0], SPACE.gradient(b))


def test_where_beta_is_negative_the_method_restarts_with_steepest_descent(hessian, rand, objective_of):
    b, search = rand(5), Exact(hessian)
    point = objective_of(lambda u: 0.5 * u @ hessian @ u - b @ u, SPACE).at(ZERO)
    d = point.derivative
    NonlinearCG(search).step(point.objective, State(point, (2 * d, -SPACE.gradient(d) + 0.1 * rand(5), -1.0)))
    assert torch.equal(search.directions[0], -SPACE.gradient(d))


def test_an_entry_held_at_its_bound_stays_whatever_the_last_direction_was(hessian, rand, objective_of):
    b, search = torch.ones(5, dtype=torch.float64), Exact(hessian)
    box = Box(torch.full_like(ZERO, -9.0), torch.tensor([0.0, 9.0, 9.0, 9.0, 9.0], dtype=torch.float64))
    point = objective_of(lambda u: 0.5 * u @ hessian @ u - b @ u, SPACE, box).at(ZERO)
    old, direction = 0.5 * point.derivative, torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    NonlinearCG(search).step(point.objective, State(point, (old, direction, -1.0)))
    assert search.directions[0][0] == 0
    assert not torch.equal(search.directions[0][1:], -SPACE.gradient(point.derivative)[1:])
