"""SIP messages: what came goes out, what is odd but valid is understood, what is broken is named."""

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from twisted.protocols import sip

from fastagi.sip.message import (
    MAX_HEADERS,
    MAX_LINE,
    MAX_MESSAGE,
    REASONS,
    BadRequest,
    CallInfo,
    Malformed,
    NameAddr,
    Request,
    Response,
    Via,
    is_keep_alive,
    parse,
)

witness: Any = sip  # has no types


def wire(text: str, body: bytes = b"") -> bytes:
    """Lines of a test as a message; blanks at their ends count."""
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape") + b"\r\n" + body


# As chan_sip of Asterisk 16 sends it
SUBSCRIBE = wire("""\
SUBSCRIBE sip:tok5dcbaf5e@127.0.1.3:5060 SIP/2.0
Via: SIP/2.0/UDP 127.0.1.16:5060;branch=z9hG4bK754503f7;rport
Max-Forwards: 70
From: "asterisk" <sip:asterisk@127.0.1.16>;tag=as4791813f
To: <sip:tok5dcbaf5e@127.0.1.3:5060>
Contact: <sip:asterisk@127.0.1.16:5060>
Call-ID: 33135e6568381fdd0c7d7591494869b3@127.0.1.16:5060
CSeq: 102 SUBSCRIBE
User-Agent: Asterisk PBX 16.28.0
Date: Sat, 21 Nov 2026 21:24:00 GMT
Event: call-completion
Accept: application/call-completion
Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, SUBSCRIBE, NOTIFY, INFO, PUBLISH, MESSAGE
Supported: replaces, timer
Expires: 4800
Content-Length: 0
""")
NOTIFY = wire(
    """\
NOTIFY sip:cc@127.0.1.3:5060 SIP/2.0
Via: SIP/2.0/TCP 127.0.1.16:5060;branch=z9hG4bK385c382b
From: <sip:04dd@127.0.1.16:5060>;tag=as4be49ec0
To: <sip:trunk@127.0.1.3>;tag=467e2c4f
Call-ID: ccsub-55ba3012db
CSeq: 103 NOTIFY
Contact: <sip:04dd@127.0.1.16:5060>
Event: call-completion
Subscription-State: active;expires=3600
Content-Type: application/call-completion
Content-Length: 51
""",
    b"cc-state: ready\r\ncc-URI: sip:CC_856;76@127.0.1.16\r\n",
)
BUSY = wire("""\
SIP/2.0 486 Busy here
Via: SIP/2.0/UDP 127.0.1.3:5060;branch=z9hG4bKcc950356a5;received=127.0.1.3
Via: SIP/2.0/UDP 127.0.1.22:5060;rport=5060;received=127.0.1.22;branch=z9hG4bKPj4fc2
From: "Alice" <sip:1000@127.0.1.22>;tag=543964af
To: <sip:8000@127.0.1.16>;tag=as778fa93c
Call-ID: f0ce8702-373d-4ceb-bf35-82d86ee0397b
CSeq: 23976 INVITE
Call-Info: <sip:04dd@127.0.1.16:5060>;purpose=call-completion;m=NR
Content-Length: 0
""")

# Odd in every way that RFC 4475 describes as valid: folds, compact and capital names, blanks around marks,
# escapes, several values in a line, unknown headers with unusual values, bytes that are not UTF-8.
TORTURE = wire(
    """\
!odd.Method~* sip:vivekg@chair-dnrc.example.com;unknownparam?s=%20x SIP/2.0
TO :
 sip:vivekg@chair-dnrc.example.com ;   tag    = 1918181833n
from   : "J Rosenberg \\\\\\"" <sip:jdrosen@example.com>
  ;
  tag = 98asjd8
mAx-FoRwArDs: 0068
Call-ID: torture.0ha0isndaksdj2193423r542w35
Content-Length   : 4
cseq: 0009
  !odd.Method~*
Via  : SIP  /   2.0
 /UDP
    192.0.2.2;branch=390skdjuw , SIP/2.0/TCP [2001:db8::9]:5061 ;branch=z9hG4bK30239
s :
NewFangledHeader:   newfangled value
 continued newfangled value
UnknownHeaderWithUnusualValue: ;;,,;;,;
Content-Type: application/x
Route:
 <sip:services.example.com;lr;unknownwith=value;unknown-no-value>,<sip:b;lr>
v:  SIP  / 2.0  / TCP     spindle.example.com   ;
  branch  =   z9hG4bK9ikj8  ,
 SIP  /    2.0   / UDP  192.168.255.111   ; branch=
 z9hG4bK30239
m:"Quoted string \\"\\"" <sip:jdrosen@example.com> ; newparam = newvalue ;
  secondparam ; q = 0.33, <sip:b@h>,sip:c;d@h;e=f
Subject: \udcff\udcfe B\u00e9la
Extension: \\\x00\x07\x7f
Empty:
""",
    b"\x00\xff\r\n",
)


def request(
    first: str = "SUBSCRIBE sip:a@h SIP/2.0", drop: str = "", body: bytes = b"", **headers: Any
) -> bytes:
    """A good request, with these headers (text or list of texts) instead of its own and without ``drop``."""
    usual: dict[str, str | list[str]] = {
        "Via": "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
        "From": "<sip:b@h>;tag=1",
        "To": "<sip:a@h>",
        "Call-ID": "1@h",
        "CSeq": f"1 {first.partition(' ')[0]}",
        "Content-Length": str(len(body)),
    }
    usual.pop(drop, None)
    usual.update({n.replace("_", "-"): v for n, v in headers.items()})
    lines = [f"{n}: {v}" for n, vs in usual.items() for v in ([vs] if isinstance(vs, str) else vs)]
    return "\r\n".join([first, *lines, "", ""]).encode("utf-8", "surrogateescape") + body


def with_header(name: str, value: str | list[str]) -> bytes:
    headers: dict[str, Any] = {name: value}
    return request(**headers)


def fault(data: bytes) -> Malformed:
    with pytest.raises(Malformed) as error:
        parse(data)
    sentence = str(error.value)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    return error.value


def good(data: bytes) -> Request:
    message = parse(data)
    assert isinstance(message, Request)
    return message


# -- what came goes out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [SUBSCRIBE, NOTIFY, BUSY, TORTURE], ids=["subscribe", "notify", "486", "torture"]
)
def test_what_came_goes_out(data: bytes) -> None:
    assert parse(data).to_bytes() == data
    assert parse(data) == parse(data)


