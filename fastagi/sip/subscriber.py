"""The subscriber's end of a subscription (RFC 6665, 4.1); what it is told is the event package's business.

Theory of operation
-------------------
It is SUBSCRIBING until the first NOTIFY, which may overtake the 2xx; then ACTIVE; LEAVING once it has had
enough, until the peer's last NOTIFY; and ENDED. What holds for it as for all machines is said in `machine`. It
is lenient:

- A refresh nobody answers has succeeded: there are peers that answer none and go on serving. Any error not in
  the list of 4.1.2.2 leaves the subscription its old time, as the RFC says.
- A peer that owes us its last NOTIFY is waited for 64*T1, and its 2xx to our leaving may grant what it likes.
- A refresh that gained nothing is the last one: then the service itself is about to end.
- An ``expires`` that is missing means what was known before.

Where others fork its SUBSCRIBE, the first dialog counts: a NOTIFY of another is answered 481, which ends that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from fastagi.errors import Refused
from fastagi.sip.dialog import Answer, Ask, Dialog, Rejected, answer_to
from fastagi.sip.machine import Answered, Due, Row, Unanswered, known_fields, obey
from fastagi.sip.message import MAX_SECONDS, Header, Request, Response, SubscriptionState
from fastagi.sip.subscription import Ended, delta_seconds, retry_after_of, same_event
from fastagi.sip.timers import TIMERS, refresh_at
from fastagi.sip.uri import Malformed

GRACE: Final = TIMERS.life
"""Seconds a subscriber waits beyond the end of the time granted: clocks differ, and a last NOTIFY is on its way."""


class SubscriberState(StrEnum):
    SUBSCRIBING = "SUBSCRIBING"
    ACTIVE = "ACTIVE"
    LEAVING = "LEAVING"
    ENDED = "ENDED"


ENDS_IT: Final = frozenset({404, 405, 410, 416, *range(480, 486), 489, 501, 604})
"""The answers to a refresh that end the subscription (4.1.2.2)."""
# 4.1.3: reason -> (may ask again, retry-after counts). A reason not listed here, or none, may, and it counts.
_AGAIN: Final = {
    "deactivated": (True, False),
    "probation": (True, True),
    "rejected": (False, False),
    "timeout": (True, False),
    "giveup": (True, True),
    "noresource": (False, False),
    "invariant": (False, False),
}


@dataclass(frozen=True, slots=True)
class Notify:
    """A NOTIFY of the peer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Leave:
    """We have had enough."""


SubscriberEvent = Notify | Leave | Answered | Unanswered | Due


@dataclass(frozen=True, slots=True)
class Accepted:
    """The peer said 2xx to the first SUBSCRIBE; not told if its NOTIFY was first."""


@dataclass(frozen=True, slots=True)
class Notified:
    """The peer told its state. ``state`` is active, pending or terminated; then `Ended` stands beside."""

    state: str
    request: Request


SubscriberEffect = Answer | Ask | Ended | Accepted | Notified


