"""Residual layers: activations, weight maps, initial weights, export; test_dynamics has their derivatives."""

import pickle

import pytest
import torch

from ocp.problem.layers import RELU, SMOOTH_RELU, TANH, Antisymmetric, Convolution, Dense, Free

ACTIVATIONS = {"tanh": TANH, "relu": RELU, "smooth relu": SMOOTH_RELU}
LAYERS = {
    "dense": (Dense(3), (3,)),
    "dense smooth relu": (Dense(3, SMOOTH_RELU), (3,)),
    "antisymmetric": (Dense(3, RELU, Antisymmetric(0.5)), (3,)),
    "convolution": (Convolution(2, 3), (2, 4, 5)),
    "convolution 5x5": (Convolution(2, 5, RELU), (2, 4, 5)),
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
each_layer = pytest.mark.parametrize(("layer", "state"), LAYERS.values(), ids=LAYERS.keys())
each_weight = pytest.mark.parametrize("weight", [Free(), Antisymmetric(0.0), Antisymmetric(0.7)], ids=str)


@each_activation
def test_the_slope_that_follows_from_the_value_is_that_of_autograd(activation):
    z = torch.linspace(-2, 2, 1001, dtype=torch.float64).requires_grad_()  # 50 points between -0.1 and 0.1
    a = activation.function(z)
    (expected,) = torch.autograd.grad(a.sum(), z)
    torch.testing.assert_close(activation.slope(a.detach()), expected, rtol=1e-12, atol=1e-12)


@each_activation
def test_the_curvature_that_follows_from_the_value_is_that_of_autograd(activation):
    z = torch.linspace(-2, 2, 1000, dtype=torch.float64).requires_grad_()  # none of them at a kink
    (slope,) = torch.autograd.grad(activation.function(z).sum(), z, create_graph=True)
    (expected,) = torch.autograd.grad(slope.sum() + 0 * z.sum(), z)
    found = activation.curvature(activation.function(z.detach()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_activation
def test_the_module_of_an_activation_is_the_same_function(activation, rand):
    z = 0.2 * rand(200)
    assert torch.equal(activation.module()(z), activation.function(z))


@pytest.mark.parametrize(("z", "value", "slope"), [(-0.1, 0.0, 0.0), (0.0, 0.025, 0.5), (0.1, 0.1, 1.0)])
def test_the_parabola_of_smooth_relu_joins_its_branches_with_a_continuous_slope(z, value, slope):
    around = torch.tensor([z - 1e-9, z, z + 1e-9], dtype=torch.float64)
    a = SMOOTH_RELU.function(around)
    torch.testing.assert_close(a, torch.full_like(a, value), rtol=0, atol=2e-9)
    torch.testing.assert_close(SMOOTH_RELU.slope(a), torch.full_like(a, slope), rtol=0, atol=2e-8)


@each_weight
def test_the_transpose_of_a_weight_map_pairs_as_its_linear_part(weight, rand):
    dK, dA = rand(4, 4), rand(4, 4)
    forward, backward = (dA * weight.linear(dK)).sum(), (weight.transpose(dA) * dK).sum()
    assert float(forward) == pytest.approx(float(backward), rel=1e-13)


@each_weight
def test_a_weight_map_is_affine_with_its_linear_part(weight, rand):
    K, dK = rand(4, 4), rand(4, 4)
    torch.testing.assert_close(weight(K + dK) - weight(K), weight.linear(dK), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_the_eigenvalues_of_an_antisymmetric_weight_have_the_real_part_of_its_damping(gamma, rand):
    eigenvalues = torch.linalg.eigvals(Antisymmetric(gamma)(rand(5, 5)))
    torch.testing.assert_close(eigenvalues.real, torch.full((5,), -gamma / 2, dtype=torch.float64), rtol=0, atol=1e-12)


@each_layer
def test_the_exported_layer_is_the_same_function(layer, state, rand):
    x, u = rand(5, *state), rand(layer.control_size)
    torch.testing.assert_close(layer.to_module(u)(x), layer(0.0, x, u), rtol=1e-14, atol=1e-14)


@each_layer
def test_initial_weights_come_from_the_generator_with_zero_bias(layer, state):
    draws = [layer.initial(torch.Generator().manual_seed(3), dtype=torch.float64) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].shape == (layer.control_size,)
    assert torch.equal(draws[0][-state[0] :], torch.zeros(state[0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "outputs", "inputs"),
    [(Dense(100), 100, 100), (Convolution(40, 3), 40, 360)],
    ids=["dense", "conv"],
)
def test_initial_weights_have_the_variance_that_keeps_the_size_of_the_state(layer, outputs, inputs):
    kernel = layer.initial(torch.Generator().manual_seed(0), dtype=torch.float64)[: outputs * inputs]
    assert inputs * float(kernel.var()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("size", [2, 4])
def test_a_kernel_of_even_size_is_refused(size):
    with pytest.raises(ValueError, match=f"kernel_size: expected an odd number, got {size}"):
        Convolution(channels=3, kernel_size=size)


@each_activation
def test_an_activation_in_place_is_the_same_function(activation, rand):
    z = 0.3 * rand(50)
    expected, found = activation.function(z), z.clone()
    activation.apply(found, out=found)
    assert torch.equal(found, expected)


@each_activation
def test_the_transpose_of_an_activation_may_take_the_place_of_its_value(activation, rand):
    p, a = rand(50), activation.function(0.3 * rand(50))
    expected, found = activation.slope(a) * p, a.clone()
    activation.transpose(p, found, found)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


@each_activation
def test_a_layer_that_was_pickled_is_the_same_layer(activation):
    layer = Dense(3, activation)
    assert pickle.loads(pickle.dumps(layer)) == layer
