"""Fuzzing: command lines and checkpoint files at random, which must end in an error of one line, or in a result.

    python docs/benchmarks/fuzz.py [INPUTS] [SEED]

A quarter of the INPUTS (10000 by default) are command lines, the others are checkpoint files: a good one with bytes
changed, cut out or put in, with and without a checksum that fits; some of them are given to a command. No traceback
may come from our own code, and nothing in a file may be executed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path

import click
from click.testing import CliRunner

from ocp.cli.commands import main
from ocp.run.snapshots import decode, encode, header

USER = """
import torch
from ocp import ControlProblem
def problem(a=1.0):
    return ControlProblem(lambda t, x, u: u - a * x, torch.ones(1, 1), lambda x: x.square().sum(), control_size=1)
"""
WORDS = (
    *("list", "verify", "solve", "compare", "plot", "mine.py", "lqr", "missing.py", "nobody", ".", "", "--help"),
    *("--method", "single", "nested", "mgopt", "--smoother", "lbfgs", "gd", "adam", "--steps", "--levels", "--seed"),
    *("0", "1", "2", "4", "-1", "1e99", "nan", "inf", "x", "é\u202e", "--max-iterations", "--max-work", "--tolerance"),
    *("--target", "value=0.1", "accuracy=1", "value=", "=", "--set", "a=2", "a=[", "a", "seed=1", "--device", "cpu"),
    *("cuda", "--dtype", "float32", "float64", "--integrator", "euler", "rk4", "--batch-size", "--quiet", "--check"),
    *("--checkpoint", "saves", "mine.py/x", "--every", "--resume", "--resume-from", "saves/000000001.ocp", "--out"),
    *(
        "out",
        "/proc/none",
        "--json",
        "--methods",
        "single,mgopt",
        ",",
        "--seeds",
        "--grid-error",
        "0.5",
        "--threads",
        "--overwrite",
    ),
)
LIMITED = ("--max-iterations", "2", "--steps", "4", "--quiet")
RESUME = ["solve", "mine.py", *LIMITED, "--checkpoint", "again", "--resume-from", "bad.ocp", "--out", "out"]


def command_line(generator: random.Random) -> list[str]:
    """Words in any order; most lines begin as a right one does."""
    line = [generator.choice(WORDS) for _ in range(generator.randrange(6))]
    command = generator.choice(("verify", "solve", "compare", "plot", "list"))
    head = {"verify": ["verify", "mine.py", "--steps", "4"], "solve": ["solve", "mine.py", *LIMITED, "--overwrite"]}
    head |= {
        "compare": ["compare", "mine.py", "--seeds", "1", *LIMITED, "--overwrite"],
        "plot": ["plot", "out"],
        "list": ["list"],
    }
    return [*head[command], *line] if generator.random() < 0.9 else line


def refused(line: list[str]) -> str:
    """What is wrong with how a command line ended; empty if nothing is."""
    result = CliRunner().invoke(main, line)
    expected = result.exception is None or isinstance(result.exception, SystemExit | click.ClickException)
    if expected and "Traceback" not in result.output:
        return ""
    return "".join(traceback.format_exception(result.exception)) if result.exception else result.output


def changed(data: bytes, generator: random.Random) -> bytes:
    """A file with a few bytes that are others; every second one has a checksum that fits."""
    body = data.partition(b"\n")[2]
    signed = generator.random() < 0.5
    text = bytearray(body if signed else data)
    for _ in range(generator.randrange(1, 4)):
        at = generator.randrange(min(len(text), 3000 if signed else len(text)) or 1)
        size = generator.choice((1, 1, 2, 30))
        new = bytes(generator.choice(b'[]{}",:0123456789-eEnullrecodtuplhsfaxyz') for _ in range(size))
        text[at : at + generator.choice((0, size))] = generator.choice((new, b"", generator.randbytes(size)))
    if not signed:
        return bytes(text)
    return header(bytes(text)) + bytes(text)


def misread(data: bytes) -> str:
    """What is wrong with how a file was read; empty if nothing is."""
    try:
        decode(data)
    except ValueError:
        return ""
    except BaseException:
        return traceback.format_exc()
    return ""


def fuzz(inputs: int, seed: int, folder: Path) -> list[str]:
    """The failures among the inputs."""
    generator, failures = random.Random(seed), []
    (folder / "mine.py").write_text(USER)
    with contextlib.chdir(folder):
        CliRunner().invoke(main, ["solve", "mine.py", *LIMITED, "--checkpoint", "first", "--out", "out"])
        good = max(Path("first").glob("*.ocp")).read_bytes()
        again = encode(decode(good))  # pickle numbers its strings anew the first time
        assert encode(decode(again)) == again
        for number in range(inputs):
            if number % 4 == 0:
                line = command_line(generator)
                failures += [f"{line}\n{wrong}" for wrong in [refused(line)] if wrong]
                continue
            data = changed(good, generator)
            failures += [wrong for wrong in [misread(data)] if wrong]
            if number % 20 == 1:
                Path("bad.ocp").write_bytes(data)
                failures += [f"{data!r}\n{wrong}" for wrong in [refused(RESUME)] if wrong]
    return failures


if __name__ == "__main__":
    os.environ["COLUMNS"] = "200"
    inputs, seed = (int(sys.argv[k]) if len(sys.argv) > k else default for k, default in ((1, 10000), (2, 0)))
    with tempfile.TemporaryDirectory() as place:
        found = fuzz(inputs, seed, Path(place))
    print(*found[:10], sep="\n")
    print(f"{len(found)} failures in {inputs} inputs")
    raise SystemExit(bool(found))