def test_a_change_leaves_all_other_lines() -> None:
    lines = TORTURE.split(b"\r\n")
    changed = good(TORTURE).prepended(("Via", "SIP/2.0/UDP h;branch=z9hG4bK2")).with_headers(("X", "y"))
    assert changed.to_bytes().split(b"\r\n") == [
        lines[0],
        b"Via: SIP/2.0/UDP h;branch=z9hG4bK2",
        *lines[1:-3],
        b"X: y",
        *lines[-3:],
    ]


def test_content_length_is_made_right() -> None:
    message = good(request(body=b"abc"))
    assert b"Content-Length: 3\r\n" in message.to_bytes()
    longer = message.with_body(b"12345678901", "text/plain")
    assert longer.to_bytes().endswith(b"Content-Length: 11\r\nContent-Type: text/plain\r\n\r\n12345678901")
    assert longer.content_type == "text/plain"
    none = longer.with_body(b"", "")
    assert none.to_bytes().endswith(b"Content-Length: 0\r\n\r\n")
    assert none.get("content-type") is None
    assert (
        good(request(drop="Content-Length", body=b"ab"))
        .to_bytes()
        .endswith(b"\r\nContent-Length: 2\r\n\r\nab")
    )
    compact = good(request(drop="Content-Length", l="1", body=b"ab"))
    assert compact.body == b"a"
    assert compact.with_body(b"abc", "x/y").to_bytes().endswith(b"\r\nl: 3\r\nContent-Type: x/y\r\n\r\nabc")
    twice = Request("A", "sip:h", (("l", "7"), ("X", "y"), ("Content-Length", "8")), b"ab")
    assert twice.to_bytes() == b"A sip:h SIP/2.0\r\nl: 2\r\nX: y\r\n\r\nab"


def test_what_is_behind_the_body_of_a_datagram_is_ignored() -> None:
    message = good(request(body=b"abc") + b"INVITE sip:x SIP/2.0\r\n")
    assert message.body == b"abc"


def test_a_line_end_of_ours_in_a_header_is_a_fault_of_ours() -> None:
    message = good(TORTURE)
    for changed in (
        message.appended(("X", "a\r\nEvil: b")),
        message.appended(("X", "a\n b")),
        message.appended(("X\r", "a")),
        message.with_uri("sip:a\r\n@h"),
        message.response(200, "a\rb"),
    ):
        with pytest.raises(ValueError, match="CR or LF"):
            changed.to_bytes()


def test_messages_are_values() -> None:
    message = good(SUBSCRIBE)
    with pytest.raises(AttributeError):
        message.method = "X"  # type: ignore[misc]
    assert message.with_headers(("Expires", "1")) != message
    assert message.expires == 4800
    assert len({message, parse(SUBSCRIBE), message.without("Expires")}) == 2
    assert "Expires" in repr(message)


# -- reading -----------------------------------------------------------------------------------------------


def test_the_fields_of_a_subscribe() -> None:
    message = good(SUBSCRIBE)
    assert (message.method, message.uri, message.body) == ("SUBSCRIBE", "sip:tok5dcbaf5e@127.0.1.3:5060", b"")
    assert (message.via.transport, message.via.host, message.via.port) == ("UDP", "127.0.1.16", 5060)
    assert (message.via.branch, message.via.received, message.via.rport) == ("z9hG4bK754503f7", None, None)
    assert message.via.param("rport") == ""
    assert (message.from_.display, message.from_.uri) == ("asterisk", "sip:asterisk@127.0.1.16")
    assert (message.from_.tag, message.to.tag) == ("as4791813f", "")
    assert message.call_id == "33135e6568381fdd0c7d7591494869b3@127.0.1.16:5060"
    assert message.cseq == (102, "SUBSCRIBE")
    assert message.contact is not None
    assert message.contact.uri == "sip:asterisk@127.0.1.16:5060"
    assert (message.max_forwards, message.expires, message.content_length) == (70, 4800, 0)
    assert message.event is not None
    assert (message.event.package, message.event.id, message.event.params) == ("call-completion", None, ())
    assert message.all("ALLOW")[:2] == ["INVITE", "ACK"]
    assert message.all("date") == ["Sat, 21 Nov 2026 21:24:00 GMT"]
    assert message.get("User-agent") == "Asterisk PBX 16.28.0"
    assert (message.subscription_state, message.all("call-info"), message.content_type) == (None, [], "")


def test_the_fields_of_a_notify() -> None:
    message = good(NOTIFY)
    state = message.subscription_state
    assert state is not None
    assert (state.state, state.expires, state.reason, state.retry_after) == ("active", 3600, "", None)
    assert message.content_type == "application/call-completion"
    assert message.body == b"cc-state: ready\r\ncc-URI: sip:CC_856;76@127.0.1.16\r\n"
    assert message.to.tag == "467e2c4f"


def test_the_fields_of_a_response() -> None:
    message = parse(BUSY)
    assert isinstance(message, Response)
    assert (message.status, message.reason) == (486, "Busy here")
    assert message.via.received == "127.0.1.3"
    second = Via.parse(message.all("v")[1])
    assert (second.branch, second.rport) == ("z9hG4bKPj4fc2", 5060)
    (info,) = map(CallInfo.parse, message.all("call-info"))
    assert (info.uri, info.purpose, info.m) == ("sip:04dd@127.0.1.16:5060", "call-completion", "NR")