@dataclass(frozen=True, slots=True)
class Subscriber:
    """One subscription of ours with a peer."""

    uri: str
    from_: str
    """With our tag."""
    to: str
    call_id: str
    headers: tuple[tuple[str, str], ...]
    """Event, Accept and what else every SUBSCRIBE carries."""
    state: SubscriberState
    ends_at: float
    """When what we want it for is over: no time beyond that is asked for."""
    expires_at: float
    """When the time granted is over."""
    waits_until: float
    """SUBSCRIBING: for the first NOTIFY; LEAVING: for the last."""
    asked: int
    """Seconds asked for by the latest SUBSCRIBE."""
    seq: int = 1
    """The CSeq of the latest SUBSCRIBE."""
    pending: bool = True
    """It is not answered yet."""
    dialog: Dialog | None = None
    refresh_at: float | None = None
    asked_at: float = 0.0
    had_until: float | None = None
    """What ``expires_at`` was when a refresh was sent; None: there was none yet."""
    capped: bool = False
    """A refresh gained nothing: there is no other."""
    tried_again: bool = False
    """A 423 was obeyed."""

    @property
    def local_tag(self) -> str:
        """With `call_id`, what a NOTIFY for us is known by."""
        return self._request().from_.tag

    def next_due(self) -> float | None:
        """The nearest instant at which `step` wants Due."""
        if self.state is SubscriberState.ENDED:
            return None
        if self.state is not SubscriberState.ACTIVE:
            return 0.0 if self._owes_leave() else self.waits_until
        gone = self.expires_at + GRACE
        return gone if self.refresh_at is None else min(self.refresh_at, gone)

    def to_dict(self) -> dict[str, Any]:
        dialog = None if self.dialog is None else self.dialog.to_dict()
        return {**asdict(self), "dialog": dialog, "headers": [list(h) for h in self.headers]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Subscriber:
        """As it was saved; a refresh or a leaving the old process did not live to see answered is sent anew."""
        dialog = None if saved["dialog"] is None else Dialog.from_dict(saved["dialog"])
        s = cls(
            **{
                **known_fields(cls, saved),
                "dialog": dialog,
                "state": SubscriberState(saved["state"]),
                "headers": tuple((name, value) for name, value in saved["headers"]),
            }
        )
        if not s.pending or s.state in (SubscriberState.SUBSCRIBING, SubscriberState.ENDED):
            return s
        if s.state is SubscriberState.ACTIVE:
            return replace(s, pending=False, refresh_at=0.0)
        return replace(s, pending=False, asked=s.asked or 1)

    # Inside

    def _event(self) -> str:
        return next((value for name, value in self.headers if name.lower() in ("event", "o")), "")

    def _owes_leave(self) -> bool:
        """Whether the peer is still to be told that we leave."""
        return self.state is SubscriberState.LEAVING and self.dialog is not None and self.asked > 0

    def _request(self) -> Request:
        """The first SUBSCRIBE, or its repetition after a 423."""
        return Request(
            "SUBSCRIBE",
            self.uri,
            (
                ("Max-Forwards", "70"),
                ("From", self.from_),
                ("To", self.to),
                ("Call-ID", self.call_id),
                ("CSeq", f"{self.seq} SUBSCRIBE"),
                *self.headers,
                ("Expires", str(self.asked)),
            ),
        )


SubscriberStep = tuple[Subscriber, tuple[SubscriberEffect, ...]]


def subscribe(
    uri: str,
    from_: str,
    to: str,
    call_id: str,
    headers: tuple[Header, ...],
    ends_at: float,
    now: float,
) -> SubscriberStep:
    """A new subscription of ours, and its SUBSCRIBE (4.1.2.1), which asks for the time up to ``ends_at``.

    ``from_`` has a tag, new like the Call-ID unless this is one fork of several; ``headers`` names the Event.
    """
    s = Subscriber(
        uri,
        from_,
        to,
        call_id,
        tuple((name, value) for name, value in headers),
        SubscriberState.SUBSCRIBING,
        ends_at,
        expires_at=ends_at,
        waits_until=now + TIMERS.life,
        asked=max(1, min(int(ends_at - now), MAX_SECONDS)),
        asked_at=now,
    )
    if not s.local_tag:
        raise Refused("TAG", "the From of our SUBSCRIBE has no tag")
    return s, (Ask(s._request()),)


def _ask(s: Subscriber, expires: int, now: float) -> SubscriberStep:
    """A SUBSCRIBE in the dialog."""
    assert s.dialog is not None
    dialog, request = s.dialog.request("SUBSCRIBE", (*s.headers, ("Expires", str(expires))))
    new = replace(
        s,
        dialog=dialog,
        seq=dialog.local_seq,
        pending=True,
        asked=expires,
        asked_at=now,
        had_until=s.expires_at,
        refresh_at=None,
    )
    return new, (Ask(request),)


def _granted(s: Subscriber, until: float, now: float) -> Subscriber:
    """With that end of its time, and the next refresh, if there is to be one."""
    until = min(until, s.ends_at)
    more = s.ends_at - until > 1 and not s.pending and not s.capped
    return replace(s, expires_at=until, refresh_at=refresh_at(now, until - now) if more else None)


def _done(s: Subscriber, reason: str, status: int = 0, retry_at: float | None = None) -> SubscriberStep:
    new = replace(s, state=SubscriberState.ENDED, pending=False, refresh_at=None)
    return new, (Ended(reason, status, retry_at),)


def _leave_now(s: Subscriber, now: float) -> SubscriberStep:
    """SUBSCRIBE with Expires 0, and the wait for the last NOTIFY (4.1.2.3)."""
    new, asks = _ask(s, 0, now)
    return replace(new, waits_until=now + TIMERS.life), asks


def _again_at(reason: str, wait: int | None, now: float) -> float | None:
    may, counts = _AGAIN.get(reason, (True, True))
    return (now + (wait or 0) if counts else now) if may else None


def _seconds_granted(s: Subscriber, response: Response) -> int:
    """Of a 2xx; never more than was asked for (4.1.2.1), and that if it does not say."""
    try:
        granted = response.expires
    except Malformed:
        granted = None
    return s.asked if granted is None else min(granted, s.asked)


# Its rules, one function each: (subscriber, event, now) -> SubscriberStep.


def _take(s: Subscriber, request: Request) -> tuple[Subscriber, SubscriptionState]:
    """The subscriber with its dialog after a NOTIFY, and what that says. Raises Rejected."""
    if not same_event(s._event(), request):
        raise Rejected(489, "this subscription is to another event")
    try:
        said = request.subscription_state
    except Malformed as error:
        raise Rejected(400, "the Subscription-State cannot be understood") from error
    if said is None:
        raise Rejected(400, "a NOTIFY has no Subscription-State")
    if s.dialog is None:
        return replace(s, dialog=Dialog.from_notify(s._request(), request)), said
    return replace(s, dialog=s.dialog.receive(request)), said


def _notified(s: Subscriber, e: Notify, now: float) -> SubscriberStep:
    try:
        new, said = _take(s, e.request)
    except Rejected as no:
        return s, (answer_to(e.request, no.status, *no.headers),)
    told: tuple[SubscriberEffect, ...] = (answer_to(e.request, 200), Notified(said.state, e.request))
    if said.state == "terminated":
        new, ended = _done(new, said.reason or "unknown", 0, _again_at(said.reason, said.retry_after, now))
        return new, (*told, *ended)
    if said.expires is not None:
        new = _granted(new, now + said.expires, now)
    elif s.state is SubscriberState.SUBSCRIBING:
        new = _granted(new, s.expires_at, now)
    return replace(new, state=SubscriberState.ACTIVE), told


def _notified_leaving(s: Subscriber, e: Notify, now: float) -> SubscriberStep:
    """What it tells does not matter any more, but that it is the last; or the first, which makes the dialog."""
    try:
        new, said = _take(s, e.request)
    except Rejected as no:
        return s, (answer_to(e.request, no.status, *no.headers),)
    effects: tuple[SubscriberEffect, ...] = ()
    if said.state == "terminated":
        new, effects = _done(new, "unsubscribed")
    elif new._owes_leave():
        new, effects = _leave_now(new, now)
    return new, (answer_to(e.request, 200), *effects)


def _notified_ended(s: Subscriber, e: Notify, now: float) -> SubscriberStep:
    return s, (answer_to(e.request, 481),)


def _ours(s: Subscriber, response: Response) -> bool:
    """Whether it is the final answer to the latest SUBSCRIBE."""
    return s.pending and response.status >= 200 and response.cseq[0] == s.seq


def _answered_subscribing(s: Subscriber, e: Answered, now: float) -> SubscriberStep:
    response = e.response
    if not _ours(s, response):
        return s, ()
    if response.status < 300:
        dialog = Dialog.from_answer(s._request(), response)
        # Timer N runs from the SUBSCRIBE (4.1.2.4); a 2xx that took long still deserves its NOTIFY.
        new = replace(s, pending=False, dialog=dialog, waits_until=now + TIMERS.life)
        new = replace(_granted(new, now + _seconds_granted(s, response), now), refresh_at=None)
        return new, (Accepted(),)
    least = delta_seconds(response.get("min-expires", ""))
    if response.status == 423 and least is not None and least > s.asked and not s.tried_again:
        new = replace(s, seq=s.seq + 1, asked=least, asked_at=now, tried_again=True)
        return replace(new, waits_until=now + TIMERS.life), (Ask(new._request()),)
    wait = retry_after_of(response)
    return _done(s, "refused", response.status, None if wait is None else now + wait)


def _unanswered_subscribing(s: Subscriber, e: Unanswered, now: float) -> SubscriberStep:
    return _done(s, "unanswered") if s.pending and e.seq == s.seq else (s, ())


def _due_subscribing(s: Subscriber, e: Due, now: float) -> SubscriberStep:
    if now < s.waits_until:
        return s, ()
    if s.dialog is None:
        return _done(s, "unanswered")
    # 4.1.2.4: without a NOTIFY it has failed; the peer, which said 2xx, is told so.
    new, asks = _ask(s, 0, now)
    new, ended = _done(new, "unnotified")
    return new, (*asks, *ended)


def _leave_subscribing(s: Subscriber, e: Leave, now: float) -> SubscriberStep:
    """Without a dialog there is nothing to say it in: it is said as soon as the peer has made one."""
    new = replace(s, state=SubscriberState.LEAVING, waits_until=now + TIMERS.life)
    return (new, ()) if new.dialog is None else _leave_now(new, now)


def _answered_active(s: Subscriber, e: Answered, now: float) -> SubscriberStep:
    response = e.response
    if not _ours(s, response):
        return s, ()
    assert s.dialog is not None
    new = replace(s, pending=False)
    if response.status < 300:
        if not s.dialog.has(response):
            return _granted(new, s.expires_at, now), ()  # of another fork: ours is the one that told us
        until = now + _seconds_granted(s, response)
        capped = s.had_until is not None and until <= s.had_until + 1
        new = replace(new, dialog=s.dialog.answered(response), capped=s.capped or capped)
        return _granted(new, until, now), ()
    if s.had_until is None:
        # The first SUBSCRIBE was refused after its NOTIFY came: another fork refused, this one lives.
        return _granted(new, s.expires_at, now), ()
    if response.status in ENDS_IT:
        return _done(new, "failed", response.status)
    # 4.1.2.2: "still valid for the duration of the most recently known expires". Time for another try?
    retry = now + TIMERS.life
    return replace(new, refresh_at=retry if retry < s.expires_at and not s.capped else None), ()


def _unanswered_active(s: Subscriber, e: Unanswered, now: float) -> SubscriberStep:
    if not s.pending or e.seq != s.seq:
        return s, ()
    new = replace(s, pending=False)
    until = s.expires_at if s.had_until is None else max(s.expires_at, s.asked_at + s.asked)
    return _granted(new, until, now), ()


def _due_active(s: Subscriber, e: Due, now: float) -> SubscriberStep:
    if now >= s.expires_at + GRACE:
        return _done(s, "expired")
    if s.refresh_at is None or now < s.refresh_at:
        return s, ()
    return _ask(s, max(1, min(int(s.ends_at - now), MAX_SECONDS)), now)


def _leave_active(s: Subscriber, e: Leave, now: float) -> SubscriberStep:
    return _leave_now(replace(s, state=SubscriberState.LEAVING), now)


def _answered_leaving(s: Subscriber, e: Answered, now: float) -> SubscriberStep:
    if not _ours(s, e.response):
        return s, ()
    if e.response.status >= 300:
        return _done(s, "unsubscribed", e.response.status)
    new = replace(s, pending=False)
    if new.dialog is None:
        return _leave_now(replace(new, dialog=Dialog.from_answer(s._request(), e.response)), now)
    return new, ()  # whatever time it grants; now its last NOTIFY, if it sends one


def _unanswered_leaving(s: Subscriber, e: Unanswered, now: float) -> SubscriberStep:
    return _done(s, "unsubscribed") if s.pending and e.seq == s.seq else (s, ())


def _due_leaving(s: Subscriber, e: Due, now: float) -> SubscriberStep:
    if s._owes_leave():
        return _leave_now(s, now)
    return _done(s, "unsubscribed") if now >= s.waits_until else (s, ())


def _idle(s: Subscriber, e: SubscriberEvent, now: float) -> SubscriberStep:
    return s, ()


_S, _AC, _L, _E = SubscriberState

SUBSCRIBER: dict[tuple[SubscriberState, type], Row[Subscriber, SubscriberEffect]] = {
    (_S, Notify): Row(_notified, (_S, _AC, _E)),
    (_S, Answered): Row(_answered_subscribing, (_S, _E)),
    (_S, Unanswered): Row(_unanswered_subscribing, (_S, _E)),
    (_S, Due): Row(_due_subscribing, (_S, _E)),
    (_S, Leave): Row(_leave_subscribing, (_L,)),
    (_AC, Notify): Row(_notified, (_AC, _E)),
    (_AC, Answered): Row(_answered_active, (_AC, _E)),
    (_AC, Unanswered): Row(_unanswered_active, (_AC,)),
    (_AC, Due): Row(_due_active, (_AC, _E)),
    (_AC, Leave): Row(_leave_active, (_L,)),
    (_L, Notify): Row(_notified_leaving, (_L, _E)),
    (_L, Answered): Row(_answered_leaving, (_L, _E)),
    (_L, Unanswered): Row(_unanswered_leaving, (_L, _E)),
    (_L, Due): Row(_due_leaving, (_L, _E)),
    (_E, Notify): Row(_notified_ended, (_E,)),
    (_E, Answered): Row(_idle, (_E,)),
    (_E, Unanswered): Row(_idle, (_E,)),
    (_E, Due): Row(_idle, (_E,)),
}


def step_subscriber(s: Subscriber, event: SubscriberEvent, now: float) -> SubscriberStep:
    """The subscriber after ``event`` at ``now``; raises `Refused`, and nothing has changed."""
    return obey(SUBSCRIBER, "subscriber", s, event, now)
