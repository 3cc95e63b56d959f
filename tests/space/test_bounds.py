"""Bounds on the control."""

import re
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import torch

from ocp import LBFGS, Bounds, Control, ControlProblem, ControlSpace, Stop, TimeGrid, discretize, minimize
from ocp.space.bounds import Box, as_bounds

SPACE = ControlSpace(TimeGrid(1.0, 2), control_size=2, parameter_size=1)
LIKE = torch.empty(0, dtype=torch.float64)
X0 = torch.ones(1, 1, dtype=torch.float64)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def control_problem(**changes):
    pieces = {
        "dynamics": lambda t, x, u: u.sum() - x,
        "initial_state": X0,
        "terminal_cost": lambda x: x.square().sum(),
        "control_size": 2,
    }
    return ControlProblem(**{**pieces, **changes})


FORMS = {
    "number": (2.0, [2, 2, 2, 2]),
    "integer": (2, [2, 2, 2, 2]),
    "tensor": (tensor(2.0, 3.0), [2, 3, 2, 3]),
    "single precision": (torch.tensor([2.0, 3.0]), [2, 3, 2, 3]),
    "list": ([2.0, 3.0], [2, 3, 2, 3]),
    "array": (np.array([2.0, 3.0]), [2, 3, 2, 3]),
    "scalar tensor": (tensor(2.0)[0], [2, 2, 2, 2]),
    "function that gives a number": (lambda t: 2 + t, [2.25, 2.25, 2.75, 2.75]),
    "function that gives a tensor": (lambda t: tensor(2.0, 3 + t), [2, 3.25, 2, 3.75]),
    "one entry without": (tensor(inf, 3.0), [inf, 3, inf, 3]),
}


@pytest.mark.parametrize(("form", "values"), FORMS.values(), ids=FORMS.keys())
def test_a_bound_is_a_number_a_tensor_or_a_function_of_the_time_at_midpoints(form, values):
    upper = Bounds(upper=form).on(SPACE, LIKE).upper
    assert torch.equal(upper, tensor(*values, inf))


@pytest.mark.parametrize(("form", "values"), FORMS.values(), ids=FORMS.keys())
def test_a_lower_bound_takes_the_same_forms(form, values):
    below = (lambda t: -form(t)) if callable(form) else -np.asarray(form)
    lower = Bounds(lower=below).on(SPACE, LIKE).lower
    assert torch.equal(lower, tensor(*(-v for v in values), -inf))


@pytest.mark.parametrize(
    ("given", "lower", "upper"),
    [((None, 1.0), -inf, 1.0), ((-1.0, None), -1.0, inf), ((None, None), -inf, inf), ([0.0, 1.0], 0.0, 1.0)],
)
def test_a_pair_may_leave_a_side_without_bound(given, lower, upper):
    box = as_bounds(given).on(SPACE, LIKE)
    assert torch.equal(SPACE.path(box.lower), torch.full((2, 2), lower, dtype=torch.float64))
    assert torch.equal(SPACE.path(box.upper), torch.full((2, 2), upper, dtype=torch.float64))


@pytest.mark.parametrize("given", [None, Bounds(0.0, 1.0)])
def test_bounds_and_none_are_returned_as_they_are(given):
    assert as_bounds(given) is given


@pytest.mark.parametrize("given", [1.0, "ab", (1.0,), (0.0, 1.0, 2.0), {"lower": 0.0}, tensor(0.0, 1.0)])
def test_anything_but_a_pair_is_refused(given):
    with pytest.raises(TypeError, match=re.escape(f"bounds: expected a pair (lower, upper) or Bounds, got {given!r}")):
        as_bounds(given)


def test_parameters_are_never_bounded():
    box = Bounds(0.0, 0.0).on(SPACE, LIKE)
    assert (float(SPACE.parameters(box.lower)), float(SPACE.parameters(box.upper))) == (-inf, inf)
    assert torch.equal(box.project(tensor(1, 1, 1, 1, -7)), tensor(0, 0, 0, 0, -7))


IMPOSSIBLE = {
    "crossed": ((1.0, 0.0), "got 1 and 0 for entry 0 of the control on step 0"),
    "crossed in one entry": ((tensor(0.0, 2.0), 1.0), "got 2 and 1 for entry 1 of the control on step 0"),
    "crossed at a later time": ((lambda t: 4 * t, 2.0), "got 3 and 2 for entry 0 of the control on step 1"),
    "NaN below": ((nan, 1.0), "got nan and 1 for entry 0"),
    "NaN above": ((0.0, tensor(1.0, nan)), "got 0 and nan for entry 1"),
    "both infinite": ((inf, inf), "got inf and inf for entry 0"),
    "both minus infinite": ((-inf, -inf), "got -inf and -inf for entry 0"),
}


