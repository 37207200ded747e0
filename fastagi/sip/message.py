"""SIP messages between bytes and values (RFC 3261, 7 and 20).  Pure: no socket, no clock.

``parse()`` reads one datagram.  What it returns has all that every answer needs: ``via``, ``from_``, ``to``,
``call_id``, ``cseq`` and ``max_forwards`` of it never fail.  Every other header is carried as it came, line
by line and byte by byte, and looked at only when asked for: ``contact``, ``expires``, ``event`` and the like
raise Malformed if the peer wrote nonsense there.

Text is UTF-8 with ``surrogateescape``: what is not UTF-8 comes through and goes back as the same bytes.

A lone CR or LF in the headers is refused: some parsers take it for the end of a line, and whoever strips
headers must see the same lines as whoever reads them next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeVar, overload

from fastagi.sip.uri import Malformed, Params, find_param

__all__ = [
    "AsReceived",
    "BadRequest",
    "CallInfo",
    "Event",
    "Header",
    "Malformed",
    "Message",
    "NameAddr",
    "Request",
    "Response",
    "SubscriptionState",
    "Via",
    "is_keep_alive",
    "parse",
]

MAX_MESSAGE: Final = 65536  # bytes, body included
MAX_HEADERS: Final = 200  # header lines
MAX_LINE: Final = 8192  # characters of one header with its folds, and of the first line
MAX_SECONDS: Final = 2**32 - 1  # 20.19; what is above it is taken as this

REASONS: Final = {
    100: "Trying",
    180: "Ringing",
    181: "Call Is Being Forwarded",
    182: "Queued",
    183: "Session Progress",
    200: "OK",
    202: "Accepted",
    204: "No Notification",
    300: "Multiple Choices",
    301: "Moved Permanently",
    302: "Moved Temporarily",
    305: "Use Proxy",
    380: "Alternative Service",
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    410: "Gone",
    412: "Conditional Request Failed",
    413: "Request Entity Too Large",
    414: "Request-URI Too Long",
    415: "Unsupported Media Type",
    416: "Unsupported URI Scheme",
    420: "Bad Extension",
    421: "Extension Required",
    423: "Interval Too Brief",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    482: "Loop Detected",
    483: "Too Many Hops",
    484: "Address Incomplete",
    485: "Ambiguous",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    489: "Bad Event",
    491: "Request Pending",
    493: "Undecipherable",
    500: "Server Internal Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Server Time-out",
    505: "Version Not Supported",
    513: "Message Too Large",
    600: "Busy Everywhere",
    603: "Decline",
    604: "Does Not Exist Anywhere",
    606: "Not Acceptable",
}

# -- header names ------------------------------------------------------------------------------------------

_COMPACT: Final = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "d": "request-disposition",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "j": "reject-contact",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "n": "identity-info",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
    "y": "identity",
}
# Headers of which one line may hold several values (7.3.1: "grammar is a comma-separated list").  The
# challenges and credentials of digest are none, though they hold commas; nor are Date and Subject.
_LISTS: Final = frozenset(
    {
        *("accept", "accept-contact", "accept-encoding", "accept-language", "alert-info", "allow"),
        *("allow-events", "call-info", "contact", "content-encoding", "content-language"),
        *("diversion", "error-info", "history-info", "in-reply-to", "p-asserted-identity"),
        *("p-associated-uri", "p-preferred-identity", "path", "proxy-require", "reason"),
        *("record-route", "reject-contact", "request-disposition", "require", "route"),
        *("service-route", "supported", "unsupported", "via", "warning"),
    }
)
_KEYS: Final = {
    spelling: key
    for key in {
        *_LISTS,
        *_COMPACT.values(),
        *("cseq", "max-forwards", "expires", "min-expires", "user-agent", "server", "subscription-state"),
        *("sip-etag", "sip-if-match", "retry-after", "authorization", "date", "timestamp"),
    }
    for spelling in (key, key.title())
}
_KEYS.update({spelling: key for c, key in _COMPACT.items() for spelling in (c, c.upper())})
_KEYS.update({"Call-ID": "call-id", "CSeq": "cseq", "SIP-ETag": "sip-etag", "SIP-If-Match": "sip-if-match"})
_TITLES: Final = {key: spelling for spelling, key in _KEYS.items() if len(spelling) > 1}


def _key(name: str) -> str:
    """What a header is known by: its long name in small letters."""
    found = _KEYS.get(name)
    if found is None:
        lower = name.lower()
        found = _COMPACT.get(lower, lower)
    return found


# -- cutting text ------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(r"[A-Za-z0-9.!%*_+`'~-]+")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CSEQ: Final = re.compile(r"([0-9]{1,10})[ \t]+([A-Za-z0-9.!%*_+`'~-]+)")
_MARKS: Final = re.compile(r'[\\"<>,;]')
_VIA: Final = re.compile(
    r"([^ \t/]+)[ \t]*/[ \t]*([^ \t/]+)[ \t]*/[ \t]*([^ \t/]+)[ \t]+([^ \t].*)", re.DOTALL
)
_USUAL_VIA: Final = re.compile(
    r"SIP/2\.0/(UDP|TCP|TLS) ([0-9A-Za-z.-]+):([1-5][0-9]{4}|[1-9][0-9]{0,3})(?=;|\Z)"
)
_SENT_BY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?:[ \t]*:[ \t]*([0-9]{1,5}))?")
_USUAL_ADDRESS: Final = re.compile(r'(?:"([^"\\]*)" )?<(sips?:[^ \t<>]+)>(;[^<> \t"]*)?')
_QUOTED: Final = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_QUOTES_CLOSED: Final = re.compile(r'[^"]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"]*)*', re.DOTALL)
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def _cut_at(text: str, separator: str, most: int = -1) -> list[str]:
    """Cut where the separator stands outside quotes; in one pass, whatever comes.

    Angle brackets protect commas; among parameters they are nothing special.
    """
    brackets = separator == ","
    if '"' not in text and not (brackets and "<" in text):
        return text.split(separator, most)
    pieces: list[str] = []
    start, skip = 0, -1
    quoted = bracketed = False
    for mark in _MARKS.finditer(text):
        at, char = mark.start(), mark[0]
        if at == skip:
            continue
        if quoted:
            if char == "\\":
                skip = at + 1
            elif char == '"':
                quoted = False
        elif bracketed:
            bracketed = char != ">"
        elif char == '"':
            quoted = True
        elif char == "<":
            bracketed = brackets
        elif char == separator:
            pieces.append(text[start:at])
            start = at + 1
            if len(pieces) == most:
                break
    pieces.append(text[start:])
    return pieces


def _values(text: str) -> list[str]:
    """The values of one line of a list; empty ones (``a,,b``) are none."""
    if "," not in text:
        return [text] if text else []
    return [v for piece in _cut_at(text, ",") if (v := piece.strip(" \t"))]


def _params(text: str) -> Params:
    """``;a=b;c`` -> (("a", "b"), ("c", None)).  Quotes are kept, empty parameters (``;;``) are none."""
    found: list[tuple[str, str | None]] = []
    for piece in _cut_at(text, ";"):
        name, equals, value = piece.partition("=")
        name = name.strip(" \t")
        if name:
            found.append((name, value.strip(" \t") if equals else None))
    return tuple(found)


@lru_cache(maxsize=64)
def _named(name: str) -> re.Pattern[str]:
    """A parameter among others, none of them with quotes: several times as fast as to cut all of them."""
    return re.compile(
        rf"(?:;|\A)[ \t]*{re.escape(name)}[ \t]*(?:=([^;]*))?(?:;|\Z)", re.IGNORECASE | re.ASCII
    )


def _closed(tail: str) -> str:
    """Parameters behind which more can be put."""
    if '"' in tail and not _QUOTES_CLOSED.fullmatch(tail):
        raise Malformed("The quotes around a parameter are not closed.")
    return tail


def _param_text(params: Iterable[tuple[str, str | None]]) -> str:
    return "".join(f";{name}" if value is None else f";{name}={value}" for name, value in params)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return _QUOTED_PAIR.sub(r"\1", text[1:-1])
    return text


def _is_number(text: str) -> bool:
    return text.isdecimal() and text.isascii()


def _seconds(text: str, what: str) -> int:
    """delta-seconds; see MAX_SECONDS."""
    if not _is_number(text):
        raise Malformed(f"{what} is not a number of seconds.")
    return min(int(text), MAX_SECONDS) if len(text) < 20 else MAX_SECONDS


# -- typed fields ------------------------------------------------------------------------------------------


class _Parametric:
    __slots__ = ()
    tail: str  # the parameters, verbatim, from their first ";"

    @property
    def params(self) -> Params:
        return _params(self.tail)

    def param(self, name: str) -> str | None:
        """The value of a parameter without its quotes, by its name in small letters; "" for a flag, None for none."""
        tail = self.tail
        if not tail or name not in tail.lower():
            return None
        if '"' in tail:
            value = find_param(self.params, name)
            return _unquoted(value) if value else value
        found = _named(name).search(tail)
        return (found[1] or "").strip(" \t") if found else None


@dataclass(frozen=True, slots=True)
class Via(_Parametric):
    """One Via value (20.42)."""

    text: str
    transport: str  # in capitals: UDP, TCP, ...
    host: str  # as received, IPv6 in its brackets
    port: int | None
    tail: str

    @classmethod
    def parse(cls, text: str) -> Via:
        found = _USUAL_VIA.match(text)
        if found is not None:
            transport, host, digits = found.groups()
            return cls(text, transport, host, int(digits), text[found.end() :])
        found = _VIA.fullmatch(text)
        if found is None or found[1].upper() != "SIP" or found[2] != "2.0":
            raise Malformed("A Via header is not SIP/2.0, a transport and an address.")
        sent_by, semicolon, tail = found[4].partition(";")
        place = _SENT_BY.fullmatch(sent_by.rstrip(" \t"))
        if place is None:
            raise Malformed("A Via header has no address that can be.")
        port = None if place[2] is None else int(place[2])
        if port is not None and not 0 < port <= 65535:
            raise Malformed("A Via header has a port that cannot be.")
        return cls(text, found[3].upper(), place[1], port, semicolon + tail)

    def __str__(self) -> str:
        return self.text

    @property
    def branch(self) -> str:
        """ "" if there is none."""
        return self.param("branch") or ""

    @property
    def received(self) -> str | None:
        return self.param("received")

    @property
    def rport(self) -> int | None:
        """The port filled in; None: not asked for, not yet filled in, or nonsense."""
        text = self.param("rport") or ""
        return int(text) if _is_number(text) and len(text) < 6 and 0 < int(text) <= 65535 else None

    def received_from(self, host: str, port: int) -> Via:
        """As the receiver of a request completes it (18.2.1; RFC 3581, 4)."""
        kept: list[tuple[str, str | None]] = []
        elsewhere = self.host.strip("[]").lower() != host.lower()
        for name, value in self.params:
            key = name.lower()
            if key == "rport":
                elsewhere = True
                kept.append((name, str(port)))
            elif key != "received":
                kept.append((name, value))
        if elsewhere:
            kept.append(("received", host))
        tail = _param_text(kept)
        text = self.text[: len(self.text) - len(self.tail)].rstrip(" \t") + tail
        return Via(text, self.transport, self.host, self.port, tail)

    def answer_to(self) -> tuple[str, int]:
        """Where a response goes (18.2.2; RFC 3581, 4): the peer's words, except what received_from() wrote."""
        default = 5061 if self.transport == "TLS" else 5060
        maddr = self.param("maddr")
        if maddr:
            return maddr, self.port or default
        return self.received or self.host.strip("[]"), self.rport or self.port or default