def test_the_fields_of_torture() -> None:
    message = good(TORTURE)
    assert message.method == "!odd.Method~*"
    assert message.uri == "sip:vivekg@chair-dnrc.example.com;unknownparam?s=%20x"
    assert (message.to.uri, message.to.tag) == ("sip:vivekg@chair-dnrc.example.com", "1918181833n")
    assert (message.from_.display, message.from_.tag) == ('J Rosenberg \\"', "98asjd8")
    assert message.cseq == (9, "!odd.Method~*")
    assert message.max_forwards == 68
    assert (message.via.transport, message.via.host, message.via.port) == ("UDP", "192.0.2.2", None)
    vias = [Via.parse(v) for v in message.all("Via")]
    assert [(v.transport, v.host, v.port, v.branch) for v in vias] == [
        ("UDP", "192.0.2.2", None, "390skdjuw"),
        ("TCP", "[2001:db8::9]", 5061, "z9hG4bK30239"),
        ("TCP", "spindle.example.com", None, "z9hG4bK9ikj8"),
        ("UDP", "192.168.255.111", None, "z9hG4bK30239"),
    ]
    assert message.get("newfangledheader") == "newfangled value continued newfangled value"
    assert message.get("unknownheaderwithunusualvalue") == ";;,,;;,;"
    assert message.get("subject") == ""
    assert message.all("Subject") == ["", "\udcff\udcfe B\u00e9la"]
    assert message.get("Extension") == "\\\x00\x07\x7f"
    assert message.all("Route") == [
        "<sip:services.example.com;lr;unknownwith=value;unknown-no-value>",
        "<sip:b;lr>",
    ]
    contacts = [NameAddr.parse(c) for c in message.all("Contact")]
    assert [(c.display, c.uri) for c in contacts] == [
        ('Quoted string ""', "sip:jdrosen@example.com"),
        ("", "sip:b@h"),
        ("", "sip:c;d@h"),
    ]
    assert contacts[0].params == (("newparam", "newvalue"), ("secondparam", None), ("q", "0.33"))
    assert (contacts[0].param("secondparam"), contacts[0].param("other")) == ("", None)
    assert contacts[2].params == (("e", "f"),)
    assert message.body == b"\x00\xff\r\n"


COMPACT = {
    **{"a": "Accept-Contact", "b": "Referred-By", "c": "Content-Type", "d": "Request-Disposition"},
    **{"e": "Content-Encoding", "f": "From", "i": "Call-ID", "j": "Reject-Contact", "k": "Supported"},
    **{"l": "Content-Length", "m": "Contact", "o": "Event", "r": "Refer-To", "s": "Subject", "t": "To"},
    **{"u": "Allow-Events", "v": "Via", "x": "Session-Expires", "y": "Identity", "n": "Identity-Info"},
}


@pytest.mark.parametrize(("short", "long"), COMPACT.items())
def test_compact_names_both_ways(short: str, long: str) -> None:
    for written in (short, short.upper(), long, long.lower(), long.swapcase()):
        message = Request("X", "sip:h", ((written, "one"),))
        for asked in (short, short.upper(), long, long.upper()):
            assert message.get(asked) == "one"
            assert message.all(asked) == ["one"]
            assert message.without(asked).headers == ()
            assert message.with_headers((asked, "two")).headers == ((asked, "two"),)


@pytest.mark.parametrize(
    ("name", "value", "values"),
    [
        ("Allow-Events", "presence , call-completion,,dialog", ["presence", "call-completion", "dialog"]),
        ("Route", "<sip:a,b@h;lr>,<sip:c>", ["<sip:a,b@h;lr>", "<sip:c>"]),
        ("Contact", '"a, \\", b" <sip:a@h>, <sip:b>', ['"a, \\", b" <sip:a@h>', "<sip:b>"]),
        ("Contact", '"<" <sip:a@h>,sip:b', ['"<" <sip:a@h>', "sip:b"]),
        ("Contact", '<sip:a@h>;x="a,b",<sip:b>', ['<sip:a@h>;x="a,b"', "<sip:b>"]),
        ("Contact", "*", ["*"]),
        ("Call-Info", "<sip:a>;m=BS, <http://b/>;purpose=icon", ["<sip:a>;m=BS", "<http://b/>;purpose=icon"]),
        ("Contact", '"open, <sip:a>', ['"open, <sip:a>']),
        ("Supported", "", []),
        ("Supported", " , ,", []),
        ("Subject", "one, two", ["one, two"]),
        ("Date", "Sat, 21 Nov", ["Sat, 21 Nov"]),
        ("WWW-Authenticate", 'Digest realm="a", nonce="b"', ['Digest realm="a", nonce="b"']),
        ("From", "Bell, A. <sip:a>", ["Bell, A. <sip:a>"]),
        ("X-Foo", "a, b", ["a, b"]),
        ("Subscription-State", "active, x", ["active, x"]),
    ],
)
def test_commas(name: str, value: str, values: list[str]) -> None:
    message = Request("X", "sip:h", ((name, value), ("Other", "z"), (name.upper(), value)))
    assert message.all(name) == values * 2
    assert message.get(name) == value
    assert Request("X", "sip:h").all(name) == []
    assert Request("X", "sip:h").get(name, "none") == "none"


@pytest.mark.parametrize(
    ("text", "display", "uri", "params"),
    [
        ("<sip:a@h>", "", "sip:a@h", ()),
        ("Alice <sip:a@h>;tag=1", "Alice", "sip:a@h", (("tag", "1"),)),
        ("Alice von B <sip:a@h>", "Alice von B", "sip:a@h", ()),
        ('"A \\"B\\" \\\\" <sip:a@h>', 'A "B" \\', "sip:a@h", ()),
        ('"a<b>;c"<sip:a@h>;x', "a<b>;c", "sip:a@h", (("x", None),)),
        ('""<sip:a@h>', "", "sip:a@h", ()),
        ("sip:a@h;tag=1", "", "sip:a@h", (("tag", "1"),)),
        ("sip:a;b@h;tag=1", "", "sip:a;b@h", (("tag", "1"),)),
        ("<sip:a;b?c@h;lr?d=e>;x=y", "", "sip:a;b?c@h;lr?d=e", (("x", "y"),)),
        ("< sip:CC_856;76 @;transport=UDP >;m=BS", "", "sip:CC_856;76 @;transport=UDP", (("m", "BS"),)),
        ("<tel:+49;phone-context=h>;tag=x;;y;", "", "tel:+49;phone-context=h", (("tag", "x"), ("y", None))),
        (
            'sip:a@h;+sip.instance="<urn:uuid:1@2>";tag=3',
            "",
            "sip:a@h",
            (("+sip.instance", '"<urn:uuid:1@2>"'), ("tag", "3")),
        ),
    ],
)
def test_addresses(text: str, display: str, uri: str, params: tuple[tuple[str, str | None], ...]) -> None:
    address = NameAddr.parse(text)
    assert (address.display, address.uri, address.params, str(address)) == (display, uri, params, text)
    tagged = address.with_tag("new")
    assert NameAddr.parse(tagged.text) == tagged
    assert (tagged.tag, tagged.display, tagged.uri) == ("new", display, uri)
    assert tagged.with_tag("").tag == ""
    assert NameAddr.parse(tagged.with_tag("").text).uri == uri


