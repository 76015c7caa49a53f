"""Command line of telepresence: the commands, and how their results and errors end the process.

Importing this module imports no heavy library; each command imports what it needs when it runs.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from insta_runtime.errors import UserError
from telepresence import __version__
from telepresence.commands import bench, doctor, evaluate, fit, forget, rehearse, render, run, send, track
from telepresence.runtime import scratch_folder
from telepresence.runtime.end_signals import END_SIGNALS, EndedBySignal, exit_status

app = typer.Typer(
    name="telepresence",
    help="Learns a photo-real avatar of the person before the camera while they talk, and streams it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: Final[dict[str, Callable[..., Any]]] = {
    "run": run.command,
    "track": track.command,
    "fit": fit.command,
    "evaluate": evaluate.command,
    "render": render.command,
    "rehearse": rehearse.command,
    "send": send.command,
    "bench": bench.command,
    "forget": forget.command,
    "doctor": doctor.command,
}
"""Functions of the commands by name, in the order of ``telepresence --help``."""

for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: status 0, 2 for an error that the user can fix, or 128 plus the signal that ended it."""
    END_SIGNALS.before_exit = scratch_folder.remove_all
    END_SIGNALS.install()
    try:
        for removed in scratch_folder.remove_abandoned():
            _print_line(f"removed {removed.path}, the unfinished files of a command that was killed")
        status = run_command(arguments)
    except BaseException:  # what else fails while a signal ends the command, such as output to a closed terminal
        if END_SIGNALS.raised is None:
            raise
        status = exit_status(END_SIGNALS.raised)
    END_SIGNALS.finish(status)
    sys.exit(status)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error that the user can fix is printed as one line on stderr."""
    try:
        result = app(arguments, prog_name="telepresence", standalone_mode=False)
    except UserError as error:
        return _print_error(str(error))
    except typer.TyperException as error:
        return _print_error(f"{error.format_message().rstrip('.')}; see 'telepresence --help'")
    except (KeyboardInterrupt, typer.Abort):
        return exit_status(signal.SIGINT)
    except EndedBySignal as end:
        _print_line(f"{end}; nothing unfinished was left behind")
        return end.status
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "telepresence", "insta_runtime"):
            raise
        return _print_error(f"this needs the Python package {package}, which is not installed: see docs/install.md")
    except OSError as error:
        if error.filename is None:
            raise
        return _print_error(f"{error.filename}: {error.strerror}")
    return result if isinstance(result, int) else 0


def _print_error(text: str) -> int:
    _print_line(text)
    return 2


def _print_line(text: str) -> None:
    line = " ".join(text.split())
    with suppress(OSError):  # the terminal may be closed
        typer.echo(f"telepresence: {line}", err=True)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"telepresence {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())
