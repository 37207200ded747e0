"""What RFC 6910's bodies and headers say: odd peers are understood, attackers get nothing, nothing raises."""

import random
import time
from xml.etree import ElementTree

import pytest

from fastagi.sip.message import Response, parse
from fastagi.sip.package import (
    EVENT,
    MAX_BODY,
    MAX_MONITORS,
    MAX_URI,
    PIDF_TYPE,
    STATE_TYPE,
    CcState,
    call_info,
    monitors,
    parse_pidf,
    parse_state,
    pidf,
    state_body,
)

QUEUED = CcState(ready=False)
READY = CcState(ready=True)


def test_the_names() -> None:
    assert (EVENT, STATE_TYPE, PIDF_TYPE) == (
        "call-completion",
        "application/call-completion",
        "application/pidf+xml",
    )


# --------------------------------------------------------------------------------------------- the state


@pytest.mark.parametrize(
    ("body", "state"),
    [
        # As chan_sip sends it
        (b"cc-state: queued\r\n", QUEUED),
        (
            b"cc-state: ready\r\ncc-URI: sip:2f708afb7f1ecd19@127.0.1.16:5060\r\n",
            CcState(True, "sip:2f708afb7f1ecd19@127.0.1.16:5060"),
        ),
        # As the RFC has it
        (
            b"cc-state: queued\r\ncc-service-retention: true\r\ncc-URI: sip:17@h;x=y;lr\r\n",
            CcState(False, "sip:17@h;x=y;lr", True),
        ),
        # Names in any case, blanks around the colon, folds, lines nobody knows
        (b"CC-STATE :\t ready \r\n", READY),
        (b"Cc-Uri:sip:a@h\r\nx-new: queued\r\ncc-state:ready", CcState(True, "sip:a@h")),
        (b"cc-state:\r\n ready\r\ncc-URI:\r\n\t  sip:a@h\r\n", CcState(True, "sip:a@h")),
        (b"no colon\r\n:\r\n: x\r\n\r\ncc-state: queued\r\n", QUEUED),
        (b"\r\n cc-state: queued\r\n\r\n", QUEUED),
        (b"cc-state: Queued\r\n", QUEUED),
        (b"cc-state: READY\r\n", READY),
        # Lines that end in LF, a last one that does not end, one that stands there twice
        (b"cc-state: ready\ncc-URI: sip:a@h", CcState(True, "sip:a@h")),
        (b"cc-state: ready\r\ncc-state: ready\r\n", READY),
        # Retention is "true" or nothing
        (b"cc-state: queued\r\ncc-service-retention: TRUE\r\n", CcState(False, retention=True)),
        (b"cc-state: queued\r\ncc-service-retention: false\r\n", QUEUED),
        (b"cc-state: queued\r\ncc-service-retention:\r\n", QUEUED),
        (b"cc-state: queued\r\nx: \xff\xfe\x00\r\n", QUEUED),
        (b"cc-state: queued\r\n\0", QUEUED),
    ],
)
def test_a_state_is_understood(body: bytes, state: CcState) -> None:
    assert parse_state(body) == state


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"cc-service-retention: true\r\n",
        b"state: ready\r\n",
        b"cc-state\r\n",
        b"cc-state:\r\n",
        b"cc-state: suspended\r\n",
        b"cc-state: ready now\r\n",
        b"cc-state: ready;x=y\r\n",
        b"cc-state: ready\0\r\n",
        b"cc-state: re\r\n ady\r\n",
        b"cc-state: ready\r\r\nx: y\r\n",
        b"cc-state: ready\rcc-state: queued\r\n",
        b"cc-state: ready\r\ncc-state: queued\r\n",
        b"cc-state: ready\r\ncc-URI: sip:a@h\r\ncc-uri: sip:b@h\r\n",
        b"\xef\xbb\xbf\xff",
        b"cc-\xc5\xbftate: ready\r\n",
        "cc-state: ready\r\n".encode("utf-16"),
        b"x\r\n\r\n cc-state: ready\r\n",
    ],
)
def test_what_is_no_state(body: bytes) -> None:
    assert parse_state(body) is None


