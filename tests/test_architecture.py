"""The order of the modules: imports run one way only."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import ocp

#: Each module may import those before it, and no other.
ORDER = [
    "status",
    "interrupts",
    "processes",
    "grid",
    "control",
    "pages",
    "bounds",
    "modules",
    "dynamics",
    "layers",
    "costs",
    "problem",
    "tableaus",
    "linearsolve",
    "fused",
    "recording",
    "rungekutta",
    "verlet",
    "integrators",
    "network",
    "discretization",
    "linearization",
    "checkpoints",
    "sweep",
    "graphs",
    "diagnosis",
    "trajectory",
    "objective",
    "transfer",
    "strictjson",
    "codec",
    "verify",
    "linesearch",
    "trustregion",
    "methods",
    "refinement",
    "multilevel",
    "batches",
    "adaptive",
    "result",
    "course",
    "saves",
    "stopping",
    "solver",
    "plots",
    "catalog",
    "compare",
    "cli",
]
FOLDER = Path(ocp.__file__).parent
every_module = pytest.mark.parametrize("name", ORDER)


class Imports(ast.NodeVisitor):
    """The modules that a module imports when it runs, each by its full name."""

    def __init__(self, source):
        self.found = set()
        self.visit(ast.parse(source))

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        base = "ocp" if node.level else node.module
        base = f"{base}.{node.module}" if node.level and node.module else base
        self.found |= {f"{base}.{alias.name}" for alias in node.names} if base == "ocp" else {base}


def imports(name):
    return Imports((FOLDER / f"{name}.py").read_text()).found


def within(found):
    """Those of the package's modules that are among the imported names."""
    return {full.split(".")[1] for full in found if full.startswith("ocp.")}


def test_imports_are_found_wherever_they_stand():
    source = """
import ocp.space.grid
from ocp.adjoint import sweeps as sweep
from ocp.problem.costs import Tikhonov
from . import transfer
if TYPE_CHECKING:
    from ocp.cli.commands import main
def later():
    from ocp.plots import taylor
"""
    assert within(Imports(source).found) == {"grid", "sweep", "costs", "transfer", "plots"}


def test_every_module_has_its_place_in_the_order():
    assert sorted(ORDER) == sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("__"))


@every_module
def test_a_module_imports_only_those_before_it(name):
    assert within(imports(name)) <= set(ORDER[: ORDER.index(name)])


@every_module
def test_only_plots_knows_matplotlib(name):
    assert any(full.split(".")[0] == "matplotlib" for full in imports(name)) is (name == "plots")


@every_module
def test_a_module_begins_with_a_docstring(name):
    assert ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))


def described(module, name, value):
    """Whether a public name is described: by a docstring of its own, or, for data, by a comment or its class."""
    if inspect.isclass(value) or inspect.isroutine(value):
        text = value.__doc__ or ""
        return bool(text) and not text.startswith(f"{name}(")  # a dataclass writes its signature where it has none
    lines = inspect.getsource(module).splitlines()
    first = next((k for k, line in enumerate(lines) if line.startswith((f"{name} =", f"{name}:"))), 0)
    return lines[first - 1].startswith("#:") or type(value).__module__.startswith(("ocp.", "click."))


@every_module
def test_every_public_name_exists_and_is_described(name):
    module = importlib.import_module(f"ocp.{name}")
    assert [n for n in module.__all__ if not described(module, n, getattr(module, n))] == []


@every_module
def test_public_names_are_defined_where_they_are_public(name):
    module = importlib.import_module(f"ocp.{name}")
    objects = {n: getattr(module, n) for n in module.__all__}
    assert {n for n, value in objects.items() if getattr(value, "__module__", module.__name__) != module.__name__} <= {
        n for n, value in objects.items() if not (inspect.isclass(value) or inspect.isroutine(value))
    }


def test_what_the_package_offers_exists_once():
    assert len(set(ocp.__all__)) == len(ocp.__all__)
    assert [name for name in ocp.__all__ if not hasattr(ocp, name)] == []
