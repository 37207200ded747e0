"""The calls that pass: what is kept of each, what changes nothing, and what is forgotten."""

import random
import time
from collections.abc import Sequence

import pytest

from fastagi.sip.calls import MAX_TEXT_OF_ONE, Call, Calls, plain_user
from fastagi.sip.message import Request, Response, parse
from fastagi.sip.package import MAX_MONITORS

CALLER = '"Alice" <sip:1000@192.0.2.22>;tag=543964af'
CALLEE = "<sip:8000@192.0.2.16>"


def message(first_line: str, call_id: str, cseq: str, sender: str, to: str, *lines: str) -> bytes:
    return "\r\n".join(
        [
            first_line,
            "Via: SIP/2.0/UDP 192.0.2.22:5060;branch=z9hG4bKPj4fc2f6a1",
            f"From: {sender}",
            f"To: {to}",
            f"Call-ID: {call_id}",
            f"CSeq: {cseq}",
            *lines,
            "",
            "",
        ]
    ).encode("utf-8", "surrogateescape")


def invite(
    call_id: str = "one",
    uri: str = "sip:8000@192.0.2.16:5060",
    sender: str = CALLER,
    to: str = CALLEE,
    cseq: int = 1,
    method: str = "INVITE",
) -> Request:
    found = parse(message(f"{method} {uri} SIP/2.0", call_id, f"{cseq} {method}", sender, to))
    assert isinstance(found, Request)
    return found


def answer(
    status: int,
    *call_infos: str,
    call_id: str = "one",
    sender: str = CALLER,
    to: str = CALLEE + ";tag=as77",
    cseq: str = "1 INVITE",
) -> Response:
    lines = [f"Call-Info: {value}" for value in call_infos]
    found = parse(message(f"SIP/2.0 {status} Any", call_id, cseq, sender, to, *lines))
    assert isinstance(found, Response)
    return found


def offer(uri: str = "sip:04dd@192.0.2.16", m: str = "") -> str:
    return f"<{uri}>;purpose=call-completion" + (f";m={m}" if m else "")


def begun(calls: Calls, request: Request, outgoing: bool = True, now: float = 0) -> Call:
    call = calls.noted(request, outgoing, now)
    assert call is not None
    return call


def busy_call(calls: Calls) -> Call:
    call = begun(calls, invite())
    calls.answered(answer(100), 0)
    calls.answered(answer(180, offer(m="NR")), 1)
    calls.answered(answer(486, offer(m="BS")), 2)
    return call


# -------------------------------------------------------------------------------------- what is remembered


def test_a_call_as_it_passes() -> None:
    calls = Calls()
    call = begun(calls, invite(), now=5)
    assert (call.call_id, call.outgoing, call.seen) == ("one", True, 5)
    assert (call.from_uri, call.uri, call.to_uri) == (
        "sip:1000@192.0.2.22",
        "sip:8000@192.0.2.16:5060",
        "sip:8000@192.0.2.16",
    )
    assert (call.user, call.from_user, call.from_tag, call.cseq) == ("8000", "1000", "543964af", 1)
    assert (call.status, call.final, call.answered, call.monitors) == (0, 0, False, ())
    assert calls.get("one") is call
    assert calls.latest(True, "8000", "1000") is call
    assert len(calls) == 1


def test_a_call_that_fails() -> None:
    calls = Calls()
    call = begun(calls, invite())
    assert calls.answered(answer(100), 1) is call
    assert (call.status, call.final, call.monitors) == (100, 0, ())
    assert calls.answered(answer(180, offer("sip:a@h", "NR")), 2) is call
    assert (call.status, call.final, call.monitors) == (180, 0, (("sip:a@h", "NR"),))
    assert calls.answered(answer(486, offer("sip:b@h"), offer("sip:a@h", "BS")), 3) is call
    assert (call.status, call.final, call.answered) == (486, 486, False)
    assert call.monitors == (("sip:a@h", "BS"), ("sip:b@h", ""))
    assert call.seen == 3


