"""What the person at the phone hears and presses, told by what Asterisk plays."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.install import ensure_asterisk
from tests.lab.phone import Call, PhoneError
from tests.lab.server import DIALPLAN
from tests.real.bench import Bench, Pbx
from tests.real.trunkbench import TwoPbx

BUSY_PROMPT = ["vm-isonphone", "to-call-this-number", "vm-press", "digits/5"]
GONE_PROMPT = ["vm-isunavail", *BUSY_PROMPT[1:]]
SORRY = ["beeperr", "im-sorry"]
NUMBER_2000 = ["digits/2", "digits/0", "digits/0", "digits/0"]
# So that a list of two is not a matter of half a minute.
SHORT = """
[cc-my-sounds]
exten => pendingnumber,1,Return(beep&digits/${ARG4})
exten => pendingkeys,1,Return(ascending-2tone)
"""


def settings(**more: object) -> str:
    """The bench's configuration with further settings for everybody."""
    every: dict[str, object] = {"poll_interval": 0.1, "cc_recall_timer": 5, "cc_retry_timer": 1}
    return f"defaults: {every | more}\n"


OFFER = settings(cc_offer_digit="5", cc_offer_repeat=1, cc_offer_wait=1, cc_offer_timer=60)


@pytest.fixture
def offering(bench: Bench) -> Bench:
    """Whoever meets a busy 2000 is asked, once."""
    bench.reconfigure(OFFER)
    bench.phones["2000"].answer = "busy"
    return bench


def hears(pbx: Pbx, prompt: str, times: int = 1, timeout: float = 10) -> None:
    pbx.until(lambda: pbx.played().count(prompt) >= times, f"{prompt} is played {times} times", timeout)


def dials(pbx: Pbx, caller: str, code: str) -> list[str]:
    """Dials a code and listens to the end: what he heard."""
    before = len(pbx.played())
    pbx.phones[caller].dial(code).wait_answered(10).wait_ended(60)
    return pbx.played()[before:]


def asked(bench: Bench) -> list[str]:
    return [request.callee for request in bench.server.requests()]


# The offer during the call


def test_a_digit_asks_as_the_code_does(bench: Bench) -> None:
    bench.reconfigure(OFFER)
    talk = bench.talk("2000", "3000")
    call = bench.phones["1000"].dial("2000").wait_answered()
    hears(bench, "to-call-this-number")
    call.dtmf("5").wait_ended(10)
    assert bench.played()[:2] == BUSY_PROMPT[:2]
    assert bench.played()[-1] == "activated"
    h = bench.seen_in_h("1000", "2000")
    assert (h["dial"], h["offered"], h["request"]) == ("BUSY", "1/", "SUCCESS/")
    assert asked(bench) == ["2000"]
    assert bench.asks("1000") == "SUCCESS/ALREADY_REQUESTED"
    assert asked(bench) == ["2000"]
    bench.forget("2000")
    bench.completes(talk)


def test_no_digit_and_it_comes_back_as_dial_does(bench: Bench) -> None:
    """Said as often, and waited for as long, as the settings say; afterwards the code works as ever."""
    bench.reconfigure(settings(cc_offer_digit="5", cc_offer_repeat=2, cc_offer_wait=1.5))
    bench.phones["2000"].unregister()
    bench.phones["1000"].dial("2000").wait_answered().wait_ended(30)
    assert bench.played() == GONE_PROMPT * 2
    back = bench.site_line("1,site-back")
    assert "dial=CHANUNAVAIL" in back and "offered=1" in back
    assert bench.seen_in_h("1000", "2000")["request"] == "/"
    waits = [wait for wait in bench.site_lines("WaitExten(") if "Executing" in wait]
    assert len(waits) == 2
    again = [line for line in bench.site_lines("Playing 'vm-isunavail") if line > waits[0]]
    assert 1.4 < clock(again[0]) - clock(waits[0]) < 2.5
    assert 1.4 < clock(back) - clock(waits[1]) < 2.5
    assert not asked(bench)
    assert bench.asks("1000") == "SUCCESS/"


