"""Whose address is whose: over UDP and TCP, IPv4 and IPv6, in whatever spelling."""

from dataclasses import FrozenInstanceError, replace
from ipaddress import ip_network

import pytest

from fastagi.sip.trunk import Address, Side, Trunk

US = Address("192.0.2.3", 5060)
UDP = Trunk(
    name="mxone",
    transport="udp",
    listen=US,
    peer=(Address("192.0.2.16", 5060), Address("192.0.2.17", 5090)),
    asterisk=Address("192.0.2.22", 5062),
    endpoint="trunk-mxone",
    towards_peer=Address("198.51.100.3", 5070),
    towards_asterisk=US,
    allow=(ip_network("203.0.113.0/28"), ip_network("2001:db8:1::/48")),
)
TCP = replace(UDP, transport="tcp")
SIX = replace(
    UDP,
    listen=Address("2001:db8::3", 5060),
    peer=(Address("2001:db8::16", 5060), Address("2001:DB8::17", 5090)),
    asterisk=Address("2001:db8::22", 5062),
    towards_peer=Address("2001:db8::3", 5060),
    towards_asterisk=Address("2001:db8::3", 5060),
)
PEER, ASTERISK = Side.PEER, Side.ASTERISK


@pytest.mark.parametrize(
    ("trunk", "host", "port", "side"),
    [
        (UDP, "192.0.2.16", 5060, PEER),
        (UDP, "192.0.2.17", 5090, PEER),
        (UDP, "192.0.2.17", 5060, None),
        (UDP, "192.0.2.16", 5061, None),
        (UDP, "192.0.2.22", 5062, ASTERISK),
        (UDP, "192.0.2.22", 5060, None),
        (UDP, "192.0.2.99", 5060, None),
        (UDP, "203.0.113.1", 1024, PEER),
        (UDP, "203.0.113.16", 5060, None),
        (UDP, "2001:db8:1::7", 5060, PEER),
        (UDP, "2001:db8:2::7", 5060, None),
        (UDP, "::ffff:192.0.2.16", 5060, PEER),
        (UDP, "::FFFF:192.0.2.22", 5062, ASTERISK),
        (UDP, "::ffff:203.0.113.1", 9, PEER),
        (TCP, "192.0.2.16", 49152, PEER),
        (TCP, "192.0.2.17", 5060, PEER),
        (TCP, "192.0.2.22", 40001, ASTERISK),
        (TCP, "::ffff:192.0.2.22", 40001, ASTERISK),
        (TCP, "192.0.2.99", 5060, None),
        (TCP, "203.0.113.1", 1024, PEER),
        (SIX, "2001:db8::16", 5060, PEER),
        (SIX, "2001:db8:0:0::17", 5090, PEER),
        (SIX, "2001:db8::17", 5090, PEER),
        (SIX, "2001:DB8::22", 5062, ASTERISK),
        (SIX, "2001:db8::22", 5060, None),
        (SIX, "2001:db8:1::1", 77, PEER),
        (SIX, "203.0.113.1", 77, PEER),
        (UDP, "pbx.example", 5060, None),
        (UDP, "", 5060, None),
        (UDP, "[192.0.2.16]", 5060, None),
        (UDP, "192.0.2.016", 5060, None),
        (UDP, "192.0.2.16\udcff", 5060, None),
        (UDP, "fe80::1%eth0", 5060, None),
    ],
)
def test_whose_an_address_is(trunk: Trunk, host: str, port: int, side: Side | None) -> None:
    address = Address(host, port)
    assert trunk.side(address) is side
    assert [s for s in Side if trunk.permitted(address, s)] == ([side] if side else [])


def test_an_address_of_one_link() -> None:
    trunk = replace(SIX, peer=(Address("fe80::16%eth0", 5060),))
    assert trunk.side(Address("fe80::16%eth0", 5060)) is PEER
    assert trunk.side(Address("fe80::16%eth1", 5060)) is None


@pytest.mark.parametrize("ours", [US, Address("::ffff:192.0.2.3", 5060)])
def test_we_are_nobody_else_though_allow_may_cover_us(ours: Address) -> None:
    """Or a forged answer could go round."""
    trunk = replace(UDP, allow=(ip_network("0.0.0.0/0"),))
    assert trunk.side(ours) is None
    assert trunk.side(Address("192.0.2.3", 5061)) is PEER
    assert trunk.side(trunk.asterisk) is ASTERISK


