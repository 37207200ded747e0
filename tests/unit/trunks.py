"""Two PBXs of the world of ``rules``, joined by a trunk whose messages lie on a table until they are delivered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from fastagi.completion.model import Context, Device, Number, Offer, Presence, Request, State
from fastagi.completion.offers import FailedCall
from fastagi.completion.ports import Beyond, Changes, Kept
from fastagi.completion.service import Place, RecallPlan, Target
from fastagi.sip import message as sip
from fastagi.sip.callcompletion import CallCompletion
from fastagi.sip.callcompletion.values import Agent, Heard, Monitor
from fastagi.sip.message import Header, Response
from fastagi.sip.package import call_info, parse_pidf
from fastagi.sip.transaction import stateless_tag
from fastagi.sip.trunk import Address, Side, Trunk
from tests.unit.rules import IN_USE, Clock, FakeTimer, World, phone

LIFE = 32.0
"""Seconds after which a request nobody answers is given up."""


# ------------------------------------------------------------------------------------------- the messages


def through_bytes(message: sip.Request | Response) -> sip.Request | Response:
    """As the other side reads it."""
    return sip.parse(message.to_bytes())


def in_words(message: sip.Request | Response) -> str:
    """What a message of call completion says, for the transcript."""
    if isinstance(message, Response):
        return f"{message.status} to {message.cseq[1]}"
    match message.method:
        case "SUBSCRIBE":
            return f"SUBSCRIBE {message.expires}"
        case "NOTIFY":
            ended = message.get("subscription-state", "").startswith("terminated")
            said = re.match(r"cc-state: (\w+)", message.body.decode())
            state = said[1] if said else "nothing"
            return f"NOTIFY {message.get('subscription-state')}" if ended else f"NOTIFY {state}"
        case "PUBLISH":
            said_open = parse_pidf(message.body) if message.body else None
            word = {True: "open", False: "closed", None: "refresh"}[said_open]
            return f"PUBLISH {'remove' if message.expires == 0 else word}"
    return message.method


@dataclass
class Packet:
    """One message on the table."""

    sender: str
    data: bytes
    take: Callable[[bytes], None]

    @property
    def message(self) -> sip.Request | Response:
        return sip.parse(self.data)

    def __str__(self) -> str:
        return f"{self.sender}: {in_words(self.message)}"


class Table:
    """What is under way between the two, in order; ``log`` has each message once, as it is sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.packets: list[Packet] = []
        self.log: list[str] = []
        self.sent: list[sip.Request | Response] = []
        self.notified: dict[str, list[tuple[float, str]]] = {}
        """Of each dialog, by its Call-ID: when which NOTIFY went out."""

    def put(self, packet: Packet, again: bool = False) -> None:
        self.packets.append(packet)
        if again:
            return
        message, line = packet.message, str(packet)
        self.sent.append(message)
        if isinstance(message, sip.Request) and message.method == "NOTIFY":
            said = self.notified.setdefault(f"{packet.sender} {message.call_id}", [])
            said.append((self._clock.now(), in_words(message)))
        if " 200 to " not in line:
            self.log.append(line)

    def lie(self) -> list[str]:
        """What lies there."""
        return [str(p) for p in self.packets]

    def deliver(self, place: int = 0) -> None:
        packet = self.packets.pop(place)
        packet.take(packet.data)

    def lose(self, words: str = "") -> None:
        """All, or what says these words."""
        self.packets = [p for p in self.packets if words not in str(p)]

    def last(self, words: str) -> sip.Request:
        """The latest request on the wire of these words."""
        found = [m for m in self.sent if isinstance(m, sip.Request) and in_words(m).startswith(words)]
        return found[-1]


# --------------------------------------------------------------------------------------------- one element


@dataclass
class _Client:
    asked: sip.Request
    timers: list[FakeTimer] = field(default_factory=list)


