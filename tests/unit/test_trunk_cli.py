"""``trunk show`` on real databases; ``trunk probe`` by its rules, and through a real server to a peer over UDP."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastagi import cli
from fastagi.completion.model import Number, State
from fastagi.completion.ports import Changes, Kept
from fastagi.sip import publication
from fastagi.sip.callcompletion.values import Agent, Fork, Habits, Heard, Monitor
from fastagi.sip.machine import Content
from fastagi.sip.message import Header, Request, Response, parse
from fastagi.sip.notifier import Notifier, accept
from fastagi.sip.package import EVENT, PIDF_TYPE, STATE_TYPE, pidf, state_body
from fastagi.sip.probe import HOUR, PATIENCE, Probe, Report, Verdict, report, verdict
from fastagi.sip.publication import Publication, Publisher
from fastagi.sip.subscriber import Notify, Subscriber, SubscriberState, step_subscriber, subscribe
from fastagi.sip.trunk import Address, Trunk
from fastagi.store.requests import Store
from tests.unit.test_cli import NOW, Serving, Site
from tests.unit.test_cli import request as a_request

NAMES = 'extensions:\n  "1000": {name: Alice}\n  "2000": {name: Bob}\n'
TRUNKS = """
trunks:
  mxone: {listen: "udp:127.0.0.1:5999", peer: ["192.0.2.10:5060"]}
  other: {listen: "udp:127.0.0.1:5998", peer: ["192.0.2.11:5060"]}