@pytest.mark.parametrize(
    "uri",
    [
        "sip:CC_856;76 @;transport=UDP",
        "sip:4003@;user=phone;tgrp=2;trunk-context=mx.example",
        "sips:a@[2001:db8::1]:5061",
        "SIP:A%20b@H;M=BS?x=y",
        "tel:+4912;phone-context=+49",
        "sip:\u017b\u00f3@h",
        "sip:\udcff@h",
    ],
)
def test_a_cc_uri_is_kept_as_it_is(uri: str) -> None:
    body = b"cc-state: ready\r\ncc-URI:  " + uri.encode("utf-8", "surrogateescape") + b"\t \r\n"
    assert parse_state(body) == CcState(True, uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "4003",
        "@",
        "<sip:a@h>",
        "sip:",
        "sip:a@h:99999",
        "sip:a@h\rX-Evil: 1",
        "sip:a@h\0",
        "sip:a@h\x0bX-Evil: 1",
        "sip:a@h;x=\x85X-Evil: 1",
        "sip:a@h;x=\u2028X-Evil: 1",
        "sip:a@h;x=\x9b2J",
        "sip:" + "a" * MAX_URI + "@h",
    ],
)
def test_a_cc_uri_that_cannot_stand_in_a_line_is_none(uri: str) -> None:
    assert parse_state(f"cc-URI: {uri}\r\ncc-state: ready\r\n".encode()) == READY


def test_the_state_ends_where_its_line_ends() -> None:
    found = parse_state(b"cc-state: ready\r\ncc-URI: sip:a@h\nX-Evil: 1\r\n")
    assert found == CcState(True, "sip:a@h")


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("uri", ["", "sip:tok17@127.0.1.3:5060", "sip:a@h;transport=tcp"])
@pytest.mark.parametrize("retention", [True, False])
def test_what_is_written_is_read(ready: bool, uri: str, retention: bool) -> None:
    assert parse_state(state_body(ready, uri, retention).encode()) == CcState(ready, uri, retention)


def test_a_state_as_it_is_written() -> None:
    assert state_body(True, "sip:a@h", True) == (
        "cc-state: ready\r\ncc-service-retention: true\r\ncc-URI: sip:a@h\r\n"
    )
    assert state_body(False, "", False) == "cc-state: queued\r\n"


@pytest.mark.parametrize("uri", ["sip:a@h\r\nX: y", "sip:a@h\nX: y", "a", "<sip:a@h>", "sip:a@h>\u2029"])
def test_words_that_would_break_a_line_of_ours_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        state_body(True, uri, True)
    with pytest.raises(ValueError, match="cannot stand"):
        call_info(uri, "BS")


# ------------------------------------------------------------------------------------------ the presence

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


def presence(inside: str, attributes: str = 'xmlns="urn:ietf:params:xml:ns:pidf" entity="trunk"') -> bytes:
    return f"{HEAD}<presence {attributes}>\n{inside}\n</presence>\n".encode()


def basic(*words: str) -> str:
    return "\n".join(f"<tuple id='a'><status><basic>{w}</basic></status></tuple>" for w in words)


@pytest.mark.parametrize(
    ("body", "open"),
    [
        # As chan_sip sends it
        (presence('<tuple id="7bfb">\n<status><basic>closed</basic></status>\n</tuple>'), False),
        (presence('<tuple id="05c3">\n<status><basic>open</basic></status>\n</tuple>'), True),
        (presence(basic("closed", "open", "closed")), True),
        (presence(basic("closed", "closed")), False),
        (presence(basic("closed", "away")), False),
        (presence(basic(" \r\n OPEN\t")), True),
        (presence(basic("&#111;p<!-- -->en")), True),
        (presence(basic("<![CDATA[open]]>")), True),
        (presence("<note>\u00fc</note>" + basic("open") + "<dm:person><x/></dm:person>"), True),
        (b"\r\n\xef\xbb\xbf<presence>" + basic("closed").encode() + b"</presence>", False),
        (b"\r\n " + presence(basic("closed")) + b" \r\n", False),
        (presence(basic("closed")).replace(b"UTF-8", b"x-no-such"), False),
        (
            b'<p:presence xmlns:p="urn:ietf:params:xml:ns:pidf"><p:tuple><p:status><p:basic>open</p:basic>'
            b"</p:status></p:tuple></p:presence>",
            True,
        ),
        # A prefix nobody declared
        (b"<q:presence><tuple><r:status><basic>open</basic></r:status></tuple></q:presence>", True),
    ],
)
def test_a_presence_is_understood(body: bytes, open: bool) -> None:
    assert parse_pidf(body) is open


