"""The stateless proxy: what goes to the other side, what comes back, and all that does neither."""

import random
import time
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from twisted.protocols import sip

from fastagi.sip.message import Malformed, Request, Response, parse
from fastagi.sip.proxy import BRANCH, Outgoing, Proxy, Returning
from fastagi.sip.transaction import stateless_tag
from fastagi.sip.trunk import Address, Side, Trunk

witness: Any = sip  # has no types

PEER, ASTERISK = Side.PEER, Side.ASTERISK
UDP = Trunk(
    name="mxone",
    transport="udp",
    listen=Address("192.0.2.3", 5060),
    peer=(Address("192.0.2.16", 5060),),
    asterisk=Address("192.0.2.22", 5060),
    endpoint="trunk-mxone",
    towards_peer=Address("198.51.100.3", 5070),
    towards_asterisk=Address("192.0.2.3", 5060),
)
TCP = replace(UDP, transport="tcp")
SIX = replace(
    UDP,
    listen=Address("2001:db8::3", 5060),
    peer=(Address("2001:db8::16", 5060),),
    asterisk=Address("2001:db8::22", 5060),
    towards_peer=Address("2001:db8::3", 5060),
    towards_asterisk=Address("2001:db8::3", 5062),
)
SIX_TCP = replace(SIX, transport="tcp")
TRUNKS = [UDP, TCP, SIX, SIX_TCP]
NAMES = ["udp", "tcp", "udp6", "tcp6"]
BODY = b"v=0\r\no=- 1 1 IN IP4 192.0.2.22\r\ns=-\r\n"


def sent_by(trunk: Trunk, side: Side) -> Address:
    return trunk.asterisk if side is ASTERISK else trunk.peer[0]


def wire(text: str, body: bytes = b"") -> bytes:
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape") + b"\r\n" + body


def invite(
    trunk: Trunk, side: Side, *extra: str, branch: str = "z9hG4bKPj4fc2", method: str = "INVITE"
) -> bytes:
    us, them = trunk.towards(side), sent_by(trunk, side)
    lines = [
        f"{method} sip:2000@{us} SIP/2.0",
        f"Via: SIP/2.0/{trunk.transport.upper()} {them};rport;branch={branch}",
        "Max-Forwards: 70",
        f'From: "Alice" <sip:1000@{them}>;tag=5439',
        f"To: <sip:2000@{us}>",
        "Call-ID: f0ce8702-373d",
        f"CSeq: 23976 {method}",
        *extra,
        f"Content-Length: {len(BODY)}",
    ]
    return wire("\n".join(lines) + "\n", BODY)


def arrived(data: bytes, source: Address) -> Request:
    message = parse(data)
    assert isinstance(message, Request)
    return message.received_from(*source)


def forwarded(trunk: Trunk, data: bytes, side: Side, uri: str | None = None, port: int = 0) -> Outgoing:
    source = sent_by(trunk, side)
    source = source._replace(port=port or source.port)
    out = Proxy(trunk).forward(arrived(data, source), source, side, uri)
    assert isinstance(out, Outgoing), out
    return out


def refused(trunk: Trunk, data: bytes, side: Side = PEER) -> Response:
    source = sent_by(trunk, side)
    answer = Proxy(trunk).forward(arrived(data, source), source, side)
    assert isinstance(answer, Response), answer
    return answer


def returned(trunk: Trunk, response: Response, side: Side) -> Returning:
    seen = parse(response.to_bytes())
    assert isinstance(seen, Response)
    back = Proxy(trunk).back(seen, side)
    assert back is not None
    return back


def lines(message: Request | Response) -> list[str]:
    return message.to_bytes().partition(b"\r\n\r\n")[0].decode("utf-8", "surrogateescape").split("\r\n")


every_trunk = pytest.mark.parametrize("trunk", TRUNKS, ids=NAMES)
both_sides = pytest.mark.parametrize("side", list(Side))


# -- there -------------------------------------------------------------------------------------------------