def test_a_call_that_is_answered_keeps_its_monitors() -> None:
    # 4.4: a voice mailbox answers, and the caller wants the callee
    calls = Calls()
    call = begun(calls, invite())
    calls.answered(answer(183, offer(m="NR")), 1)
    calls.answered(answer(200), 2)
    assert (call.status, call.final, call.answered) == (200, 200, True)
    assert call.monitors == (("sip:04dd@192.0.2.16", "NR"),)


def test_a_100_offers_nothing() -> None:
    calls = Calls()
    call = begun(calls, invite())
    calls.answered(answer(100, offer()), 0)
    assert call.monitors == ()


def test_monitors_are_each_kept_once_and_at_most_ten() -> None:
    calls = Calls()
    call = begun(calls, invite())
    for n in range(15):
        calls.answered(answer(180, offer(f"sip:{n}@h", "NR"), offer("sip:0@h")), n)
    assert call.monitors == tuple((f"sip:{n}@h", "NR") for n in range(MAX_MONITORS))
    calls.answered(answer(486, offer("sip:9@h", "BS"), offer("sip:99@h", "BS")), 15)
    assert call.monitors[-1] == ("sip:9@h", "BS")


# ------------------------------------------------------------------------------------ what changes nothing


def told(call: Call) -> tuple[object, ...]:
    return call.uri, call.from_tag, call.cseq, call.status, call.monitors


@pytest.mark.parametrize(
    "response",
    [
        answer(486, offer(m="BS")),
        answer(180, offer(m="NR")),
        answer(183),
        answer(100),
    ],
)
def test_a_response_that_comes_again_or_late_changes_nothing(response: Response) -> None:
    calls = Calls()
    call = busy_call(calls)
    before = told(call)
    assert calls.answered(response, 3) is call
    assert told(call) == before


def test_an_invite_that_comes_again_changes_nothing() -> None:
    calls = Calls()
    call = busy_call(calls)
    begun(calls, invite("two"), now=3)
    before = told(call)
    assert calls.noted(invite(), True, 4) is call
    assert told(call) == before
    assert calls.latest(True, "8000", "1000") is calls.get("two")
    assert len(calls) == 2


def test_nothing_follows_a_2xx() -> None:
    calls = Calls()
    call = begun(calls, invite())
    for status in (200, 200, 180, 486, 202):
        calls.answered(answer(status), 1)
    assert (call.status, call.answered) == (200, True)


def test_a_later_final_response_counts() -> None:
    # Of two forks that pass here the second is refused at once as merged
    calls = Calls()
    call = begun(calls, invite())
    calls.answered(answer(482), 1)
    calls.answered(answer(486), 1)
    assert call.final == 486


@pytest.mark.parametrize("method", ["ACK", "CANCEL", "BYE", "OPTIONS", "SUBSCRIBE"])
def test_only_an_invite_begins_a_call(method: str) -> None:
    calls = Calls()
    assert calls.noted(invite(method=method), True, 0) is None
    assert len(calls) == 0


def test_a_re_invite_is_no_call() -> None:
    calls = Calls()
    assert calls.noted(invite(to=CALLEE + ";tag=as77"), True, 0) is None
    assert len(calls) == 0
    call = busy_call(calls)
    before = told(call)
    assert calls.noted(invite(to=CALLEE + ";tag=as77", cseq=2), True, 3) is None
    assert calls.answered(answer(200, offer("sip:x@h"), cseq="2 INVITE"), 3) is None
    assert told(call) == before


def test_a_re_invite_of_the_callee_is_answered_with_the_same_cseq() -> None:
    calls = Calls()
    call = begun(calls, invite())
    calls.answered(answer(200), 1)
    back = answer(488, offer(), sender=CALLEE + ";tag=as77", to=CALLER)
    assert calls.answered(back, 2) is None
    assert (call.status, call.monitors) == (200, ())


@pytest.mark.parametrize(
    "response",
    [
        answer(486, call_id="other"),
        answer(200, cseq="1 CANCEL"),
        answer(200, cseq="1 BYE"),
        answer(486, cseq="2 INVITE"),
        answer(486, sender="<sip:1000@192.0.2.22>"),
        answer(486, sender="<sip:1000@192.0.2.22>;tag=other"),
    ],
)
def test_what_answers_no_call_here(response: Response) -> None:
    calls = Calls()
    call = begun(calls, invite())
    before = told(call)
    assert calls.answered(response, 1) is None
    assert told(call) == before


