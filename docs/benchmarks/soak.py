"""Soak test: kill a run of the digits with SIGKILL at random moments, resume it each time, and compare the ends.

    python docs/benchmarks/soak.py [KILLS] [SEED]

The run saves every iteration. It is killed KILLS times (100 by default), each time after a random while, and started
again with ``--resume``; then it is left to end. Its control must be that of an undisturbed run to the last bit.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from ocp import Result
from ocp.cli.commands import main

RUN = (
    *("solve", "digits", "--steps", "64", "--tolerance", "0", "--quiet"),
    *("--method", "mgopt", "--max-iterations", "300", "--max-work", "1e9"),
)


def run(folder: Path, name: str) -> None:
    """The run, begun or taken up again."""
    saves = ("--checkpoint", str(folder / name), "--every", "1", "--resume", "--out", str(folder / f"{name}-out"))
    with open(os.devnull, "w") as sys.stdout:
        main([*RUN, *saves], standalone_mode=False)


def start(folder: Path, name: str) -> multiprocessing.process.BaseProcess:
    """A process that does it."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, name))
    process.start()
    return process


def ended(folder: Path, name: str) -> Result:
    """The result of a run that is left alone."""
    process = start(folder, name)
    process.join()
    assert process.exitcode == 0
    return Result.load(folder / f"{name}-out")


def last(folder: Path) -> int:
    """Iterations saved so far."""
    return max((int(path.stem) for path in folder.glob("*.ocp")), default=-1)


def soak(folder: Path, kills: int, seed: int) -> bool:
    """Whether a run that is killed so often ends as one that is not."""
    whole = ended(folder, "whole")
    generator, broken, done = random.Random(seed), folder / "broken", 0
    while done < kills:
        before, process = last(broken), start(folder, "broken")
        while process.is_alive() and last(broken) <= before:  # let it begin; then let it live for a moment
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 2.0 * whole.seconds / kills))
        if not process.is_alive():  # it had come to its end: begin anew
            for path in broken.glob("*.ocp"):
                path.unlink()
            continue
        process.kill()
        process.join()
        done += 1
        print(f"kill {done}: iteration {last(broken)}, leftovers {len(list(broken.glob('*.part')))}", flush=True)
    end = ended(folder, "broken")
    assert whole.control is not None
    assert end.control is not None
    one, other = ([(r.value, r.derivative_norm, r.work_units) for r in result.history] for result in (whole, end))
    return torch.equal(whole.control.flat, end.control.flat) and one == other


if __name__ == "__main__":
    kills, seed = (int(sys.argv[k]) if len(sys.argv) > k else default for k, default in ((1, 100), (2, 0)))
    with tempfile.TemporaryDirectory() as place:
        same = soak(Path(place), kills, seed)
    print(f"after {kills} kills the end is {'the same to the last bit' if same else 'ANOTHER ONE'}")
    raise SystemExit(not same)