"""
HEARD = Heard(
    "sip:1000@192.0.2.1", "sip:7000@192.0.2.10", "sip:7000@192.0.2.10", (("sip:mon@192.0.2.10", "BS"),)
)
EVIL = "\x1b]0;owned\x07\x9b2J\u202e\udcff"


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:  # shorter than tmp_path: a socket's path must be
        yield Site(Path(folder))


@pytest.fixture
def at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "time", SimpleNamespace(time=lambda: NOW))


# ------------------------------------------------------------------------------------------ what is saved


def ours(**values: Any) -> Subscriber:
    """A subscription of ours, granted for an hour, a minute ago."""
    s, _ = subscribe(
        "sip:mon@192.0.2.10;m=BS",
        "<sip:1000@192.0.2.1>;tag=a",
        "<sip:7000@192.0.2.10>",
        "c1@192.0.2.1",
        (("Event", EVENT),),
        NOW + 4740,
        NOW - 60,
    )
    notify = Request(
        "NOTIFY",
        "sip:cc@192.0.2.1:5999",
        (
            ("From", "<sip:7000@192.0.2.10>;tag=b"),
            ("To", "<sip:1000@192.0.2.1>;tag=a"),
            ("Call-ID", "c1@192.0.2.1"),
            ("CSeq", "1 NOTIFY"),
            ("Contact", "<sip:here@192.0.2.10:5060>"),
            ("Event", EVENT),
            ("Subscription-State", "active;expires=3600"),
        ),
    )
    s, _ = step_subscriber(s, Notify(notify), NOW - 60)
    return replace(s, **values)


def published(open: bool) -> Publisher:
    publisher = Publisher("sip:x@h", "<sip:a@h>;tag=t", "<sip:b@h>", "p1", (("Event", "presence"),), NOW + 60)
    content = Content(pidf("sip:1000@192.0.2.1", open), PIDF_TYPE)
    return publication.step_publisher(publisher, publication.Publish(content), NOW)[0]


CC_URI = "sip:CC_856;76 @;transport=UDP"


def fork(subscriber: Subscriber, cc_uri: str = CC_URI, ready: bool = False) -> Fork:
    return Fork(subscriber.uri, "BS", subscriber, ready=ready, cc_uri=cc_uri, retention=True)


def monitor(id: int = 7, trunk: str = "mxone", ready: bool = False, **values: Any) -> Monitor:
    return replace(Monitor(id, trunk, HEARD, (fork(ours(), ready=ready),)), **values)


def theirs(
    contact: str = "sip:asterisk@192.0.2.10:5060", ready: bool = False, expires: int = 3600
) -> Notifier:
    request = Request(
        "SUBSCRIBE",
        "sip:ccm-1@192.0.2.1",
        (
            ("Via", "SIP/2.0/UDP 192.0.2.10;branch=z9hG4bKx"),
            ("From", "<sip:7000@192.0.2.10>;tag=c"),
            ("To", "<sip:2000@192.0.2.1>"),
            ("Contact", f"<{contact}>"),
            ("Call-ID", "c2@192.0.2.10"),
            ("CSeq", "102 SUBSCRIBE"),
            ("Event", EVENT),
            ("Expires", str(expires)),
        ),
    )
    content = Content(state_body(ready, "sip:ccc-1@192.0.2.1", True), STATE_TYPE)
    return accept(request, "d", content, NOW + 4740, NOW - 60)[0]


def agent(id: int = 8, trunk: str = "mxone", **values: Any) -> Agent:
    start = Agent(id, trunk, "2000", "sip:7000@192.0.2.10", "sip:ccm-1@192.0.2.1", "ccm-1", "ccc-1", theirs())
    return replace(start, **values)


def save(site: Site, *values: Agent | Monitor, habits: str = "") -> None:
    """And requests of theirs: 1000 waits for 7000 there, 7000 there for 2000."""
    kept: dict[tuple[str, str], Kept | None] = {}
    for value in values:
        kept["agent" if isinstance(value, Agent) else "monitor", str(value.request)] = value
    if habits:
        kept["habits", habits] = Habits(EVENT)
    store = Store(site.store, lambda call, *args: call(*args))
    errors: list[Exception | None] = []
    store.commit(Changes(kept=kept), errors.append)
    store.close()
    assert errors == [None]
    site.save(
        a_request(7, caller=Number("1000"), callee=Number("7000"), monitor="mxone"),
        a_request(8, caller=Number("7000@mxone"), callee=Number("2000"), agent="mxone"),
    )


def shown(site: Site, *words: str) -> dict[int, Any]:
    """The subscriptions of the trunk mxone, by the number of their request."""
    (trunk,) = (t for t in site.json("trunk", "show", *words) if t["trunk"] == "mxone")
    return {s["request"]: s for s in trunk["subscriptions"]}


# ------------------------------------------------------------------------------------------ trunk show


@pytest.mark.usefixtures("at_now")
def test_show_tells_both_ways(site: Site) -> None:
    site.configure(NAMES + TRUNKS)
    save(site, monitor(publisher=published(open=False)), agent(), habits="mxone")
    assert site.lines("trunk", "show") == [
        "Trunk mxone: 2 subscriptions; PUBLISH by its old name (Event: call-completion).",
        "",
        "request               7",
        "direction             watched there",
        "caller                1000 Alice",
        "callee                7000",
        "call_id               c1@192.0.2.1",
        "state                 ACTIVE",
        "seconds_left          3540",
        "cc_state              queued",
        "cc_service_retention  yes",
        "suspended             yes",
        "from_uri              sip:1000@192.0.2.1",
        "monitor_uri           sip:mon@192.0.2.10;m=BS",
        "cc_uri                sip:CC_856;76 @;transport=UDP",
        "contact               sip:here@192.0.2.10:5060",
        "",
        "request               8",
        "direction             watched here",
        "caller                7000@mxone",
        "callee                2000 Bob",
        "call_id               c2@192.0.2.10",
        "state                 ACTIVE",
        "seconds_left          3540",
        "cc_state              queued",
        "cc_service_retention  yes",
        "suspended             no",
        "from_uri              sip:7000@192.0.2.10",
        "monitor_uri           -",
        "cc_uri                -",
        "contact               sip:asterisk@192.0.2.10:5060",
        "",
        "Trunk other: nobody waits across it.",
    ]


def test_show_as_json_is_a_list_of_trunks(site: Site) -> None:
    site.configure(TRUNKS)
    save(site, monitor(), habits="other")
    mxone, other = site.json("trunk", "show")
    assert (mxone["trunk"], mxone["publish_event"]) == ("mxone", "presence")
    assert other == {"trunk": "other", "publish_event": "call-completion", "subscriptions": []}
    (listed,) = mxone["subscriptions"]
    assert listed["direction"] == "watched there"
    assert listed["cc_service_retention"] is True
    assert listed["seconds_left"] == 0  # NOW is past
    assert list(listed) == [line.split()[0] for line in site.lines("trunk", "show", "mxone")[2:]]


def test_show_of_one_trunk(site: Site) -> None:
    site.configure(TRUNKS)
    save(site, monitor())
    assert [t["trunk"] for t in site.json("trunk", "show", "other")] == ["other"]
    assert site.lines("trunk", "show", "other") == ["Trunk other: nobody waits across it."]
    assert site.fault("trunk", "show", "mxtwo") == [
        "there is no trunk mxtwo: it is not configured, and nothing is left of it"
    ]


def test_show_without_trunks(site: Site) -> None:
    site.save()
    assert site.lines("trunk", "show") == ["No trunk is configured."]
    assert site.json("trunk", "show") == []


@pytest.mark.usefixtures("at_now")
def test_what_is_left_of_a_trunk_that_is_not_configured_any_more_is_shown(site: Site) -> None:
    save(site, agent(trunk="gone"))
    assert site.lines("trunk", "show")[0] == "Trunk gone: 1 subscription."
    assert site.lines("trunk", "show", "gone")[2] == "request               8"


@pytest.mark.usefixtures("at_now")
def test_what_was_told_last(site: Site) -> None:
    """Theirs by what they said, and by the turn that has used it; ours by our NOTIFY."""
    site.configure(TRUNKS)

    def told(*values: Agent | Monitor, state: State = State.QUEUED) -> list[str]:
        save(site, *values)
        site.save(a_request(7, state=state, monitor="mxone"))
        return [s["cc_state"] for s in shown(site).values()]

    assert told(monitor(), agent()) == ["queued", "queued"]
    assert told(monitor(ready=True), agent(notifier=theirs(ready=True))) == ["ready", "ready"]
    assert told(monitor(), state=State.CALLING)[0] == "ready"
    begun = ours(state=SubscriberState.SUBSCRIBING, dialog=None)
    assert told(monitor(forks=(fork(begun),)))[0] == ""
    assert shown(site)[7]["contact"] == ""


@pytest.mark.usefixtures("at_now")
def test_who_is_suspended(site: Site) -> None:
    site.configure(TRUNKS)

    def closed(until: float) -> Publication:
        return Publication("e", pidf("sip:7000@192.0.2.10", False), PIDF_TYPE, until)

    def suspended(*values: Agent | Monitor) -> list[bool]:
        save(site, *values)
        return [s["suspended"] for s in shown(site).values()]

    assert (
        suspended(
            monitor(publisher=published(open=False)), agent(publication=closed(NOW + 9), says_closed=True)
        )
        == [True] * 2
    )
    assert (
        suspended(monitor(publisher=published(open=True)), agent(publication=closed(NOW - 9))) == [False] * 2
    )


@pytest.mark.usefixtures("at_now")
def test_every_fork_is_a_subscription_of_its_own(site: Site) -> None:
    site.configure(TRUNKS)
    over = SubscriberState.ENDED
    save(site, monitor(forks=(fork(ours()), fork(ours(uri="sip:two@192.0.2.10", state=over)))))
    lines = site.lines("trunk", "show", "mxone")
    assert lines[0] == "Trunk mxone: 2 subscriptions."
    assert [line.split()[1] for line in lines if line.startswith(("state", "seconds_left"))] == [
        "ACTIVE",
        "3540",
        "ENDED",
        "0",
    ]


@pytest.mark.usefixtures("at_now")
def test_a_subscription_whose_request_has_left_the_history(site: Site) -> None:
    site.configure(TRUNKS)
    save(site, monitor(id=4711), agent(id=4712))
    found = shown(site)
    assert (found[4711]["caller"], found[4711]["callee"]) == ("", "")
    assert (found[4712]["caller"], found[4712]["callee"]) == ("", "2000")
    assert "caller                -" in site.lines("trunk", "show")


@pytest.mark.usefixtures("at_now")
def test_nothing_of_the_peers_steers_the_terminal(site: Site) -> None:
    site.configure(TRUNKS)
    heard = replace(HEARD, from_uri=EVIL, to_uri=EVIL, uri=EVIL, monitors=((EVIL, EVIL),))
    dialog = replace(theirs().dialog, call_id=EVIL, target=EVIL)
    save(
        site,
        monitor(heard=heard, forks=(fork(ours(uri=EVIL, call_id=EVIL), EVIL),)),
        agent(from_uri=EVIL, notifier=replace(theirs(), dialog=dialog)),
    )
    for more in ([], ["--json"]):
        printed = site.run("trunk", "show", *more).stdout
        assert "owned" in printed
        assert [c for c in printed if not c.isprintable() and c != "\n"] == []
    assert len(site.lines("trunk", "show", "mxone")) == 31
    assert r"cc_uri                \x1b]0;owned\x07\x9b2J\u202e\udcff" in site.lines("trunk", "show")


# ------------------------------------------------------------------------------------------ a probe's rules

TRUNK = Trunk(
    "mxone",
    "udp",
    Address("192.0.2.1", 5070),
    (Address("192.0.2.10", 5060), Address("192.0.2.11", 5060)),
    Address("127.0.0.1", 5060),
    "mxone",
    Address("192.0.2.1", 5070),
    Address("127.0.0.1", 5070),
)


class Clock:
    """One timer, made to fall due by hand."""

    def __init__(self) -> None:
        self.timer: tuple[float, Callable[[], None]] | None = None

    def now(self) -> float:
        return 1000.0

    def call_at(self, when: float, call: Callable[[], None]) -> Clock:
        self.timer = when, call
        return self

    def cancel(self) -> None:
        self.timer = None


@dataclass
class Peer:
    """A probe, and the peer it asks."""

    trunk: Trunk = TRUNK
    asked: list[Request] = field(default_factory=list)
    found: list[tuple[Response | None, Response | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock()
        tokens = (f"token{n}" for n in range(100))
        self.probe = Probe(self.trunk, self.clock, lambda: next(tokens), self.asked.append, self._done)
        self.probe.begin()

    def _done(self, options: Response | None, subscribe: Response | None) -> None:
        self.found.append((options, subscribe))

    def latest(self, method: str) -> Request:
        return [r for r in self.asked if r.method == method][-1]

    def answer(self, method: str, status: int | None, *headers: Header) -> Peer:
        """To the latest of that method; None: nothing came."""
        asked = self.latest(method)
        self.probe.answered(asked, None if status is None else asked.response(status, headers=headers))
        return self

    def report(self) -> Report:
        ((options, subscribe),) = self.found
        return report(self.trunk, options, subscribe, 3, 2, "presence")


def test_a_probe_calls_nobody() -> None:
    options, subscribe = Peer().asked
    assert (options.method, options.uri) == ("OPTIONS", "sip:192.0.2.10:5060")
    assert subscribe.method == "SUBSCRIBE"
    assert [subscribe.get(name) for name in ("Event", "Accept", "Expires")] == [EVENT, STATE_TYPE, "0"]
    assert subscribe.from_.uri == options.from_.uri == "sip:cc@192.0.2.1:5070"
    for request in (options, subscribe):
        assert parse(request.prepended(("Via", "SIP/2.0/UDP h;branch=z9hG4bKx")).to_bytes())
    texts = [options.call_id, options.from_.tag, subscribe.call_id, subscribe.from_.tag, subscribe.uri]
    assert len(set(texts)) == 5


def test_a_probe_asks_as_who_subscribes_there() -> None:
    asked = Peer(replace(TRUNK, subscribe_from="sip:fastagi@192.0.2.1")).asked
    assert {request.from_.uri for request in asked} == {"sip:fastagi@192.0.2.1"}


def test_a_probe_writes_an_address_of_ipv6_in_brackets() -> None:
    trunk = replace(TRUNK, peer=(Address("::2", 5060),), towards_peer=Address("::1", 5070))
    options = Peer(trunk).asked[0]
    assert (options.uri, options.from_.uri) == ("sip:[::2]:5060", "sip:cc@[::1]:5070")


@pytest.mark.parametrize("first, second", [("OPTIONS", "SUBSCRIBE"), ("SUBSCRIBE", "OPTIONS")])
def test_a_probe_is_over_when_both_are_answered(first: str, second: str) -> None:
    peer = Peer()
    peer.answer(first, 200)
    assert peer.found == []
    peer.answer(second, 200)
    assert len(peer.found) == 1 and peer.clock.timer is None
    assert (peer.report().options, peer.report().subscribe) == (200, 200)


def test_a_probe_ends_in_time_and_hears_nothing_afterwards() -> None:
    peer = Peer().answer("OPTIONS", 200)
    assert peer.clock.timer is not None
    when, over = peer.clock.timer
    assert when == 1000 + PATIENCE
    over()
    peer.answer("SUBSCRIBE", 489).answer("OPTIONS", 200)
    assert (peer.report().options, peer.report().subscribe) == (200, None)


@pytest.mark.parametrize("status", [400, 423])
def test_who_minds_the_time_is_asked_once_more(status: int) -> None:
    peer = Peer().answer("OPTIONS", 200).answer("SUBSCRIBE", status)
    assert peer.found == []
    again = peer.latest("SUBSCRIBE")
    assert again.expires == HOUR
    assert len({r.call_id for r in peer.asked}) == len({r.uri for r in peer.asked}) == 3
    peer.answer("SUBSCRIBE", 489)
    assert peer.report().subscribe == 489


@pytest.mark.parametrize("second, told", [(400, 400), (423, 423), (None, 400)])
def test_and_only_once(second: int | None, told: int) -> None:
    peer = Peer().answer("OPTIONS", 200).answer("SUBSCRIBE", 400).answer("SUBSCRIBE", second)
    assert len(peer.asked) == 3
    assert peer.report().subscribe == told
    assert peer.report().call_completion is Verdict.UNCLEAR


def test_where_nothing_can_be_sent_there_is_no_answer() -> None:
    found = Peer().answer("OPTIONS", None).answer("SUBSCRIBE", None).report()
    assert (found.options, found.subscribe, found.call_completion) == (None, None, Verdict.SILENT)
    assert found.sentences()[:2] == [
        "192.0.2.10:5060 does not answer OPTIONS.",
        "It does not answer a SUBSCRIBE for call completion.",
    ]
    assert not found.ok


@pytest.mark.parametrize(
    "status, means, words",
    [
        (200, "yes", "it knows call completion"),
        (202, "yes", "it knows call completion"),
        (481, "yes", "it knows call completion"),
        (404, "yes", "it minds the user, who does not exist, and not the event, so it knows call completion"),
        (480, "yes", "it minds the user, who does not exist, and not the event, so it knows call completion"),
        (489, "no", "it does not know call completion"),
        (405, "no", "it does not know call completion"),
        (501, "no", "it does not know call completion"),
        (
            401,
            "unclear",
            "it does not let us ask, which tells nothing; it may know another From (subscribe_from)",
        ),
        (
            403,
            "unclear",
            "it does not let us ask, which tells nothing; it may know another From (subscribe_from)",
        ),
        (302, "unclear", "that tells nothing"),
        (503, "unclear", "that tells nothing"),
    ],
)
def test_what_an_answer_tells(status: int, means: str, words: str) -> None:
    found = Peer().answer("OPTIONS", 200).answer("SUBSCRIBE", status).report()
    assert (found.call_completion, found.ok) == (means, means != "no")
    assert found.sentences()[1] == f"It answers a SUBSCRIBE for call completion with {status}: {words}."
    assert verdict(status) == means


@pytest.mark.parametrize(
    "headers, named",
    [
        ((), False),
        ((("Allow-Events", "presence, Call-Completion"),), True),
        ((("u", "dialog"), ("u", "call-completion")), True),
        ((("Allow-Events", "call-completion-x"),), False),
    ],
)
def test_whether_it_names_call_completion(headers: tuple[Header, ...], named: bool) -> None:
    found = Peer().answer("OPTIONS", 404, *headers).answer("SUBSCRIBE", 481).report()
    assert found.allow_events is named
    rest = ", and names call-completion in Allow-Events" if named else ""
    assert found.sentences()[0] == f"192.0.2.10:5060 answers OPTIONS with 404{rest}."


def test_what_is_told_of_its_calls_and_of_publish() -> None:
    found = Peer().answer("OPTIONS", 200).answer("SUBSCRIBE", 481).report()
    assert found.sentences()[2:] == [
        "3 calls to it failed since the server started; it offered to complete 2 (Call-Info).",
        "PUBLISH goes there as RFC 6910 says (Event: presence); it has not refused any.",
    ]
    assert replace(found, failed_calls=1, offered_calls=0, publish_event=EVENT).sentences()[2:] == [
        "1 call to it failed since the server started; it offered to complete none (Call-Info).",
        "It knows PUBLISH by its old name only, and gets it so (Event: call-completion).",
    ]
    assert replace(found, failed_calls=0).sentences()[2] == (
        "No call to it has failed since the server started: call somebody busy there, and ask again."
    )


def test_the_readme_shows_what_a_probe_says() -> None:
    found = Peer().answer("OPTIONS", 200).answer("SUBSCRIBE", 489).report()
    said = "".join(f"    {line}\n" for line in replace(found, offered_calls=0).sentences())
    readme = (Path(__file__).parents[2] / "README.rst").read_text()
    assert f"    $ fastagi trunk probe mxone\n{said}\n" in readme


# ------------------------------------------------------------------------------------------ a real server


class Host:
    """An address on loopback that answers each request with what ``status`` says of it; 0: not at all."""

    def __init__(self, status: Callable[[Request], int] = lambda request: 0, *headers: Header) -> None:
        self.status, self.headers = status, headers
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(30)  # its thread goes then, at the latest
        self.port = self.socket.getsockname()[1]
        self.seen: list[Request | Response] = []
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                data, source = self.socket.recvfrom(65536)
            except OSError:
                return
            message = parse(data)
            with self._came:  # before it is answered: whoever has the answer may look at once
                self.seen.append(message)
                self._came.notify_all()
            status = self.status(message) if isinstance(message, Request) else 0
            if isinstance(message, Request) and status:
                answer = message.response(status, headers=self.headers, tag="peer")
                self.socket.sendto(answer.to_bytes(), source)

    def wait(self, count: int) -> list[Request | Response]:
        """All that came, once it is so many."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.seen) >= count, 10), self.seen
            return list(self.seen)

    def close(self) -> None:
        self.socket.close()