class Died(BaseException):
    """``kill -9``, in the middle of whatever was going on."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.name)
        self.site = site


class FakeElement:
    """The trunk's element of one process: sends and repeats; sees each request once, and repeats its answer."""

    def __init__(self, site: Site, trunk: Trunk) -> None:
        self.site, self.trunk = site, trunk
        self._clients: dict[str, _Client] = {}
        self._answers: dict[tuple[str, str], bytes | None] = {}
        self.dead = False

    # What goes out

    def ask(self, request: sip.Request) -> None:
        branch = f"z9hG4bKca{self.site.token()}"
        contact = ("Contact", f"<sip:cc@{self.trunk.towards_peer}>")
        via = ("Via", f"SIP/2.0/UDP {self.trunk.towards_peer};branch={branch};rport")
        data = request.with_headers(contact).prepended(via).to_bytes()
        client = self._clients[branch] = _Client(request)
        at, interval = self.site.clock.now(), 0.5
        self._send(data)
        while (at := at + interval) < self.site.clock.now() + LIFE:
            client.timers.append(self.site.clock.call_at(at, lambda: self._send(data, again=True)))
            interval = min(2 * interval, 4.0)
        until = self.site.clock.now() + LIFE
        client.timers.append(self.site.clock.call_at(until, lambda: self._over(branch, None)))

    def give_up(self) -> None:
        """Nothing that was asked is answered in time."""
        for branch in list(self._clients):
            self._over(branch, None)

    def _send(self, data: bytes, again: bool = False) -> None:
        if not self.dead:
            self.site.before_sending()
            self.site.table.put(Packet(self.site.name, data, self.site.other_takes(self.trunk.name)), again)

    def _over(self, branch: str, response: Response | None) -> None:
        client = self._clients.pop(branch, None)
        if client is not None and not self.dead:
            for timer in client.timers:
                timer.cancel()
            self.site.cc.answered(self.trunk.name, client.asked, response)

    # What comes in

    def receive(self, data: bytes) -> None:
        message = sip.parse(data)
        if isinstance(message, Response):
            if message.status >= 200:
                self._over(message.via.branch, message)
            return
        key = message.via.branch, message.method
        if key in self._answers:
            answer = self._answers[key]
            if answer is not None:
                self._send(answer, again=True)
            return
        self._answers[key] = None
        assert self.site.cc.takes(self.trunk.name, message), "this would have gone to Asterisk"
        self.site.cc.arrived(self.trunk.name, message, lambda response: self._answer(message, response))

    def _answer(self, request: sip.Request, response: Response) -> None:
        key = request.via.branch, request.method
        assert self._answers[key] is None, "answered twice"
        if request.method != "PUBLISH" and 200 <= response.status < 300:
            response = response.with_headers(("Contact", f"<sip:cc@{self.trunk.towards_peer}>"))
        if not response.to.tag:
            response = response.with_headers(("To", response.to.with_tag(stateless_tag(request)).text))
        self._answers[key] = response.to_bytes()
        self._send(response.to_bytes())


# ------------------------------------------------------------------------------------------------ one PBX


class HalfClock(Clock):
    """The clock of all, as one process sees it: what it has armed dies with it."""

    def __init__(self, whole: Clock) -> None:
        self._whole = whole
        self._own: list[FakeTimer] = []

    def now(self) -> float:
        return self._whole.now()

    def call_at(self, when: float, call: Callable[[], None]) -> FakeTimer:
        timer = self._whole.call_at(when, call)
        self._own = [t for t in self._own if t in self._whole.timers] + [timer]
        return timer

    def clear(self) -> None:
        for timer in self._own:
            timer.cancel()
        self._own.clear()


