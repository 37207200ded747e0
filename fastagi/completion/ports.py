"""What the rules need of the world, and what they tell it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fastagi.completion.model import Device, Extension, Number, Offer, Request, State


class Timer(Protocol):
    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch as counted since our start: a step of the system clock moves nothing."""

    def call_at(self, when: float, call: Callable[[], None]) -> Timer: ...


class Agent(Protocol):
    """The caller's side: rings him."""

    def recall(self, request: Request) -> None:
        """Begin to ring the caller, soon; if that cannot be, say so with ``Service.recall_undelivered``."""

    def stop(self, request: Request) -> None:
        """Stop ringing him, or see to it that it does not begin."""


class Monitor(Protocol):
    """The callee's side: tells device states, with ``Service.levels``."""

    def watch(self, devices: Mapping[Device, float], calls: frozenset[str]) -> None:
        """From now on watch just these devices (each at least every so many seconds) and these recalls."""


class Directory(Protocol):
    """The extensions of this PBX."""

    def extension(self, number: Number) -> Extension: ...

    def of_device(self, device: Device) -> Extension | None:
        """Who calls from this device; None: nobody who may ask (a trunk, ``anonymous``)."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One row of a request's log: what happened, and why, in a sentence."""

    request: int
    at: float
    old: State
    new: State
    sentence: str


@dataclass(slots=True)
class Changes:
    """What one transaction writes."""

    offers: list[Offer] = field(default_factory=list)
    forgotten_offers: list[int] = field(default_factory=list)
    requests: dict[int, Request] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)
    prune_before: float | None = None
    """Requests that ended before this instant leave the history."""

    def __bool__(self) -> bool:
        return bool(
            self.offers or self.forgotten_offers or self.requests or self.log or self.prune_before is not None
        )


class Store(Protocol):
    def commit(self, changes: Changes, done: Callable[[Exception | None], None]) -> None:
        """Write all or nothing, durably; then call ``done`` on the caller's thread, with the error if any."""
