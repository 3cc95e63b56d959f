"""Help of the command line: options in the groups of `ocp.minimize`, and an example that works."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["GROUPS", "Grouped"]

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
    "Output": ("out", "file"),
}


class Grouped(click.Command):
    """A command whose help shows its options by groups, and an example.

    Parameters
    ----------
    example : str
        A command line.
    """

    def __init__(self, *arguments: Any, example: str, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.example, self.epilog = example, f"\b\nExample:\n  {example}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group under its title."""
        titles = {name: title for title, names in GROUPS.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*GROUPS, "Other options")}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                rows[titles.get(parameter.name or "", "Other options")].append(row)
        for title, group in rows.items():
            if group:
                with formatter.section(title):
                    formatter.write_dl(group)
