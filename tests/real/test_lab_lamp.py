"""The lamp of the scripted phone, on a real Asterisk: what a BLF key shows of a Custom device."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.asterisk import Asterisk
from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Phone, PhoneError, PhoneTimeout

EXTENSIONS = """\
[general]
[phones]
exten => _*33[1-4]000,hint,Custom:CC${EXTEN:3}
"""


@pytest.fixture(scope="module")
def asterisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asterisk]:
    instance = Asterisk(tmp_path_factory.mktemp("lamp"), ensure_asterisk(), say=lambda line: None)
    instance.configure(EXTENSIONS, [Endpoint("1000", "Alice")])
    with instance:
        yield instance


@pytest.fixture
def alice(asterisk: Asterisk) -> Iterator[Phone]:
    change(asterisk, "NOT_INUSE")
    with Phone("1000", asterisk.sip_address) as phone:
        phone.register()
        yield phone
    assert phone.faults == []


def change(asterisk: Asterisk, *states: str) -> None:
    for state in states:
        asterisk.cli(f"devstate change Custom:CC1000 {state}")


def watched(asterisk: Asterisk) -> list[str]:
    return re.findall(r"Resource: (\S+)/dialog", asterisk.cli("pjsip show subscriptions inbound"))


def test_it_shows_every_change_in_order(asterisk: Asterisk, alice: Phone) -> None:
    lamp = alice.watch_lamp("*331000")
    assert lamp.states == ["terminated"]
    change(asterisk, "INUSE", "RINGING", "RINGINUSE", "ONHOLD", "NOT_INUSE")
    lamp.expect("early")
    lamp.expect("terminated")
    assert lamp.states == ["terminated", "confirmed", "early", "confirmed", "confirmed", "terminated"]
    numbers = [notice.cseq[0] for notice in lamp.notices]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_a_state_is_expected_once(asterisk: Asterisk, alice: Phone) -> None:
    lamp = alice.watch_lamp("*331000")
    lamp.expect("terminated")
    with pytest.raises(
        PhoneTimeout, match=r"'terminated' of <lamp of 1000 for '\*331000': \['terminated'\]>"
    ):
        lamp.expect("terminated", 0.1)
    change(asterisk, "INUSE", "NOT_INUSE")
    lamp.expect("terminated")
    with pytest.raises(PhoneTimeout):
        # It was there, and has been passed over.
        lamp.expect("confirmed", 0.1)


def test_two_lamps_are_told_apart(asterisk: Asterisk, alice: Phone) -> None:
    mine, other = alice.watch_lamp("*331000"), alice.watch_lamp("*332000")
    change(asterisk, "INUSE")
    mine.expect("confirmed")
    assert other.states == ["terminated"]


def test_it_goes_out_when_unsubscribed_and_when_the_phone_closes(asterisk: Asterisk, alice: Phone) -> None:
    lamp, left = alice.watch_lamp("*331000"), alice.watch_lamp("*332000")
    lamp.unsubscribe()
    assert (lamp.ended, left.ended) == (True, False)
    assert watched(asterisk) == ["*332000"]
    alice.close()
    assert left.ended
    assert watched(asterisk) == []


def test_without_a_hint_it_is_refused(alice: Phone) -> None:
    with pytest.raises(PhoneError, match=r"1000: SUBSCRIBE to '9999' got SIP/2.0 404 Not Found"):
        alice.watch_lamp("9999")


def test_it_goes_on_after_a_restart(asterisk: Asterisk, alice: Phone) -> None:
    """Asterisk keeps its subscriptions, and tells each its state anew."""
    change(asterisk, "INUSE")
    lamp = alice.watch_lamp("*331000")
    lamp.expect("confirmed")
    asterisk.restart()
    lamp.expect("confirmed")
    change(asterisk, "NOT_INUSE")
    lamp.expect("terminated")