@dataclass
class Site(World):
    """One PBX with its trunks; that to the other one of two is called by the other's name."""

    name: str = "a"
    trunks: dict[str, Trunk] = field(default_factory=dict)
    table: Table = field(default_factory=lambda: Table(Clock()))
    other: Site | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._tokens = 0
        self.elements: dict[str, FakeElement] = {}
        self.commits = self.sendings = 0
        self._dies_sending = 0
        super().__post_init__()

    def token(self) -> str:
        """32 hexadecimal digits, never the same."""
        self._tokens += 1
        return f"{ord(self.name):02x}{self._tokens:030x}"

    def _new_recall_id(self) -> str:
        self._recalls += 1
        return f"{ord(self.name)}{self._recalls:0{15 - len(str(ord(self.name)))}d}"

    def beyond(self) -> Beyond | None:
        for element in self.elements.values():
            element.dead = True
        self.cc = CallCompletion(self.trunks, self.directory, self.clock, self.token, self.logged.append)
        return self.cc

    def joined(self, offers: list[Offer]) -> None:
        self.elements = {name: FakeElement(self, trunk) for name, trunk in self.trunks.items()}
        self.cc.join(self.service, dict(self.elements))

    def other_takes(self, trunk: str) -> Callable[[bytes], None]:
        """Who takes what is sent over a trunk: whatever process is there when it comes."""

        def take(data: bytes) -> None:
            if self.other is not None and trunk == self.other.name:
                self.other.elements[self.name].receive(data)

        return take

    # Dying

    def dies_at(self, commit: int, written: bool) -> None:
        """At this commit from now on: just before it is written, or just after, and before anything follows."""
        commit += self.commits
        whole = type(self.store).commit

        def last(changes: Changes, done: Callable[[Exception | None], None]) -> None:
            self.commits += 1
            if self.commits != commit:
                whole(self.store, changes, done)
                return
            del self.store.commit
            if written:
                self.store.write(changes)
            raise Died(self)

        self.store.commit = last  # type: ignore[method-assign]

    def dies_sending(self, message: int) -> None:
        """Just before this message from now on leaves, retransmissions counted."""
        self._dies_sending = self.sendings + message

    def before_sending(self) -> None:
        self.sendings += 1
        if self.sendings == self._dies_sending:
            raise Died(self)

    # Calls as they pass

    def passes(self, side: Side, message: sip.Request | Response, trunk: str = "") -> sip.Request | Response:
        """A message of a call on its way through this site's element: how it goes on, or the answer it gets."""
        trunk, known = trunk or next(iter(self.trunks)), through_bytes(message)
        if isinstance(known, Response):
            return through_bytes(known.appended(*self.cc.response_passes(trunk, side, known)))
        verdict = self.cc.request_passes(trunk, side, known)
        if isinstance(verdict, Response):
            return through_bytes(verdict)
        if verdict is not None:
            assert re.fullmatch(r"[^\s<>]+", verdict), f"no request line can hold {verdict!r}"
            return known.with_uri(verdict)
        return known

    # What its dialplan tells

    def records(
        self,
        caller: str,
        callee: str,
        dialstatus: str,
        cause: int,
        *,
        through: str = "",
        call_in: str = "",
        call_out: str = "",
        devices: Iterable[Device] = (),
    ) -> object:
        """``record`` of a call that failed; its answer."""
        self._calls += 1
        call = FailedCall(
            caller=phone(caller),
            context=Context("phones"),
            callee=Number(callee),
            devices=tuple(devices),
            dialstatus=dialstatus,
            cause=cause,
            uniqueid=f"call-{self._calls}",
            through=through,
            call_in=call_in,
            call_out=call_out,
        )
        answers: list[object] = []
        self.service.offer(call, answers.append)
        self.look()
        self.said(answers[0]) if answers else None
        return answers[0] if answers else None

    def asked(self, caller: str, callee: str | None = None) -> list[object]:
        """``*30``: what the service answers, and, of a request that was sent, what the other PBX has said."""
        answers: list[object] = []

        def done(answer: object) -> None:
            if isinstance(answer, Place) and answer.request.state is State.REQUESTED:
                self.service.accepted(answer.request.id, answers.append)
            else:
                answers.append(answer)

        self.service.ask(phone(caller), None if callee is None else Number(callee), done)
        self.look()
        return answers

    def plan(self, recall_id: str) -> RecallPlan | object:
        answers: list[object] = []
        self.service.recall_taken(recall_id, f"Local/{recall_id}", answers.append)
        self.look()
        return answers[0]

    def target(self, recall_id: str) -> Target | object:
        answers: list[object] = []
        self.service.caller_answered(recall_id, f"Local/{recall_id};2", answers.append)
        self.look()
        return answers[0]

    def recall(self) -> str:
        """The latest recall that rings here."""
        return self.agent.rung[-1].recall_id

    def open(self) -> list[Request]:
        return [r for r in self.store.requests.values() if r.state not in (State.COMPLETED, State.ENDED)]

    def states(self) -> list[str]:
        """Of all requests ever, in order: state, and how it ended."""
        return [f"{r.state} {r.reason}".strip() for _, r in sorted(self.store.requests.items())]


def trunk(name: str, ours: str, peer: str, **more: object) -> Trunk:
    """The trunk of that name from one address to another; the site's Asterisk is on loopback."""
    values: dict[str, object] = {
        "name": name,
        "transport": "udp",
        "listen": Address(ours, 5070),
        "peer": (Address(peer, 5070),),
        "asterisk": Address("127.0.0.1", 5060),
        "endpoint": f"to-{name}",
        "towards_peer": Address(ours, 5070),
        "towards_asterisk": Address("127.0.0.1", 5070),
        **more,
    }
    return Trunk(**values)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- a call