def test_a_from_that_was_written_anew_is_still_the_same() -> None:
    calls = Calls()
    call = begun(calls, invite())
    assert calls.answered(answer(486, sender="Alice <sip:1000@h>;x=y;TAG=543964af"), 1) is call


def test_a_caller_without_a_tag() -> None:
    calls = Calls()
    call = begun(calls, invite(sender="sip:1000@h"))
    assert calls.answered(answer(486, sender="sip:1000@h"), 1) is call


# --------------------------------------------------------------------------------- the same Call-ID again


def test_a_challenge_and_its_answer_are_one_call() -> None:
    calls = Calls()
    call = begun(calls, invite(), now=1)
    calls.answered(answer(401), 2)
    assert calls.noted(invite(cseq=2), True, 3) is call
    assert (call.status, call.final, call.cseq) == (0, 0, 2)
    assert calls.answered(answer(401), 4) is None
    assert calls.noted(invite(cseq=1), True, 4) is call
    assert (call.status, call.cseq) == (0, 2)
    assert calls.answered(answer(486, offer(), cseq="2 INVITE"), 5) is call
    assert call.final == 486
    assert len(calls) == 1


def test_a_redirected_call_is_known_by_where_it_went_first() -> None:
    calls = Calls()
    call = begun(calls, invite())
    calls.answered(answer(302, offer("sip:a@h", "NR")), 1)
    assert calls.noted(invite(uri="sip:9000@h", cseq=2), True, 2) is call
    calls.answered(answer(486, offer("sip:b@h", "BS"), cseq="2 INVITE"), 3)
    assert call.monitors == (("sip:a@h", "NR"), ("sip:b@h", "BS"))
    assert calls.latest(True, "8000", "1000") is call
    assert calls.latest(True, "9000", "1000") is None


def test_another_from_tag_is_another_call() -> None:
    calls = Calls()
    first = busy_call(calls)
    second = begun(calls, invite(sender="<sip:1000@h>;tag=new"), now=9)
    assert second is not first
    assert (second.seen, second.status, second.monitors) == (9, 0, ())
    assert calls.get("one") is calls.latest(True, "8000", "1000") is second
    assert len(calls) == 1


def test_one_side_cannot_take_the_others_call() -> None:
    calls = Calls()
    call = busy_call(calls)
    before = told(call)
    for request in (invite(), invite(cseq=9), invite(sender="<sip:1000@h>;tag=new")):
        assert calls.noted(request, False, 3) is None
    assert told(call) == before
    assert calls.get("one") is call
    assert calls.latest(False, "8000", "1000") is None


# --------------------------------------------------------------------------------------------- looking up


def test_the_latest_of_its_direction_user_and_caller() -> None:
    calls = Calls()
    begun(calls, invite("old"), now=0)
    new = begun(calls, invite("new"), now=1)
    begun(calls, invite("user", uri="sip:8001@h"), now=2)
    begun(calls, invite("from", sender="<sip:1001@h>;tag=x"), now=2)
    back = begun(calls, invite("back"), outgoing=False, now=2)
    calls.answered(answer(180, call_id="old"), 3)
    assert calls.latest(True, "8000", "1000") is new
    assert calls.latest(False, "8000", "1000") is back
    assert calls.latest(True, "8000", "8000") is None
    assert calls.latest(True, "", "") is None


@pytest.mark.parametrize(
    ("uri", "user"),
    [
        ("sip:8000@h", "8000"),
        ("sips:*31#1@h:5061;x=y", "*31#1"),
        ("sip:+49-30@h", "+49-30"),
        ("sip:%2B4930@h", "+4930"),
        ("sip:8000:secret@h", "8000"),
        ("sip:CC_856;76@h;transport=UDP", "CC_856;76"),
        ("sip:4930;phone-context=a@h;user=phone", "4930;phone-context=a"),
        ("SIP:8000@h", "8000"),
        ("tel:+4930;phone-context=+49", "+4930"),
        ("sip:h", ""),
        ("sip:8000:secret@h:99999", ""),
        ("sip:a\0@h", ""),
        ("sip:a%0Ab@h", "a%0Ab"),
        ("sip:a%ffb@h", "a%ffb"),
        ("sip:%C5%BC@h", "\u017c"),
        ("sip:100%@h", "100%"),
    ],
)
def test_users_are_compared_without_escapes(uri: str, user: str) -> None:
    calls = Calls()
    call = begun(calls, invite(uri=uri, sender=f"<{uri}>;tag=x"))
    assert (call.user, call.from_user, call.uri, call.from_uri) == (user, user, uri, uri)
    assert calls.latest(True, user, user) is call


