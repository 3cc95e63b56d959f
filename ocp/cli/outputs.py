"""Where commands write, and what they may replace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocp.run.checkpoints import writable
from ocp.run.json_files import plain, read

__all__ = ["COMPARISON", "RESULT", "claim", "given", "place", "replaceable", "results_below"]

#: Files of a solve; the first one holds the options, under the key ``options``.
RESULT = ("result.json", "control.pt", "convergence.png", "grids.png", "trajectory.csv", "trajectory.png")
#: Files of a comparison, likewise.
COMPARISON = ("compare.json", "convergence.png")

#: Options that change neither the problem nor the run.
ASIDE = ("check", "checkpoint", "every", "file", "out", "overwrite", "quiet", "resume", "resume_from", "threads")
#: Options that may differ between a run and one that resumes it.
LIMITS = ("max_iterations", "max_work", "target", "tolerance")


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that determine a result, without those that were left out, as they are saved."""
    kept = {name: value for name, value in options.items() if name not in ASIDE and value not in (None, ())}
    saved: dict[str, Any] = plain(kept)
    return saved


def place(name: str, folder: Path, create: bool = True) -> Path:
    """A folder that exists, or can be created in an existing one or within the working directory."""
    parent = folder.absolute().parent
    inside = parent.is_dir() or parent.resolve().is_relative_to(Path.cwd().resolve())
    if not (folder.is_dir() or (create and inside)):
        missing = parent if create else folder
        raise ValueError(f"{name}: expected a path in an existing folder, got {folder}; there is no folder {missing}")
    return writable(name, folder)


def replaceable(file: Path, key: str) -> Path:
    """A JSON file to write in an existing folder; an existing one must have the key, as an earlier report has."""
    place("json", file.parent, create=False)
    if file.exists():
        try:
            known = key in read(file)
        except (OSError, ValueError, TypeError):
            known = False
        if not known:
            raise ValueError(f"json: expected a new file or an earlier report, got {file}, which is something else")
    return file


def results_below(folder: Path) -> list[Path]:
    """The folder itself if it holds a result or a comparison, else those that do at most two levels below."""
    for pattern in ("", "*/", "*/*/"):
        files = [file for name in (COMPARISON[0], RESULT[0]) for file in folder.glob(pattern + name)]
        if files:
            return sorted({file.parent for file in files})
    raise ValueError(f"folder: expected results of ocp solve or ocp compare, got {folder}, which has none")


def claim(
    folder: Path, files: tuple[str, ...], options: Mapping[str, Any], overwrite: bool = False, resumed: bool = False
) -> Path:
    """The folder for a run with these options; an earlier result of other options is not replaced unless asked to.

    A run that is resumed replaces what it wrote before, also with other limits.
    """
    found = [name for name in files if (folder / name).exists()]
    if found and not overwrite:
        passed_over = LIMITS if resumed else ()
        differences = [line for name, line in _differences(folder / files[0], options) if name not in passed_over]
        if differences:
            what = f"{folder}, which has {found[0]} from elsewhere"
            if files[0] in found:
                what = f"{folder}, which has a result with other options ({', '.join(differences)})"
            raise ValueError(f"out: expected a folder of this run, got {what}; use --overwrite or another --out")
    return place("out", folder)


def _differences(file: Path, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options that differ from the saved ones, each with a description."""
    try:
        saved = read(file)["options"]
        names = sorted({*saved, *options})
    except (OSError, ValueError, KeyError, TypeError):
        return [("", "not known")]
    pairs = [(name, saved.get(name, "default"), options.get(name, "default")) for name in names]
    return [(name, f"{name.replace('_', '-')}: {old}, not {new}") for name, old, new in pairs if old != new]