class TrunkCall:
    """A call from a phone of one site to one of the other, as its messages pass both elements.

    What the callers' Asterisk sends goes ``out``, what the callee's answers comes ``back``.
    """

    count = 0

    def __init__(
        self, out: Site, back: Site, caller: str, callee: str, uri: str = "", from_: str = ""
    ) -> None:
        TrunkCall.count += 1
        self.out, self.back, self.caller, self.callee = out, back, caller, callee
        self.call_id = f"call-{TrunkCall.count}@pbx"
        address = out.trunks[back.name].towards_asterisk
        self.uri = uri or f"sip:{callee}@{address}"
        self.from_ = from_ or f'"Name" <sip:{caller}@{address.host}>'
        self.tag = f"f{TrunkCall.count}"
        self.arrived: sip.Request | None = None
        self.seq = 0

    def request(self, method: str = "INVITE", seq: int = 0) -> sip.Request:
        return sip.Request(
            method,
            self.uri,
            (
                ("Via", f"SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bK{self.call_id}-{seq or self.seq}"),
                ("Max-Forwards", "70"),
                ("From", f"{self.from_};tag={self.tag}"),
                ("To", f"<{self.uri}>"),
                ("Call-ID", self.call_id),
                ("CSeq", f"{seq or self.seq} {method}"),
            ),
        )

    def sends(self, method: str) -> sip.Request | Response:
        """From the caller's Asterisk to the callee's; as it comes there, or the answer it gets on the way."""
        if method == "INVITE":
            self.seq += 1
        between = self.out.passes(Side.ASTERISK, self.request(method), self.back.name)
        if isinstance(between, Response):
            return between
        return self.back.passes(Side.PEER, between, self.out.name)

    def invite(self) -> sip.Request:
        arrived = self.sends("INVITE")
        assert isinstance(arrived, sip.Request), "an element has answered it"
        self.arrived = arrived
        return arrived

    def answers(self, status: int, *headers: Header) -> Response:
        """What the callee's Asterisk answers; as the caller's sees it."""
        asked = self.arrived or self.request()
        answer = asked.response(status, headers=headers, tag="t1" if status > 100 else "")
        between = self.back.passes(Side.ASTERISK, answer, self.out.name)
        assert isinstance(between, Response)
        seen = self.out.passes(Side.PEER, between, self.back.name)
        assert isinstance(seen, Response)
        return seen

    def record_there(self, dialstatus: str, cause: int) -> object:
        """``record`` at the callee's PBX, before it answers."""
        callee = phone(self.callee)
        return self.back.records(
            f"to-{self.out.name}", self.callee, dialstatus, cause, call_in=self.call_id, devices=(callee,)
        )

    def record_here(self, dialstatus: str, cause: int) -> object:
        """``record`` at the caller's."""
        through = f"PJSIP/to-{self.back.name}"
        return self.out.records(
            self.caller, self.callee, dialstatus, cause, through=through, call_out=self.call_id
        )

    def fails(
        self, status: int = 486, dialstatus: str = "BUSY", cause: int = 17, rings: bool = False
    ) -> Response:
        """From the INVITE to what both dialplans record."""
        self.invite()
        self.answers(100)
        if rings:
            self.answers(180)
        if dialstatus != "CANCEL":
            self.record_there(dialstatus, cause)
        seen = self.answers(status)
        if dialstatus == "CANCEL":
            self.record_there(dialstatus, cause)  # by a note, when all is over
        self.sends("ACK")
        self.record_here(dialstatus, cause)
        return seen


# --------------------------------------------------------------------------------------------------- both