LAUGHS = "".join(f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 10))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"open",
        b"<presence/>",
        presence(""),
        presence("<tuple id='a'><status/></tuple>"),
        presence("<tuple id='a'><status><basic/></status></tuple>"),
        presence(basic("away")),
        presence("<basic>open</basic>"),
        presence("<note><basic>open</basic></note>"),
        presence("<tuple><status><x><basic>open</basic></x></status></tuple>"),
        presence("<tuple><status><basic><b>open</b></basic></status></tuple>"),
        presence(basic("open"))[:-5],
        presence(basic("open")) + b"<presence/>",
        presence(basic("open")) + b"\0",
        presence(basic("op\0en")),
        presence(basic("open") + "<note>\0</note>"),
        presence(basic("open")).replace(b"trunk", b"\xff"),
        presence(basic("&open;")),
        # A DTD, with and without what it is there for
        b"<!DOCTYPE presence>" + presence(basic("open")).removeprefix(HEAD.encode()),
        b"<!DOCTYPE presence SYSTEM 'http://192.0.2.1/x.dtd'>" + presence(basic("open"))[len(HEAD) :],
        b"<!DOCTYPE x [<!ENTITY l0 'open'>" + LAUGHS.encode() + b"]>" + presence(basic("&l9;"))[len(HEAD) :],
        b"<!DOCTYPE x [<!ENTITY l 'open'>]>" + presence(basic("&l;"))[len(HEAD) :],
        b"<!DOCTYPE x [<!ENTITY l SYSTEM 'file:///etc/hostname'>]>" + presence(basic("&l;"))[len(HEAD) :],
        b"<!DOCTYPE x [<!ENTITY % p SYSTEM 'file:///etc/hostname'> %p;]>"
        + presence(basic("open"))[len(HEAD) :],
        presence(basic("open") + " " * MAX_BODY),
    ],
)
def test_what_is_no_presence(body: bytes) -> None:
    assert parse_pidf(body) is None


@pytest.mark.parametrize(
    ("entity", "told"),
    [
        ("sip:1000@127.0.1.3", "sip:1000@127.0.1.3"),
        ("sip:a@h?x=1&y='<\">", "sip:a@h?x=1&y='<\">"),
        ("sip:%41 b@h", "sip:%41 b@h"),
        ("sip:\u017c\udcff\0\r\n@h", "sip:%C5%BC%FF%00%0D%0A@h"),
    ],
)
@pytest.mark.parametrize("open", [True, False])
def test_a_presence_that_is_written_is_read(entity: str, told: str, open: bool) -> None:
    text = pidf(entity, open)
    assert parse_pidf(text.encode("ascii")) is open
    assert ElementTree.fromstring(text).get("entity") == told


# ----------------------------------------------------------------------------------------------- Call-Info