@every_trunk
@both_sides
def test_a_request_goes_to_the_other_side_with_our_via(trunk: Trunk, side: Side) -> None:
    out = forwarded(trunk, invite(trunk, side), side)
    assert out.to == sent_by(trunk, side.other)
    came, went = lines(arrived(invite(trunk, side), sent_by(trunk, side))), lines(out.message)
    start = f"Via: SIP/2.0/{trunk.transport.upper()} {trunk.towards(side.other)};branch={BRANCH}"
    assert went.pop(1).startswith(start)
    came[came.index("Max-Forwards: 70")] = "Max-Forwards: 69"
    assert went == came
    assert out.message.body == BODY


def test_the_bytes_that_leave() -> None:
    """The branch is written out here: were it another in the next version, an upgrade would break calls."""
    assert forwarded(UDP, invite(UDP, ASTERISK), ASTERISK).message.to_bytes() == wire(
        """\
INVITE sip:2000@192.0.2.3:5060 SIP/2.0
Via: SIP/2.0/UDP 198.51.100.3:5070;branch=z9hG4bKcccc356e359b56716a80667ffbbff5cfc0
Via: SIP/2.0/UDP 192.0.2.22:5060;rport=5060;branch=z9hG4bKPj4fc2;received=192.0.2.22
Max-Forwards: 69
From: "Alice" <sip:1000@192.0.2.22:5060>;tag=5439
To: <sip:2000@192.0.2.3:5060>
Call-ID: f0ce8702-373d
CSeq: 23976 INVITE
Content-Length: 37
""",
        BODY,
    )


@pytest.mark.parametrize("trunk", [TCP, SIX_TCP], ids=["tcp", "tcp6"])
@both_sides
def test_over_tcp_our_via_remembers_the_connection(trunk: Trunk, side: Side) -> None:
    out = forwarded(trunk, invite(trunk, side), side, port=49152)
    assert out.message.via.param("cport") == "49152"


@pytest.mark.parametrize("trunk", [UDP, SIX], ids=["udp", "udp6"])
def test_over_udp_there_is_none(trunk: Trunk) -> None:
    assert forwarded(trunk, invite(trunk, PEER), PEER).message.via.param("cport") is None


@both_sides
def test_another_uri(side: Side) -> None:
    data = invite(UDP, side)
    plain, other = forwarded(UDP, data, side), forwarded(UDP, data, side, "sip:CC_856;76@192.0.2.16;m=BS")
    assert lines(other.message)[0] == "INVITE sip:CC_856;76@192.0.2.16;m=BS SIP/2.0"
    assert lines(other.message)[1:] == lines(plain.message)[1:]
    assert other.to == plain.to


def test_several_peers_are_told_apart_by_the_uri_that_goes_out() -> None:
    second = Address("192.0.2.17", 5090)
    trunk = replace(UDP, peer=(*UDP.peer, second))
    data = invite(trunk, ASTERISK)
    assert forwarded(trunk, data, ASTERISK).to == UDP.peer[0]
    assert forwarded(trunk, data, ASTERISK, "sip:cc@192.0.2.17:5090").to == second
    assert forwarded(trunk, data, ASTERISK, "sip:cc@203.0.113.9").to == UDP.peer[0]
    assert forwarded(trunk, data, PEER, "sip:cc@192.0.2.17:5090").to == trunk.asterisk


@pytest.mark.parametrize(
    ("came", "goes"),
    [("70", "69"), ("1", "0"), ("255", "254"), ("0070", "69"), ("999999999", "999999998")],
)
def test_max_forwards_counts_down(came: str, goes: str) -> None:
    data = invite(UDP, PEER).replace(b"Max-Forwards: 70", b"MAX-FORWARDS : " + came.encode())
    assert f"MAX-FORWARDS: {goes}" in lines(forwarded(UDP, data, PEER).message)


def test_max_forwards_is_added() -> None:
    data = invite(UDP, PEER).replace(b"Max-Forwards: 70\r\n", b"")
    assert forwarded(UDP, data, PEER).message.max_forwards == 70


# -- the branch --------------------------------------------------------------------------------------------