def test_a_tag_leaves_the_rest_as_it_is() -> None:
    assert (
        NameAddr.parse('A  B<sip:a;x@h> ; y ;TAG=1;z="q;"').with_tag("2").text
        == 'A  B<sip:a;x@h>;y;z="q;";tag=2'
    )
    assert NameAddr.parse("sip:a@h ;x").with_tag("2").text == "sip:a@h;x;tag=2"


def test_the_contact_of_all_contacts() -> None:
    contact = parse(request(m=" * ")).contact
    assert contact is not None
    assert (contact.uri, str(contact)) == ("*", "*")


def test_a_parameter_loses_its_quotes() -> None:
    address = NameAddr.parse('<sip:a@h>;x="a;\\"b";tag=1')
    assert (address.param("x"), address.tag) == ('a;"b', "1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "<>",
        "<alice>",
        "<sip:a@h",
        '"Alice <sip:a@h>',
        '"Alice" sip:a@h',
        '"Alice"',
        "<sip:a@h> x",
        "<sip:a@h>, <sip:b@h>",
        "@;tag=1",
        "*",
        '<sip:a@h>;x="',
        'sip:a@h;x="a\\"',
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(Malformed):
        NameAddr.parse(text)
    assert fault(request(From=text)).status == 400


@pytest.mark.parametrize(
    ("text", "uri", "purpose", "m"),
    [
        ("<sip:a@h>;purpose=call-completion;m=BS", "sip:a@h", "call-completion", "BS"),
        ("<sip:a@h>;m=nr;PURPOSE=Call-Completion", "sip:a@h", "call-completion", "NR"),
        (
            " < sip:CC_856;76@host >  ; m = NL ; purpose = call-completion",
            "sip:CC_856;76@host",
            "call-completion",
            "NL",
        ),
        (
            "<sip:CC_856;76 @;transport=UDP>;purpose=call-completion",
            "sip:CC_856;76 @;transport=UDP",
            "call-completion",
            "",
        ),
        (
            "sip:4003@;user=phone;tgrp=2;trunk-context=x.example;purpose=call-completion;m=BS",
            "sip:4003@;user=phone;tgrp=2;trunk-context=x.example",
            "call-completion",
            "BS",
        ),
        (
            "sip:4003@h ; m=NR ; user=phone;purpose=call-completion",
            "sip:4003@h;user=phone",
            "call-completion",
            "NR",
        ),
        ("sip:CC_856;76@h;m=BS;transport=UDP;x=", "sip:CC_856;76@h;transport=UDP;x=", "", "BS"),
        ('<sip:a@h>;m="BS";purpose="call-completion"', "sip:a@h", "call-completion", "BS"),
        ("<sip:a@h;m=XX>;m", "sip:a@h;m=XX", "", ""),
        ("sip:a", "sip:a", "", ""),
    ],
)
def test_call_info(text: str, uri: str, purpose: str, m: str) -> None:
    info = CallInfo.parse(text)
    assert (info.uri, info.purpose, info.m) == (uri, purpose, m)
    message = parse(request(Call_Info=[f"nonsense, {text.strip()}", "<sip:last>"]))
    assert message.all("call-info") == ["nonsense", text.strip(), "<sip:last>"]


@pytest.mark.parametrize("text", ["nonsense", "<>;purpose=call-completion"])
def test_no_call_info(text: str) -> None:
    with pytest.raises(Malformed):
        CallInfo.parse(text)


@pytest.mark.parametrize(
    ("text", "state", "expires", "reason", "retry_after"),
    [
        ("active", "active", None, "", None),
        ("ACTIVE ; Expires = 60", "active", 60, "", None),
        ("terminated;reason=NoResource;retry-after=5", "terminated", None, "noresource", 5),
        ("terminated;expires=soon", "terminated", None, "", None),
        ("active;expires=99999999999999999999999", "active", 2**32 - 1, "", None),
        ("active;expires=\u0661", "active", None, "", None),
        ("newstate;;x", "newstate", None, "", None),
    ],
)
def test_subscription_state(
    text: str, state: str, expires: int | None, reason: str, retry_after: int | None
) -> None:
    found = parse(request(Subscription_State=text)).subscription_state
    assert found is not None
    assert (found.state, found.expires, found.reason, found.retry_after) == (
        state,
        expires,
        reason,
        retry_after,
    )


@pytest.mark.parametrize("fold", ["\r\n\t", " \r\n ", "\t\r\n \t", "\r\n \r\n "])
def test_a_fold_is_one_blank(fold: str) -> None:
    data = request(Subject=f"one{fold}two", Via=f"SIP/2.0/UDP{fold}h;branch=1{fold};x")
    message = parse(data)
    assert (message.get("subject") or "").split() == ["one", "two"]
    assert "\r" not in (message.get("subject") or "")
    assert (message.via.host, message.via.params) == ("h", (("branch", "1"), ("x", None)))
    assert message.to_bytes() == data


def test_a_content_type_without_what_follows() -> None:
    assert parse(request(Content_Type="Application/SDP ; charset=x")).content_type == "application/sdp"


def test_an_event_with_an_id() -> None:
    event = parse(request(o="presence ; id = 7")).event
    assert event is not None
    assert (event.package, event.id) == ("presence", "7")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("0060", 60), ("4294967296", 2**32 - 1), ("9" * 5000, 2**32 - 1)]
)
def test_expires(text: str, seconds: int) -> None:
    assert parse(request(Expires=text)).expires == seconds


def test_nonsense_where_it_was_not_needed_is_carried_and_named_when_asked_for() -> None:
    data = request(Expires="-1", Event=";", Subscription_State="", Contact="<x", Content_Type="\u2028")
    message = parse(data)
    assert message.to_bytes() == data
    ask: list[Callable[[], object]] = [
        lambda: message.expires,
        lambda: message.event,
        lambda: message.subscription_state,
        lambda: message.contact,
    ]
    for one in ask:
        with pytest.raises(Malformed):
            one()


