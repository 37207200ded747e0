"""Dialogs: begun by SUBSCRIBE, 2xx or NOTIFY, kept in step by CSeq, and carrying the peer's words as they are."""

import json
from dataclasses import replace

import pytest

from fastagi.sip.dialog import Dialog, Rejected
from fastagi.sip.message import Request, Response, parse


def message(text: str) -> Request | Response:
    """From lines, as they stand in a trace."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return parse("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())


def request(text: str) -> Request:
    found = message(text)
    assert isinstance(found, Request)
    return found


def response(text: str) -> Response:
    found = message(text)
    assert isinstance(found, Response)
    return found


# What chan_sip sends, and what it is sent.
SUBSCRIBE = request("""
    SUBSCRIBE sip:tok5dcbaf5e@127.0.1.3:5060 SIP/2.0
    Via: SIP/2.0/UDP 127.0.1.16:5060;branch=z9hG4bK754503f7
    From: "asterisk" <sip:asterisk@127.0.1.16>;tag=as4791813f
    To: <sip:tok5dcbaf5e@127.0.1.3:5060>
    Contact: <sip:asterisk@127.0.1.16:5060>
    Call-ID: 33135e6568381fdd@127.0.1.16:5060
    CSeq: 102 SUBSCRIBE
    Event: call-completion
    Expires: 4800
""")
UNSUBSCRIBE = request("""
    SUBSCRIBE sip:cc@127.0.1.3:5060 SIP/2.0
    Via: SIP/2.0/UDP 127.0.1.16:5060;branch=z9hG4bK7bd9c34c
    From: "asterisk" <sip:asterisk@127.0.1.16>;tag=as4791813f
    To: <sip:tok5dcbaf5e@127.0.1.3:5060>;tag=ours
    Contact: <sip:asterisk@127.0.1.16:5062>
    Call-ID: 33135e6568381fdd@127.0.1.16:5060
    CSeq: 103 SUBSCRIBE
    Event: call-completion
    Expires: 0
""")
OURS = request("""
    SUBSCRIBE sip:04dd2701@127.0.1.16:5060 SIP/2.0
    Via: SIP/2.0/UDP 127.0.1.3:5060;branch=z9hG4bKua674a6a2fae
    From: <sip:trunk@127.0.1.3>;tag=467e2c4f
    To: <sip:8000@127.0.1.16:5060>
    Call-ID: ccsub-55ba3012db
    CSeq: 1 SUBSCRIBE
    Contact: <sip:cc@127.0.1.3:5060>
""")
OK = response("""
    SIP/2.0 200 OK
    Via: SIP/2.0/UDP 127.0.1.3:5060;branch=z9hG4bKua674a6a2fae;received=127.0.1.3
    Record-Route: <sip:p1.example.org;lr>, <sip:p2.example.org;lr>
    Record-Route: <sip:p3.example.org;lr>
    From: <sip:trunk@127.0.1.3>;tag=467e2c4f
    To: <sip:8000@127.0.1.16:5060>;tag=as4be49ec0
    Call-ID: ccsub-55ba3012db
    CSeq: 1 SUBSCRIBE
    Expires: 3600
    Contact: <sip:04dd2701@127.0.1.16:5060>;expires=3600
""")
NOTIFY = request("""
    NOTIFY sip:cc@127.0.1.3:5060 SIP/2.0
    Via: SIP/2.0/UDP 127.0.1.16:5060;branch=z9hG4bK385c382b
    Record-Route: <sip:p3.example.org;lr>, <sip:p2.example.org;lr>, <sip:p1.example.org;lr>
    From: <sip:8000@127.0.1.16:5060>;tag=as4be49ec0
    To: <sip:trunk@127.0.1.3>;tag=467e2c4f
    Contact: <sip:04dd2701@127.0.1.16:5060>
    Call-ID: ccsub-55ba3012db
    CSeq: 102 NOTIFY