@every_trunk
@both_sides
@pytest.mark.parametrize("branch", ["z9hG4bKPj4fc2", "z9hG4bK", "1", "", "Z9HG4BKx"])
def test_an_invite_its_cancel_and_the_ack_of_its_failure_have_one_branch(
    trunk: Trunk, side: Side, branch: str
) -> None:
    """Over restarts: each goes through a proxy of its own."""
    found = {
        forwarded(trunk, invite(trunk, side, branch=branch, method=method), side, uri).message.via.branch
        for method in ("INVITE", "CANCEL", "ACK")
        for uri in (None, "sip:other@192.0.2.16")
    }
    assert len(found) == 1
    ack = invite(trunk, side, branch=branch, method="ACK")
    to = f"To: <sip:2000@{trunk.towards(side)}>".encode()
    tagged = forwarded(trunk, ack.replace(to, to + b";tag=as77"), side)
    assert tagged.message.via.branch in found


def test_what_comes_again_leaves_again_as_the_same_bytes() -> None:
    for trunk in TRUNKS:
        for side in Side:
            data = invite(trunk, side, "Route: <sip:192.0.2.3;lr>", "Call-Info: <sip:a@b>;m=BS")
            assert len({forwarded(trunk, data, side).message.to_bytes() for _ in range(3)}) == 1


def test_branches_differ_where_those_that_came_do() -> None:
    seen = {
        forwarded(UDP, invite(UDP, PEER, branch=f"z9hG4bK{n}"), PEER).message.via.branch for n in range(99)
    }
    assert len(seen) == 99


def without_branch(**changed: str) -> str:
    data = invite(UDP, PEER).replace(b";branch=z9hG4bKPj4fc2", b"")
    for old, new in changed.items():
        data = data.replace(old.encode(), new.encode())
    return forwarded(UDP, data, PEER).message.via.branch


def test_without_the_cookie_a_transaction_is_known_by_its_headers() -> None:
    """RFC 3261, 16.11; 17.2.3."""
    changes = [{}, {"f0ce": "f1ce"}, {"5439": "5440"}, {"23976": "23977"}, {"sip:2000@198": "sip:2001@198"}]
    assert len({without_branch(**change) for change in changes}) == len(changes)
    assert without_branch() == without_branch(Alice="Bob")


@pytest.mark.parametrize(
    ("branch", "unique"),
    [("z9hG4bK1", True), ("Z9HG4Bk1", True), ("z9hG4bK", False), ("z9hG4b", False), ("1z9hG4bK1", False)],
)
def test_which_branches_say_all(branch: str, unique: bool) -> None:
    data = invite(UDP, PEER, branch=branch)
    other = data.replace(b"f0ce8702", b"f1ce8702")
    branches = {forwarded(UDP, one, PEER).message.via.branch for one in (data, other)}
    assert (len(branches) == 1) is unique


def test_a_host_is_the_same_in_capitals() -> None:
    data = invite(UDP, PEER)
    names = (b"UDP pbx.example", b"UDP PBX.Example")
    spelled = [data.replace(b"UDP 192.0.2.16:5060", name) for name in names]
    assert len({forwarded(UDP, one, PEER).message.via.branch for one in spelled}) == 1


def test_the_place_of_the_sender_counts_too() -> None:
    """Two peers behind one proxy's words may draw the same branch."""
    data = invite(UDP, PEER)
    other = data.replace(b"UDP 192.0.2.16:5060", b"UDP 192.0.2.17:5060")
    assert forwarded(UDP, data, PEER).message.via.branch != forwarded(UDP, other, PEER).message.via.branch