class Pair:
    """Site a, 192.0.2.1, and site b, 192.0.2.2; whatever is on the table is delivered at once, unless ``held``."""

    def __init__(self, a: dict[str, object] | None = None, b: dict[str, object] | None = None) -> None:
        self.clock = Clock()
        self.table = Table(self.clock)
        self.held = False
        self.dice: Random | None = None
        """A bad line: what lies on the table is lost, doubled and taken in any order."""
        self.a = self._site("a", trunk("b", "192.0.2.1", "192.0.2.2", **(a or {})))
        self.b = self._site("b", trunk("a", "192.0.2.2", "192.0.2.1", **(b or {})))
        self.a.other, self.b.other = self.b, self.a
        self.sites = (self.a, self.b)

    def _site(self, name: str, trunk: Trunk) -> Site:
        return Site(clock=HalfClock(self.clock), name=name, trunks={trunk.name: trunk}, table=self.table)

    def flow(self) -> None:
        """Deliver all, and let the phones be seen, until nothing moves."""
        for _ in range(2000):
            for site in self.sites:
                site.look()
            if self.held or not self.table.packets:
                return
            self._deliver()
        raise AssertionError(f"the two never fall silent: {self.table.log[-12:]}")

    def _deliver(self) -> None:
        if self.dice is None:
            self.table.deliver()
            return
        place, luck = self.dice.randrange(len(self.table.packets)), self.dice.random()
        if luck < 0.2:
            self.table.packets.pop(place)
        else:
            if luck < 0.3:
                self.table.packets.append(self.table.packets[place])
            self.table.deliver(place)

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds, self.flow, most=20_000)

    def set(self, site: Site, number: str, presence: Presence) -> None:
        site.set(number, presence)
        self.flow()

    def restart(self, site: Site) -> None:
        """``kill -9``; what was on the wire stays there."""
        site.restart()
        self.flow()

    def wire(self) -> list[str]:
        """What was sent since the last time, but for 200s."""
        log, self.table.log = self.table.log, []
        return log

    def told(self) -> tuple[list[str], list[str]]:
        self.wire()
        return self.a.told(), self.b.told()

    def call(self, caller: str, callee: str, out: Site | None = None, **more: str) -> TrunkCall:
        out = out or self.a
        assert out.other is not None
        return TrunkCall(out, out.other, caller, callee, **more)

    # Words of the tests

    def camps(self, caller: str = "1000", callee: str = "2000", out: Site | None = None) -> Request:
        """``caller`` meets ``callee`` busy, asks, and is queued; nothing is in the transcripts. His request."""
        out = out or self.a
        assert out.other is not None
        self.set(out.other, callee, IN_USE)
        self.call(caller, callee, out).fails()
        answers = out.asked(caller)
        self.flow()
        [answer] = answers
        if isinstance(answer, Place):
            answer = answer.request
        assert isinstance(answer, Request), answer
        self.told()
        return answer

    def cc_call(self, out: Site | None = None) -> TrunkCall:
        """The recall that rings is taken and answered, and the caller's Asterisk dials; up to its INVITE there."""
        out = out or self.a
        recall = out.recall()
        out.plan(recall)
        return self.cc_invite(out, recall)

    def cc_invite(self, out: Site, recall: str) -> TrunkCall:
        target = out.target(recall)
        assert isinstance(target, Target), target
        assert out.other is not None
        address = out.trunks[out.other.name].towards_asterisk
        call = self.call(target.caller.number, target.callee, out, uri=f"sip:cc-{recall}@{address}")
        call.invite()
        self.flow()
        return call

    def call_is_over(self, call: TrunkCall, dialstatus: str, cause: int = 16) -> None:
        """The caller's dialplan tells how the CC call ended."""
        recall = re.search(r"cc-([0-9]{15})", call.uri)
        assert recall
        call.out.call_over(recall[1], dialstatus, cause)
        self.flow()


# ------------------------------------------------------------------------------------------ a peer by hand


