"""Limited-memory BFGS: its directions are those of the dense update, and its pairs go along to finer grids."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ocp import CONSTANT, LBFGS, LINEAR, Armijo, ControlSpace, State, Status, StrongWolfe, TimeGrid, Transfer
from ocp.space.bounds import Box

#: Three steps of length 0.1 and two parameters.
SPACE = ControlSpace(TimeGrid(0.3, 3), 1, 2)
ZERO = torch.zeros(5, dtype=torch.float64)


@dataclass
class Remembering:
    """A line search that keeps the directions it was given."""

    search: StrongWolfe = field(default_factory=StrongWolfe)
    directions: list[Tensor] = field(default_factory=list)

    def __call__(self, start, direction, step):
        self.directions.append(direction)
        return self.search(start, direction, step)


@pytest.fixture
def convex(rand, objective_of):
    root, b = rand(5, 5), rand(5)
    A = root @ root.T + torch.eye(5).double()
    return objective_of(lambda u: 0.5 * u @ A @ u - b @ u, SPACE)


def dense_inverse(weight, pairs):
    """Inverse Hessian of BFGS from gamma M^{-1} on, as products of matrices: Nocedal & Wright (2006), equation 6.17."""
    one, (s, y) = torch.eye(len(weight), dtype=torch.float64), pairs[-1]
    H = torch.diag(1 / weight) * (s @ y) / (y @ (y / weight))
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = one - rho * torch.outer(s, y)
        H = left @ H @ left.T + rho * torch.outer(s, s)
    return H


@pytest.mark.parametrize("pairs", [1, 2, 10])
def test_the_directions_are_those_of_the_dense_update_in_the_weighted_metric(convex, pairs):
    search = Remembering()
    method = LBFGS(pairs, search)
    states = [method.init(convex, convex.at(ZERO))]
    for _ in range(4):
        states.append(method.step(convex, states[-1]))
    weight = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0], dtype=torch.float64)
    controls = [state.control for state in states[:4]]
    derivatives = [convex.derivative(u) for u in controls]
    changes = [(v - u, e - d) for (u, v), (d, e) in zip(pairwise(controls), pairwise(derivatives), strict=True)]
    expected = [-derivatives[0] / weight] + [
        -dense_inverse(weight, changes[max(0, k - pairs) : k]) @ derivatives[k] for k in (1, 2, 3)
    ]
    torch.testing.assert_close(torch.stack(search.directions), torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("derivative", "pushed"),
    [((0.1, -1.0, 0.3, 0.0, 0.2), False), ((-0.1, -1.0, 0.3, 0.0, 0.2), True)],
    ids=["by its derivative", "by the model"],
)
def test_an_entry_held_at_its_bound_takes_no_part_in_the_model(derivative, pushed, objective_of):
    """Its derivative leads out of the box, or it leads inside and the model pushes it out all the same."""
    weight = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0], dtype=torch.float64)
    A = torch.diag(weight)
    A[0, 1] = A[1, 0] = 0.09
    pairs = [(s, A @ s) for s in torch.eye(5, dtype=torch.float64)[:2] + 0.1]
    d, search = torch.tensor(derivative, dtype=torch.float64), Remembering()
    objective = objective_of(lambda u: d @ u, SPACE, Box(ZERO - torch.arange(5).clamp(max=1), ZERO + 1))
    memory = tuple((s, y, float(s @ y), SPACE.dual_norm(y)) for s, y in pairs)
    LBFGS(search=search).step(objective, State(objective.at(ZERO), memory))
    free = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    expected = -dense_inverse(weight, [(free * s, free * y) for s, y in pairs]) @ (free * d)
    torch.testing.assert_close(search.directions[0], expected, rtol=1e-9, atol=1e-12)
    assert (d[0] < 0 and (dense_inverse(weight, pairs) @ d)[0] > 0) == pushed


def test_no_more_pairs_are_kept_than_asked_for(convex, run):
    kept = [len(run(LBFGS(3), convex.at(ZERO), k).memory) for k in range(6)]
    assert kept == [0, 1, 2, 3, 3, 3]


def test_no_pair_of_negative_curvature_is_kept(objective_of, run):
    concave = objective_of(lambda u: -0.5 * u.square().sum() - u.sum(), SPACE)
    state = run(LBFGS(search=Armijo()), concave.at(ZERO), 3)
    assert state.memory == ()
    assert state.status is Status.RUNNING


@pytest.mark.parametrize("bad", [0, -1])
def test_a_number_of_pairs_below_one_is_refused(bad):
    with pytest.raises(ValueError, match="pairs: expected"):
        LBFGS(pairs=bad)


def test_pairs_keep_their_products_on_the_way_to_a_finer_grid(rand):
    fine, coarse = (ControlSpace(TimeGrid(1.5, n), 2, 2) for n in (8, 4))
    s, y = rand(coarse.dimension), rand(coarse.dimension)
    y = y + 5 * coarse.dual(s)
    ((fine_s, fine_y, *_),) = LBFGS().transport(((s, y),), Transfer(fine, coarse, CONSTANT))
    assert float(fine_s @ fine_y) == pytest.approx(float(s @ y), rel=1e-14)
    assert fine.norm(fine_s) == pytest.approx(coarse.norm(s), rel=1e-14)
    assert fine.dual_norm(fine_y) == pytest.approx(coarse.dual_norm(y), rel=1e-14)


@pytest.mark.parametrize(("interpolation", "kept"), [(CONSTANT, 1), (LINEAR, 0)])
def test_a_pair_that_loses_its_curvature_on_the_way_is_dropped(interpolation, kept):
    """Linear prolongation strengthens the difference of two steps against their mean: the product turns negative."""
    fine, coarse = (ControlSpace(TimeGrid(1.0, n), 1) for n in (4, 2))
    s, y = torch.tensor([2.1, 0.1], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert s @ y > 0
    assert len(LBFGS().transport(((s, y),), Transfer(fine, coarse, interpolation))) == kept
