"""The console of commands that print tables."""

from __future__ import annotations

from rich.console import Console

__all__ = ["table_console"]


def table_console(width: int) -> Console:
    """A console on stdout: as wide as the terminal, or ``width`` where the output goes to a file or a pipe."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=width)