def clock(line: str) -> float:
    """The seconds of a line of Asterisk's log."""
    found = re.match(r"\[[-0-9]+ (\d+):(\d+):(\d+\.\d+)\]", line)
    assert found, line
    hours, minutes, seconds = map(float, found.groups())
    return (hours * 60 + minutes) * 60 + seconds


def test_another_digit_is_no(offering: Bench) -> None:
    call = offering.phones["1000"].dial("2000").wait_answered()
    hears(offering, "vm-isonphone")
    call.dtmf("4").wait_ended(3)
    assert "activated" not in offering.played() and not asked(offering)
    assert offering.seen_in_h("1000", "2000")["dial"] == "BUSY"
    assert "dial=BUSY" in offering.site_line("1,site-back")


def test_hanging_up_is_no(offering: Bench) -> None:
    """The site's own h runs, with its DIALSTATUS; and what is on record is not told a second time."""
    call = offering.phones["1000"].dial("2000").wait_answered()
    hears(offering, "vm-isonphone")
    call.hangup().wait_ended()
    h = offering.seen_in_h("1000", "2000")
    assert (h["dial"], h["offered"], h["request"]) == ("BUSY", "1/", "/")
    offering.until(lambda: not offering.asterisk.channels(), "no channel is left")
    assert not offering.site_lines("cc-note") and not offering.site_lines("1,site-back")
    assert len(offering.site_lines("1,site-h")) == 1
    assert offering.asks("1000") == "SUCCESS/"


def test_who_hangs_up_while_he_is_told_has_asked(offering: Bench) -> None:
    call = offering.phones["1000"].dial("2000").wait_answered()
    hears(offering, "vm-isonphone")
    call.dtmf("5")
    hears(offering, "activated")
    call.hangup().wait_ended()
    assert offering.seen_in_h("1000", "2000")["request"] == "SUCCESS/"
    assert len(offering.site_lines("1,site-h")) == 1


def test_the_offer_is_the_callers_own_setting(bench: Bench) -> None:
    bench.reconfigure(settings() + 'extensions: {"1000": {cc_offer_digit: "#", cc_offer_repeat: 1}}\n')
    bench.phones["2000"].answer = "busy"
    bench.phones["3000"].dial("2000").wait_status(486)
    assert not bench.played()
    call = bench.phones["1000"].dial("2000").wait_answered()
    hears(bench, "digits/pound")
    call.dtmf("#")
    hears(bench, "activated")
    call.wait_ended()
    assert asked(bench) == ["2000"]


def test_nobody_is_asked_twice_for_one_call(offering: Bench) -> None:
    """cc-dial asks by itself, and then the site's cc-offer does not."""
    offering.phones["1000"].dial("82000").wait_answered().wait_ended(20)
    assert offering.played() == BUSY_PROMPT
    assert offering.phones["1000"].dial("82000").wait_answered().wait_ended(20)
    assert offering.played() == BUSY_PROMPT * 2


def test_cc_offer_of_its_own(bench: Bench) -> None:
    bench.talk("2000", "3000")
    call = bench.phones["1000"].dial("82000").wait_answered()
    hears(bench, "vm-press")
    call.dtmf("5").wait_ended(10)
    assert bench.played()[-1] == "activated" and asked(bench) == ["2000"]


def test_the_digit_asks_for_this_call(bench: Bench) -> None:
    """Not for another of his that has failed on his second line meanwhile."""
    bench.reconfigure(OFFER)
    bench.talk("2000", "3000")
    call = bench.phones["1000"].dial("2000").wait_answered()
    hears(bench, "vm-isonphone")
    bench.phones["1000"].dial("3000").wait_answered().hangup()
    call.dtmf("5").wait_ended(10)
    assert asked(bench) == ["2000"]


def test_the_call_after_a_recall_is_not_offered(bench: Bench) -> None:
    bench.reconfigure(OFFER)
    bench.talk("2000", "3000")
    call = bench.phones["1000"].dial("2000").wait_answered()
    hears(bench, "vm-press")
    call.dtmf("5").wait_ended(10)
    for one in bench.asterisk.channels():
        if "PJSIP/2000" in one:
            bench.asterisk.cli(f"channel request hangup {one}")
    recall = bench.recalled()
    bench.phones["2000"].answer = "busy"
    bench.forget_log()
    recall.answer().wait_ended(20)
    assert bench.played() == [*NUMBER_2000, "vm-isonphone"]
    assert recall.ended_by == "them"


