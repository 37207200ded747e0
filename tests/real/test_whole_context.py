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
from tests.real.bench import NAMES, SEEN, Bench
from tests.real.test_attack import escaped, slipping

HANDLER = "set_var=CHANNEL(hangup_handler_push)=cc-hangup,s,1\n"

# No line here knows of call completion, but for the codes. {after}: what follows Dial().
SITE = """\
[general]
[globals]
CC_AGI=agi://127.0.0.1:{port}
#include "{dialplan}/*.conf"

[phones]
include => cc-features
include => site
exten => h,1,{seen}
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
        return (
            SITE.format(
                port=self.port,
                dialplan=DIALPLAN,
                ring=ring,
                trunk=self.trunk_port,
                seen=SEEN,
                after=self.after,
            )
            + more
        )

    def configure(self) -> None:
        phones = [Endpoint(number, name, extra=HANDLER) for number, name in NAMES.items()]
        phones[0] = Endpoint("1000", "Alice", extra=HANDLER + "accountcode=sales\nlanguage=en_GB\n")
        trunk = Trunk("trunk", "127.0.0.1", self.trunk_port)
        self.asterisk.configure(self.dialplan(), phones, [trunk])

    def lines_are(self, after: str) -> None:
        """From now on this follows Dial()."""
        self.after = after
        self.asterisk.reload_dialplan(self.dialplan())

    def recorded(self, count: int = 1) -> None:
        self.until(lambda: len(self.offers()) == count, f"{count} calls are on record")

    def transfers(self, call: Call, number: str) -> None:
        """One of two who talk sends the other to this number."""
        self.until(lambda: len(self.site_lines("joined 'simple_bridge'")) == 2, "they are joined")
        host = "{}:{}".format(*self.asterisk.sip_address)
        call._ask("REFER", [("Refer-To", f"<sip:{number}@{host}>"), ("Referred-By", f"<sip:x@{host}>")], "")

    def fails(self, number: str, caller: str = "1000") -> Call:
        """A call that fails by itself; answers it once it is on record."""
        before = len(self.offers())
        call = self.phones[caller].dial(number).wait_ended(8)
        self.recorded(before + 1)
        for phone in self.phones:
            self.forget(phone)
        return call


@pytest.fixture(scope="module")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("plain")
    with Plain(folder, ensure_asterisk()).running() as bench:
        yield bench


@pytest.fixture
def plain(running_bench: Plain, request: pytest.FixtureRequest) -> Iterator[Plain]:
    running_bench.after = ""
    running_bench.fresh()
    yield running_bench
    if hasattr(request.node, "failed"):
        print(running_bench.evidence())
    running_bench.clear()


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


@pytest.mark.parametrize("after", ["", HANGUP], ids=["nothing", "Hangup"])
@pytest.mark.parametrize("same", SAME, ids=lambda test: test.__name__.removeprefix("test_"))
def test_as_everywhere(plain: Plain, same: Callable[[Bench], None], after: str) -> None:
    plain.lines_are(after)
    same(plain)


# -- what was dialled, and what was tried


@pytest.mark.parametrize("way", ["61", "62", "63", "64", "65"])
def test_by_another_way(plain: Plain, way: str) -> None:
    """Goto, Gosub, a handler of the site's own, one of ours that knows more, cc-dial: one offer each."""
    plain.phones["2000"].answer = "busy"
    plain.fails(f"{way}2000")
    [offer] = plain.offers()
    number = "2000" if way in ("64", "65") else f"{way}2000"
    assert (offer.callee, offer.callee_devices, offer.service) == (number, ("PJSIP/2000",), "CCBS")
    own = plain.site_lines("1,own-handler PJSIP/1000")
    assert len(own) == (way == "63")
    talk = plain.talk("2000", "3000")
    assert plain.asks("1000") == "SUCCESS/"
    plain.phones["2000"].answer = "ring"
    talk.hangup()
    plain.connects(plain.recalled(), "2000").hangup()
    plain.ended("COMPLETED")
    assert len(plain.site_lines("1,own-handler Local/")) == (way == "63")


def test_given_up_in_a_gosub(plain: Plain) -> None:
    plain.phones["1000"].dial("622000").wait_ringing().hangup().wait_ended()
    plain.recorded()
    [offer] = plain.offers()
    assert (offer.callee, offer.callee_devices, offer.service) == ("622000", ("PJSIP/2000",), "CCNR")


def test_several_at_once(plain: Plain) -> None:
    plain.phones["2000"].answer = plain.phones["4000"].answer = "busy"
    plain.fails("662000")
    [offer] = plain.offers()
    assert set(offer.callee_devices) == {"PJSIP/2000", "PJSIP/4000"}


def test_nobody_has_that_number(plain: Plain) -> None:
    plain.fails("2999")
    assert [o.reason for o in plain.offers()] == ["NO_SUCH_NUMBER"]