@contextmanager
def trunk_to(site: Site, peer: Host, asterisk: Host | None = None) -> Iterator[int]:
    """A running server with the trunk mxone; gives the port of its element."""
    asterisk = asterisk or Host()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site.configure(
        f'trunks:\n  mxone: {{listen: "udp:127.0.0.1:{port}", peer: ["127.0.0.1:{peer.port}"],'
        f' asterisk: "127.0.0.1:{asterisk.port}"}}\n'
    )
    process = Serving(site)
    assert "fastagi answers on" in process.line()
    try:
        yield port
    finally:
        code, _, errors = process.end()
        for host in (peer, asterisk):
            host.close()
        assert (code, errors) == (0, "")


def test_probe_of_a_peer_that_knows(site: Site) -> None:
    peer = Host(lambda r: 481 if r.method == "SUBSCRIBE" else 200, ("Allow-Events", "call-completion"))
    with trunk_to(site, peer):
        assert site.lines("trunk", "probe", "mxone") == [
            f"127.0.0.1:{peer.port} answers OPTIONS with 200, and names call-completion in Allow-Events.",
            "It answers a SUBSCRIBE for call completion with 481: it knows call completion.",
            "No call to it has failed since the server started: call somebody busy there, and ask again.",
            "PUBLISH goes there as RFC 6910 says (Event: presence); it has not refused any.",
        ]
        assert site.json("trunk", "probe", "mxone") == {
            "trunk": "mxone",
            "peer": f"127.0.0.1:{peer.port}",
            "options": 200,
            "allow_events": True,
            "subscribe": 481,
            "call_completion": "yes",
            "failed_calls": 0,
            "offered_calls": 0,
            "publish_event": "presence",
        }
        assert {r.method for r in peer.seen if isinstance(r, Request)} == {"OPTIONS", "SUBSCRIBE"}
        assert site.fault("trunk", "probe", "mxtwo") == ["the running server has no trunk mxtwo"]
        assert site.fault("trunk", "probe", "mxtwo", "--json") == ["the running server has no trunk mxtwo"]