@dataclass(frozen=True, slots=True)
class NameAddr(_Parametric):
    """The value of From, To, Contact, Route and their like: with angle brackets or without (20.10)."""

    text: str
    display: str  # without quotes and escapes; "": none
    uri: str  # verbatim; "*" for the Contact of that value
    tail: str

    @classmethod
    def parse(cls, text: str) -> NameAddr:
        found = _USUAL_ADDRESS.fullmatch(text)
        if found is not None:
            display, uri, tail = found.groups("")
            return cls(text, display, uri, tail)
        text = text.strip(" \t")
        display = ""
        rest = text
        if text.startswith('"'):
            quoted = _QUOTED.match(text)
            if quoted is None:
                raise Malformed("The quotes around a name are not closed.")
            display = _QUOTED_PAIR.sub(r"\1", quoted[1])
            rest = text[quoted.end() :].lstrip(" \t")
            if not rest.startswith("<"):
                raise Malformed("A name is not followed by an address in angle brackets.")
        start = rest.find("<")
        if start < 0:
            return cls._bare(text)
        if not display:
            display = rest[:start].rstrip(" \t")
            if '"' in display:
                # A bare URI whose parameters hold quotes with a bracket inside
                return cls._bare(text)
        end = rest.find(">", start)
        if end < 0:
            raise Malformed("The angle brackets around an address are not closed.")
        uri, rest = rest[start + 1 : end].strip(" \t"), rest[end + 1 :].lstrip(" \t")
        if not _SCHEME.match(uri):
            raise Malformed("An address has no scheme.")
        if rest and not rest.startswith(";"):
            raise Malformed("An address is followed by something other than parameters.")
        return cls(text, display, uri, _closed(rest))

    @classmethod
    def _bare(cls, text: str) -> NameAddr:
        end = _end_of_bare(text)
        uri = text[:end].rstrip(" \t")
        if not _SCHEME.match(uri):
            raise Malformed("An address has no scheme.")
        return cls(text, "", uri, _closed(text[end:]))

    def __str__(self) -> str:
        return self.text

    @property
    def tag(self) -> str:
        """ "" if there is none."""
        return self.param("tag") or ""

    def with_tag(self, tag: str) -> NameAddr:
        """With that tag in place of any other; "": without."""
        tail = _param_text(p for p in self.params if p[0].lower() != "tag") + (f";tag={tag}" if tag else "")
        head = self.text[: len(self.text) - len(self.tail)].rstrip(" \t")
        return NameAddr(head + tail, self.display, self.uri, tail)