# -- Route -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "left"),
    [
        (["Route: <sip:192.0.2.3:5060;lr>"], []),
        (["Route: <sip:192.0.2.3;lr>"], []),
        (["route  :  <sip:trunk@198.51.100.3:5070;transport=UDP;lr>;x=y"], []),
        (["Route: sip:192.0.2.3"], []),
        (["Route: <sip:192.0.2.3;lr>, <sip:198.51.100.3:5070;lr>"], []),
        (["Route: <sip:192.0.2.3;lr>", "Route: <sip:198.51.100.3:5070;lr>"], []),
        (["Route: <sip:192.0.2.3;lr>, <sip:far.example;lr>"], ["Route: <sip:far.example;lr>"]),
        (
            ["Route: <sip:192.0.2.3;lr>", "ROUTE: <sip:far.example;lr>,  <sip:192.0.2.3;lr>"],
            ["ROUTE: <sip:far.example;lr>,  <sip:192.0.2.3;lr>"],
        ),
        (["ROUTE:  <sip:far.example;lr>,<sip:192.0.2.3;lr>"],) * 2,
        (["Route: <sip:192.0.2.3:5061;lr>"],) * 2,
        (["Route: <sip:192.0.2.33;lr>"],) * 2,
        (["Route: <tel:+4912>"],) * 2,
        (['Route: "<sip:192.0.2.3;lr>" nonsense'],) * 2,
        (["Route: <<>>"],) * 2,
        (["Route: "],) * 2,
        (["Route: <sip:192.0.2.3>"] * 5, ["Route: <sip:192.0.2.3>"]),
        (["Route: , <sip:192.0.2.3;lr> ,"], []),
    ],
)
def test_routes_that_led_here_are_taken_off(came: list[str], left: list[str]) -> None:
    out = forwarded(UDP, invite(UDP, ASTERISK, *came), ASTERISK)
    assert [line for line in lines(out.message) if line.lower().startswith("route")] == left
    assert out.to == UDP.peer[0]


def test_routes_over_ipv6() -> None:
    routes = "Route: <sip:[2001:db8::3]:5060;lr>, <sip:[2001:DB8:0::3]:5062;lr>, <sip:[2001:db8::4];lr>"
    out = forwarded(SIX, invite(SIX, PEER, routes), PEER)
    assert out.message.all("route") == ["<sip:[2001:db8::4];lr>"]
    assert out.to == SIX.asterisk


@both_sides
@pytest.mark.parametrize("uri", ["sip:a@203.0.113.9", "sip:a@192.0.2.3:5060", "tel:+49", "sip:;@;x", "x"])
def test_nothing_but_the_side_says_where_it_goes(side: Side, uri: str) -> None:
    data = invite(UDP, side, "Route: <sip:203.0.113.9;lr>").replace(
        b"sip:2000@", b"sip:2000@evil.example;x=", 1
    )
    assert forwarded(UDP, data, side).to == sent_by(UDP, side.other)
    assert forwarded(UDP, data, side, uri).to == sent_by(UDP, side.other)


# -- what may not pass -------------------------------------------------------------------------------------


@every_trunk
@both_sides
def test_too_many_hops(trunk: Trunk, side: Side) -> None:
    data = invite(trunk, side).replace(b"Max-Forwards: 70", b"Max-Forwards: 0")
    answer = refused(trunk, data, side)
    request = arrived(data, sent_by(trunk, side))
    assert answer == request.response(483, tag=stateless_tag(request))
    assert answer.via.answer_to() == sent_by(trunk, side)


@every_trunk
@both_sides
@pytest.mark.parametrize("towards", list(Side))
def test_what_has_been_here_is_a_loop(trunk: Trunk, side: Side, towards: Side) -> None:
    branch = forwarded(trunk, invite(trunk, side), side).message.via.branch
    via = f"v: SIP/2.0/UDP far.example;branch=1, SIP / 2.0 / UDP {trunk.towards(towards)} ;branch={branch}"
    assert refused(trunk, invite(trunk, side, via), side).status == 482


def test_what_comes_back_for_somebody_else_is_no_loop() -> None:
    """A proxy beyond that forwards a call of ours to another phone of ours; or a Via that is like ours by chance."""
    out = forwarded(UDP, invite(UDP, ASTERISK), ASTERISK).message
    spiral = out.with_uri(out.uri.replace("sip:2000@", "sip:2001@"))
    assert spiral.uri != out.uri
    forwarded(UDP, spiral.to_bytes(), PEER)
    forwarded(UDP, invite(UDP, PEER, f"Via: SIP/2.0/UDP {UDP.towards_peer};branch=z9hG4bKx"), PEER)


def test_a_loop_ends() -> None:
    """Whatever the other side sends back comes to nothing."""
    for trunk in TRUNKS:
        out = forwarded(trunk, invite(trunk, ASTERISK), ASTERISK)
        assert refused(trunk, out.message.to_bytes(), PEER).status == 482
        ahead = out.message.prepended(("Via", f"SIP/2.0/UDP {trunk.peer[0]};branch=z9hG4bKnext"))
        assert refused(trunk, ahead.to_bytes(), PEER).status == 482


