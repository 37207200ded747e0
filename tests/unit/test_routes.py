"""The AGI scripts of the keys and prompts: what they set, for whom, and what hostile words make of them: nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fastagi.agi import routes
from fastagi.agi.wire import command
from fastagi.completion.model import Context, Number, Service, Settings
from fastagi.completion.offers import FailedCall
from tests.unit.rules import IDLE, IN_USE, phone
from tests.unit.scripts import Script, ran
from tests.unit.test_far_rules import FarWorld, check

PHONE, OTHER = "PJSIP/1000-00000001", "PJSIP/1100-00000002"
RECALL = "Local/{}@cc-recall-00000001;2"
REQUESTED = {"CC_REQUEST_RESULT": "SUCCESS", "CC_REQUEST_REASON": "", "CC_ACK": "1"}
CANCELLED = {"CC_CANCEL_RESULT": "SUCCESS", "CC_CANCEL_REASON": "", "CC_ACK": "1"}


@pytest.fixture
def world() -> Iterator[FarWorld]:
    world = FarWorld()
    for callee in ("2000", "2001", "2002"):
        world.set(callee, IN_USE)
    yield world
    check(world)


def no(reason: str) -> dict[str, str]:
    """What the lamp key's script sets when it does nothing."""
    return {"CC_TOGGLE": "", "CC_REQUEST_RESULT": "FAIL", "CC_REQUEST_REASON": reason, "CC_ACK": "1"}


# ---------------------------------------------------------------------------------------------- the lamp key


def test_the_lamp_key_asks_and_takes_back(world: FarWorld) -> None:
    world.wants("1100", "2000")
    world.fails("1000", "2000")
    asked = {"CC_TOGGLE": "request", "CC_POSITION": "2", **REQUESTED}
    assert ran(world, "toggle", PHONE, "1000") == asked
    assert ran(world, "toggle", PHONE, "1000") == {"CC_TOGGLE": "cancel", **CANCELLED}
    assert ran(world, "toggle", PHONE) == asked


def test_the_lamp_key_while_he_calls(world: FarWorld) -> None:
    world.wants("1000", "2000")
    world.set("2000", IDLE)
    world.taken("r1")
    world.answered("r1")
    made = ran(world, "toggle", PHONE, "1000")
    assert (made["CC_TOGGLE"], made["CC_REQUEST_REASON"]) == ("request", "ALREADY_REQUESTED")


def test_the_lamp_key_refused(world: FarWorld) -> None:
    assert ran(world, "toggle", PHONE, "1000") == no("NO_CORE_INSTANCE")
    world.fails("1000", "2000")
    assert ran(world, "toggle", OTHER, "1000") == no("NOT_HIS_KEY")
    assert ran(world, "toggle", PHONE, "1000", hung_up=True) == no("UNSPECIFIED")
    assert world.store.requests == {}
    assert "NOT_HIS_KEY: 1100 has pressed the key of 1000" in world.logged[-2]


def test_the_lamp_key_waits_for_the_other_pbx_as_asking_does(world: FarWorld) -> None:
    world.fails_out("1000", "2500")
    script = Script(world, "toggle", PHONE, "1000")
    assert script.sets() is None
    world.accept(world.service.book.last_id)
    assert script.sets() == {"CC_TOGGLE": "request", "CC_POSITION": "1", **REQUESTED}
    assert ran(world, "toggle", PHONE, "1000") == {"CC_TOGGLE": "cancel", **CANCELLED}
    script = Script(world, "toggle", PHONE, "1000")
    world.wait(4)
    assert script.sets() == no("NO_ANSWER")


# ------------------------------------------------------------------------------------------- all of his requests


def test_all_are_counted_that_were_taken_back(world: FarWorld) -> None:
    for callee in ("2000", "2001"):
        world.wants("1000", callee)
    assert ran(world, "cancelall", PHONE) == {"CC_CANCELLED": "2", **CANCELLED}
    made = ran(world, "cancelall", PHONE)
    assert made == {
        "CC_CANCEL_RESULT": "FAIL",
        "CC_CANCEL_REASON": "NO_CORE_INSTANCE",
        "CC_CANCELLED": "0",
        "CC_ACK": "1",
    }


