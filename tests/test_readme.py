"""The examples of the README and of the documentation run exactly as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.stem}-{number}": example
    for page in PAGES
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL), start=1)
}


def run(example, folder):
    return subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_an_example_runs_as_printed(example, tmp_path):
    done = run(example, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_first_example_verifies_minimizes_and_draws(tmp_path):
    done = run(EXAMPLES["README-1"], tmp_path)
    assert "All checks passed." in done.stdout
    assert "success: True" in done.stdout
    assert (tmp_path / "convergence.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_project_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
