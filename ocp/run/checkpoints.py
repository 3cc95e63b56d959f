"""A folder of checkpoints: each complete or absent, the last few kept, one run at a time."""

from __future__ import annotations

import os
import socket
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ocp.optimize.method import recipe
from ocp.run.bookkeeping import Run
from ocp.run.snapshots import decode, encode

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Checkpoint", "Saves", "saving", "writable"]

#: What is being written.
PART = "next.part"


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run is saved.

    It is saved when both ``every`` iterations and ``seconds`` have passed since the last time, and when it ends.

    Parameters
    ----------
    folder : path
        Made if it is missing.
    every : int
    seconds : float
        0 saves after every ``every`` iterations, however fast they are.
    keep : int
        How many of the last checkpoints stay.
    required : bool
        Whether a run ends when a checkpoint cannot be written; otherwise it warns and goes on.
    name : str
        Of the run, such as its problem and seed; a run that resumes it must have the same.
    resume : bool or path
        True resumes from the last checkpoint in the folder, or begins a run if there is none; a path resumes from that
        checkpoint. The result is that of a run without interruption, to the last bit; limits and target may differ.
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
            got = f"{self.every!r}, {self.seconds!r}, {self.keep!r}"
            raise ValueError(f"every, seconds, keep: expected integer >= 1, number >= 0, integer >= 1, got {got}")


def _identity(plan: Checkpoint, run: Run) -> dict[str, Any]:
    """What a run must have in common with one that it resumes; limits, target and tolerance may differ."""
    objective, space, box = run.objective, run.objective.space, run.objective.box
    bounds = b"" if box is None else torch.stack((box.lower, box.upper)).double().cpu().numpy().tobytes()
    return {
        "the name": plan.name or "none",
        "the integrator": objective.discretization.integrator.name,
        "the steps of the first grid": space.grid.steps,
        "the horizon": space.grid.horizon,
        "the numbers per step": space.control_size,
        "the parameters": space.parameter_size,
        "the samples": objective.work.samples,
        "the bounds": f"those of checksum {zlib.crc32(bounds):08x}" if bounds else "none",
        "the batches": repr(run.batches),
        "the type": str(run.state.control.dtype),
        **_parts("the method", run.method),
    }


def _parts(name: str, value: Any) -> dict[str, str]:
    """A recipe by its parts, each under its dotted name."""
    if not is_dataclass(value) or isinstance(value, type):
        return {name: recipe(value)}
    parts = {name: type(value).__name__}
    for part in fields(value):
        parts |= _parts(f"{name}.{part.name}", getattr(value, part.name)) if part.repr else {}
    return parts


def writable(name: str, folder: Path) -> Path:
    """A folder, made if it is missing; the OSError of one that cannot be written to begins with ``name``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{name}: expected a folder that can be written to, got {folder} ({reason})") from error
    return folder


@contextmanager
def saving(checkpoint: Checkpoint | str | PathLike[str] | None, run: Run) -> Iterator[Saves]:
    """The checkpoints of a run that has not begun; a lock, which ends with the process, keeps others away."""
    if not isinstance(checkpoint, Checkpoint | str | PathLike | None):
        raise TypeError(f"checkpoint: expected a Checkpoint or a path, got {type(checkpoint).__name__}")
    plan = checkpoint if isinstance(checkpoint, Checkpoint | None) else Checkpoint(checkpoint)
    if plan is None or run.objective.processes.rank > 0:
        yield Saves(plan, run, {})
        return
    folder = writable("checkpoint", Path(plan.folder))
    with (folder / "lock").open("a+") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            by = lock.read().strip() or "another process"
            raise ValueError(
                f"checkpoint: expected a folder that no other run uses, got {folder}, used by {by}"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        (folder / PART).unlink(missing_ok=True)
        yield Saves(plan, run, _identity(plan, run))


@dataclass
class Saves:
    """The checkpoints of a run, if it has a plan for them; of several processes the first reads and writes."""

    plan: Checkpoint | None
    run: Run
    identity: dict[str, Any]
    last: tuple[int, float] | None = None  # iteration and time of the last attempt to save

    def load(self) -> dict[str, Any] | None:
        """The checkpoint to resume from, or None; ValueError if it is damaged or of another run, or in the way."""
        if self.plan is None:
            return None
        processes, device = self.run.objective.processes, self.run.state.control.device
        if processes.rank > 0:
            data = processes.broadcast(b"")
            return decode(data, device) if data else None
        folder, resume = Path(self.plan.folder), self.plan.resume
        files = _files(folder)
        if resume is False and files:
            got = f"{folder} with {len(files)}; ask to resume, or name another folder"
            raise ValueError(f"checkpoint: expected a folder without checkpoints for a new run, got {got}")
        if not isinstance(resume, bool):
            if not Path(resume).is_file():
                own = ", ".join(path.name for path in files) or "none"
                raise ValueError(f"resume: expected a checkpoint, of which {folder} has {own}, got {resume}")
            at = next((k for k, path in enumerate(files) if path.samefile(resume)), None)
            files = [Path(resume)] if at is None else files[at:]
        if not files:
            processes.broadcast(b"")
            return None
        try:
            data = files[0].read_bytes()
            saved: dict[str, Any] = decode(data, device)
        except (OSError, ValueError) as error:
            before = "".join(f"; for the one before it take resume='{f}', or --resume-from {f}" for f in files[1:2])
            raise ValueError(f"resume: {files[0]}: {error}{before}") from error
        for name, own in self.identity.items():
            other = saved["identity"].get(name)
            if other != own:
                raise ValueError(f"resume: expected {name} as in {files[0]}, {other}, got {own}")
        processes.broadcast(data)
        return saved

    def save(self, last: bool = False) -> bool:
        """Save the run if it is time to, or at its end; True if that failed and the run must end therefore."""
        plan, run = self.plan, self.run
        if plan is None or run.objective.processes.rank > 0:
            return False
        if self.last is not None and not last:
            iteration, then = self.last
            if run.iteration < iteration + plan.every or time.monotonic() < then + plan.seconds:
                return False
        data, folder, failed = encode({**run.snapshot(), "identity": self.identity}), Path(plan.folder), False
        try:
            _write(folder / f"{run.iteration:09d}.ocp", data, plan.keep)
        except OSError as error:
            (folder / PART).unlink(missing_ok=True)
            failed, run.unsaved = True, run.unsaved + 1
            if run.unsaved == 1:
                warnings.warn(f"checkpoint: not written to {plan.folder}: {error}", RuntimeWarning, stacklevel=4)
        self.last = (run.iteration, time.monotonic())
        return failed and plan.required


def _files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one first."""
    return sorted((path for path in folder.glob("*.ocp") if path.stem.isdigit()), reverse=True)


def _write(path: Path, data: bytes, keep: int) -> None:
    """Replace a checkpoint as a whole: at any moment the folder holds the old ones, perhaps together with the new."""
    part = path.with_name(PART)
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if part.read_bytes() != data:
        raise OSError(f"{part}: expected what was written, got something else")
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    files = _files(path.parent)
    later = sum(other > path for other in files)  # of a run that was resumed before them
    for other in files[:later] + files[later + keep :]:
        other.unlink(missing_ok=True)
