"""Text that came from elsewhere, made fit for a terminal and for a model card."""

from collections.abc import Iterable


def printable(text: object) -> str:
    r"""`str(text)` with every character that is not printed written out, as `\x1b`; ends of lines stay.

    Names in foreign files may hold escape codes, which would move the cursor or rewrite lines of a terminal.
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def name_some(names: Iterable[object], limit: int = 5) -> str:
    """The first names, by comma, and whether there are more; on one line and `printable`."""
    shown = [printable(name).replace("\n", r"\n") for name in names]
    shown = [name if len(name) <= 100 else f"{name[:100]}..." for name in shown]
    return ", ".join([*shown[:limit], "..."] if len(shown) > limit else shown)
