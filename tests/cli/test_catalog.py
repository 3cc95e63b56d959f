"""The catalog of problems, and the problems in a user's own file."""

import pytest
import torch

from ocp import ControlProblem, Study
from ocp.cli import catalog

PLAIN = '''
"""Steer a scalar to zero."""
import torch
from ocp import ControlProblem

def problem():
    return ControlProblem(
        lambda t, x, u: u - x, torch.ones(1, 1), lambda x: x.square().sum(), control_size=1
    )
'''

WITH_OPTIONS = """
import torch
from ocp import ControlProblem, Study

def problem(seed=0, dtype=torch.float32, scale=1.0):
    x = torch.full((1, 1), scale + seed, dtype=dtype)
    return Study(
        ControlProblem(lambda t, x, u: u - x, x, lambda x: x.square().sum(), control_size=1), steps=6, levels=2
    )
"""

ANY_OPTIONS = WITH_OPTIONS.replace("scale=1.0", "**rest").replace("scale +", "rest.get('scale', 1.0) +")


def x0(study):
    return study.problem.initial_state(torch.zeros(0))


def test_the_problems_of_the_package_are_found_by_name():
    names = catalog.names()
    assert {"lqr", "van_der_pol", "spiral", "digits"} <= set(names)
    assert not {"data", "classifier", "__init__"} & set(names)
    assert list(names) == sorted(names)


def test_every_problem_has_a_summary_of_one_sentence():
    summaries = catalog.summaries()
    assert tuple(summaries) == catalog.names()
    assert all(text.endswith(".") and len(text) < 100 for text in summaries.values())


def test_a_problem_of_the_package_is_loaded_by_name():
    study = catalog.load("lqr")
    assert isinstance(study, Study)
    assert isinstance(study.problem, ControlProblem)


def test_a_file_may_return_a_bare_problem(write):
    study = catalog.load(write(PLAIN))
    assert isinstance(study, Study)
    assert x0(study).item() == 1.0


def test_a_file_may_return_a_study(write):
    study = catalog.load(write(WITH_OPTIONS))
    assert (study.steps, study.levels) == (6, 2)


def test_two_files_do_not_get_into_each_others_way(write):
    one, other = write(PLAIN), write(WITH_OPTIONS, "other.py")
    assert catalog.load(one).steps != catalog.load(other).steps


@pytest.mark.parametrize("text", [WITH_OPTIONS, ANY_OPTIONS], ids=["named", "any"])
def test_options_are_handed_to_the_function(write, text):
    study = catalog.load(write(text), seed=2, dtype=torch.float64, scale=0.5)
    assert x0(study).item() == 2.5
    assert x0(study).dtype == torch.float64


def test_an_option_that_is_none_is_left_to_the_problem(write):
    assert x0(catalog.load(write(WITH_OPTIONS), seed=None, dtype=None, scale=None)).item() == 1.0


def test_a_seed_is_passed_over_where_the_function_takes_none(write):
    assert x0(catalog.load(write(PLAIN), seed=4)).item() == 1.0


@pytest.mark.parametrize(("option", "expected"), [("seed", True), ("dtype", True), ("width", False)])
def test_it_can_be_asked_whether_a_function_takes_an_option(write, option, expected):
    assert catalog.takes(write(WITH_OPTIONS), option) is expected


def test_a_function_of_any_options_takes_a_seed(write):
    file = write("def problem(**options):\n    pass\n")
    assert catalog.takes(file, "seed")
    assert not catalog.takes(file, "dtype")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("spyral", "did you mean spiral"), ("van_der_pole", "did you mean van_der_pol"), ("LQR", "did you mean lqr")],
)
def test_an_unknown_name_is_refused_with_a_guess(name, hint):
    with pytest.raises(ValueError, match=f"problem: expected one of .*got '{name}'; {hint}?"):
        catalog.load(name)


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ValueError, match=r"problem: expected one of .*burgers.* got 'zzz'$"):
        catalog.load("zzz")


MISTAKES = {
    "no function": ("x = 1", "to define a function problem"),
    "no function but a number": ("problem = 3", "to define a function problem"),
    "nothing returned": ("def problem():\n    pass", "to return a ControlProblem or a Study, got NoneType"),
    "nonsense returned": ("def problem():\n    return 'spiral'", "to return a ControlProblem or a Study, got str"),
    "an option it does not take": (PLAIN, "expected options among none, got scale"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_file_that_does_not_fit_is_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        catalog.load(write(text), **({"scale": 2.0} if text is PLAIN else {}))


@pytest.mark.parametrize("name", ["missing.py", "folder.py"])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match="problem: expected an existing file"):
        catalog.load(str(tmp_path / name))
