"""Whose turn it is: the queues of all callees, oldest request first.

A request's turn comes when its callee is free, its caller is free, and nobody else's turn uses one of
their devices. A caller who is not free is passed over (RFC 6910, section 7.3, leaves the policy to us:
oldest eligible first, one at a time).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto

from fastagi.completion.model import TURN, Device, Presence, Request, State, together

Look = Callable[[Device], Presence | None]
"""What a device was last seen to be; None: not read, or not watched."""


class Verdict(Enum):
    SELECT = auto()
    """His turn: recall him."""
    PASS_OVER = auto()
    """It would be his turn, but he is not free himself."""
    RESUME = auto()
    """He is free again."""
    SIGN_OF_LIFE = auto()
    """The callee, who was awaited to use his phone, does."""


def ready(request: Request, look: Look, rested: Callable[[Request], bool], now: float) -> bool:
    """Whether the callee's side allows a recall now; ``rested``: his guard time is over."""
    return (
        not request.sign_needed
        and request.retry_at <= now
        and together(map(look, request.callee_devices)) is Presence.IDLE
        and rested(request)
    )


def select(
    requests: Sequence[Request], look: Look, rested: Callable[[Request], bool], now: float
) -> tuple[Request, Verdict] | None:
    """The first thing to be done about ``requests`` (open ones, oldest first), or None.

    To be called again after each verdict was carried out, until it says None. Devices of a turn under
    way are taken, on either side. A request whose caller was not read yet holds its place: nobody
    younger is served before it is known whether he is free.
    """
    taken = {d for r in requests if r.state in TURN for d in (*r.caller_devices, *r.callee_devices)}
    for request in requests:
        if request.state is not State.QUEUED:
            continue
        if request.sign_needed and Presence.IN_USE in map(look, request.callee_devices):
            return request, Verdict.SIGN_OF_LIFE
        caller = together(map(look, request.caller_devices))
        if request.suspended:
            if caller is Presence.IDLE:
                return request, Verdict.RESUME
            continue
        both = {*request.caller_devices, *request.callee_devices}
        if taken & both or not ready(request, look, rested, now):
            continue
        if caller is Presence.IDLE:
            return request, Verdict.SELECT
        if caller is not None:
            return request, Verdict.PASS_OVER
        taken |= both
    return None


def watched(
    requests: Iterable[Request], look: Look, rested: Callable[[Request], bool], now: float
) -> Iterator[tuple[Device, bool]]:
    """The devices somebody waits for, each with True for a callee's, False for a caller's.

    A caller is looked at only when it matters: while he is passed over, and when his turn has come.
    """
    for request in requests:
        for device in request.callee_devices:
            yield device, True
        if request.state is State.QUEUED and (request.suspended or ready(request, look, rested, now)):
            for device in request.caller_devices:
                yield device, False
