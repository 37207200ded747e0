"""The PBX of a user's question, a Mitel MX-ONE, on the trunk: sipp plays it, message by message.

https://community.asterisk.org/t/busy-call-back-in-sip-trunk/89395. Its URIs are odd: semicolons and a blank in
the user part, parameters without brackets around them, and no host. A forum takes ``<address>`` for HTML, so it
may well be that there was one: what is printed there must work, and so must what may have stood there.

What goes through the element is on the wire, and sipp checks it; PRACK, the ACK of a 200, and BYE go from
Asterisk to the PBX and back without it, and sipp alone sees those.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.asterisk import Trunk, free_port, free_udp_port
from tests.lab.install import Tree, ensure_asterisk
from tests.lab.phone import Call, Message
from tests.lab.wire import Wire
from tests.real.trunkbench import ASTERISKS, HOSTS, WIRE, Joined, TrunkSite

SCENARIOS = Path(__file__).parent / "sipp"
LIMIT = 30  # seconds for one run of sipp, whatever happens
TGRP = "user=phone;tgrp=2;trunk-context=mx.example"

# The lab's word to a scenario: the number of its branch, the Call-ID.
WORD = """\
INFO sip:lab SIP/2.0\r
Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK{}\r
From: <sip:lab@192.0.2.1>;tag=1\r
To: <sip:lab@192.0.2.1>\r
Call-ID: {}\r
CSeq: 1 INFO\r
Content-Length: 0\r
\r
"""

# Its user 4003, in addition to what a site with a trunk has.
DIALPLAN = """
[site]
exten => 4003,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}}@{trunk},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
"""


class Site(TrunkSite):
    """It asks for reliable 180s wherever the other side knows them."""

    def __init__(self, folder: Path, tree: Tree, port: int) -> None:
        super().__init__(folder, tree, "a", "foreign", port, transport="udp", qualify=0)
        trunk = Trunk(self.other, *self.peer, "from-trunk", "100rel=peer_supported\n", self.element)
        phones = [Endpoint(number, name) for number, name in self.names.items()]
        self.asterisk.configure(self.dialplan(), phones, [trunk])

    def dialplan(self, ring: int = 20) -> str:
        return super().dialplan(ring) + DIALPLAN.format(trunk=self.other, ring=ring)


class Forum(Joined):
    """Site a with phones 1000 to 3000; the PBX is ``b`` on the wire, as long as a scenario runs."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        port = free_port(*HOSTS)
        self.a = Site(folder / "a", tree, port)
        self.address, self.peer = (ASTERISKS["foreign"], port), (WIRE["b"], port)
        super().__init__((self.a,), Wire((self.a.element, self.a.peer), (self.address, self.peer)))
        self._folder = folder
        self._sipp = tree.sipp_command()
        self._run: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Where the site has the PBX."""
        return "{}:{}".format(*self.a.peer)

    # The PBX

    def play(self, scenario: str, calls: int = 1, *switches: str, **keys: str) -> None:
        """Starts a scenario of so many Call-IDs."""
        host, port = self.address
        command = [*self._sipp, "-sf", str(SCENARIOS / f"{scenario}.xml"), "-m", str(calls), "-nostdin"]
        command += ["-i", host, "-p", str(port), "-bind_local", "-mi", host, "-mp", str(free_udp_port())]
        command += ["-timeout", f"{LIMIT}s", "-timeout_error", "-trace_err"]
        # What comes too early comes again; what should not come at all is seen on the wire.
        command += ["-default_behaviors", "all,-abortunexp"]
        command += [word for key, value in keys.items() for word in ("-key", key, value)]
        command += [word for switch in switches for word in ("-set", switch, "1")]
        with (self._folder / "sipp.log").open("w") as log:
            self._run = subprocess.Popen(
                [*command, "{}:{}".format(*self.peer)], cwd=self._folder, stdout=log, stderr=log
            )
        self.until(self._listens, "sipp has its port")

    def _listens(self) -> bool:
        assert self._run is not None and self._run.poll() is None, self.evidence()
        host, port = self.address
        place = "".join(f"{int(byte):02X}" for byte in reversed(host.split("."))) + f":{port:04X}"
        return place in Path("/proc/net/udp").read_text()

    def word(self, message: Message) -> None:
        """Something happens at the PBX, says the lab, and the PBX acts; in the run of this message's Call-ID.

        sipp drops what comes while it has something to send; then it is told again.
        """
        for _ in range(5):
            acted = len(self.wire.messages(way="b>a"))
            self.wire.send("b", WORD.format(time.monotonic_ns(), message.get("Call-ID")).encode())
            with contextlib.suppress(AssertionError):
                self.wire.wait(way="b>a", nth=acted + 1, timeout=1)
                return
        raise AssertionError(f"the PBX does not act\n{self.evidence()}")

    def played(self) -> None:
        """All of the scenario has come to pass."""
        assert self._run is not None
        assert self._run.wait(LIMIT + 5) == 0, self.evidence()

    def stop(self) -> None:
        if self._run is not None:
            self._run.kill()
            self._run.wait()
            self._run = None

    def evidence(self) -> str:
        pid = self._run.pid if self._run else 0
        logs = [self._folder / "sipp.log", *self._folder.glob(f"*_{pid}_errors.log")]
        said = [path.read_text()[-3000:] for path in logs if path.exists()]
        return "\n".join([super().evidence(), "-- sipp", *said])

    # What passed

    def flows(self) -> list[str]:
        """What passed by each Call-ID, in the order of their beginnings; repetitions and the lab's words left out."""
        found: dict[str, dict[bytes, str]] = {}
        for message in self.wire.messages():
            if message.method != "INFO":
                arrow = ">" if message.direction == "a>b" else "<"
                flow = found.setdefault(message.get("Call-ID"), {})
                flow[message.raw] = f"{arrow}{message.status or message.method}"
        return [" ".join(flow.values()) for flow in found.values()]


