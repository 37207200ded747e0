"""What RFC 4475 describes, and worse, through a real element on loopback sockets.

The messages are written anew after the RFC's descriptions; the number of its section stands beside each.  What is
valid goes on, changed in nothing but Via, Route and Max-Forwards.  What is not is answered or dropped; where a
proxy need not look at what is wrong, it goes on and the other side may judge.  Whatever comes, the next good
message is passed on, soon.
"""

from __future__ import annotations

import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count

import pytest
from twisted.internet.selectreactor import SelectReactor

from fastagi.daemon import ReactorClock
from fastagi.sip.element import BRANCH, Element
from fastagi.sip.transport import Link
from fastagi.sip.trunk import Address, Side, Trunk
from tests.lab.asterisk import free_port
from tests.unit.rules import Clock
from tests.unit.trunks import Site, Table

HOSTS = {Side.PEER: "127.0.4.2", Side.ASTERISK: "127.0.4.22"}
OURS = "127.0.4.3"
SOON = 2.0  # seconds that one message may take, with all the others that run on this machine
NOTHING: list[bytes] = []

# -- the messages ------------------------------------------------------------------------------------------


def wire(text: str, body: bytes = b"") -> bytes:
    """Lines of a test as a message; blanks at their ends count."""
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape") + b"\r\n" + body


def request(
    start: str = "OPTIONS sip:callee@example.com SIP/2.0", body: bytes = b"", **headers: str
) -> bytes:
    """A good one with these headers in place of its own, and without those that are empty."""
    usual = {
        "Via": "SIP/2.0/UDP t1.example.org;rport;branch=z9hG4bKkdjuw",
        "Max-Forwards": "70",
        "From": '"Caller" <sip:caller@example.net>;tag=93942939o2',
        "To": "<sip:callee@example.net>",
        "Call-ID": "torture.1@example.org",
        "CSeq": f"8 {start.partition(' ')[0]}",
        "Content-Length": str(len(body)),
    }
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in usual.items() if value]
    return wire("\n".join([start, *lines, ""]), body)


SDP = (
    b"v=0\r\no=mhandley 29739 7272939 IN IP4 192.0.2.3\r\ns=-\r\n"
    b"c=IN IP4 192.0.2.4\r\nt=0 0\r\nm=audio 49217 RTP/AVP 0\r\n"
)
PART = b"--7a9cbec0\r\nContent-Type: "
BINARY = (
    PART + b"text/plain\r\n\r\nHi\r\n" + PART + b"application/x\r\n\r\n" + bytes(range(256)) + b"--7a9cbec0--"
)
ODD_METHOD = "!interesting-Method0123456789_*+`.%indeed'~"
ODD_USER = "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"
RUSSIAN = "\u0440\u0430\u0431\u043e\u0442\u0430"

