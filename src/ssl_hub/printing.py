"""Text that came from elsewhere, made fit for a terminal and for a model card."""

import logging
import re
from collections.abc import Iterable


def printable(text: object) -> str:
    r"""`str(text)` with every character that is not printed written out, as `\x1b`; ends of lines and tabs stay.

    Names in foreign files may hold escape codes, which would move the cursor or rewrite lines of a terminal.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))


def name_some(names: Iterable[object], limit: int = 5) -> str:
    """The first names, by comma, and whether there are more; on one line and `printable`."""
    shown = [printable(name).replace("\n", r"\n") for name in names]
    shown = [name if len(name) <= 100 else f"{name[:100]}..." for name in shown]
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
        return printable(re.sub(r"\x1b\[[0-9;]*m", "", super().format(record)))