def test_the_user_asked_for_may_have_escapes_and_blanks() -> None:
    calls = Calls()
    call = begun(calls, invite(uri="sip:+4930@h", sender="<sip:CC_856;76 @h>;tag=x"))
    assert calls.latest(True, "%2b4930", "CC_856;76 ") is call
    assert plain_user(" a%20b\t") == "a b"


# ------------------------------------------------------------------------------------------- forgetting


def test_a_call_is_forgotten_five_minutes_after_its_last_message() -> None:
    calls = Calls()
    call = begun(calls, invite(), now=0)
    calls.answered(answer(180), 200)
    calls.answered(answer(486), 250)
    begun(calls, invite("two"), now=549.9)
    assert calls.get("one") is call
    begun(calls, invite("three"), now=550)
    assert calls.get("one") is None
    assert calls.latest(True, "8000", "1000") is calls.get("three")
    assert len(calls) == 2


def test_a_call_that_rings_for_long_is_kept_by_what_repeats() -> None:
    calls = Calls()
    call = begun(calls, invite(), now=0)
    for now in range(60, 1000, 60):  # 13.3.1.1: every minute
        assert calls.answered(answer(180), now) is call


def test_over_is_over_though_nothing_passes() -> None:
    calls = Calls()
    begun(calls, invite(), now=0)
    assert calls.get("one", 299.9) is not None
    assert calls.get("one", 300) is None
    assert calls.latest(True, "8000", "1000", 299.9) is not None
    assert calls.latest(True, "8000", "1000", 300) is None


def test_what_comes_after_that_time_is_not_known() -> None:
    calls = Calls()
    old = begun(calls, invite(), now=0)
    assert calls.answered(answer(486), 300) is None
    new = begun(calls, invite(), outgoing=False, now=300)
    assert new is not old
    assert calls.get("one") is new


def test_an_older_call_is_the_latest_once_the_newer_is_forgotten() -> None:
    calls = Calls()
    old, new = begun(calls, invite("old"), now=0), begun(calls, invite("new"), now=1)
    calls.answered(answer(180, call_id="old"), 200)
    assert calls.latest(True, "8000", "1000", 300) is new
    assert calls.latest(True, "8000", "1000", 301) is old
    assert calls.latest(True, "8000", "1000", 500) is None


def test_the_oldest_is_forgotten_when_there_are_too_many() -> None:
    calls = Calls(most=3)
    for n, call_id in enumerate(("a", "b", "c")):
        begun(calls, invite(call_id), now=n)
    calls.answered(answer(180, call_id="a"), 3)
    begun(calls, invite("d"), now=4)
    assert [c for c in "abcd" if calls.get(c)] == ["a", "c", "d"]


def test_the_text_of_all_calls_is_bounded() -> None:
    calls = Calls(text=20_000)
    for n in range(100):
        begun(calls, invite(str(n), uri=f"sip:{'8' * 1000}@h"), now=n)
    assert 15 < len(calls) < 20
    begun(calls, invite("small"), now=100)
    many = [offer(f"sip:{'x' * 900}{n}@h") for n in range(MAX_MONITORS)]
    calls.answered(answer(486, *many, call_id="small"), 101)
    assert 5 < len(calls) < 12
    assert calls.get("small") is not None


def test_a_call_that_says_too_much_is_not_remembered() -> None:
    calls = Calls()
    assert calls.noted(invite(uri=f"sip:{'8' * MAX_TEXT_OF_ONE}@h"), True, 0) is None
    assert len(calls) == 0
    assert calls.latest(True, "8" * MAX_TEXT_OF_ONE, "1000") is None


# ------------------------------------------------------------------------------- against a simple memory


