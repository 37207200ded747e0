"""A site that keeps its plain Dial() lines: one hang-up handler, set in pjsip.conf, serves them all."""

from __future__ import annotations

import csv
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.asterisk import Trunk
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Call
from tests.lab.server import DIALPLAN
from tests.real import test_scenarios, test_turn, test_waiting
from tests.real.bench import HEAD, NAMES, QUICK, SEEN, Bench
from tests.real.test_attack import escaped, slipping

HANDLER = "set_var=CHANNEL(hangup_handler_push)=cc-hangup,s,1\n"

# No line here knows of call completion, but for the codes. {after}: what follows Dial().
SITE = """\
 same => n,Verbose(1,site-account ${{CHANNEL}} [${{CHANNEL(accountcode)}}] [${{CHANNEL(language)}}])

[site]
exten => _[1-4]000,1,Dial(PJSIP/${{EXTEN}},{ring})
{after}
exten => 2999,1,Dial(PJSIP/2999,{ring})
exten => _5[1-4]000,1,Dial(PJSIP/${{EXTEN:1}},{ring})
 same => n,Hangup()
; by other ways to the same phone
exten => _61[1-4]000,1,Goto(elsewhere,s,1)
exten => _62[1-4]000,1,Gosub(deeper,s,1(${{EXTEN:2}},x))
 same => n,Hangup()
exten => _63[1-4]000,1,Set(CHANNEL(hangup_handler_push)=own,s,1)
 same => n,Goto(${{EXTEN:2}},1)
exten => _64[1-4]000,1,Set(CHANNEL(hangup_handler_push)=cc-hangup,s,1(${{EXTEN:2}},PJSIP/${{EXTEN:2}}))
 same => n,Dial(PJSIP/${{EXTEN:2}},{ring})
exten => _65[1-4]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN:2}},{ring},,${{EXTEN:2}}))
 same => n,Hangup()
exten => _66[1-4]000,1,Dial(PJSIP/${{EXTEN:2}}&PJSIP/4000,{ring})
exten => 8888,1,Dial(PJSIP/trunk/sip:8888@127.0.0.1:{trunk},5)
{after}
exten => 8889,1,Dial(PJSIP/8889@trunk,5)
; as careless as a site can be
exten => _9!,1,Dial(PJSIP/2000,{ring})

[elsewhere]
exten => s,1,Dial(PJSIP/2000,{ring})
 same => n,Hangup()
[deeper]
exten => s,1,Dial(PJSIP/${{ARG1}},{ring})
 same => n,Return()
[own]
exten => s,1,Verbose(1,own-handler ${{CHANNEL}} ${{DIALSTATUS}})
 same => n,Return()
[trunk]
"""

HANGUP = " same => n,Hangup()\n"
VOICEMAIL = """\
 same => n,Answer()
 same => n,Playback(beep)
 same => n,Wait(60)
"""


class Plain(Bench):
    """Phones 1000 to 4000 whose endpoints push the handler, and a dialplan without a line of ours."""

    after = ""

    def dialplan(self, ring: int = 20, more: str = "") -> str:
        return (HEAD + SITE).format(
            port=self.port,
            dialplan=DIALPLAN,
            ring=ring,
            trunk=self.trunk_port,
            seen=SEEN,
            after=self.after,
        ) + more

    def configure(self) -> None:
        phones = [Endpoint(number, name, extra=HANDLER) for number, name in NAMES.items()]
        phones[0] = Endpoint("1000", "Alice", extra=HANDLER + "accountcode=sales\nlanguage=en_GB\n")
        trunk = Trunk("trunk", "127.0.0.1", self.trunk_port)
        self.asterisk.configure(self.dialplan(), phones, [trunk])

    def fresh(self, config: str = QUICK) -> None:
        self.after = ""
        super().fresh(config)

    def lines_are(self, after: str) -> None:
        """From now on this follows Dial()."""
        self.after = after
        self.asterisk.reload_dialplan(self.dialplan())

    def transfers(self, call: Call, number: str) -> None:
        """One of two who talk sends the other to this number."""
        self.until(lambda: len(self.site_lines("joined 'simple_bridge'")) == 2, "they are joined")
        host = "{}:{}".format(*self.asterisk.sip_address)
        call._ask("REFER", [("Refer-To", f"<sip:{number}@{host}>"), ("Referred-By", f"<sip:x@{host}>")], "")


@pytest.fixture(scope="module")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("plain")
    with Plain(folder, ensure_asterisk()).running() as bench:
        yield bench