def test_the_status_has_the_place_of_each(world: FarWorld) -> None:
    none = {"CC_PENDING": "0", "CC_PENDING_LIST": "", "CC_PENDING_PLACES": "", "CC_ACK": "1"}
    assert ran(world, "status", PHONE) == none
    world.wants("1100", "2001")
    for callee in ("2000", "2001"):
        world.wants("1000", callee)
    assert ran(world, "status", PHONE) == {
        "CC_PENDING": "2",
        "CC_PENDING_LIST": "2000,2001",
        "CC_PENDING_PLACES": "1,2",
        "CC_ACK": "1",
    }


def test_the_status_tells_of_those_beyond_by_the_number_he_dialled(world: FarWorld) -> None:
    world.camps("1000", "2500")
    assert ran(world, "status", PHONE)["CC_PENDING_LIST"] == "2500"


def test_the_status_lists_twenty_and_counts_all(world: FarWorld) -> None:
    world.directory.set("1000", cc_max_agents=30)
    for n in range(21):
        world.set(f"21{n:02}", IN_USE)
        world.wants("1000", f"21{n:02}")
    made = ran(world, "status", PHONE)
    assert made["CC_PENDING"] == "21"
    assert made["CC_PENDING_LIST"].split(",") == [f"21{n:02}" for n in range(20)]
    assert made["CC_PENDING_PLACES"] == ",".join(["1"] * 20)


def test_not_known_is_not_none(world: FarWorld) -> None:
    made = ran(world, "status", "PJSIP/mxone-00000001")
    assert made == {"CC_PENDING": "", "CC_PENDING_LIST": "", "CC_PENDING_PLACES": "", "CC_ACK": "1"}


# ------------------------------------------------------------------------------------------------ hostile words

STRANGERS = [
    "",
    "PJSIP/mxone-00000001",
    "PJSIP/anonymous-00000001",
    "PJSIP/1000",
    "PJSIP/1000-0000001",
    "PJSIP/1000-000000001",
    "PJSIP/1000-0000000G",
    "PJSIP/1000-00000001\n",
    "pjsip/1000-00000001",
    "SIP/1000-00000001",
    "Local/1000@phones-00000001;1",
    "Local/s@cc-note-00000001;1",
    "Local/012345678901234@cc-recall-00000001;2",
    "PJSIP/1000/PJSIP/1100-00000001",
    "PJSIP/1000\nagi_evil-00000001",
    "PJSIP/" + "1" * 81 + "-00000001",
    "PJSIP/${EXTEN}-00000001",
    "PJSIP/1000-00000001\udcff",
]
WORDS = [
    "1000\n",
    "\n1000",
    "1000\r",
    " 1000",
    "1000,1100",
    "1000&1100",
    "PJSIP/1000",
    "1000@mxone",
    "${EXTEN}",
    "$[1]",
    "1000)",
    '1000"',
    "١٠٠٠",
    "-1000",
    "1" * 41,
    "1" * 100_000,
    "\0",
    "\udcff",
    "Hint:1000@phones",
]


