"""The README's examples run exactly as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["control", "network"])
def test_an_example_of_the_readme_runs_as_printed(example, tmp_path):
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_first_example_verifies_minimizes_and_draws(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "All checks passed." in done.stdout
    assert "success: True" in done.stdout
    assert (tmp_path / "convergence.png").stat().st_size > 10_000
