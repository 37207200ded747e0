"""What both ends of a subscription (RFC 6665) have in common; the ends are ``notifier`` and ``subscriber``."""

from __future__ import annotations

from dataclasses import dataclass

from fastagi.sip.message import MAX_SECONDS, Request, Response
from fastagi.sip.uri import Malformed


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over; comes once, and for a notifier already when its last NOTIFY goes out.

    ``reason`` is a word of RFC 6665, 4.1.3, or ``unsubscribed``, ``refused``, ``failed``, ``unanswered``,
    ``unnotified``, ``expired``. ``status`` is the answer that ended it, 0 for none. ``retry_at``: when the
    subscriber may ask again; None: not by himself.
    """

    reason: str
    status: int = 0
    retry_at: float | None = None


def same_event(ours: str, request: Request) -> bool:
    """Whether package and ``id`` are ours (8.2.1)."""
    try:
        theirs = request.event
    except Malformed:
        return False
    mine = Request("NOTIFY", "", (("Event", ours),)).event
    assert mine is not None
    return theirs is None or (theirs.package.lower(), theirs.id) == (mine.package.lower(), mine.id)


def retry_after_of(response: Response) -> int | None:
    """Seconds of a Retry-After, whatever comment follows (RFC 3261, 20.33); None: it has none."""
    return delta_seconds(response.get("retry-after", "").partition("(")[0].partition(";")[0])


def delta_seconds(text: str) -> int | None:
    """delta-seconds; None: nonsense."""
    text = text.strip(" \t")
    return min(int(text), MAX_SECONDS) if text.isascii() and text.isdigit() and len(text) < 20 else None
