"""What the rules need of the world, and what they tell it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from fastagi.completion.model import (
    Device,
    Extension,
    Number,
    Offer,
    Presence,
    Request,
    Service,
    Settings,
    State,
)


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

    @property
    def eager(self) -> bool:
        """Watching costs nothing: so that nobody has to be asked for when it matters, all are watched."""

    def watch(self, devices: Mapping[Device, float], calls: frozenset[str]) -> None:
        """From now on watch just these devices (each at least every so many seconds) and these recalls."""


class Lamp(Protocol):
    """The lamps on the phones of this PBX."""

    def show(self, extension: Number, state: str) -> None:
        """The lamp of this extension shows ``state``, a device state of Asterisk, from now on."""


class Directory(Protocol):
    """The extensions of this PBX."""

    def extension(self, number: Number) -> Extension: ...

    def numbers(self) -> Iterable[Number]:
        """Those that have an entry of their own."""

    def of_device(self, device: Device) -> Extension | None:
        """Who calls from this device; None: nobody who may ask (a trunk, ``anonymous``)."""


class Kept(Protocol):
    """A value that others save together with what the rules change; never changed itself."""

    def to_json(self) -> str: ...


class Beyond(Protocol):
    """Callers and callees beyond the trunks: their agents and monitors. All of it happens inside turns."""

    def load(
        self, kept: Mapping[tuple[str, str], str], offers: Sequence[Offer]
    ) -> Mapping[tuple[str, str], Kept]:
        """What the store remembers, as values by kind and key."""

    def trunk(self, device: Device) -> str:
        """The trunk whose endpoint this is; empty: it is none."""

    def endpoint(self, trunk: str) -> str:
        """What the CC call over it is dialled through; empty: whatever the dialplan dials."""

    def call_id(self, trunk: str, outgoing: bool, callee: str, caller: str) -> str:
        """The Call-ID of the latest call over it between these two; empty: none was seen."""

    def settings(self, trunk: str, settings: Settings) -> Settings:
        """Those of the callers beyond it, where they differ."""

    def caller(self, trunk: str, call_id: str) -> Extension:
        """Who called over this trunk by this Call-ID."""

    def service(self, trunk: str, call_id: str, failed: Service | None) -> Service | None:
        """What the other PBX has offered of a call to it; None: nothing. ``failed``: as we saw it fail."""

    def offered(self, offer: Offer, dialled: str) -> None:
        """This call is on record; if it went over a trunk, what is known of it must be kept."""

    def forgotten(self, offer: Offer) -> None:
        """It is no longer."""

    def requested(self, request: Request, offer: Offer, now: float) -> None:
        """What is on offer there is asked for."""

    def call_over(self, trunk: str, call_id: str) -> str:
        """The recall id of the CC call that came over this trunk by this Call-ID; empty: it was none."""

    def answered_there(self, request: int) -> bool:
        """Whether the CC call of this request was seen to be answered beyond the trunk."""

    def presence(self, device: Device, now: float) -> Presence | None:
        """What a party beyond a trunk is now (see `far_device`)."""

    def follow(self, now: float) -> bool:
        """Let the other PBXs know, once this turn is saved; True: requests have changed by it."""

    def next_due(self, after: float) -> float | None:
        """The nearest instant after that one at which `follow` has something to do."""


FAR = "SIP/"


def far_device(request: int, party: str) -> Device:
    """What stands for the ``caller`` or ``callee`` of a request who is beyond a trunk."""
    return Device(f"{FAR}{request}/{party}")


class Alone:
    """A PBX without trunks."""

    def load(
        self, kept: Mapping[tuple[str, str], str], offers: Sequence[Offer]
    ) -> Mapping[tuple[str, str], Kept]:
        return {}

    def trunk(self, device: Device) -> str:
        return ""

    def endpoint(self, trunk: str) -> str:
        return ""

    def call_id(self, trunk: str, outgoing: bool, callee: str, caller: str) -> str:
        return ""

    def settings(self, trunk: str, settings: Settings) -> Settings:
        return settings

    def caller(self, trunk: str, call_id: str) -> Extension:
        raise AssertionError(trunk)

    def service(self, trunk: str, call_id: str, failed: Service | None) -> Service | None:
        return None

    def offered(self, offer: Offer, dialled: str) -> None: ...

    def forgotten(self, offer: Offer) -> None: ...

    def requested(self, request: Request, offer: Offer, now: float) -> None: ...

    def call_over(self, trunk: str, call_id: str) -> str:
        return ""

    def answered_there(self, request: int) -> bool:
        return False

    def presence(self, device: Device, now: float) -> Presence | None:
        return None

    def follow(self, now: float) -> bool:
        return False

    def next_due(self, after: float) -> float | None:
        return None


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
    kept: dict[tuple[str, str], Kept | None] = field(default_factory=dict)
    """By kind and key; None: no longer."""
    prune_before: float | None = None
    """Requests that ended before this instant leave the history."""

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self) if f.name != "prune_before") or (
            self.prune_before is not None
        )

    def only_turns(self) -> bool:
        """Whether it says only whose turn it is, which would follow again from what was saved before."""
        turns = all(entry.old is State.QUEUED and entry.new is State.READY for entry in self.log)
        rest = self.offers or self.forgotten_offers or self.kept or self.prune_before is not None
        return bool(self.log) and turns and not rest


class Store(Protocol):
    def commit(self, changes: Changes, done: Callable[[Exception | None], None]) -> None:
        """Write all or nothing, durably; then call ``done`` on the caller's thread, with the error if any."""
