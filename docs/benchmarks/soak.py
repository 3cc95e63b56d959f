"""Soak test: kill a run of the digits with SIGKILL at random moments, resume it each time, and compare the ends.

    python docs/benchmarks/soak.py [KILLS] [SEED]

The run saves every iteration. It is killed KILLS times (100 by default), each time after a random while, and started
again with ``--resume``; then it is left to end. Its control must be that of an undisturbed run to the last bit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ocp import Result

RUN = (
    *("solve", "digits", "--steps", "64", "--tolerance", "0", "--quiet"),
    *("--method", "mgopt", "--max-iterations", "600", "--max-work", "1e9"),
)


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """The run, begun or taken up again."""
    saves = ("--checkpoint", str(folder / name), "--every", "1", "--resume", "--out", str(folder / f"{name}-out"))
    return subprocess.Popen([sys.executable, "-m", "ocp", *RUN, *saves], stdout=subprocess.DEVNULL)


def last(folder: Path) -> int:
    """Iterations saved so far."""
    return max((int(path.stem) for path in folder.glob("*.ocp")), default=-1)


def soak(folder: Path, kills: int, seed: int) -> bool:
    """Whether a run that is killed so often ends as one that is not."""
    assert start(folder, "whole").wait() == 0
    whole = Result.load(folder / "whole-out")
    generator, broken, done = random.Random(seed), folder / "broken", 0
    while done < kills:
        process = start(folder, "broken")
        before = last(broken)
        while process.poll() is None and last(broken) <= before:  # let it begin; then let it live for a moment
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 2.0 * whole.seconds / kills))
        if process.poll() is not None:  # it had come to its end: begin anew
            for path in broken.glob("*.ocp"):
                path.unlink()
            continue
        process.kill()
        process.wait()
        done += 1
        print(f"kill {done}: iteration {last(broken)}, leftovers {len(list(broken.glob('*.part')))}", flush=True)
    assert start(folder, "broken").wait() == 0
    end = Result.load(folder / "broken-out")
    assert whole.control is not None
    assert end.control is not None
    records = ([(r.value, r.derivative_norm, r.work_units) for r in result.history] for result in (whole, end))
    return torch.equal(whole.control.flat, end.control.flat) and next(records) == next(records)


if __name__ == "__main__":
    kills, seed = (int(sys.argv[k]) if len(sys.argv) > k else default for k, default in ((1, 100), (2, 0)))
    with tempfile.TemporaryDirectory() as place:
        same = soak(Path(place), kills, seed)
    print(f"after {kills} kills the end is {'the same to the last bit' if same else 'ANOTHER ONE'}")
    raise SystemExit(not same)