# -- Via ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "completed", "answer"),
    [
        ("h:5070;branch=1", ("192.0.2.9", 6000), "h:5070;branch=1;received=192.0.2.9", ("192.0.2.9", 5070)),
        ("192.0.2.9;branch=1", ("192.0.2.9", 6000), "192.0.2.9;branch=1", ("192.0.2.9", 5060)),
        (
            "192.0.2.9;rport;branch=1",
            ("192.0.2.9", 6000),
            "192.0.2.9;rport=6000;branch=1;received=192.0.2.9",
            ("192.0.2.9", 6000),
        ),
        (
            "h;received=6.6.6.6;branch=1;rport=1",
            ("192.0.2.9", 60000),
            "h;branch=1;rport=60000;received=192.0.2.9",
            ("192.0.2.9", 60000),
        ),
        (
            "[2001:DB8::1]:5060;branch=1",
            ("2001:db8::1", 6000),
            "[2001:DB8::1]:5060;branch=1",
            ("2001:DB8::1", 5060),
        ),
        (
            "h;maddr=224.0.1.75;branch=1",
            ("192.0.2.9", 6000),
            "h;maddr=224.0.1.75;branch=1;received=192.0.2.9",
            ("224.0.1.75", 5060),
        ),
    ],
)
def test_where_an_answer_goes(
    text: str, source: tuple[str, int], completed: str, answer: tuple[str, int]
) -> None:
    data = request(Via=[f"SIP/2.0/UDP {text}, SIP/2.0/UDP next;branch=2", "SIP/2.0/UDP third"])
    message = good(data).received_from(*source)
    assert message.all("via") == [
        f"SIP/2.0/UDP {completed}",
        "SIP/2.0/UDP next;branch=2",
        "SIP/2.0/UDP third",
    ]
    assert message.via == Via.parse(f"SIP/2.0/UDP {completed}")
    assert message.via.answer_to() == answer
    assert parse(message.to_bytes()).all("via") == message.all("via")
    assert message.without("via").headers == good(data).without("v").headers
    assert message.received_from(*source) == message


def test_a_via_in_small_letters_with_an_open_quote() -> None:
    via = Via.parse('sip/2.0/tls h:65535;Branch="z;9";x="')
    assert (via.transport, via.port, via.branch, via.param("x")) == ("TLS", 65535, "z;9", '"')


@pytest.mark.parametrize("text", ["rport=", "rport=0", "rport=65536", "rport=x", "rport=\u0661"])
def test_nonsense_in_rport(text: str) -> None:
    via = Via.parse(f"SIP/2.0/TLS h;{text}")
    assert (via.rport, via.answer_to()) == (None, ("h", 5061))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SIP/2.0/UDP",
        "SIP/2.0 h",
        "SIP/7.0/UDP h",
        "HTTP/2.0/UDP h",
        "SIP/2.0/UDP ;branch=1",
        "SIP/2.0/UDP h:0",
        "SIP/2.0/UDP h:65536",
        "SIP/2.0/UDP h:x",
        "SIP/2.0/UDP h h;branch=1",
        "SIP/2.0/UDP [h;branch=1",
        "SIP/2.0/UDP h:5060\n",
        ",SIP/2.0/UDP h",
    ],
)
def test_no_via(text: str) -> None:
    with pytest.raises(Malformed):
        Via.parse(text)
    if "\n" not in text:
        assert not isinstance(fault(request(Via=text)), BadRequest)


# -- changing ----------------------------------------------------------------------------------------------


def test_headers_are_replaced_where_they_stood() -> None:
    message = Request("X", "sip:h", (("v", "1"), ("A", "a"), ("Via", "2"), ("B", "b")))
    assert message.with_headers(("Via", "3"), ("C", "c"), ("VIA", "4"), ("b", "r")).headers == (
        ("Via", "3"),
        ("VIA", "4"),
        ("A", "a"),
        ("b", "r"),
        ("C", "c"),
    )
    assert message.without("via", "b", "Z").headers == (("A", "a"),)
    assert message.without("A", "b").headers == (("v", "1"), ("Via", "2"))
    assert message.prepended(("P", "1"), ("Q", "2")).headers[:3] == (("P", "1"), ("Q", "2"), ("v", "1"))
    assert message.appended(("P", "1")).headers[-2:] == (("B", "b"), ("P", "1"))
    assert message.headers == (("v", "1"), ("A", "a"), ("Via", "2"), ("B", "b"))


def test_the_top_of_a_list() -> None:
    message = parse(request(Via=["SIP/2.0/UDP a , SIP/2.0/UDP b", "SIP/2.0/UDP c"], Subject="a, b"))
    for left in ("b", "c"):
        assert message.via.host == ("a" if left == "b" else "b")
        assert message.call_id == "1@h"
        message = message.without_top("v")
        assert message.via.host == left
        assert message.get("via") == f"SIP/2.0/UDP {left}"
    assert message.with_top("Via", "SIP/2.0/UDP z").via.host == "z"
    last = message.without_top("via")
    assert (last.all("via"), last.get("via")) == ([], None)
    assert last.without_top("via") is last
    assert message.without_top("Subject").get("Subject") is None
    assert message.with_top("Subject", "c").get("Subject") == "c"
    assert Request("X", "sip:h", (("v", "SIP/2.0/UDP a"),)).with_top("via", "SIP/2.0/UDP b").via.host == "b"
    blank = Request("X", "sip:h", (("v", ","), ("v", "SIP/2.0/UDP a"), ("v", "SIP/2.0/UDP b")))
    assert blank.get("v") == ","
    assert blank.without_top("v").all("v") == ["SIP/2.0/UDP b"]
    empty = Request("X", "sip:h", (("Route", " ,"), ("Route", "<sip:a>, <sip:b>"))).without_top("route")
    assert empty.all("Route") == ["<sip:b>"]


def test_what_was_read_before_a_change_is_not_believed_after_it() -> None:
    message = good(SUBSCRIBE)
    assert (message.cseq[0], message.to.tag, message.from_.tag) == (102, "", "as4791813f")
    changed = message.with_headers(
        ("CSeq", "7 X"), ("t", "<sip:a>;tag=2"), ("f", "<sip:b>;tag=3"), ("Via", "SIP/2.0/TCP x;branch=9")
    )
    assert (changed.cseq, changed.to.tag, changed.from_.tag) == ((7, "X"), "2", "3")
    assert (changed.via.branch, changed.via.transport) == ("9", "TCP")
    assert changed.with_uri("sip:x").uri == "sip:x"
    assert changed.with_uri("sip:x").via.branch == "9"


