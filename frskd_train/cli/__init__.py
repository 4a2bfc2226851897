"""The command `frskd`, also `python -m frskd_train`: one module per subcommand, imported on use."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper

from frskd_train.errors import SettingsError
from frskd_train.system.exits import discard_output, exit_interrupted, exit_process, exit_with_error

COMMANDS = {
    "train": "train a model with FRSKD and export the student",
    "validate": "score a model on a dataset",
    "report": "write one HTML page about one or several runs",
    "export": "write a student as ONNX or torch.export program",
    "demo": "write and serve a web page that runs a student in the browser",
    "push": "publish a trained student on the Hugging Face Hub",
    "list": "list students, pretrained weights and recipes",
    "schema": "print a JSON schema of recipes, for editors",
}
HELP = "\n".join(
    ["usage: frskd COMMAND [arguments]", "", "commands:"]
    + [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    + ["", "'frskd COMMAND --help' explains the flags of a command."]
)


def main() -> None:
    """Run the subcommand on the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "-V", "--version"):
        with _output_may_be_closed():
            print(f"frskd-timm {_version()}" if sys.argv[1:2] in (["-V"], ["--version"]) else HELP)
    elif sys.argv[1] not in COMMANDS:
        exit_with_error(f"Unknown command '{sys.argv[1]}'; the commands are {', '.join(COMMANDS)}.")
    else:
        run(sys.argv[1], sys.argv[2:])


def _version() -> str:
    try:
        return version("frskd-timm")
    except PackageNotFoundError:  # in a clone without an installation
        return "0+unknown"


@contextmanager
def _output_may_be_closed() -> Iterator[None]:
    """End the process quietly if the reader of its output is gone, as after `| head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        exit_process(141)


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand of `COMMANDS`; an error that the user can fix ends the process with a sentence and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that a terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        with _output_may_be_closed():
            import_module(f"frskd_train.cli.{command}").main(arguments)
    except SettingsError as error:
        exit_with_error(error)
    except KeyboardInterrupt:
        exit_interrupted(f"frskd {command} was interrupted: run it again.")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("frskd_"):
            raise
        install = "pip install 'frskd-timm[train]', or in a clone pip install -e '.[train]'"
        exit_with_error(f"The package '{error.name}' is not installed; run: {install}.")
    except Exception as error:
        from frskd_timm.errors import UserError  # imports torch

        if isinstance(error, UserError):
            exit_with_error(error)
        if "RANK" not in os.environ:
            raise
        traceback.print_exc()  # before this process ends, and not after the others
        exit_process(1)