VALID = {
    "3.1.1.1 folds, blanks, compact names, odd capitals": wire(
        f"""\
INVITE sip:vivekg@chair-dnrc.example.com;unknownparam SIP/2.0
TO :
 sip:vivekg@chair-dnrc.example.com ;   tag    = 1918181833n
from   : "J Rosenberg \\\\\\""       <sip:jdrosen@example.com>
  ;
  tag = 98asjd8
MaX-fOrWaRdS: 0068
Call-ID: wsinv.ndaksdj@192.0.2.1
Content-Length   : {len(SDP)}
cseq: 0009
  INVITE
Via  : SIP  /   2.0
 /UDP
    192.0.2.2;branch=390skdjuw
s :
NewFangledHeader:   newfangled value
 continued newfangled value
UnknownHeaderWithUnusualValue: ;;,,;;,;
Content-Type: application/sdp
Route:
 <sip:services.example.com;lr;unknownwith=value;unknown-no-value>
v:  SIP  / 2.0  / TCP     spindle.example.com   ;
  branch  =   z9hG4bK9ikj8  ,
 SIP  /    2.0   / UDP  192.168.255.111   ; branch=
 z9hG4bK30239
m:"Quoted string \\"\\"" <sip:jdrosen@example.com> ; newparam =
      newvalue ;
  secondparam ; q = 0.33
""",
        SDP,
    ),
    "3.1.1.2 all characters that a token, a user, a name may have": wire(f"""\
{ODD_METHOD} sip:{ODD_USER}:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com SIP/2.0
Via: SIP/2.0/UDP host1.example.com;rport;branch=z9hG4bK-.!%66*_+`'~
To: "BEL:\\\x07 NUL:\\\x00 DEL:\\\x7f" <sip:{ODD_USER}@example.com>
From: token1~` token2'+_ token3*%!.- <sip:mundane@example.com>;fromParam''~+*_!.-%="{RUSSIAN}";tag=_token~1'+`*%!-.
Call-ID: intmeth.word%ZK-!.*_+'@word`~)(><:\\/"][?}}{{
CSeq: 139122385 {ODD_METHOD}
Max-Forwards: 255
extensionHeader-!.%*+_`'~: \ufeff\u5927\u505c\u96fb
Content-Length: 0
"""),
    "3.1.1.3 escapes": request(
        "INVITE sip:sips%3Auser%40example.com@example.net SIP/2.0",
        To="sip:%75se%72@example.com",
        From="<sip:I%20have%20spaces@example.net>;tag=938",
        Contact="<sip:cal%6Cer@host5.example.net;%6C%72;n%61me=v%61lue%25%34%31>",
    ),
    "3.1.1.4 escaped zeros": request(
        "REGISTER sip:example.com SIP/2.0",
        To="sip:null-%00-null@example.com",
        From="sip:null-%00-null@example.com;tag=839923423",
        Contact="<sip:%00@host5.example.com>, <sip:%00%00@host5.example.com>",
    ),
    "3.1.1.5 a percent sign that begins no escape": request(
        "RE%47IST%45R sip:registrar.example.com SIP/2.0",
        To='"%Z%45" <sip:resource@example.com>',
        From='"%Z%45" <sip:resource@example.com>;tag=f232jadfj23',
        Contact='<sip:alias1@host1.example.com>, <sip:alias%31@host2.example.com>;q="%"',
    ),
    "3.1.1.6 no blank before the bracket": request(
        "OPTIONS sip:user@example.com SIP/2.0", From="caller<sip:caller@example.com>;tag=323"
    ),
    "3.1.1.7 long": request(
        f"INVITE sip:user@example.com;unknown{'x' * 300}param=very{'long' * 40}value SIP/2.0",
        To=f'"I have a user name of {"extreme " * 200}proportion"<sip:user@example.com:6000;unknown={"long" * 99}>',
        From=f"sip:{'amazinglylongcallername' * 20}@example.net;tag=12{'982' * 100}424;unknown{'header' * 40}=x",
        Call_ID=f"longreq.one{'really' * 40}longcallid",
        Unknown=f"{'long-' * 300}value; {'unknown-' * 99}parameter-name = {'x' * 999}; q=3",
        Record_Route=", ".join(f"<sip:very-long-name-{n:03}.example.org;lr>" for n in range(60)),
        Via=", ".join(
            ["SIP/2.0/UDP sip33.example.com;rport;branch=z9hG4bK1"]
            + [f"SIP/2.0/TCP sip{n}.example.com;branch=z9hG4bK{n}" for n in range(32)]
        ),
        body=SDP,
    ),
    "3.1.1.9 parameters in the user part": request(
        "OPTIONS sip:user;par=u%40example.net@example.com SIP/2.0", To="sip:j_user@example.com"
    ),
    "3.1.1.10 transports nobody knows": request(
        Via="SIP/2.0/UDP t1.example.com;rport;branch=z9hG4bKkdjuw, SIP/2.0/SCTP t2.example.com;branch=z9hG4bKklasjdhf,"
        " SIP/2.0/TLS t3.example.com;branch=z9hG4bK2980unddj, SIP/2.0/UNKNOWN t4.example.com;branch=z9hG4bKasd0f3en,"
        " SIP/2.0/TCP t5.example.com;branch=z9hG4bK0a9idfnee"
    ),
    "3.1.1.11 a body of several parts, one binary": request(
        "MESSAGE sip:kumiko@example.org SIP/2.0",
        Content_Type='multipart/mixed;boundary="7a9cbec0"',
        MIME_Version="1.0",
        body=BINARY,
    ),
}
VALID["bytes that are no UTF-8"] = request(Subject="B\udce9la \udcff\udcfe", Organization="\udc80")
VALID_RESPONSES = {
    "3.1.1.12 a reason in many letters": f"SIP/2.0 200 = 2**3 * 5**2 {RUSSIAN} {RUSSIAN}-{RUSSIAN}",
    "3.1.1.13 no reason": "SIP/2.0 100 ",
}