def test_a_loop_over_two_trunks_ends() -> None:
    """The second trunk's peer is the first one."""
    second = replace(UDP, listen=Address("192.0.2.3", 5064), towards_peer=Address("192.0.2.3", 5064))
    second = replace(second, peer=(UDP.listen,), towards_asterisk=second.listen)
    data = invite(UDP, PEER)
    for trunk in (UDP, second):
        out = forwarded(trunk, data, PEER)
        data = out.message.to_bytes()
    assert refused(UDP, data).status == 482


@pytest.mark.parametrize(
    "via",
    [
        "SIP/2.0/UDP 192.0.2.3:5061",
        "SIP/2.0/UDP 192.0.2.33:5060",
        "SIP/2.0/UDP far.example;received=192.0.2.3",
        "SIP/2.0/UDP 192.0.2.4;x=192.0.2.3:5060",
        "nonsense 192.0.2.3:5060",
        "SIP/2.0/UDP 192.0.2.3:99999",
    ],
)
def test_another_via_is_none_of_ours(via: str) -> None:
    assert f"Via: {via}" in lines(forwarded(UDP, invite(UDP, PEER, f"Via: {via}"), PEER).message)


@both_sides
def test_an_extension_we_do_not_know(side: Side) -> None:
    data = invite(UDP, side, "Proxy-Require: foo,", " bar", "proxy-require: baz")
    answer = refused(UDP, data, side)
    assert (answer.status, answer.all("Unsupported")) == (420, ["foo", "bar", "baz"])
    assert answer.to.tag == stateless_tag(arrived(data, sent_by(UDP, side)))


@pytest.mark.parametrize("method", ["CANCEL", "ACK"])
def test_cancel_and_ack_cannot_require(method: str) -> None:
    forwarded(UDP, invite(UDP, PEER, "Proxy-Require: foo", method=method), PEER)


def test_an_empty_require_requires_nothing() -> None:
    forwarded(UDP, invite(UDP, PEER, "Proxy-Require: ", "Proxy-Require: ,"), PEER)


@pytest.mark.parametrize(
    "data",
    [
        invite(UDP, PEER, method="ACK").replace(b"Max-Forwards: 70", b"Max-Forwards: 0"),
    ],
)
def test_an_ack_is_never_answered(data: bytes) -> None:
    assert Proxy(UDP).forward(arrived(data, UDP.peer[0]), UDP.peer[0], PEER) is None


@every_trunk
def test_the_ack_of_our_own_answer_ends_here(trunk: Trunk) -> None:
    """As any that was given with stateless_tag(): the other side knows nothing of it."""
    answer = refused(trunk, invite(trunk, PEER, "Proxy-Require: foo"))
    ack = invite(trunk, PEER, method="ACK").replace(b"To: <sip:2000@", b"T: <sip:2000@")
    to = f"T: <sip:2000@{trunk.towards(PEER)}>".encode()
    ack = ack.replace(to, to + f";tag={answer.to.tag}".encode())
    source = trunk.peer[0]
    assert Proxy(trunk).forward(arrived(ack, source), source, PEER) is None


# -- back --------------------------------------------------------------------------------------------------


@every_trunk
@both_sides
@pytest.mark.parametrize("status", [100, 180, 200, 302, 486, 487, 603])
def test_an_answer_comes_back_as_if_there_were_no_proxy(trunk: Trunk, side: Side, status: int) -> None:
    data, source = invite(trunk, side), sent_by(trunk, side)
    added = (("Call-Info", "<sip:tok@h>;purpose=call-completion;m=BS"), ("X-Odd", "\udcff"))
    answer = forwarded(trunk, data, side).message.response(status, headers=added, tag="as77")
    back = returned(trunk, answer, side.other)
    assert back.to == source
    direct = arrived(data, source).response(status, headers=added, tag="as77")
    assert back.message.to_bytes() == direct.to_bytes()


@pytest.mark.parametrize("trunk", [TCP, SIX_TCP], ids=["tcp", "tcp6"])
@both_sides
def test_over_tcp_it_goes_by_the_connection_its_request_came_by(trunk: Trunk, side: Side) -> None:
    """And where that is closed, to where its sender listens: not to rport, which was the connection's."""
    out = forwarded(trunk, invite(trunk, side), side, port=49152)
    back = returned(trunk, out.message.response(180, tag="x"), side.other)
    assert (back.to, back.port) == (sent_by(trunk, side), 49152)


