"""The control space: views, inner product, Riesz map."""

import pytest
import torch

from ocp.space.control import Control, ControlSpace
from ocp.space.grid import TimeGrid


@pytest.fixture
def space():
    return ControlSpace(TimeGrid(horizon=2.0, steps=5), control_size=3, parameter_size=4)


def test_the_dimension_counts_path_and_parameters(space):
    assert space.dimension == 5 * 3 + 4


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_the_number_of_steps_follows_from_the_length(space, steps):
    other = ControlSpace(TimeGrid(2.0, steps), control_size=3, parameter_size=4)
    assert space.steps_of(torch.zeros(other.dimension)) == steps


def test_views_share_the_storage_of_the_flat_tensor(space, rand):
    control = Control(space, rand(space.dimension))
    assert control.path.shape == (5, 3)
    assert control.parameters.shape == (4,)
    assert control.path.data_ptr() == control.flat.data_ptr()
    control.path[4, 2], control.parameters[0] = 7.0, 8.0
    assert control.flat[14:16].tolist() == [7.0, 8.0]


def test_join_undoes_the_views(space, rand):
    flat = rand(space.dimension)
    assert torch.equal(space.join(space.path(flat), space.parameters(flat)), flat)


def test_the_inner_product_is_the_time_integral_plus_the_product_of_the_parameters(space, rand):
    a, b = rand(space.dimension), rand(space.dimension)
    expected = 0.4 * (space.path(a) * space.path(b)).sum() + space.parameters(a) @ space.parameters(b)
    assert space.inner(a, b) == pytest.approx(float(expected), rel=1e-14)


def test_gradient_and_dual_are_inverse_to_each_other(space, rand, unchanged):
    v = rand(space.dimension)
    with unchanged(v):
        torch.testing.assert_close(space.gradient(space.dual(v)), v, rtol=1e-15, atol=0)
        torch.testing.assert_close(space.dual(space.gradient(v)), v, rtol=1e-15, atol=0)


def test_the_gradient_represents_the_derivative_in_the_inner_product(space, rand):
    derivative, displacement = rand(space.dimension), rand(space.dimension)
    pairing = float(derivative @ displacement)
    assert space.inner(space.gradient(derivative), displacement) == pytest.approx(pairing, rel=1e-14)


def test_a_derivative_has_the_norm_of_its_gradient(space, rand):
    derivative = rand(space.dimension)
    assert space.dual_norm(derivative) == pytest.approx(space.norm(space.gradient(derivative)), rel=1e-14)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_one_function_of_time_has_the_same_norm_on_nested_grids(space, rand, factor):
    fine = ControlSpace(TimeGrid(2.0, 5 * factor), control_size=3, parameter_size=4)
    v = rand(space.dimension)
    same = fine.join(space.path(v).repeat_interleave(factor, dim=0), space.parameters(v))
    assert fine.norm(same) == pytest.approx(space.norm(v), rel=1e-14)


@pytest.mark.parametrize("shape", [(18,), (20,), (19, 1), ()])
def test_a_flat_tensor_of_another_shape_is_refused(space, shape):
    with pytest.raises(ValueError, match=r"control: expected a flat tensor of 19 numbers .*, got shape"):
        Control(space, torch.zeros(shape))