def _end_of_bare(text: str) -> int:
    """Where the parameters of an address without brackets begin: at the first ``;`` behind any ``@``.

    All of them are the header's, not the URI's (20.10); but a user part may hold ``;`` itself.
    """
    quote = text.find('"')
    at = text.rfind("@", 0, len(text) if quote < 0 else quote)
    end = text.find(";", at + 1)
    return len(text) if end < 0 else end


@dataclass(frozen=True, slots=True)
class CallInfo(_Parametric):
    """One Call-Info value (20.9; RFC 6910, 7.1)."""

    text: str
    uri: str  # verbatim, apart from blanks around its parameters
    tail: str

    @classmethod
    def parse(cls, text: str) -> CallInfo:
        """With brackets as the grammar says, or without as RFC 6910, 7.1 prints it.

        Without them it cannot be known whose the parameters are: ``purpose`` and ``m`` are the header's, all
        others (``user``, ``tgrp``, ``transport``) the URI's.
        """
        text = text.strip(" \t")
        if text.startswith("<"):
            address = NameAddr.parse(text)
            return cls(text, address.uri, address.tail)
        end = _end_of_bare(text)
        uri, tail = text[:end].strip(" \t"), ""
        if not _SCHEME.match(uri):
            raise Malformed("A Call-Info header has no address.")
        for piece in _cut_at(text[end + 1 :], ";"):
            name, equals, value = (part.strip(" \t") for part in piece.partition("="))
            if name.lower() in ("purpose", "m"):
                tail += f";{name}{equals}{value}"
            elif name:
                uri += f";{name}{equals}{value}"
        return cls(text, uri, tail)

    def __str__(self) -> str:
        return self.text

    @property
    def purpose(self) -> str:
        """In small letters; "" if there is none."""
        return (self.param("purpose") or "").lower()

    @property
    def m(self) -> str:
        """BS, NR, NL or whatever came, in capitals; "" if there is none."""
        return (self.param("m") or "").upper()