class Peer:
    """The PBX beyond the trunk of a single site, by hand: each message it sends, each it gets."""

    def __init__(self, site: Site, trunk: str = "", host: str = "192.0.2.1") -> None:
        self.site, self.host = site, host
        self.trunk = trunk or next(iter(site.trunks))
        self._seen = 0
        self._count = 0

    # What it sends

    def request(self, method: str, uri: str, *headers: Header, **parts: str) -> sip.Request:
        """``call_id``, ``from_``, ``tag``, ``to_tag``, ``seq`` where they are not the usual ones."""
        self._count += 1
        to, branch = parts.get("to", f"<{uri}>"), f"z9hG4bKp{self._count}"
        if "to_tag" in parts:
            to += f";tag={parts['to_tag']}"
        return sip.Request(
            method,
            uri,
            (
                ("Via", f"SIP/2.0/UDP {self.host}:5070;branch={branch};rport"),
                ("Max-Forwards", "70"),
                ("From", f"<{parts.get('from_', f'sip:1000@{self.host}')}>;tag={parts.get('tag', 'ft')}"),
                ("To", to),
                ("Call-ID", parts.get("call_id", f"p{self._count}@{self.host}")),
                ("CSeq", f"{parts.get('seq', '1')} {method}"),
                ("Contact", f"<sip:peer@{self.host}:5070>"),
                *headers,
            ),
        )

    def send(self, request: sip.Request) -> Response | None:
        """Its answer, if there is one at once."""
        before = len(self.site.table.sent)
        self.site.elements[self.trunk].receive(request.to_bytes())
        self.site.look()
        for message in self.site.table.sent[before:]:
            if isinstance(message, Response) and message.via.branch == request.via.branch:
                return message
        return None

    def subscribe(self, uri: str, *headers: Header, expires: int | None = 3600, **parts: str) -> Response:
        usual = [("Event", "call-completion")] if not any(n == "Event" for n, _ in headers) else []
        wanted = [("Expires", str(expires))] if expires is not None else []
        answer = self.send(self.request("SUBSCRIBE", uri, *usual, *wanted, *headers, **parts))
        assert answer is not None
        return answer

    def publish(
        self, uri: str, body: str | bytes, *headers: Header, type: str = "application/pidf+xml", **parts: str
    ) -> Response:
        usual = [("Event", "presence")] if not any(n == "Event" for n, _ in headers) else []
        request = self.request("PUBLISH", uri, *usual, *headers, **parts)
        data = body.encode() if isinstance(body, str) else body
        answer = self.send(request.with_body(data, type) if data else request)
        assert answer is not None
        return answer

    def notify(
        self,
        subscribe: sip.Request,
        body: str,
        state: str = "active;expires=3600",
        *,
        tag: str = "pt",
        seq: int = 1,
    ) -> Response:
        """In the dialog of a SUBSCRIBE it got."""
        request = self.request(
            "NOTIFY",
            "sip:cc@192.0.2.2:5070",
            ("Event", "call-completion"),
            ("Subscription-State", state),
            call_id=subscribe.call_id,
            from_=subscribe.to.uri,
            tag=tag,
            to=f"<{subscribe.from_.uri}>",
            to_tag=subscribe.from_.tag,
            seq=str(seq),
        )
        data = body.encode("utf-8", "surrogateescape")
        answer = self.send(request.with_body(data, "application/call-completion") if data else request)
        assert answer is not None
        return answer

    # What it gets

    def got(self) -> list[sip.Request]:
        """The requests of the site since the last time."""
        new, self._seen = self.site.table.sent[self._seen :], len(self.site.table.sent)
        return [m for m in new if isinstance(m, sip.Request)]

    def said(self) -> list[str]:
        """The same in words, each answered 200."""
        found = self.got()
        for request in found:
            self.reply(request)
        return [in_words(r) for r in found] + (self.said() if found else [])

    def reply(self, request: sip.Request, status: int = 200, *headers: Header, tag: str = "pt") -> None:
        contact = ("Contact", f"<sip:peer@{self.host}:5070>")
        if status < 300 and request.method == "SUBSCRIBE" and not headers:
            headers = (("Expires", request.get("expires", "3600")),)
        answer = request.response(status, headers=(contact, *headers), tag=tag)
        self.site.elements[self.trunk].receive(answer.to_bytes())
        self.site.look()

    # Calls

    def calls(self, callee: str, call_id: str, from_: str = "", uri: str = "") -> sip.Request | Response:
        """Its INVITE; as our Asterisk gets it, or our answer."""
        place = f"sip:{callee}@192.0.2.2:5070"
        parts = {"call_id": call_id} | ({"from_": from_} if from_ else {})
        return self.site.passes(Side.PEER, self.request("INVITE", uri or place, **parts), self.trunk)

    def gets(self, invite: sip.Request | Response, status: int, *headers: Header) -> Response:
        """What our Asterisk answers, as the peer sees it."""
        assert isinstance(invite, sip.Request)
        answer = invite.response(status, headers=headers, tag="at")
        seen = self.site.passes(Side.ASTERISK, answer, self.trunk)
        assert isinstance(seen, Response)
        return seen

    def called(
        self,
        *headers: Header,
        caller: str = "1000",
        callee: str = "2000",
        call_id: str = "o1",
        status: int = 486,
        dialstatus: str = "BUSY",
        cause: int = 17,
        early: tuple[Header, ...] = (),
    ) -> object:
        """One of ours calls one of its in vain; ``headers`` go with its final answer, ``early`` with its 180."""
        invite = self.out("INVITE", f"sip:{callee}@127.0.0.1:5070", call_id, caller)
        if early:
            self.site.passes(Side.PEER, invite.response(180, headers=early, tag="et"), self.trunk)
        self.site.passes(Side.PEER, invite.response(status, headers=headers, tag="et"), self.trunk)
        return self.site.records(
            caller, callee, dialstatus, cause, through=f"PJSIP/to-{self.trunk}", call_out=call_id
        )

    def out(
        self, method: str, uri: str, call_id: str, caller: str = "1000", seq: int = 1, to_tag: str = ""
    ) -> sip.Request:
        """What our Asterisk sends of a call to it, as it comes there."""
        to = f"<{uri}>;tag={to_tag}" if to_tag else f"<{uri}>"
        request = sip.Request(
            method,
            uri,
            (
                ("Via", f"SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bKast{call_id}{seq}"),
                ("Max-Forwards", "70"),
                ("From", f'"{caller}" <sip:{caller}@127.0.0.1>;tag=ast'),
                ("To", to),
                ("Call-ID", call_id),
                ("CSeq", f"{seq} {method}"),
            ),
        )
        passed = self.site.passes(Side.ASTERISK, request, self.trunk)
        assert isinstance(passed, sip.Request), "an element has answered it"
        return passed

    def meets(
        self,
        callee: str,
        call_id: str,
        dialstatus: str = "BUSY",
        cause: int = 17,
        status: int = 486,
        from_: str = "",
    ) -> str:
        """Somebody of its calls one of ours in vain; the monitor URI he is offered."""
        invite = self.calls(callee, call_id, from_)
        self.site.records(
            f"to-{self.trunk}", callee, dialstatus, cause, call_in=call_id, devices=(phone(callee),)
        )
        return monitor_of(self.gets(invite, status))