@pytest.mark.parametrize("name", ["toggle", "cancelall", "status", "request", "cancel"])
@pytest.mark.parametrize("channel", STRANGERS, ids=range(len(STRANGERS)))
def test_who_is_no_phone_of_this_pbx_can_do_nothing(world: FarWorld, name: str, channel: str) -> None:
    world.wants("1000", "2000")
    world.fails("1000", "2001")
    before = dict(world.store.requests)
    made = ran(world, name, channel, "1000")
    assert world.store.requests == before
    assert {made.get("CC_REQUEST_RESULT"), made.get("CC_CANCEL_RESULT")} <= {"FAIL", None}
    reason = made.get("CC_REQUEST_REASON", made.get("CC_CANCEL_REASON", "CALLER_UNKNOWN"))
    assert reason in ("CALLER_UNKNOWN", "INVALID")
    assert not made.get("CC_PENDING") and not made.get("CC_TOGGLE")
    assert all("\n" not in line for line in world.logged)


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_key_that_is_no_number_is_refused(world: FarWorld, word: str) -> None:
    world.fails("1000", "2000")
    assert ran(world, "toggle", PHONE, word) == no("INVALID")
    assert world.store.requests == {}
    assert "\n" not in world.logged[-1] and len(world.logged[-1]) < 300


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_what_takes_no_argument_reads_none(world: FarWorld, word: str) -> None:
    world.wants("1000", "2000")
    assert ran(world, "status", PHONE, word)["CC_PENDING"] == "1"
    assert ran(world, "cancelall", PHONE, word) == {"CC_CANCELLED": "1", **CANCELLED}


def test_whatever_fails_each_script_sets_the_same_variables(world: FarWorld) -> None:
    """Or the dialplan would read one that the script before it had set."""
    for name in routes.ROUTES:
        made = ran(world, name, "nobody")
        assert made["CC_ACK"] == "1"
        assert all(re.fullmatch("[A-Z_0-9]*", value) for value in made.values()), name
    world.wants("1000", "2000")
    for name in ("cancelall", "status"):
        assert ran(world, name, PHONE).keys() == ran(world, name, "nobody").keys()


# ----------------------------------------------------------------------------------------------- the prompt

PROMPT = {"CC_OFFER_DIGIT", "CC_OFFER_REPEAT", "CC_OFFER_WAIT"}


def record(world: FarWorld, channel: str, *args: str) -> dict[str, str]:
    return dict(ran(world, "record", channel, *args))


def test_how_he_is_asked_is_the_callers_to_say(world: FarWorld) -> None:
    world.directory.set("1000", cc_offer_digit="*", cc_offer_repeat=3, cc_offer_wait=2.5)
    world.directory.set("2000", cc_offer_digit="7", cc_offer_repeat=9, cc_offer_wait=9)
    made = record(world, PHONE, "2000", "BUSY", "17", "PJSIP/2000")
    assert {name: made[name] for name in PROMPT} == {
        "CC_OFFER_DIGIT": "*",
        "CC_OFFER_REPEAT": "3",
        "CC_OFFER_WAIT": "2.5",
    }
    made = record(world, OTHER, "2000", "BUSY", "17", "PJSIP/2000")
    assert {name: made[name] for name in PROMPT} == {
        "CC_OFFER_DIGIT": "",
        "CC_OFFER_REPEAT": "2",
        "CC_OFFER_WAIT": "4",
    }


def test_who_may_not_ask_is_not_asked(world: FarWorld) -> None:
    world.directory.set("1000", cc_offer_digit="5")
    assert record(world, PHONE, "2000", "CONGESTION", "34", "PJSIP/2000").keys() & PROMPT == set()
    assert record(world, PHONE, "1000", "BUSY", "17", "PJSIP/1000").keys() & PROMPT == set()
    assert record(world, PHONE, "x", "BUSY", "17", "PJSIP/2000").keys() & PROMPT == set()


def test_who_is_beyond_a_trunk_is_not_asked_here(world: FarWorld) -> None:
    """Not even where the defaults say so: he asks at his own PBX, and could not be understood."""
    for number in ("7000@mxone", "7000", "2000", "mxone"):
        world.directory.set(number, cc_offer_digit="5")
    made = record(world, "PJSIP/mxone-0000000a", "2000", "BUSY", "17", "PJSIP/2000", "", "in-1")
    assert made == {"CC_OFFERED": "1", "CC_SERVICE": "CCBS", "CC_OFFER_ID": "1", "CC_ACK": "1"}


def test_a_phone_that_calls_over_a_trunk_is_asked_here(world: FarWorld) -> None:
    world.directory.set("1000", cc_offer_digit="5")
    world.far.offers["out-1"] = Service.CCBS
    made = record(world, PHONE, "2500", "BUSY", "17", "PJSIP/2500@mxone", "out-1")
    assert (made["CC_OFFERED"], made["CC_OFFER_DIGIT"]) == ("1", "5")