# -- answers -----------------------------------------------------------------------------------------------


def test_an_answer() -> None:
    data = request(
        Via=["SIP/2.0/UDP a;branch=1", "SIP/2.0/UDP b;branch=2"],
        Record_Route="<sip:p;lr>",
        Timestamp="54",
        Max_Forwards="70",
    )
    answer = good(data).response(200, headers=(("Expires", "60"),), tag="x")
    assert answer.to_bytes().decode() == (
        "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP a;branch=1\r\nVia: SIP/2.0/UDP b;branch=2\r\n"
        "From: <sip:b@h>;tag=1\r\nTo: <sip:a@h>;tag=x\r\nCall-ID: 1@h\r\nCSeq: 1 SUBSCRIBE\r\n"
        "Record-Route: <sip:p;lr>\r\nExpires: 60\r\nContent-Length: 0\r\n\r\n"
    )
    assert parse(answer.to_bytes()).to.tag == "x"
    trying = good(data).response(100)
    assert (trying.get("timestamp"), trying.get("record-route"), trying.to.tag) == ("54", None, "")
    refused = good(data).response(489, "No", body=b"x")
    assert (refused.get("record-route"), refused.reason, refused.get("max-forwards")) == (None, "No", None)
    assert refused.to_bytes().endswith(b"Content-Length: 1\r\n\r\nx")
    assert good(data).response(299).reason == "Unknown"
    assert [good(data).response(s).get("record-route") for s in (101, 299, 300)] == ["<sip:p;lr>"] * 2 + [
        None
    ]


def test_a_tag_that_is_there_stays() -> None:
    assert good(NOTIFY).response(481, tag="x").to.tag == "467e2c4f"
    assert good(request(To="sip:a;b@h")).response(200, tag="x").to.tag == "x"
    assert good(TORTURE).response(200, tag="x").to.tag == "1918181833n"
    assert good(request(To="<sip:a>;tag=;x=y")).response(200, tag="x").get("to") == "<sip:a>;x=y;tag=x"


@pytest.mark.parametrize("data", [SUBSCRIBE, NOTIFY, request()])
def test_a_second_opinion(data: bytes) -> None:
    """What we read, and the answer we build, another parser reads alike."""
    seen: list[Any] = []
    parser = witness.MessagesParser(seen.append)
    ours = good(data)
    answer = ours.received_from("192.0.2.77", 5099).response(
        200, headers=(("Contact", "<sip:cc@h>"),), tag="x"
    )
    for one in (data, answer.to_bytes()):
        parser.dataReceived(one)
        parser.dataDone()
    theirs, their_answer = seen
    assert (theirs.method, theirs.uri.toString()) == (ours.method, ours.uri)
    assert theirs.body.encode() == ours.body
    lines: dict[str, list[str]] = {}
    for name, value in ours.headers:
        lines.setdefault(name.lower(), []).append(value)
    assert {n: list(v) for n, v in theirs.headers.items()} == lines
    via = witness.parseViaHeader(theirs.headers["via"][0])
    assert (via.transport, via.host, via.port, via.branch) == (
        ours.via.transport,
        ours.via.host,
        ours.via.port,
        ours.via.branch,
    )
    name, url, params = witness.parseAddress(theirs.headers["from"][0])
    assert (name, str(url), params["tag"]) == (ours.from_.display, ours.from_.uri, ours.from_.tag)
    assert their_answer.code == 200
    assert their_answer.headers["call-id"] == [ours.call_id]
    answered = witness.parseViaHeader(their_answer.headers["via"][0])
    assert answered.received == "192.0.2.77"
    assert answered.rport in (5099, None)
    assert (answered.rport is None) == (ours.via.param("rport") is None)
    assert witness.parseAddress(their_answer.headers["to"][0])[2]["tag"] == (ours.to.tag or "x")


