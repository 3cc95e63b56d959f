"""What holds for every problem that ships."""

import pytest
import torch

from ocp import discretize, verify
from ocp.cli import catalog
from ocp.run.comparison import Run, solve

#: Those that run to infinity on eight explicit steps.
STIFF = {"burgers", "hypersensitive"}
SCHEMES = {name: ["backward_euler"] if name in STIFF else ["euler", "rk4"] for name in catalog.names()}


@pytest.mark.parametrize(("name", "integrator"), [(name, scheme) for name in SCHEMES for scheme in SCHEMES[name]])
def test_the_derivative_is_verified(name, integrator):
    options = {"dtype": torch.float64} if catalog.takes(name, "dtype") else {}
    report = verify(discretize(catalog.load(name, **options).problem, 8, integrator))
    assert report.passed, str(report)


@pytest.mark.parametrize("method", ["single", "nested", "mgopt"])
def test_a_network_of_128_layers_learns_the_digits_with_every_method(method):
    study = catalog.load("digits")
    settings = {"tolerance": 1e-3, "max_work": 25}
    result = solve("digits", study, Run(method, settings=settings))
    assert result.about["steps"] == 128
    assert result.validation_accuracy >= 0.95
    assert result.test_accuracy >= 0.94