# -- what other sites can do, this one can

SAME = [
    test_scenarios.test_1_busy_asked_called_back,
    test_scenarios.test_2_no_answer_called_back_after_his_next_call,
    test_scenarios.test_3_taken_back,
    test_scenarios.test_4_asked_too_late,
    test_scenarios.test_5_callee_busy_for_too_long,
    test_scenarios.test_6_callee_untouched_for_too_long,
    test_turn.test_caller_declines_his_recall,
    test_turn.test_callee_busy_again_when_the_caller_picks_up,
    test_turn.test_callee_with_do_not_disturb_must_first_use_his_phone,
    test_turn.test_callee_does_not_answer_the_cc_call,
    test_turn.test_caller_hangs_up_before_the_callee_answers,
    test_waiting.test_caller_gives_up_while_it_rings,
    test_waiting.test_callee_declined,
    test_waiting.test_callee_not_registered_then_registers,
    test_waiting.test_through_a_trunk_there_is_nobody_to_watch,
]


# Where the call after the recall fails too, what follows Dial() is seen once more.
FAILS_AGAIN = [
    test_scenarios.test_1_busy_asked_called_back,
    test_turn.test_callee_busy_again_when_the_caller_picks_up,
    test_turn.test_callee_does_not_answer_the_cc_call,
]


@pytest.mark.parametrize("same", SAME, ids=lambda test: test.__name__.removeprefix("test_"))
def test_as_everywhere(bench: Plain, same: Callable[[Bench], None]) -> None:
    same(bench)


@pytest.mark.parametrize("same", FAILS_AGAIN, ids=lambda test: test.__name__.removeprefix("test_"))
def test_as_everywhere_with_hangup_after_dial(bench: Plain, same: Callable[[Bench], None]) -> None:
    bench.lines_are(HANGUP)
    same(bench)


# -- what was dialled, and what was tried