# -- what is broken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"\r\n\r\n", 400),
        (b"\x00" * 100, 400),
        (SUBSCRIBE[:-2], 400),
        (SUBSCRIBE.replace(b"\r\n", b"\n"), 400),
        (request(X="a\nEvil: b"), 400),
        (request(X="a\rEvil: b"), 400),
        (request(X="a\n\rb"), 400),
        (request("SUBSCRIBE  sip:a@h SIP/2.0"), 400),
        (request("SUBSCRIBE sip:a@h  SIP/2.0"), 400),
        (request("SUBSCRIBE sip:a@h SIP/2.0 "), 400),
        (request(" SUBSCRIBE sip:a@h SIP/2.0"), 400),
        (request("SUBSCRIBE sip:a @h SIP/2.0"), 400),
        (request("SUBSCRIBE <sip:a@h> SIP/2.0"), 400),
        (request("SUBSCRIBE SIP/2.0"), 400),
        (request("SUB(SCRIBE sip:a@h SIP/2.0"), 400),
        (request("SUBSCRIBE sip:a@h HTTP/1.1"), 400),
        (request("SUBSCRIBE sip:a@h SIP/7.0"), 505),
        (request("SUBSCRIBE sip:a@h SIP/2.01"), 505),
        (request("SIP/2.0 42 OK"), 400),
        (request("SIP/2.0 099 OK"), 400),
        (request("SIP/2.0 700 OK"), 400),
        (request("SIP/2.0 4294967301 OK"), 400),
        (request("SIP/2.0 \u0662\u0660\u0660 OK"), 400),
        (request("SIP/2.0 200OK"), 400),
        (SUBSCRIBE.replace(b"SIP/2.0\r\n", b"SIP/2.0\r\n X: y\r\n", 1), 400),
        (with_header("No Name", "x"), 400),
        (with_header("", "x"), 400),
        (with_header("\u212a", "x"), 400),
        (SUBSCRIBE.replace(b"Expires: 4800", b"Expires 4800"), 400),
        (request("SUBSCRIBE sip:a@h" + "a" * MAX_LINE + " SIP/2.0"), 513),
        (request(X="a" * MAX_LINE), 513),
        (request(X="a\r\n " * (MAX_LINE // 4)), 513),
        (request(X=["a"] * MAX_HEADERS), 513),
        (request(body=b"a" * MAX_MESSAGE), 513),
        (request(drop="Via"), 400),
    ],
    ids=str,
)
def test_what_cannot_be_answered(data: bytes, status: int) -> None:
    error = fault(data)
    assert not isinstance(error, BadRequest)
    assert error.status == status


@pytest.mark.parametrize(
    ("data", "word"),
    [
        *((request(drop=name), name) for name in ("From", "To", "Call-ID", "CSeq")),
        *(
            (with_header(name, ["1 SUBSCRIBE", "1 SUBSCRIBE"]), name)
            for name in ("From", "To", "Call_ID", "CSeq")
        ),
        (request(CSeq="1 SUBSCRIBE", cSEQ="1 SUBSCRIBE"), "CSeq"),
        (request(f="<sip:c>"), "From"),
        (request(Max_Forwards=["1", "2"]), "Max-Forwards"),
        (request(Max_Forwards="-1"), "Max-Forwards"),
        (request(Max_Forwards="\u0661"), "Max-Forwards"),
        (request(Max_Forwards="9" * 20), "Max-Forwards"),
        (request(Call_ID=""), "Call-ID"),
        (request(CSeq="2147483648 SUBSCRIBE"), "CSeq"),
        (request(CSeq="36893488147419103232 SUBSCRIBE"), "CSeq"),
        (request(CSeq="-1 SUBSCRIBE"), "CSeq"),
        (request(CSeq="1_0 SUBSCRIBE"), "CSeq"),
        (request(CSeq="SUBSCRIBE"), "CSeq"),
        (request(CSeq="1 INVITE"), "CSeq"),
        (request(CSeq="1 subscribe"), "CSeq"),
        (request(To='"Open <sip:a@h>'), "quotes"),
        (request(Content_Length="1"), "Content-Length"),
        (request(Content_Length="-999"), "Content-Length"),
        (request(Content_Length="+0"), "Content-Length"),
        (request(Content_Length="0x0"), "Content-Length"),
        (request(Content_Length=""), "Content-Length"),
        (request(Content_Length="9" * 5000), "Content-Length"),
        (request(Content_Length=["0", "1"]), "Content-Length"),
        (request(Content_Length="0", l="1"), "Content-Length"),
        (request(Content_Length=["0", "0"]), "Content-Length"),
    ],
    ids=str,
)
def test_what_is_bad_but_can_be_answered(data: bytes, word: str) -> None:
    error = fault(data)
    assert isinstance(error, BadRequest)
    assert error.status == 400
    assert word.replace("_", "-") in str(error)
    answer = parse_answer(error)
    assert (answer.status, answer.reason) == (400, "Bad Request")
    assert answer.all("via") == ["SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1"]
    # An ACK and a response are never answered.
    for first in ("ACK sip:a@h SIP/2.0", "SIP/2.0 200 OK"):
        other = data.replace(b"SUBSCRIBE sip:a@h SIP/2.0", first.encode(), 1)
        if first.startswith("ACK"):
            other = other.replace(b" SUBSCRIBE", b" ACK")
        elif b"1 INVITE" in data or b"1 subscribe" in data:
            continue
        assert not isinstance(fault(other), BadRequest)


def parse_answer(error: BadRequest) -> Response:
    answer = error.request.response(error.status)
    assert answer.to_bytes().startswith(b"SIP/2.0 400 Bad Request\r\nVia: ")
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n" + SUBSCRIBE,
        request(X="a" * (MAX_LINE - 3)),
        request(X=["a"] * (MAX_HEADERS - 6)),
        request().ljust(MAX_MESSAGE),
        request(drop="Content-Length", body=b"x" * 65000),
        request("INVITE sip:a@h sip/2.0"),
        request("INVITE nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0"),
        request("INVITE sip:a;b?c=d&e@;f=%00 SIP/2.0"),
        request(CSeq="2147483647 SUBSCRIBE"),
        request(Max_Forwards="0"),
        request(Date="Fri, 01 Jan 2010 16:00:00 EST"),
        request(From="Bell, Alexander <sip:b@h>;tag=43"),
        request(Via="SIP/2.0/UNKNOWN h_1.example;branch=1;;x;"),
        b"SIP/2.0 200\r\n" + request().partition(b"\r\n")[2],
        b"SIP/2.0 200 \r\n" + request().partition(b"\r\n")[2],
        "SIP/2.0 200 = 2**3 * 5**2 \u043d\u043e \t\r\n".encode() + request().partition(b"\r\n")[2],
    ],
    ids=lambda data: str(data[:40]),
)
def test_at_the_edge_but_good(data: bytes) -> None:
    message = parse(data)
    assert message.via.branch or message.via.transport == "UNKNOWN"
    again = parse(message.to_bytes())
    assert again.without("Content-Length") == message.without("Content-Length")


def test_reasons_are_those_of_the_statuses_used() -> None:
    assert all(99 < status < 700 and reason for status, reason in REASONS.items())
    assert (REASONS[481], REASONS[489], REASONS[505]) == (
        "Call/Transaction Does Not Exist",
        "Bad Event",
        "Version Not Supported",
    )


def test_keep_alives() -> None:
    assert all(map(is_keep_alive, (b"\r\n\r\n", b"\r\n", b"\n", b"")))
    assert not any(map(is_keep_alive, (SUBSCRIBE, b"\r\nx", b"\x00")))


# -- whatever comes ----------------------------------------------------------------------------------------


def touch(message: Request | Response) -> None:
    """Everything that can be asked of what parse() let in."""
    _ = message.via, message.from_, message.to, message.call_id, message.cseq, message.max_forwards
    _ = message.via.answer_to(), message.via.branch, message.to.tag, message.content_type
    ask: list[Callable[[], object]] = [
        lambda: message.contact,
        lambda: message.expires,
        lambda: message.event,
        lambda: message.subscription_state and message.subscription_state.expires,
        lambda: [Via.parse(v).received_from("192.0.2.1", 1) for v in message.all("via")],
        lambda: [NameAddr.parse(v).with_tag("x") for v in message.all("Route")],
        *(partial(CallInfo.parse, v) for v in message.all("Call-Info")),
    ]
    for one in ask:
        try:
            one()
        except Malformed as error:
            assert error.status == 400
    for name in {name for name, _value in message.headers}:
        message.all(name)
    data = message.to_bytes()
    again = parse(data)
    assert again.headers[: len(message.headers)] == message.headers or message.content_length is None
    assert again.to_bytes() == data
    if isinstance(message, Request):
        answer = message.received_from("192.0.2.1", 1).response(200, tag="t")
        reread = parse(answer.to_bytes())
        assert (reread.call_id, reread.cseq) == (message.call_id, message.cseq)
        assert reread.to.tag == (message.to.tag or "t"), message.to


