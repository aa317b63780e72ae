"""The application: its verbs, and what happens when one of them fails.

What the user can mend is one message on the standard error, without a traceback, and an exit code that is not 0. Anything
else is a bug of ours: the traceback is shown, with a word on what to do with it. Where compiled code crashes, all threads' are shown.

Exit codes: 0 done; 1 an error; 2 a recipe or a command line that is wrong; 130 stopped by Ctrl-C (SIGINT), 143 by SIGTERM, as a scheduler
sends it before it takes the machine away: what is finished is saved, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import FrameType, TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from transllm.cli import chat, check, extend, init, inspect, plan, report, run, status
from transllm.cli.console import fail
from transllm.errors import Ended, TransLLMError


class Terminated(SystemExit):
    """SIGTERM came. No KeyboardInterrupt, which *chat* takes for a word to itself."""


_GO_ON = "Run the same command again to go on."


class Verbs(TyperGroup):
    """The group of all verbs: turns errors of the user's kind into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with _told(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


@contextlib.contextmanager
def _told(*, debug: bool) -> Iterator[None]:
    """Tell errors that the user can mend in words; let bugs through, and everything with ``debug``."""
    try:
        yield
    except KeyboardInterrupt as stopped:  # a training's own says what is saved, and which signal it was
        fail(f"{str(stopped) or 'Stopped.'} {_GO_ON}", prefix="")
        raise typer.Exit(128 + getattr(stopped, "number", signal.SIGINT)) from None
    except Terminated:
        fail(f"Stopped by SIGTERM; finished work is kept. {_GO_ON}", prefix="")
        raise typer.Exit(128 + signal.SIGTERM) from None
    except TransLLMError as error:
        if debug:
            raise
        if not isinstance(error, Ended):
            fail(str(error))
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        # EPIPE is typer's own business; an error that names no file is no user's.
        if debug or error.errno == errno.EPIPE or (error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise
        fail(" ".join([_disk(error), *getattr(error, "__notes__", ())]))
        raise typer.Exit(1) from None


def _disk(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full{where}. Make room and run the same command again; finished work is kept."
    if error.errno == errno.EFBIG:
        return (f"A file would grow larger than it may{where}. "
                "Raise the limit (ulimit -f) or free some of the quota, and run the same command again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"'{error.filename}' may not be read or written ({error.strerror}). Change its permissions, or choose another place."
    return f"'{error.filename}': {error.strerror}. Check the path and run the command again."


def _bug(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """The last word on an error that nobody foresaw."""
    sys.__excepthook__(kind, error, traceback)
    if not isinstance(error, TransLLMError | OSError | KeyboardInterrupt):
        fail("This is a bug in transllm. Please report it with the lines above and the recipe. Finished work is kept.", prefix="")


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"transllm {version('transllm')}")
        except PackageNotFoundError:
            typer.echo("transllm, not installed (run from its source)")
        raise typer.Exit


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Transform an English chat model into a chat model for another language, and measure what was gained and kept.",
                  context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", callback=_version, is_eager=True)] = False,
) -> None:
    """Options of every verb; they stand before it. ``Verbs.invoke`` reads ``debug``."""


app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("check")(check.check)
app.command("run")(run.run)
app.command("extend")(extend.extend)
app.command("status")(status.status)
app.command("chat")(chat.chat)
app.add_typer(inspect.app, name="inspect")
app.command("report")(report.report)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a scheduler that repeats itself must not disturb what is put in order now
    raise Terminated(128 + number)


def main() -> None:
    """Entry point of the ``transllm`` command."""
    # Hook and handler are set by the program, not by an import: whoever imports the library keeps their own.
    sys.excepthook = _bug
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stderr is not None:
        faulthandler.enable()  # a crash in compiled code (a kernel, the heap) has no traceback otherwise, and cannot be reported
    typer.main.get_command(app)(prog_name="transllm")
