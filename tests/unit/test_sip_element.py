"""An element between Asterisk and a peer, with a clock moved by hand: what becomes of whatever arrives.

Over all tests: nothing is ever sent to an address that is not configured.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from itertools import count
from typing import Any

import pytest

from fastagi.sip.element import BRANCH, Element
from fastagi.sip.limits import MAX_KEY, Buckets, Notices
from fastagi.sip.message import Header, Malformed, Request, Response, parse
from fastagi.sip.timers import TIMERS
from fastagi.sip.transaction import stateless_tag
from fastagi.sip.trunk import Address, Side, Trunk
from fastagi.sip.useragent import MAX_CLIENTS, MAX_SERVERS
from tests.unit.test_sip_transaction import SENT_AGAIN

OURS = Address("192.0.2.1", 5070)
PEER = Address("192.0.2.10", 5060)
ASTERISK = Address("127.0.0.1", 5060)
STRANGER = Address("203.0.113.66", 5060)
EVIL = "203.0.113.66"
TRUNK = Trunk("mxone", "udp", OURS, (PEER,), ASTERISK, "mxone", OURS, Address("127.0.0.1", 5070))
TCP = replace(TRUNK, transport="tcp")

PASSING = ("OPTIONS", "BYE", "REGISTER", "MESSAGE", "INFO", "UPDATE", "PRACK", "REFER", "X-OTHER")
CALLS = ("INVITE", "ACK", "CANCEL")
EVENTS = ("SUBSCRIBE", "NOTIFY", "PUBLISH")


# ----------------------------------------------------------------------------------------- the world around


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """Stands still until it is moved; `run` runs what falls due on the way, each at its instant."""

    def __init__(self) -> None:
        self.instant = 1000.0
        self.heap: list[tuple[float, int, Timer]] = []
        self.number = count()

    def now(self) -> float:
        return self.instant

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self.heap, (when, next(self.number), timer))
        return timer

    def armed(self) -> list[float]:
        return sorted(when - self.instant for when, _, timer in self.heap if timer.call is not None)

    def run(self, seconds: float = 0.0) -> None:
        end = self.instant + seconds
        while self.heap and self.heap[0][0] <= end:
            when, _, timer = heapq.heappop(self.heap)
            self.instant = max(self.instant, when)
            if timer.call is not None:
                timer.call()
        self.instant = end


class Fault(Exception):
    """Something call completion stumbles over."""


@dataclass
class Recorder:
    """A call completion that does as it is told, and keeps what it was told."""

    takes_it: Any = True
    verdict: Any = None
    marks: Any = ()
    arrival: Any = None
    end: Any = None
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def _do(self, what: Any, *args: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what(*args) if callable(what) else what

    def takes(self, trunk: str, request: Request) -> bool:
        self.events.append(("takes", request.method))
        return bool(self._do(self.takes_it, request))

    def arrived(self, trunk: str, request: Request, answer: Callable[[Response], None]) -> None:
        self.events.append(("arrived", request, answer))
        self._do(self.arrival, request, answer)

    def answered(self, trunk: str, asked: Request, response: Response | None) -> None:
        self.events.append(("answered", asked, response))
        self._do(self.end, asked, response)

    def request_passes(self, trunk: str, side: Side, request: Request) -> Any:
        self.events.append(("request", side, request.method))
        return self._do(self.verdict, request)

    def response_passes(self, trunk: str, side: Side, response: Response) -> Any:
        self.events.append(("response", side, response.status))
        return self._do(self.marks, response)

    def names(self) -> list[str]:
        return [event[0] for event in self.events]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == name]


@dataclass(frozen=True)
class Sent:
    at: float
    data: bytes
    to: Address
    port: int | None

    @property
    def message(self) -> Any:
        return parse(self.data)

    @property
    def is_request(self) -> bool:
        return not self.data.startswith(b"SIP/2.0 ")


WORLDS: list["World"] = []


class World:
    """One element, and all that touches it."""

    def __init__(self, trunk: Trunk = TRUNK, clock: Clock | None = None, **completion: Any) -> None:
        self.trunk = trunk
        self.clock = clock or Clock()
        self.began = self.clock.now()
        self.completion = Recorder(**completion)
        self.everything: list[Sent] = []
        self.sent: list[Sent] = []  # since the latest take()
        self.lines: list[str] = []
        self.on_send: Callable[[Sent], None] = lambda sent: None
        branches = (f"{BRANCH}{n}" for n in count())
        self.element = Element(
            trunk, self.completion, self.clock, self._send, self.lines.append, lambda: next(branches)
        )
        WORLDS.append(self)

    def _send(self, data: bytes, to: Address, port: int | None) -> None:
        sent = Sent(self.clock.now() - self.began, data, to, port)
        self.sent.append(sent)
        self.everything.append(sent)
        self.on_send(sent)

    def came(self, data: bytes | Malformed, source: Address = PEER) -> None:
        """As a transport hands it over."""
        message: Any = data
        if isinstance(data, bytes):
            try:
                message = parse(data)
            except Malformed as error:
                message = error
        self.element.receive(message, source)

    def take(self) -> list[Sent]:
        taken, self.sent = self.sent, []
        return taken

    @property
    def idle(self) -> bool:
        """Nothing was told, nothing sent."""
        return not self.completion.events and not self.sent

    def strays(self) -> list[Sent]:
        """What was sent to an address nobody configured."""
        good = {*self.trunk.peer, self.trunk.asterisk}
        hosts = {a.host for a in good} if self.trunk.transport == "tcp" else set()
        return [
            s
            for s in self.everything
            if s.to not in good
            and s.to.host not in hosts
            and not any(ip_network(s.to.host).subnet_of(n) for n in self.trunk.allow)  # type: ignore[arg-type]
        ]


@pytest.fixture(autouse=True)
def nothing_goes_astray() -> Iterator[None]:
    WORLDS.clear()
    yield
    assert [stray for world in WORLDS for stray in world.strays()] == []


def a_request(
    method: str = "SUBSCRIBE",
    *more: str,
    uri: str = "sip:cc-1@192.0.2.1:5070",
    via: str = "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKp1",
    from_: str = "<sip:4003@192.0.2.10>;tag=f1",
    to: str = "<sip:2000@192.0.2.1>",
    call_id: str = "c1",
    seq: int = 1,
    body: bytes = b"",
) -> bytes:
    lines = (
        f"{method} {uri} SIP/2.0",
        f"Via: {via}",
        *more,
        "Max-Forwards: 70",
        f"From: {from_}",
        f"To: {to}",
        f"Call-ID: {call_id}",
        f"CSeq: {seq} {method}",
        f"Content-Length: {len(body)}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def request_of(data: bytes) -> Request:
    request = parse(data)
    assert isinstance(request, Request)
    return request


def answer_of(data: bytes, status: int = 200) -> bytes:
    return request_of(data).response(status).to_bytes()


def from_asterisk(method: str, *more: str, **changes: Any) -> bytes:
    changes.setdefault("via", "SIP/2.0/UDP 127.0.0.1:5060;rport;branch=z9hG4bKa1")
    changes.setdefault("uri", "sip:4003@192.0.2.10")
    return a_request(method, *more, **changes)


def of(n: int, **changes: Any) -> bytes:
    """The n-th of many SUBSCRIBEs, each in a transaction of its own."""
    method = changes.pop("method", "SUBSCRIBE")
    changes.setdefault("via", f"SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKp{n}")
    return a_request(method, call_id=f"c{n}", **changes)


def our_request(
    method: str = "NOTIFY", *more: Header, uri: str = "sip:4003@192.0.2.10", n: int = 1
) -> Request:
    return Request(
        method,
        uri,
        (
            ("Max-Forwards", "70"),
            ("From", "<sip:2000@192.0.2.1>;tag=u1"),
            ("To", "<sip:4003@192.0.2.10>;tag=f1"),
            ("Call-ID", f"o{n}"),
            ("CSeq", f"{n} {method}"),
            *more,
        ),
    )


def ok(request: Request, answer: Callable[[Response], None]) -> None:
    answer(request.response(200, tag="t1"))


def transcript(world: World) -> list[str]:
    """Where each message went, and its first line."""
    side = {world.trunk.asterisk: "asterisk"} | dict.fromkeys(world.trunk.peer, "peer")
    return [f"{side[s.to]}: {s.message.first_line}" for s in world.sent]


# ------------------------------------------------------------------------------------------------- dispatch


@pytest.mark.parametrize("method", EVENTS)
def test_what_call_completion_takes_is_told_to_it_and_goes_no_further(method: str) -> None:
    world = World()
    world.came(a_request(method))
    assert world.completion.names() == ["takes", "arrived"]
    assert world.sent == []
    request, answer = world.completion.of("arrived")[0]
    answer(request.response(200, tag="t1"))
    assert transcript(world) == ["peer: SIP/2.0 200 OK"]


@pytest.mark.parametrize("method", EVENTS)
def test_what_it_does_not_take_goes_to_asterisk(method: str) -> None:
    world = World(takes_it=False)
    world.came(a_request(method))
    assert world.completion.names() == ["takes"]
    assert transcript(world) == [f"asterisk: {method} sip:cc-1@192.0.2.1:5070 SIP/2.0"]


@pytest.mark.parametrize("method", (*PASSING, *CALLS))
def test_all_other_requests_of_the_peer_go_to_asterisk(method: str) -> None:
    world = World()
    world.came(a_request(method))
    assert world.completion.events == ([("request", Side.PEER, method)] if method in CALLS else [])
    assert transcript(world) == [f"asterisk: {method} sip:cc-1@192.0.2.1:5070 SIP/2.0"]


@pytest.mark.parametrize("method", (*PASSING, *CALLS, *EVENTS))
def test_all_requests_of_asterisk_go_to_the_peer(method: str) -> None:
    world = World()
    world.came(from_asterisk(method), ASTERISK)
    assert world.completion.events == ([("request", Side.ASTERISK, method)] if method in CALLS else [])
    assert transcript(world) == [f"peer: {method} sip:4003@192.0.2.10 SIP/2.0"]


@pytest.mark.parametrize("method", (*PASSING, "INVITE", *EVENTS))
@pytest.mark.parametrize("side", Side)
def test_answers_go_back_whence_the_request_came(method: str, side: Side) -> None:
    world = World(takes_it=False)
    if side is Side.PEER:
        asking, answering = PEER, ASTERISK
        world.came(a_request(method), PEER)
    else:
        asking, answering = ASTERISK, PEER
        world.came(from_asterisk(method), ASTERISK)
    passed = world.take()[0].message
    world.completion.events.clear()
    world.came(passed.response(486, tag="x").to_bytes(), answering)
    (back,) = world.sent
    assert back.to == asking
    assert back.message.via.host == asking.host
    assert len(back.message.all("via")) == 1
    hooks = [("response", side.other, 486)] if method == "INVITE" else []
    assert world.completion.events == hooks


def test_the_request_line_and_the_answer_are_as_call_completion_wants_them() -> None:
    mark = ("Call-Info", "<sip:cc-1@192.0.2.1:5070>;purpose=call-completion;m=BS")
    world = World(verdict="sip:2000@192.0.2.1", marks=(mark,))
    for method in CALLS:
        world.came(a_request(method))
    invite = world.sent[0].message
    assert {s.message.uri for s in world.sent} == {"sip:2000@192.0.2.1"}
    assert len({s.message.via.branch for s in world.sent}) == 1
    world.take()
    world.came(
        invite.response(486, tag="x", headers=(("Call-Info", "<http://h/i>;purpose=icon"),)).to_bytes(),
        ASTERISK,
    )
    assert world.sent[0].message.all("call-info") == ["<http://h/i>;purpose=icon", mark[1]]


def test_the_peer_is_every_host_that_is_allowed() -> None:
    world = World(replace(TRUNK, allow=(ip_network("198.51.100.0/24"),)), arrival=ok)
    source = Address("198.51.100.7", 41000)
    world.came(a_request(via="SIP/2.0/UDP pbx.example:5060;rport;branch=z9hG4bKz"), source)
    assert world.sent[0].to == source
    assert world.element.accepts(source)


# ------------------------------------------------------------------------------------- requests of the peer


def test_a_request_that_comes_again_is_told_once_and_answered_alike() -> None:
    world = World()
    for _ in range(3):
        world.came(a_request())
    assert world.completion.names() == ["takes", "arrived"]
    assert world.sent == []
    request, answer = world.completion.of("arrived")[0]
    world.clock.run(3)
    answer(request.response(200, tag="t1"))
    first = world.take()[0].data
    for _ in range(10):
        world.clock.run(2.5)
        world.came(a_request())
    assert [s.data for s in world.sent] == [first] * 10
    assert world.completion.names() == ["takes", "arrived"]
    assert world.lines == []


def test_it_is_known_again_whatever_call_completion_thinks_by_then() -> None:
    world = World(arrival=ok)
    world.came(a_request())
    world.completion.takes_it = False
    world.came(a_request())
    assert transcript(world) == ["peer: SIP/2.0 200 OK"] * 2


def test_after_its_time_it_is_a_new_one() -> None:
    world = World(arrival=ok)
    world.came(a_request())
    world.clock.run(TIMERS.life)
    world.came(a_request())
    assert world.completion.names() == ["takes", "arrived"] * 2


def test_a_cancel_of_it_is_answered_and_goes_no_further() -> None:
    world = World()
    world.came(a_request())
    world.came(a_request("CANCEL"))
    world.came(a_request("CANCEL"))
    assert transcript(world) == ["peer: SIP/2.0 200 OK"] * 2
    assert len({s.data for s in world.sent}) == 1
    assert world.completion.names() == ["takes", "arrived"]


@pytest.mark.parametrize(("method", "contact"), [("SUBSCRIBE", True), ("NOTIFY", True), ("PUBLISH", False)])
def test_a_2xx_says_where_we_are(method: str, contact: bool) -> None:
    world = World(arrival=ok)
    world.came(a_request(method))
    assert world.sent[0].message.get("contact") == ("<sip:cc@192.0.2.1:5070>" if contact else None)


def test_a_refusal_has_a_tag_and_no_contact() -> None:
    world = World(arrival=lambda request, answer: answer(request.response(489)))
    world.came(a_request())
    answer = world.sent[0].message
    assert (answer.status, answer.get("contact")) == (489, None)
    assert answer.to.tag == stateless_tag(request_of(a_request()))


def test_the_first_final_answer_counts() -> None:
    def twice(request: Request, answer: Callable[[Response], None]) -> None:
        answer(request.response(200, tag="t1"))
        answer(request.response(486, tag="t1"))

    world = World(arrival=twice)
    world.came(a_request())
    assert transcript(world) == ["peer: SIP/2.0 200 OK"]


def test_an_answer_nobody_waits_for_is_not_sent() -> None:
    world = World()
    world.came(a_request())
    request, answer = world.completion.of("arrived")[0]
    world.clock.run(TIMERS.life)
    answer(request.response(200, tag="t1"))
    answer(request.response(180, tag="t1"))
    assert world.sent == []
    assert world.lines == ["trunk mxone: nobody waits for the answer to this SUBSCRIBE any more"] * 2


def test_a_request_without_a_branch_is_refused() -> None:
    world = World()
    world.came(a_request(via="SIP/2.0/UDP 192.0.2.10:5060;branch=1"))
    assert transcript(world) == ["peer: SIP/2.0 400 Bad Request"]
    assert world.completion.of("arrived") == []


# -------------------------------------------------------------------------------------------- our requests


def test_our_request_gets_via_and_contact_and_goes_to_the_peer() -> None:
    world = World()
    world.element.ask(our_request())
    (sent,) = world.sent
    assert (sent.to, sent.port) == (PEER, None)
    assert sent.message.get("via") == f"SIP/2.0/UDP 192.0.2.1:5070;branch={BRANCH}0;rport"
    assert sent.message.get("contact") == "<sip:cc@192.0.2.1:5070>"


def test_the_peer_knows_us_by_our_public_address() -> None:
    world = World(replace(TRUNK, towards_peer=Address("2001:db8::1", 5999)))
    world.element.ask(our_request())
    assert world.sent[0].message.get("via") == f"SIP/2.0/UDP [2001:db8::1]:5999;branch={BRANCH}0;rport"
    assert world.sent[0].message.get("contact") == "<sip:cc@[2001:db8::1]:5999>"


def test_it_is_sent_again_until_nobody_can_answer_any_more() -> None:
    world = World()
    asked = our_request()
    world.element.ask(asked)
    world.clock.run(31.999)
    assert world.completion.events == []
    world.clock.run(0.001)
    assert [s.at for s in world.sent] == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert len({s.data for s in world.sent}) == 1
    assert world.completion.of("answered") == [(asked, None)]
    assert world.completion.of("answered")[0][0] is asked
    world.clock.run(1000)
    assert len(world.sent) == 11
    assert len(world.completion.events) == 1
    assert world.clock.armed() == []


@pytest.mark.parametrize("status", [200, 302, 481, 503, 603])
def test_its_answer_is_told_once(status: int) -> None:
    world = World()
    asked = our_request()
    world.element.ask(asked)
    sent = world.sent[0].message
    for answer in (sent.response(100), *[sent.response(status)] * 3):
        world.clock.run(0.1)
        world.came(answer.to_bytes())
    world.clock.run(100)
    assert [(a is asked, r.status) for a, r in world.completion.of("answered")] == [(True, status)]
    assert len(world.completion.events) == 1
    assert len(world.sent) == 1


def test_an_answer_to_nothing_is_dropped() -> None:
    world = World()
    world.element.ask(our_request())
    stranger = (
        world.sent[0].message.response(200).with_top("via", f"SIP/2.0/UDP 192.0.2.1:5070;branch={BRANCH}99")
    )
    doubled = (
        world.sent[0].message.response(200).appended(("Via", "SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bKx"))
    )
    world.take()
    world.came(stranger.to_bytes())
    world.came(doubled.to_bytes())
    assert world.idle
    assert len(world.lines) == 2


def test_asterisk_cannot_answer_in_the_peers_place() -> None:
    world = World()
    world.element.ask(our_request())
    answer = world.take()[0].message.response(200)
    world.came(answer.to_bytes(), ASTERISK)
    assert world.idle


@pytest.mark.parametrize(
    ("uri", "route", "to"),
    [
        ("sip:4003@192.0.2.10", (), 0),
        ("sip:4003@192.0.2.11:5062", (), 1),
        ("sip:4003@192.0.2.11:5062", ("<sip:192.0.2.10;lr>",), 0),
        ("sip:4003@192.0.2.10", ("<sip:192.0.2.11:5062;lr>", "<sip:192.0.2.10;lr>"), 1),
        (f"sip:4003@{EVIL}", (), 0),
        (f"sip:4003@{EVIL};maddr={EVIL}", (f"<sip:{EVIL};lr>",), 0),
        ("sip:4003@192.0.2.11:5062", ("<nonsense",), 1),
        ("nonsense", (), 0),
    ],
)
def test_it_goes_to_the_peer_that_route_or_uri_names(uri: str, route: tuple[str, ...], to: int) -> None:
    trunk = replace(TRUNK, peer=(PEER, Address("192.0.2.11", 5062)))
    world = World(trunk)
    world.element.ask(our_request("NOTIFY", *(("Route", r) for r in route), uri=uri))
    assert [s.to for s in world.sent] == [trunk.peer[to]]


def test_too_many_of_ours_get_no_answer_and_no_one_is_told_before_he_has_asked() -> None:
    world = World()
    for n in range(MAX_CLIENTS):
        world.element.ask(our_request(n=n + 1))
    asked = our_request(n=MAX_CLIENTS + 1)
    world.take()
    world.element.ask(asked)
    assert world.idle
    world.clock.run(0)
    assert world.completion.of("answered") == [(asked, None)]
    assert len(world.lines) == 1


def test_one_call_of_the_clock_is_armed_and_none_when_all_is_quiet() -> None:
    world = World()
    world.element.ask(our_request(n=1))
    world.clock.run(0.2)
    for n in range(2, 50):
        world.element.ask(our_request(n=n))
    assert world.clock.armed() == pytest.approx([0.3])
    assert len(world.clock.heap) == 1
    for sent in world.take():
        world.came(sent.message.response(200).to_bytes())
    world.clock.run(5.2)
    assert world.clock.armed() == []


# ---------------------------------------------------------------------------------- a line that loses things


class Cable:
    """Carries between two elements: loses, doubles and overtakes, the same each time for one seed."""

    def __init__(self, clock: Clock, seed: int, loss: dict[Address, float], double: float = 0.2) -> None:
        self.clock, self.loss, self.double = clock, loss, double
        self.random = random.Random(seed)
        self.ends: dict[Address, World] = {}
        self.lost = self.doubled = self.overtaken = 0
        self.latest = 0.0

    def carry(self, sender: Address, sent: Sent) -> None:
        for copy in range(2 if self.random.random() < self.double else 1):
            self.doubled += copy
            if self.random.random() < self.loss[sender]:
                self.lost += 1
                continue
            # Up to T1: what is slower may outlast a server's transaction, as the RFC's tables have it
            at = self.clock.now() + self.random.uniform(0.001, TIMERS.t1)
            self.overtaken += at < self.latest
            self.latest = max(self.latest, at)
            self.clock.call_at(at, lambda: self.ends[sent.to].came(sent.data, sender))

    def join(self, address: Address, world: World) -> None:
        self.ends[address] = world
        world.on_send = lambda sent: self.carry(address, sent)


A, B = Address("192.0.2.1", 5070), Address("192.0.2.2", 5070)


def two_elements(seed: int, loss: dict[Address, float]) -> tuple[Cable, World, World]:
    clock = Clock()
    cable = Cable(clock, seed, loss)
    worlds = [
        World(replace(TRUNK, listen=us, towards_peer=us, peer=(them,)), clock)
        for us, them in ((A, B), (B, A))
    ]
    for address, world in zip((A, B), worlds, strict=True):
        cable.join(address, world)
    return cable, worlds[0], worlds[1]


def subscribe_and_notify(cable: Cable, a: World, b: World, many: int) -> list[tuple[float, World, Request]]:
    """A subscribes so many times; B answers after a while, and each subscription brings a NOTIFY."""
    asked: list[tuple[float, World, Request]] = []

    def ask(world: World, request: Request) -> None:
        asked.append((cable.clock.now(), world, request))
        world.element.ask(request)

    def subscribed(request: Request, answer: Callable[[Response], None]) -> None:
        def later() -> None:
            answer(request.response(200, tag="t1"))
            ask(b, our_request("NOTIFY", n=int(request.call_id[1:])))

        cable.clock.call_at(cable.clock.now() + cable.random.choice((0, 0, 0.3, 3)), later)

    b.completion.arrival = subscribed
    a.completion.arrival = lambda request, answer: answer(request.response(200))
    for n in range(1, many + 1):
        request = our_request("SUBSCRIBE", n=n).with_headers(("From", f"<sip:{n}@192.0.2.1>;tag=u1"))
        cable.clock.call_at(cable.clock.now() + n / 10, lambda r=request: ask(a, r))  # type: ignore[misc]
    return asked


@pytest.mark.parametrize("seed", range(8))
def test_on_a_bad_line_each_request_gets_through_once(seed: int) -> None:
    cable, a, b = two_elements(seed, {A: 0.25, B: 0.25})
    asked = subscribe_and_notify(cable, a, b, 100)
    cable.clock.run(200)
    assert len(asked) == 200
    assert cable.lost > 100
    assert cable.doubled > 50
    assert cable.overtaken > 100
    for world, method in ((a, "SUBSCRIBE"), (b, "NOTIFY")):
        ends = Counter(
            (r.method, r.call_id, response.status) for r, response in world.completion.of("answered")
        )
        assert ends == {(method, f"o{n}", 200): 1 for n in range(1, 101)}
    told = Counter((r.method, r.call_id) for w in (a, b) for r, _ in w.completion.of("arrived"))
    assert set(told.values()) == {1}
    assert len(told) == 200
    assert not [s for w in (a, b) for s in w.sent if s.to == ASTERISK]
    assert a.lines == b.lines == []
    assert cable.clock.armed() == []
    assert a.element._agent._asked == b.element._agent._asked == {}


@pytest.mark.parametrize("deaf", [A, B])
def test_on_a_dead_line_each_request_ends_when_the_tables_say(deaf: Address) -> None:
    """Nothing reaches B, or nothing comes back from it."""
    cable, a, b = two_elements(1, {A: 1.0 if deaf is B else 0.0, B: 1.0 if deaf is A else 0.0})
    ends: list[tuple[Request, Response | None, float]] = []
    for world in (a, b):
        world.completion.end = lambda r, response: ends.append((r, response, cable.clock.now()))
    asked = subscribe_and_notify(cable, a, b, 50)
    cable.clock.run(200)
    assert len(asked) == len(ends) == (50 if deaf is B else 100)
    began = {id(request): at for at, _, request in asked}
    assert all(response is None for _, response, _ in ends)
    assert [at - began[id(r)] for r, _, at in ends] == pytest.approx([32.0] * len(ends))
    of_first = [s.at + a.began for s in a.sent if s.is_request and s.message.call_id == "o1"]
    assert of_first == pytest.approx([asked[0][0] + at for at in (0, *SENT_AGAIN)])
    told = Counter((r.method, r.call_id) for w in (a, b) for r, _ in w.completion.of("arrived"))
    assert set(told.values()) == ({1} if deaf is A else set())


@pytest.mark.parametrize("seed", range(4))
def test_on_the_worst_line_each_request_ends_once_all_the_same(seed: int) -> None:
    cable, a, b = two_elements(seed, {A: 0.8, B: 0.8})
    asked = subscribe_and_notify(cable, a, b, 100)
    cable.clock.run(300)
    ended = Counter(id(r) for w in (a, b) for r, _ in w.completion.of("answered"))
    assert ended == {id(request): 1 for _, _, request in asked}
    outcomes = {None if r is None else r.status for w in (a, b) for _, r in w.completion.of("answered")}
    assert outcomes == {None, 200}
    assert (
        max(Counter((r.method, r.call_id) for w in (a, b) for r, _ in w.completion.of("arrived")).values())
        == 1
    )


# -------------------------------------------------------------------------------- strangers, and what is no SIP


def test_strangers_are_dropped_in_few_lines() -> None:
    world = World()
    for n in range(2000):
        world.came(a_request("INVITE"), Address(EVIL, 1024 + n))
        world.clock.run(0.001)
    assert world.idle
    assert len(world.lines) == 5
    assert world.lines[0] == f"trunk mxone: {EVIL}:1024 is neither Asterisk nor the peer: dropped"
    world.clock.run(10)
    assert world.lines[5:] == ["trunk mxone: messages of strangers: 1995 more in 10 s"]
    world.came(a_request("INVITE"), STRANGER)
    assert len(world.lines) == 7


@pytest.mark.parametrize(
    "source", [STRANGER, Address(PEER.host, 5061), Address("127.0.0.1", 5070), OURS, Address("x", 5060)]
)
def test_over_udp_host_and_port_count(source: Address) -> None:
    world = World()
    assert not world.element.accepts(source)
    world.came(a_request(), source)
    world.came(a_request("INVITE"), source)
    world.came(b"nonsense", source)
    assert world.idle


BAD = [
    (a_request().replace(b"CSeq: 1", b"CSeq: x"), 400),
    (a_request().replace(b"From: ", b"X: "), 400),
    (a_request().replace(b"To: <", b'To: "'), 400),
    (a_request().replace(b"Call-ID: c1", b"Call-ID: "), 400),
    (a_request("INVITE").replace(b"Content-Length: 0", b"Content-Length: 5"), 400),
    (a_request("OPTIONS").replace(b"Max-Forwards: 70", b"Max-Forwards: -1"), 400),
]


@pytest.mark.parametrize(("data", "status"), BAD)
@pytest.mark.parametrize("source", [PEER, ASTERISK])
def test_what_is_no_good_is_answered(data: bytes, status: int, source: Address) -> None:
    data = data.replace(b"192.0.2.10:5060;branch", f"{source};branch".encode())
    world = World()
    world.came(data, source)
    world.came(data, source)
    assert {s.to for s in world.sent} == {source}
    assert len({s.data for s in world.sent}) == 1
    line = world.sent[0].data.split(b"\r\n")[0]
    assert line == f"SIP/2.0 {status} Bad Request".encode()
    assert world.completion.events == []
    assert all("sip:" not in line for line in world.lines)


@pytest.mark.parametrize(
    "data",
    [
        a_request("ACK").replace(b"CSeq: 1", b"CSeq: x"),
        b"nonsense\r\n\r\n",
        b"\x00" * 100,
        a_request().replace(b"Via: SIP/2.0", b"Via: SIP/1.0"),
        answer_of(a_request()).replace(b"CSeq: 1", b"CSeq: x"),
        *(d.replace(b";branch", f";maddr={EVIL};branch".encode()) for d, _ in BAD),
        *(d.replace(b"192.0.2.10:5060;branch", b"192.0.2.10:5099;branch") for d, _ in BAD),
    ],
)
def test_what_cannot_or_may_not_be_answered_is_not(data: bytes) -> None:
    world = World()
    world.came(data)
    assert world.idle
    assert 1 <= len(world.lines) <= 2


def test_the_answer_to_what_is_no_good_goes_where_it_came_from() -> None:
    world = World()
    world.came(BAD[0][0].replace(b"192.0.2.10:5060;branch", b"pbx.example:9;rport;branch"))
    assert [s.to for s in world.sent] == [PEER]
    assert b";rport=5060;" in world.sent[0].data


def test_no_more_than_a_few_lines_whatever_goes_wrong() -> None:
    world = World(takes_it=Fault())
    for n in range(100):
        world.came(b"nonsense")
        world.came(a_request(), STRANGER)
        world.came(a_request(call_id=str(n)))
        world.came(answer_of(a_request()))
    assert len(world.lines) == 4 * 5
    world.element.close()
    assert [line for line in world.lines if "95 more in 10 s" in line] == world.lines[20:]
    assert len(world.lines) == 24


# ------------------------------------------------------------------------------------------- faults of ours


def calls_that_pass() -> list[tuple[bytes, Address]]:
    found = [(a_request(m), PEER) for m in CALLS] + [(from_asterisk(m), ASTERISK) for m in CALLS]
    for data, source in list(found):
        if data.startswith(b"INVITE"):
            world = World()
            world.came(data, source)
            answer = world.sent[0].message.response(486, tag="x", headers=(("Reason", "Q.850;cause=17"),))
            found.append((answer.to_bytes(), ASTERISK if source is PEER else PEER))
    return found


FAULTS: list[dict[str, Any]] = [
    {"verdict": Fault("!"), "marks": Fault("!"), "takes_it": Fault("!")},
    {"verdict": Malformed("!"), "marks": Malformed("!"), "takes_it": Malformed("!")},
    {"verdict": "sip:a@b\r\nX: y", "marks": (("Call-Info", "a\r\nX: y"),), "takes_it": Fault()},
    {"verdict": "sip:CC 1@b", "marks": 5, "takes_it": Fault()},
    {"verdict": "", "marks": (("only",),), "takes_it": Fault()},
    {"verdict": 5, "marks": (5,), "takes_it": Fault()},
    {"verdict": lambda r: r.response(486, headers=(("X", "a\nb"),)), "marks": None, "takes_it": Fault()},
]


@pytest.mark.parametrize("faults", FAULTS)
def test_calls_pass_unchanged_where_call_completion_fails(faults: dict[str, Any]) -> None:
    for data, source in (*calls_that_pass(), *((a_request(m), PEER) for m in EVENTS)):
        world, twin = World(**faults), World(takes_it=False)
        world.came(data, source)
        twin.came(data, source)
        assert [(s.data, s.to) for s in world.sent] == [(s.data, s.to) for s in twin.sent]
        assert len(world.sent) == 1
        assert len(world.lines) == 1, data
        assert "a fault of fastagi itself" in world.lines[0]


@pytest.mark.parametrize("after", [False, True])
def test_what_it_took_and_failed_on_is_answered(after: bool) -> None:
    """Before or after it has answered."""

    def fails(request: Request, answer: Callable[[Response], None]) -> None:
        if after:
            ok(request, answer)
        raise Fault

    world = World(arrival=fails)
    world.came(a_request())
    world.came(a_request())
    assert [s.message.status for s in world.sent] == [200 if after else 500] * 2
    if not after:
        assert world.sent[0].message.get("retry-after")
    assert len(world.lines) == 1
    assert world.completion.names() == ["takes", "arrived"]


def test_an_answer_that_cannot_be_sent_is_a_500() -> None:
    world = World(arrival=lambda request, answer: answer(request.response(200, headers=(("X", "\r\n"),))))
    world.came(a_request())
    assert [s.message.status for s in world.sent] == [500]


def test_a_fault_of_the_proxy_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise Fault

    world = World()
    monkeypatch.setattr(world.element._proxy, "forward", fails)
    world.came(a_request("INVITE"))
    assert world.sent == []
    assert "Fault" in world.lines[0]


def test_one_fault_does_not_keep_news_from_others() -> None:
    world = World(end=Fault())
    world.on_send = lambda sent: world.clock.now() > world.began + 1 and (_ for _ in ()).throw(Fault())  # type: ignore[assignment]
    requests = [our_request(n=n + 1) for n in range(3)]
    for request in requests:
        world.element.ask(request)
    world.clock.run(33)
    assert world.completion.of("answered") == [(request, None) for request in requests]


# ------------------------------------------------------------------------------------------------- our limits


def statuses(world: World) -> list[int]:
    return [s.message.status for s in world.take()]


def test_one_caller_may_ask_so_often() -> None:
    world = World(arrival=ok)
    for n in range(15):
        world.came(of(n))
    assert statuses(world) == [200] * 10 + [503] * 5
    world.came(of(100, from_="<sip:4004@192.0.2.10>;tag=f2"))
    assert statuses(world) == [200]
    world.clock.run(1)
    for n in range(20, 25):
        world.came(of(n, method="PUBLISH"))
    assert statuses(world) == [200] * 2 + [503] * 3
    assert "trunk mxone: a PUBLISH is one too many: answered 503" not in world.lines  # five lines are enough
    assert "trunk mxone: a SUBSCRIBE is one too many: answered 503" in world.lines


def test_a_refusal_says_when_to_come_again_and_is_the_same_for_each_copy() -> None:
    world = World(arrival=ok)
    for n in range(12):
        world.came(of(n))
    world.came(of(11))
    last, again = world.sent[-2:]
    assert last.message.get("retry-after") == "10"
    assert last.message.to.tag
    assert last.data == again.data


def test_one_trunk_may_ask_so_often() -> None:
    world = World(arrival=ok)
    for n in range(150):
        world.came(of(n, from_=f"<sip:{n}@192.0.2.10>;tag=f"))
    assert statuses(world) == [200] * 100 + [503] * 50
    world.clock.run(1)
    for n in range(200, 300):
        world.came(of(n, from_=f"<sip:{n}@192.0.2.10>;tag=f"))
    assert statuses(world) == [200] * 50 + [503] * 50


def test_one_caller_who_floods_takes_nothing_from_the_others() -> None:
    world = World(arrival=ok)
    for n in range(500):
        world.came(of(n))
    world.take()
    for n in range(90):
        world.came(of(1000 + n, from_=f"<sip:{n}@192.0.2.10>;tag=f"))
    assert statuses(world) == [200] * 90


def test_what_comes_again_counts_once_and_notifies_not_at_all() -> None:
    world = World(arrival=ok)
    for _ in range(50):
        world.came(of(1))
    for n in range(2, 11):
        world.came(of(n))
    for n in range(200):
        world.came(of(n, method="NOTIFY", to="<sip:2000@h>;tag=u1"))
    assert set(statuses(world)) == {200}


def test_a_100_has_no_tag_and_a_final_answer_has() -> None:
    def slowly(request: Request, answer: Callable[[Response], None]) -> None:
        answer(request.response(100))
        answer(request.response(404))

    world = World(arrival=slowly)
    world.came(a_request())
    assert [(s.message.status, bool(s.message.to.tag)) for s in world.sent] == [(100, False), (404, True)]


def test_what_is_not_ours_has_no_limit() -> None:
    world = World(takes_it=False)
    for n in range(500):
        world.came(of(n))
    assert {s.to for s in world.sent} == {ASTERISK}
    assert len(world.sent) == 500


def test_requests_nobody_answers_are_bounded() -> None:
    world = World()
    for n in range(MAX_SERVERS + 20):
        world.came(of(n, method="NOTIFY"))
    assert statuses(world) == [503] * 20
    assert len(world.completion.of("arrived")) == MAX_SERVERS


# ------------------------------------------------------------------------------------- answers without state


@pytest.mark.parametrize("source", [PEER, ASTERISK])
def test_an_answer_of_our_own_to_a_call(source: Address) -> None:
    world = World(verdict=lambda request: request.response(486))
    invite, ack = (a_request(m, via=f"SIP/2.0/UDP {source};branch=z9hG4bKi") for m in ("INVITE", "ACK"))
    for _ in range(3):
        world.came(invite, source)
        world.clock.run(100)
    assert [(s.to, s.message.status) for s in world.sent] == [(source, 486)] * 3
    assert len({s.data for s in world.sent}) == 1
    tag = world.take()[0].message.to.tag
    assert tag == stateless_tag(request_of(invite))
    for verdict in (lambda request: request.response(486), None, "sip:2000@192.0.2.1"):
        world.completion.verdict = verdict
        world.came(
            ack.replace(b"To: <sip:2000@192.0.2.1>", f"To: <sip:2000@192.0.2.1>;tag={tag}".encode()), source
        )
    assert world.sent == []


def test_a_tag_that_is_there_stays() -> None:
    world = World(verdict=lambda request: request.response(486, tag="mine"))
    world.came(a_request("INVITE"))
    assert world.sent[0].message.to.tag == "mine"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (a_request("OPTIONS").replace(b"Max-Forwards: 70", b"Max-Forwards: 0"), 483),
        (a_request("INVITE", "Proxy-Require: x"), 420),
    ],
)
def test_what_the_proxy_refuses(data: bytes, status: int) -> None:
    world = World()
    world.came(data)
    assert [(s.to, s.message.status) for s in world.sent] == [(PEER, status)]


def test_an_ack_is_never_answered() -> None:
    world = World(verdict=lambda request: request.response(486))
    world.came(a_request("ACK"))
    world.completion.verdict = None
    world.came(a_request("ACK").replace(b"Max-Forwards: 70", b"Max-Forwards: 0"))
    assert world.sent == []


# ---------------------------------------------------------------------------------------- hostile addresses


HOSTILE = (
    f"Contact: <sip:evil@{EVIL}>",
    f"Record-Route: <sip:{EVIL};lr>",
    f"Route: <sip:{EVIL};lr>",
    f"Call-Info: <sip:cc@{EVIL}>;purpose=call-completion;m=BS",
    f"P-Asserted-Identity: <sip:evil@{EVIL}>",
)
VIAS = (
    f"SIP/2.0/UDP {EVIL}:5060;branch=z9hG4bKe",
    f"SIP/2.0/UDP {EVIL}:5060;rport;branch=z9hG4bKe",
    f"SIP/2.0/UDP {EVIL};received={EVIL};rport=5060;branch=z9hG4bKe",
    f"SIP/2.0/UDP {EVIL};maddr={EVIL};branch=z9hG4bKe",
    f"SIP/2.0/UDP 192.0.2.10;maddr={EVIL};rport;branch=z9hG4bKe",
    "SIP/2.0/UDP 192.0.2.10:1;branch=z9hG4bKe",
    "SIP/2.0/UDP 127.0.0.1:5060;rport;branch=z9hG4bKe",
    "SIP/2.0/TLS evil.example;branch=z9hG4bKe",
    "SIP/2.0/UDP 192.0.2.1:5070;rport;branch=z9hG4bKe",
)


@pytest.mark.parametrize("trunk", [TRUNK, TCP], ids=["udp", "tcp"])
@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("method", ("INVITE", "OPTIONS", *EVENTS))
def test_whatever_a_message_says_it_goes_nowhere_else(trunk: Trunk, via: str, method: str) -> None:
    """See also `nothing_goes_astray`."""
    for source in (PEER, ASTERISK):
        for takes in (True, False):
            world = World(trunk, takes_it=takes, arrival=ok)
            for verdict in (
                None,
                f"sip:x@{EVIL}",
                lambda r: r.response(302, headers=(("Contact", HOSTILE[0]),)),
            ):
                world.completion.verdict = verdict
                world.came(a_request(method, *HOSTILE, via=via, uri=f"sip:2000@{EVIL};maddr={EVIL}"), source)
                world.came(a_request(method, *HOSTILE, via=via).replace(b"CSeq: 1", b"CSeq: x"), source)
            answering = ASTERISK if source is PEER else PEER
            for sent in [s for s in world.take() if s.is_request]:
                world.came(
                    sent.message.response(200, headers=(("Contact", f"<sip:{EVIL}>"),)).to_bytes(), answering
                )
            for sent in world.sent:
                assert sent.to.host == source.host


@pytest.mark.parametrize("via", [VIAS[3], VIAS[4], VIAS[5]])
def test_nothing_is_begun_that_could_not_be_answered(via: str) -> None:
    world = World(arrival=ok)
    world.came(a_request(via=via))
    assert world.completion.names() == ["takes"]
    assert world.sent == []
    assert world.lines == ["trunk mxone: a Via of the peer names an address that is not its own"]


@pytest.mark.parametrize("via", VIAS)
def test_a_forged_answer_goes_nowhere_else(via: str) -> None:
    world = World()
    world.came(from_asterisk("INVITE"), ASTERISK)
    passed = world.take()[0].message
    top, _ = passed.all("via")
    world.came(passed.response(200).with_headers(("Via", top), ("Via", via)).to_bytes(), PEER)
    assert all(s.to == ASTERISK for s in world.sent)


@pytest.mark.parametrize("seed", range(5))
def test_no_message_makes_it_raise(seed: int) -> None:
    """Whole messages, cut, spliced and strewn with bytes, from either side and from nowhere."""
    rng = random.Random(seed)
    seeds = [a_request(m, *HOSTILE, via=v) for m in (*CALLS, *EVENTS) for v in VIAS]
    world = World(
        takes_it=lambda r: rng.random() < 0.7,
        verdict=lambda r: rng.choice((None, "sip:2000@h", r.response(486))),
    )
    world.completion.arrival = lambda r, answer: answer(r.response(rng.choice((100, 200, 489, 700))))
    for _ in range(600):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 8))] = rng.choice(
                (b"", b"\x00", b"\xff", b'"', b"<", b";", b",", b"\r\n", b" ", b"Via: ", b"z9hG4bKca0")
            )
        world.came(bytes(data), rng.choice((PEER, PEER, ASTERISK, STRANGER)))
        for sent in world.take():
            if rng.random() < 0.3 and sent.is_request:
                world.came(sent.message.response(200).to_bytes(), sent.to)
        world.clock.run(rng.random())
    assert not [line for line in world.lines if "fault" in line and "never" not in line]


# -------------------------------------------------------------------------------------------------------- TCP


STREAM = Address(PEER.host, 40123)


def test_over_tcp_the_answer_goes_by_the_connection_the_request_came_by() -> None:
    world = World(TCP, arrival=ok)
    world.came(a_request(via="SIP/2.0/TCP 192.0.2.10:5062;rport;branch=z9hG4bKt"), STREAM)
    (sent,) = world.sent
    assert (sent.to, sent.port) == (Address(PEER.host, 5062), 40123)
    assert sent.message.get("contact") == "<sip:cc@192.0.2.1:5070;transport=tcp>"
    assert sent.message.via.rport == 40123


def test_over_tcp_so_does_an_answer_without_state() -> None:
    world = World(TCP, verdict=lambda r: r.response(486))
    world.came(a_request("INVITE", via=f"SIP/2.0/TCP h;maddr={EVIL};branch=z9hG4bKt"), STREAM)
    world.came(BAD[0][0], STREAM)
    assert [(s.to, s.port) for s in world.sent] == [(PEER, 40123)] * 2


def test_over_tcp_so_does_what_asterisk_answers() -> None:
    world = World(TCP)
    world.came(a_request("INVITE", via="SIP/2.0/TCP 192.0.2.10:5062;branch=z9hG4bKt"), STREAM)
    (passed,) = world.take()
    assert (passed.to, passed.port) == (ASTERISK, None)
    world.came(passed.message.response(486, tag="x").to_bytes(), Address("127.0.0.1", 41999))
    assert [(s.to, s.port) for s in world.sent] == [(Address(PEER.host, 5062), 40123)]


def test_over_tcp_nothing_is_sent_again() -> None:
    world = World(TCP)
    asked = our_request()
    world.element.ask(asked)
    assert world.sent[0].message.get("via").startswith("SIP/2.0/TCP 192.0.2.1:5070;")
    world.clock.run(31.9)
    assert len(world.sent) == 1
    assert world.completion.events == []
    world.clock.run(0.1)
    assert world.completion.of("answered") == [(asked, None)]


def test_a_lost_connection_ends_our_requests_by_it() -> None:
    trunk = replace(TCP, peer=(PEER, Address("192.0.2.11", 5060)))
    world = World(trunk)
    here, there = our_request(n=1), our_request(n=2, uri="sip:4003@192.0.2.11")
    world.element.ask(here)
    world.element.ask(there)
    world.element.lost(STREAM)
    world.element.lost(PEER)
    assert world.completion.events == []
    world.clock.run(0)
    assert world.completion.of("answered") == [(here, None)]
    world.clock.run(40)
    assert world.completion.of("answered") == [(here, None), (there, None)]


def test_who_asks_anew_before_he_is_told_loses_nothing() -> None:
    world = World(TCP)
    world.element.ask(our_request(n=1))
    world.element.lost(PEER)
    world.element.ask(our_request(n=2))
    world.clock.run(0)
    assert [(a.call_id, r) for a, r in world.completion.of("answered")] == [("o1", None)]


def test_a_transport_that_fails_at_once_does_not_interrupt_who_asks() -> None:
    world = World(TCP)
    world.on_send = lambda sent: world.element.lost(PEER)
    world.element.ask(our_request())
    assert world.completion.events == []
    world.clock.run(0)
    assert world.completion.names() == ["answered"]
    world.clock.run(100)
    assert world.completion.names() == ["answered"]


def test_a_request_of_the_peer_outlives_its_connection() -> None:
    world = World(TCP)
    world.came(a_request(via="SIP/2.0/TCP 192.0.2.10:5062;branch=z9hG4bKt"), STREAM)
    world.element.lost(STREAM)
    world.clock.run(1)
    request, answer = world.completion.of("arrived")[0]
    ok(request, answer)
    assert [(s.to, s.port) for s in world.sent] == [(Address(PEER.host, 5062), 40123)]


def test_over_udp_nothing_can_be_lost() -> None:
    world = World()
    world.element.ask(our_request())
    world.came(a_request())
    world.element.lost(PEER)
    world.clock.run(20)
    assert "answered" not in world.completion.names()
    world.came(a_request())
    assert len(world.completion.of("arrived")) == 1


# -------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("trunk", [TRUNK, TCP], ids=["udp", "tcp"])
def test_after_the_end_nothing_is_taken_sent_or_told(trunk: Trunk) -> None:
    world = World(trunk)
    world.came(a_request())
    world.came(b"nonsense")
    request, answer = world.completion.of("arrived")[0]
    world.element.ask(our_request())
    world.take()
    before = len(world.completion.events), list(world.lines)
    world.element.lost(PEER)
    world.element.close()
    answer(request.response(200, tag="t1"))
    world.element.ask(our_request(n=2))
    world.clock.run(0)
    assert world.clock.armed() == []
    world.came(a_request("INVITE"))
    world.came(b"nonsense", STRANGER)
    assert not world.element.accepts(PEER)
    world.clock.run(100)
    assert (len(world.completion.events), world.lines) == before
    assert world.sent == []
    assert world.clock.armed() == []


def test_what_is_asked_after_the_end_wakes_nobody() -> None:
    world = World()
    world.element.close()
    world.element.ask(our_request())
    assert world.clock.armed() == []
    assert world.idle


# -------------------------------------------------------------------------------------------- limits.py alone


def test_a_bucket_holds_its_burst_and_fills_at_its_rate() -> None:
    buckets = Buckets(2, 10)
    assert [buckets.take("a", 0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert buckets.take("b", 0)
    assert not buckets.take("a", 0.49)
    assert buckets.take("a", 0.5)
    assert [buckets.take("a", 1000) for _ in range(12)] == [True] * 10 + [False] * 2


def test_buckets_need_no_more_than_their_memory() -> None:
    buckets = Buckets(2, 1, most=100)
    assert buckets.take("first", 0)
    for n in range(1000):
        buckets.take(f"{n}" + "x" * 10000, 0)
        assert not buckets.take("first", 0)
        assert len(buckets) <= 100
    assert all(len(key) <= MAX_KEY for key in buckets._levels)
    for n in range(200):
        buckets.take(str(n), 0)
    assert buckets.take("first", 0)  # forgotten, and full again


def test_a_slow_drip_is_logged_in_full() -> None:
    clock = Clock()
    lines: list[str] = []
    notices = Notices(clock, lines.append)
    for n in range(50):
        notices.say("drips", str(n))
        clock.run(2.5)
    assert lines == [str(n) for n in range(50)]


def test_each_kind_of_line_has_its_own_count() -> None:
    clock = Clock()
    lines: list[str] = []
    notices = Notices(clock, lines.append, most=1)
    for _ in range(3):
        notices.say("a", "A")
        notices.say("b", "B")
    clock.run(10)
    assert lines == ["A", "B", "a: 2 more in 10 s", "b: 2 more in 10 s"]
    assert clock.armed() == []