@pytest.mark.parametrize(
    "cport", ["", "=", "=0", "=65536", "=-1", "=1 2", "=\u0661", '="5060', "=000001", "=" + "9" * 999]
)
def test_a_port_that_cannot_be_is_none(cport: str) -> None:
    out = forwarded(TCP, invite(TCP, PEER), PEER, port=5000).message
    text = out.via.text.replace(";cport=5000", f";cport{cport}")
    back = returned(TCP, out.with_top("via", text).response(180), ASTERISK)
    assert back.port is None


def test_udp_has_no_connections() -> None:
    out = forwarded(UDP, invite(UDP, PEER), PEER).message
    text = f"{out.via.text};cport=5000"
    assert returned(UDP, out.with_top("via", text).response(180), ASTERISK).port is None


def answer_with(*vias: str) -> Response:
    head = "".join(f"Via: {via}\n" for via in vias)
    rest = "From: <sip:a@h>;tag=1\nTo: <sip:b@h>;tag=2\nCall-ID: c\nCSeq: 1 INVITE\n"
    message = parse(wire(f"SIP/2.0 200 OK\n{head}{rest}"))
    assert isinstance(message, Response)
    return message


OURS = "SIP/2.0/UDP 192.0.2.3:5060;branch=z9hG4bKccx"


@pytest.mark.parametrize(
    ("vias", "to"),
    [
        ([OURS, "SIP/2.0/UDP 192.0.2.16:5060"], "192.0.2.16:5060"),
        ([OURS, "SIP/2.0/UDP 192.0.2.16"], "192.0.2.16:5060"),
        ([f"{OURS} , SIP / 2.0 / UDP 192.0.2.16 : 5060 ;x"], "192.0.2.16:5060"),
        (["SIP/2.0/UDP 192.0.2.3", "SIP/2.0/UDP pbx.example;received=192.0.2.16"], "192.0.2.16:5060"),
        ([OURS, "SIP/2.0/UDP pbx:5099;rport=5060;received=192.0.2.16"], "192.0.2.16:5060"),
        ([OURS, "SIP/2.0/UDP pbx:5099;maddr=192.0.2.16"], None),
        ([OURS, "SIP/2.0/UDP pbx;maddr=192.0.2.16;received=203.0.113.9"], "192.0.2.16:5060"),
        ([OURS, "SIP/2.0/UDP 192.0.2.16;maddr=203.0.113.9"], None),
        ([OURS, "SIP/2.0/UDP 192.0.2.16;received=203.0.113.9"], None),
        ([OURS, "SIP/2.0/UDP 192.0.2.16;rport=53"], None),
        ([OURS, "SIP/2.0/UDP 192.0.2.16:53"], None),
        ([OURS, "SIP/2.0/UDP 203.0.113.9:5060"], None),
        ([OURS, "SIP/2.0/UDP pbx.example"], None),
        ([OURS, "SIP/2.0/UDP 192.0.2.22:5060"], None),
        ([OURS, OURS], None),
        ([OURS], None),
        ([OURS, ""], None),
        ([OURS, "nonsense"], None),
        ([OURS, "SIP/2.0/UDP 192.0.2.16:0"], None),
        (["SIP/2.0/UDP 192.0.2.16:5060"], None),
        (["SIP/2.0/UDP 192.0.2.16:5060", OURS], None),
        (["SIP/2.0/UDP 192.0.2.3:5061", "SIP/2.0/UDP 192.0.2.16:5060"], None),
        (["SIP/2.0/UDP pbx;received=192.0.2.3", "SIP/2.0/UDP 192.0.2.16:5060"], None),
    ],
)
def test_an_answer_goes_only_where_it_may(vias: list[str], to: str | None) -> None:
    back = Proxy(UDP).back(answer_with(*vias), ASTERISK)
    assert (back and str(back.to)) == to