@dataclass(frozen=True, slots=True)
class Event(_Parametric):
    """RFC 6665, 8.2.1."""

    package: str  # verbatim
    tail: str

    @property
    def id(self) -> str | None:
        return self.param("id")


@dataclass(frozen=True, slots=True)
class SubscriptionState(_Parametric):
    """RFC 6665, 8.2.3; without ``expires`` too, as peers send it."""

    state: str  # in small letters: active, pending, terminated or what is yet to come
    tail: str

    @property
    def expires(self) -> int | None:
        """Seconds; None: not said, or nonsense."""
        return self._seconds("expires")

    @property
    def retry_after(self) -> int | None:
        """Seconds; None: not said, or nonsense."""
        return self._seconds("retry-after")

    @property
    def reason(self) -> str:
        """In small letters; "" if there is none."""
        return (self.param("reason") or "").lower()

    def _seconds(self, name: str) -> int | None:
        text = self.param(name) or ""
        return _seconds(text, name) if _is_number(text) else None


# -- messages ----------------------------------------------------------------------------------------------

Header = tuple[str, str]
"""Name as received, and value: without blanks around it, a fold made one blank."""


class AsReceived(Header):
    """A header whose line was not ``Name: value``; ``line`` is what goes out again."""

    line: str

    def __new__(cls, name: str, value: str, line: str) -> AsReceived:
        self = super().__new__(cls, (name, value))
        self.line = line
        return self