def test_in_the_call_after_a_recall_nobody_is_asked(world: FarWorld) -> None:
    world.directory.set("1000", cc_offer_digit="5")
    world.service._new_recall_id = lambda: "012345678901234"
    world.wants("1000", "2000")
    world.set("2000", IDLE)
    world.taken("012345678901234")
    world.answered("012345678901234")
    channel = RECALL.format("012345678901234")
    args = ("2000", "BUSY", "17", "PJSIP/2000", "", "", "", "", "phones", "012345678901234")
    assert record(world, channel, *args) == {"CC_OFFERED": "0", "CC_REASON": "RETAINED", "CC_ACK": "1"}


# ------------------------------------------------------------------------------------------------ the call


def test_a_phone_that_an_entry_names_is_no_trunk(world: FarWorld) -> None:
    """The hang-up handler cannot tell the two from each other by their names."""
    world.directory.set("2000", ("PJSIP/bob-desk", "PJSIP/bob-cordless"))
    world.directory.set("2001", ("PJSIP/carol-desk",))
    rung = {
        "PJSIP/2000@bob-desk": ("PJSIP/bob-desk",),
        "PJSIP/2600@bob-desk&PJSIP/2600@carol-desk&PJSIP/2100": (
            "PJSIP/bob-desk",
            "PJSIP/carol-desk",
            phone("2100"),
        ),
        "PJSIP/2000@elsewhere": (),
        "PJSIP/2600@bob-desk&PJSIP/2600@elsewhere": (),
        # By its name alone no endpoint is a phone that is called through.
        "PJSIP/2600@2100": (),
    }
    for string, devices in rung.items():
        record(world, PHONE, "2600", "BUSY", "17", string)
        assert world.store.offers[max(world.store.offers)].callee_devices == devices


def test_who_has_other_devices_is_away_where_nothing_was_tried(world: FarWorld) -> None:
    world.directory.set("2000", ("PJSIP/bob-desk",))
    assert record(world, PHONE, "2000", "CHANUNAVAIL", "1", "")["CC_SERVICE"] == "CCNL"
    for number, string in (("2001", ""), ("2000", "PJSIP/bob-desk")):
        assert record(world, PHONE, number, "CHANUNAVAIL", "1", string)["CC_REASON"] == "NO_SUCH_NUMBER"


def test_a_second_attempt_counts_where_the_first_is_not_offered(world: FarWorld) -> None:
    """The first line was congested; by the second he was reached, and is busy."""
    world.fails("1000", "2000", "CONGESTION", 34, uniqueid="1.1")
    world.fails("1000", "2000", "BUSY", 17, uniqueid="1.1")
    assert world.told()[-2:] == ["saved: offer 2", "-> offer 2 CCBS"]
    assert list(world.store.offers) == [2]
    world.fails("1000", "2000", "CANCEL", 0, uniqueid="1.1")
    assert world.told() == ["-> offer 2 CCBS"]


def test_a_call_that_led_to_talk_is_not_offered_anew(world: FarWorld) -> None:
    world.fails("1000", "2000", uniqueid="1.1")
    world.asks("1000")
    world.set("2000", IDLE)
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1", "ANSWER", 16)
    world.told()
    world.fails("1000", "2000", "CANCEL", 0, uniqueid="1.1")
    assert world.told() == ["-> not offered: COMPLETED"]


def test_two_lines_to_another_pbx(world: FarWorld) -> None:
    """Each attempt is a call of its own to the PBX there, and it is the latest that may still be offered."""
    call = FailedCall(
        caller=phone("1000"),
        context=Context("phones"),
        callee=Number("2500"),
        devices=(),
        dialstatus="BUSY",
        cause=17,
        uniqueid="1.1",
        through="PJSIP/mxone",
    )
    for call_out in "out-1", "out-2", "out-2":
        world.service.offer(replace(call, call_out=call_out), world.said)
    assert world.told()[-3:] == ["saved: offer 2", *["-> not offered: CALLEE_NOT_WATCHABLE"] * 2]
    assert [offer.call_out for offer in world.store.offers.values()] == ["out-2"]


