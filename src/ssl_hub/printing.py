"""Text that came from elsewhere, made fit for a terminal and for a model card."""

import logging
import re
from collections.abc import Iterable


def printable(text: object) -> str:
    r"""`str(text)` on one line, with every character that is not printed written out, as `\x1b`.

    Names in foreign files may hold escape codes, which would move the cursor or rewrite lines of a terminal.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def printable_lines(text: object) -> str:
    """[`printable`] line by line: for a message that may have several."""
    return "\n".join(printable(line.expandtabs()) for line in str(text).split("\n"))


def name_some(names: Iterable[object], limit: int = 5) -> str:
    """The first names, by comma, and whether there are more; `printable`."""
    shown = [printable(name) for name in names]
    shown = [name if len(name) <= 200 else f"{name[:200]}..." for name in shown]
    return ", ".join([*shown[:limit], "..."] if len(shown) > limit else shown)


def set_up_logging() -> None:
    """For a command: the warnings of all libraries go to stderr, made printable and without colours."""
    from transformers.utils import logging as transformers_logging  # not above: it takes a while

    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # transformers has a handler of its own, which writes the names of a checkpoint's tensors as they are.
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(re.sub(r"\x1b\[[0-9;]*m", "", super().format(record)))
