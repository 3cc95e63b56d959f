"""The rooms of the package: imports run one way only, and what is public is described where it is defined."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

import ocp

#: Each room may import those before it, and no other.
ROOMS = [
    "space",
    "problem",
    "integrators",
    "adjoint",
    "objective",
    "verification",
    "optimize",
    "multilevel",
    "training",
    "run",
    "cli",
]
FOLDER = Path(ocp.__file__).parent
MODULES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}
every_module = pytest.mark.parametrize("name", MODULES)


class Imports(ast.NodeVisitor):
    """The full names of what a module imports when it runs; imports for type checkers are left out."""

    def __init__(self, source):
        self.found = set()
        self.visit(ast.parse(source))

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        assert not node.level, "relative import"
        self.found |= {f"{node.module}.{alias.name}" for alias in node.names}


def imports(name):
    return Imports(MODULES[name].read_text()).found


def within(found):
    """The modules of the package among the imported names."""
    return {module for module in MODULES if any(full == module or full.startswith(f"{module}.") for full in found)}


def room(module):
    return module.split(".")[1]


def test_imports_are_found_wherever_they_stand():
    source = """
import ocp.space.grid
from ocp.adjoint import sweeps
if TYPE_CHECKING:
    from ocp.run.results import Result
def later():
    from ocp.problem.costs import Tikhonov
"""
    assert within(Imports(source).found) == {"ocp.space.grid", "ocp.adjoint.sweeps", "ocp.problem.costs"}


def test_every_module_is_in_a_room_of_the_order():
    assert {room(module) for module in MODULES} == set(ROOMS)


@every_module
def test_a_module_imports_its_own_room_and_those_before_it(name):
    assert {room(module) for module in within(imports(name))} <= set(ROOMS[: ROOMS.index(room(name)) + 1])


def test_no_module_imports_itself_in_a_circle():
    tuple(TopologicalSorter({name: within(imports(name)) for name in MODULES}).static_order())


@every_module
def test_only_plots_knows_matplotlib(name):
    assert any(full.split(".")[0] == "matplotlib" for full in imports(name)) is (name == "ocp.run.plots")


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()} - {FOLDER}), ids=lambda f: f.name)
def test_the_init_of_a_room_is_a_docstring(folder):
    (statement,) = ast.parse((folder / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value.value, str)


@every_module
def test_a_module_begins_with_a_docstring(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


def ours(value):
    """Whether a value is a class or a function that the package defines."""
    return (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__.startswith("ocp.")


def described(module, name, value):
    """Whether a public name is described: by a docstring of its own, or, for data, by a comment or its class."""
    if ours(value):
        text = value.__doc__ or ""
        return bool(text) and not text.startswith(f"{name}(")  # a dataclass writes its signature where it has none
    lines = inspect.getsource(module).splitlines()
    first = next((k for k, line in enumerate(lines) if line.startswith((f"{name} =", f"{name}:"))), 0)
    return lines[first - 1].startswith("#:") or type(value).__module__.startswith(("ocp.", "click."))


@every_module
def test_every_public_name_exists_and_is_described_where_it_is_defined(name):
    module = importlib.import_module(name)
    objects = {n: getattr(module, n) for n in module.__all__}
    assert [n for n, value in objects.items() if not described(module, n, value)] == []
    assert {n for n, value in objects.items() if ours(value) and value.__module__ != name} == set()


def test_what_the_package_offers_exists_once():
    assert len(set(ocp.__all__)) == len(ocp.__all__)
    assert [name for name in ocp.__all__ if not hasattr(ocp, name)] == []


def test_the_listing_of_the_package_fits_on_a_screen():
    assert len([path for path in FOLDER.iterdir() if path.name != "__pycache__"]) <= 14


def test_raw_results_stay_out_of_the_documentation():
    docs = FOLDER.parent / "docs"
    assert list(docs.rglob("*.json")) == []
    assert [path for path in docs.rglob("*.csv") if path.stat().st_size > 50_000] == []
    assert {path.stem for path in docs.rglob("*.png")} == {path.stem for path in docs.rglob("*.csv")}


def test_importing_the_package_loads_nothing_that_most_programs_do_without():
    source = "import sys, ocp; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.split()
    assert {"matplotlib", "scipy.optimize", "sklearn", "triton", "tqdm.auto"}.isdisjoint(loaded)


DATA = {
    f"{name}.{n}": value
    for name in MODULES
    for n, value in vars(importlib.import_module(name)).items()
    if ours(value) and inspect.isclass(value) and value.__module__ == name and is_dataclass(value)
}


def held(annotation):
    """An annotation without the arguments and results of functions, which are not held."""
    return re.sub(r"Callable\[.*\]|PathLike", "", str(annotation))


@pytest.mark.parametrize("kind", DATA.values(), ids=DATA)
def test_what_holds_tensors_is_compared_by_identity(kind):
    """Comparing two tensors of several entries has no truth value, so that ``==`` would raise."""
    pattern = r"\b(Tensor|ndarray|Float|TimeFunction)\b"
    tensors = [f.name for f in fields(kind) if f.compare and re.search(pattern, held(f.type))]
    assert not tensors or not kind.__dataclass_params__.eq


def test_equality_of_objects_with_tensors_does_not_raise():
    x, labels = torch.ones(2, 2), torch.tensor([0, 1])
    makers = (
        lambda: ocp.CrossEntropy(labels.clone()),
        lambda: ocp.LeastSquares(x.clone()),
        lambda: ocp.QuadraticRunning(target=x.clone()),
        lambda: ocp.Bounds(x.clone(), None),
        lambda: ocp.ConstantJacobian(x.clone()),
        lambda: ocp.ControlProblem(ocp.layers.Dense(2), x.clone(), ocp.LeastSquares(x.clone()), start=torch.ones(6)),
    )
    for make in makers:
        assert (make() == make()) is False


def test_the_page_on_architecture_lists_every_module():
    page = (FOLDER.parent / "docs" / "architecture.md").read_text()
    for path in sorted(FOLDER.rglob("*.py")):
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        room, _, module = name.partition("/")
        if module and not module.endswith("__init__"):
            section = page.split(f"## `{room}/`")[1].split("\n## ")[0]
            assert f"| `{module}` |" in section, name
