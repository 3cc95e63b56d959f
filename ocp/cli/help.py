"""What all commands share: help with options in the groups of `ocp.minimize` and an example, mistakes in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

import ocp.problems

__all__ = ["GROUPS", "Grouped", "UserError", "user_code"]

#: Titles of the groups in the order in which help shows them, and the parameters of each; others come last.
GROUPS = {
    "Problem": ("seed", "seeds", "sets", "dtype", "device", "threads"),
    "Method and grids": (
        *("method", "methods", "smoother", "learning_rate", "batch_size"),
        *("steps", "levels", "integrator", "grid_error"),
    ),
    "Stopping": ("target", "tolerance", "max_iterations", "max_work"),
    "Watching": ("check", "quiet"),
    "Checkpoints": ("checkpoint", "every", "resume", "resume_from"),
    "Output": ("out", "file", "overwrite"),
}


class Grouped(click.Command):
    """A command whose help shows its options by groups, and ``example``, a command line.

    A user's mistake is printed as one line; an error that the user's functions raise in a run keeps its traceback.
    """

    def __init__(self, *arguments: Any, example: str, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.example, self.epilog = example, f"\b\nExample:\n  {example}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group under its title."""
        records = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx) if isinstance(p, click.Option)}
        others = set(records) - {name for names in GROUPS.values() for name in names}
        for title, names in {**GROUPS, "Other options": others}.items():
            rows = [record for name, record in records.items() if record is not None and name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
            if _in_user_code(error, ctx.params.get("name")):
                raise
            raise click.ClickException(" ".join(str(error).split())) from error


class UserError(click.ClickException):
    """An exception that a user's file raised: where, and if that was deep in other code, the way there."""

    def __init__(self, message: str, trace: str = ""):
        super().__init__(message)
        self.trace = trace

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        if self.trace:
            click.echo(self.trace, file=file, err=True, nl=False)
        super().show(file)


@contextmanager
def user_code(path: Path, within: str = "") -> Iterator[None]:
    """Turn exceptions that a user's file raises, except for a SyntaxError, into a `UserError`."""
    try:
        yield
    except SyntaxError:
        raise
    except (Exception, SystemExit) as error:
        path, frames = path.resolve(), traceback.extract_tb(error.__traceback__)
        first = next((k for k, frame in enumerate(frames) if Path(frame.filename) == path), len(frames))
        frames = traceback.StackSummary.from_list(frames[first:])
        own = [frame for frame in frames if Path(frame.filename).parent == path.parent]
        place = f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else path.name
        what = " ".join("".join(traceback.format_exception_only(error)).split())
        ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(ocp.__file__).parent)
        deep = len(frames) > 1 and not (ours or isinstance(error, ImportError))
        trace = f"Traceback (most recent call last):\n{''.join(frames.format())}" if deep else ""
        raise UserError(f"{place}{within}: {what}", trace) from error


def _in_user_code(error: BaseException, name: str | None) -> bool:
    """Whether the user's file, or one in its folder, is nearer to the error than any of ours."""
    if name is None or not name.endswith(".py"):
        return False
    ours = (Path(ocp.__file__).parent, *map(Path, ocp.problems.__path__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if any(file.is_relative_to(folder) for folder in ours):
            return False
        if file.parent == Path(name).resolve().parent:
            return True
    return False