@pytest.fixture(scope="module")
def running_forum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forum]:
    with Forum(tmp_path_factory.mktemp("forum"), ensure_asterisk()).running() as forum:
        yield forum


@pytest.fixture
def forum(running_forum: Forum, request: pytest.FixtureRequest) -> Iterator[Forum]:
    running_forum.fresh()
    yield running_forum
    if hasattr(request.node, "failed"):
        print(running_forum.evidence())
    running_forum.stop()
    running_forum.clear()


# Words of this file

PASSED = 0.1  # seconds, by when a PRACK and its 200 have passed, which the wire does not see
ODD = {"queued": "Queued", "ready": "READY", "active": "active", "terminated": "terminated"}
PRINTED = "sip:CC_856;76 @;transport=UDP"

# What passes by each Call-ID: > from us, < from the PBX.
CALL = ">INVITE <100 <180 >CANCEL <200 <487 >ACK"
BUSY = ">INVITE <100 <486 >ACK"
READY = ">SUBSCRIBE <200 <NOTIFY >200 <NOTIFY >200"
LEFT = f"{READY} >SUBSCRIBE <200 <NOTIFY >200"
ENDED = f"{READY} <NOTIFY >200"
CC_CALL = ">INVITE <100 <180 <200"


def callee(forum: Forum, calls: int, *switches: str, **keys: str) -> None:
    """The PBX of 4003, as printed but for what is said here."""
    m = "BS" if "busy" in switches else "NR"
    printed = {
        "call_info": f"sip:4003@;{TGRP};m={m};purpose=call-completion",
        "cc_uri": PRINTED,
        "contact": "<sip:4003@{}:{};{}>".format(*forum.address, TGRP),
    }
    forum.play("forum_callee", calls, *switches, **{**ODD, **printed, **keys})


def given_up(forum: Forum) -> None:
    """Our 1000 calls 4003, who does not answer."""
    call = forum.phones["1000"].dial("4003").wait_ringing()
    time.sleep(PASSED)
    call.hangup().wait_ended()


def asked(forum: Forum) -> Message:
    """Our 1000 dials the code: gives his SUBSCRIBE, once its NOTIFY is answered."""
    assert forum.asks("1000") == "SUCCESS/"
    assert forum.wire.answer(forum.wire.wait("NOTIFY")).status == 200
    return forum.wire.wait("SUBSCRIBE")


def recalled(forum: Forum) -> Call:
    """Our 1000 is called back and picks up."""
    return forum.recalled().answer().wait_answered()


def talks(forum: Forum) -> Message:
    """The CC call is up, as our Asterisk sees it: gives its INVITE."""

    def joined() -> list[str]:
        lines = forum.a.asterisk.cli("core show channels concise").splitlines()
        calls = [line.split("!") for line in lines if line.startswith(f"PJSIP/{forum.a.other}-")]
        return [fields[0] for fields in calls if fields[12]]  # the bridge

    forum.until(joined, "the CC call is up")
    return forum.wire.messages("INVITE")[-1]


def over(forum: Forum, reason: str) -> None:
    forum.a.ended(reason)
    forum.played()
    assert not forum.a.server.requests()


# ------------------------------------------------------------------------------------- ours waits for theirs


