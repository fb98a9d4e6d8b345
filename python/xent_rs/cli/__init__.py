"""The command ``xent-rs``: one module for each subcommand."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .. import InternalError, __version__
from . import _terminal

__all__ = ["main"]

# Exceptions whose text is meant for the user; of any other the name of its type says more.
_PLAIN = (ArithmeticError, ImportError, IndexError, InternalError, MemoryError, TypeError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Characters that standard output cannot encode are escaped; what would go to a closed stream is dropped.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        0; 1 after an error, which is one line on standard error; 2 for wrong usage; 130 after Ctrl-C;
        141 if the reader of the output went away; 143 after SIGTERM, 129 after SIGHUP.
    """
    try:
        # argparse writes to the other stream if one is None, which is how Python marks a closed one.
        with (
            _tidying_up_after_signals(),
            contextlib.redirect_stdout(sys.stdout or io.StringIO()),
            contextlib.redirect_stderr(sys.stderr or io.StringIO()),
        ):
            return _guarded(argv)
    except KeyboardInterrupt:
        return 130
    except _Ended as ended:
        return 128 + ended.signal


class _Ended(BaseException):
    """A signal came that ends the process."""

    def __init__(self, signal: int) -> None:
        self.signal = signal


@contextlib.contextmanager
def _tidying_up_after_signals() -> Iterator[None]:
    """Have signals that would end the process at once raise an exception, so that no unfinished file stays.

    One that is ignored, as SIGHUP is under nohup, stays so. In other threads, which cannot set it, all stays.
    """

    def end(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one is not to interrupt the tidying
        raise _Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _guarded(argv: Sequence[str] | None) -> int:
    """Run, and turn whatever is raised into an exit status."""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        status = _run(argv)
        sys.stdout.flush()  # a full disk or a closed pipe shows here rather than at exit
        return status
    except KeyboardInterrupt:
        _discard_output()
        return 130
    except _Ended:
        _discard_output()
        raise
    except BrokenPipeError:
        _discard_output()
        return 141
    except Exception as error:
        print(f"xent-rs: error: {_one_line(error)}", file=sys.stderr)
        _discard_output()
        return 1


def _run(argv: Sequence[str] | None) -> int:
    try:
        parser = _parser()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            _refuse(unknown, parser, arguments.parser)
    except SystemExit as exit:  # --help, --version and wrong usage
        return int(exit.code or 0)
    run = arguments.run
    return int(run(arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(_terminal.printable(message))


class _PrintCompletion(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        try:
            shtab = importlib.import_module("shtab")
        except ImportError as error:
            raise ImportError(
                f'{option_string} needs shtab ({error}): pip install "xent_rs[completion]"'
            ) from None
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _refuse(
    unknown: list[str], parser: argparse.ArgumentParser, subparser: argparse.ArgumentParser
) -> NoReturn:
    """End with the arguments that nobody knows, and the option that may have been meant."""
    import difflib

    options = [*subparser._option_string_actions, *parser._option_string_actions]
    hint = ""
    for argument in unknown:
        close = difflib.get_close_matches(argument.partition("=")[0], options, n=1, cutoff=0.7)
        if argument.startswith("--") and close:
            hint = f" (did you mean {close[0]}?)"
            break
    subparser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def _parser() -> argparse.ArgumentParser:
    from . import (
        bench,
        compare,
        demo,
        evaluate,
        explore,
        info,
    )  # here, so that Ctrl-C is caught while they are imported

    parser = _Parser(
        prog="xent-rs",
        description="Softmax cross-entropy and its gradient on the CPU, at the speed of the memory.",
    )
    parser.add_argument("--version", action="version", version=f"xent-rs {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print a script for bash, zsh or tcsh that completes commands, options and files: "
        'eval "$(xent-rs --print-completion bash)" in ~/.bashrc',
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in (demo, explore, evaluate, compare, bench, info):
        summary = (command.__doc__ or "").split("\n\n")[0]
        subparser = commands.add_parser(
            command.__name__.rpartition(".")[2],
            help=summary,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
    return parser


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, _PLAIN) and str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return _terminal.printable(text)


def _discard_output() -> None:
    """Keep the interpreter from failing again when it flushes standard output at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