def test_a_missing_file_hurts_nobody(offering: Bench) -> None:
    """What is there is played, the digit is waited for, and what he hears ends as it should."""
    mine = "exten => offerbusy,1,Return(not/there&beep&${ARG1})\nexten => activated,1,Return(not/there)\n"
    offering.asterisk.reload_dialplan(offering.dialplan(more=f"[cc-my-sounds]\n{mine}"))
    call = offering.phones["1000"].dial("2000").wait_answered()
    hears(offering, "digits/5")
    call.dtmf("5").wait_ended()
    assert offering.played() == ["beep", "digits/5"]
    assert offering.seen_in_h("1000", "2000")["request"] == "SUCCESS/"


def test_a_sentence_may_be_silent(offering: Bench) -> None:
    offering.asterisk.reload_dialplan(
        offering.dialplan(more="[cc-my-sounds]\nexten => offerbusy,1,Return()\n")
    )
    began = time.monotonic()
    offering.phones["1000"].dial("2000").wait_answered().wait_ended()
    assert 0.9 < time.monotonic() - began < 2.5, "the digit is waited for"
    assert offering.played() == []


def test_the_sites_timeout_runs_out_during_the_prompt(offering: Bench) -> None:
    offering.asterisk.reload_dialplan(
        offering.dialplan().replace("TIMEOUT(absolute)=60", "TIMEOUT(absolute)=1")
        + "[phones](+)\nexten => T,1,Verbose(1,site-T)\n same => n,Hangup()\n"
    )
    offering.phones["1000"].dial("72000").wait_answered().wait_ended(3)
    offering.site_line("1,site-T")


def test_the_server_goes_while_he_is_asked(offering: Bench) -> None:
    call = offering.phones["1000"].dial("2000").wait_answered()
    hears(offering, "vm-isonphone")
    offering.server.stop()
    began = time.monotonic()
    call.dtmf("5").wait_ended()
    assert time.monotonic() - began < 3
    assert offering.played()[-2:] == SORRY


# *32, the list


