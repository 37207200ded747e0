"""Phones whose endpoints are not called as their numbers, and calls that take more than one Dial()."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.asterisk import Trunk
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Call
from tests.lab.server import DIALPLAN
from tests.real.bench import HEAD, QUICK, SEEN, Bench

PHONES = {
    "1000": "Alice",
    "bob-desk": "Bob",
    "bob-cordless": "Bob",
    "carol-desk": "Carol",
    "3000": "Dave",
}
BOB = 'extensions: {"2000": {name: Bob, device: PJSIP/bob-desk&PJSIP/bob-cordless}}\n'
ALL = BOB.replace("}}\n", '}, "4500": {name: Carol, device: PJSIP/carol-desk}}\n')

OWN = {
    "bob-desk": "accountcode=desk\nlanguage=xx\n",
    "bob-cordless": "accountcode=cordless\nlanguage=en_GB\n",
}

SITE = HEAD + """
[site]
exten => 2000,1,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => 2222,1,Gosub(cc-dial,s,1(PJSIP/bob-desk&PJSIP/bob-cordless,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => 2500,1,Gosub(cc-dial,s,1(PJSIP/carol-desk,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _[13]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _6X00,1,Set(CHANNEL(hangup_handler_push)=cc-hangup,s,1(2${{EXTEN:1}},PJSIP/bob-desk))
 same => n,Dial(PJSIP/bob-desk,{ring})
; a handler that is told nothing
exten => _4XXX,1,Set(CHANNEL(hangup_handler_push)=cc-hangup,s,1)
 same => n,Dial(${{IF($[${{EXTEN}} = 4600]?PJSIP/bob-desk&PJSIP/carol-desk&PJSIP/3000:PJSIP/carol-desk)}},{ring})
; one after the other
exten => 2700,1,Dial(PJSIP/carol-desk,1)
 same => n,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring}))
 same => n,Verbose(1,keys ${{HANGUPCAUSE_KEYS()}})
 same => n,Hangup(${{HANGUPCAUSE}})
exten => 2800,1,Dial(PJSIP/carol-desk,1)
 same => n,Goto(6000,1)
exten => 2900,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}}@trunk,5))
 same => n,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _03X00,1,Verbose(1,account ${{CHANNEL}} [${{CHANNEL(accountcode)}}] [${{CHANNEL(language)}}])
 same => n,Gosub(cc-dial,s,1(PJSIP/${{EXTEN:1}},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => 2950,1,Gosub(cc-dial,s,1(Local/53000@site,{ring}))
 same => n,Hangup()
exten => 2010,1,Gosub(cc-dial,s,1(PJSIP/bob-cordless,{ring},T))
 same => n,Hangup()
exten => 2020,1,Answer()
 same => n,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring},d))
 same => n,Hangup()
exten => 7,1,Verbose(1,left by 7)
 same => n,Hangup()
exten => 2030,1,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring},F))
 same => n,Hangup()
exten => 2040,1,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring},,+49*1#))
 same => n,Hangup()
exten => 2050,1,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring},I,2000))
 same => n,Hangup(${{HANGUPCAUSE}})
; straight, and a call of one's own that stays up
exten => _5.,1,Dial(PJSIP/${{EXTEN:1}},{ring})
exten => 5555,1,Answer()
 same => n,Wait(600)