@pytest.mark.parametrize("way", ["61", "62", "63", "64", "65"])
def test_by_another_way(bench: Plain, way: str) -> None:
    """Goto, Gosub, a handler of the site's own, one of ours that knows more, cc-dial: one offer each."""
    bench.phones["2000"].answer = "busy"
    bench.fails(f"{way}2000")
    [offer] = bench.offers()
    number = "2000" if way in ("64", "65") else f"{way}2000"
    assert (offer.callee, offer.callee_devices, offer.service) == (number, ("PJSIP/2000",), "CCBS")
    own_handler_ran(bench, "PJSIP/1000", way == "63")
    talk = bench.talk("2000", "3000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.completes(talk)
    own_handler_ran(bench, "Local/", way == "63")


def own_handler_ran(bench: Plain, channel: str, ran: bool) -> None:
    """Once on such a channel, or not at all."""
    if ran:
        bench.site_line(f"1,own-handler {channel}")
    else:
        assert not bench.site_lines(f"1,own-handler {channel}")


def test_given_up_in_a_gosub(bench: Plain) -> None:
    bench.phones["1000"].dial("622000").wait_ringing().hangup().wait_ended()
    bench.recorded()
    [offer] = bench.offers()
    assert (offer.callee, offer.callee_devices, offer.service) == ("622000", ("PJSIP/2000",), "CCNR")


def test_several_at_once(bench: Plain) -> None:
    bench.phones["2000"].answer = bench.phones["4000"].answer = "busy"
    bench.fails("662000")
    [offer] = bench.offers()
    assert set(offer.callee_devices) == {"PJSIP/2000", "PJSIP/4000"}


def test_nobody_has_that_number(bench: Plain) -> None:
    bench.fails("2999")
    assert [o.reason for o in bench.offers()] == ["NO_SUCH_NUMBER"]


@pytest.mark.parametrize("after", ["", HANGUP], ids=["nothing", "Hangup"])
def test_nobody_has_that_number_there(bench: Plain, after: str) -> None:
    bench.lines_are(after)
    bench.another("trunk", port=bench.trunk_port, answer="404")
    bench.fails("8888")
    assert [o.reason for o in bench.offers()] == ["NO_SUCH_NUMBER"]


@pytest.mark.parametrize("number", ["8888", "8889"])
def test_a_trunk_is_no_phone(bench: Plain, number: str) -> None:
    bench.another("trunk", port=bench.trunk_port, answer="busy")
    bench.fails(number)
    assert [(o.callee, o.reason) for o in bench.offers()] == [(number, "CALLEE_NOT_WATCHABLE")]


def test_an_answered_call_is_not_recorded(bench: Plain) -> None:
    bench.phones["2000"].answer = "answer"
    bench.phones["1000"].dial("2000").wait_answered().hangup().wait_ended()
    bench.phones["1000"].dial("*32").wait_answered().wait_ended(10)
    bench.phones["2000"].answer = "busy"
    bench.fails("2000")
    assert len(bench.offers()) == 1


def talking(bench: Plain) -> tuple[Call, Call]:
    """1000 has called 2000, and 3000 is busy: the caller's call, and the callee's."""
    bench.lines_are(HANGUP)
    bench.phones["2000"].answer, bench.phones["3000"].answer = "answer", "busy"
    call = bench.phones["1000"].dial("2000").wait_answered()
    return call, bench.phones["2000"].expect_call().wait_answered()


def test_who_was_transferred_waits_for_the_one_he_did_not_reach(bench: Plain) -> None:
    call, his = talking(bench)
    bench.transfers(his, "3000")
    call.wait_ended()
    bench.recorded()
    assert [(o.callee, o.callee_devices) for o in bench.offers()] == [("3000", ("PJSIP/3000",))]


def test_a_callee_who_is_transferred(bench: Plain) -> None:
    """Then it is he who calls, and does not reach the third."""
    call, his = talking(bench)
    bench.transfers(call, "3000")
    his.wait_ended()
    bench.recorded()
    [offer] = bench.offers()
    assert (offer.caller, offer.callee, offer.callee_devices) == ("2000", "3000", ("PJSIP/3000",))


def test_a_call_that_another_picks_up(bench: Plain) -> None:
    pickup = "[phones](+)\nexten => _*8XXXX,1,Pickup(${EXTEN:2}@phones)\n same => n,Hangup()\n"
    bench.asterisk.reload_dialplan(bench.dialplan(more=pickup))
    call = bench.phones["1000"].dial("2000").wait_ringing()
    other = bench.phones["3000"].dial("*82000").wait_answered()
    call.wait_answered().hangup()
    other.wait_ended()
    bench.until(lambda: not bench.asterisk.channels(), "no channel is left")
    bench.phones["2000"].answer = "busy"
    bench.fails("2000")
    assert len(bench.offers()) == 1


HOSTILE = [
    "90\nagi_evil: 1",
    "9,5,1",
    '9"',
    "9(x)",
    "9${EXTEN}",
    "9^CC_NOTE_STATUS=ANSWER",
    slipping("9"),
    slipping("9\nx"),
    "9" * 60,
]


@pytest.mark.parametrize("user", HOSTILE, ids=lambda user: ascii(user[:30]))
def test_a_hostile_extension(bench: Plain, user: str) -> None:
    """It is his latest call, so *30 means no older one; it is no number, so nobody is called back."""
    bench.meets_busy("1000", "2000")
    bench.recorded()
    bench.phones["2000"].answer = "busy"
    bench.phones["1000"].dial("x", user_raw=escaped(user)).wait_ended()
    bench.recorded(2)
    assert bench.offers()[-1].reason == "INVALID" and bench.offers()[-1].callee == ""
    assert bench.asks("1000") == "FAIL/INVALID"
    assert not bench.server.log_lines("agi_evil")


# -- the server is not there


def test_nothing_waits_for_a_server_that_hangs(bench: Plain) -> None:
    bench.server.stop()
    with socket.create_server(("127.0.0.1", bench.port), backlog=128):
        bench.phones["2000"].answer = "busy"
        began = time.monotonic()
        bench.phones["1000"].dial("2000").wait_status(486)
        assert time.monotonic() - began < 0.3
        bench.phones["2000"].answer = "ring"
        call = bench.phones["1000"].dial("2000").wait_ringing()
        began = time.monotonic()
        call.hangup().wait_ended()
        assert time.monotonic() - began < 0.3
        bench.forget("2000")
        bench.phones["2000"].answer = "answer"
        call = bench.phones["1000"].dial("2000").wait_answered()
        began = time.monotonic()
        bench.phones["2000"].expect_call().hangup()
        call.wait_ended()
        assert time.monotonic() - began < 0.3
        bench.until(lambda: not bench.asterisk.channels(), "no channel is left", 8)
    bench.site_line("1,site-h PJSIP/1000", 3)


def test_nothing_waits_for_a_server_that_is_down(bench: Plain) -> None:
    bench.server.stop()
    bench.phones["2000"].answer = "busy"
    began = time.monotonic()
    bench.phones["1000"].dial("2000").wait_status(486)
    assert time.monotonic() - began < 0.3
    bench.until(lambda: not bench.asterisk.channels(), "no channel is left")


# -- the call after the recall


def again(bench: Plain, after: str) -> tuple[Call, Call]:
    """Recalled, and the callee is in a call again; answers the recall, once it is over, and that call."""
    bench.busy_and_asked().hangup()
    bench.lines_are(after)
    recall = bench.recalled()
    talk = bench.talk("2000", "3000")
    recall.answer().wait_ended(8)
    bench.forget("2000")
    return recall, talk


def served(bench: Plain, talk: Call) -> None:
    [request] = bench.server.requests()
    assert (request.state, request.service, request.recalls) == ("QUEUED", "CCBS", 1)
    bench.completes(talk)


@pytest.mark.parametrize(
    "after",
    ["", HANGUP, " same => n,Busy()\n", " same => n,Congestion()\n"],
    ids=["nothing", "Hangup", "Busy", "Congestion"],
)
def test_busy_again(bench: Plain, after: str) -> None:
    """He is told and hung up, whatever the site does then, and keeps his place."""
    recall, talk = again(bench, after)
    assert recall.ended_by == "them"
    said = [name.rpartition("/")[2] for name in bench.played()]
    assert said[-5:-1] == list("2000") and said[-1] in ("vm-isonphone", "vm-isunavail")
    if "Congestion" not in after:
        assert said[-1] == "vm-isonphone"
    served(bench, talk)


def test_busy_again_and_voicemail_answers(bench: Plain) -> None:
    """He hears the voicemail, as on any call of his; that is no answer of the callee's."""
    talk = bench.talk("2000", "3000")
    bench.lines_are(VOICEMAIL)
    call = bench.phones["1000"].dial("2000").wait_answered()
    bench.until(lambda: "beep" in bench.played(), "the voicemail is there")
    call.hangup()
    bench.recorded()
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    recall = bench.recalled()
    talk = bench.talk("2000", "3000")
    recall.answer().wait_answered()
    bench.until(lambda: bench.played().count("beep") == 2, "the voicemail is there again")
    recall.hangup()
    bench.until(lambda: bench.server.requests()[0].state == "QUEUED", "he keeps his place")
    bench.forget("2000")
    served(bench, talk)


def test_callee_gone_when_the_caller_picks_up(bench: Plain) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.phones["2000"].unregister()
    recall.answer().wait_ended(8)
    assert bench.played()[-1] == "vm-isunavail"
    [request] = bench.server.requests()
    assert (request.state, request.service) == ("QUEUED", "CCNL")
    bench.phones["2000"].register()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_the_extension_is_there_no_more(bench: Plain) -> None:
    """The site has changed its dialplan meanwhile: he is told and hung up."""
    talk = bench.busy_and_asked()
    bench.asterisk.reload_dialplan(bench.dialplan().replace("_[1-4]000,1,Dial", "_[13-4]000,1,Dial"))
    talk.hangup()
    bench.recalled().answer().wait_ended(8)
    assert bench.played()[-1] == "vm-isunavail"


def test_server_dies_during_the_cc_call(bench: Plain) -> None:
    """Nobody waits for it: the caller is told and hung up all the same."""
    bench.busy_and_asked().hangup()
    recall = bench.recalled().answer()
    call = bench.phones["2000"].expect_call()
    bench.server.kill()
    call.reject(486)
    recall.wait_ended(8)
    assert bench.played()[-1] == "vm-isonphone"
    bench.until(lambda: not bench.asterisk.channels(), "no channel is left", 8)


def test_on_whose_account(bench: Plain) -> None:
    """The call after the recall is his: account, language, number; and one row of the call records."""
    bench.busy_and_asked().hangup()
    rows = bench.asterisk.folder / "log/cdr-csv/Master.csv"
    before = len(rows.read_text().splitlines())
    recall = bench.recalled()
    call = bench.connects(recall, "2000")
    assert (call.from_number, call.from_name) == ("1000", "Alice")
    call.hangup()
    recall.wait_ended()
    bench.ended("COMPLETED")
    bench.until(lambda: not bench.asterisk.channels(), "no channel is left")
    assert "[sales] [en_GB]" in bench.site_line("1,site-account Local/")
    new = list(csv.reader(rows.read_text().splitlines()[before:]))
    mine = [row for row in new if row[2] == "2000"]
    assert [(row[0], row[1], row[3], row[14]) for row in mine] == [("sales", "1000", "phones", "ANSWERED")], (
        new
    )
