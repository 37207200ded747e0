"""What the bodies and headers of call completion say (RFC 6910, 7.1, 8 and 10).  Pure: text in, values out.

All that reads takes what comes from the wire and never raises: what cannot be understood is None or left out.
What is odd but seen at real peers is understood; what no peer needs (a DTD, a body of many pages, a URI that
could end a header line) is refused as a whole.  All that writes is given words of ours only, and raises
ValueError if they would break the line they stand in.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Final, NoReturn
from urllib.parse import quote
from xml.parsers import expat
from xml.sax.saxutils import escape

from fastagi.sip.message import CallInfo, Response
from fastagi.sip.uri import Malformed, Uri

EVENT: Final = "call-completion"
STATE_TYPE: Final = "application/call-completion"
PIDF_TYPE: Final = "application/pidf+xml"

MAX_BODY: Final = 16384  # bytes; a state takes 200, a presence document of one tuple 300
MAX_URI: Final = 1024  # characters; above it nothing we send with it would still fit a datagram
MAX_MONITORS: Final = 10  # of one call
MAX_VALUES: Final = 64  # Call-Info values of one response that are looked at
MAX_VALUE: Final = 2 * MAX_URI  # characters of one

_PURPOSE: Final = "call-completion"
_MODE: Final = re.compile(r"[A-Z0-9._-]{1,16}")  # BS, NR, NL, and what may yet be defined
# Uri.parse() refuses the ASCII controls; these end a line for whoever uses str.splitlines(), or steer a terminal.
_LINE_ENDS: Final = re.compile("[\x80-\x9f\u2028\u2029]")


def _stands(uri: str) -> bool:
    """Whether that is a URI, and one that can stand in a header or a request line."""
    if len(uri) > MAX_URI or _LINE_ENDS.search(uri):
        return False
    try:
        Uri.parse(uri)
    except Malformed:
        return False
    return True


# -- application/call-completion (10) ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CcState:
    """What a NOTIFY says of one entry in the queue."""

    ready: bool  # False: queued
    uri: str = ""  # the cc-URI, verbatim, as a peer writes it: Uri.usable() before it is sent to; "": none
    retention: bool = False


_FOLD: Final = re.compile(r"\r?\n[ \t]+")
_LINE_END: Final = re.compile(r"\r?\n")  # a lone LF too; a lone CR stays, and spoils the value it stands in
_NAMES: Final = frozenset({"cc-state", "cc-service-retention", "cc-uri"})


def parse_state(body: bytes) -> CcState | None:
    """None: there is no state in it, or two.

    A final NOTIFY may have none (9.8), so whether None is a fault is for the reader of Subscription-State.
    """
    found = _defined_lines(body) if len(body) <= MAX_BODY else None
    if found is None:
        return None
    state, uri = found.get("cc-state", "").lower(), found.get("cc-uri", "")
    if state not in ("queued", "ready"):
        return None
    retention = found.get("cc-service-retention", "").lower() == "true"
    return CcState(state == "ready", uri if _stands(uri) else "", retention)


def _defined_lines(body: bytes) -> dict[str, str] | None:
    """Those RFC 6910 knows, by their names in small letters; None if one stands there twice and says two things."""
    text = body.decode("utf-8", "surrogateescape").strip(" \t\r\n")
    found: dict[str, str] = {}
    for line in _LINE_END.split(_FOLD.sub(" ", text)):
        name, colon, value = line.partition(":")
        name, value = name.rstrip(" \t").lower(), value.strip(" \t")
        if colon and name in _NAMES and found.setdefault(name, value) != value:
            return None
    return found


def state_body(ready: bool, uri: str, retention: bool) -> str:
    """For a NOTIFY; ``uri`` "": none is told."""
    lines = [f"cc-state: {'ready' if ready else 'queued'}"]
    if retention:
        lines.append("cc-service-retention: true")
    if uri:
        if not _stands(uri):
            raise ValueError("a cc-URI that cannot stand in a line")
        lines.append(f"cc-URI: {uri}")
    return "".join(f"{line}\r\n" for line in lines)


# -- application/pidf+xml (RFC 3863; RFC 6910, 8: what its example calls app/pidf) -------------------------

_BASIC: Final = ["presence", "tuple", "status", "basic"]
_AS_THEY_ARE: Final = string.ascii_letters + string.digits + string.punctuation + " "


class _Refused(Exception):
    """Markup that no presence document needs."""


def _refuse(*_: object) -> NoReturn:
    raise _Refused


class _Reader:
    """Collects the words in ``basic``, whatever prefix or namespace it has: old drafts have another."""

    def __init__(self) -> None:
        self.words: set[str] = set()
        self._path: list[str] = []
        self._text = ""

    def start(self, name: str, _: dict[str, str]) -> None:
        self._path.append(name.rpartition(":")[2])
        self._text = ""

    def data(self, text: str) -> None:
        if len(self._path) == len(_BASIC):
            self._text += text

    def end(self, _: str) -> None:
        if self._path == _BASIC:
            self.words.add(self._text.strip().lower())
        self._path.pop()


def parse_pidf(body: bytes) -> bool | None:
    """True: open, in at least one tuple; False: closed; None: it says neither."""
    if len(body) > MAX_BODY:
        return None
    reader = _Reader()
    # The encoding is set because a declared one would be looked up among all codecs there are.
    parser = expat.ParserCreate("utf-8")
    # Entities can be declared nowhere else; what they could do is over before it begins.
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.data
    try:
        parser.Parse(body.strip(b" \t\r\n"), True)
    except (expat.ExpatError, _Refused):
        return None
    return True if "open" in reader.words else False if "closed" in reader.words else None


def pidf(entity: str, open: bool) -> str:
    """For a PUBLISH: the presence of the caller, whose URI is ``entity``.  ASCII, whatever that is."""
    who = escape(quote(entity, safe=_AS_THEY_ARE, errors="surrogateescape"), {'"': "&quot;"})
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="{who}">'
        f'<tuple id="cc"><status><basic>{"open" if open else "closed"}</basic></status></tuple></presence>'
    )


# -- Call-Info (7.1) ---------------------------------------------------------------------------------------


def call_info(uri: str, m: str) -> str:
    """The value that offers call completion at ``uri``; ``m`` "": the mode is not told."""
    if not _stands(uri) or (m and not _MODE.fullmatch(m)):
        raise ValueError("a monitor that cannot stand in a header")
    return f"<{uri}>;purpose={_PURPOSE}" + (f";m={m}" if m else "")


def monitors(response: Response) -> tuple[tuple[str, str], ...]:
    """Where call completion is offered, in the order of the response: URIs verbatim, each once, with their m.

    m is in capitals; "": missing, or no word.  A later m of the same URI counts.
    """
    found: dict[str, str] = {}
    for text in response.all("call-info")[:MAX_VALUES]:
        if len(text) <= MAX_VALUE and _PURPOSE in text.lower():
            _add_monitor(found, text)
    return tuple(found.items())


def _add_monitor(found: dict[str, str], text: str) -> None:
    try:
        info = CallInfo.parse(text)
    except Malformed:
        return
    sip = info.uri.lower().startswith(("sip:", "sips:"))  # nobody can subscribe to another
    if info.purpose == _PURPOSE and sip and _stands(info.uri):
        add_monitor(found, info.uri, info.m if _MODE.fullmatch(info.m) else "")


def add_monitor(known: dict[str, str], uri: str, m: str) -> None:
    """One more, or a new m for one that is known; a missing m says nothing new."""
    if uri in known or len(known) < MAX_MONITORS:
        known[uri] = m or known.get(uri, "")