# ------------------------------------------------------------------------------------------------ the recall


def rung(world: FarWorld, **settings: object) -> tuple[dict[str, str], dict[str, str]]:
    """What `recall` and `answered` set for 1000, who has these settings, and is called back for 2000."""
    id = "012345678901234"
    world.directory.set("1000", **settings)  # type: ignore[arg-type]
    world.service._new_recall_id = lambda: id
    world.wants("1000", "2000")
    world.set("2000", IDLE)
    return dict(ran(world, "recall", RECALL.format(id), id)), dict(
        ran(world, "answered", RECALL.format(id), id)
    )


def test_the_phone_that_called_is_the_one_the_cc_call_is_made_for(world: FarWorld) -> None:
    """Class of service, account and language are its own; all of his phones ring."""
    id = "012345678901234"
    world.directory.set("1000", ("PJSIP/desk", "PJSIP/cordless"))
    world.service._new_recall_id = lambda: id
    record(world, "PJSIP/cordless-00000001", "2000", "BUSY", "17", "PJSIP/2000")
    ran(world, "request", "PJSIP/desk-00000002")
    for device in "desk", "cordless", "2000":
        world.set(device, IDLE)
    assert ran(world, "recall", RECALL.format(id), id)["CC_DIAL"] == "PJSIP/cordless&PJSIP/desk"
    assert ran(world, "answered", RECALL.format(id), id)["CC_CALLER_ENDPOINT"] == "cordless"


def test_without_a_word_the_name_is_followed_by_callback(world: FarWorld) -> None:
    world.directory.set("2000")
    recall, answered = rung(world)
    assert (recall["CC_CID_NAME"], recall["CC_ALERT_INFO"]) == ("Name of 2000 (callback)", "")
    assert answered["CC_ANNOUNCE"] == "off"


def test_how_he_is_rung_is_the_callers_to_say(world: FarWorld) -> None:
    callees = {"cc_recall_prefix": "No: ", "cc_recall_alert_info": "no", "cc_recall_announce": "beep"}
    world.directory.set("2000", **callees)
    own = {"cc_recall_prefix": "CC ", "cc_recall_alert_info": "<x>;info=y", "cc_recall_announce": "number"}
    recall, answered = rung(world, **own)
    assert (recall["CC_CID_NUM"], recall["CC_CID_NAME"]) == ("2000", "CC Name of 2000")
    assert recall["CC_ALERT_INFO"] == "<x>;info=y"
    assert answered["CC_ANNOUNCE"] == "number"


def test_a_prefix_stands_before_a_number_too(world: FarWorld) -> None:
    recall, _ = rung(world, cc_recall_prefix="CC ")
    assert recall["CC_CID_NAME"] == "CC 2000"


@pytest.mark.parametrize("prefix", ["a, b", "${EXTEN}", "$[1]", "it's; "])
def test_a_prefix_is_one_word_to_asterisk(world: FarWorld, prefix: str) -> None:
    """What the configuration lets through stays inside its quotes, whatever it looks like."""
    recall, _ = rung(world, cc_recall_prefix=prefix)
    sent = command("SET", "VARIABLE", "CC_CID_NAME", recall["CC_CID_NAME"]).decode()
    assert re.fullmatch(r'SET VARIABLE CC_CID_NAME "[^"\\\n]*"\n', sent)
    assert f'"{prefix}2000"' in sent


def test_a_caller_of_another_number_has_his_own(world: FarWorld) -> None:
    """The service tells the settings of whoever is asked about."""
    world.directory.set("1000", cc_offer_digit="5")
    assert world.service.settings(Number("1000")) == replace(Settings(), cc_offer_digit="5")
    assert world.service.settings(Number("1100")) == Settings()
