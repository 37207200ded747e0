"""The nouns of call completion as plain values: numbers, devices, settings, offers, requests.

All instants are seconds (float) on the clock handed in; all timers are seconds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from fastagi.errors import FastagiError

Number = NewType("Number", str)
Device = NewType("Device", str)
Context = NewType("Context", str)

_NUMBER = re.compile(r"[0-9*#+]{1,40}", re.ASCII)
_DEVICE = re.compile(r"PJSIP/[A-Za-z0-9_.+-]{1,80}", re.ASCII)
_HINT = re.compile(r"[0-9*#+]{1,40}@[A-Za-z0-9_.-]{1,79}", re.ASCII)
_CONTEXT = re.compile(r"[A-Za-z0-9_.-]{1,79}", re.ASCII)


class Invalid(FastagiError):
    """A number, device or context from outside that has not its one strict form: refused, never repaired."""


def number(text: str) -> Number:
    """``text`` as a number: 1 to 40 of ``0-9 * # +``; raises `Invalid`."""
    if not _NUMBER.fullmatch(text):
        raise Invalid(f"{text[:60]!r} is not a number: 1 to 40 of the characters 0-9, *, # and + are allowed")
    return Number(text)


def device(text: str) -> Device:
    """``text`` as a device, ``PJSIP/<endpoint>``; raises `Invalid`."""
    if not _DEVICE.fullmatch(text):
        raise Invalid(
            f"{text[:60]!r} is not a device: PJSIP/<endpoint> with 1 to 80 letters, digits, _ . + or - is allowed"
        )
    return Device(text)


def devices(text: str) -> tuple[Device, ...]:
    """``PJSIP/a`` or ``PJSIP/a&PJSIP/b``, as in a hint; at most 8; raises `Invalid`."""
    parts = text.split("&")
    if len(parts) > 8:
        raise Invalid(f"{text[:60]!r} names {len(parts)} devices: at most 8 are allowed")
    return tuple(device(part) for part in parts)


def own_device(number: Number) -> tuple[Device, ...]:
    """The endpoint that is named as this number, if one can be: * and # are in no endpoint's name."""
    return () if set(number) & set("*#") else (Device(f"PJSIP/{number}"),)


HINT = "Hint:"


def hint(text: str) -> Device:
    """``2000@from-internal``, whose hint says if somebody is free, as a device; raises `Invalid`."""
    if not _HINT.fullmatch(text):
        raise Invalid(
            f"{text[:60]!r} is no hint: <number>@<context> of 1 to 40 of 0-9 * # + and 1 to 79 letters, digits,"
            " _ . or - is allowed"
        )
    return Device(HINT + text)


def context(text: str) -> Context:
    """``text`` as the name of a dialplan context; raises `Invalid`."""
    if not _CONTEXT.fullmatch(text):
        raise Invalid(
            f"{text[:60]!r} is not a dialplan context: 1 to 79 letters, digits, _ . or - are allowed"
        )
    return Context(text)


class Service(StrEnum):
    """Why a call is to be completed, and thereby when the callee is ready for it (RFC 6910, section 4.1)."""

    CCBS = "CCBS"
    CCNR = "CCNR"
    CCNL = "CCNL"


class State(StrEnum):
    OFFERED = "OFFERED"
    REQUESTED = "REQUESTED"
    QUEUED = "QUEUED"
    READY = "READY"
    CALLING = "CALLING"
    COMPLETED = "COMPLETED"
    ENDED = "ENDED"


OPEN = frozenset({State.REQUESTED, State.QUEUED, State.READY, State.CALLING})
TURN = frozenset({State.READY, State.CALLING})


class Presence(StrEnum):
    """What the rules need to know of a device; Asterisk's own names fold into these."""

    IDLE = "idle"
    RINGING = "ringing"
    IN_USE = "in use"
    GONE = "unavailable"


def together(levels: Iterable[Presence | None]) -> Presence | None:
    """One person's devices as one: in use if any is, gone only if all are, None while one is unread."""
    seen = list(levels)
    if not seen or None in seen:
        return None
    for presence in (Presence.IN_USE, Presence.RINGING, Presence.IDLE):
        if presence in seen:
            return presence
    return Presence.GONE