@pytest.mark.parametrize(
    ("call_info", "cc_uri", "host"),
    [
        (f"sip:4003@;{TGRP};m=NR;purpose=call-completion", PRINTED, "peer"),
        (
            "sip:4003@ ; user=phone; tgrp=2 ;trunk-context=mx.example ; m = NR ; purpose = call-completion ",
            "sip: CC_856;76 @ ;transport=UDP ",
            "peer",
        ),
        (f"<sip:4003@;{TGRP}>;m=NR;purpose=call-completion", "sip:CC_856;76@;transport=UDP", "peer"),
        (
            f"sip:4003@{{own}};{TGRP};m=NR;purpose=call-completion",
            "sip:CC_856;76 @{own};transport=UDP",
            "own",
        ),
        (
            f"<sip:4003@{{own}};{TGRP}>;purpose=call-completion;m=NR",
            "sip:CC_856;76@{own};transport=UDP",
            "own",
        ),
    ],
    ids=["printed", "blanks", "brackets", "an address", "brackets and an address"],
)
def test_no_answer(forum: Forum, call_info: str, cc_uri: str, host: str) -> None:
    """However it is written: where there is no host, its own is meant."""
    own = "{}:{}".format(*forum.address)
    callee(forum, 3, call_info=call_info.replace("{own}", own), cc_uri=cc_uri.replace("{own}", own))
    given_up(forum)
    subscribe = asked(forum)
    place = own if host == "own" else forum.host
    assert subscribe.uri == f"sip:4003@{place};{TGRP};m=NR"
    assert re.fullmatch("<sip:1000@127.0.1.22>;tag=[0-9a-f]+", subscribe.get("From"))
    assert subscribe.get("To") == f"<sip:4003@{forum.a.peer[0]}>"
    forum.word(subscribe)
    recall = recalled(forum)
    cc_call = talks(forum)
    assert cc_call.uri == f"sip:CC_856;76@{place};transport=UDP;m=NR"
    recall.hangup()
    over(forum, "COMPLETED")
    assert forum.flows() == [CALL, LEFT, CC_CALL]


def test_busy(forum: Forum) -> None:
    callee(forum, 3, "busy")
    forum.phones["1000"].dial("4003").wait_status(486)
    subscribe = asked(forum)
    assert subscribe.uri == f"sip:4003@{forum.host};{TGRP};m=BS"
    forum.word(subscribe)
    recall = recalled(forum)
    cc_call = talks(forum)
    assert cc_call.uri == f"sip:CC_856;76@{forum.host};transport=UDP;m=BS"
    recall.hangup()
    over(forum, "COMPLETED")
    assert forum.flows() == [BUSY, LEFT, CC_CALL]


def test_it_ends_the_subscription(forum: Forum) -> None:
    """With the CC call, and before we do."""
    callee(forum, 3, queued="QUEUED", ready="Ready", terminated="terminated;reason=noresource")
    given_up(forum)
    subscribe = asked(forum)
    forum.word(subscribe)
    recall = recalled(forum)
    talks(forum)
    forum.word(subscribe)
    forum.wire.wait("NOTIFY", nth=3)
    recall.hangup()
    over(forum, "COMPLETED")
    assert forum.flows() == [CALL, ENDED, CC_CALL]


def test_subscribe_from(forum: Forum) -> None:
    """For a PBX that lets nobody subscribe but its trunk; the CC call is the caller's all the same."""
    forum.a.settings = 'subscribe_from: "sip:asterisk@127.0.1.3"'
    forum.a.reconfigure()
    callee(forum, 3)
    given_up(forum)
    subscribe = asked(forum)
    assert subscribe.get("From").startswith("<sip:asterisk@127.0.1.3>;tag=")
    assert subscribe.get("To") == f"<sip:4003@{forum.a.peer[0]}>"
    forum.word(subscribe)
    recall = recalled(forum)
    cc_call = talks(forum)
    assert "<sip:1000@" in cc_call.get("From")
    recall.hangup()
    over(forum, "COMPLETED")
    assert forum.flows() == [CALL, LEFT, CC_CALL]


def test_given_up_again(forum: Forum) -> None:
    """The caller hangs up before 4003 answers the CC call: CANCEL and ACK go where the INVITE went."""
    callee(forum, 3, "silent_again", terminated="terminated;reason=noresource")
    given_up(forum)
    subscribe = asked(forum)
    forum.word(subscribe)
    recall = recalled(forum)
    forum.wire.wait("INVITE", status=180, nth=2)
    time.sleep(PASSED)
    recall.hangup()
    ack = forum.wire.wait("ACK", nth=2)
    cancel, cc_call = forum.wire.messages("CANCEL")[-1], forum.wire.messages("INVITE")[-1]
    assert ack.uri == cancel.uri == cc_call.uri == f"sip:CC_856;76@{forum.host};transport=UDP;m=NR"
    forum.a.server.wait_log("keeps his place")
    forum.word(subscribe)
    over(forum, "ENDED_THERE")
    assert forum.flows() == [CALL, ENDED, CALL]