@pytest.mark.parametrize("after", ["", HANGUP], ids=["nothing", "Hangup"])
def test_nobody_has_that_number_there(plain: Plain, after: str) -> None:
    plain.lines_are(after)
    plain.another("trunk", port=plain.trunk_port, answer="404")
    plain.fails("8888")
    assert [o.reason for o in plain.offers()] == ["NO_SUCH_NUMBER"]


@pytest.mark.parametrize("number", ["8888", "8889"])
def test_a_trunk_is_no_phone(plain: Plain, number: str) -> None:
    plain.another("trunk", port=plain.trunk_port, answer="busy")
    plain.fails(number)
    assert [(o.callee, o.reason) for o in plain.offers()] == [(number, "CALLEE_NOT_WATCHABLE")]


def test_an_answered_call_is_not_recorded(plain: Plain) -> None:
    plain.phones["2000"].answer = "answer"
    plain.phones["1000"].dial("2000").wait_answered().hangup().wait_ended()
    plain.phones["1000"].dial("*32").wait_answered().wait_ended(10)
    plain.phones["2000"].answer = "busy"
    plain.fails("2000")
    assert len(plain.offers()) == 1


def test_who_was_transferred_waits_for_the_one_he_did_not_reach(plain: Plain) -> None:
    plain.lines_are(HANGUP)
    plain.phones["2000"].answer, plain.phones["3000"].answer = "answer", "busy"
    call = plain.phones["1000"].dial("2000").wait_answered()
    his = plain.phones["2000"].expect_call().wait_answered()
    plain.transfers(his, "3000")
    call.wait_ended()
    plain.recorded()
    assert [(o.callee, o.callee_devices) for o in plain.offers()] == [("3000", ("PJSIP/3000",))]


def test_a_callee_who_is_transferred(plain: Plain) -> None:
    """Then it is he who calls, and does not reach the third."""
    plain.lines_are(HANGUP)
    plain.phones["2000"].answer, plain.phones["3000"].answer = "answer", "busy"
    call = plain.phones["1000"].dial("2000").wait_answered()
    his = plain.phones["2000"].expect_call().wait_answered()
    plain.transfers(call, "3000")
    his.wait_ended()
    plain.recorded()
    [offer] = plain.offers()
    assert (offer.caller, offer.callee, offer.callee_devices) == ("2000", "3000", ("PJSIP/3000",))


def test_a_call_that_another_picks_up(plain: Plain) -> None:
    pickup = "[phones](+)\nexten => _*8XXXX,1,Pickup(${EXTEN:2}@phones)\n same => n,Hangup()\n"
    plain.asterisk.reload_dialplan(plain.dialplan(more=pickup))
    call = plain.phones["1000"].dial("2000").wait_ringing()
    other = plain.phones["3000"].dial("*82000").wait_answered()
    call.wait_answered().hangup()
    other.wait_ended()
    plain.until(lambda: not plain.asterisk.channels(), "no channel is left")
    plain.phones["2000"].answer = "busy"
    plain.fails("2000")
    assert len(plain.offers()) == 1


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
def test_a_hostile_extension(plain: Plain, user: str) -> None:
    """It is his latest call, so *30 means no older one; it is no number, so nobody is called back."""
    plain.meets_busy("1000", "2000")
    plain.recorded()
    plain.phones["2000"].answer = "busy"
    plain.phones["1000"].dial("x", user_raw=escaped(user)).wait_ended()
    plain.recorded(2)
    assert plain.offers()[-1].reason == "INVALID" and plain.offers()[-1].callee == ""
    assert plain.asks("1000") == "FAIL/INVALID"
    assert not plain.server.log_lines("agi_evil")


# -- the server is not there


def test_nothing_waits_for_a_server_that_hangs(plain: Plain) -> None:
    plain.server.stop()
    with socket.create_server(("127.0.0.1", plain.port), backlog=128):
        plain.phones["2000"].answer = "busy"
        began = time.monotonic()
        plain.phones["1000"].dial("2000").wait_status(486)
        assert time.monotonic() - began < 0.3
        plain.phones["2000"].answer = "ring"
        call = plain.phones["1000"].dial("2000").wait_ringing()
        began = time.monotonic()
        call.hangup().wait_ended()
        assert time.monotonic() - began < 0.3
        plain.forget("2000")
        plain.phones["2000"].answer = "answer"
        call = plain.phones["1000"].dial("2000").wait_answered()
        began = time.monotonic()
        plain.phones["2000"].expect_call().hangup()
        call.wait_ended()
        assert time.monotonic() - began < 0.3
        plain.until(lambda: not plain.asterisk.channels(), "no channel is left", 8)
    assert len(plain.site_lines("1,site-h PJSIP/1000")) == 3


def test_nothing_waits_for_a_server_that_is_down(plain: Plain) -> None:
    plain.server.stop()
    plain.phones["2000"].answer = "busy"
    began = time.monotonic()
    plain.phones["1000"].dial("2000").wait_status(486)
    assert time.monotonic() - began < 0.3
    plain.until(lambda: not plain.asterisk.channels(), "no channel is left")


