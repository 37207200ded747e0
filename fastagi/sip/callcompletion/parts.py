"""What the parts of call completion over trunks have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from traceback import format_exc
from typing import Protocol, TypeVar

from fastagi.completion.model import Extension, Number
from fastagi.completion.ports import Kept
from fastagi.completion.service import CompletionService
from fastagi.sip.callcompletion.values import Heard, Names
from fastagi.sip.calls import Calls
from fastagi.sip.message import Request
from fastagi.sip.trunk import Trunk
from fastagi.sip.uri import Malformed, Uri

T = TypeVar("T", bound=Kept)
K = TypeVar("K")
V = TypeVar("V")
MEMORY = 10_000
"""What is remembered of each kind; a call that is older has nothing to come that needs it."""


class Asker(Protocol):
    """What sends our requests: the element of a trunk."""

    def ask(self, request: Request) -> None: ...


class Directory(Protocol):
    def extension(self, number: Number) -> Extension: ...


@dataclass(slots=True)
class Parts:
    """The trunks, and what serves all of them."""

    trunks: Mapping[str, Trunk]
    directory: Directory
    new_token: Callable[[], str]
    """Random, for tags and Call-IDs."""
    log: Callable[[str], None]
    names: Names
    elements: dict[str, Asker] = field(default_factory=dict)
    calls: dict[str, Calls] = field(default_factory=dict)
    """What passes, by trunk."""
    minted: OrderedDict[str, tuple[str, str]] = field(default_factory=OrderedDict)
    """The monitor URIs given out lately: trunk and Call-ID, by their user part."""
    cc_calls: OrderedDict[int, str] = field(default_factory=OrderedDict)
    """The Call-IDs of our CC calls that went out lately, by request."""
    started: bool = False
    """What the store remembers has been loaded."""
    _service: CompletionService | None = None

    @property
    def service(self) -> CompletionService:
        assert self._service is not None
        return self._service

    @service.setter
    def service(self, service: CompletionService) -> None:
        self._service = service

    @staticmethod
    def remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
        """One more, and the oldest no longer."""
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > MEMORY:
            memory.popitem(last=False)

    def fault(self, where: str) -> None:
        self.log(f"a fault of fastagi itself, in {where}: {format_exc()}")

    # Inside a turn

    def ask(self, trunk: str, request: Request) -> None:
        """Send a request of ours once the turn is saved."""
        element = self.elements.get(trunk)
        if element is not None:  # else: the trunk is no longer configured
            self.service.after(partial(element.ask, request))

    def hear(self, kind: str, offer: int, trunk: str, call_id: str, now: float) -> None:
        """Keep what was seen of the call of this offer: how it ``came``, or what was ``heard`` as it went out."""
        call = self.calls[trunk].get(call_id, now)
        if call is not None:
            heard = Heard(call.from_uri, call.to_uri, call.uri, call.monitors)
            self.service.book.put_kept(kind, str(offer), heard)  # nothing follows from it yet

    def later(self, effect: Callable[[], None]) -> None:
        """Once the turn is saved; at once while we start, when nothing can be taken back."""
        if self._service is None or not self.started:
            effect()
        else:
            self.service.after(effect)

    def keep(self, kind: str, key: int | str, value: Kept | None) -> None:
        if self.service.book.kept[kind].get(str(key)) is not value:
            self.service.keep(kind, str(key), value)

    def kept(self, kind: str, key: int | str, type: type[T]) -> T | None:
        value = self.service.book.kept[kind].get(str(key))
        return value if isinstance(value, type) else None

    def all_kept(self, kind: str, type: type[T]) -> list[T]:
        """They may be changed while one goes through them."""
        return [value for value in self.service.book.kept[kind].values() if isinstance(value, type)]


def user_of(uri: str) -> str:
    """The user part of a URI, verbatim; empty: there is none."""
    try:
        return Uri.parse(uri).user
    except Malformed:
        return ""


def same_uri(one: str, other: str) -> bool:
    """Whether both name the same party (RFC 3261, 19.1.4)."""
    try:
        return one == other or Uri.parse(one).matches(Uri.parse(other))
    except Malformed:
        return False
