"""Whose turn it is: the queues of all callees, oldest request first.

A request's turn comes when its callee is free, its caller is free, and nobody else's turn uses one of
their devices. A caller who is not free is passed over (RFC 6910, section 7.3, leaves the policy to us:
oldest eligible first, one at a time).

A caller is free when none of his devices is in use. A callee of several devices (a desk phone and a cordless
one, a ring group) is free when one of them is idle: it can ring. But where he did not answer, or the last
turn failed, an idle one that was idle then says nothing: until nobody talks any more, only one that has been
put down since counts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from fastagi.completion.model import TURN, Device, Presence, Request, State, together


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the devices at an instant."""

    look: Callable[[Device], Presence | None]
    """What a device was last seen to be; None: not read, or not watched."""
    since: Callable[[Device], float]
    """When it became idle; 0: it was so when first looked at."""
    used: Callable[[Device], float]
    """When it was last seen in use, or to be so no longer."""
    guard: Callable[[Request], float]
    """Seconds that this request's callee is left alone once he is free."""
    now: float


class Verdict(Enum):
    SELECT = auto()
    """His turn: recall him."""
    PASS_OVER = auto()
    """It would be his turn, but he is not free himself."""
    RESUME = auto()
    """He is free again."""
    SIGN_OF_LIFE = auto()
    """The callee, who was awaited to use his phone, does."""


def rested(request: Request, view: View) -> float | None:
    """When the callee's devices have let him be free long enough; None: he is not free."""
    levels = [view.look(device) for device in request.callee_devices]
    if None in levels or Presence.IDLE not in levels:
        return None
    idle = [device for device in request.callee_devices if view.look(device) is Presence.IDLE]
    if Presence.IN_USE not in levels and Presence.RINGING not in levels:
        return max(map(view.since, idle))
    # One that has only rung says nothing: nobody was there.
    fresh = [d for d in idle if view.used(d) > request.idle_after or not request.idle_after]
    return min(map(view.since, fresh), default=None)


def ready(request: Request, view: View) -> bool:
    """Whether the callee's side allows a recall now."""
    if request.sign_needed or request.retry_at > view.now:
        return False
    since = rested(request, view)
    return since is not None and since + view.guard(request) <= view.now


def _in_use(device: Device, request: Request, view: View) -> bool:
    """Now, or for a moment since it matters."""
    return view.look(device) is Presence.IN_USE or view.used(device) > request.idle_after > 0


def _caller(request: Request, view: View) -> Presence | None:
    return together(map(view.look, request.caller_devices))


def parties(request: Request) -> set[str]:
    """Who and what a turn of this request takes: devices, and the numbers of those who are of this PBX."""
    taken: set[str] = {*request.caller_devices, *request.callee_devices}
    if not request.agent:
        taken.add(request.caller)
    if not request.monitor:
        taken.add(request.callee)
    return taken


def select(requests: Sequence[Request], view: View) -> tuple[Request, Verdict] | None:
    """The first thing to be done about ``requests`` (open ones, oldest first), or None.

    To be called again after each verdict was carried out, until it says None. Devices of a turn under
    way are taken, on either side. A request whose caller was not read yet holds its place: nobody
    younger is served before it is known whether he is free.
    """
    taken = {party for r in requests if r.state in TURN for party in parties(r)}
    for request in requests:
        if request.state is not State.QUEUED:
            continue
        if request.sign_needed and any(_in_use(d, request, view) for d in request.callee_devices):
            return request, Verdict.SIGN_OF_LIFE
        if request.suspended:
            if _caller(request, view) is Presence.IDLE:
                return request, Verdict.RESUME
            continue
        if not ready(request, view) or taken & (both := parties(request)):
            continue
        caller = _caller(request, view)
        if caller is Presence.IDLE:
            return request, Verdict.SELECT
        if caller is not None:
            return request, Verdict.PASS_OVER
        taken |= both
    return None


def watched(requests: Iterable[Request], view: View, eager: bool = False) -> Iterator[tuple[Device, bool]]:
    """The devices somebody waits for, each with True for a callee's, False for a caller's.

    A caller is looked at only when it matters: while he is passed over, and when his turn has come;
    ``eager``: while he waits.
    """
    for request in requests:
        for device in request.callee_devices:
            yield device, True
        if request.state is State.QUEUED and (eager or request.suspended or ready(request, view)):
            for device in request.caller_devices:
                yield device, False
