"""What the machines of SIP have in common: how a table is obeyed, and what becomes of a request of theirs.

Theory of operation
-------------------
A machine is one frozen value and one table: state and event -> rule. Its step takes the value and an event and
gives the new value and the effects to run. An event without a row is refused with both names, and nothing has
changed.

The machines above dialogs are saved as well, and their effects are run *once that is done*. All fields are
plain, so a value survives its process; what was under way and got lost with it is begun again by the first
`Due`. Events of a peer never raise: what does not fit is answered with its status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from fastagi.errors import Refused
from fastagi.sip.message import Response


class Machine(Protocol):
    """What `obey` wants of one."""

    @property
    def state(self) -> StrEnum: ...


M = TypeVar("M", bound=Machine)
E = TypeVar("E")
"""Its effects."""


@dataclass(frozen=True, slots=True)
class Row(Generic[M, E]):
    """A rule, and the states it may lead to (checked at every step)."""

    rule: Callable[..., tuple[M, tuple[E, ...]]]
    to: tuple[StrEnum, ...]


def obey(
    table: Mapping[tuple[Any, type], Row[M, E]], who: str, machine: M, event: object, *more: object
) -> tuple[M, tuple[E, ...]]:
    """The machine after ``event``; the rule is given ``more`` besides. Raises `Refused`, and nothing has changed."""
    row = table.get((machine.state, type(event)))
    if row is None:
        sentence = f"the {who} is {machine.state}: {type(event).__name__} does not fit that state"
        raise Refused("NOT_NOW", sentence)
    new, effects = row.rule(machine, event, *more)
    assert new.state in row.to, (machine.state, event, new.state)
    return new, effects


# Of those above dialogs


@dataclass(frozen=True, slots=True)
class Content:
    """The state of something, as NOTIFY and PUBLISH say it.

    ``body`` is text, so that it can be saved; never empty: there are peers that answer 400.
    """

    body: str
    type: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A request of ours got this answer."""

    response: Response


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request of ours got none, or could not be sent; ``seq`` is its CSeq."""

    seq: int


@dataclass(frozen=True, slots=True)
class Due:
    """`next_due` has passed; comes early without harm."""


def known_fields(cls: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """What was saved of a dataclass, without what a newer version may have added."""
    names = {f.name for f in fields(cls)}
    return {k: v for k, v in saved.items() if k in names}
