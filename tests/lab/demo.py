"""contrib/demo: call completion played live, by scripted phones on a real Asterisk.

`Stage` has the words a scenario is written in; each of them does something, waits for what comes of it, and
tells it with its time. What does not come as it should ends the demo.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType

from fastagi.store.requests import Reader
from tests.lab.install import LAB, ensure_asterisk
from tests.lab.office import NAMES, RING, SIP_PORT, Office, free_or, hints, last_words
from tests.lab.phone import Call, Phone, PhoneTimeout
from tests.lab.timeline import Timeline

USAGE = """\
contrib/demo         Alice calls Bob, who is busy, and is called back when he is free
contrib/demo all     that and the five other scenarios of Asterisk's "Generic Call Completion Example"
contrib/demo stay    the first one, then all is left running for you to try, until Ctrl-C"""

ALICE, BOB, CAROL = "1000", "2000", "3000"
PROMPTS = {
    "activated": '"activated"',
    "cancelled": '"cancelled"',
    "beeperr": "an error beep",
    "im-sorry": '"I\'m sorry"',
}
PLAYING = re.compile(r"\[([-0-9]+ [:.0-9]+)\] .*<PJSIP/(\d+)-\w+> Playing '([^'.]+)")
USUAL = {"cc_offer_timer": 20, "ccbs_available_timer": 4800, "ccnr_available_timer": 7200}
POLL = 0.5  # seconds; poll_interval as it is when nobody sets it
BREATH = 1.0  # seconds people take between one thing and the next
PATIENCE = 10.0  # seconds until what should happen counts as not happening


class Surprise(Exception):
    """Something else happened than what the scenario is about; the message is for whoever watches."""


class Stage:
    """The office, its people at their phones, and the words of the scenarios."""

    def __init__(self, office: Office, timeline: Timeline) -> None:
        self.office, self.timeline = office, timeline
        self.phones: dict[str, Phone] = {}
        self._told: set[int] = set()  # requests of earlier scenarios

    @contextlib.contextmanager
    def open(self) -> Iterator[Stage]:
        try:
            self.office.start()
            for number, name in NAMES.items():
                self.phones[number] = Phone(number, self.office.asterisk.sip_address, name=name).start()
                self.phones[number].register(3600)
            yield self
        finally:
            for phone in self.phones.values():
                phone.close(abruptly=True)
            self.office.stop()

    def set(self, ring: int = RING, **timers: float) -> None:
        """Shorten timers in fastagi's YAML file, and the ringing in the dialplan, and say so."""
        server = self.office.server
        server.stop()
        server.configure(self.office.settings(**timers))
        server.start()
        self.office.asterisk.reload_dialplan(self.office.dialplan(ring))
        for name, seconds in timers.items():
            self.timeline.note(f"shortened in fastagi.yaml: {name} from {USUAL[name]} s to {seconds:g} s")
        if ring != RING:
            self.timeline.note(f"shortened in the dialplan: a phone rings {ring} s, not {RING} s")

    def clear(self) -> None:
        """Hang up everything, before the next scenario."""
        for phone in self.phones.values():
            phone.answer = "ring"
            for call in phone.calls:
                call.hangup()
            _forget(phone)
        end = time.monotonic() + PATIENCE
        while self.office.asterisk.channels() and time.monotonic() < end:
            time.sleep(0.05)

    def says(self, number: str, what: str, at: float | None = None) -> None:
        self.timeline.say(NAMES[number], what, at)

    # What people do

    def talk(self, caller: str, callee: str) -> tuple[Call, Call]:
        """They talk; whoever else calls them meets busy. Gives the caller's call and the callee's."""
        out = self.phones[caller].dial(callee)
        call = self.phones[callee].expect_call()
        self.says(caller, f"calls {NAMES[callee]}", out.started_at)
        time.sleep(BREATH / 2)
        call.answer()
        out.wait_answered()
        self.says(callee, f"is talking to {NAMES[caller]}", out.answered_at)
        self.phones[caller].answer = self.phones[callee].answer = "busy"
        time.sleep(BREATH)
        return out, call

    def meets_busy(self, caller: str, callee: str) -> None:
        call = self.phones[caller].dial(callee).wait_status(486)
        self.says(caller, f"calls {NAMES[callee]}: busy", call.ended_at)
        _forget(self.phones[callee])
        time.sleep(BREATH)

    def meets_nobody(self, caller: str, callee: str) -> None:
        call = self.phones[caller].dial(callee)
        ringing = self.phones[callee].expect_call()
        self.says(caller, f"calls {NAMES[callee]}, who is out: it rings", ringing.started_at)
        call.wait_ended(RING + PATIENCE)
        self.says(caller, "has heard it ring; nobody answers", call.ended_at)
        time.sleep(BREATH)

    def dials(self, number: str, code: str, *expected: str) -> None:
        """A code, and what is heard then: the prompts that Asterisk's log says it played."""
        mark = self.office.asterisk.log_size()
        call = self.phones[number].dial(code)
        self.says(number, f"dials {code}", call.started_at)
        call.wait_answered().wait_ended(15)
        played = [PLAYING.match(line) for line in self.office.asterisk.log_lines(after=mark)]
        heard = [found for found in played if found and found[2] == number]
        words = " and ".join(PROMPTS.get(found[3], found[3]) for found in heard) or "nothing"
        self.says(number, f"hears {words}", _instant(heard[0][1]) if heard else None)
        if tuple(found[3] for found in heard) != expected:
            wanted = " and ".join(PROMPTS[prompt] for prompt in expected)
            raise Surprise(f"{NAMES[number]} should have heard {wanted} after {code}, but heard {words}.")
        time.sleep(BREATH)

    def hangs_up(self, call: Call, other: Call, what: str = "hangs up") -> float:
        """The end of a talk; gives its instant."""
        call.hangup()
        other.wait_ended()
        for end in (call, other):
            end.phone.answer = "ring"
        assert call.ended_at is not None
        self.says(call.phone.number, what, call.ended_at)
        return call.ended_at

    def is_called_back(self, caller: str, callee: str, free_at: float) -> str:
        """The recall, and the call that follows. Gives a word on how fast it came."""
        recall = self.phones[caller].expect_call(PATIENCE)
        if not recall.from_name.endswith("(callback)"):
            raise Surprise(f"{NAMES[caller]} should have been called back, but {recall.from_name} called.")
        delay = recall.started_at - free_at
        self.says(caller, f"her phone rings {1000 * delay:.0f} ms later: {_shown(recall)}", recall.started_at)
        time.sleep(BREATH)
        recall.answer()
        self.says(caller, "picks up", recall.answered_at)
        call = self.phones[callee].expect_call()
        assert recall.answered_at is not None
        after = 1000 * (call.started_at - recall.answered_at)
        self.says(callee, f"his phone rings {after:.0f} ms later: {_shown(call)}", call.started_at)
        time.sleep(BREATH)
        call.answer().wait_answered()
        self.says(callee, f"picks up: {NAMES[callee]} is talking to {NAMES[caller]}", call.answered_at)
        time.sleep(BREATH)
        self.hangs_up(call, recall, "hangs up: they have talked")
        self.ends_as("COMPLETED")
        return f"called back {1000 * delay:.0f} ms after"

    def stays_silent(self, number: str, seconds: float) -> None:
        try:
            self.phones[number].no_call(seconds)
        except AssertionError:
            raise Surprise(f"{NAMES[number]}'s phone rang, and it should not have.") from None
        self.says(number, f"is left in peace: her phone has not rung for {seconds:g} s")

    def ends_as(self, reason: str) -> None:
        """The request has ended so; and how fastagi tells the story."""
        end = time.monotonic() + PATIENCE
        while not (ended := [r for r in self.office.server.history() if r.id not in self._told]):
            if time.monotonic() > end:
                raise Surprise(f"The request should have ended by now, as {reason}.")
            time.sleep(0.05)
        if ended[0].reason != reason:
            raise Surprise(f"The request should have ended as {reason}, but ended as {ended[0].reason}.")
        self._told.add(ended[0].id)
        self.timeline.note(f"the same in fastagi's words (fastagi show {ended[0].id}):")
        for entry in Reader(self.office.server.store).log(ended[0].id):
            self.timeline.say("fastagi", entry.sentence, _monotonic(entry.at))


