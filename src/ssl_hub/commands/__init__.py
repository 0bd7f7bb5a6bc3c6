"""The commands of `ssl-hub`: a module each, with `main(args)`. The scripts in examples/ call them too."""

import argparse
import importlib
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from textwrap import indent
from typing import Any

from .. import __version__
from ..printing import printable, printable_lines

COMMANDS = {
    "pretrain": "Pretrain a model by a recipe.",
    "recipes": "List the recipes.",
    "reconstruct": "Draw what a masked-image model fills in.",
    "embed": "Extract features of a dataset, and find an image's nearest neighbours.",
    "knn": "Classify by the nearest neighbours of features.",
    "probe": "Train a linear classifier on frozen features.",
    "finetune": "Train a whole model to classify images.",
    "evaluate": "Report on models side by side, with pictures.",
    "convert": "Turn a checkpoint of other code into a model.",
    "export": "Write a model as another library has it.",
    "models": "List the models of the hub.",
    "publish": "Fill the hub: convert the source of a published model, and push it with its card.",
}


def main(args: list[str] | None = None) -> None:
    """`ssl-hub COMMAND ...`."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_help())
    elif args[0] == "--version":
        print(f"ssl_hub {__version__}")
    elif args[0] in COMMANDS:
        run_command(args[0], args[1:])
    else:
        near = get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        sys.exit(f"error: there is no command {printable(args[0])}; {hint}")


def run_command(name: str, args: list[str] | None = None) -> None:
    """Runs a command, see [`user_errors`].

    Args:
        args: the words after the command's name; by default those of the process.
    """
    with user_errors():
        importlib.import_module(f".{name}", __name__).main(sys.argv[1:] if args is None else args)


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the process with one line for a user error, as a traceback would bury what it says; a bug keeps its own."""
    try:
        yield
    except KeyboardInterrupt:  # outside the training loop, which saves a checkpoint first
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from ..hub.publishing import PublishError  # not above, where --help would wait for it
        from ..training.run_log import NonFiniteLossError

        if not isinstance(error, (ValueError, OSError, PublishError, NonFiniteLossError)):
            raise
        sys.exit(f"error: {printable_lines(error)}")


def parse(command: str, argument_class: type, args: list[str]) -> Any:
    """An instance of a dataclass of arguments, of what follows a command."""
    from transformers import HfArgumentParser  # not above, where --help would wait for it

    parser = HfArgumentParser(
        argument_class, prog=f"ssl-hub {command}", description=COMMANDS[command], allow_abbrev=False
    )
    return parser.parse_args_into_dataclasses(args)[0]


def parse_words(command: str, args: list[str]) -> list[str]:
    """The words after a command that lists what has all of them, in small letters."""
    parser = argparse.ArgumentParser(prog=f"ssl-hub {command}", description=COMMANDS[command], allow_abbrev=False)
    parser.add_argument("words", nargs="*", help=f"Show the {command} that have all of them.")
    return [word.lower() for word in parser.parse_args(args).words]


def having(words: list[str], rows: Mapping[str, str]) -> dict[str, str]:
    """The rows, texts by their names, that have all of the words."""
    return {name: text for name, text in rows.items() if all(word in f"{name} {text}".lower() for word in words)}


def table(rows: Mapping[str, str]) -> str:
    """Texts in a column behind their names."""
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())


def _help() -> str:
    return (
        f"usage: ssl-hub COMMAND ...\n\n{indent(table(COMMANDS), '  ')}\n\n`ssl-hub COMMAND --help` lists a command's arguments. On several "
        "devices: accelerate launch -m ssl_hub COMMAND ..."
    )