@pytest.mark.parametrize(("pair", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_bounds_with_nothing_between_them_are_refused(pair, message):
    with pytest.raises(ValueError, match=re.escape(f"bounds: expected lower <= upper, {message}")):
        Bounds(*pair).on(SPACE, LIKE)


SHAPES = {
    "three for two": (tensor(1.0, 1.0, 1.0), "(3,)"),
    "a path": (torch.ones(2, 2), "(2, 2)"),
    "a single one": (tensor(1.0), "(1,)"),
    "a function": (lambda t: torch.ones(3), "(3,)"),
}


@pytest.mark.parametrize(("upper", "shape"), SHAPES.values(), ids=SHAPES.keys())
def test_a_bound_of_the_wrong_shape_is_refused(upper, shape):
    message = f"bounds: expected the upper one to be a number, a tensor of shape (2,), or a function of t .* {shape}"
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        Bounds(upper=upper).on(SPACE, LIKE)


@pytest.mark.parametrize("lower", ["zero", None, {}, lambda t: "zero"], ids=["text", "none", "mapping", "function"])
def test_a_bound_that_is_not_a_number_is_refused(lower):
    with pytest.raises(TypeError, match="bounds: expected the lower one to be numbers, got"):
        Bounds(lower=lower).on(SPACE, LIKE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_has_the_type_and_device_asked_for(dtype):
    box = Bounds(0.0, tensor(1.0, 2.0)).on(SPACE, torch.empty(0, dtype=dtype))
    assert (box.lower.dtype, box.upper.dtype, box.upper.device.type) == (dtype, dtype, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_discretization_has_a_box_of_the_type_of_the_problem(dtype):
    problem = control_problem(initial_state=X0.to(dtype), bounds=(0.0, 1.0))
    assert discretize(problem, 2).box.lower.dtype == dtype


BOX = Box(tensor(-1.0, 0.0, -inf, 2.0), tensor(1.0, inf, 0.5, 2.0))


def test_a_projection_is_the_nearest_point_of_the_box(rand):
    far = 3 * rand(4)
    nearest = BOX.project(far)
    others = torch.stack([BOX.project(nearest + 0.1 * rand(4)) for _ in range(200)])
    assert ((nearest >= BOX.lower) & (nearest <= BOX.upper)).all()
    assert (far - nearest).norm() <= (far - others).norm(dim=1).min()


def test_a_point_inside_is_its_own_projection():
    inside = tensor(-1.0, 7.0, 0.5, 2.0)
    assert BOX.project(inside) is inside


def test_a_projection_leaves_its_argument_unchanged(rand, unchanged):
    outside = 3 * rand(4)
    with unchanged(outside):
        assert BOX.project(outside) is not outside


def test_an_entry_at_its_bound_is_free_only_if_the_derivative_leads_inside():
    box = Box(tensor(*6 * [0.0]), tensor(*6 * [1.0]))
    u, derivative = tensor(0, 0, 1, 1, 0.5, 0), tensor(1, -1, 1, -1, 1, 0)
    assert box.free(u, derivative).tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize("derivative", [-1.0, 0.0, 1.0])
def test_an_entry_with_equal_bounds_is_never_free(derivative):
    assert Box(tensor(2.0), tensor(2.0)).free(tensor(2.0), tensor(derivative)).tolist() == [False]


def test_the_inward_part_of_a_direction_leaves_the_box_nowhere():
    box = Box(tensor(*6 * [0.0]), tensor(*6 * [1.0]))
    u, direction = tensor(0, 0, 1, 1, 0.5, 0), tensor(3, -3, 3, -3, -3, 0)
    assert torch.equal(box.inward(u, direction), tensor(3, 0, 0, -3, -3, 0))


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_no_direction_leads_from_equal_bounds(direction):
    assert Box(tensor(2.0), tensor(2.0)).inward(tensor(2.0), tensor(direction)).tolist() == [0.0]


STARTS = {
    "none": (None, [0.5, 0.0, 0.5, 0.0]),
    "outside": (tensor(9.0, -9.0), [2.0, -1.0, 2.0, -1.0]),
    "inside": (tensor(1.5, -0.5), [1.5, -0.5, 1.5, -0.5]),
}


@pytest.mark.parametrize(("flat", "expected"), STARTS.values(), ids=STARTS.keys())
def test_an_infeasible_start_is_projected(flat, expected):
    start = None if flat is None else Control(ControlSpace(TimeGrid(1.0, 1), 2), flat)
    problem = control_problem(bounds=(tensor(0.5, -1.0), tensor(2.0, 1.0)), start=start)
    assert torch.equal(discretize(problem, 2).discretization.start().flat, tensor(*expected))


def test_the_start_of_a_run_is_the_projected_one():
    start = Control(ControlSpace(TimeGrid(1.0, 2), 2), tensor(9, 9, 9, 9))
    problem = control_problem(bounds=(lambda t: -1.0, lambda t: 1 + t))
    result = minimize(problem, 2, LBFGS(), start=start, stop=Stop(max_iterations=0))
    assert torch.equal(result.control.flat, tensor(1.25, 1.25, 1.75, 1.75))


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((1.0, 0.0), ValueError, "bounds: expected lower <= upper"),
        ((0.0, tensor(1.0, 1.0, 1.0)), ValueError, "bounds: expected the upper one to be a number"),
        (("a", "b"), TypeError, "bounds: expected the lower one to be numbers, got 'a'"),
    ],
)
def test_bounds_that_do_not_fit_are_refused_before_work_begins(bounds, error, message):
    with pytest.raises(error, match=message) as caught:
        minimize(control_problem(bounds=bounds), 2, LBFGS())
    assert not hasattr(caught.value, "result")


def test_a_problem_without_bounds_has_no_box():
    problem = control_problem(bounds=(0.0, 1.0))
    assert discretize(problem, 2).box is not None
    assert discretize(replace(problem, bounds=None), 2).box is None
