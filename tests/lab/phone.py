"""A small SIP phone for test scripts: signalling over UDP as RFC 3261 has it, no sound.

Each phone has one socket and one receiving thread. A test calls its methods in order and waits with
timeouts, so that it reads as a script; what arrives meanwhile the phone answers by itself.

    with Phone("1000", server) as alice, Phone("2000", server) as bob:
        alice.register()
        bob.register()
        call = alice.dial("2000")
        bob.expect_call().answer()
        call.wait_answered().hangup()

Things to keep in mind: it asks no name server, does not refresh a registration, and offers PCMU only.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import re
import secrets
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from xml.etree import ElementTree

Address = tuple[str, int]
Headers = list[tuple[str, str]]

T1 = 0.5  # first gap between retransmissions; doubled up to T2 (RFC 3261, 17)
T2 = 4.0
LIFETIME = 64 * T1  # a message nobody reacts to is given up after this

METHODS = "INVITE, ACK, CANCEL, BYE, OPTIONS, NOTIFY, INFO, MESSAGE"
PHRASES = {
    100: "Trying", 180: "Ringing", 183: "Session Progress", 200: "OK", 302: "Moved Temporarily",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    480: "Temporarily Unavailable", 481: "Call Does Not Exist", 486: "Busy Here",
    487: "Request Terminated", 488: "Not Acceptable Here", 491: "Request Pending",
    500: "Server Error", 503: "Service Unavailable", 600: "Busy Everywhere", 603: "Decline",
}
COMPACT = {
    "v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact",
    "l": "content-length", "c": "content-type", "o": "event", "k": "supported",
}
MIRRORED = {"sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
QUOTED = r'"(?:[^"\\]|\\.)*"'
DIALOG_INFO = "{urn:ietf:params:xml:ns:dialog-info}"


class PhoneError(Exception):
    """The other side refused what the script wanted, or the script wanted something impossible."""


class PhoneTimeout(PhoneError):
    """What the script waited for did not happen in time, or can no longer happen."""


@dataclass(frozen=True)
class Message:
    """One datagram, in or out; without start line and headers when it is not SIP."""

    direction: str  # "in" or "out"
    peer: Address
    raw: bytes
    wall: float  # time.time()
    at: float  # time.monotonic()
    start: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    @classmethod
    def of(cls, direction: str, peer: Address, raw: bytes) -> Message:
        wall, at = time.time(), time.monotonic()
        head, _, body = raw.decode("utf-8", "surrogateescape").partition("\r\n\r\n")
        start, _, rest = head.partition("\r\n")
        if not re.fullmatch(r"SIP/2\.0 [1-6]\d\d.*|[A-Za-z]+ .+ SIP/2\.0", start):
            return cls(direction, peer, raw, wall, at)
        fields = (line.partition(":") for line in re.sub(r"\r\n[ \t]+", " ", rest).split("\r\n"))
        headers = tuple((name.strip(), value.strip()) for name, colon, value in fields if colon)
        return cls(direction, peer, raw, wall, at, start, headers, body)

    @property
    def status(self) -> int:
        """The status of a response, 0 for a request."""
        return int(self.start[8:11]) if self.start.startswith("SIP/2.0 ") else 0

    @property
    def phrase(self) -> str:
        return self.start[12:] if self.status else ""

    @property
    def method(self) -> str:
        """The method of a request; of a response, the one it answers."""
        return self.cseq[1] if self.status else self.start.partition(" ")[0]

    @property
    def uri(self) -> str:
        return "" if self.status else self.start.partition(" ")[2].rpartition(" ")[0]

    @property
    def cseq(self) -> tuple[int, str]:
        number, _, method = self.get("CSeq").partition(" ")
        return (int(number) if number.isdecimal() else -1), method.strip()

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        wanted = name.lower()
        return [v for k, v in self.headers if COMPACT.get(k.lower(), k.lower()) == wanted]

    def get(self, name: str, default: str = "") -> str:
        """The first value of a header, whatever its case."""
        return next(iter(self.all(name)), default)


def _items(values: Iterable[str]) -> list[str]:
    """Takes comma-separated header values apart."""
    found = (re.findall(rf'(?:{QUOTED}|<[^>]*>|[^,"<])+', value) for value in values)
    return [item.strip() for items in found for item in items]


def _uri_in(value: str) -> str:
    """The URI of a From, To, Contact or Route value."""
    bare = re.sub(rf"^\s*{QUOTED}", "", value)
    inside = re.search(r"<([^>]*)>", bare)
    return inside[1] if inside else bare.partition(";")[0].strip()


def _name_in(value: str) -> str:
    shown = value.partition("<")[0].strip() if not value.startswith('"') else ""
    quoted = re.match(QUOTED, value)
    return re.sub(r"\\(.)", r"\1", quoted[0][1:-1]) if quoted else shown


def _user_in(uri: str) -> str:
    return re.sub(r"^sips?:", "", uri).rpartition("@")[0]


def _param(value: str, name: str) -> str:
    """A parameter of a header value (after the URI in brackets), or the empty string."""
    found = re.search(rf";\s*{name}\s*=\s*([^;,\s]*)", value.rpartition(">")[2], re.IGNORECASE)
    return found[1] if found else ""


def _address(uri: str, otherwise: Address) -> Address:
    """Where a URI with a numeric host leads; this phone asks no name server."""
    host, _, port = re.split("[;?]", re.sub(r"^sips?:", "", uri).rpartition("@")[2])[0].partition(":")
    if not re.fullmatch(r"\d+\.\d+\.\d+\.\d+", host):
        return otherwise
    return host, int(port) if port.isdecimal() else 5060


def _digest(challenge: str, method: str, uri: str, user: str, password: str) -> str | None:
    """Credentials for a Digest challenge with MD5 (RFC 2617), or None when it asks for something else."""
    parts = {k.lower(): a or b for k, a, b in re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]*))', challenge)}
    if not challenge.lower().startswith("digest ") or parts.get("algorithm", "MD5").upper() != "MD5":
        return None

    def md5(*values: str) -> str:
        return hashlib.md5(":".join(values).encode("utf-8", "surrogateescape")).hexdigest()

    realm, nonce = parts.get("realm", ""), parts.get("nonce", "")
    secret, asked = md5(user, realm, password), md5(method, uri)
    fields = [f'username="{user}"', f'realm="{realm}"', f'nonce="{nonce}"', f'uri="{uri}"', "algorithm=MD5"]
    if "auth" in re.split(r"\s*,\s*", parts.get("qop", "")):
        cnonce = secrets.token_hex(8)
        answer = md5(secret, nonce, "00000001", cnonce, "auth", asked)
        fields += ["qop=auth", "nc=00000001", f'cnonce="{cnonce}"']
    else:
        answer = md5(secret, nonce, asked)
    fields.append(f'response="{answer}"')
    if "opaque" in parts:
        fields.append(f'opaque="{parts["opaque"]}"')
    return "Digest " + ", ".join(fields)


@dataclass
class _Dialog:
    """What the requests of one conversation have in common."""

    call_id: str
    local: str  # value of From in what we send
    remote: str  # value of To
    target: str
    routes: list[str]
    dest: Address
    cseq: int = 0

    def confirm(self, response: Message) -> None:
        """Takes over what a 2xx says about the way to the other side."""
        self.remote = response.get("To")
        self.target = _uri_in(response.get("Contact")) or self.target
        self.routes = _items(response.all("Record-Route"))[::-1]
        self.aim(response.peer)

    def aim(self, otherwise: Address) -> None:
        self.dest = _address(_uri_in(self.routes[0]) if self.routes else self.target, otherwise)


@dataclass
class _Request:
    """One request of ours that waits for its answer."""

    method: str
    uri: str
    dialog: _Dialog
    extra: Headers
    body: str
    dest: Address
    on_response: Callable[[Message | None], None]  # None: given up
    call: Call | None = None  # for the INVITE that makes a call
    cseq: int = 0
    branch: str = ""
    attempts: int = 0
    provisional: bool = False
    final: Message | None = None


class Call:
    """One call of a phone, in or out. All instants are time.monotonic()."""

    def __init__(self, phone: Phone, outgoing: bool, dialog: _Dialog) -> None:
        self.phone, self.outgoing, self.dialog = phone, outgoing, dialog
        self.state = "calling"  # "ringing", "up", "ended"
        self.status: int | None = None  # the final status, received or (incoming call) sent
        self.response: Message | None = None  # the final response of an outgoing call
        self.provisionals: list[int] = []  # statuses below 200, received or sent
        self.reason = ""  # why it ended: "486 Busy Here", "BYE", "CANCEL", ...
        self.ended_by: str | None = None  # "us" or "them"
        self.held = False  # the other side has put us on hold
        self.started_at = time.monotonic()
        self.ringing_at: float | None = None
        self.answered_at: float | None = None
        self.ended_at: float | None = None
        self.invite: Message
        self._request: _Request | None = None  # the INVITE in its present attempt, of an outgoing call
        self._hanging_up = False
        self._cancelled = False
        self._direction = "sendrecv"
        self._acked: set[int] = set()  # CSeq numbers of incoming INVITEs that are done
        self._reinviting = False

    def __repr__(self) -> str:
        way = "to" if self.outgoing else "from"
        other = _user_in(_uri_in(self.dialog.remote))
        return f"<call of {self.phone.number} {way} {other!r}: {self.state}, {self.status}, {self.reason!r}>"

    @property
    def from_number(self) -> str:
        """The user part of From as it is on the wire."""
        return _user_in(_uri_in(self.invite.get("From")))

    @property
    def from_name(self) -> str:
        return _name_in(self.invite.get("From"))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the INVITE, named as on the wire; invite.get() and invite.all() ignore case."""
        return dict(reversed(self.invite.headers))

    # Waiting

    def wait_ringing(self, timeout: float = 5) -> Call:
        return self._wait("ringing", lambda: self.ringing_at is not None or self.state == "up", timeout)

    def wait_answered(self, timeout: float = 5) -> Call:
        return self._wait("an answer", lambda: self.answered_at is not None, timeout)

    def wait_ended(self, timeout: float = 5) -> Call:
        return self._wait("the end", lambda: self.state == "ended", timeout)

    def wait_status(self, status: int, timeout: float = 5) -> Call:
        """Waits for a response to the INVITE; provisional ones count too."""

        def seen() -> bool:
            return status == self.status or status in self.provisionals

        return self._wait(f"status {status}", seen, timeout, lambda: self.status is not None)

    def _wait(
        self, what: str, ready: Callable[[], bool], timeout: float, late: Callable[[], bool] | None = None
    ) -> Call:
        self.phone._await(what, ready, timeout, late or (lambda: self.state == "ended"), self)
        return self

    # What the script may do

    def ring(self, headers: Mapping[str, str] | None = None) -> Call:
        """Answers an incoming call with 180."""
        with self.phone._changed:
            self._need(not self.outgoing and self.status is None, "ring")
            self._respond(180, headers)
            return self

    def answer(self, headers: Mapping[str, str] | None = None) -> Call:
        """Answers an incoming call with 200."""
        with self.phone._changed:
            self._need(not self.outgoing and self.status is None, "answer")
            self._respond(200, headers)
            return self

    def reject(self, code: int = 486, headers: Mapping[str, str] | None = None) -> Call:
        """Refuses an incoming call."""
        with self.phone._changed:
            self._need(not self.outgoing and self.status is None and code >= 300, "reject")
            self._respond(code, headers)
            self._end("us", f"{code} {PHRASES.get(code, '')}".strip())
            return self

    def hangup(self) -> Call:
        """BYE when up, CANCEL or 486 when not answered yet; nothing when the call has ended."""
        with self.phone._changed:
            if self.state == "up":
                # The called side must not send BYE before it has seen the ACK (RFC 3261, 15).
                self._hanging_up = True
                if self.outgoing or self._acked:
                    self._bye()
            elif self.state != "ended" and self.outgoing:
                # A CANCEL may not go before the first provisional response (9.1).
                self._hanging_up = True
                if self._request and self._request.provisional:
                    self._cancel()
            elif self.state != "ended":
                self.reject(486)
            return self

    def hold(self) -> Call:
        """Puts the other side on hold with a re-INVITE; returns when it is accepted."""
        return self._reinvite("sendonly")

    def unhold(self) -> Call:
        return self._reinvite("sendrecv")

    def dtmf(self, digit: str) -> Call:
        """Sends a digit as SIP INFO; returns when it is accepted."""
        body = f"Signal={digit}\r\nDuration=160\r\n"
        self._ask("INFO", [("Content-Type", "application/dtmf-relay")], body)
        return self

    def _need(self, condition: bool, what: str) -> None:
        if not condition:
            raise PhoneError(f"{self!r} cannot {what} now")

    def _ask(self, method: str, extra: Headers, body: str) -> None:
        """A request inside the call, up to its final answer."""
        with self.phone._changed:
            self._need(self.state == "up", method)
            self._wait("the ACK", lambda: self.outgoing or bool(self._acked), 5)
            answer = self.phone._ask(method, self.dialog, extra, body)
            if answer is None or answer.status >= 300:
                raise PhoneError(f"{method} of {self!r} got {answer.start if answer else 'no answer'}")

    def _reinvite(self, direction: str) -> Call:
        with self.phone._changed:
            before, self._direction, self._reinviting = self._direction, direction, True
            try:
                self._ask("INVITE", [("Content-Type", "application/sdp")], self.phone._sdp(direction))
            except PhoneError:
                self._direction = before
                raise
            finally:
                self._reinviting = False
            return self

    # What happens to it; the lock is held in all of these

    def _end(self, by: str, reason: str) -> None:
        if self.state != "ended":
            self.state, self.ended_by, self.reason = "ended", by, reason
            self.ended_at = time.monotonic()
            self.phone._changed.notify_all()

    def _bye(self) -> None:
        self.phone._start("BYE", self.dialog, lambda response: None)
        self._end("us", "BYE")

    def _cancel(self) -> None:
        if self._request and not self._cancelled:
            self._cancelled = True
            cancel = replace(self._request, method="CANCEL", extra=[], body="", call=None, attempts=2)
            cancel.on_response = self._cancel_answered
            self.phone._launch(cancel)

    def _cancel_answered(self, response: Message | None) -> None:
        if response is None or response.status >= 300:
            self._end("us", f"CANCEL got {response.start if response else 'no answer'}")

    def _invited(self, response: Message | None) -> None:
        """A response to the INVITE that we sent, also a repeated 2xx; None: there was none."""
        if response is None:
            self.status = 408
            self._end("us" if self._hanging_up else "them", "no answer to the INVITE")
        elif response.status < 200:
            self.provisionals.append(response.status)
            if response.status == 180 and self.state == "calling":
                self.state, self.ringing_at = "ringing", response.at
            if self._hanging_up:
                self._cancel()
        elif response.status < 300:
            assert self._request
            first, number = self.status is None, response.cseq[0]
            if not first and _param(response.get("To"), "tag") != _param(self.dialog.remote, "tag"):
                # A second phone has answered behind a forking proxy: take it and let it go.
                second = replace(self.dialog)
                second.confirm(response)
                self.phone._send_ack(second, number, self._request.extra)
                self.phone._start("BYE", second, lambda answer: None)
                return
            if first:
                self.status, self.response = response.status, response
                self.dialog.confirm(response)
            self.phone._send_ack(self.dialog, number, self._request.extra)
            if first:
                self.state, self.answered_at = "up", response.at
                if self._hanging_up:
                    self._bye()
        else:
            self.status, self.response = response.status, response
            self._end("us" if self._hanging_up else "them", f"{response.status} {response.phrase}".strip())

    def _respond(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """A response to the INVITE that brought us this call."""
        extra = list({**self.phone.reply_headers, **(headers or {})}.items())
        if status < 200:
            self.provisionals.append(status)
            self.phone._reply(self.invite, status, extra, tag_from=self)
            if status == 180 and self.state == "calling":
                self.state, self.ringing_at = "ringing", time.monotonic()
            return
        self.status = status
        self._final(self.invite, status, extra)
        if status < 300:
            self.state, self.answered_at = "up", time.monotonic()
        self.phone._changed.notify_all()

    def _final(self, invite: Message, status: int, extra: Headers) -> None:
        """Sends a final response to an INVITE until it is acknowledged."""
        number, body = invite.cseq[0], ""
        if status < 300:
            direction = self._agreed(invite)
            extra, body = [*extra, ("Content-Type", "application/sdp")], self.phone._sdp(direction)
        raw, dest = self.phone._reply(invite, status, extra, body, tag_from=self)

        def unheard() -> None:
            if self.state == "up" and not self._acked:
                self._bye()
                self.reason = "no ACK"

        self.phone._repeat(raw, dest, lambda: number not in self._acked, unheard)

    def _agreed(self, invite: Message) -> str:
        """The direction of sound that answers an offer, and whether the offer holds us."""
        found = re.search(r"^a=(sendonly|recvonly|inactive)\s*$", invite.body, re.MULTILINE)
        offered = found[1] if found else "sendrecv"
        if "m=audio" in invite.body:
            self.held = offered in ("sendonly", "inactive")
        return self._direction if offered == "sendrecv" else MIRRORED[offered]

    def _reinvited(self, invite: Message) -> None:
        if self.state != "up":
            self.phone._reply(invite, 481, [])
        elif self._reinviting:
            self._final(invite, 491, [])
        else:
            self.dialog.target = _uri_in(invite.get("Contact")) or self.dialog.target
            self.dialog.aim(invite.peer)
            self._final(invite, 200, [])

    def _cancelled_by_them(self, how: str) -> None:
        # A phone that has not said a word about this INVITE stays silent to the end.
        if self.provisionals:
            self._respond(487)
        self._end("them", how)

    def _acknowledged(self, number: int) -> None:
        self._acked.add(number)
        if self._hanging_up and self.state == "up":
            self._bye()


class Lamp:
    """The lamp of a key that watches an extension: a subscription to its dialogs (RFC 4235).

    Asterisk's words are "terminated" (idle), "early" (it rings) and "confirmed" (in use).
    """

    def __init__(self, phone: Phone, number: str, dialog: _Dialog) -> None:
        self.phone, self.number, self.dialog = phone, number, dialog
        self.notices: list[Message] = []  # every NOTIFY once, as they came
        self.ended = False  # by us or by the server
        self._passed = 0  # notices that expect has gone by

    def __repr__(self) -> str:
        return f"<lamp of {self.phone.number} for {self.number!r}: {self.states}>"

    @property
    def states(self) -> list[str]:
        """What each NOTIFY so far has said, the one that ends the subscription included."""
        with self.phone._changed:
            return [self._state(notice) for notice in self.notices]

    def expect(self, state: str, timeout: float = 5.0) -> Message:
        """The next NOTIFY that says so; those before it are passed over, and no NOTIFY is given twice."""

        def found() -> bool:
            while self._passed < len(self.notices):
                self._passed += 1
                if self._state(self.notices[self._passed - 1]) == state:
                    return True
            return False

        with self.phone._changed:
            self.phone._await(f"{state!r} of {self!r}", found, timeout, lambda: self.ended)
            return self.notices[self._passed - 1]

    def unsubscribe(self) -> None:
        """Ends the subscription; returns when the server's last NOTIFY has come."""
        self._subscribe(0)
        self.phone._await(f"the end of {self!r}", lambda: self.ended, 5)

    @staticmethod
    def _state(notice: Message) -> str:
        """The state of the only dialog in it; without a dialog there is none, as when it has ended."""
        info = ElementTree.fromstring(notice.body.encode()) if notice.body else None
        found = info.findtext(f"{DIALOG_INFO}dialog/{DIALOG_INFO}state") if info is not None else None
        return found or "terminated"

    def _subscribe(self, expires: int) -> None:
        response = self.phone._ask("SUBSCRIBE", self.dialog, self._headers(expires))
        if response is None or response.status >= 300:
            told = response.start if response else "no answer"
            raise PhoneError(f"{self.phone.number}: SUBSCRIBE to {self.number!r} got {told}")
        self.dialog.confirm(response)

    @staticmethod
    def _headers(expires: int) -> Headers:
        accept = ("Accept", "application/dialog-info+xml")
        return [("Event", "dialog"), accept, ("Expires", str(expires))]

    def _notified(self, notice: Message) -> None:
        self.notices.append(notice)
        self.ended = notice.get("Subscription-State").startswith("terminated")


class Phone:
    """A phone with a number at a server; `with Phone(...) as phone:` starts and closes it."""

    def __init__(
        self, number: str, server: Address, *, password: str | None = None, name: str = "",
        host: str = "127.0.0.1", port: int = 0, answer: str = "ring", after: float = 0.0,
    ) -> None:
        self.number, self.server, self.name = number, server, name
        self.password = number if password is None else password
        self.answer, self.after = answer, after
        self.reply_headers: dict[str, str] = {}  # added to every response to an INVITE that makes a call
        self.messages: list[Message] = []
        self.calls: list[Call] = []
        self.faults: list[str] = []  # tracebacks of the receiving thread: empty, or the phone has a bug
        self.registered = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        # Sound sent to us must find an open port, else the sender gets ICMP errors; nobody reads it.
        self._sound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sound.bind((host, 0))
        self.host, self.port = str(host), int(self._socket.getsockname()[1])
        self.uri = f"sip:{number}@{self.host}:{self.port}"  # where this phone can be called directly
        self._domain = server[0] if server[1] == 5060 else f"{server[0]}:{server[1]}"
        self._changed = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._run, name=f"phone {number}", daemon=True)
        self._closed = False
        self._order = itertools.count(1)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []  # when, unique, what
        self._unexpected: list[Call] = []  # incoming calls that expect_call has not returned
        self._dialogs: dict[tuple[str, str], Call] = {}  # by Call-ID and our tag
        self._lamps: dict[tuple[str, str], Lamp] = {}  # likewise
        self._pending: dict[tuple[str, str], _Request] = {}  # by branch and method
        self._replies: dict[tuple[str, ...], tuple[bytes, Address] | None] = {}  # for repeated requests
        me = f"<sip:{number}@{self._domain}>"
        self._registration = self._dialog(me, me, f"sip:{self._domain}", server)

    @property
    def answer(self) -> str:
        """What the phone does with an incoming call by itself."""
        return self._answer

    @answer.setter
    def answer(self, value: str) -> None:
        if not re.fullmatch(r"ring|busy|decline|answer|silent|[3-6]\d\d", value):
            raise ValueError(f"a phone cannot {value!r}")
        self._answer = value

    # Life

    def start(self) -> Phone:
        self._thread.start()
        return self

    def close(self, *, abruptly: bool = False) -> None:
        """Hangs up, unregisters, unsubscribes, waits up to a second for the answers and goes.

        abruptly: just goes.
        """
        with self._changed:
            if self._closed:
                return
            if not abruptly and self._thread.is_alive():
                live = [c for c in self.calls if c.outgoing or c.provisionals]  # the others stay silent
                for call in live:
                    call.hangup()
                if self.registered:
                    extra = [("Contact", f"<{self.uri}>"), ("Expires", "0")]
                    self._start("REGISTER", self._registration, lambda response: None, extra)
                lit = [lamp for lamp in self._lamps.values() if lamp.notices and not lamp.ended]
                for lamp in lit:
                    self._start("SUBSCRIBE", lamp.dialog, lambda response: None, lamp._headers(0))
                end = time.monotonic() + 1
                while time.monotonic() < end and (
                    self._busy() or any(c.state != "ended" for c in live) or not all(x.ended for x in lit)
                ):
                    self._changed.wait(0.05)
            self._send(b"", (self.host, self.port))  # wakes the receiving thread
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._sound.close()

    def _busy(self) -> bool:
        return any(r.final is None for r in self._pending.values())

    def __enter__(self) -> Phone:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # What the script may do

    def register(self, expires: int = 300, contact_params: str = "") -> Message:
        """Registers this phone's contact and returns the 200; there is no refresh before it expires."""
        contact = f"<{self.uri}>" + (";" + contact_params.lstrip(";") if contact_params else "")
        extra = [("Contact", contact), ("Expires", str(expires))]
        response = self._ask("REGISTER", self._registration, extra)
        if response is None or response.status != 200:
            raise PhoneError(f"{self.number}: REGISTER got {response.start if response else 'no answer'}")
        self.registered = expires > 0
        return response

    def unregister(self) -> Message:
        """Removes this phone's contact and no other."""
        return self.register(0)

    def dial(
        self, number_or_uri: str, *, headers: Mapping[str, str] | None = None, from_user: str | None = None,
        from_name: str | None = None, user_raw: str | None = None,
    ) -> Call:
        """Calls a number through the server, or a sip: URI at the address in it; does not wait.

        Everything goes onto the wire as given, nothing is escaped. user_raw replaces the user part of
        the request URI.
        """
        uri = number_or_uri if number_or_uri.startswith("sip:") else f"sip:{number_or_uri}@{self._domain}"
        if user_raw is not None:
            uri = f"sip:{user_raw}@{uri.removeprefix('sip:').rpartition('@')[2]}"
        user, name = self.number if from_user is None else from_user, from_name or self.name
        local = f'"{name}" ' * bool(name) + f"<sip:{user}@{self._domain}>"
        dialog = self._dialog(local, f"<{uri}>", uri, _address(uri, self.server))
        extra = [*(headers or {}).items(), ("Content-Type", "application/sdp")]
        with self._changed:
            call = Call(self, True, dialog)
            self.calls.append(call)
            self._dialogs[dialog.call_id, _param(dialog.local, "tag")] = call
            self._start("INVITE", dialog, call._invited, extra, self._sdp("sendrecv"), call)
        return call

    def request(
        self, method: str, number_or_uri: str, headers: Mapping[str, str] | None = None, body: str = "",
        timeout: float = 5.0,
    ) -> Message:
        """Sends a request outside any call and returns the final response."""
        uri = number_or_uri if number_or_uri.startswith("sip:") else f"sip:{number_or_uri}@{self._domain}"
        local = f"<sip:{self.number}@{self._domain}>"
        dialog = self._dialog(local, f"<{uri}>", uri, _address(uri, self.server))
        response = self._ask(method, dialog, list((headers or {}).items()), body, timeout)
        if response is None:
            raise PhoneTimeout(self._explain(f"an answer to {method}", timeout))
        return response

    def watch_lamp(self, number: str, expires: int = 300) -> Lamp:
        """Subscribes to the dialogs of an extension and returns when its first NOTIFY has come.

        There is no refresh before it expires.
        """
        me, uri = f"<sip:{self.number}@{self._domain}>", f"sip:{number}@{self._domain}"
        dialog = self._dialog(me, f"<{uri}>", uri, self.server)
        lamp = Lamp(self, number, dialog)
        with self._changed:
            # The first NOTIFY may come before the answer (RFC 6665, 4.1.2.4).
            self._lamps[dialog.call_id, _param(dialog.local, "tag")] = lamp
            lamp._subscribe(expires)
            self._await(f"the first NOTIFY of {lamp!r}", lambda: bool(lamp.notices), 5)
        return lamp

    def expect_call(self, timeout: float = 5.0) -> Call:
        """The next incoming call that was not returned before, whatever has become of it."""
        with self._changed:
            self._await("an incoming call", lambda: bool(self._unexpected), timeout)
            return self._unexpected.pop(0)

    def no_call(self, within: float) -> None:
        """Fails when an incoming call that expect_call has not returned comes or is there already."""
        end = time.monotonic() + within
        with self._changed:
            while not self._unexpected and time.monotonic() < end:
                self._changed.wait(max(0.0, end - time.monotonic()))
            if self._unexpected:
                call = self._unexpected[0]
                raise AssertionError(f"{self.number}: unexpected call from {call.from_number!r}: {call!r}")

    def send_raw(self, data: bytes) -> None:
        """Sends any bytes to the server."""
        with self._changed:
            self._send(data, self.server)

    # Requests

    def _dialog(self, local: str, remote: str, target: str, dest: Address) -> _Dialog:
        tag = secrets.token_hex(6)
        return _Dialog(secrets.token_hex(12), f"{local};tag={tag}", remote, target, [], dest)

    def _ask(
        self, method: str, dialog: _Dialog, extra: Headers, body: str = "", timeout: float = 5.0
    ) -> Message | None:
        """Sends a request and waits for its final response; None when it was given up."""
        answers: list[Message | None] = []

        def answered(response: Message | None) -> None:
            if response and method == "INVITE" and 200 <= response.status < 300:
                self._send_ack(dialog, response.cseq[0])
            if response is None or response.status >= 200:
                answers.append(response)

        with self._changed:
            self._start(method, dialog, answered, extra, body)
            self._await(f"the answer to {method}", lambda: bool(answers), timeout)
        return answers[0]

    def _start(
        self, method: str, dialog: _Dialog, on_response: Callable[[Message | None], None],
        extra: Headers | None = None, body: str = "", call: Call | None = None,
    ) -> None:
        uri, dest = dialog.target, dialog.dest
        self._transmit(_Request(method, uri, dialog, extra or [], body, dest, on_response, call))

    def _transmit(self, request: _Request) -> None:
        """Gives a request its number and sends it until it is answered."""
        request.dialog.cseq += 1
        request.cseq, request.branch = request.dialog.cseq, "z9hG4bK" + secrets.token_hex(10)
        if request.call:
            request.call._request = request
        self._launch(request)

    def _launch(self, request: _Request) -> None:
        self._pending[request.branch, request.method] = request

        def waiting() -> bool:
            return request.final is None and not (request.method == "INVITE" and request.provisional)

        def unanswered() -> None:
            self._pending.pop((request.branch, request.method))
            request.on_response(None)

        raw = self._compose(request)
        sent = self._send(raw, request.dest)
        if request.call:
            request.call.invite = sent
        self._repeat(raw, request.dest, waiting, unanswered)

    def _compose(self, r: _Request, method: str = "", remote: str = "") -> bytes:
        method = method or r.method
        head = [
            ("Via", f"SIP/2.0/UDP {self.host}:{self.port};branch={r.branch};rport"),
            *(("Route", route) for route in r.dialog.routes),
            ("Max-Forwards", "70"),
            ("From", r.dialog.local),
            ("To", remote or r.dialog.remote),
            ("Call-ID", r.dialog.call_id),
            ("CSeq", f"{r.cseq} {method}"),
        ]
        if method not in ("ACK", "BYE", "CANCEL") and not any(k.lower() == "contact" for k, _ in r.extra):
            head += [("Contact", f"<{self.uri}>"), ("Allow", METHODS)]
        return self._datagram(f"{method} {r.uri} SIP/2.0", head + r.extra, r.body)

    @staticmethod
    def _datagram(start: str, headers: Headers, body: str) -> bytes:
        content = body.encode("utf-8", "surrogateescape")
        lines = [start, *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + content

    def _send_ack(self, dialog: _Dialog, number: int, like: Iterable[tuple[str, str]] = ()) -> None:
        """Acknowledges a 2xx, with the credentials of the INVITE (RFC 3261, 13.2.2.4)."""
        extra = [(k, v) for k, v in like if k.endswith("Authorization")]
        ack = _Request("ACK", dialog.target, dialog, extra, "", dialog.dest, lambda response: None)
        ack.cseq, ack.branch = number, "z9hG4bK" + secrets.token_hex(10)
        self._send(self._compose(ack), ack.dest)

    def _with_credentials(self, request: _Request, response: Message) -> bool:
        """Repeats a challenged request with credentials; False when that cannot help."""
        proxy = response.status == 407
        if request.attempts > 1 or (request.call and request.call._hanging_up):
            return False
        for challenge in response.all("Proxy-Authenticate" if proxy else "WWW-Authenticate"):
            if request.attempts and not re.search(r"stale\s*=\s*\"?true", challenge, re.IGNORECASE):
                continue
            answer = _digest(challenge, request.method, request.uri, self.number, self.password)
            if answer:
                name = "Proxy-Authorization" if proxy else "Authorization"
                extra = [(k, v) for k, v in request.extra if k != name] + [(name, answer)]
                again = replace(request, extra=extra, attempts=request.attempts + 1)
                again.provisional, again.final = False, None
                self._transmit(again)
                return True
        return False

    # Receiving thread

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    self._guarded(heapq.heappop(self._timers)[2])
                # The script's own timers are retransmissions, so noticing them 0.1 s late is harmless.
                pause = min(0.1, self._timers[0][0] - now) if self._timers else 0.1
            if not select.select([self._socket], [], [], pause)[0]:
                continue
            try:
                raw, peer = self._socket.recvfrom(65535)
            except OSError:
                continue
            with self._changed:
                message = Message.of("in", (str(peer[0]), int(peer[1])), raw)
                self.messages.append(message)
                self._guarded(partial(self._received, message))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:
            self.faults.append(traceback.format_exc())
        self._changed.notify_all()

    def _received(self, message: Message) -> None:
        needed = all(message.get(name) for name in ("From", "To", "Call-ID", "CSeq"))
        if not needed or not _items(message.all("Via")):
            return
        if message.status:
            self._on_response(message)
        elif message.method == message.cseq[1]:
            self._on_request(message)

    def _on_response(self, response: Message) -> None:
        branch = _param(_items(response.all("Via"))[0], "branch")
        request = self._pending.get((branch, response.method))
        if request is None:
            return
        first = request.final is None
        if response.status < 200:
            request.provisional = True
            if first:
                request.on_response(response)
            return
        invite = request.method == "INVITE"
        if invite and response.status >= 300:
            bare = replace(request, extra=[], body="")
            self._send(self._compose(bare, "ACK", response.get("To")), request.dest)
        if first:
            request.final = response
            if response.status in (401, 407) and self._with_credentials(request, response):
                return
        if first or (invite and response.status < 300):
            request.on_response(response)

    def _on_request(self, request: Message) -> None:
        call_id, tag, method = request.get("Call-ID"), _param(request.get("To"), "tag"), request.method
        call = self._dialogs.get((call_id, tag))
        if method == "ACK":
            if call:
                call._acknowledged(request.cseq[0])
            return
        key = self._key(request)
        if key in self._replies:
            reply = self._replies[key]
            if reply:
                self._send(*reply)
            return
        self._replies[key] = None
        if method == "CANCEL":
            self._on_cancel(request)
        elif method == "INVITE" and not tag:
            self._incoming(request)
        elif method == "INVITE" and call:
            call._reinvited(request)
        elif method == "BYE" and call:
            self._reply(request, 200, [])
            if not call.outgoing and call.status is None:
                call._cancelled_by_them("BYE")
            call._end("them", "BYE")
        elif method == "NOTIFY" and (lamp := self._lamps.get((call_id, tag))):
            self._reply(request, 200, [])
            lamp._notified(request)
        elif method in ("INVITE", "BYE"):
            self._reply(request, 481, [])
        elif method in ("OPTIONS", "NOTIFY", "INFO", "MESSAGE"):
            self._reply(request, 200, [("Allow", METHODS)] if method == "OPTIONS" else [])
        else:
            self._reply(request, 405, [("Allow", METHODS)])

    @staticmethod
    def _key(request: Message, method: str = "") -> tuple[str, ...]:
        return (
            _items(request.all("Via"))[0], request.get("Call-ID"), str(request.cseq[0]),
            method or request.method,
        )

    def _on_cancel(self, request: Message) -> None:
        wanted = self._key(request, "INVITE")
        call = next((c for c in self.calls if not c.outgoing and self._key(c.invite) == wanted), None)
        if call is None:
            self._reply(request, 481, [])
        elif call.status is not None or call.provisionals:
            self._reply(request, 200, [], tag_from=call)
        if call and call.status is None:
            call._cancelled_by_them("CANCEL")

    def _incoming(self, invite: Message) -> None:
        local = f"{invite.get('To')};tag={secrets.token_hex(6)}"
        target, routes = _uri_in(invite.get("Contact")), _items(invite.all("Record-Route"))
        dialog = _Dialog(invite.get("Call-ID"), local, invite.get("From"), target, routes, invite.peer)
        dialog.aim(invite.peer)
        call = Call(self, False, dialog)
        call.invite, call.started_at = invite, invite.at
        self.calls.append(call)
        self._unexpected.append(call)
        self._dialogs[dialog.call_id, _param(local, "tag")] = call
        mode = self.answer
        if mode in ("ring", "answer"):
            call.ring()
        if mode == "answer":
            self._at(self.after, lambda: call.answer() if call.status is None else None)
        elif mode not in ("ring", "silent"):
            call.reject({"busy": 486, "decline": 603}.get(mode) or int(mode))

    def _reply(
        self, request: Message, status: int, extra: Headers, body: str = "", tag_from: Call | None = None
    ) -> tuple[bytes, Address]:
        """Answers a request, and the same again when the request comes again."""
        vias = _items(request.all("Via"))
        via_port = re.search(r"^\S+\s+[^;,\s]*?:(\d+)", vias[0])
        dest = (request.peer[0], int(via_port[1]) if via_port else 5060)
        if re.search(r";\s*rport\b", vias[0]):  # the sender wants the answer where it sent from (RFC 3581)
            dest = request.peer
            seen = f";received={dest[0]};rport={dest[1]}"
            vias[0] = re.sub(r";\s*rport\b(=\d*)?", lambda found: seen, vias[0])
        to = request.get("To")
        if not _param(to, "tag"):
            to = tag_from.dialog.local if tag_from else f"{to};tag={secrets.token_hex(6)}"
        head = [("Via", via) for via in vias]
        if request.method == "INVITE" and status < 300:
            head += [("Record-Route", route) for route in request.all("Record-Route")]
            head += [("Contact", f"<{self.uri}>"), ("Allow", METHODS)]
        head += [("From", request.get("From")), ("To", to), ("Call-ID", request.get("Call-ID"))]
        head += [("CSeq", request.get("CSeq")), *extra]
        raw = self._datagram(f"SIP/2.0 {status} {PHRASES.get(status, 'Other')}", head, body)
        self._replies[self._key(request)] = raw, dest
        self._send(raw, dest)
        return raw, dest

    # Helpers

    def _send(self, raw: bytes, dest: Address) -> Message:
        message = Message.of("out", dest, raw)
        self.messages.append(message)
        # To an address that is none, or when we are closed, a datagram is lost, as it may be anywhere.
        with suppress(OSError, OverflowError):
            self._socket.sendto(raw, dest)
        return message

    def _at(self, delay: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), action))

    def _repeat(
        self, raw: bytes, dest: Address, needed: Callable[[], bool], give_up: Callable[[], None],
        gap: float = T1, since: float | None = None,
    ) -> None:
        """Sends a datagram that was sent once again and again while it is needed."""
        began = time.monotonic() if since is None else since

        def again() -> None:
            if not needed():
                return
            if time.monotonic() - began > LIFETIME:
                give_up()
                return
            self._send(raw, dest)
            self._repeat(raw, dest, needed, give_up, min(2 * gap, T2), began)

        self._at(gap, again)

    def _sdp(self, direction: str) -> str:
        version = next(self._order)
        port = self._sound.getsockname()[1]
        lines = [
            "v=0", f"o=- 1 {version} IN IP4 {self.host}", "s=-", f"c=IN IP4 {self.host}", "t=0 0",
            f"m=audio {port} RTP/AVP 0", "a=rtpmap:0 PCMU/8000", f"a={direction}", "",
        ]
        return "\r\n".join(lines)

    def _await(
        self, what: str, ready: Callable[[], bool], timeout: float,
        late: Callable[[], bool] = lambda: False, call: Call | None = None,
    ) -> None:
        """Waits until ready; PhoneTimeout when the time is over, or when it is too late already."""
        end = time.monotonic() + timeout
        with self._changed:
            while not ready():
                left = end - time.monotonic()
                if left <= 0 or late() or self._closed:
                    what += f" of {call!r}" if call else ""
                    raise PhoneTimeout(self._explain(what, timeout))
                self._changed.wait(left)

    def _explain(self, what: str, timeout: float) -> str:
        now = time.monotonic()
        last = [
            f"  {m.at - now:+.3f} s {m.direction:3} {m.start or m.raw[:60]!r} ({m.cseq[1]})"
            for m in self.messages[-8:]
        ]
        told = "\n".join(last) if last else "  none"
        return f"phone {self.number} waited in vain (up to {timeout:g} s) for {what}; last messages:\n{told}"
