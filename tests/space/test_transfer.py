"""Between two grids."""

import re
from dataclasses import dataclass
from math import inf

import pytest
import torch

from ocp.space.bounds import Box
from ocp.space.control import ControlSpace
from ocp.space.grid import TimeGrid
from ocp.space.transfer import CONSTANT, LINEAR, Transfer, coarse_grids, depth

HORIZON = 2.0


def space(steps):
    return ControlSpace(TimeGrid(HORIZON, steps), control_size=3, parameter_size=2)


@pytest.fixture(
    params=[(2, 4), (3, 4), (5, 4), (2, 2), (5, 2), (3, 1)], ids=lambda pair: f"{pair[0]} to 1, N={pair[1]}"
)
def grids(request):
    """A fine and a coarse space."""
    factor, steps = request.param
    return space(factor * steps), space(steps)


@pytest.fixture(params=[CONSTANT, LINEAR])
def transfer(grids, request):
    return Transfer(*grids, request.param)


@pytest.fixture
def constant(grids):
    return Transfer(*grids, CONSTANT)


def matrix(f, columns):
    """The matrix of a linear map."""
    return torch.stack([f(e) for e in torch.eye(columns, dtype=torch.float64)], dim=1)


def test_restriction_of_derivatives_is_the_transpose_of_prolongation(transfer):
    P = matrix(transfer.prolong, transfer.coarse.dimension)
    R = matrix(transfer.restrict_dual, transfer.fine.dimension)
    assert torch.equal(R, P.T)


def test_constant_prolongation_repeats_the_value_of_a_step(constant, rand):
    v = rand(constant.coarse.dimension)
    factor = constant.fine.grid.steps // constant.coarse.grid.steps
    expected = constant.coarse.path(v).repeat_interleave(factor, dim=0)
    assert torch.equal(constant.fine.path(constant.prolong(v)), expected)


def test_prolongation_keeps_constant_paths(transfer):
    v = torch.full((transfer.coarse.dimension,), 3.0, dtype=torch.float64)
    fine = transfer.prolong(v)
    torch.testing.assert_close(fine, torch.full_like(fine, 3.0), rtol=1e-15, atol=0)


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_linear_prolongation_reproduces_linear_paths_up_to_both_ends(factor, steps, rand):
    fine, coarse = space(factor * steps), space(steps)
    slope, value, q = rand(3), rand(3), rand(2)

    def line(s):
        t = torch.tensor(s.grid.midpoints, dtype=torch.float64)
        return s.join(torch.outer(t, slope) + value, q)

    prolonged = Transfer(fine, coarse, LINEAR).prolong(line(coarse))
    torch.testing.assert_close(prolonged, line(fine), rtol=1e-13, atol=1e-13)


def test_restriction_is_the_mean_over_a_coarse_step(constant, rand):
    u = rand(constant.fine.dimension)
    n, factor = constant.coarse.grid.steps, constant.fine.grid.steps // constant.coarse.grid.steps
    expected = constant.fine.path(u).view(n, factor, 3).sum(1) / factor
    torch.testing.assert_close(constant.coarse.path(constant.restrict(u)), expected, rtol=1e-14, atol=1e-15)


def test_restriction_is_the_adjoint_of_constant_prolongation_in_the_inner_products(constant, rand):
    u, v = rand(constant.fine.dimension), rand(constant.coarse.dimension)
    coarse = constant.coarse.inner(constant.restrict(u), v)
    assert coarse == pytest.approx(constant.fine.inner(u, constant.prolong(v)), rel=1e-13)


def test_restriction_undoes_constant_prolongation(constant, rand):
    v = rand(constant.coarse.dimension)
    torch.testing.assert_close(constant.restrict(constant.prolong(v)), v, rtol=1e-15, atol=0)


def test_constant_prolongation_keeps_the_norm(constant, rand):
    v = rand(constant.coarse.dimension)
    assert constant.fine.norm(constant.prolong(v)) == pytest.approx(constant.coarse.norm(v), rel=1e-14)


def test_prolonged_derivatives_keep_their_pairings_under_constant_prolongation(constant, rand):
    d, v = rand(constant.coarse.dimension), rand(constant.coarse.dimension)
    fine = constant.prolong_dual(d) @ constant.prolong(v)
    assert float(fine) == pytest.approx(float(d @ v), rel=1e-13)


def test_prolonged_derivatives_are_restricted_to_what_they_were_under_constant_prolongation(constant, rand):
    d = rand(constant.coarse.dimension)
    torch.testing.assert_close(constant.restrict_dual(constant.prolong_dual(d)), d, rtol=1e-14, atol=0)


def test_the_gradient_of_a_prolonged_derivative_is_the_prolonged_gradient(transfer, rand):
    d = rand(transfer.coarse.dimension)
    gradient = transfer.fine.gradient(transfer.prolong_dual(d))
    torch.testing.assert_close(gradient, transfer.prolong(transfer.coarse.gradient(d)), rtol=1e-14, atol=0)