[trunk]
{more}
"""


class Named(Bench):
    """Alice 1000 and Dave 3000; Bob 2000 has two phones of other names, Carol 2500 one."""

    def __init__(self, folder: Path, *args: object) -> None:
        super().__init__(folder, ensure_asterisk())
        self.names = PHONES

    def dialplan(self, ring: int = 20, more: str = "") -> str:
        return SITE.format(port=self.port, dialplan=DIALPLAN, ring=ring, seen=SEEN, more=more)

    def configure(self) -> None:
        phones = [
            Endpoint(name, person if name != "bob-cordless" else "", extra=OWN.get(name, ""))
            for name, person in PHONES.items()
        ]
        trunk = Trunk("trunk", "127.0.0.1", self.trunk_port)
        self.asterisk.configure(self.dialplan(), phones, [trunk])

    def uses_his_phone(self, name: str) -> Call:
        """A call of his own, during which others meet busy."""
        self.phones[name].answer = "busy"
        return self.phones[name].dial("5555").wait_answered()

    def on_record(self) -> list[tuple[str, tuple[str, ...], str]]:
        """What is on record: for whom, by which devices, and for what or why not."""
        return [(o.callee, o.callee_devices, o.service or o.reason) for o in self.offers()]


@pytest.fixture(scope="module")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("named")
    with Named(folder).running() as bench:
        yield bench


# -- cc-dial


@pytest.mark.parametrize("config", [QUICK, QUICK + BOB], ids=["no entry", "entry"])
def test_busy(bench: Named, config: str) -> None:
    """Only the phone that was rung is waited for, whatever the entry names."""
    bench.reconfigure(config)
    talk = bench.uses_his_phone("bob-desk")
    bench.fails("2000")
    assert bench.on_record() == [("2000", ("PJSIP/bob-desk",), "CCBS")]
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.5)
    bench.phones["bob-desk"].answer = "ring"
    talk.hangup()
    bench.connects(bench.recalled(), "bob-desk").hangup()
    bench.ended("COMPLETED")


@pytest.mark.parametrize(
    ("answer", "ring", "service"),
    [("decline", 20, "CCNR"), ("ring", 1, "CCNR"), ("404", 20, "NO_SUCH_NUMBER")],
)
def test_it_fails_otherwise(bench: Named, answer: str, ring: int, service: str) -> None:
    bench.asterisk.reload_dialplan(bench.dialplan(ring))
    bench.phones["bob-desk"].answer = answer
    bench.fails("2000")
    assert bench.on_record() == [("2000", ("PJSIP/bob-desk",), service)]


def test_whatever_a_number_is_made_of(bench: Named) -> None:
    """cc-dial dials from an extension of that name."""
    bench.phones["bob-desk"].answer = "busy"
    bench.fails("2040")
    assert bench.on_record() == [("+49*1#", ("PJSIP/bob-desk",), "CCBS")]
    assert bench.site_lines("[+49*1#@cc-dial:")


def test_not_registered(bench: Named) -> None:
    bench.phones["bob-desk"].unregister()
    bench.fails("2000")
    assert bench.on_record() == [("2000", ("PJSIP/bob-desk",), "CCNL")]


def test_both_of_two(bench: Named) -> None:
    bench.phones["bob-desk"].answer = bench.phones["bob-cordless"].answer = "busy"
    bench.fails("2222")
    assert bench.on_record() == [("2222", ("PJSIP/bob-desk", "PJSIP/bob-cordless"), "CCBS")]


def test_what_is_dialled_is_no_phone(bench: Named) -> None:
    """And no line of the log complains of it."""
    bench.phones["3000"].answer = "busy"
    bench.fails("2950")
    assert bench.on_record() == [("2950", (), "CALLEE_NOT_WATCHABLE")]
    assert not [line for line in bench.site_lines("") if "ERROR[" in line or "WARNING[" in line]


# -- a hang-up handler that is told nothing, and Dial()


def test_plain_dial(bench: Named) -> None:
    bench.reconfigure(QUICK + ALL)
    talk = bench.uses_his_phone("carol-desk")
    bench.fails("4500")
    assert bench.on_record() == [("4500", ("PJSIP/carol-desk",), "CCBS")]
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["carol-desk"].answer = "ring"
    talk.hangup()
    bench.connects(bench.recalled(), "carol-desk").hangup()
    bench.ended("COMPLETED")


def test_plain_dial_and_not_registered(bench: Named) -> None:
    """When she is called, and again at the call after the recall."""
    bench.reconfigure(QUICK + ALL)
    bench.phones["carol-desk"].unregister()
    bench.fails("4500")
    assert bench.on_record() == [("4500", ("PJSIP/carol-desk",), "CCNL")]
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["carol-desk"].register()
    recall = bench.recalled()
    bench.phones["carol-desk"].unregister()
    recall.answer().wait_ended(10)
    bench.until(lambda: bench.server.requests()[0].state == "QUEUED", "he keeps his place")
    assert bench.server.requests()[0].service == "CCNL"
    bench.phones["carol-desk"].register()
    bench.connects(bench.recalled(), "carol-desk").hangup()
    bench.ended("COMPLETED")


def test_a_group_of_them(bench: Named) -> None:
    bench.reconfigure(QUICK + ALL)
    for name in ("bob-desk", "carol-desk", "3000"):
        bench.phones[name].answer = "busy"
    bench.fails("4600")
    [(number, devices, service)] = bench.on_record()
    assert (number, service) == ("4600", "CCBS")
    assert set(devices) == {"PJSIP/bob-desk", "PJSIP/carol-desk", "PJSIP/3000"}


def test_without_an_entry_nobody_knows_it_for_a_phone(bench: Named) -> None:
    bench.phones["carol-desk"].answer = "busy"
    bench.fails("4500")
    assert bench.on_record() == [("4500", (), "CALLEE_NOT_WATCHABLE")]


# -- forwarded


def forwards(call: Call, number: str) -> None:
    call.reject(302, {"Contact": f"<sip:{number}@127.0.0.1>"})


@pytest.mark.parametrize("number", ["2000", "2050", "6000"], ids=["cc-dial", "option I", "handler"])
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "given up"])
@pytest.mark.parametrize("to", ["3000", "carol-desk"])
def test_forwarded(bench: Named, number: str, busy: bool, to: str) -> None:
    """Who was rung is waited for, also by a caller who gave up while it rang."""
    bench.reconfigure(QUICK + ALL)
    call = bench.phones["1000"].dial(number)
    forwards(bench.phones["bob-desk"].expect_call(), f"5{to}")
    his = bench.phones[to].expect_call()
    if busy:
        his.reject(486)
    else:
        his.ring()
        bench.until(
            lambda: [x for x in bench.site_lines(" is ringing") if "Local/" in x], "Asterisk has heard it"
        )
        call.hangup()
    call.wait_ended()
    bench.until(bench.offers, "it is on record")
    assert bench.on_record() == [("2000", (f"PJSIP/{to}",), "CCBS" if busy else "CCNR")]


# -- what runs when a sub of ours is left


SLOW = """
[{context}](+)
exten => slow,1,Gosub({context},slower,1)
exten => slower,1,Wait(30)
[outer]
exten => s,1,Answer()
 same => n,Set(TIMEOUT(absolute)={absolute})
 same => n,Gosub({context},slow,1)
