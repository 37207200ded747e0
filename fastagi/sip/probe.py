"""Does the PBX beyond a trunk know call completion?  Two questions that call nobody, and what it answers.  Pure.

An OPTIONS to the first peer, and a SUBSCRIBE for call completion to a user that cannot exist, for 0 seconds.
There are PBXs that mind the 0 before they look at the event: they are asked once more, for an hour.  Should one
grant that, its NOTIFY belongs to no request of ours and is answered 481, which ends it (RFC 6665, 4.2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from fastagi.sip.limits import Clock
from fastagi.sip.message import Request, Response
from fastagi.sip.package import EVENT, STATE_TYPE
from fastagi.sip.trunk import Trunk
from fastagi.sip.uri import Uri

PATIENCE: Final = 8.0
"""Seconds for all of it: over UDP each question has been sent five times by then."""
HOUR: Final = 3600
MINDS_THE_TIME: Final = (400, 423)


class Verdict(StrEnum):
    """Whether it knows call completion."""

    YES = "yes"
    NO = "no"
    UNCLEAR = "unclear"
    SILENT = "no answer"


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of the peer; an answer is its status, None: there was none."""

    trunk: str
    peer: str
    options: int | None
    allow_events: bool
    """Its answer to the OPTIONS names call completion."""
    subscribe: int | None
    call_completion: Verdict
    failed_calls: int
    """Since the server started."""
    offered_calls: int
    """Those of them that it has offered to complete."""
    publish_event: str
    """The Event of a PUBLISH that it understands, as far as that has been learned."""

    @property
    def ok(self) -> bool:
        return self.call_completion in (Verdict.YES, Verdict.UNCLEAR)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentences(self) -> list[str]:
        """For people; no word of the peer's is in them."""
        return [self._of_options(), self._of_subscribe(), self._of_calls(), self._of_publish()]

    def _of_options(self) -> str:
        if self.options is None:
            return f"{self.peer} does not answer OPTIONS."
        named = ", and names call-completion in Allow-Events" if self.allow_events else ""
        return f"{self.peer} answers OPTIONS with {self.options}{named}."

    def _of_subscribe(self) -> str:
        if self.subscribe is None:
            return "It does not answer a SUBSCRIBE for call completion."
        return (
            f"It answers a SUBSCRIBE for call completion with {self.subscribe}: {_meaning(self.subscribe)}."
        )

    def _of_calls(self) -> str:
        if not self.failed_calls:
            return (
                "No call to it has failed since the server started: call somebody busy there, and ask again."
            )
        calls = "1 call" if self.failed_calls == 1 else f"{self.failed_calls} calls"
        offered = self.offered_calls or "none"
        return f"{calls} to it failed since the server started; it offered to complete {offered} (Call-Info)."

    def _of_publish(self) -> str:
        if self.publish_event == EVENT:
            return f"It knows PUBLISH by its old name only, and gets it so (Event: {EVENT})."
        return f"PUBLISH goes there as RFC 6910 says (Event: {self.publish_event}); it has not refused any."


def report(
    trunk: Trunk,
    options: Response | None,
    subscribe: Response | None,
    failed_calls: int,
    offered_calls: int,
    publish_event: str,
) -> Report:
    events = () if options is None else options.all("allow-events")
    return Report(
        trunk=trunk.name,
        peer=str(trunk.peer[0]),
        options=None if options is None else options.status,
        allow_events=EVENT in (event.lower() for event in events),
        subscribe=None if subscribe is None else subscribe.status,
        call_completion=Verdict.SILENT if subscribe is None else verdict(subscribe.status),
        failed_calls=failed_calls,
        offered_calls=offered_calls,
        publish_event=publish_event,
    )


def verdict(status: int) -> Verdict:
    """What the answer to such a SUBSCRIBE tells."""
    if status in (405, 489, 501):
        return Verdict.NO
    # 403 is no yes: chan_sip gives it, or 401, to a From that it does not know, before it looks at the event.
    return Verdict.YES if status < 300 or status in (404, 480, 481) else Verdict.UNCLEAR


def _meaning(status: int) -> str:
    """The same in words."""
    match verdict(status):
        case Verdict.NO:
            return "it does not know call completion"
        case Verdict.YES if status in (404, 480):
            return "it minds the user, who does not exist, and not the event, so it knows call completion"
        case Verdict.YES:
            return "it knows call completion"
    if status in (401, 403, 407):
        return "it does not let us ask, which tells nothing; it may know another From (subscribe_from)"
    return "that tells nothing"


class Probe:
    """One.  ``ask`` sends a request, what becomes of it comes back by `answered`; ``done`` is called once."""

    def __init__(
        self,
        trunk: Trunk,
        clock: Clock,
        new_token: Callable[[], str],
        ask: Callable[[Request], None],
        done: Callable[[Response | None, Response | None], None],
    ) -> None:
        self._trunk = trunk
        self._clock = clock
        self._new_token = new_token
        self._ask = ask
        self._done = done
        self._asked_again = False
        self._waiting = {"OPTIONS", "SUBSCRIBE"}
        self._answers: dict[str, Response | None] = {}

    def begin(self) -> None:
        self._timer = self._clock.call_at(self._clock.now() + PATIENCE, self._over)
        self._ask(self._request("OPTIONS", ""))
        self._subscribe(0)

    def answered(self, asked: Request, response: Response | None) -> None:
        """What that got; None: nothing."""
        if asked.method not in self._waiting:
            return  # too late
        minds = response is not None and response.status in MINDS_THE_TIME
        if minds and asked.method == "SUBSCRIBE" and not self._asked_again:
            self._asked_again = True
            self._answers["SUBSCRIBE"] = response  # should there be no other
            self._subscribe(HOUR)
            return
        self._answers[asked.method] = response or self._answers.get(asked.method)
        self._waiting.remove(asked.method)
        if not self._waiting:
            self._timer.cancel()
            self._over()

    def _over(self) -> None:
        self._waiting.clear()
        self._done(self._answers.get("OPTIONS"), self._answers.get("SUBSCRIBE"))

    def _subscribe(self, seconds: int) -> None:
        headers = (("Event", EVENT), ("Accept", STATE_TYPE), ("Expires", str(seconds)))
        self._ask(self._request("SUBSCRIBE", self._new_token(), *headers))

    def _request(self, method: str, user: str, *headers: tuple[str, str]) -> Request:
        """One of a Call-ID of its own, by which its answer is known."""
        trunk, us = self._trunk, self._trunk.towards_peer
        from_ = str(Uri.of("cc", *us)) if trunk.subscribe_from == "caller" else trunk.subscribe_from
        uri = str(Uri.of(user, *trunk.peer[0]))
        return Request(
            method,
            uri,
            (
                ("Max-Forwards", "70"),
                ("From", f"<{from_}>;tag={self._new_token()}"),
                ("To", f"<{uri}>"),
                ("Call-ID", f"{self._new_token()}@{us.host}"),
                ("CSeq", f"1 {method}"),
                *headers,
            ),
        )