# -- the call after the recall


def again(plain: Plain, after: str) -> tuple[Call, Call]:
    """Recalled, and the callee is in a call again; answers the recall, once it is over, and that call."""
    plain.busy_and_asked().hangup()
    plain.lines_are(after)
    recall = plain.recalled()
    talk = plain.talk("2000", "3000")
    recall.answer().wait_ended(8)
    plain.forget("2000")
    return recall, talk


def served(plain: Plain, talk: Call) -> None:
    [request] = plain.server.requests()
    assert (request.state, request.service, request.recalls) == ("QUEUED", "CCBS", 1)
    plain.phones["2000"].answer = "ring"
    talk.hangup()
    plain.connects(plain.recalled(), "2000").hangup()
    plain.ended("COMPLETED")


@pytest.mark.parametrize(
    "after",
    ["", HANGUP, " same => n,Busy()\n", " same => n,Congestion()\n"],
    ids=["nothing", "Hangup", "Busy", "Congestion"],
)
def test_busy_again(plain: Plain, after: str) -> None:
    """He is told and hung up, whatever the site does then, and keeps his place."""
    recall, talk = again(plain, after)
    assert recall.ended_by == "them"
    said = [name.rpartition("/")[2] for name in plain.played()]
    assert said[-5:-1] == list("2000") and said[-1] in ("vm-isonphone", "vm-isunavail")
    if "Congestion" not in after:
        assert said[-1] == "vm-isonphone"
    served(plain, talk)


def test_busy_again_and_voicemail_answers(plain: Plain) -> None:
    """He hears the voicemail, as on any call of his; that is no answer of the callee's."""
    talk = plain.talk("2000", "3000")
    plain.lines_are(VOICEMAIL)
    call = plain.phones["1000"].dial("2000").wait_answered()
    plain.until(lambda: "beep" in plain.played(), "the voicemail is there")
    call.hangup()
    plain.recorded()
    assert plain.asks("1000") == "SUCCESS/"
    plain.phones["2000"].answer = "ring"
    talk.hangup()
    recall = plain.recalled()
    talk = plain.talk("2000", "3000")
    recall.answer().wait_answered()
    plain.until(lambda: plain.played().count("beep") == 2, "the voicemail is there again")
    recall.hangup()
    plain.until(lambda: plain.server.requests()[0].state == "QUEUED", "he keeps his place")
    plain.forget("2000")
    served(plain, talk)


def test_callee_gone_when_the_caller_picks_up(plain: Plain) -> None:
    plain.busy_and_asked().hangup()
    recall = plain.recalled()
    plain.phones["2000"].unregister()
    recall.answer().wait_ended(8)
    assert plain.played()[-1] == "vm-isunavail"
    [request] = plain.server.requests()
    assert (request.state, request.service) == ("QUEUED", "CCNL")
    plain.phones["2000"].register()
    plain.connects(plain.recalled(), "2000").hangup()
    plain.ended("COMPLETED")


def test_the_extension_is_there_no_more(plain: Plain) -> None:
    """The site has changed its dialplan meanwhile: he is told and hung up."""
    talk = plain.busy_and_asked()
    plain.asterisk.reload_dialplan(plain.dialplan().replace("_[1-4]000,1,Dial", "_[13-4]000,1,Dial"))
    talk.hangup()
    plain.recalled().answer().wait_ended(8)
    assert plain.played()[-1] == "vm-isunavail"


def test_server_dies_during_the_cc_call(plain: Plain) -> None:
    """Nobody waits for it: the caller is told and hung up all the same."""
    plain.busy_and_asked().hangup()
    recall = plain.recalled().answer()
    call = plain.phones["2000"].expect_call()
    plain.server.kill()
    call.reject(486)
    recall.wait_ended(8)
    assert plain.played()[-1] == "vm-isonphone"
    plain.until(lambda: not plain.asterisk.channels(), "no channel is left", 8)


def test_on_whose_account(plain: Plain) -> None:
    """The call after the recall is his: account, language, number; and one row of the call records."""
    plain.busy_and_asked().hangup()
    rows = plain.asterisk.folder / "log/cdr-csv/Master.csv"
    before = len(rows.read_text().splitlines())
    recall = plain.recalled()
    call = plain.connects(recall, "2000")
    assert (call.from_number, call.from_name) == ("1000", "Alice")
    call.hangup()
    recall.wait_ended()
    plain.ended("COMPLETED")
    plain.until(lambda: not plain.asterisk.channels(), "no channel is left")
    assert "[sales] [en_GB]" in plain.site_lines("1,site-account Local/")[-1]
    new = list(csv.reader(rows.read_text().splitlines()[before:]))
    mine = [row for row in new if row[2] == "2000"]
    assert [(row[0], row[1], row[3], row[14]) for row in mine] == [("sales", "1000", "phones", "ANSWERED")], (
        new
    )