exten => h,1,Verbose(1,outer-h ran)
exten => T,1,Verbose(1,outer-T ran)
 same => n,Hangup()
[site](+)
exten => 2960,1,Goto(outer,s,1)
"""
SUBS = ("cc-agi", "cc-ask", "cc-callid", "cc-offer", "cc-say", "cc-sounds", "cc-tried")


@pytest.mark.parametrize("context", SUBS)
def test_the_sites_own_h_is_run(bench: Named, context: str) -> None:
    """However deep we are."""
    bench.asterisk.reload_dialplan(bench.dialplan(more=SLOW.format(context=context, absolute=0)))
    call = bench.phones["1000"].dial("2960").wait_answered()
    bench.until(lambda: bench.site_lines("[slower@"), "we are there")
    call.hangup().wait_ended()
    bench.until(lambda: bench.site_lines("outer-h ran"), "its h ran")


@pytest.mark.parametrize("context", SUBS[1:])
def test_the_sites_own_timeout_is_run(bench: Named, context: str) -> None:
    """But for [cc-agi], which has one of its own."""
    bench.asterisk.reload_dialplan(bench.dialplan(more=SLOW.format(context=context, absolute=1)))
    bench.phones["1000"].dial("2960").wait_answered().wait_ended(3)
    assert bench.site_lines("outer-T ran") and bench.site_lines("outer-h ran")


# -- a caller with two phones


@pytest.mark.parametrize("caller", ["bob-desk", "bob-cordless"])
@pytest.mark.parametrize("answers", ["bob-desk", "bob-cordless"])
def test_a_caller_with_two_phones(bench: Named, caller: str, answers: str) -> None:
    """Both ring; the call is that of the phone he called from, and he is told in the language of this one."""
    bench.reconfigure(QUICK.replace("}", ", cc_recall_announce: beep}") + ALL)
    talk = bench.uses_his_phone("3000")
    bench.phones[caller].dial("03000").wait_status(486)
    assert bench.asks(caller) == "SUCCESS/"
    bench.forget("3000")
    bench.phones["3000"].answer = "ring"
    talk.hangup()
    calls = {name: bench.recalled(name) for name in ("bob-desk", "bob-cordless")}
    bench.connects(calls[answers], "3000").hangup()
    bench.ended("COMPLETED")
    said = {"bob-desk": "xx", "bob-cordless": "en_GB"}
    account = caller.removeprefix("bob-")
    assert f"[{account}] [{said[caller]}]" in bench.site_lines("1,account Local/")[-1]
    assert f"(language '{said[answers]}')" in bench.site_lines("Playing 'beep")[-1]


# -- the callee, in the caller's hands


def test_transferred_by_a_key(bench: Named) -> None:
    """He goes to where the caller's calls go; as he has no number of his own, he has that which was dialled."""
    bench.phones["bob-cordless"].answer = "answer"
    call = bench.phones["1000"].dial("2010").wait_answered()
    bench.until(lambda: len(bench.site_lines("joined 'simple_bridge'")) == 2, "they are joined")
    call.dtmf("#")
    bench.until(lambda: "pbx-transfer" in bench.played(), "he is asked for the number")
    for digit in "3000":
        call.dtmf(digit)
    his = bench.phones["3000"].expect_call(8)
    assert his.from_number == "2010"
    call.wait_ended()
    his.reject(486)


