"""The calls that pass, remembered for a while by their Call-IDs (RFC 6910, 6.1 and 7.1).  Pure.

A call is an INVITE without a To tag and what is answered to it.  An INVITE sent again with a higher CSeq, as
after a challenge or a redirection, is the same call going on, and where it went first is where it was meant
to go; one with another From tag is another call in its place.  Re-INVITEs and what is answered to them are
not looked at; what comes twice changes nothing, but shows that the call goes on.

Limits: two forks of one INVITE that both pass here are one call.  BYE goes from end to end without us, so the
time of an answered call counts from its answer, not from its end.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from fastagi.sip.message import Request, Response
from fastagi.sip.package import add_monitor, monitors
from fastagi.sip.uri import Malformed, Uri

MAX_CALLS: Final = 100_000
MAX_TEXT: Final = 2**26  # characters of all calls together; 100,000 calls usually have a quarter of that
MAX_TEXT_OF_ONE: Final = 4096  # without monitors; a call above it is not remembered
KEPT: Final = 300.0  # seconds after the last message of a call
AT_ONCE: Final = 10  # calls forgotten by one message because their time is over: more than it can begin

_USUAL_USER: Final = re.compile(r"sips?:([A-Za-z0-9+*#_.-]+)@")


def plain_user(text: str) -> str:
    """A user part as it is compared: without escapes, since Asterisk shows none, and without blanks around it.

    Escapes that hide a control character, or nothing in UTF-8, stay.
    """
    text = text.strip(" \t")
    plain = unquote(text, errors="surrogateescape") if "%" in text else text
    return plain if plain.isprintable() else text


def _user(uri: str) -> str:
    """ "" if there is none."""
    usual = _USUAL_USER.match(uri)
    if usual is not None:
        return usual[1]
    try:
        return plain_user(Uri.parse(uri).user)
    except Malformed:
        return ""


@dataclass(slots=True, eq=False)
class Call:
    """One; its URIs are verbatim.  Who keeps it sees it change as messages pass."""

    call_id: str
    outgoing: bool  # from Asterisk
    from_uri: str
    uri: str  # the request-URI
    to_uri: str
    user: str  # of the request-URI, as in plain_user()
    from_user: str
    from_tag: str
    cseq: int  # of the latest INVITE
    seen: float  # the latest message
    status: int = 0  # the latest; 0: not answered at all yet
    monitors: tuple[tuple[str, str], ...] = ()  # (URI verbatim, m) where call completion is offered
    _text: int = 0
    _older: Call | None = field(default=None, repr=False)
    _newer: Call | None = field(default=None, repr=False)

    @property
    def final(self) -> int:
        """0: none yet."""
        return self.status if self.status > 199 else 0

    @property
    def answered(self) -> bool:
        """By a 2xx."""
        return 199 < self.status < 300


class Calls:
    """At most ``most``; the one of which nothing was heard for the longest time is forgotten first.

    Calls of the same direction, user and From user hang together from the newest to the oldest, so that the
    latest is found at once also after a newer one is forgotten.
    """

    def __init__(self, most: int = MAX_CALLS, kept: float = KEPT, text: int = MAX_TEXT) -> None:
        self._most = most
        self._kept = kept
        self._most_text = text
        self._text = 0
        self._calls: OrderedDict[str, Call] = OrderedDict()  # by their latest message
        self._latest: dict[tuple[bool, str, str], Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    # What passes

    def noted(self, request: Request, outgoing: bool, now: float) -> Call | None:
        """An INVITE passes: its call, new or known.  None: it begins none (any other request, a re-INVITE)."""
        if request.method != "INVITE" or request.to.tag:
            return None
        call = self._calls.get(request.call_id)
        if call is None or self._is_over(call, now):
            return self._begin(request, outgoing, now)
        if call.outgoing != outgoing:
            # One side cannot take the place of the other's call by its Call-ID.
            return None
        if call.from_tag != request.from_.tag:
            return self._begin(request, outgoing, now)
        if request.cseq[0] > call.cseq:
            call.cseq, call.status = request.cseq[0], 0
        self._touch(call, now)
        return call

    def answered(self, response: Response, now: float) -> Call | None:
        """A response passes: the call whose latest INVITE it answers, if that is remembered."""
        number, method = response.cseq
        call = self._calls.get(response.call_id) if method == "INVITE" else None
        if call is None or call.cseq != number or self._is_over(call, now):
            return None
        if call.from_tag != response.from_.tag:
            # The other side's re-INVITE: its CSeq is counted apart.
            return None
        status = response.status
        if _follows(status, call.status):
            call.status = status
        if status > 100 and (status > 199 or not call.final):
            # A 18x that comes late would bring back an m that counts no more.
            self._hear(call, monitors(response))
        self._touch(call, now)
        return call

    # Looking up

    def get(self, call_id: str, now: float | None = None) -> Call | None:
        """With ``now`` also none whose time is over, but which no message has yet made forgotten."""
        call = self._calls.get(call_id)
        return None if call is None or (now is not None and self._is_over(call, now)) else call

    def latest(self, outgoing: bool, user: str, from_user: str, now: float | None = None) -> Call | None:
        """The one that began last of those from ``from_user`` to ``user``, both with escapes or without."""
        key = (outgoing, plain_user(user), plain_user(from_user))
        call = self._latest.get(key)
        while call is not None and now is not None and self._is_over(call, now):
            self._forget(call)
            call = self._latest.get(key)
        return call

    def _is_over(self, call: Call, now: float) -> bool:
        return call.seen + self._kept <= now

    # Keeping

    def _begin(self, request: Request, outgoing: bool, now: float) -> Call | None:
        """In the place of any other of that Call-ID."""
        known = self._calls.get(request.call_id)
        if known is not None:
            self._forget(known)
        sender, uri = request.from_, request.uri
        call = Call(
            call_id=request.call_id,
            outgoing=outgoing,
            from_uri=sender.uri,
            uri=uri,
            to_uri=request.to.uri,
            user=_user(uri),
            from_user=_user(sender.uri),
            from_tag=sender.tag,
            cseq=request.cseq[0],
            seen=now,
        )
        self._weigh(call)
        self._calls[call.call_id] = call
        self._link(call)
        if call._text > MAX_TEXT_OF_ONE:
            self._forget(call)
            return None
        self._make_room(now)
        return call

    def _touch(self, call: Call, now: float) -> None:
        call.seen = now
        self._calls.move_to_end(call.call_id)
        self._make_room(now)

    def _hear(self, call: Call, offered: tuple[tuple[str, str], ...]) -> None:
        if not offered or offered == call.monitors:
            return
        known = dict(call.monitors)
        for uri, m in offered:
            add_monitor(known, uri, m)
        call.monitors = tuple(known.items())
        self._weigh(call)

    def _weigh(self, call: Call) -> None:
        text = _text_of(call)
        self._text += text - call._text
        call._text = text

    def _make_room(self, now: float) -> None:
        calls = self._calls
        while len(calls) > self._most or self._text > self._most_text:
            self._forget(next(iter(calls.values())))
        # A message waits for this: what is left over is the next one's.
        for _ in range(AT_ONCE):
            first = next(iter(calls.values()), None)
            if first is None or not self._is_over(first, now):
                return
            self._forget(first)

    def _forget(self, call: Call) -> None:
        del self._calls[call.call_id]
        self._text -= call._text
        self._unlink(call)

    def _link(self, call: Call) -> None:
        key = (call.outgoing, call.user, call.from_user)
        older = self._latest.get(key)
        call._older = older
        if older is not None:
            older._newer = call
        self._latest[key] = call

    def _unlink(self, call: Call) -> None:
        older, newer = call._older, call._newer
        if older is not None:
            older._newer = newer
        if newer is not None:
            newer._older = older
        else:
            key = (call.outgoing, call.user, call.from_user)
            if older is not None:
                self._latest[key] = older
            else:
                del self._latest[key]
        call._older = call._newer = None


def _follows(status: int, known: int) -> bool:
    """Whether that is news: no provisional response after a final one, no 100 after another, nothing after a 2xx."""
    if status < 200:
        return known < 200 and (status > 100 or known == 0)
    return not 199 < known < 300


def _text_of(call: Call) -> int:
    """Characters; the two users count within their URIs."""
    texts = len(call.call_id) + len(call.from_uri) + len(call.uri) + len(call.to_uri) + len(call.from_tag)
    return texts + sum(len(uri) + len(m) for uri, m in call.monitors)