def camp_on_two(bench: Bench) -> Call:
    """1000 waits for 2000 and for 3000, who talk to each other."""
    talk = bench.busy_and_asked()
    bench.meets_busy("1000", "3000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.forget_log()
    return talk


def test_an_empty_list(bench: Bench) -> None:
    assert dials(bench, "1000", "*32") == ["vm-youhave", "vm-no", "call-waiting"]


def test_a_list_of_one(bench: Bench) -> None:
    """He presses nothing: all is said once, and it ends."""
    bench.busy_and_asked()
    assert dials(bench, "1000", "*32") == [
        *("vm-youhave", "digits/1", "call-waiting"),
        *("vm-for", "vm-extension", *NUMBER_2000, "queue-thereare", "digits/1"),
        *("vm-press", "digits/7", "for", "digits/1", "cancelled"),
    ]
    assert asked(bench) == ["2000"]


def test_a_list_of_two_and_one_is_taken_back(bench: Bench) -> None:
    camp_on_two(bench)
    call = bench.phones["1000"].dial("*32").wait_answered()
    hears(bench, "queue-thereare")
    call.dtmf("7")
    hears(bench, "queue-thereare", 2)
    assert asked(bench) == ["3000"]
    call.wait_ended(20)
    assert bench.played().count("cancelled") == 1, "no keys are told to one who has pressed one"
    assert bench.played()[:3] == ["vm-youhave", "digits/2", "call-waiting"]
    assert asked(bench) == ["3000"]


def test_the_last_of_two_is_taken_back_after_it_was_told(bench: Bench) -> None:
    camp_on_two(bench)
    bench.asterisk.reload_dialplan(bench.dialplan(more=SHORT))
    call = bench.phones["1000"].dial("*32").wait_answered()
    hears(bench, "beep", 2)
    hears(bench, "digits/1", 2)
    call.dtmf("7").wait_ended(10)
    assert bench.played()[-1] == "cancelled"
    assert asked(bench) == ["2000"]


def test_all_are_taken_back(bench: Bench) -> None:
    camp_on_two(bench)
    call = bench.phones["1000"].dial("*32").wait_answered()
    hears(bench, "digits/9", timeout=20)
    assert bench.played()[-7:] == [
        "vm-press",
        "digits/7",
        "for",
        "digits/1",
        "cancelled",
        "vm-press",
        "digits/9",
    ]
    call.dtmf("9").wait_ended(10)
    assert bench.played()[-1] == "cancelled" and not asked(bench)
    assert bench.seen_in_h("1000", "*32")["cancel"] == "SUCCESS/"
    assert [request.reason for request in bench.server.history()] == ["CANCELLED"] * 2


def test_other_keys_go_on(bench: Bench) -> None:
    camp_on_two(bench)
    bench.asterisk.reload_dialplan(bench.dialplan(more=SHORT))
    call = bench.phones["1000"].dial("*32").wait_answered()
    hears(bench, "beep", 1)
    call.dtmf("3")
    hears(bench, "beep", 2)
    call.dtmf("A").wait_ended(5)
    assert sorted(asked(bench)) == ["2000", "3000"] and "ascending-2tone" not in bench.played()


def test_who_hangs_up_during_the_list_is_gone(bench: Bench) -> None:
    camp_on_two(bench)
    call = bench.phones["1000"].dial("*32").wait_answered()
    hears(bench, "vm-extension")
    call.hangup().wait_ended()
    assert bench.seen_in_h("1000", "*32")["pending"] == "2/2000,3000"
    bench.until(
        lambda: not [c for c in bench.asterisk.channels() if "PJSIP/1000" in c], "his channel is gone"
    )
    assert sorted(asked(bench)) == ["2000", "3000"]


def test_the_second_in_a_queue(bench: Bench) -> None:
    bench.busy_and_asked("4000")
    bench.meets_busy("1000", "2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.asterisk.reload_dialplan(
        bench.dialplan(more=SHORT.replace("beep", "${ARG1}").replace("ARG4", "ARG2:7"))
    )
    assert dials(bench, "1000", "*32")[3:8] == [*NUMBER_2000, "digits/2"]


def test_a_long_list_ends_too(bench: Bench) -> None:
    """A server that tells of more than there are files for, and of more than it names."""
    more = (
        "[cc-my-sounds]\nexten => pending,1,Return(${ARG2})\nexten => pendingnumber,1,Return(beep)\n"
        "[site](+)\nexten => 77,1,Answer()\n same => n,Gosub(cc-say,s,1(pending,,42))\n same => n,Hangup()\n"
    )
    bench.asterisk.reload_dialplan(bench.dialplan(more=more))
    assert dials(bench, "1000", "77") == ["digits/4", "digits/2"]


def test_the_server_goes_during_the_list(bench: Bench) -> None:
    camp_on_two(bench)
    bench.asterisk.reload_dialplan(bench.dialplan(more=SHORT))
    call = bench.phones["1000"].dial("*32").wait_answered()
    hears(bench, "beep")
    bench.server.stop()
    call.dtmf("7")
    hears(bench, "beep", 2)
    assert bench.played()[-3:-1] == SORRY or bench.played()[-4:-2] == SORRY
    call.wait_ended(10)


# The lamp key


def test_the_lamp_key_asks_and_takes_back(bench: Bench) -> None:
    bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    for code in "*331000", "*33":
        assert dials(bench, "1000", code) == ["activated"]
        assert asked(bench) == ["2000"]
        assert bench.seen_in_h("1000", code)["request"] == "SUCCESS/"
        assert dials(bench, "1000", code) == ["cancelled"]
        assert asked(bench) == []
        assert bench.seen_in_h("1000", code, 2)["cancel"] == "SUCCESS/"


def test_somebody_elses_lamp_key(bench: Bench) -> None:
    bench.busy_and_asked("1000")
    assert dials(bench, "4000", "*331000") == SORRY
    assert bench.seen_in_h("4000", "*331000")["request"] == "FAIL/NOT_HIS_KEY"
    assert asked(bench) == ["2000"]


def test_nothing_to_ask_for(bench: Bench) -> None:
    assert dials(bench, "1000", "*331000") == SORRY
    assert bench.seen_in_h("1000", "*331000")["request"].startswith("FAIL/")


@pytest.mark.parametrize("tail", ["1%0Aagi_evil:%201", "1)&x", "1%22", "1,2,3", "1%24%7BEPOCH%7D"])
def test_a_lamp_key_of_an_attacker(bench: Bench, tail: str) -> None:
    call = bench.phones["1000"].dial("*331000", user_raw=f"*33{tail}").wait_answered()
    call.wait_ended(10)
    assert bench.played() == SORRY
    bench.until(lambda: bench.site_lines("1,site-h PJSIP/"), "the site's h ran")
    assert not bench.server.log_lines("agi_evil")


def test_the_lamp_is_the_custom_device_of_that_number(bench: Bench) -> None:
    def lamp(key: str) -> str:
        return bench.asterisk.cli(f"dialplan eval function EXTENSION_STATE({key}@phones)").split()[-1]

    for number in "7", "1000", "12345678":
        for state in "INUSE", "RINGING", "ONHOLD", "NOT_INUSE":
            bench.asterisk.cli(f"devstate change Custom:CC{number} {state}")
            assert lamp(f"*33{number}") == state
    bench.asterisk.cli("devstate change Custom:CC1000 INUSE")
    for key in "*33", "*33123456789", "*331&Custom:CC1000", "*331x", "*3310x0":
        assert lamp(key) == "UNKNOWN", key


@pytest.mark.parametrize("key", ["*331%0aX", "*331%26PJSIP/2000", "*33", "*33123456789"])
def test_a_phone_watches_lamps_and_nothing_else(bench: Bench, key: str) -> None:
    with pytest.raises(PhoneError, match="404"):
        bench.phones["1000"].watch_lamp(key)


def test_another_code_for_the_lamp_key(bench: Bench) -> None:
    site = bench.dialplan().replace("[globals]\n", "[globals]\nCC_CODE_LAMP=*88\n")
    bench.asterisk.reload_dialplan(site)
    try:
        bench.asterisk.cli("devstate change Custom:CC1000 RINGING")
        assert "RINGING" in bench.asterisk.cli("dialplan eval function EXTENSION_STATE(*881000@phones)")
        assert dials(bench, "1000", "*881000") == SORRY
        assert bench.phones["1000"].dial("*331000").wait_ended().status == 404
    finally:
        # A global outlives a reload that does not name it.
        bench.asterisk.cli("dialplan set global CC_CODE_LAMP *33")


# The recall


def test_the_recall_carries_what_the_caller_has_set(bench: Bench) -> None:
    bench.reconfigure(
        settings(cc_recall_prefix="CB: ", cc_recall_alert_info="<http://127.0.0.1/cb>;info=callback")
    )
    other = bench.another("1000")
    other.register()
    bench.busy_and_asked().hangup()
    for phone in bench.phones["1000"], other:
        recall = phone.expect_call()
        assert recall.invite.all("Alert-Info") == ["<http://127.0.0.1/cb>;info=callback"]
        assert recall.from_name == "CB: 2000"
    call = bench.connects(recall, "2000")
    assert not call.invite.get("Alert-Info")
    call.hangup()
    bench.ended("COMPLETED")


def test_no_alert_info_if_none_is_set(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    assert not bench.recalled().invite.get("Alert-Info")


@pytest.mark.parametrize(("announce", "said"), [("beep", ["beep"]), ("number", NUMBER_2000), ("off", [])])
def test_announced_before_the_callee_is_dialled(bench: Bench, announce: str, said: list[str]) -> None:
    bench.reconfigure(settings(cc_recall_announce=announce))
    bench.busy_and_asked().hangup()
    bench.forget_log()
    recall = bench.recalled()
    assert not bench.played()
    recall.answer()
    call = bench.phones["2000"].expect_call(10)
    dialled = bench.site_line("Called PJSIP/2000")
    lines = bench.site_lines("")
    played = [line for line in lines if "Playing '" in line]
    assert bench.played() == said and all(lines.index(line) < lines.index(dialled) for line in played)
    call.answer()
    call.wait_answered()
    call.hangup()
    bench.ended("COMPLETED")


def test_who_hangs_up_during_the_announcement_keeps_his_place(bench: Bench) -> None:
    bench.reconfigure(settings(cc_recall_announce="number"))
    bench.busy_and_asked().hangup()
    recall = bench.recalled().answer()
    hears(bench, "digits/2")
    recall.hangup()
    bench.until(lambda: bench.server.requests()[0].state == "QUEUED", "back in the queue")
    bench.quiet("2000", 0.3)


def told_and_hung_up(bench: Bench, recall: Call, said: list[str]) -> None:
    bench.forget_log()
    recall.answer().wait_answered()
    recall.wait_ended(20)
    assert recall.ended_by == "them"
    assert bench.played() == said
    bench.until(
        lambda: not [c for c in bench.asterisk.channels() if "cc-poll" not in c], "no channel is left"
    )


def test_a_recall_that_nobody_knows_any_more(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.server.stop()
    bench.launch()
    bench.server.wait_ready()
    told_and_hung_up(bench, recall, ["im-sorry"])
    bench.quiet("2000", 0.3)


def test_the_callee_is_not_registered_any_more(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.phones["2000"].unregister()
    told_and_hung_up(bench, recall, [*NUMBER_2000, "vm-isunavail"])
    [request] = bench.server.requests()
    assert (request.state, request.service, request.recalls) == ("QUEUED", "CCNL", 1)


@pytest.mark.parametrize("invalid", ["", "exten => i,1,Verbose(1,site-i)\n"])
def test_the_extension_is_not_there_any_more(bench: Bench, invalid: str) -> None:
    """A Goto() would drop him without a word. For the server it is a number that does not exist."""
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.asterisk.reload_dialplan(
        bench.dialplan().replace("_[1-4]000,1,Gosub", "_[134]000,1,Gosub") + f"[phones](+)\n{invalid}"
    )
    told_and_hung_up(bench, recall, [*NUMBER_2000, "vm-isunavail"])
    bench.until(lambda: not bench.server.requests(), "the request has ended")
    assert bench.server.history()[0].callee == "2000"
    bench.quiet("2000", 0.1)


def test_nobody_waits_in_silence_for_a_server_that_starts(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.forget_log()
    bench.server.stop()
    recall.answer().wait_answered()
    hears(bench, "one-moment-please")
    bench.server.start()
    call = bench.phones["2000"].expect_call(10)
    call.answer()
    call.wait_answered()
    assert bench.played() == ["one-moment-please"]
    call.hangup()
    bench.ended("COMPLETED")


# The language


def languages(bench: Bench) -> set[str]:
    return {line.split("(language '")[1][:2] for line in bench.site_lines("Playing '")}


def test_all_is_said_in_the_callers_language(bench: Bench) -> None:
    """4000 has language=xx: his codes, his offer, his list, and what he is told at his recall."""
    bench.reconfigure(settings(cc_offer_digit="5", cc_recall_announce="beep"))
    talk = bench.talk("2000", "3000")
    call = bench.phones["4000"].dial("2000").wait_answered()
    hears(bench, "vm-isonphone")
    call.dtmf("5")
    hears(bench, "activated")
    call.wait_ended()
    assert languages(bench) == {"xx"}
    bench.asks("4000", "*32")
    bench.asks("4000", "*31", listens=True)
    bench.asks("4000", listens=True)
    assert languages(bench) == {"xx"}
    bench.forget("2000")
    talk.hangup()
    recall = bench.recalled("4000")
    bench.forget_log()
    recall.answer().wait_ended(20)
    assert bench.played() == ["beep", *NUMBER_2000, "vm-isonphone"]
    assert languages(bench) == {"xx"}


def test_in_his_language_even_where_nothing_is_known_of_him(bench: Bench) -> None:
    bench.busy_and_asked("4000").hangup()
    recall = bench.recalled("4000")
    bench.server.stop()
    bench.launch()
    bench.server.wait_ready()
    told_and_hung_up(bench, recall, ["im-sorry"])
    assert languages(bench) == {"xx"}


def test_each_sentence_is_made_of_core_sounds() -> None:
    sounds = ensure_asterisk().data_dir / "sounds/en"
    text = (DIALPLAN / "cc-sounds.conf").read_text()
    sentences = re.findall(r"^exten => \w+,1,Return\(([^$].*)\)$", text, re.MULTILINE)
    files = {file for line in sentences for file in line.split("&") if "$" not in file}
    assert len(files) > 15
    assert [file for file in files if not (sounds / f"{file}.gsm").exists()] == []


# Without a server


@pytest.mark.parametrize("code", ["*30", "*31", "*312000", "*32", "*33", "*331000"])
def test_a_code_without_a_server(bench: Bench, code: str) -> None:
    bench.server.stop()
    began = time.monotonic()
    assert dials(bench, "1000", code) == SORRY
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(("code", "bound"), [("*32", 2), ("*31", 2), ("*331000", 6)])
def test_a_code_with_a_hung_server(bench: Bench, code: str, bound: float) -> None:
    bench.server.stop()
    with socket.create_server(("127.0.0.1", bench.port), backlog=128):
        began = time.monotonic()
        assert dials(bench, "1000", code) == SORRY
        assert time.monotonic() - began < bound + 4


def test_a_busy_call_without_a_server_is_not_answered(offering: Bench) -> None:
    offering.server.send(signal.SIGSTOP)
    began = time.monotonic()
    offering.phones["1000"].dial("2000").wait_status(486)
    assert time.monotonic() - began < 2.3
    offering.server.stop()
    began = time.monotonic()
    offering.phones["1000"].dial("2000").wait_status(486)
    assert time.monotonic() - began < 0.3
    assert not offering.played()


# Across a trunk


@pytest.fixture(scope="module")
def running_pbxs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPbx]:
    folder: Path = tmp_path_factory.mktemp("two")
    with TwoPbx(folder, ensure_asterisk()).running() as pbxs:
        yield pbxs


@pytest.fixture
def two(running_pbxs: TwoPbx) -> Iterator[TwoPbx]:
    running_pbxs.fresh(OFFER)
    yield running_pbxs
    running_pbxs.clear()


def test_offer_list_and_lamp_key_across_the_trunk(two: TwoPbx) -> None:
    """The caller is asked by his own PBX, never by the callee's; the list names the number that he dialled."""
    two.talk("4000", "5000")
    call = two.phones["1000"].dial("4000").wait_answered(10)
    hears(two.a, "vm-press")
    call.dtmf("5").wait_ended(15)
    assert two.a.played()[-1] == "activated" and not two.b.played()
    assert [(r.callee, r.monitor) for r in two.a.server.requests()] == [("4000", "b")]
    told = dials(two.a, "1000", "*32")
    assert told[3:11] == [
        "vm-for",
        "vm-extension",
        "digits/4",
        *["digits/0"] * 3,
        "queue-thereare",
        "digits/1",
    ]
    assert dials(two.a, "1000", "*331000") == ["cancelled"]
    assert not two.a.server.requests()
    assert dials(two.a, "1000", "*331000") == ["activated"]
    assert [r.callee for r in two.a.server.requests()] == ["4000"]


def test_busy_again_across_the_trunk(two: TwoPbx) -> None:
    talk = two.talk("4000", "5000")
    call = two.phones["1000"].dial("4000").wait_answered(10)
    hears(two.a, "vm-press")
    call.dtmf("5").wait_ended(15)
    two.forget("4000")
    two.phones["4000"].answer = "busy"
    talk.hangup()
    recall = two.recalled("1000")
    before = len(two.a.played())
    recall.answer().wait_ended(20)
    assert two.a.played()[before:] == ["digits/4", *["digits/0"] * 3, "vm-isonphone"]
    assert recall.ended_by == "them" and not two.b.played()