# The scenarios, each a function whose docstring is its title

def called_back_when_free(stage: Stage) -> str:
    """Bob is busy; Alice is called back when he hangs up"""
    carol, bob = stage.talk(CAROL, BOB)
    stage.meets_busy(ALICE, BOB)
    stage.dials(ALICE, "*30", "activated")
    free_at = stage.hangs_up(bob, carol, "hangs up: he is free")
    return stage.is_called_back(ALICE, BOB, free_at)


def called_back_when_he_returns(stage: Stage) -> str:
    """Bob does not answer; Alice is called back after his next call"""
    stage.set(ring=3)
    stage.meets_nobody(ALICE, BOB)
    stage.dials(ALICE, "*30", "activated")
    stage.stays_silent(ALICE, 2)
    bob, carol = stage.talk(BOB, CAROL)
    free_at = stage.hangs_up(bob, carol, "hangs up: he is at his desk again, and free")
    return stage.is_called_back(ALICE, BOB, free_at)


def taken_back(stage: Stage) -> str:
    """Alice asks, and takes it back"""
    stage.set()
    carol, bob = stage.talk(CAROL, BOB)
    stage.meets_busy(ALICE, BOB)
    stage.dials(ALICE, "*30", "activated")
    stage.dials(ALICE, "*31", "cancelled")
    stage.hangs_up(bob, carol, "hangs up: he is free")
    stage.stays_silent(ALICE, 3)
    stage.ends_as("CANCELLED")
    return "not called back"