""")


def with_header(base: Request, name: str, value: str) -> Request:
    return base.with_headers((name, value))


# ---------------------------------------------------------------------------------------------- beginning


def test_the_notifiers_side_begins_with_the_subscribe() -> None:
    routed = SUBSCRIBE.appended(("Record-Route", "<sip:p1;lr>"), ("Record-Route", "<sip:p2;lr>, <sip:p3;lr>"))
    assert Dialog.from_subscribe(routed, "ours") == Dialog(
        call_id="33135e6568381fdd@127.0.1.16:5060",
        local_tag="ours",
        remote_tag="as4791813f",
        local="<sip:tok5dcbaf5e@127.0.1.3:5060>;tag=ours",
        remote='"asterisk" <sip:asterisk@127.0.1.16>;tag=as4791813f',
        target="sip:asterisk@127.0.1.16:5060",
        route=("<sip:p1;lr>", "<sip:p2;lr>", "<sip:p3;lr>"),  # 12.1.1: in order
        local_seq=0,
        remote_seq=102,
    )


def test_the_subscribers_side_begins_with_the_2xx() -> None:
    assert Dialog.from_answer(OURS, OK) == Dialog(
        call_id="ccsub-55ba3012db",
        local_tag="467e2c4f",
        remote_tag="as4be49ec0",
        local="<sip:trunk@127.0.1.3>;tag=467e2c4f",
        remote="<sip:8000@127.0.1.16:5060>;tag=as4be49ec0",
        target="sip:04dd2701@127.0.1.16:5060",
        route=("<sip:p3.example.org;lr>", "<sip:p2.example.org;lr>", "<sip:p1.example.org;lr>"),  # reversed
        local_seq=1,
        remote_seq=None,
    )


def test_it_is_the_same_dialog_if_the_notify_came_first() -> None:
    by_notify, by_answer = Dialog.from_notify(OURS, NOTIFY), Dialog.from_answer(OURS, OK)
    assert by_notify == replace(by_answer, remote_seq=102)
    assert by_answer.receive(NOTIFY) == by_notify


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("To", "<sip:x@y>;tag=known", 481),
        ("Contact", "*", 400),
        ("Contact", "<tel:123>", 400),
        ("Contact", "nonsense", 400),
        ("Contact", "<sip:>", 400),
    ],
)
def test_a_subscribe_that_cannot_begin_one_is_rejected(name: str, value: str, status: int) -> None:
    with pytest.raises(Rejected) as no:
        Dialog.from_subscribe(with_header(SUBSCRIBE, name, value), "ours")
    assert no.value.status == status


def test_a_subscribe_without_a_contact_cannot_begin_one() -> None:
    with pytest.raises(Rejected) as no:
        Dialog.from_subscribe(SUBSCRIBE.without("Contact"), "ours")
    assert no.value.status == 400


@pytest.mark.parametrize("contact", [None, "nonsense", "*"])
def test_a_peer_without_a_good_contact_in_its_2xx_is_reached_where_the_request_went(
    contact: str | None,
) -> None:
    answer = OK.without("Contact") if contact is None else OK.with_headers(("Contact", contact))
    assert Dialog.from_answer(OURS, answer).target == "sip:04dd2701@127.0.1.16:5060"


@pytest.mark.parametrize(("name", "value"), [("Call-ID", "other"), ("To", "<sip:x@y>;tag=other")])
def test_a_notify_for_somebody_else_begins_none(name: str, value: str) -> None:
    with pytest.raises(Rejected) as no:
        Dialog.from_notify(OURS, with_header(NOTIFY, name, value))
    assert no.value.status == 481


# ----------------------------------------------------------------------------------------------- going on


def test_what_belongs_to_it() -> None:
    dialog = Dialog.from_answer(OURS, OK)
    assert dialog.has(NOTIFY)
    assert dialog.has(OK)
    for name, value in [("From", "<sip:x@y>;tag=z"), ("To", "<sip:x@y>;tag=z"), ("Call-ID", "z")]:
        assert not dialog.has(with_header(NOTIFY, name, value))
        assert not dialog.has(OK.with_headers((name, value)))
        with pytest.raises(Rejected) as no:
            dialog.receive(with_header(NOTIFY, name, value))
        assert no.value.status == 481


@pytest.mark.parametrize(("seq", "status"), [(101, 500), (1, 500), (102, 0), (103, 0), (2**31 - 1, 0)])
def test_a_lower_cseq_is_answered_500_and_anything_else_taken(seq: int, status: int) -> None:
    dialog = Dialog.from_notify(OURS, NOTIFY)
    late = with_header(NOTIFY, "CSeq", f"{seq} NOTIFY")
    if status:
        with pytest.raises(Rejected) as no:
            dialog.receive(late)
        # With Retry-After, lest the notifier end the subscription over a packet overtaken (RFC 6665, 4.2.2).
        assert (no.value.status, no.value.headers) == (500, (("Retry-After", "1"),))
    else:
        assert dialog.receive(late).remote_seq == seq


def test_the_first_request_of_the_peer_may_have_any_cseq() -> None:
    dialog = Dialog.from_answer(OURS, OK)
    assert dialog.receive(with_header(NOTIFY, "CSeq", "0 NOTIFY")).remote_seq == 0


def test_subscribe_and_notify_move_the_target_and_the_route_stays() -> None:
    dialog = Dialog.from_subscribe(SUBSCRIBE, "ours")
    moved = dialog.receive(UNSUBSCRIBE.appended(("Record-Route", "<sip:late;lr>")))
    assert moved == replace(dialog, remote_seq=103, target="sip:asterisk@127.0.1.16:5062")
    assert dialog.receive(UNSUBSCRIBE.without("Contact")).target == dialog.target
    other = replace(UNSUBSCRIBE, method="MESSAGE").with_headers(("CSeq", "103 MESSAGE"))
    assert dialog.receive(other).target == dialog.target
    with pytest.raises(Rejected):
        dialog.receive(with_header(UNSUBSCRIBE, "Contact", "<http://evil/>"))


def test_a_2xx_moves_the_target_too() -> None:
    dialog = Dialog.from_notify(OURS, NOTIFY)
    assert dialog.answered(OK.with_headers(("Contact", "<sip:new@host>"))).target == "sip:new@host"
    assert dialog.answered(OK.without("Contact")).target == dialog.target
    assert dialog.answered(OK.with_headers(("Contact", "*"))).target == dialog.target


# ----------------------------------------------------------------------------------------------- requests


def test_a_request_in_it_without_routes() -> None:
    dialog = Dialog.from_subscribe(SUBSCRIBE, "ours")
    new, made = dialog.request("NOTIFY", (("Event", "call-completion"),), b"cc-state: queued\r\n", "a/b")
    assert new == replace(dialog, local_seq=1)
    assert made.to_bytes().decode().split("\r\n") == [
        "NOTIFY sip:asterisk@127.0.1.16:5060 SIP/2.0",
        "Max-Forwards: 70",
        "From: <sip:tok5dcbaf5e@127.0.1.3:5060>;tag=ours",
        'To: "asterisk" <sip:asterisk@127.0.1.16>;tag=as4791813f',
        "Call-ID: 33135e6568381fdd@127.0.1.16:5060",
        "CSeq: 1 NOTIFY",
        "Event: call-completion",
        "Content-Type: a/b",
        "Content-Length: 18",
        "",
        "cc-state: queued",
        "",
    ]
    assert new.request("NOTIFY")[1].cseq == (2, "NOTIFY")


def test_a_request_goes_by_the_route_set() -> None:
    dialog = Dialog.from_answer(OURS, OK)
    _, made = dialog.request("SUBSCRIBE")
    assert made.uri == "sip:04dd2701@127.0.1.16:5060"
    assert made.all("route") == list(dialog.route)
    assert made.cseq == (2, "SUBSCRIBE")


def test_a_strict_router_finds_itself_in_the_request_line() -> None:
    # 12.2.1.1
    dialog = replace(
        Dialog.from_answer(OURS, OK), route=("<sip:p1.example.org;method=INVITE?Subject=x>", "<sip:p2;lr>")
    )
    _, made = dialog.request("SUBSCRIBE")
    assert made.uri == "sip:p1.example.org"
    assert made.all("route") == ["<sip:p2;lr>", "<sip:04dd2701@127.0.1.16:5060>"]


def test_a_route_that_cannot_be_read_is_left_where_it_stands() -> None:
    dialog = replace(Dialog.from_answer(OURS, OK), route=("<sip:>",))
    _, made = dialog.request("SUBSCRIBE")
    assert (made.uri, made.all("route")) == (dialog.target, ["<sip:>"])


def test_the_peers_words_come_back_as_they_were() -> None:
    odd = "<sip:CC_856;76@;transport=UDP>"
    dialog = Dialog.from_subscribe(with_header(SUBSCRIBE, "Contact", odd), "ours")
    assert dialog.request("NOTIFY")[1].uri == "sip:CC_856;76@;transport=UDP"


@pytest.mark.parametrize(
    "dialog",
    [
        Dialog.from_subscribe(SUBSCRIBE, "ours"),
        Dialog.from_answer(OURS, OK),
        Dialog.from_notify(OURS, NOTIFY),
    ],
)
def test_it_survives_being_saved(dialog: Dialog) -> None:
    saved = json.loads(json.dumps(dialog.to_dict()))
    assert Dialog.from_dict(saved) == dialog
    assert Dialog.from_dict({**saved, "of a newer version": 1}) == dialog
