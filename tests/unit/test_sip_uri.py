"""URIs: byte for byte back, however odd; compared as RFC 3261, 19.1.4 says."""

import random

import pytest

from fastagi.sip.uri import Malformed, Uri

ROUND_TRIP = [
    "sip:alice@example.com",
    "SIP:Alice@EXAMPLE.com:5060;Transport=udp",
    "sips:alice:secret@example.com",
    "sip:alice:@example.com",
    "sip:example.com",
    "sip:[2001:db8::1]:5070;transport=tcp",
    "sip:1000@[::1]",
    "sip:CC_856;76 @;transport=UDP",
    "sip:4003@;user=phone;tgrp=2;trunk-context=a.example",
    "sip:a;b?c=d&e/f,g+h$i@h;p;q=;r=1?x=y;z&w=a@b",
    "sip:%61%40b%3B@h",
    "sip:user@h?Replaces=abc@host",
    "sip:\u017b\u00f3@h",
    "sip:\udcff@h",
    "tel:+4912;phone-context=+49",
    "urn:service:sos",
    "sip:a@h;lr;;x",
    "sip:a@ h : 5060 ;m=BS",
]


@pytest.mark.parametrize("text", ROUND_TRIP)
def test_what_came_goes_out(text: str) -> None:
    assert str(Uri.parse(text)) == text


def test_the_parts() -> None:
    uri = Uri.parse("sip:a;b?c:pw@Host.example:5070;Transport=TCP;lr;x=?subject=one&to=b;c")
    assert (uri.scheme, uri.user, uri.password, uri.host, uri.port) == (
        "sip",
        "a;b?c",
        "pw",
        "Host.example",
        5070,
    )
    assert uri.params == (("Transport", "TCP"), ("lr", None), ("x", ""))
    assert uri.headers == "subject=one&to=b;c"
    assert (uri.param("transport"), uri.param("lr"), uri.param("x"), uri.param("m")) == ("TCP", "", "", None)


def test_a_uri_of_a_queue_with_neither_host_nor_care() -> None:
    uri = Uri.parse("sip:CC_856;76 @;transport=UDP")
    assert (uri.user, uri.host, uri.port, uri.param("transport")) == ("CC_856;76 ", "", None, "UDP")
    assert str(uri.with_param("m", "BS")) == "sip:CC_856;76 @;transport=UDP;m=BS"
    assert str(uri.usable("192.0.2.7")) == "sip:CC_856;76@192.0.2.7;transport=UDP"
    assert str(uri.usable("192.0.2.7", 5090)) == "sip:CC_856;76@192.0.2.7:5090;transport=UDP"
    assert str(uri.usable("2001:db8::7", 5090)) == "sip:CC_856;76@[2001:db8::7]:5090;transport=UDP"


def test_blanks_and_the_last_port() -> None:
    uri = Uri.parse("sip:a@h:65535 ; m = BS ;x")
    assert (uri.host, uri.port, uri.params) == ("h", 65535, (("m", "BS"), ("x", None)))


def test_a_host_that_was_named_is_kept() -> None:
    uri = Uri.parse("sip:a@h;m=BS")
    assert uri.usable("192.0.2.7", 5090) is uri
    assert str(Uri.parse("sip:a @ h : 5060").usable("x")) == "sip:a@h:5060"


def test_other_schemes() -> None:
    tel = Uri.parse("tel:+4912;phone-context=+49")
    assert (tel.scheme, tel.user, tel.param("phone-context"), tel.host) == ("tel", "+4912", "+49", "")
    assert str(tel.with_param("m", "NR")) == "tel:+4912;phone-context=+49;m=NR"
    assert tel.usable("h") is tel
    other = Uri.parse("foo:a;b")
    assert other.user == "a;b"
    assert other.with_param("m", "BS") is other
    assert tel.matches(Uri.parse("TEL:+4912;Phone-Context=+49"))
    assert not tel.matches(Uri.parse("tel:+4913;phone-context=+49"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "sip",
        "sip:",
        "sip:@",
        "sip: @;m=BS",
        ":alice@h",
        "1sip:a@h",
        "sip:a@b@c",
        "sip:a@h:65536",
        "sip:a@h:123456",
        "sip:a@h:-1",
        "sip:a@h:\u0661",
        "sip:a@h\u00e9",
        "sip:a@[::1",
        "sip:a@[zz]",
        "sip:a@h:5060x",
        "sip:a\r\nX: y@h",
        "sip:a@h;x=\n",
        "sip:a@h;x=\x00",
        "<sip:a@h>",
        "sip:a@h>;m=BS",
        "tel:",
        "tel:;x=y",
    ],
)
def test_what_cannot_be_a_uri(text: str) -> None:
    with pytest.raises(Malformed) as error:
        Uri.parse(text)
    assert error.value.status == 400


