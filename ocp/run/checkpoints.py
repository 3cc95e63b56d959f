"""A folder of checkpoints: each one whole or not there, the last few kept, one run at a time."""

from __future__ import annotations

import os
import socket
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch

from ocp.objective.processes import SERIAL, Processes
from ocp.objective.reduced import ReducedObjective
from ocp.optimize.method import Method
from ocp.optimize.status import Status
from ocp.run.run import Run, recipe
from ocp.run.snapshots import decode, encode
from ocp.space.bounds import Box
from ocp.training.batches import Batches

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Checkpoint", "Follower", "Nowhere", "Saves", "identity", "saving", "writable"]


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run is saved.

    It is saved when at least ``every`` iterations have been made and ``seconds`` have passed since the last time, and
    when it ends.

    Parameters
    ----------
    folder : path
        Made where it is missing.
    every : int
    seconds : float
        0 saves after every ``every`` iterations, however fast they are.
    keep : int
        How many of the last checkpoints stay.
    required : bool
        Whether a run ends when a checkpoint cannot be written; else it warns, and goes on.
    name : str
        Of the run, such as its problem and seed; a run that resumes it must have the same.
    resume : bool or path
        True resumes from the last checkpoint in the folder, or begins where there is none; a path resumes from that
        checkpoint. The result is that of a run that was never interrupted, to the last bit; limits and target may
        differ.
    """

    folder: str | PathLike[str]
    every: int = 1
    seconds: float = 10.0
    keep: int = 3
    required: bool = False
    name: str = ""
    resume: bool | str | PathLike[str] = False

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | PathLike):
            raise TypeError(f"folder: expected a path, got {type(self.folder).__name__}")
        if not str(self.folder):
            raise ValueError("folder: expected a path, got ''")
        if not isinstance(self.resume, bool | str | PathLike):
            raise TypeError(f"resume: expected True, False or the path of a checkpoint, got {self.resume!r}")
        whole = isinstance(self.every, int) and isinstance(self.keep, int) and isinstance(self.seconds, int | float)
        if not (whole and self.every >= 1 and self.seconds >= 0 and self.keep >= 1):
            raise ValueError(
                "every, seconds, keep: expected an integer >= 1, a number >= 0 and an integer >= 1, "
                f"got {self.every!r}, {self.seconds!r}, {self.keep!r}"
            )


@contextmanager
def saving(
    checkpoint: Checkpoint | str | PathLike[str] | None, identity: Mapping[str, Any], processes: Processes = SERIAL
) -> Iterator[Saves | Nowhere | Follower]:
    """The checkpoints of a run, open; where none are wanted, a place that keeps nothing.

    Of several processes the first one reads and writes.
    """
    if checkpoint is None:
        yield Nowhere()
        return
    if not isinstance(checkpoint, Checkpoint | str | PathLike):
        raise TypeError(f"checkpoint: expected a Checkpoint or a path, got {type(checkpoint).__name__}")
    if processes.rank > 0:
        yield Follower(processes)
        return
    plan = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    with Saves(plan, {"the name": repr(plan.name), **identity}, processes) as saves:
        yield saves


class Nowhere:
    """No checkpoints."""

    def load(self, resume: bool | str | PathLike[str], device: Any) -> None:
        return None

    def save(self, run: Run) -> Status:
        return Status.RUNNING

    def end(self, run: Run) -> Status:
        return Status.RUNNING


@dataclass(frozen=True)
class Follower:
    """What another process than the first one sees of the checkpoints: what that one has read."""

    processes: Processes

    def load(self, resume: bool | str | PathLike[str], device: Any) -> dict[str, Any] | None:
        data = self.processes.broadcast(b"")
        return decode(data, device) if data else None

    def save(self, run: Run) -> Status:
        return Status.RUNNING

    def end(self, run: Run) -> Status:
        return Status.RUNNING


def identity(method: Method, objective: ReducedObjective, batches: Batches | None) -> dict[str, Any]:
    """What a run must have in common with one that it takes up; limits, target and tolerance may differ."""
    space, like = objective.space, objective.discretization.example()[0]
    return {
        "the integrator": objective.discretization.integrator.name,
        "the steps of the first grid": space.grid.steps,
        "the horizon": space.grid.horizon,
        "the numbers per step": space.control_size,
        "the parameters": space.parameter_size,
        "the samples": objective.work.samples,
        "the bounds": _digest(objective.box),
        "the batches": repr(batches),
        "the type": str(like.dtype),
        **_parts("method", method),
    }


def _digest(box: Box | None) -> str:
    """Bounds in a few letters, the same for the same numbers."""
    if box is None:
        return "none"
    numbers = torch.stack((box.lower, box.upper)).double().cpu().numpy()
    return f"those of checksum {zlib.crc32(numbers.tobytes()):08x}"


def _parts(name: str, value: Any) -> dict[str, str]:
    """A recipe by its parts, each under its dotted name."""
    if not is_dataclass(value) or isinstance(value, type):
        return {name: recipe(value)}
    parts = {name: type(value).__name__}
    for part in fields(value):
        parts |= _parts(f"{name}.{part.name}", getattr(value, part.name)) if part.repr else {}
    return parts


def writable(name: str, folder: Path) -> Path:
    """A folder, made where it is missing.

    Raises
    ------
    OSError
        If it cannot be made or nothing can be written to it; the error begins with ``name``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{name}: expected a folder that can be written to, got {folder} ({reason})") from error
    return folder