PASSES, DROPPED = None, 0

# What becomes of each: an answer with that status, or one of the two above.
INVALID: dict[str, tuple[bytes, int | None]] = {
    "3.1.2.1 separators between nothing": (
        request(
            "INVITE sip:user@example.com SIP/2.0",
            Via="SIP/2.0/UDP 192.0.2.15;rport;;,;,,",
            Contact='"Joe" <sip:joe@example.org>;;;;',
        ),
        PASSES,
    ),
    "3.1.2.2 a length beyond the end": (
        request("INVITE sip:user@example.com SIP/2.0", Content_Length="9999", body=SDP),
        400,
    ),
    "3.1.2.3 a length below nothing": (
        request("INVITE sip:user@example.com SIP/2.0", Content_Length="-999", body=SDP),
        400,
    ),
    "3.1.2.4 numbers too large, in a request": (
        request(
            "REGISTER sip:example.com SIP/2.0",
            CSeq="36893488147419103232 REGISTER",
            Max_Forwards="300",
            Expires=f"1{'0' * 100}",
            Contact="<sip:user@host129.example.com>;expires=280297596632815",
        ),
        400,
    ),
    "3.1.2.4 only Expires too large": (
        request("REGISTER sip:example.com SIP/2.0", Expires=f"1{'0' * 100}"),
        PASSES,
    ),
    "3.1.2.4 Max-Forwards beyond any number": (request(Max_Forwards="9" * 40), 400),
    "3.1.2.6 a quote that does not end": (
        request("INVITE sip:user@example.com SIP/2.0", To='"Mr. J. User <sip:j.user@example.com>'),
        400,
    ),
    "3.1.2.7 brackets around the URI": (request("INVITE <sip:user@example.com> SIP/2.0"), DROPPED),
    "3.1.2.8 blanks in the URI": (
        request("INVITE sip:user@example.com; lr SIP/2.0", CSeq="8 INVITE"),
        DROPPED,
    ),
    "3.1.2.9 several blanks in the first line": (
        request("INVITE  sip:user@example.com  SIP/2.0", CSeq="8 INVITE"),
        DROPPED,
    ),
    "3.1.2.10 blanks at the end of the first line": (
        request("OPTIONS sip:remote-target@example.com SIP/2.0  "),
        DROPPED,
    ),
    "3.1.2.11 headers in the URI": (
        request("INVITE sip:user@example.com?Route=%3Csip:example.com%3E SIP/2.0"),
        PASSES,
    ),
    "3.1.2.12 a zone that no Date has": (request(Date="Fri, 01 Jan 2010 16:00:00 EST"), PASSES),
    "3.1.2.13 no brackets where they must be": (
        request(
            "REGISTER sip:example.com SIP/2.0", Contact="sip:user@example.com?Route=%3Csip:sip.example.com%3E"
        ),
        PASSES,
    ),
    "3.1.2.14 blanks within the brackets": (
        request(To='"Watson, Thomas" < sip:t.watson@example.org >'),
        PASSES,
    ),
    "3.1.2.15 a name of no tokens": (
        request(
            "OPTIONS sip:t.watson@example.org SIP/2.0",
            From="Bell, Alexander <sip:a.g.bell@example.com>;tag=43",
        ),
        PASSES,
    ),
    "3.1.2.16 version 7": (request("OPTIONS sip:t.watson@example.org SIP/7.0"), DROPPED),
    "3.1.2.17 two methods": (request("OPTIONS sip:user@example.com SIP/2.0", CSeq="8 INVITE"), 400),
    "3.1.2.18 two methods that nobody knows": (
        request("NEWMETHOD sip:user@example.com SIP/2.0", CSeq="8 INVITE"),
        400,
    ),
    "3.2.1 a branch of nothing but the cookie": (
        request(Via="SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK"),
        PASSES,
    ),
    "3.3.1 no Call-ID, From and To": (request(Call_ID="", From="", To=""), 400),
    "3.3.1 no Call-ID": (request(Call_ID=""), 400),
    "3.3.1 no From": (request(From=""), 400),
    "3.3.1 no To": (request(To=""), 400),
    "3.3.1 no CSeq": (request(CSeq=""), 400),
    "3.3.1 no Via": (request(Via=""), DROPPED),
    "3.3.2 a scheme nobody knows": (
        request("OPTIONS nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0"),
        PASSES,
    ),
    "3.3.3 a scheme of another kind": (request("OPTIONS soap.beep://192.0.2.103:3002 SIP/2.0"), PASSES),
    "3.3.4 schemes nobody knows, in headers": (
        request(
            "REGISTER sip:example.com SIP/2.0",
            To="isbn:2983792873",
            From="<http://www.example.com>;tag=3234233",
            Contact="<name:John_Smith>",
        ),
        PASSES,
    ),
    "3.3.5 extensions nobody knows": (
        request(Proxy_Require="nothingSupportsThis, nothingSupportsThisEither", Require="nor, this"),
        420,
    ),
    "3.3.6 a type of body nobody knows": (
        request(
            "INVITE sip:user@example.com SIP/2.0", Content_Type="application/unknownformat", body=b"<audio/>"
        ),
        PASSES,
    ),
    "3.3.7 credentials of a kind nobody knows": (
        request(
            "REGISTER sip:example.com SIP/2.0", Authorization='NoOneKnowsThisScheme opaque-data=here, x="y'
        ),
        PASSES,
    ),
    "3.3.8 two of what there is one of": (
        request().replace(
            b"Max-Forwards: 70",
            b"Max-Forwards: 70\r\nCSeq: 5 OPTIONS\r\ni: 2\r\nf: <sip:x@h>;tag=1\r\nt: <sip:y@h>\r\nMax-Forwards: 5",
        ),
        400,
    ),
    "3.3.9 two lengths": (request(body=SDP).replace(b"Content-Length", b"l: 137\r\nContent-Length"), 400),
    "3.3.11 no hop left": (request("OPTIONS sip:user@example.com SIP/2.0", Max_Forwards="0"), 483),
    "3.3.12 a parameter of the Contact": (
        request("REGISTER sip:example.com SIP/2.0", Contact="sip:+19725552222@gw1.example.net;unknownparam"),
        PASSES,
    ),
    "3.3.13 a parameter of its URI": (
        request(
            "REGISTER sip:example.com SIP/2.0", Contact="<sip:+19725552222@gw1.example.net;unknownparam>"
        ),
        PASSES,
    ),
    "3.3.14 headers of its URI": (
        request(
            "REGISTER sip:example.com SIP/2.0",
            Contact="<sip:user@example.com?Route=%3Csip:sip.example.com%3E>",
        ),
        PASSES,
    ),
    "3.3.15 an offer nobody can take": (
        request("INVITE sip:user@example.com SIP/2.0", Accept="text/nobodyKnowsThis", body=SDP),
        PASSES,
    ),
    "3.4.1 as RFC 2543 has it": (
        wire("""\
INVITE sip:UserB@example.com SIP/2.0
Via: SIP/2.0/UDP iftgw.example.com;rport
From: <sip:+13035551111@ift.client.example.net;user=phone>
Record-Route: <sip:UserB@example.com;maddr=ss1.example.com>
To: sip:+16505552222@ss1.example.net;user=phone
Call-ID: inv2543.1717@ift.client.example.com
CSeq: 56 INVITE
Content-Type: application/sdp

""")[:-2]
        + SDP,
        PASSES,
    ),
}
# These pass with a Via without its empty parts, or with the Content-Length that it lacked.
REWRITTEN = {"3.1.2.1 separators between nothing", "3.4.1 as RFC 2543 has it"}
# Answers; all are dropped.
INVALID_RESPONSES = {
    "3.1.2.5 numbers too large": (
        "SIP/2.0 503 Service Unavailable",
        {"CSeq": "9292394834772304023312 OPTIONS", "Warning": '1812 overture "In Progress"'},
    ),
    "3.1.2.19 a status too large": ("SIP/2.0 4294967301 better not break the receiver", {}),
    "3.3.10 for everybody": (
        "SIP/2.0 200 OK",
        {"Via": "SIP/2.0/UDP 192.0.2.198;branch=z9hG4bK1\nVia: SIP/2.0/UDP 255.255.255.255;branch=z9hG4bK2"},
    ),
}