def test_parameters_pass_unchanged(transfer, rand):
    fine, coarse, q = transfer.fine, transfer.coarse, rand(2)
    u, v = fine.join(rand(fine.grid.steps, 3), q), coarse.join(rand(coarse.grid.steps, 3), q)
    up, down = (transfer.prolong, transfer.prolong_dual), (transfer.restrict, transfer.restrict_dual)
    assert all(torch.equal(fine.parameters(f(v)), q) for f in up)
    assert all(torch.equal(coarse.parameters(f(u)), q) for f in down)


def test_transfers_leave_their_arguments_unchanged_and_share_no_storage(transfer, rand, unchanged):
    u, v = rand(transfer.fine.dimension), rand(transfer.coarse.dimension)
    with unchanged(u, v):
        transfer.prolong(v).zero_()
        transfer.prolong_dual(v).zero_()
        transfer.restrict(u).zero_()
        transfer.restrict_dual(u).zero_()


def test_between_equal_grids_constant_transfers_are_the_identity(rand):
    same = Transfer(space(4), space(4))
    u = rand(14)
    assert all(torch.equal(f(u), u) for f in (same.prolong, same.restrict, same.restrict_dual))


def test_single_precision_stays_single(transfer, rand):
    u, v = rand(transfer.fine.dimension).float(), rand(transfer.coarse.dimension).float()
    parts = (transfer.prolong(v), transfer.prolong_dual(v), transfer.restrict(u), transfer.restrict_dual(u))
    assert [part.dtype for part in parts] == [torch.float32] * 4


@pytest.mark.parametrize(("fine", "coarse"), [(12, 5), (12, 24), (9, 6)])
def test_grids_that_do_not_nest_are_refused(fine, coarse):
    with pytest.raises(ValueError, match=f"coarse: expected a divisor of {fine} steps, got {coarse}"):
        Transfer(space(fine), space(coarse))


@pytest.mark.parametrize(
    ("arguments", "grids"),
    [
        ((128, 4), (128, 64, 32, 16)),
        ((81, 3, 3), (81, 27, 9)),
        ((7, 1), (7,)),
        ((2, 2), (2, 1)),
        ((100, [100, 20, 10]), (100, 20, 10)),
        ((100, (100,)), (100,)),
    ],
)
def test_a_hierarchy_is_a_number_of_levels_or_their_numbers_of_steps(arguments, grids):
    assert coarse_grids(*arguments) == grids


@pytest.mark.parametrize(
    ("steps", "levels", "factor", "message"),
    [
        (100, 4, 2, "by 2 only to 100, 50, 25, not to 4 levels; use levels=3 or steps=104"),
        (7, 2, 2, "by 2 only to 7, not to 2 levels; use levels=1 or steps=8"),
        (30, 3, 3, "by 3 only to 30, 10, not to 3 levels; use levels=2 or steps=36"),
    ],
)
def test_a_hierarchy_that_does_not_exist_is_refused_with_one_that_does(steps, levels, factor, message):
    with pytest.raises(ValueError, match=re.escape(f"levels: {steps} steps can be coarsened {message}")):
        coarse_grids(steps, levels, factor)


@pytest.mark.parametrize("levels", [[], [50, 25], [100, 30], [100, 100], [100, 50, 200]], ids=str)
def test_numbers_of_steps_that_do_not_nest_are_refused(levels):
    message = f"levels: expected numbers of steps that begin with 100 and each divide the one before, got {levels}"
    with pytest.raises(ValueError, match=re.escape(message)):
        coarse_grids(100, levels)


@pytest.mark.parametrize("levels", [0, -1])
def test_a_hierarchy_has_at_least_one_level(levels):
    with pytest.raises(ValueError, match=f"levels: expected an integer >= 1, got {levels}"):
        coarse_grids(8, levels)


@pytest.mark.parametrize("factor", [1, 0])
def test_a_coarser_grid_has_fewer_steps(factor):
    with pytest.raises(ValueError, match=f"factor: expected an integer >= 2, got {factor}"):
        coarse_grids(8, 2, factor)


@dataclass(frozen=True)
class Constrained:
    """A fine control within random bounds, which entries of it are free, and the coarse box that follows."""

    transfer: Transfer
    box: Box
    u: torch.Tensor
    free: torch.Tensor
    origin: torch.Tensor

    @property
    def coarse(self):
        return self.transfer.restrict_box(self.box, self.u, self.free, self.origin)

    def moved(self, v):
        """Where the fine control goes with a coarse one."""
        return self.u + self.transfer.prolong(v - self.origin) * self.free


@pytest.fixture(params=range(4), ids=lambda seed: f"seed {seed}")
def constrained(transfer, request):
    """Some sides are infinite, some entries at their bounds, some bounds equal, some entries not free."""
    generator = torch.Generator().manual_seed(request.param)
    n, one = transfer.fine.dimension, torch.ones(transfer.fine.dimension, dtype=torch.float64)

    def happens(share):
        return torch.rand(n, generator=generator) < share

    u = torch.randn(n, generator=generator, dtype=torch.float64)
    below, above = (torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(2))
    below[happens(0.1)], above[happens(0.1)] = 0.0, 0.0
    lower = torch.where(happens(0.4), -inf * one, u - below)
    upper = torch.where(happens(0.4), inf * one, u + above)
    lower[-2:], upper[-2:] = -inf, inf  # the parameters
    box = Box(lower, upper)
    origin = torch.randn(transfer.coarse.dimension, generator=generator, dtype=torch.float64)
    return Constrained(transfer, box, u, happens(0.7), origin)