class _Seen:
    """What was read of a message, so that it is read once."""

    index: dict[str, list[str]] | None = None
    via: Via | None = None
    from_: NameAddr | None = None
    to: NameAddr | None = None
    cseq: tuple[int, str] | None = None


M = TypeVar("M", bound="Message")


class Message:
    """What requests and responses share.  Never changed: all that changes something returns another."""

    __slots__ = ()
    headers: tuple[Header, ...]
    body: bytes
    _seen: _Seen

    @property
    def first_line(self) -> str:
        raise NotImplementedError

    def _copy(self: M, headers: tuple[Header, ...], body: bytes) -> M:
        raise NotImplementedError

    # Reading

    @property
    def _index(self) -> dict[str, list[str]]:
        index = self._seen.index
        if index is None:
            index = self._seen.index = {}
            for name, value in self.headers:
                index.setdefault(_key(name), []).append(value)
        return index

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the first line of that name, long or compact, in any case."""
        found = self._index.get(_key(name))
        return found[0] if found else default

    def all(self, name: str) -> list[str]:
        """All values of that name in their order; lines are split at commas only if the header is a list."""
        key = _key(name)
        found = self._index.get(key, [])
        return [v for line in found for v in _values(line)] if key in _LISTS else list(found)

    def _one(self, key: str) -> str:
        found = self._index.get(key)
        if not found:
            raise Malformed(f"There is no {_TITLES[key]} header.")
        return found[0]

    @property
    def via(self) -> Via:
        """The topmost."""
        via = self._seen.via
        if via is None:
            text = self._one("via")
            via = self._seen.via = Via.parse(_cut_at(text, ",", 1)[0].strip(" \t") if "," in text else text)
        return via

    @property
    def from_(self) -> NameAddr:
        found = self._seen.from_
        if found is None:
            found = self._seen.from_ = NameAddr.parse(self._one("from"))
        return found

    @property
    def to(self) -> NameAddr:
        found = self._seen.to
        if found is None:
            found = self._seen.to = NameAddr.parse(self._one("to"))
        return found

    @property
    def call_id(self) -> str:
        return self._one("call-id")

    @property
    def cseq(self) -> tuple[int, str]:
        cseq = self._seen.cseq
        if cseq is None:
            found = _CSEQ.fullmatch(self._one("cseq"))
            if found is None or int(found[1]) >= 2**31:  # 8.1.1.5
                raise Malformed("The CSeq header is not a number below 2**31 and a method.")
            cseq = self._seen.cseq = int(found[1]), found[2]
        return cseq

    @property
    def max_forwards(self) -> int | None:
        text = self.get("max-forwards")
        if text is None:
            return None
        if not _is_number(text) or len(text) > 9:
            raise Malformed("The Max-Forwards header is not a number.")
        return int(text)

    @property
    def content_length(self) -> int | None:
        """As the header says it, if there is one; what is beyond all reason as 2**32 - 1."""
        found = self._index.get("content-length")
        if not found:
            return None
        if not _is_number(found[0]) or len(set(found)) > 1:
            raise Malformed("The Content-Length header is not one number.")
        return int(found[0]) if len(found[0]) < 10 else MAX_SECONDS

    @property
    def content_type(self) -> str:
        """``type/subtype`` in small letters without parameters; "" if there is none."""
        return self.get("content-type", "").partition(";")[0].strip(" \t").lower()

    @property
    def contact(self) -> NameAddr | None:
        """The first; its URI is "*" if that is all there is."""
        found = self.all("contact")
        if not found:
            return None
        return NameAddr("*", "", "*", "") if found[0] == "*" else NameAddr.parse(found[0])

    @property
    def expires(self) -> int | None:
        """Seconds."""
        text = self.get("expires")
        return None if text is None else _seconds(text, "The Expires header")

    @property
    def event(self) -> Event | None:
        text = self.get("event")
        if text is None:
            return None
        package, _, tail = text.partition(";")
        package = package.strip(" \t")
        if not _TOKEN.fullmatch(package):
            raise Malformed("The Event header names no package.")
        return Event(package, tail)

    @property
    def subscription_state(self) -> SubscriptionState | None:
        text = self.get("subscription-state")
        if text is None:
            return None
        state, _, tail = text.partition(";")
        state = state.strip(" \t").lower()
        if not _TOKEN.fullmatch(state):
            raise Malformed("The Subscription-State header names no state.")
        return SubscriptionState(state, tail)

    # Changing

    def with_headers(self: M, *headers: Header) -> M:
        """With these for all lines of their names: in the place of the first of them, else at the end."""
        new: dict[str, list[Header]] = {}
        for header in headers:
            new.setdefault(_key(header[0]), []).append(header)
        lines: list[Header] = []
        placed = set()
        for header in self.headers:
            key = _key(header[0])
            if key not in new:
                lines.append(header)
            elif key not in placed:
                placed.add(key)
                lines += new[key]
        for key, wanted in new.items():
            if key not in placed:
                lines += wanted
        return self._copy(tuple(lines), self.body)

    def without(self: M, *names: str) -> M:
        keys = {_key(n) for n in names}
        return self._copy(tuple(h for h in self.headers if _key(h[0]) not in keys), self.body)

    def prepended(self: M, *headers: Header) -> M:
        """With these lines above all others: a Via, a Route of ours."""
        return self._copy(headers + self.headers, self.body)

    def appended(self: M, *headers: Header) -> M:
        return self._copy(self.headers + headers, self.body)

    def with_top(self: M, name: str, value: str) -> M:
        """With that for the first value of a list; the others of its line stay.  No such header: no change."""
        return self._top(name, value)

    def without_top(self: M, name: str) -> M:
        """Without the first value of a list: a Via of ours, a Route that led here."""
        return self._top(name, None)

    def _top(self: M, name: str, value: str | None) -> M:
        key = _key(name)
        for at, header in enumerate(self.headers):
            if _key(header[0]) != key or (key in _LISTS and not _values(header[1])):
                continue
            others = _values(header[1])[1:] if key in _LISTS else []
            values = others if value is None else [value, *others]
            line = ((header[0], ", ".join(values)),) if values else ()
            changed = self._copy(self.headers[:at] + line + self.headers[at + 1 :], self.body)
            index = self._seen.index
            if key in ("via", "route") and index is not None and header[1] == index[key][0]:
                # All else is as it was: every message a transport takes in comes by here.
                seen = changed._seen
                seen.from_, seen.to, seen.cseq = self._seen.from_, self._seen.to, self._seen.cseq
                seen.via = None if key == "via" else self._seen.via
                first = [", ".join(values)] if values else []
                seen.index = {**index, key: [*first, *index[key][1:]]}
            return changed
        return self

    def with_body(self: M, body: bytes, content_type: str) -> M:
        changed = self.with_headers(("Content-Type", content_type)) if body else self.without("Content-Type")
        return self._copy(changed.headers, body)

    def to_bytes(self) -> bytes:
        """Every header as it came; Content-Length is made right, or added.

        A CR or LF in what was put in is a fault of ours: ValueError.
        """
        length = len(self.body)
        lines = [self.first_line]
        folds = 0
        written = False
        for header in self.headers:
            if (_KEYS.get(header[0]) or _key(header[0])) == "content-length":
                if written:
                    continue
                written = True
                if not (_is_number(header[1]) and len(header[1]) < 10 and int(header[1]) == length):
                    header = (header[0], str(length))
            if type(header) is AsReceived:
                lines.append(header.line)
                folds += header.line.count("\r\n")
            else:
                lines.append(f"{header[0]}: {header[1]}")
        if not written:
            lines.append(f"Content-Length: {length}")
        text = "\r\n".join(lines)
        ends = len(lines) - 1 + folds
        if text.count("\n") != ends or text.count("\r") != ends:
            raise ValueError("a CR or LF in a header or in the first line")
        return (text + "\r\n\r\n").encode("utf-8", "surrogateescape") + self.body


@dataclass(frozen=True, slots=True)
class Request(Message):
    method: str
    uri: str  # verbatim
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    _seen: _Seen = field(default_factory=_Seen, init=False, repr=False, compare=False)

    @property
    def first_line(self) -> str:
        return f"{self.method} {self.uri} SIP/2.0"

    def _copy(self, headers: tuple[Header, ...], body: bytes) -> Request:
        return Request(self.method, self.uri, headers, body)

    def with_uri(self, uri: str) -> Request:
        return Request(self.method, uri, self.headers, self.body)

    def received_from(self, host: str, port: int) -> Request:
        """With ``received`` and ``rport`` in its top Via, as the transport does first of all."""
        via = self.via.received_from(host, port)
        if via.text == self.via.text:
            return self
        changed = self.with_top("via", via.text)
        changed._seen.via = via
        return changed

    def response(
        self,
        status: int,
        reason: str = "",
        headers: Iterable[Header] = (),
        body: bytes = b"",
        tag: str = "",
    ) -> Response:
        """An answer (8.2.6.2): Via, From, To, Call-ID, CSeq, then ``headers``.

        ``tag`` goes into a To that has none.  Record-Route is copied where a dialog may begin (12.1.1),
        Timestamp into a 100.
        """
        copied = _ANSWERED if status > 299 else _ANSWERED_EARLY if status == 100 else _ANSWERED_IN_DIALOG
        kept: list[Header] = []
        for header in self.headers:
            key = _KEYS.get(header[0]) or _key(header[0])
            if key == "to" and tag:
                kept.append(self._tagged(header, tag))
            elif key in copied:
                kept.append(header)
        return Response(status, reason or REASONS.get(status, "Unknown"), (*kept, *headers), body)

    def _tagged(self, header: Header, tag: str) -> Header:
        try:
            if self.to.tag:
                return header
            empty = self.to.param("tag") is not None
            return header[0], self.to.with_tag(tag).text if empty else f"{header[1]};tag={tag}"
        except Malformed:  # of a BadRequest
            return header


_ANSWERED: Final = frozenset({"via", "from", "to", "call-id", "cseq"})
_ANSWERED_EARLY: Final = _ANSWERED | {"timestamp"}
_ANSWERED_IN_DIALOG: Final = _ANSWERED | {"record-route"}


@dataclass(frozen=True, slots=True)
class Response(Message):
    status: int
    reason: str
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    _seen: _Seen = field(default_factory=_Seen, init=False, repr=False, compare=False)

    @property
    def first_line(self) -> str:
        return f"SIP/2.0 {self.status} {self.reason}"

    def _copy(self, headers: tuple[Header, ...], body: bytes) -> Response:
        return Response(self.status, self.reason, headers, body)


class BadRequest(Malformed):
    """A request that is no good but tells enough to be answered: ``request.response(status)``.  Never an ACK."""

    def __init__(self, error: Malformed, request: Request) -> None:
        super().__init__(str(error), error.status)
        self.request = request


# -- parsing -----------------------------------------------------------------------------------------------

_FIRST_LINE: Final = re.compile(
    r"(?:[Ss][Ii][Pp]/2\.0 ([1-6][0-9][0-9])(?: (.*))?"
    r"|([A-Za-z0-9.!%*_+`'~-]+) ([^ \t<>]+) [Ss][Ii][Pp]/2\.0)",
    re.DOTALL,
)
_OTHER_VERSION: Final = re.compile(
    r"[A-Za-z0-9.!%*_+`'~-]+ [^ \t]+ SIP/(?!2\.0\Z)[0-9]+\.[0-9]+", re.IGNORECASE
)
_ONCE: Final = ("call-id", "cseq", "from", "to", "max-forwards", "content-length")


def is_keep_alive(data: bytes) -> bool:
    """Whether a datagram is nothing but CR and LF: to be ignored (RFC 5626, 3.5.1 and what peers send)."""
    return not data.strip(b"\r\n")


def parse(data: bytes) -> Request | Response:
    """One message that fills a datagram; what is behind its Content-Length is ignored (18.3).

    Raises BadRequest if it can be answered, else Malformed.
    """
    if len(data) > MAX_MESSAGE:
        raise Malformed(f"A message is longer than {MAX_MESSAGE} bytes.", 513)
    data = data.lstrip(b"\r\n")
    end = data.find(b"\r\n\r\n")
    if end < 0:
        raise Malformed("No empty line ends the headers.")
    message = parse_head(data[:end])
    try:
        length = message.content_length
        body = data[end + 4 :]
        if length is not None:
            if length > len(body):
                raise Malformed("Content-Length is more than came.")
            body = body[:length]
    except Malformed as error:
        raise answerable(error, message) from None
    return complete(message, body)


def parse_head(head: bytes) -> Request | Response:
    """The first line and the headers, without the empty line; nothing is known of their values yet."""
    text = head.decode("utf-8", "surrogateescape")
    lines = text.split("\r\n")
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise Malformed("A line ends in a lone CR or LF.")
    first = check_first_line(lines[0])
    folded = "\n " in text or ("\t" in text and "\n\t" in text)
    if folded:
        lines = _folded(lines)
    if len(lines) - 1 > MAX_HEADERS:
        raise Malformed(f"There are more than {MAX_HEADERS} headers.", 513)
    usual = not folded and len(text) <= MAX_LINE
    headers: list[Header] = []
    index: dict[str, list[str]] = {}
    known = _KEYS.get
    for line in lines[1:]:
        name, _, value = line.partition(": ")
        key = known(name)
        if key is None or value.strip() is not value or not usual:
            header = name, value = _unusual_header(line)
            key = _key(name)
            headers.append(header)
        else:
            headers.append((name, value))
        if key in index:
            index[key].append(value)
        else:
            index[key] = [value]
    message: Request | Response
    if first[1]:
        message = Response(int(first[1]), first[2] or "", tuple(headers))
    else:
        message = Request(first[3], first[4], tuple(headers))
    message._seen.index = index
    return message


def check_first_line(line: str) -> re.Match[str]:
    """The first line taken apart; raises Malformed."""
    if len(line) > MAX_LINE:
        raise Malformed(f"The first line is longer than {MAX_LINE} characters.", 513)
    found = _FIRST_LINE.fullmatch(line)
    if found is None:
        if _OTHER_VERSION.fullmatch(line):
            raise Malformed("The version is not SIP/2.0.", 505)
        raise Malformed("The first line is neither a request's nor a response's.")
    return found


def _folded(lines: list[str]) -> list[str]:
    """Lines that begin with a blank are joined to the one before (7.3.1), their ends kept in it."""
    whole: list[list[str]] = []
    for line in lines:
        if not line.startswith((" ", "\t")):
            whole.append([line])
        elif len(whole) > 1:
            whole[-1].append(line)
        else:
            raise Malformed("The first line is followed by blanks.")
    return ["\r\n".join(parts) for parts in whole]


def _unusual_header(line: str) -> Header:
    """A header whose name is not among those known here, or whose line may not be written as usual."""
    if len(line) > MAX_LINE:
        raise Malformed(f"A header is longer than {MAX_LINE} characters.", 513)
    name, colon, value = line.partition(":")
    name = name.rstrip(" \t")
    if not colon or not _TOKEN.fullmatch(name):
        raise Malformed("A line is no header.")
    value = " ".join(part.strip(" \t") for part in value.split("\r\n")).strip(" ")
    return (name, value) if line == f"{name}: {value}" else AsReceived(name, value, line)


def complete(message: Request | Response, body: bytes) -> Request | Response:
    """The message with its body, once what every answer needs is found to be there and good."""
    index = message._index
    try:
        if len(index) != len(message.headers):
            for key in _ONCE:
                if key in index and len(index[key]) > 1:
                    raise Malformed(f"There is more than one {_TITLES[key]} header.")
        if not message.call_id:
            raise Malformed("The Call-ID header is empty.")
        _ = message.via, message.from_, message.to, message.max_forwards
        method = message.cseq[1]
        if isinstance(message, Request) and method != message.method:
            raise Malformed("The method of the CSeq header is not that of the request.")
    except Malformed as error:
        raise answerable(error, message) from None
    if not body:
        return message
    whole = message._copy(message.headers, body)
    object.__setattr__(whole, "_seen", message._seen)
    return whole


def answerable(error: Malformed, message: Request | Response) -> Malformed:
    """A BadRequest if the message is a request that can be answered."""
    if not isinstance(message, Request) or message.method == "ACK":
        return error
    try:
        _ = message.via
    except Malformed:
        return error
    return BadRequest(error, message)