def test_left_by_a_key(bench: Named) -> None:
    """By Dial's option d, and for the site's own extension."""
    call = bench.phones["1000"].dial("2020").wait_answered()
    bench.phones["bob-desk"].expect_call().ring()
    call.dtmf("7").wait_ended()
    assert bench.site_lines("left by 7")


def test_a_callee_who_goes_on_has_called_nobody(bench: Named) -> None:
    """Dial's option F: the caller hangs up, and the callee is in the dialplan."""
    bench.phones["bob-desk"].answer = "answer"
    call = bench.phones["1000"].dial("2030").wait_answered()
    his = bench.phones["bob-desk"].expect_call().wait_answered()
    call.hangup()
    his.wait_ended()
    assert [line for line in bench.site_lines("[s@cc-dial:") if "PJSIP/bob-desk-" in line]
    assert not bench.site_lines("/record") and not bench.offers()


# -- more than one Dial() on a channel


@pytest.mark.parametrize("number", ["2700", "2800"], ids=["cc-dial", "handler"])
def test_what_was_tried_before_is_of_no_matter(bench: Named, number: str) -> None:
    """Another phone was rung before; this call is for Bob."""
    bench.phones["bob-desk"].answer = "busy"
    bench.phones["1000"].dial(number).wait_ended(8)
    bench.until(bench.offers, "it is on record")
    assert [offer[1:] for offer in bench.on_record()] == [(("PJSIP/bob-desk",), "CCBS")]
    if number == "2700":
        [line] = bench.site_lines("1,keys ")
        assert "PJSIP/bob-desk-" in line and "carol" not in line
    assert not [line for line in bench.site_lines("HangupCauseClear") if "WARNING" in line or "ERROR" in line]


def test_the_second_line_is_offered_where_the_first_was_not(bench: Named) -> None:
    bench.another("trunk", port=bench.trunk_port, answer="503")
    talk = bench.uses_his_phone("bob-desk")
    bench.phones["1000"].dial("2900").wait_status(486)
    assert bench.on_record() == [("2900", ("PJSIP/bob-desk",), "CCBS")]
    assert bench.asks("1000") == "SUCCESS/"
    talk.hangup()


def test_who_was_transferred_waits_for_the_one_he_did_not_reach(bench: Named) -> None:
    bench.phones["bob-desk"].answer, bench.phones["carol-desk"].answer = "answer", "busy"
    call = bench.phones["1000"].dial("2000").wait_answered()
    his = bench.phones["bob-desk"].expect_call().wait_answered()
    bench.until(lambda: len(bench.site_lines("joined 'simple_bridge'")) == 2, "they are joined")
    host = "{}:{}".format(*bench.asterisk.sip_address)
    his._ask("REFER", [("Refer-To", f"<sip:2500@{host}>"), ("Referred-By", f"<sip:x@{host}>")], "")
    call.wait_ended()
    bench.until(bench.offers, "it is on record")
    assert bench.on_record() == [("2500", ("PJSIP/carol-desk",), "CCBS")]
