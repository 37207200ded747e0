"""The plain values that a file is made of, their places in it, and how a sentence shows both."""

import re

Location = tuple[int | str, ...]
"""The keys, and the places in lists from 0, that lead to a value; empty: the whole file."""

NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)", re.ASCII)
"""What YAML 1.1 takes for a number besides stays text: 0100 is not 64, and 1:30 not 90."""


class Quoted(str):
    """A scalar that was in quotes: text, even where it looks like a number."""


def where(at: Location) -> str:
    """``extensions / "1000" / name``, ``fastagi / allow / item 2``."""
    return " / ".join(_step(at, place) for place in range(len(at))) or "the file"


def whose(at: Location) -> str:
    """The name of the extension or trunk that this is a place in, as `where` shows it."""
    return _step(at, 1)


def _step(at: Location, place: int) -> str:
    step = at[place]
    if isinstance(step, int):
        return f"item {step + 1}"
    if not step or len(step) > 60 or not step.isprintable():
        return shown(step)
    return f'"{step}"' if at[:place] in (("extensions",), ("trunks",)) else step


def shown(value: object) -> str:
    """What stands in the file, in one short printable line."""
    match value:
        case None:
            return "empty"
        case dict():
            return "a mapping"
        case list():
            return "a list" if value else "an empty list"
        case Quoted() if NUMBER.fullmatch(value):
            return f"the text {_clipped(value)!r}"
        case str() if NUMBER.fullmatch(value):
            return _clipped(value)
        case str():
            return repr(_clipped(value))
    return _clipped(repr(value))


def _clipped(text: str) -> str:
    return str(text) if len(text) <= 60 else text[:60] + "..."