def test_busy_again(forum: Forum) -> None:
    """The CC call meets busy: he keeps his place, here as there."""
    callee(forum, 3, "busy_again")
    given_up(forum)
    subscribe = asked(forum)
    forum.word(subscribe)
    recall = recalled(forum)
    ack = forum.wire.wait("ACK", nth=2)
    assert ack.uri == forum.wire.messages("INVITE")[-1].uri
    forum.a.server.wait_log("keeps his place")
    recall.hangup()
    forum.word(subscribe)
    over(forum, "ENDED_THERE")
    assert forum.flows() == [CALL, ENDED, BUSY]


def test_our_caller_is_busy(forum: Forum) -> None:
    """He is suspended there, and waits again once he is free."""
    callee(forum, 4, "twice")
    given_up(forum)
    subscribe = asked(forum)
    his = forum.talk("1000", "2000")
    forum.word(subscribe)
    closed = forum.wire.wait("PUBLISH")
    assert closed.uri == f"sip:CC_856;76@{forum.host};transport=UDP"
    forum.wire.answer(closed)
    forum.word(subscribe)
    forum.phones["1000"].answer = "ring"
    forum.wire.answer(forum.wire.wait("NOTIFY", nth=3))
    his.hangup()
    forum.wire.answer(forum.wire.wait("PUBLISH", nth=2))
    forum.word(subscribe)
    recall = recalled(forum)
    talks(forum)
    recall.hangup()
    over(forum, "COMPLETED")
    notified = f"{READY} <NOTIFY >200 <NOTIFY >200 >SUBSCRIBE <200 <NOTIFY >200"
    assert forum.flows() == [CALL, notified, ">PUBLISH <200 >PUBLISH <200 >PUBLISH <200", CC_CALL]


@pytest.mark.parametrize(
    ("contact", "target"),
    [
        (f"<sip:4003@127.0.2.16:5060;{TGRP}>", f"sip:4003@127.0.2.16:5060;{TGRP}"),
        pytest.param(f"<sip:4003@;{TGRP}>", f"sip:4003@{{peer}};{TGRP}"),
        pytest.param(f"<sip:4003 @;{TGRP}>", f"sip:4003@{{peer}};{TGRP}"),
    ],
    ids=["an address", "no host", "neither"],
)
def test_taken_back(forum: Forum, contact: str, target: str) -> None:
    callee(forum, 2, contact=contact)
    given_up(forum)
    asked(forum)
    assert forum.asks("1000", "*31") == "SUCCESS/"
    assert forum.wire.messages("SUBSCRIBE")[-1].uri == target.format(peer=forum.host)
    over(forum, "CANCELLED")
    assert forum.flows() == [CALL, ">SUBSCRIBE <200 <NOTIFY >200 >SUBSCRIBE <200 <NOTIFY >200"]


# ------------------------------------------------------------------------------------- theirs waits for ours

THEIR_CALL = "<INVITE >100 >180 <CANCEL >200 >487 <ACK"
THEIR_BUSY = "<INVITE >100 >486 <ACK"
THEIR_READY = "<SUBSCRIBE >200 >NOTIFY <200 >NOTIFY <200"
THEIR_ENDED = f"{THEIR_READY} >NOTIFY <200"
THEIR_LEFT = f"{THEIR_READY} <SUBSCRIBE >200 >NOTIFY <200"
THEIR_CC_CALL = "<INVITE >100 >180 >200"
CONTACT = "<sip:CC_856;76@127.0.2.16:5060;transport=UDP>"


def caller(forum: Forum, *switches: str, m: str = "NR", contact: str = CONTACT) -> Message:
    """4003 calls our 1000, gives up or meets busy, and asks: gives his INVITE, once he is told queued."""
    forum.play("forum_caller", 1, *switches, m=m, contact=contact)
    forum.wire.wait("ACK")
    forum.until(forum.a.offers, "our side has it on record")
    forum.forget("1000")
    invite = forum.wire.messages("INVITE")[0]
    forum.word(invite)
    told(forum, "queued")
    return invite


def told(forum: Forum, state: str, nth: int = 1) -> Message:
    """The nth NOTIFY of that state, once it is answered."""
    notify = forum.wire.wait("NOTIFY", body=f"cc-state: {state}", nth=nth)
    forum.wire.answer(notify)
    return notify