class Simple:
    """The same by looking through a list: slow, and hard to get wrong."""

    def __init__(self, most: int, kept: float) -> None:
        self.most, self.kept = most, kept
        self.calls: list[tuple[str, tuple[bool, str, str], str]] = []  # by when they began
        self.seen: dict[str, tuple[float, int]] = {}
        self.turn = 0

    def drop(self, call_id: str) -> None:
        self.calls = [c for c in self.calls if c[0] != call_id]
        del self.seen[call_id]

    def touch(self, call_id: str, now: float) -> None:
        self.turn += 1
        self.seen[call_id] = now, self.turn
        for over in [c for c, (at, _) in self.seen.items() if at + self.kept <= now]:
            self.drop(over)
        while len(self.seen) > self.most:
            self.drop(min(self.seen, key=lambda c: self.seen[c][1]))

    def noted(self, call_id: str, key: tuple[bool, str, str], tag: str, now: float) -> None:
        known = next((c for c in self.calls if c[0] == call_id), None)
        if known and self.seen[call_id][0] + self.kept > now:
            if known[1][0] != key[0]:
                return
            if known[2] == tag:
                self.touch(call_id, now)
                return
        if known:
            self.drop(call_id)
        self.calls.append((call_id, key, tag))
        self.touch(call_id, now)

    def answered(self, call_id: str, now: float) -> None:
        if call_id in self.seen and self.seen[call_id][0] + self.kept > now:
            self.touch(call_id, now)

    def latest(self, key: tuple[bool, str, str], now: float) -> str | None:
        found = [c for c, k, _ in self.calls if k == key and self.seen[c][0] + self.kept > now]
        return found[-1] if found else None


@pytest.mark.parametrize("seed", range(5))
def test_it_remembers_what_a_simple_memory_would(seed: int) -> None:
    chance = random.Random(seed)
    calls, simple = Calls(most=12, kept=30), Simple(most=12, kept=30)
    now = 0.0

    def one_of(values: Sequence[str]) -> str:
        return chance.choice(values)

    for _ in range(3000):
        now += chance.choice([0, 0, 1, 2, 8])
        call_id, user, sender, tag = (
            one_of("abcdefghijklmnopqrst"),
            one_of("12"),
            one_of("34"),
            one_of("xxxy"),
        )
        outgoing = chance.random() < 0.7
        known = calls.get(call_id)
        if known is not None and chance.random() < 0.5:
            response = answer(180, call_id=call_id, sender=f"<sip:{sender}@h>;tag={known.from_tag}")
            calls.answered(response, now)
            simple.answered(call_id, now)
        else:
            calls.noted(invite(call_id, f"sip:{user}@h", f"<sip:{sender}@h>;tag={tag}"), outgoing, now)
            simple.noted(call_id, (outgoing, user, sender), tag, now)
        now += chance.choice([0, 0, 3])
        for key in ((True, "1", "3"), (True, "2", "4"), (False, "1", "4")):
            found = calls.latest(*key, now)
            assert (found and found.call_id) == simple.latest(key, now)


def test_hundreds_of_calls_a_second_are_remembered_at_once() -> None:
    calls = Calls(most=2000)
    requests = [invite(f"{n}-543964af-bcfc-490d", sender=f"<sip:1000@h>;tag={n}") for n in range(4000)]
    responses = [
        answer(486, offer(m="BS"), call_id=r.call_id, sender=f"<sip:1000@h>;tag={n}")
        for n, r in enumerate(requests)
    ]
    start = time.perf_counter()
    for n, (request, response) in enumerate(zip(requests, responses, strict=True)):
        calls.noted(request, True, n / 400)
        calls.answered(response, n / 400)
        calls.latest(True, "8000", "1000", n / 400)
    assert (time.perf_counter() - start) / len(requests) < 0.0005  # usually 0.00003
    assert len(calls) == 2000


def test_a_message_waits_for_few_calls_to_be_forgotten() -> None:
    calls = Calls()
    for n in range(1000):
        begun(calls, invite(str(n)), now=0)
    begun(calls, invite("new"), now=1000)
    assert 980 < len(calls) < 1000
    assert calls.get("999", 1000) is None
    for n in range(200):
        begun(calls, invite(f"new{n}"), now=1000)
    assert len(calls) == 201