def test_probe_of_a_peer_that_minds_the_time_and_does_not_know(site: Site) -> None:
    """As Asterisk's PJSIP answers."""
    peer = Host(lambda r: 200 if r.method == "OPTIONS" else 489 if r.expires else 400)
    with trunk_to(site, peer):
        result = site.run("trunk", "probe", "mxone")
        assert (result.exit_code, result.stderr) == (1, "")
        assert "with 489: it does not know call completion." in result.stdout
        asjson = site.run("trunk", "probe", "mxone", "--json")
        assert (asjson.exit_code, json.loads(asjson.stdout)["call_completion"]) == (1, "no")


def test_probe_of_a_silent_peer(site: Site) -> None:
    peer = Host()
    with trunk_to(site, peer):
        result = site.run("trunk", "probe", "mxone")
        assert (result.exit_code, result.stderr) == (1, "")
        assert result.stdout.splitlines()[0] == f"127.0.0.1:{peer.port} does not answer OPTIONS."
        assert len(peer.seen) == 10  # at 0, 0.5, 1.5, 3.5 and 7.5 s


def test_probe_without_a_server(site: Site) -> None:
    site.save()
    assert site.fault("trunk", "probe", "mxone") == [
        f"no server is running: there is no control socket {site.control}"
    ]


def invite(asterisk: Host, port: int, number: int, user: str) -> None:
    """Asterisk calls that user beyond the trunk."""
    request = Request(
        "INVITE",
        f"sip:{user}@127.0.0.1",
        (
            ("Via", f"SIP/2.0/UDP 127.0.0.1:{asterisk.port};branch=z9hG4bK{number}"),
            ("Max-Forwards", "70"),
            ("From", "<sip:1000@127.0.0.1>;tag=a"),
            ("To", f"<sip:{user}@127.0.0.1>"),
            ("Call-ID", f"call{number}"),
            ("CSeq", "1 INVITE"),
        ),
    )
    asterisk.socket.sendto(request.to_bytes(), ("127.0.0.1", port))


