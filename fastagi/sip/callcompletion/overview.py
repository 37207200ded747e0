"""What crosses the trunks, from what is saved: for ``fastagi trunk show``.  Pure.

Its texts are as the peers wrote them: whoever shows them makes them harmless.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fastagi.completion.model import TURN, Request
from fastagi.sip.callcompletion.values import Agent, Habits, Monitor
from fastagi.sip.machine import Content
from fastagi.sip.notifier import NotifierState
from fastagi.sip.package import EVENT, parse_pidf, parse_state
from fastagi.sip.subscriber import Subscriber, SubscriberState


class Direction(StrEnum):
    THERE = "watched there"
    """We have subscribed to a callee beyond the trunk."""
    HERE = "watched here"
    """The other PBX has subscribed to a callee of ours."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One; an empty text: there is none, or not yet."""

    request: int
    direction: Direction
    caller: str
    callee: str
    call_id: str
    """Of the subscription itself."""
    state: str
    seconds_left: int
    """Of the time granted, or, until that is known, of the time asked for."""
    cc_state: str
    """What was told last: queued or ready."""
    cc_service_retention: bool
    suspended: bool
    from_uri: str
    """Of the caller, as he called."""
    monitor_uri: str
    """Where the other PBX has offered completion, and we have subscribed."""
    cc_uri: str
    """Where the other PBX wants the CC call."""
    contact: str
    """Where the other PBX takes what belongs to this subscription."""


@dataclass(frozen=True, slots=True)
class TrunkOverview:
    trunk: str
    publish_event: str
    """The Event of a PUBLISH that the other PBX understands, as far as that has been learned."""
    subscriptions: tuple[Subscription, ...]

    @property
    def has_old_name(self) -> bool:
        """PUBLISH goes there by the name it had before RFC 6910."""
        return self.publish_event == EVENT


def overview(
    trunks: Iterable[str],
    kept: Mapping[tuple[str, str], str],
    request: Callable[[int], Request | None],
    now: float,
) -> list[TrunkOverview]:
    """Of these trunks, and of those that are not configured any more but have something left."""
    agents = [Agent.from_json(text) for (kind, _), text in kept.items() if kind == "agent"]
    monitors = [Monitor.from_json(text) for (kind, _), text in kept.items() if kind == "monitor"]
    found = [(m.trunk, s) for m in monitors for s in _there(m, request(m.request), now)]
    found += [(a.trunk, _here(a, request(a.request), now)) for a in agents]
    names = dict.fromkeys((*trunks, *sorted(trunk for trunk, _ in found)))
    return [
        TrunkOverview(
            name,
            Habits(**json.loads(kept.get(("habits", name), "{}"))).publish_event,
            tuple(sorted((s for trunk, s in found if trunk == name), key=lambda s: s.request)),
        )
        for name in names
    ]


def _there(m: Monitor, request: Request | None, now: float) -> Iterator[Subscription]:
    """One for each monitor URI."""
    in_turn = request is not None and request.state in TURN
    for place, fork in enumerate(m.forks):
        s = fork.subscriber
        ready = fork.ready or (in_turn and place == m.chosen)
        told = s.state is not SubscriberState.SUBSCRIBING
        yield Subscription(
            request=m.request,
            direction=Direction.THERE,
            caller=request.caller if request is not None else "",
            callee=request.callee if request is not None else "",
            call_id=s.call_id,
            state=s.state,
            seconds_left=_left(s.expires_at, now) if s.state is not SubscriberState.ENDED else 0,
            cc_state=("ready" if ready else "queued") if told else "",
            cc_service_retention=fork.retention,
            suspended=_is_closed(m.publisher.content if m.publisher is not None else None),
            from_uri=m.heard.from_uri,
            monitor_uri=s.uri,
            cc_uri=fork.cc_uri,
            contact=_contact(s),
        )


def _here(a: Agent, request: Request | None, now: float) -> Subscription:
    n = a.notifier
    told = parse_state(n.content.body.encode("utf-8", "surrogateescape"))
    return Subscription(
        request=a.request,
        direction=Direction.HERE,
        caller=request.caller if request is not None else "",
        callee=a.callee,
        call_id=n.dialog.call_id,
        state=n.state,
        seconds_left=_left(n.expires_at, now) if n.state is NotifierState.ACTIVE else 0,
        cc_state="" if told is None else "ready" if told.ready else "queued",
        cc_service_retention=told is not None and told.retention,
        suspended=a.closed(now),
        from_uri=a.from_uri,
        monitor_uri="",
        cc_uri="",
        contact=n.dialog.target,
    )


def _left(until: float, now: float) -> int:
    return max(0, int(until - now))


def _contact(s: Subscriber) -> str:
    return s.dialog.target if s.dialog is not None else ""


def _is_closed(published: Content | None) -> bool:
    return published is not None and parse_pidf(published.body.encode("utf-8", "surrogateescape")) is False