NASTY = [
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n ",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b": ",
        b";",
        b",",
        b'"',
        b"\\",
        b"<",
        b">",
    ),
    *(b"@", b"=", b"\x00", b"\xff", b"\xc3\xa9", b"\xe2\x80\xa8", b"\x85", b"\x1c", b"%00", b"Via: ", b"v:"),
    *(
        b"Content-Length: 9\r\n",
        b"l: -1\r\n",
        b"To: x\r\n",
        b"sip:",
        b"SIP/2.0",
        b"99999999999",
        b";tag=",
        b"*",
    ),
]


def test_mutations_are_messages_or_malformed() -> None:
    rng = random.Random(4475)
    seeds = [SUBSCRIBE, NOTIFY, BUSY, TORTURE]
    through = broken = answerable = 0
    for _ in range(6000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 20)]
                case 2:
                    data[at:at] = rng.choice(NASTY)
                case 3:
                    other = rng.choice(seeds)
                    start = rng.randrange(len(other))
                    data[at:at] = other[start : start + rng.randrange(80)]
                case _:
                    del data[at:]
                    data += b"\r\n\r\n"
        try:
            message = parse(bytes(data))
        except BadRequest as error:
            answerable += 1
            answer = error.request.response(error.status, tag="t")
            assert answer.to_bytes().startswith(b"SIP/2.0 400 Bad Request\r\n")
            assert answer.via == error.request.via
        except Malformed:
            broken += 1
        else:
            through += 1
            touch(message)
    assert min(through, broken, answerable) > 300


def test_random_bytes_are_malformed() -> None:
    rng = random.Random(1)
    for size in [0, 1, 2, 10, 100, 1000, 65536] * 40:
        fault(rng.randbytes(size))
        fault(b"SUBSCRIBE sip:a@h SIP/2.0\r\n" + rng.randbytes(min(size, 60000)) + b"\r\n\r\n")


def test_lines_of_marks_are_messages_or_malformed() -> None:
    rng = random.Random(2)
    marks = ' \t";,<>\\=@:/%*a1\x00\u00e9\udcff'
    names = [
        "Via",
        "From",
        "To",
        "Contact",
        "Call-Info",
        "CSeq",
        "Event",
        "Route",
        "Subscription-State",
        "Max_Forwards",
    ]
    starts = {
        "Via": "SIP/2.0/UDP h",
        "From": "<sip:a@h>",
        "To": "sip:a@h",
        "CSeq": "1 SUBSCRIBE",
        "Max_Forwards": "1",
    }
    through = 0
    for _ in range(6000):
        name = rng.choice(names)
        value = rng.choice((starts.get(name, "<sip:a>"), "")) + "".join(
            rng.choices(marks, k=rng.randrange(12))
        )
        try:
            message = parse(with_header(name, value))
        except Malformed:
            continue
        through += 1
        touch(message)
    assert through > 1000


def test_one_bad_datagram_does_not_touch_the_next() -> None:
    wanted = good(SUBSCRIBE)
    for bad in (request(Content_Length="2000000000"), TORTURE[:-3], b"\xff" * 60000, request(Via="x")):
        fault(bad)
        assert good(SUBSCRIBE) == wanted


def nasties(size: int) -> dict[str, bytes]:
    """Messages of about that many bytes, each meant to make a careless parser work for each byte of it again."""

    def spread(name: str, piece: str, start: str = "") -> bytes:
        """In lines that are not too long, as many as it takes."""
        line = start + piece * (8000 // len(piece))
        return with_header(name, [line] * max(1, size // 8000))

    return {
        "blanks": spread("X", " ", "a"),
        "blanks in Via": spread("v", " ", "SIP/2.0/UDP "),
        "slashes": spread("v", "/"),
        "folds": request(X=["a" + "\r\n " * 2600 + "a"] * (size // 8000)),
        "blanks and folds": request(X=["a" + " " * 3900 + "\r\n" + " " * 3900] * (size // 8000)),
        "quotes": spread("m", '"'),
        "open quotes": spread("m", '"a\\'),
        "backslashes": spread("m", "\\", '"'),
        "brackets": spread("m", "<"),
        "commas": spread("m", ","),
        "semicolons": spread("m", ";", "<sip:a@h>"),
        "parameters": spread("Call-Info", ";a=b", "sip:a@h"),
        "at signs": spread("Call-Info", "@;", "sip:"),
        "colons": spread("X", ":"),
        "digits": spread("Expires", "9"),
        "values": spread("Route", "<sip:a>,"),
        "vias": spread("v", "SIP/2.0/UDP h,"),
        "names": b"X sip:h SIP/2.0\r\n" + b"a:b\r\n" * 199 + b"a" * size + b"\r\n\r\n",
        "empty lines": b"\r\n" * (size // 2),
        "line feeds": b"X sip:h SIP/2.0\r\n" + b"\n" * size + b"\r\n\r\n",
        "not UTF-8": request(X=["\udcff" * 8000] * (size // 8000)),
        "first line": b"X " + b"sip:" * (size // 4) + b" SIP/2.0\r\n\r\n",
        "blank first line": b"X" + b" " * size + b"SIP/2.0\r\n\r\n",
        "body": request(body=b"\r\n" * (size // 2)),
    }


SMALL, LARGE = 8000, 64000


@pytest.mark.parametrize("kind", nasties(SMALL))
def test_time_grows_with_length_and_no_faster(kind: str) -> None:
    def once(data: bytes) -> None:
        try:
            message = parse(data)
        except Malformed:
            return
        touch(message)

    def best(data: bytes) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            once(data)
            times.append(time.perf_counter() - start)
        return min(times)

    small, large = nasties(SMALL)[kind], nasties(LARGE)[kind]
    assert 6 < len(large) / len(small) < 9 or kind in ("names", "first line")
    # Eight times as long: eight times the time if linear, sixty-four times if quadratic.
    assert best(large) < 30 * best(small) + 0.0005
    # Within a line too: 64 KB that a scan passes over once, against the same in plain letters.
    assert best(large) < 400 * best(request(X=["a" * 8000] * 7))