def asked_too_late(stage: Stage) -> str:
    """Alice asks too late"""
    stage.set(cc_offer_timer=2)
    carol, bob = stage.talk(CAROL, BOB)
    stage.meets_busy(ALICE, BOB)
    stage.says(ALICE, "thinks it over for 2 s")
    time.sleep(2)
    stage.dials(ALICE, "*30", "beeperr", "im-sorry")
    stage.hangs_up(bob, carol, "hangs up: he is free")
    stage.stays_silent(ALICE, 3)
    return "refused, not called back"


def busy_for_too_long(stage: Stage) -> str:
    """Bob stays busy until the request is too old"""
    stage.set(ccbs_available_timer=4)
    carol, bob = stage.talk(CAROL, BOB)
    stage.meets_busy(ALICE, BOB)
    stage.dials(ALICE, "*30", "activated")
    stage.says(BOB, "talks on")
    stage.ends_as("EXPIRED")
    stage.hangs_up(bob, carol, "hangs up: he is free")
    stage.stays_silent(ALICE, 3)
    return "expired, not called back"


def away_for_too_long(stage: Stage) -> str:
    """Bob stays away until the request is too old"""
    stage.set(ring=3, ccnr_available_timer=4)
    stage.meets_nobody(ALICE, BOB)
    stage.dials(ALICE, "*30", "activated")
    stage.ends_as("EXPIRED")
    bob, carol = stage.talk(BOB, CAROL)
    stage.hangs_up(bob, carol, "hangs up: he is at his desk again, and free")
    stage.stays_silent(ALICE, 3)
    return "expired, not called back"


SCENARIOS: list[Callable[[Stage], str]] = [
    called_back_when_free,
    called_back_when_he_returns,
    taken_back,
    asked_too_late,
    busy_for_too_long,
    away_for_too_long,
]


# How they are played

def play(stage: Stage, scenarios: list[Callable[[Stage], str]]) -> None:
    """One after the other, and a table of them where they are several."""
    results = []
    for number, scenario in enumerate(scenarios, 1):
        began = time.monotonic()
        stage.timeline.title(f"Scenario {number}: {scenario.__doc__}")
        result = scenario(stage)
        results.append((number, scenario.__doc__ or "", result, time.monotonic() - began))
        stage.clear()
    if len(results) > 1:
        stage.timeline.title("In short")
        for number, title, result, seconds in results:
            stage.timeline.line(f"  {number}  {title:<62}{result:<26}{seconds:3.0f} s")