def test_probe_counts_the_calls_that_failed_each_once(site: Site) -> None:
    offer = ("Call-Info", "<sip:mon@127.0.0.1>;purpose=call-completion;m=BS")
    peer = Host(lambda r: int(str(r.uri)[4:7]) if r.method == "INVITE" else 481, offer)
    asterisk = Host()
    with trunk_to(site, peer, asterisk) as port:
        for number, user in enumerate(["486", "486", "200", "302", "401", "407", "603"]):
            invite(asterisk, port, number, user)
        invite(asterisk, port, 0, "486")  # again, and so is its answer
        asterisk.wait(8)
        peer.headers = ()
        invite(asterisk, port, 100, "480")
        asterisk.wait(9)
        found = site.json("trunk", "probe", "mxone")
        assert (found["failed_calls"], found["offered_calls"]) == (4, 3)


def test_a_subscription_that_is_granted_after_all_is_ended(site: Site) -> None:
    """By 481 to its NOTIFY; and the server goes on knowing nothing of it."""
    peer = Host(lambda r: 200 if r.method == "OPTIONS" or r.expires else 423)
    with trunk_to(site, peer) as port:
        assert site.json("trunk", "probe", "mxone")["subscribe"] == 200
        asked = next(r for r in peer.seen if isinstance(r, Request) and r.expires)
        notify = Request(
            "NOTIFY",
            f"sip:cc@127.0.0.1:{port}",
            (
                ("Via", f"SIP/2.0/UDP 127.0.0.1:{peer.port};branch=z9hG4bKn"),
                ("Max-Forwards", "70"),
                ("From", f"<{asked.to.uri}>;tag=peer"),
                ("To", asked.get("from", "")),
                ("Call-ID", asked.call_id),
                ("CSeq", "1 NOTIFY"),
                ("Event", EVENT),
                ("Subscription-State", "active;expires=3600"),
            ),
        )
        before = len(peer.seen)
        peer.socket.sendto(notify.to_bytes(), ("127.0.0.1", port))
        answer = peer.wait(before + 1)[-1]
        assert isinstance(answer, Response) and answer.status == 481
        assert site.json("trunk", "show", "mxone")[0]["subscriptions"] == []
