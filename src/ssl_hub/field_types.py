"""Types of the fields of configurations and arguments. They say which numbers a field takes:

    temperature: PositiveFloat = 0.2
    grid_size: PositiveInt | None = None

NaN and infinity are no numbers to a field, and True is no number either.
"""

import math
from dataclasses import dataclass, fields
from enum import Enum
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, without an end that is open."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: float) -> bool:
        above = self.low < number if self.low_open else self.low <= number
        below = number < self.high if self.high_open else number <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low}" if self.low_open else f"of at least {self.low}"
        return f"in {'(' if self.low_open else '['}{self.low}, {self.high}{')' if self.high_open else ']'}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
AtLeastTwo = Annotated[int, Range(2)]
PositiveFloat = Annotated[float, Range(0, low_open=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
PositiveShare = Annotated[float, Range(0, 1, low_open=True)]  # not nothing
ShareBelowOne = Annotated[float, Range(0, 1, high_open=True)]  # not everything
InnerShare = Annotated[float, Range(0, 1, low_open=True, high_open=True)]  # neither


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Returns a value as a field of this type holds it: a whole number as a float where the type is one.

    Raises:
        ValueError: the type does not allow it.
    """
    try:
        return _fit(value, hint)
    except TypeError:
        raise ValueError(f"{name} must be {_describe(hint)}, got {value!r}") from None


def check_fields(instance: Any, prefix: str = "") -> None:
    """Applies [`check_value`] to every field of a dataclass; the errors put the prefix, such as "--", before its name."""
    hints = get_type_hints(type(instance), include_extras=True)
    for name in (field.name for field in fields(instance)):
        value = check_value(prefix + name, getattr(instance, name), hints[name])
        object.__setattr__(instance, name, value)  # a frozen one's too


def _fit(value: Any, hint: Any) -> Any:
    """Raises `TypeError` where `check_value` raises `ValueError`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _fit(value, args[0])
        fits = all(value in allowed for allowed in args[1:] if isinstance(allowed, Range))
    elif origin in (Union, UnionType):
        for option in args:
            try:
                return _fit(value, option)
            except TypeError:
                pass
        fits = False
    elif origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in args)
    elif origin in (list, tuple):
        any_length = origin is list or args[1:] == (...,)
        if not isinstance(value, origin) or (not any_length and len(value) != len(args)):
            raise TypeError
        hints = [args[0]] * len(value) if any_length else args
        return origin(_fit(item, hint) for item, hint in zip(value, hints, strict=True))
    elif hint is float:
        fits = _is_finite(value)
        value = float(value) if fits else value
    elif hint is int:
        fits = isinstance(value, Integral) and not isinstance(value, bool)
        value = int(value) if fits else value
    elif hint is Any:
        fits = True
    elif isinstance(hint, type) and issubclass(hint, Enum):
        fits = value in [member.value for member in hint]
    else:
        fits = isinstance(value, origin or hint)
    if not fits:
        raise TypeError
    return value


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([_describe(args[0]), *(str(allowed) for allowed in args[1:] if isinstance(allowed, Range))])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_describe(option) for option in args if option is not NoneType))
    if origin is Literal:
        return _or(args)
    if origin in (list, tuple):
        return f"a list, each item {_describe(args[0])}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _or([member.value for member in hint])
    names = {float: "a number", int: "a whole number", bool: "True or False", str: "a text", dict: "a mapping"}
    return names.get(hint) or names.get(origin) or f"a {getattr(hint, '__name__', hint)}"


def _or(values) -> str:
    *others, last = map(repr, values)
    return f"{', '.join(others)} or {last}" if others else last