def used(forum: Forum) -> None:
    """Our 1000 has made a call; his phone then rings when it is called."""
    talk = forum.talk("1000", "2000")
    forum.a.server.wait_log("uses his phone")
    forum.phones["1000"].answer = "ring"
    talk.hangup()


def connected(forum: Forum) -> None:
    """The CC call reaches our 1000, he answers, and is all they waited for; 4003 hangs up first."""
    call = forum.phones["1000"].expect_call()
    assert call.from_number == "4003"
    time.sleep(PASSED)
    call.answer().wait_answered()
    last = told(forum, "queued", nth=2)
    assert last.get("Subscription-State").startswith("terminated")
    call.wait_ended()
    over(forum, "COMPLETED")


def test_it_waits(forum: Forum) -> None:
    forum.phones["1000"].answer = "ring"
    caller(forum)
    used(forum)
    told(forum, "ready")
    connected(forum)
    assert forum.flows() == [THEIR_CALL, THEIR_ENDED, THEIR_CC_CALL]


def test_it_waits_for_a_busy_one(forum: Forum) -> None:
    talk = forum.talk("1000", "2000")
    caller(forum, m="BS")
    forum.phones["1000"].answer = "ring"
    talk.hangup()
    told(forum, "ready")
    connected(forum)
    assert forum.flows() == [THEIR_BUSY, THEIR_ENDED, THEIR_CC_CALL]


def test_it_suspends_and_resumes(forum: Forum) -> None:
    forum.phones["1000"].answer = "ring"
    invite = caller(forum, "suspends")
    closed = forum.wire.wait("PUBLISH")
    forum.wire.answer(closed)
    used(forum)
    forum.quiet("1000", 0.5)
    assert not forum.wire.messages("NOTIFY", body="cc-state: ready")
    forum.word(invite)
    opened = forum.wire.wait("PUBLISH", nth=2)
    assert opened.get("SIP-If-Match") == forum.wire.answer(closed).get("SIP-ETag")
    told(forum, "ready")
    connected(forum)
    published = "<PUBLISH >200"
    assert forum.flows() == [THEIR_CALL, THEIR_ENDED, published, published, THEIR_CC_CALL]


def test_it_gives_up_the_cc_call(forum: Forum) -> None:
    """Its caller keeps his place here, until he takes his request back."""
    forum.phones["1000"].answer = "ring"
    invite = caller(forum, "gives_up")
    used(forum)
    told(forum, "ready")
    call = forum.phones["1000"].expect_call()
    time.sleep(PASSED)
    forum.word(invite)
    call.wait_ended()
    over(forum, "CANCELLED")
    subscription = f"{THEIR_READY} >NOTIFY <200 <SUBSCRIBE >200 >NOTIFY <200"
    assert forum.flows() == [THEIR_CALL, subscription, THEIR_CALL]


@pytest.mark.parametrize(
    ("contact", "target"),
    [
        (CONTACT, CONTACT[1:-1]),
        pytest.param(CONTACT.replace("@", " @"), CONTACT[1:-1]),
        pytest.param("<sip:CC_856;76@;transport=UDP>", "sip:CC_856;76@{peer};transport=UDP"),
        pytest.param("<sip:CC_856;76 @;transport=UDP>", "sip:CC_856;76@{peer};transport=UDP"),
        # Without brackets what follows is the header's.
        pytest.param("sip:CC_856;76 @;transport=UDP", "sip:CC_856;76@{peer}"),
    ],
    ids=["an address", "a blank", "no host", "neither", "no brackets"],
)
def test_it_takes_back(forum: Forum, contact: str, target: str) -> None:
    forum.phones["1000"].answer = "ring"
    caller(forum, "takes_back", contact=contact)
    assert forum.wire.messages("NOTIFY")[0].uri == target.format(peer=forum.host)
    used(forum)
    over(forum, "CANCELLED")
    assert forum.flows() == [THEIR_CALL, THEIR_LEFT]


def test_it_asks_before_its_call_is_on_record(forum: Forum) -> None:
    """Our dialplan tells of a call that was given up after the 487 has left; a busy Asterisk later still."""
    forum.a.asterisk.cli("dialplan add extension s,1,Wait,0.5 into cc-note replace")
    forum.phones["1000"].answer = "ring"
    forum.play("forum_caller", 1, m="NR", contact=CONTACT)
    forum.wire.wait("ACK")
    forum.word(forum.wire.messages("INVITE")[0])
    told(forum, "queued")
    forum.forget("1000")
    used(forum)
    told(forum, "ready")
    connected(forum)