# -- what they go through ----------------------------------------------------------------------------------


class Crossing:
    """An element with real sockets and the real rules, between a peer and an Asterisk that are sockets only."""

    def __init__(self, transport: str) -> None:
        self.reactor = SelectReactor()  # of its own: turned by hand, so that a test reads from top to bottom
        port = free_port(OURS, *HOSTS.values())
        self.ours = Address(OURS, port)
        self.ends = {side: Address(host, port) for side, host in HOSTS.items()}
        peer, asterisk = self.ends[Side.PEER], self.ends[Side.ASTERISK]
        trunk = Trunk("t", transport, self.ours, (peer,), asterisk, "t", self.ours, self.ours)
        clock = Clock()
        site = Site(clock=clock, trunks={"t": trunk}, table=Table(clock))
        self.log: list[str] = []
        self.link = Link(self.reactor, trunk, self.log.append)
        self.link.element = Element(
            trunk,
            site.cc,
            ReactorClock(self.reactor),
            self.link.send,
            self.log.append,
            lambda: BRANCH + site.token(),
        )
        site.cc.join(site.service, {"t": self.link.element})
        self.link.start()
        self._numbers = count(1)

    def close(self) -> None:
        done: list[object] = []
        self.link.stop().addBoth(done.append)
        self.until(lambda: bool(done), "the end")
        self.link.element.close()
        assert not [line for line in self.log if "fault of fastagi" in line], self.log

    def until(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SOON
        while not true():
            assert time.monotonic() < end, f"{what} takes more than {SOON:g} s"
            self.reactor.iterate(0.001)

    def good(self) -> tuple[bytes, bytes]:
        """A message that must pass, and what it is known by."""
        word = f"good-{next(self._numbers)}-{id(self)}"
        return request(Call_ID=word, Via=f"SIP/2.0/UDP h;rport;branch=z9hG4bK{word}"), word.encode()


class Datagrams(Crossing):
    def __init__(self) -> None:
        super().__init__("udp")
        self.sockets = {side: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for side in Side}
        for side, one in self.sockets.items():
            one.setblocking(False)
            one.bind(self.ends[side])

    def close(self) -> None:
        super().close()
        for one in self.sockets.values():
            one.close()

    def send(self, side: Side, *messages: bytes) -> tuple[list[bytes], list[bytes]]:
        """What the other side gets of them, and what comes back; then that side's good message passes too."""
        one, other = self.sockets[side], self.sockets[side.other]
        good, word = self.good()
        for message in (*messages, good):
            one.sendto(message, self.ours)
        passed: list[bytes] = []

        def has_passed() -> bool:
            passed.extend(received(other))
            return any(word in data for data in passed[-1:])

        self.until(has_passed, "a good message")
        return passed[:-1], received(one)


def received(one: socket.socket) -> list[bytes]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(one.recv(65536))
    return found


@pytest.fixture(scope="module")
def crossing() -> Iterator[Datagrams]:
    crossing = Datagrams()
    yield crossing
    crossing.close()


def status(data: bytes) -> int:
    found = re.match(rb"SIP/2\.0 ([0-9]{3}) ", data)
    return int(found[1]) if found else 0


def lines(data: bytes) -> list[bytes]:
    """The first line and the headers, each with its folds."""
    return re.split(rb"\r\n(?![ \t])", data.partition(b"\r\n\r\n")[0])


def is_header(line: bytes, *names: bytes) -> bool:
    return line.partition(b":")[0].strip().lower() in names


def hops_undone(data: bytes, sent: bytes) -> bytes:
    """What has passed, as it was before: without our Via, with the hops that were left, the top Via not filled in."""
    start, ours, *rest = lines(data)
    assert re.match(rb"Via: SIP/2\.0/UDP 127\.0\.4\.3:[0-9]+;branch=z9hG4bKcc[0-9a-f]{32}$", ours)
    before = lines(sent)
    for name in (b"via", b"v"), (b"max-forwards",):
        was = next((line for line in before if is_header(line, *name)), None)
        at = next(at for at, line in enumerate(rest) if is_header(line, *name))
        if was is None:
            del rest[at]
            continue
        expected, found = (b"".join(re.split(rb"[ \t\r\n]+", line)) for line in (was, rest[at]))
        if name == (b"max-forwards",):
            expected = re.sub(rb"[0-9]+", lambda hops: b"%d" % (int(hops[0]) - 1), expected)
        else:
            found = re.sub(rb";rport=[0-9]+", b";rport", found, count=1)
            found = re.sub(rb";received=127[0-9.]+", b"", found, count=1)
            found = re.sub(rb"=;rport", b"", found)
        assert found == expected
        rest[at] = was
    return b"\r\n".join([start, *rest]) + b"\r\n\r\n" + data.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("name", VALID)
def test_what_is_valid_passes(crossing: Datagrams, name: str, side: Side) -> None:
    passed, answers = crossing.send(side, VALID[name])
    assert [hops_undone(data, VALID[name]) for data in passed] == [VALID[name]]
    assert answers == NOTHING


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("name", INVALID)
def test_what_is_not_valid(crossing: Datagrams, name: str, side: Side) -> None:
    data, fate = INVALID[name]
    passed, answers = crossing.send(side, data)
    assert len(passed) == (fate is PASSES)
    if fate is PASSES and name not in REWRITTEN:
        assert hops_undone(passed[0], data) == data
    assert [status(answer) for answer in answers] == ([fate] if fate else [])


def test_trailing_octets(crossing: Datagrams) -> None:
    """3.1.1.8: what is behind the body belongs to no message, not even where it looks like one."""
    register = request(
        "REGISTER sip:example.com SIP/2.0", Via="SIP/2.0/UDP 192.0.2.125;rport;branch=z9hG4bK0"
    )
    behind = request("INVITE sip:joe@example.com SIP/2.0")
    passed, answers = crossing.send(Side.PEER, register + behind)
    assert [hops_undone(data, register) for data in passed] == [register]
    assert answers == NOTHING


def answered_with(crossing: Datagrams, start: str, **headers: str) -> tuple[bytes, list[bytes]]:
    """An answer to a request of Asterisk, with these headers in place of its own, and what Asterisk gets of it."""
    (passed,), _ = crossing.send(Side.ASTERISK, request())
    names = {b"via", b"from", b"to", b"call-id", b"cseq"} - {name.lower().encode() for name in headers}
    copied = [line for line in lines(passed) if is_header(line, *names)]
    others = [f"{name}: {value}".encode() for name, value in headers.items()]
    answer = b"\r\n".join([start.encode(), *copied, *others, b"Content-Length: 0", b"", b""])
    return answer, crossing.send(Side.PEER, answer)[0]


@pytest.mark.parametrize("name", VALID_RESPONSES)
def test_an_answer_that_is_valid_passes(crossing: Datagrams, name: str) -> None:
    answer, passed = answered_with(crossing, VALID_RESPONSES[name])
    ours = re.search(rb"Via: SIP/2\.0/UDP 127\.0\.4\.3:.*\r\n", answer)
    assert ours
    assert passed == [answer.replace(ours[0], b"", 1)]


@pytest.mark.parametrize("name", INVALID_RESPONSES)
def test_an_answer_that_is_not_valid_is_dropped(crossing: Datagrams, name: str) -> None:
    start, headers = INVALID_RESPONSES[name]
    assert answered_with(crossing, start, **headers)[1] == NOTHING


# -- and worse ---------------------------------------------------------------------------------------------

GOOD = [*VALID.values(), *(data for data, _ in INVALID.values())]
LARGEST = 65507  # bytes in one datagram over IPv4


def long(word: str, times: int, *, between: str = "") -> str:
    return between.join([word] * times)


LARGE = {
    "nothing but one letter": b"A" * LARGEST,
    "nothing but line ends": b"\r\n" * (LARGEST // 2),
    "nothing but zeros": bytes(LARGEST),
    "blanks": b" " * LARGEST,
    "a first line without end": b"INVITE sip:" + b"a" * (LARGEST - 11),
    "one header": request(Subject=long("x", 65_000)),
    "one header of quotes": request(To=long('"\\\\', 20_000)),
    "one header of separators": request(Contact=long(";,<", 21_000)),
    "one header of folds": request(Subject=long("\n ", 21_000)),
    "a Via of blanks": request(Via="SIP/2.0/UDP" + long(" ", 60_000) + "h"),
    "thousands of Vias": request(Via=long("SIP/2.0/UDP h;rport;branch=z9hG4bK1", 1_700, between=",")),
    "thousands of Via lines": request(Via=long("SIP/2.0/UDP h;branch=z9hG4bK1", 1_800, between="\nVia: ")),
    "thousands of parameters": request(Via="SIP/2.0/UDP h" + long(";rport", 10_000)),
    "thousands of Routes": request(Route=long("<sip:127.0.4.3;lr>", 3_300, between=",")),
    "thousands of headers": request(X=long("", 13_000, between="\nX: ")),
    "thousands of extensions": request(Proxy_Require=long("a", 32_000, between=",")),
    "a number": request(CSeq=long("9", 65_000) + " OPTIONS"),
    "a length": request(Content_Length=long("9", 65_000)),
    "a URI": request("OPTIONS sip:" + long("%41", 21_000) + "@h SIP/2.0"),
    "a Call-ID": request(Call_ID=long("i", 65_000)),
    "a tag": request(From="<sip:a@h>;tag=" + long("t", 65_000)),
    "a body": request(body=bytes(65_000)),
}


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("name", LARGE)
def test_64_kilobytes(crossing: Datagrams, name: str, side: Side) -> None:
    began = time.process_time()
    for _ in range(3):
        crossing.send(side, LARGE[name])
    assert time.process_time() - began < 0.3, "seconds for three of them"


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes of it changed, lost, doubled, or taken from another message."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(mutable))
        to = min(len(mutable), at + rng.choice((1, 1, 2, 8, 60)))
        match rng.randrange(6):
            case 0:
                mutable[at] = rng.randrange(256)
            case 1:
                del mutable[at:to]
            case 2:
                mutable[at:at] = mutable[at:to] * rng.randint(1, 3)
            case 3:
                mutable[at:at] = rng.choice(
                    (b"\r\n", b"\r", b"\n ", b",", b";", b'"', b"<", b"%", b"\0", b":", b"\xff")
                )
            case 4:
                other = rng.choice(GOOD)
                mutable[at:to] = other[(begin := rng.randrange(len(other))) : begin + to - at]
            case 5:
                mutable[at:to] = str(rng.choice((-1, 0, 2**31, 2**32, 10**30))).encode()
        if not mutable:
            break
    return bytes(mutable) or b"x"


@pytest.mark.parametrize("seed", range(8))
def test_mutated_messages(crossing: Datagrams, seed: int) -> None:
    rng = random.Random(seed)
    fates = {"passed": 0, "answered": 0}
    for _ in range(200):
        passed, answers = crossing.send(
            rng.choice([*Side]), *(mutated(rng, rng.choice(GOOD)) for _ in range(10))
        )
        fates["passed"] += len(passed)
        fates["answered"] += len(answers)
        assert not {status(answer) for answer in answers} - {400, 413, 420, 482, 483, 489, 505, 513}
    assert min(fates.values()) > 50, "mutations that are all alike prove nothing"


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes(crossing: Datagrams, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        passed, answers = crossing.send(
            rng.choice([*Side]), *(rng.randbytes(rng.choice((1, 4, 20, 300, 3000))) for _ in range(20))
        )
        assert passed == answers == NOTHING


# -- over TCP ----------------------------------------------------------------------------------------------


class Streams(Crossing):
    """Either side listens; whoever sends something opens a connection for it."""

    def __init__(self) -> None:
        super().__init__("tcp")
        self.listeners = {side: socket.create_server(self.ends[side]) for side in Side}
        self.arrived: dict[Side, list[tuple[socket.socket, bytearray]]] = {side: [] for side in Side}
        for listener in self.listeners.values():
            listener.setblocking(False)

    def close(self) -> None:
        super().close()
        for one in (*self.listeners.values(), *(one for side in Side for one, _ in self.arrived[side])):
            one.close()

    @contextmanager
    def connected(self, side: Side) -> Iterator[socket.socket]:
        source = (HOSTS[side], 0)
        with socket.create_connection(self.ours, timeout=SOON, source_address=source) as one:
            one.setblocking(False)
            yield one

    def got(self, side: Side) -> bytes:
        """All that has been sent to that side so far."""
        with suppress(BlockingIOError):
            self.arrived[side].append((self.listeners[side].accept()[0], bytearray()))
            self.arrived[side][-1][0].setblocking(False)
        for one, data in self.arrived[side]:
            drain(one, data)
        return b"".join(bytes(data) for _, data in self.arrived[side])

    def passes(self, side: Side, by: socket.socket | None = None) -> None:
        """A good message does, by that connection or by a new one."""
        good, word = self.good()
        with ExitStack() as stack:
            one = by or stack.enter_context(self.connected(side))
            one.sendall(good)
            self.until(lambda: word in self.got(side.other), "a good message")

    def fate(self, side: Side, *parts: bytes) -> tuple[bytes, bool]:
        """What comes back for these, and whether the connection is closed behind it; others stay as they are."""
        back = bytearray()
        with self.connected(side) as one:
            for part in parts:
                with suppress(BrokenPipeError, ConnectionResetError):
                    one.sendall(part)
                self.passes(side)
                closed = drain(one, back)
        return bytes(back), closed


def drain(one: socket.socket, into: bytearray) -> bool:
    """Whether the other side has closed it."""
    with suppress(BlockingIOError):
        while data := one.recv(2**20):
            into += data
        return True
    return False


@pytest.fixture(scope="module")
def streams() -> Iterator[Streams]:
    streams = Streams()
    yield streams
    streams.close()


LENGTHS = {
    "none": ("", 400),
    "below nothing": ("-1", 400),
    "no number": ("many", 400),
    "empty": (" ", 400),
    "hexadecimal": ("0x10", 400),
    "with a sign": ("+4", 400),
    "two": ("4\nl: 5", 400),
    "too large for anything": ("99999999999999999999", 413),
    "too large for us": ("65537", 413),
}


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_that_cannot_be(streams: Streams, name: str, side: Side) -> None:
    """Nobody knows where the next message begins: it is answered, and the connection closed."""
    length, expected = LENGTHS[name]
    data = request(Content_Length=length, Call_ID=f"length-{name.replace(' ', '-')}", body=b"body")
    back, closed = streams.fate(side, data + request())
    assert status(back) == expected
    assert back.count(b"SIP/2.0 ") == 1
    assert closed


@pytest.mark.parametrize("side", Side)
def test_a_length_that_is_too_long(streams: Streams, side: Side) -> None:
    """It swallows what comes by the same connection, as it says, and not a byte more."""
    swallowed = request(Call_ID="swallowed")
    with streams.connected(side) as one:
        one.sendall(request(Call_ID="long", Content_Length=str(4 + len(swallowed)), body=b"body"))
        streams.passes(side)
        one.sendall(swallowed)
        streams.passes(side, one)
    got = streams.got(side.other)
    at = got.index(b"Call-ID: long\r\n")
    assert got.index(b"\r\n\r\nbody" + swallowed) > at


@pytest.mark.parametrize("side", Side)
def test_a_length_that_is_too_short(streams: Streams, side: Side) -> None:
    """The message passes with the body that it says; what is left begins no message."""
    back, closed = streams.fate(
        side, request(Call_ID="short", Content_Length="2", body=b"ab<rest>") + request()
    )
    assert re.search(
        rb"Call-ID: short\r\n(?s:.{1,200}?)\r\n\r\nabOPTIONS|Call-ID: short\r\n(?s:.{1,200}?)\r\n\r\nab$",
        streams.got(side.other),
    )
    assert (back, closed) == (b"", True)


@pytest.mark.parametrize("side", Side)
def test_all_that_is_valid_in_one_stream(streams: Streams, side: Side) -> None:
    """Whole, and cut into pieces of any length."""
    messages = [
        re.sub(rb"^SIP/2.0/UDP|(?<=Via: )SIP/2.0/UDP", b"SIP/2.0/TCP", data, flags=re.MULTILINE)
        for data in VALID.values()
    ]
    rng = random.Random(18)
    for cut in False, True:
        before = len(streams.got(side.other))
        with streams.connected(side) as one:
            rest = b"".join(messages)
            while rest:
                size = rng.choice((1, 2, 7, 100, 1000)) if cut else len(rest)
                one.sendall(rest[:size])
                rest = rest[size:]
                streams.reactor.iterate(0)
            streams.passes(side, one)
        got = streams.got(side.other)[before:]
        assert len(re.findall(rb"branch=z9hG4bKcc[0-9a-f]{32};cport=", got)) == len(messages) + 1
        for data in messages:
            assert lines(data)[0] in got
            assert data.partition(b"\r\n\r\n")[2] in got


@pytest.mark.parametrize("seed", range(4))
def test_mutated_streams(streams: Streams, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(15):
        stream = b"".join(mutated(rng, rng.choice(GOOD)) for _ in range(4))
        cut = rng.randrange(len(stream))
        streams.fate(rng.choice([*Side]), stream[:cut], stream[cut:])


@pytest.mark.parametrize("seed", range(4))
def test_random_streams(streams: Streams, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(15):
        parts = (b"\xff", *(rng.randbytes(rng.choice((1, 50, 5000))) for _ in range(2)))
        assert streams.fate(rng.choice([*Side]), *parts) == (b"", True)


@pytest.mark.parametrize("name", LARGE)
def test_64_kilobytes_in_a_stream(streams: Streams, name: str) -> None:
    streams.fate(Side.PEER, LARGE[name])