def test_a_peer_cannot_answer_itself() -> None:
    """An answer of the peer goes to Asterisk and nowhere else, even where the peer may be sent something."""
    assert Proxy(UDP).back(answer_with(OURS, "SIP/2.0/UDP 192.0.2.16:5060"), PEER) is None
    assert Proxy(UDP).back(answer_with(OURS, "SIP/2.0/UDP 192.0.2.22:5060"), PEER) is not None


def test_forged_answers_do_not_go_round() -> None:
    trunk = replace(UDP, allow=(ip_network("0.0.0.0/0"),))
    assert Proxy(trunk).back(answer_with(*[OURS] * 50), ASTERISK) is None
    assert Proxy(trunk).back(answer_with(OURS, "SIP/2.0/UDP 203.0.113.9:1234"), ASTERISK) is not None


# -- what is not touched -----------------------------------------------------------------------------------

ODD = wire(
    """\
INVITE sip:2000;x?y@192.0.2.3:5060;m=BS;%61=b?Subject=x SIP/2.0
v:SIP/2.0/UDP 192.0.2.16:5060;branch=z9hG4bK1 ,SIP/2.0/UDP [2001:db8::9]:5;branch=2
VIA :
  SIP/2.0/UDP   far.example;branch=3 ; q="a,b;c"
f:Alice <sip:1000@192.0.2.16>;tag=a
t : "B, \\"o\\" b" <sip:2000@192.0.2.3>
i:1
CSEQ:   7   INVITE
m: <sip:1000@192.0.2.16>,
\t<sip:1001@192.0.2.16>;q=0.1
X-Bytes: \udcff\udc80\u017c
X-Folded: a
 b
\t c
X-Empty:
k:100rel
Record-Route: <sip:far.example;lr>
c:application/octet-stream
max-forwards:9
l:0007
""",
    b"\x00\r\n\r\n\xff\x80",
)


def test_whatever_is_odd_stays_odd() -> None:
    """Apart from our Via, the ``received`` of the one below and Max-Forwards, the bytes are the same."""
    request = parse(ODD)
    assert isinstance(request, Request)
    out = Proxy(UDP).forward(request, UDP.peer[0], PEER)
    assert isinstance(out, Outgoing)
    data = out.message.to_bytes()
    first, via, rest = data.split(b"\r\n", 2)
    assert via.startswith(b"Via: SIP/2.0/UDP 192.0.2.3:5060;branch=z9hG4bKcc")
    assert first + b"\r\n" + rest == ODD.replace(b"max-forwards:9", b"max-forwards: 8")


def test_several_vias_in_one_line_come_off_one_by_one() -> None:
    out = forwarded(UDP, ODD, PEER).message
    texts = out.all("via")
    answer = out.response(486, tag="x").with_headers(("v", ", ".join(texts)))
    back = returned(UDP, answer, ASTERISK)
    assert back.message.all("via") == texts[1:]
    assert back.message.get("i") == "1"
    assert back.to == UDP.peer[0]


@pytest.mark.parametrize("trunk", [UDP, TCP], ids=["udp", "tcp"])
@both_sides
def test_a_second_opinion(trunk: Trunk, side: Side) -> None:
    """What we forward, another parser reads as it should be."""
    routes = "Route: <sip:192.0.2.3:5060;lr>, <sip:far.example;lr>"
    data = invite(trunk, side, routes, "Subject: a, b")
    out = forwarded(trunk, data, side, "sip:CC_856@192.0.2.16;m=BS").message
    answer = returned(trunk, out.response(486, tag="t"), side.other).message
    seen: list[Any] = []
    parser = witness.MessagesParser(seen.append)
    for message in (out, answer):
        parser.dataReceived(message.to_bytes())
        parser.dataDone()
    request, response = seen
    assert (request.method, request.uri.toString()) == ("INVITE", "sip:CC_856@192.0.2.16;m=BS")
    assert request.body.encode() == BODY
    us, them = trunk.towards(side.other), sent_by(trunk, side)
    ours, theirs = map(witness.parseViaHeader, request.headers["via"])
    assert (ours.transport, ours.host, ours.port) == (trunk.transport.upper(), *us)
    assert ours.branch.startswith(BRANCH)
    assert (theirs.host, theirs.port, theirs.branch) == (*them, "z9hG4bKPj4fc2")
    assert theirs.received == them.host
    assert request.headers["max-forwards"] == ["69"]
    assert request.headers["route"] == ["<sip:far.example;lr>"]
    assert request.headers["subject"] == ["a, b"]
    assert (response.code, len(response.headers["via"])) == (486, 1)
    assert witness.parseViaHeader(response.headers["via"][0]).toString() == theirs.toString()
    assert witness.parseAddress(response.headers["to"][0])[2]["tag"] == "t"