class Saves:
    """The checkpoints of one run; while this context is open, no other run may use their folder.

    The lock is one of the system and goes with its process, however that ends.

    Parameters
    ----------
    plan : Checkpoint
    identity : mapping
        What a run must have in common with one that it takes up.
    processes : Processes
        The others receive what the first one reads.

    Raises
    ------
    ValueError
        If another run uses the folder.
    OSError
        If the folder cannot be made or written to.
    """

    def __init__(self, plan: Checkpoint, identity: Mapping[str, Any], processes: Processes = SERIAL):
        self.processes = processes
        self.plan, self.folder, self.identity = plan, Path(plan.folder), dict(identity)
        self._lock: IO[str] | None = None
        self._last: tuple[int, float] | None = None

    def __enter__(self) -> Saves:
        lock = (writable("checkpoint", self.folder) / "lock").open("a+")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(
                f"checkpoint: expected a folder that no other run uses, got {self.folder}, used by {who}"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        self._lock = lock
        for leftover in self.folder.glob("*.part"):
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        self._lock.close()

    def files(self) -> list[Path]:
        """The checkpoints, the last one first."""
        return sorted((path for path in self.folder.glob("*.ocp") if path.stem.isdigit()), reverse=True)

    def load(self, resume: bool | str | PathLike[str], device: Any) -> dict[str, Any] | None:
        """The last checkpoint, or the one asked for; None if there is no checkpoint.

        Raises
        ------
        ValueError
            If it is not whole, with the name of the one before it; or if there are some and the run is a new one.
        """
        files = self.files()
        if resume is False and files:
            raise ValueError(
                f"checkpoint: expected a folder without checkpoints for a new run, got {self.folder} with "
                f"{len(files)}; ask to resume, or name another folder"
            )
        if isinstance(resume, str | PathLike):
            wanted = Path(resume).resolve()
            there = [path for path in files if path.resolve() <= wanted]
            files = there if wanted in [path.resolve() for path in there] else [Path(resume)]
            if not wanted.is_file():
                own = ", ".join(path.name for path in self.files()) or "none"
                raise ValueError(f"resume: expected a checkpoint, of which {self.folder} has {own}, got {resume}")
        if not files:
            self.processes.broadcast(b"")
            return None
        try:
            data = files[0].read_bytes()
            saved: dict[str, Any] = decode(data, device)
        except (OSError, ValueError) as error:
            before = (
                f"; for the one before it take resume={str(files[1])!r}, or --resume-from {files[1]}"
                if len(files) > 1
                else ""
            )
            raise ValueError(f"resume: {files[0]}: {error}{before}") from error
        for name, own in self.identity.items():
            other = saved["identity"].get(name)
            if other != own:
                of_method = name.split(".")[0] == "method"
                what = f"the method as in {files[0]}, where {name} is" if of_method else f"{name} as in {files[0]},"
                raise ValueError(f"resume: expected {what} {other}, got {own}")
        self.processes.broadcast(data)
        return saved

    def save(self, run: Run) -> Status:
        """Save a run where it is time to; NOT_SAVED if that fails and the run is to end then, else RUNNING."""
        now = time.monotonic()
        if self._last is not None:
            iteration, then = self._last
            if run.iteration < iteration + self.plan.every or now < then + self.plan.seconds:
                return Status.RUNNING
        failed = self._try(run) is not None
        self._last = (run.iteration, time.monotonic())
        return Status.NOT_SAVED if failed and self.plan.required else Status.RUNNING

    def end(self, run: Run) -> Status:
        """Save a run as it is at its end; NOT_SAVED if that fails and was required, else RUNNING."""
        return Status.NOT_SAVED if self._try(run) is not None and self.plan.required else Status.RUNNING

    def _try(self, run: Run) -> OSError | None:
        data = encode({**run.snapshot(), "identity": self.identity})
        try:
            self._write(run.iteration, data)
        except OSError as error:
            run.unsaved += 1
            if run.unsaved == 1:
                warnings.warn(f"checkpoint: not written to {self.folder}: {error}", RuntimeWarning, stacklevel=4)
            return error
        return None

    def _write(self, number: int, data: bytes) -> None:
        """Replace a file as a whole: at any moment the folder holds the old checkpoints, or the new one besides."""
        path = self.folder / f"{number:09d}.ocp"
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if part.read_bytes() != data:
                raise OSError(f"{part}: expected what was written, got something else")
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        later = [other for other in self.files() if other > path]  # of a run that was taken up again before them
        for other in (*later, *self.files()[len(later) + self.plan.keep :]):
            other.unlink(missing_ok=True)