def busy(*call_infos: str) -> Response:
    lines = [
        "SIP/2.0 486 Busy here",
        "Via: SIP/2.0/UDP 127.0.1.22:5060;branch=z9hG4bKPj4fc2",
        'From: "Alice" <sip:1000@127.0.1.22>;tag=543964af',
        "To: <sip:8000@127.0.1.16>;tag=as778fa93c",
        "Call-ID: f0ce8702",
        "CSeq: 23976 INVITE",
        *(f"Call-Info: {value}" for value in call_infos),
        "",
        "",
    ]
    found = parse("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    assert isinstance(found, Response)
    return found


@pytest.mark.parametrize(
    ("value", "monitor"),
    [
        ("<sip:04dd@127.0.1.16:5060>;purpose=call-completion;m=NR", ("sip:04dd@127.0.1.16:5060", "NR")),
        ("<sip:04dd@h>;m=bs;purpose=Call-Completion", ("sip:04dd@h", "BS")),
        ('<sip:04dd@h> ; purpose = "call-completion" ; m = NL', ("sip:04dd@h", "NL")),
        ("<sip:04dd@h>;purpose=call-completion", ("sip:04dd@h", "")),
        ("<sip:04dd@h>;purpose=call-completion;m", ("sip:04dd@h", "")),
        ("<sip:04dd@h>;purpose=call-completion;m=XY-1", ("sip:04dd@h", "XY-1")),
        ('<sip:04dd@h>;purpose=call-completion;m="x;y=\u00e4"', ("sip:04dd@h", "")),
        ("<sip:CC_856;76 @;transport=UDP>;purpose=call-completion", ("sip:CC_856;76 @;transport=UDP", "")),
        # As RFC 6910, 7.1 prints it, with parameters of both
        ("sip:4003@h;purpose=call-completion;m=NR", ("sip:4003@h", "NR")),
        (
            "sip:4003@;user=phone;tgrp=2;m=BS;trunk-context=mx.example;purpose=call-completion",
            ("sip:4003@;user=phone;tgrp=2;trunk-context=mx.example", "BS"),
        ),
    ],
)
def test_a_monitor_is_found(value: str, monitor: tuple[str, str]) -> None:
    assert monitors(busy(value)) == (monitor,)


@pytest.mark.parametrize(
    "value",
    [
        "<http://h/alice.png>;purpose=icon",
        "<sip:a@h>",
        "<sip:call-completion@h>;m=BS",
        "<sip:a@h>;purpose=x-call-completion",
        "<sip:a@h:99999>;purpose=call-completion",
        "<sip:a@h\u2028>;purpose=call-completion",
        "<sip:a@h\u0085>;purpose=call-completion",
        "<sip:a@h\0>;purpose=call-completion",
        "<sip:a@h;purpose=call-completion",
        ";purpose=call-completion",
        "<>;purpose=call-completion",
        f"<sip:{'a' * MAX_URI}@h>;purpose=call-completion",
        "<sip:a@h>;purpose=call-completion" + ";x" * 2000,
    ],
)
def test_what_is_no_monitor(value: str) -> None:
    assert monitors(busy(value)) == ()


def test_several_monitors_keep_their_order_and_their_latest_mode() -> None:
    both = "<sip:a@h>;purpose=call-completion;m=NR, <sip:b@h>;purpose=call-completion"
    icon = "<http://h/a,b.png>;purpose=icon"
    later = "<sip:a@h>;m=BS;purpose=call-completion,<sip:a@h>;purpose=call-completion"
    assert monitors(busy()) == ()
    assert monitors(busy(icon, both, later)) == (("sip:a@h", "BS"), ("sip:b@h", ""))


def test_monitors_are_bounded() -> None:
    many = [f"<sip:{n}@h>;purpose=call-completion" for n in range(50)]
    assert monitors(busy(*many)) == tuple((f"sip:{n}@h", "") for n in range(MAX_MONITORS))


@pytest.mark.parametrize("m", ["BS", "NR", "NL", "XY", ""])
def test_an_offer_that_is_written_is_read(m: str) -> None:
    assert monitors(busy(call_info("sip:tok17@h;x=y", m))) == (("sip:tok17@h;x=y", m),)


def test_an_offer_as_it_is_written() -> None:
    assert call_info("sip:tok17@h", "BS") == "<sip:tok17@h>;purpose=call-completion;m=BS"
    assert call_info("sip:tok17@h", "") == "<sip:tok17@h>;purpose=call-completion"
    with pytest.raises(ValueError, match="cannot stand"):
        call_info("sip:tok17@h", "BS\r\nX: y")


# -------------------------------------------------------------------------------------------- the hostile


@pytest.mark.parametrize(
    "body",
    [
        b"\0" * 65536,
        b"\xff" * 65536,
        b"a" * 65536,
        b"cc-state: ready\r\n" * 10_000,
        b"cc-state: ready" + b"\r\n " * 20_000,
        b"<" * 65536,
        b"<a>" * 20_000,
        b"<!DOCTYPE " * 6_000,
    ],
)
def test_a_body_of_many_pages_is_not_read(body: bytes) -> None:
    assert parse_state(body) is None
    assert parse_pidf(body) is None


@pytest.mark.parametrize(
    "piece",
    [b"\r\n", b"\n", b"\r", b" ", b":", b"a:\r\n", b"\r\n ", b"cc-URI: ", b"sip:", b"\0", b"\xff", b"\r\n\t:"]
    + [b"<a>", b"<a/>", b"&#32;", b"<presence><tuple><status><basic>", b"<![CDATA[", b"<!--", b"<?x ?>"],
)
def test_what_repeats_is_read_at_once(piece: bytes) -> None:
    times = []
    for _ in range(3):
        body = (piece * MAX_BODY)[: MAX_BODY - 40]
        start = time.perf_counter()
        parse_state(b"cc-state: ready\r\ncc-URI: " + body)
        parse_state(body)
        parse_pidf(body)
        parse_pidf(b"<presence>" + body)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_whatever_comes_nothing_raises() -> None:
    chance = random.Random(6910)
    pieces = [
        *(b"cc-state", b"cc-URI", b"cc-service-retention", b":", b" ", b"\t", b"\r\n", b"\r", b"\n", b"\0"),
        *(
            b"ready",
            b"queued",
            b"true",
            b"sip:",
            b"a@h",
            b";",
            b"?",
            b"@",
            b"%",
            b"[::1]",
            b":70000",
            b"\xff",
        ),
        *(b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"<presence", b"<tuple>", b"<status>", b"<basic>"),
        *(
            b"open",
            b"closed",
            b"</basic>",
            b"</",
            b">",
            b"<",
            b"/>",
            b" xmlns='",
            b"'",
            b'"',
            b"<?xml ",
            b"?>",
        ),
        *(b"<!DOCTYPE x [", b"<!ENTITY a 'b'>", b"]>", b"&a;", b"&#0;", b"&#x110000;", b"encoding='rot13'"),
        *(b",", b"purpose=call-completion", b"m=BS", b"m=", b"\\", b"="),
    ]
    for _ in range(20_000):
        body = b"".join(chance.choices(pieces, k=chance.randrange(1, 14)))
        state = parse_state(body)
        assert state is None or not set(state.uri) & set("\r\n\0<>\x85\u2028")
        assert parse_pidf(body) in (True, False, None)
        line = body.decode("utf-8", "surrogateescape").replace("\r", "").replace("\n", "").strip(" \t")
        for uri, m in monitors(busy(line)):
            assert call_info(uri, m)