def test_asterisk_beside_the_peer_on_one_machine() -> None:
    trunk = replace(UDP, peer=(Address("192.0.2.22", 5090),), transport="tcp")
    assert trunk.side(Address("192.0.2.22", 5090)) is PEER
    assert trunk.side(Address("192.0.2.22", 5062)) is ASTERISK
    assert trunk.side(Address("192.0.2.22", 49152)) is ASTERISK


@pytest.mark.parametrize(
    ("trunk", "host", "port", "ours"),
    [
        (UDP, "192.0.2.3", 5060, True),
        (UDP, "192.0.2.3", None, True),
        (UDP, "198.51.100.3", 5070, True),
        (UDP, "198.51.100.3", None, False),
        (UDP, "192.0.2.3", 5061, False),
        (UDP, "192.0.2.16", 5060, False),
        (UDP, "pbx.example", None, False),
        (UDP, "", None, False),
        (replace(UDP, listen=Address("192.0.2.4", 5060)), "192.0.2.4", 5060, True),
        (SIX, "[2001:db8::3]", 5060, True),
        (SIX, "[2001:DB8:0::3]", None, True),
        (SIX, "2001:db8::3", 5060, True),
        (SIX, "[2001:db8::4]", 5060, False),
        (SIX, "[::::]", 5060, False),
    ],
)
def test_what_names_us(trunk: Trunk, host: str, port: int | None, ours: bool) -> None:
    assert trunk.is_us(host, port) is ours


@pytest.mark.parametrize(
    ("trunk", "uri", "host"),
    [
        (UDP, "sip:8000@192.0.2.16", "192.0.2.16"),
        (UDP, "sip:8000@192.0.2.17:5090;m=BS", "192.0.2.17"),
        (UDP, "sip:8000@192.0.2.17", "192.0.2.17"),
        (UDP, "sip:8000@192.0.2.17:5066", "192.0.2.17"),
        (UDP, "sip:192.0.2.17:5090", "192.0.2.17"),
        (UDP, "sip:8000@203.0.113.1", "192.0.2.16"),
        (UDP, "sip:8000@evil.example:5090", "192.0.2.16"),
        (UDP, "sip:CC_856;76 @;transport=UDP", "192.0.2.16"),
        (UDP, "tel:+4912", "192.0.2.16"),
        (UDP, "no uri", "192.0.2.16"),
        (UDP, "", "192.0.2.16"),
        (UDP, "sip:a@h:99999", "192.0.2.16"),
        (TCP, "sip:8000@192.0.2.17:5090", "192.0.2.17"),
        (SIX, "sip:8000@[2001:db8:0::17]:5090", "2001:DB8::17"),
        (SIX, "sip:8000@[2001:db8::99]:5090", "2001:db8::16"),
        (replace(UDP, peer=UDP.peer[1:]), "sip:8000@192.0.2.16", "192.0.2.17"),
    ],
)
def test_the_peer_of_a_uri_is_always_one_of_ours(trunk: Trunk, uri: str, host: str) -> None:
    found = trunk.peer_for(uri)
    assert found.host == host
    assert found in trunk.peer


def test_two_ports_of_one_peer() -> None:
    two = Address("192.0.2.16", 5060), Address("192.0.2.16", 5090)
    trunk = replace(UDP, peer=two)
    assert [trunk.peer_for(f"sip:a@192.0.2.16{port}") for port in ("", ":5090", ":6000")] == [*two, two[0]]
    assert replace(trunk, peer=two[::-1]).peer_for("sip:a@192.0.2.16") == two[0]


def test_what_each_side_knows_us_by() -> None:
    assert [str(UDP.towards(side)) for side in Side] == ["198.51.100.3:5070", "192.0.2.3:5060"]
    assert str(SIX.towards(PEER)) == "[2001:db8::3]:5060"
    assert [side.other for side in Side] == [ASTERISK, PEER]


def test_a_trunk_is_a_value() -> None:
    assert replace(UDP, name="mxone") == UDP != TCP
    assert len({UDP, TCP, replace(TCP)}) == 2
    with pytest.raises(FrozenInstanceError):
        UDP.name = "x"  # type: ignore[misc]