def test_a_parameter_takes_the_place_of_those_of_its_name() -> None:
    uri = Uri.parse("sip:a;m=1@h;M=NR;x=a%20b;m;lr?s=m=1")
    assert str(uri.with_param("m", "BS")) == "sip:a;m=1@h;x=a%20b;lr;m=BS?s=m=1"
    assert str(uri.with_param("M", "BS")) == "sip:a;m=1@h;x=a%20b;lr;M=BS?s=m=1"
    assert str(uri.without_param("m")) == "sip:a;m=1@h;x=a%20b;lr?s=m=1"
    assert str(uri.with_param("x")) == "sip:a;m=1@h;M=NR;m;lr;x?s=m=1"
    assert str(uri.with_param("x", "a;b=c\r\n")) == "sip:a;m=1@h;M=NR;m;lr;x=a%3Bb%3Dc%0D%0A?s=m=1"


def test_our_own() -> None:
    assert (
        str(Uri.of("cc", "127.0.1.3", 5060, transport="tcp", lr=""))
        == "sip:cc@127.0.1.3:5060;transport=tcp;lr"
    )
    assert str(Uri.of("", "::1")) == "sip:[::1]"
    odd = Uri.of("a@b:c d\r\n<>%\udcff", "h")
    assert str(odd) == "sip:a%40b%3Ac%20d%0D%0A%3C%3E%25%FF@h"
    assert (odd.host, odd.password) == ("h", None)


# The pairs of RFC 3261, 19.1.4, and some that follow from its rules.
SAME = [
    ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
    ("sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on"),
    (
        "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
        "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
    ),
    (
        "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
        "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
    ),
    ("sip:a@h", "SIP:a@H"),
    ("sip:a@h?Subject=x", "sip:a@h?subject=x"),
    ("sip:a@h", "sip:a@h;m=BS"),
    ("sip:a%2db@h", "sip:a-b@h"),
    ("sip:a%3bb@h", "sip:a%3Bb@h"),
    ("sip:CC_856;76 @h", "sip:CC_856;76@h"),
]
OTHER = [
    ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
    ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
    ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
    ("sip:a@h", "sips:a@h"),
    ("sip:a@h", "sip:a:@h"),
    ("sip:a:x@h", "sip:a:y@h"),
    ("sip:a@h", "sip:h"),
    ("sip:a@h;maddr=1", "sip:a@h"),
    ("sip:a@h;ttl=1", "sip:a@h"),
    ("sip:a@h;user=phone", "sip:a@h"),
    ("sip:a@h;method=INVITE", "sip:a@h"),
    ("sip:a;b@h", "sip:a%3Bb@h"),
    ("sip:a%25@h", "sip:a%@h"),
    ("sip:a@h", "tel:a"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_these_mean_the_same(one: str, other: str) -> None:
    assert Uri.parse(one).matches(Uri.parse(other))
    assert Uri.parse(other).matches(Uri.parse(one))


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_these_do_not(one: str, other: str) -> None:
    assert not Uri.parse(one).matches(Uri.parse(other))
    assert not Uri.parse(other).matches(Uri.parse(one))


def test_whatever_comes_is_a_uri_or_malformed() -> None:
    rng = random.Random(3261)
    alphabet = 'sip:a@h;=?&[]:5<>"%\\ \t\r\n,\x00\u00e9\udcff\u0661\u212a'
    good = 0
    for _ in range(30000):
        text = rng.choice(["", "sip:", "sip:a@", "sip:a@h", "tel:"]) + "".join(
            rng.choices(alphabet, k=rng.randrange(9))
        )
        try:
            uri = Uri.parse(text)
        except Malformed:
            continue
        good += 1
        assert str(uri) == text
        assert uri.matches(uri)
        if uri.scheme in ("sip", "sips", "tel"):
            assert uri.with_param("m", "BS").param("m") == "BS"
        assert uri.with_param("m", "BS").without_param("m").param("m") is None
        usable = str(uri.usable("192.0.2.1", 5060))
        assert not set(usable) & set(" \t\r\n\x00<>")
        assert Uri.parse(usable).host or uri.scheme not in ("sip", "sips")
    assert 3000 < good < 27000
