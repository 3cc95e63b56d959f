"""What holds for every problem that ships."""

import pytest
import torch

from ocp import discretize, verify
from ocp.cli import catalog
from ocp.run.comparison import RunSpec, mgopt, nested, single, solve
from ocp.run.stopping import Stop

#: Those that run to infinity on a few explicit steps.
STIFF = {"burgers", "hypersensitive"}
#: Those whose states oscillate, so that explicit steps have to be short.
STEPS = {"lorenz": 20, "predator_prey": 8}


@pytest.mark.parametrize("name", catalog.names())
def test_the_derivative_is_verified(name):
    options = {"dtype": torch.float64} if catalog.takes(name, "dtype") else {}
    options |= {"points": 5} if catalog.takes(name, "points") else {}
    problem = catalog.load(name, **options).problem
    objective = discretize(problem, STEPS.get(name, 4), "backward_euler" if name in STIFF else "rk4")
    samples = len(objective.discretization.example()[0])
    report = verify(objective.take(torch.arange(10)) if samples > 10 else objective)
    assert report.passed, str(report)


@pytest.mark.parametrize("method", [single, nested, mgopt])
def test_a_network_of_128_layers_learns_the_digits_with_every_method(method):
    study = catalog.load("digits")
    stop = Stop(tolerance=1e-3, max_work=25)
    result = solve("digits", study, RunSpec(method, stop=stop))
    assert result.about["steps"] == 128
    assert result.validation_accuracy >= 0.95
    assert result.test_accuracy >= 0.94