@dataclass(frozen=True, slots=True)
class Settings:
    """The timers, limits and policies of one extension, by Asterisk's names; timers in seconds."""

    cc_offer_timer: float = 20
    cc_recall_timer: float = 20
    cc_max_agents: int = 5
    cc_agent_policy: str = "generic"
    cc_retry_timer: float = 30
    cc_max_recalls: int = 3
    cc_max_monitors: int = 5
    cc_monitor_policy: str = "generic"
    cc_guard_timer: float = 0
    poll_interval: float = 0.5
    monitor: str = "device"
    """What says if he is free: his ``device``, or a ``hint``."""
    ccbs_available_timer: float = 4800
    ccnr_available_timer: float = 7200
    cc_offer_digit: str = "off"
    """The digit by which he asks while he hears that the call has failed; off: he is not told."""
    cc_offer_repeat: int = 2
    cc_offer_wait: float = 4
    cc_recall_prefix: str = ""
    cc_recall_alert_info: str = ""
    cc_recall_announce: str = "off"
    """What he hears before the callee is dialled: off, beep, or the callee's number."""
    cc_available_devstate: str = "NOT_INUSE"
    cc_offered_devstate: str = "NOT_INUSE"
    cc_caller_requested_devstate: str = "NOT_INUSE"
    cc_active_devstate: str = "INUSE"
    cc_callee_ready_devstate: str = "INUSE"
    cc_caller_busy_devstate: str = "ONHOLD"
    cc_recalling_devstate: str = "RINGING"
    cc_complete_devstate: str = "NOT_INUSE"
    cc_failed_devstate: str = "NOT_INUSE"


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for the whole system."""

    cc_max_requests: int = 1000
    cc_max_offers: int = 100_000
    history_days: float = 90


@dataclass(frozen=True, slots=True)
class Extension:
    """One number of this PBX as the configuration knows it."""

    number: Number
    settings: Settings
    name: str = ""
    devices: tuple[Device, ...] = ()
    """The devices an entry names; empty: PJSIP/<number> as a caller, the dialled endpoint as a callee."""
    dialstring: str = ""
    """What rings this extension at a recall; empty: every contact of its devices."""
    hint: str = ""
    """<number>@<context> of its hint; empty: its number in the context of the call."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings one request lives under: some are the caller's, some the callee's (README, "Settings")."""

    caller: Settings
    callee: Settings

    def service_timer(self, service: Service) -> float:
        """How long a request may wait: the shorter of the caller's and the callee's timer."""
        name = "ccbs_available_timer" if service is Service.CCBS else "ccnr_available_timer"
        return float(min(getattr(self.caller, name), getattr(self.callee, name)))


@dataclass(frozen=True, slots=True)
class Offer:
    """A caller's failed call; with ``service`` it may be asked for until ``offer_ends``.

    One that was not offered has no service but a ``reason``; it is kept because ``*30`` means the
    caller's *latest* call, and must then say why not, rather than take an older one.
    """

    id: int
    caller: Number
    caller_devices: tuple[Device, ...]
    caller_context: Context
    callee: Number
    callee_devices: tuple[Device, ...]
    service: Service | None
    reason: str
    why: str
    offered_at: float
    offer_ends: float
    uniqueid: str
    agent: str = ""
    """The trunk beyond which the caller is, who is then ``user@trunk``; empty: a phone of this PBX."""
    monitor: str = ""
    """The trunk beyond which the callee is; empty: a phone of this PBX."""
    call_in: str = ""
    """The Call-ID by which the call came over ``agent``."""
    call_out: str = ""
    """The Call-ID by which it went out over ``monitor``."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asked for. Its ``id`` is its own: one offer may be asked for again, once taken back."""

    id: int
    caller: Number
    caller_devices: tuple[Device, ...]
    caller_context: Context
    callee: Number
    callee_devices: tuple[Device, ...]
    service: Service
    state: State
    why: str
    """How the call failed, in words."""
    asked_at: float = 0
    """Its place in the queue."""
    service_ends: float = 0
    suspended: bool = False
    sign_needed: bool = False
    """The callee must first be seen in use: no reply so far, or busy while his device read idle."""
    idle_after: float = 0
    """Of several devices, while one is in use, only those count as free that were used after this instant."""
    retry_at: float = 0
    """While QUEUED: not selected before this instant."""
    recalls: int = 0
    """Turns that failed and count against ``cc_max_recalls``."""
    recall_id: str = ""
    """The attempt under way; new for each attempt, never reused."""
    taken: bool = False
    """Asterisk has begun this attempt."""
    channel: str = ""
    """The recall's Local channel, once taken; of a caller beyond a trunk the CC call, ``SIP/<hash>``."""
    recall_ends: float = 0
    """READY and CALLING: the turn is over then at the latest; REQUESTED: the other PBX has answered by then."""
    ended_at: float = 0
    reason: str = ""
    """How it ended: a word for programs."""
    agent: str = ""
    """As in its `Offer`, like ``monitor``."""
    monitor: str = ""

    @property
    def other(self) -> str:
        """The callee, as he would be called if he were the caller."""
        return f"{self.callee}@{self.monitor}" if self.monitor else self.callee