def stay(stage: Stage) -> None:
    """Alice's extension is the visitor's; Bob is busy and free in turn, until Ctrl-C."""
    stage.phones.pop(ALICE).close()
    stage.timeline.title("Now you are Alice")
    stage.timeline.note(
        "Register a softphone of this machine as 1000 (password 1000). Bob is busy for 20 s, then free for"
        " 20 s, and so on. Call 2000 while he is busy, hang up, dial *30, and wait to be called back."
        " Ctrl-C ends it all."
    )
    for hint in hints(stage.office.folder, stage.office.asterisk.sip_address[1]):
        stage.timeline.line(f"  {hint}")
    bob, carol = stage.phones[BOB], stage.phones[CAROL]
    while True:
        for phone in (bob, carol):
            phone.register(3600)
        bob.answer = "ring"
        out = carol.dial(BOB)
        while (call := bob.expect_call()).from_number != CAROL:
            call.hangup()  # the visitor, at just that moment
        call.answer()
        bob.answer = carol.answer = "busy"
        stage.says(BOB, "is talking to Carol for 20 s: call him now, he is busy", call.answered_at)
        out.wait_answered()
        time.sleep(20)
        _forget(bob)
        bob.answer, carol.answer = "answer", "ring"
        bob.after = carol.after = 2.0
        call.hangup()
        stage.says(BOB, "hangs up: he is free for 20 s", call.ended_at)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(PhoneTimeout):
                visit = bob.expect_call(end - time.monotonic())
                stage.says(BOB, f"his phone rings: {_shown(visit)}", visit.started_at)
                visit.wait_answered()
                stage.says(BOB, "picks up, and hangs up after 5 s", visit.answered_at)
                visit.wait_ended(5)
            for visit in bob.calls:
                visit.hangup()


def main(words: list[str]) -> int:
    if words not in ([], ["all"], ["stay"]):
        print(USAGE)
        return 0 if words in (["-h"], ["--help"]) else 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    timeline = Timeline()
    folder = LAB / f"demo-{os.getpid()}"
    try:
        stage = _set_up(folder, timeline, sip_port=free_or(SIP_PORT, socket.SOCK_DGRAM) if words else 0)
        with stage.open():
            timeline.zero = time.monotonic()
            play(stage, SCENARIOS if words == ["all"] else SCENARIOS[:1])
            if words == ["stay"]:
                stay(stage)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do takes a second
    except KeyboardInterrupt:
        timeline.verdict("Ended, and everything is stopped.", words == ["stay"])
        shutil.rmtree(folder, ignore_errors=True)
        return 0 if words == ["stay"] else 130
    except Exception as error:  # whoever watches gets a sentence and the logs, not a traceback
        timeline.verdict(f"It failed: {str(error) or type(error).__name__}", False)
        for line in last_words(folder):
            timeline.line(line)
        if folder.exists():
            timeline.line(f"Everything is stopped; the whole logs are in {folder}.")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    if words:
        timeline.verdict("All six went as they should.", True)
    else:
        timeline.verdict("It works: Alice was called back. The other five scenarios: contrib/demo all", True)
    return 0


def _set_up(folder: Path, timeline: Timeline, sip_port: int) -> Stage:
    tree = ensure_asterisk(timeline.line)
    folder.mkdir(parents=True)
    folder.chmod(0o755)  # Asterisk may run as another user, whatever our umask is
    timeline.title("fastagi: call me back when he is free")
    people = ", ".join(f"{name} {number}" for number, name in NAMES.items())
    timeline.note(
        f"On a real Asterisk, with SIP phones that a script plays: {people}. While somebody waits for him,"
        f" fastagi asks every {POLL:g} s whether Bob is free."
    )
    return Stage(Office(folder, tree, timeline.note, sip_port), timeline)


def _forget(phone: Phone) -> None:
    """What has called this phone so far is not what a scenario waits for."""
    with contextlib.suppress(PhoneTimeout):
        while True:
            phone.expect_call(0)


def _shown(call: Call) -> str:
    """What the display of a phone shows of a call that comes in."""
    return f'"{call.from_name}" <{call.from_number}>'


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _monotonic(wall: float) -> float:
    return wall - time.time() + time.monotonic()


def _instant(stamp: str) -> float:
    """time.monotonic() of a time in Asterisk's log."""
    return _monotonic(datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").timestamp())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
