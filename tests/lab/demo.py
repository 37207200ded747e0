"""contrib/demo: the scenarios of call completion, played live with scripted phones on a real Asterisk."""

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
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType

from tests.lab.install import LAB, LabError, ensure_asterisk
from tests.lab.office import NAMES, RING, SIP_PORT, Office, free_or, hints, last_words
from tests.lab.phone import Call, Phone, PhoneTimeout
from tests.lab.timeline import Timeline

USAGE = """\
contrib/demo         Alice calls Bob, who is busy, and is called back when he is free
contrib/demo all     that and the five other scenarios of Asterisk's "Generic Call Completion Example"
contrib/demo stay    the first one, then all is left running for you to try, until Ctrl-C"""

ALICE, BOB, CAROL = "1000", "2000", "3000"
PROMPTS = {
    "activated": '"activated"', "cancelled": '"cancelled"', "beeperr": "an error beep", "im-sorry": '"I\'m sorry"',
}
PLAYING = re.compile(r"\[([-0-9]+ [:.0-9]+)\] .*<PJSIP/(\d+)-\w+> Playing '([^'.]+)")
USUAL = {"cc_offer_timer": 20, "ccbs_available_timer": 4800, "ccnr_available_timer": 7200}


class Surprise(Exception):
    """Something else happened than what the scenario is about."""


class Stage:
    """The office with its people, and the words a scenario is written in."""

    def __init__(self, office: Office, timeline: Timeline) -> None:
        self.office, self.timeline = office, timeline
        self.phones: dict[str, Phone] = {}

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
        """Other settings for the scenario that comes: in fastagi's YAML file, and in the dialplan."""
        self.office.server.stop()
        self.office.server.configure(self.office.settings(**timers))
        self.office.server.start()
        self.office.asterisk.reload_dialplan(self.office.dialplan(ring))
        for name, seconds in timers.items():
            self.timeline.note(f"Shortened in fastagi.yaml: {name} is {seconds:g} s instead of {USUAL[name]} s.")
        if ring != RING:
            self.timeline.note(f"Shortened in the dialplan: a phone rings {ring} s instead of {RING} s.")

    def clear(self) -> None:
        """All phones down, before the next scenario."""
        for phone in self.phones.values():
            phone.answer = "ring"
            for call in phone.calls:
                call.hangup()
            self._forget(phone)
        end = time.monotonic() + 5
        while self.office.asterisk.channels() and time.monotonic() < end:
            time.sleep(0.05)

    # What people do

    def says(self, number: str, what: str, at: float | None = None) -> None:
        self.timeline.say(NAMES[number], what, at)

    def talks(self, caller: str, callee: str) -> Call:
        """They talk; answers the callee's end. Whoever else calls him meets busy."""
        out = self.phones[caller].dial(callee)
        self.says(caller, f"calls {NAMES[callee]}", out.started_at)
        call = self.phones[callee].expect_call().answer()
        out.wait_answered()
        self.says(callee, f"picks up: {NAMES[callee]} is talking to {NAMES[caller]}", call.answered_at)
        self.phones[callee].answer = "busy"
        time.sleep(1)
        return call

    def meets_busy(self, caller: str, callee: str) -> None:
        call = self.phones[caller].dial(callee)
        self.says(caller, f"calls {NAMES[callee]}: busy", call.started_at)
        call.wait_status(486)
        self._forget(self.phones[callee])
        time.sleep(0.7)

    def meets_nobody(self, caller: str, callee: str) -> None:
        call = self.phones[caller].dial(callee)
        self.says(caller, f"calls {NAMES[callee]}", call.started_at)
        ringing = self.phones[callee].expect_call()
        self.says(callee, "is not at his desk: his phone rings", ringing.started_at)
        call.wait_ended(RING + 10)
        self.says(caller, "nobody answers", call.ended_at)
        time.sleep(0.7)

    def dials(self, number: str, code: str, expected: list[str]) -> None:
        """A code, and what Asterisk plays."""
        mark = len(self.office.asterisk.log_lines())
        call = self.phones[number].dial(code)
        self.says(number, f"dials {code}", call.started_at)
        call.wait_answered()
        call.wait_ended(15)
        heard = self._heard(number, mark)
        words = " and ".join(PROMPTS.get(prompt, prompt) for _, prompt in heard) or "nothing"
        self.says(number, f"hears {words}", heard[0][0] if heard else None)
        if [prompt for _, prompt in heard] != expected:
            wanted = " and ".join(PROMPTS[prompt] for prompt in expected)
            raise Surprise(f"{NAMES[number]} should have heard {wanted} after {code}, but heard {words}.")
        time.sleep(0.5)

    def hangs_up(self, call: Call, what: str) -> float:
        """Answers when."""
        number = call.phone.number
        call.hangup()
        call.wait_ended()
        ended = call.ended_at or time.monotonic()
        self.says(number, what, ended)
        self.phones[number].answer = "ring"
        return ended

    def is_called_back(self, caller: str, callee: str, freed: float) -> str:
        """The recall, the call that follows, and its end; answers how long after ``freed`` it rang."""
        recall = self.phones[caller].expect_call(10)
        if not recall.from_name.endswith("(callback)"):
            raise Surprise(f"{NAMES[caller]} should have been called back, but {recall.from_name} called.")
        recall.ring()
        delay = recall.started_at - freed
        who = f"{recall.from_name} <{recall.from_number}>"
        self.says(caller, f"'s phone rings, {delay:.2f} s later: {who}".replace("'s ", "phone: ", 0), recall.started_at)
        time.sleep(1)
        recall.answer()
        self.says(caller, "picks up", recall.answered_at)
        call = self.phones[callee].expect_call()
        call.ring()
        after = 1000 * (call.started_at - (recall.answered_at or 0))
        self.says(callee, f"his phone rings {after:.0f} ms later: {call.from_name} <{call.from_number}>", call.started_at)
        time.sleep(1)
        call.answer().wait_answered()
        self.says(callee, f"picks up: {NAMES[callee]} is talking to {NAMES[caller]}", call.answered_at)
        time.sleep(1)
        call.hangup()
        recall.wait_ended()
        self.says(callee, "hangs up: they have said what they wanted to say", call.ended_at)
        self.ends_as("COMPLETED")
        return f"called back {delay:.2f} s after he was free"

    def stays_silent(self, number: str, seconds: float) -> None:
        try:
            self.phones[number].no_call(seconds)
        except AssertionError:
            raise Surprise(f"{NAMES[number]}'s phone rang, and it should not have.") from None
        self.says(number, f"is not rung: the phone was silent for {seconds:g} s")

    def ends_as(self, reason: str, timeout: float = 10) -> None:
        """fastagi's own account of the request, once it has ended."""
        server = self.office.server
        end = time.monotonic() + timeout
        while not ((ended := server.history()) and ended[0].reason == reason):
            if time.monotonic() > end:
                raise Surprise(f"The request should have ended as {reason}.")
            time.sleep(0.02)
        offset = time.time() - time.monotonic()
        self.timeline.note("How fastagi tells it:")
        for entry in server.log(ended[0].id):
            self.timeline.say("fastagi", entry.sentence, entry.at - offset)