# -- what is hostile ---------------------------------------------------------------------------------------


def passed_on(trunk: Trunk, data: bytes, side: Side) -> None:
    """Whatever comes: nothing is raised, what leaves can be read again and is little more than what came."""
    source = sent_by(trunk, side)
    try:
        message = parse(data)
    except Malformed:
        return
    if isinstance(message, Response):
        back = Proxy(trunk).back(message, side)
        if back is not None:
            assert trunk.permitted(back.to, side.other)
            parse(back.message.to_bytes())
        return
    request = message.received_from(*source)
    out = Proxy(trunk).forward(request, source, side)
    if isinstance(out, Outgoing):
        assert out.to == sent_by(trunk, side.other)
        leaves = out.message.to_bytes()
        assert len(leaves) < len(data) + 300
        again = parse(leaves)
        assert again.body == request.body
        assert again.via.host == trunk.towards(side.other).host
        assert again.without_top("via").via == request.via
    elif out is not None:
        assert len(out.to_bytes()) < len(data) + 100


PIECES = [
    *(b"\r\n", b"\r", b"\n", b"\x00", b"\xff", b",", b";", b'"', b"<", b">", b"\\", b":", b" ", b"\t", b"@"),
    *(b"\r\nVia: ", b"\r\nRoute: ", b"\r\n ", b"Max-Forwards: 0", b"192.0.2.3:5060", b"[::1]", b"SIP/2.0"),
    *(
        b"branch=",
        b"=",
        b"received=",
        b"rport",
        b"tag=",
        b"%00",
        b"\r\nProxy-Require: x",
        b"\xe2\x80\xa8",
        b"",
    ),
]


@pytest.mark.parametrize("seed", range(20))
def test_noise(seed: int) -> None:
    rng = random.Random(seed)
    good = [ODD, invite(UDP, PEER, "Route: <sip:192.0.2.3;lr>", "Proxy-Require: ,")]
    good.append(
        forwarded(UDP, good[1].replace(b"Proxy-Require", b"X"), PEER).message.response(200).to_bytes()
    )
    for _ in range(100):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 0, 1, 9))] = rng.choice(PIECES)
        passed_on(UDP, bytes(data), PEER)
        passed_on(UDP, bytes(data), ASTERISK)


HEAD = (
    b"INVITE sip:a@h SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.16:5060;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n"
    b"f: <sip:a@h>;tag=1\r\nt: <sip:b@h>\r\ni: c\r\nCSeq: 1 INVITE\r\n"
)
HOSTILE = {
    "vias": b"Via: " + b"SIP/2.0/UDP h," * 570 + b"\r\n",
    "many lines of vias": (b"v: " + b"SIP/2.0/UDP h," * 22 + b"\r\n") * 190,
    "our routes": (b"Route: " + b"<sip:192.0.2.3>," * 19 + b"\r\n") * 190,
    "odd routes of ours": (b"Route: " + b"<sip:@192.0.2.3:5060;x>," * 13 + b"\r\n") * 190,
    "routes behind ours": b"Route: <sip:192.0.2.3>\r\n" + (b"Route: " + b"<a:b>," * 56 + b"\r\n") * 180,
    "routes without an end": (b"Route: " + b"<" * 300 + b"\r\n") * 190,
    "requirements": (b"Proxy-Require: " + b"a," * 150 + b"\r\n") * 190,
    "quotes": b"Route: " + b'"' * 8000 + b"\r\n",
    "a branch": b"Via: SIP/2.0/UDP h;" + b"branch=a;" * 800 + b"\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_message_that_wants_to_be_work_is_little(name: str) -> None:
    data = HEAD + HOSTILE[name] + b"\r\n"
    assert len(data) < 65536
    started = time.process_time()
    passed_on(UDP, data, PEER)
    assert time.process_time() - started < 1
