"""The examples of the README and of the documentation run exactly as printed."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.stem}-{number}": example
    for page in PAGES
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL), start=1)
}
#: The seed with which torch starts.
SEED = 67280421310721

FIRST = EXAMPLES["README-1"]
every_example = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example as a script in an empty folder, in this process; return what it prints."""

    def run(example):
        script = tmp_path / "example.py"
        script.write_text(example)
        runpy.run_path(str(script), run_name="__main__")  # in a namespace of its own
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield run
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def test_the_first_example_verifies_minimizes_and_draws(run, tmp_path):
    printed = run(FIRST)
    assert "All checks passed." in printed
    assert "success: True" in printed
    assert (tmp_path / "convergence.png").stat().st_size > 10_000


def test_an_example_has_no_names_but_its_own(run):
    run("import torch")
    with pytest.raises(NameError, match="torch"):
        run(FIRST.replace("import torch\n", ""))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if EXAMPLES[name] is not FIRST])
def test_an_example_runs_as_printed(name, run):
    run(EXAMPLES[name])


@pytest.mark.slow
@every_example
def test_an_example_imports_all_that_it_uses(example, tmp_path):
    """In an interpreter that has imported nothing else.

    With one thread: on a busy machine several wait for each other, up to a hundred times as long as they compute.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_project_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