def within(box, u):
    """Whether a control lies in a box, up to rounding."""
    return bool(((u >= box.lower - 1e-12) & (u <= box.upper + 1e-12)).all())


@pytest.mark.cover(2)
def test_the_coarse_box_contains_its_origin(constrained):
    assert within(constrained.coarse, constrained.origin)


@pytest.mark.parametrize("corner", ["lower", "upper", "random"])
@pytest.mark.cover(2)
def test_a_corner_of_the_coarse_box_moves_the_fine_control_within_its_bounds(constrained, corner):
    """Infinite sides are cut at a thousand."""
    coarse = constrained.coarse
    side = torch.rand(len(constrained.origin), generator=torch.Generator().manual_seed(7)) < 0.5
    v = torch.where(side, coarse.lower, coarse.upper) if corner == "random" else getattr(coarse, corner)
    assert within(constrained.box, constrained.moved(v.clamp(constrained.origin - 1e3, constrained.origin + 1e3)))


@pytest.mark.cover(2)
def test_any_point_of_the_coarse_box_moves_the_fine_control_within_its_bounds(constrained, rand):
    v = constrained.coarse.project(constrained.origin + 3 * rand(len(constrained.origin)))
    assert within(constrained.box, constrained.moved(v))


def test_under_constant_prolongation_the_coarse_box_is_as_large_as_can_be(grids, rand):
    """Each coarse entry has as much room as the tightest of its fine entries."""
    transfer = Transfer(*grids, CONSTANT)
    fine, coarse = grids
    u, room = rand(fine.dimension), rand(fine.dimension).abs()
    free = torch.ones_like(u, dtype=torch.bool)
    origin = transfer.restrict(u)
    found = transfer.restrict_box(Box(u - room, u + 2 * room), u, free, origin)
    least = fine.path(room).view(coarse.grid.steps, -1, 3).amin(1).reshape(-1)
    torch.testing.assert_close(coarse.path(origin - found.lower).reshape(-1), least)
    torch.testing.assert_close(coarse.path(found.upper - origin).reshape(-1), 2 * least)


def test_a_coarse_entry_that_moves_no_free_entry_is_held(transfer, rand):
    fine, coarse = transfer.fine, transfer.coarse
    free = fine.join(torch.zeros(fine.grid.steps, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    u, origin = rand(fine.dimension), rand(coarse.dimension)
    box = transfer.restrict_box(Box(u - 1, u + 1), u, free, origin)
    assert torch.equal(coarse.path(box.lower), coarse.path(origin))
    assert torch.equal(coarse.path(box.upper), coarse.path(origin))


def test_only_the_entry_of_a_step_without_free_entries_is_held(grids, rand):
    transfer = Transfer(*grids, CONSTANT)
    fine, coarse = grids
    loose = torch.ones(fine.grid.steps, 3, dtype=torch.bool)
    loose[: fine.grid.steps // coarse.grid.steps, 1] = False
    u, origin = rand(fine.dimension), rand(coarse.dimension)
    box = transfer.restrict_box(Box(u - 1, u + 1), u, fine.join(loose, torch.ones(2, dtype=torch.bool)), origin)
    held = coarse.path(box.lower == box.upper)
    assert held.nonzero().tolist() == [[0, 1]]


def test_infinite_bounds_bind_nothing(transfer, rand):
    u, origin = rand(transfer.fine.dimension), rand(transfer.coarse.dimension)
    far = torch.full_like(u, inf)
    box = transfer.restrict_box(Box(-far, far), u, torch.ones_like(u, dtype=torch.bool), origin)
    assert torch.equal(box.lower, torch.full_like(origin, -inf))
    assert torch.equal(box.upper, torch.full_like(origin, inf))


@pytest.mark.cover(2)
def test_parameters_keep_their_room_or_are_held(constrained):
    fine, coarse = constrained.transfer.fine, constrained.transfer.coarse
    free, origin = fine.parameters(constrained.free), coarse.parameters(constrained.origin)
    for side in ("lower", "upper"):
        room = fine.parameters(getattr(constrained.box, side) - constrained.u)
        expected = origin + torch.where(free, room, 0.0)
        torch.testing.assert_close(coarse.parameters(getattr(constrained.coarse, side)), expected)


@pytest.mark.parametrize(("steps", "coarsest", "levels"), [(128, 16, 4), (100, 16, 3), (7, 1, 1), (8, 1, 4), (8, 9, 1)])
def test_the_depth_counts_the_grids_by_halving_down_to_the_coarsest(steps, coarsest, levels):
    assert depth(steps, coarsest) == levels
    assert coarse_grids(steps, levels)[-1] >= min(coarsest, steps)
