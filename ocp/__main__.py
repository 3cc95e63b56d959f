"""``python -m ocp``: the command, also for launchers that start a module."""

from ocp.cli.commands import main

main(prog_name="ocp")
