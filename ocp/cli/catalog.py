"""The problems that can be called by name, and those in a user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import nullcontext
from difflib import get_close_matches
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import ocp.problems
from ocp.cli.help import user_code
from ocp.problem.control_problem import ControlProblem
from ocp.run.study import Study

__all__ = ["load", "make", "names", "summaries", "takes"]


def names() -> tuple[str, ...]:
    """Names of the problems of the package ``problems``: its modules that define a function ``problem``."""
    files = sorted(Path(ocp.problems.__path__[0]).glob("*.py"))
    return tuple(file.stem for file in files if "\ndef problem(" in file.read_text())


def summaries() -> dict[str, str]:
    """The names, each with the first line of its module's docstring."""
    modules = {name: importlib.import_module(f"ocp.problems.{name}") for name in names()}
    return {name: (module.__doc__ or "").strip().splitlines()[0] for name, module in modules.items()}


def load(name: str, **options: Any) -> Study:
    """The study of a problem, with the defaults of `Study` where `make` returns a `ControlProblem`."""
    made = make(name, **options)
    return Study(made) if isinstance(made, ControlProblem) else made


def make(name: str, **options: Any) -> Study | ControlProblem:
    """What a problem's function ``problem(**options)`` returns.

    Parameters
    ----------
    name : str
        One of `names`, or the path of a Python file whose ``problem()`` returns a `Study` or a `ControlProblem`.
    **options
        Such as ``seed``, ``dtype``, ``device``. One that is None is left to the problem, and ``seed`` is ignored if the
        function does not take it.

    Raises
    ------
    ValueError
        If there is no such problem, the file defines none, or its function does not take an option.
    UserError
        If the file or its function raises an exception.
    """
    function = _function(name)
    accepted = signature(function).parameters
    any_key = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in accepted.values())
    given = {key: value for key, value in options.items() if value is not None}
    if "seed" not in accepted and not any_key:
        given.pop("seed", None)
    unknown = [key for key in given if key not in accepted and not any_key]
    if unknown:
        raise ValueError(f"{name}: expected options among {', '.join(accepted) or 'none'}, got {', '.join(unknown)}")
    single = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    missing = [k for k, p in accepted.items() if p.default is p.empty and p.kind in single and k not in given]
    if missing:
        raise ValueError(f"{name}: expected a value for {', '.join(missing)}, got none")
    shipped = name in names()
    for key, value in given.items():
        if key in accepted:
            _check(key, accepted[key], value, shipped)
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    with nullcontext() if shipped else user_code(Path(name), f", in problem({arguments})"):
        made = function(**given)
    if isinstance(made, ControlProblem | Study):
        return made
    raise ValueError(f"{name}: expected problem() to return a ControlProblem or a Study, got {type(made).__name__}")


def takes(name: str, option: str) -> bool:
    """Whether a problem's function has an argument of this name; with ``**options`` it takes a seed, too."""
    accepted = signature(_function(name)).parameters
    return option in accepted or (option == "seed" and any(p.kind is p.VAR_KEYWORD for p in accepted.values()))


def _check(key: str, parameter: Parameter, value: Any, shipped: bool) -> None:
    """Refuse an argument of another kind than its default; of problems that ship, also an integer out of range."""
    default, least = parameter.default, 0 if key.endswith("seed") else 1
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{key}: expected True or False, as its default is {default}, got {value!r}")
    if shipped and str(parameter.annotation).startswith("int") and not (isinstance(value, int) and value >= least):
        raise ValueError(f"{key}: expected an integer >= {least}, got {value!r}")
    if isinstance(default, int | float) and not isinstance(value, int | float):
        raise ValueError(f"{key}: expected a number, as its default is {default}, got {value!r}")


def _function(name: str) -> Callable[..., Any]:
    known, path = names(), Path(name)
    if name in known:
        module = importlib.import_module(f"ocp.problems.{name}")
    elif path.suffix != ".py":
        close = get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"problem: expected one of {', '.join(known)}, or the path of a .py file, got {name!r}{hint}")
    elif not path.is_file():
        raise ValueError(f"problem: expected an existing file, got {name!r}")
    else:
        module = _module(path.resolve())
    function: Callable[..., Any] | None = getattr(module, "problem", None)
    if not callable(function):
        raise ValueError(f"problem: expected {name} to define a function problem(), got none")
    return function


@cache
def _module(path: Path) -> ModuleType:
    """A user's file, executed once as by Python: entered in ``sys.modules``, with its folder on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with user_code(path):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"problem: expected {path.name} to be Python, got {error}") from error
    return module
