"""Optimizers of torch as methods."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ocp import CONSTANT, ControlSpace, Status, TimeGrid, TorchOptimizer, Transfer

OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"lr": 0.03}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.03, "weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.03}),
}


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_does_what_it_does_in_a_loop_of_its_own(optimizer, options, lqr, start, run):
    point = start(lqr)
    objective, parameter = point.objective, nn.Parameter(point.control.clone())
    own = optimizer([parameter], **options)
    for _ in range(5):
        parameter.grad = objective.space.gradient(objective.derivative(parameter.detach().clone()))
        own.step()
    assert torch.equal(run(TorchOptimizer(optimizer, options), point, 5).control, parameter.detach())


def test_an_optimizer_begins_anew_on_a_finer_grid(lqr, start, run):
    adam = TorchOptimizer(torch.optim.Adam, {"lr": 0.1})
    old = run(adam, start(lqr), 5)
    fine, coarse = (ControlSpace(TimeGrid(2.0, n), 1) for n in (32, 16))
    memory = adam.transport(old.memory, Transfer(fine, coarse, CONSTANT))
    again = adam.step(old.point.objective, replace(old, memory=memory))
    assert torch.equal(again.control, run(adam, old.point, 1).control)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam([nn.Parameter(torch.ones(1))]), "Adam"])
def test_an_optimizer_that_is_no_class_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"optimizer: expected a class such as torch.optim.Adam, got one of type (A|s)"):
        TorchOptimizer(optimizer)


def test_an_optimizer_that_searches_sees_no_control_outside_the_bounds(convex_within, bounds, run):
    objective, _ = convex_within(bounds)
    method = TorchOptimizer(torch.optim.LBFGS, {"max_iter": 5, "line_search_fn": "strong_wolfe"})
    found = run(method, objective.at(objective.box.project(torch.ones(14).double())), 10).control
    seen = objective.differentiated
    assert len(seen) >= 10
    assert all(torch.equal(objective.box.project(u), u) for u in [*seen, found])


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_trial_that_is_not_finite_ends_a_search_with_a_status(beyond, objective_of):
    steep = objective_of(lambda u: torch.where(u[0] > 2, beyond * u[0], -u.sum()))
    method = TorchOptimizer(torch.optim.LBFGS, {"lr": 100.0, "line_search_fn": "strong_wolfe"})
    point = steep.at(torch.ones(2, dtype=torch.float64))
    state = method.step(steep, method.init(steep, point))
    assert state.status is Status.NOT_FINITE
    assert state.point is point