def alone(name: str = "b", **more: object) -> Site:
    """A site whose trunk ``a`` leads to a `Peer`."""
    clock = Clock()
    trunks = {"a": trunk("a", "192.0.2.2", "192.0.2.1", **more)}
    return Site(clock=clock, name=name, trunks=trunks, table=Table(clock))


def call_infos(response: Response) -> list[sip.CallInfo]:
    return [sip.CallInfo.parse(text) for text in response.all("call-info")]


def monitor_of(response: Response) -> str:
    """The monitor URI in its Call-Info; empty: there is none."""
    found = [info for info in call_infos(response) if info.purpose == "call-completion"]
    return found[0].uri if found else ""


def offers(uri: str, m: str = "BS") -> Header:
    return "Call-Info", call_info(uri, m)


def check(site: Site) -> None:
    """What holds after every conversation."""
    at: dict[int, State] = {}
    for entry in site.store.log:
        assert entry.old is at.get(entry.request, State.OFFERED), "a change is missing in the log"
        at[entry.request] = entry.new
    assert at == {r.id: r.state for r in site.store.requests.values()}
    rung = [r.recall_id for r in site.agent.rung]
    assert len(rung) == len(set(rung)), "a recall id was used again"
    assert not [r for r in site.agent.rung if r.agent], "whoever is beyond a trunk is rung there"
    assert not [line for line in site.logged if "fault of fastagi" in line]
    at_most_three_notifies_in_ten_seconds(site)
    what_is_saved_is_read_back(site)


def at_most_three_notifies_in_ten_seconds(site: Site) -> None:
    """RFC 6910, 9.11; what ends a subscription is not held back."""
    for said in site.table.notified.values():
        told = [(at, words) for at, words in said if "terminated" not in words]
        for place, (at, words) in enumerate(told):
            within = [w for t, w in told[: place + 1] if at - t < 10]
            assert len(within) <= 3, said
            assert not (words == "NOTIFY ready" and len(within) > 2), f"ready was the third: {said}"


def what_is_saved_is_read_back(site: Site) -> None:
    makers: dict[str, Callable[[str], Kept]] = {
        "agent": Agent.from_json,
        "monitor": Monitor.from_json,
        "heard": Heard.from_json,
        "came": Heard.from_json,
    }
    for (kind, key), text in site.store.kept.items():
        maker = makers.get(kind)
        if maker is not None:
            value = maker(text)
            assert maker(value.to_json()) == value, (kind, key)
