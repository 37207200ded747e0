"""A real Asterisk, the real server and SIP phones on one bench, with the words a test is written in."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from fastagi.completion.model import Offer, Request
from fastagi.store.requests import Reader
from tests.lab.asterisk import HOST, Asterisk, Trunk, lasting_port
from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import Tree
from tests.lab.phone import Call, Phone, PhoneTimeout
from tests.lab.server import DIALPLAN, Server, free_tcp_port

NAMES = {"1000": "Alice", "2000": "Bob", "3000": "Carol", "4000": "Dave"}
QUICK = "defaults: {poll_interval: 0.1, cc_recall_timer: 5, cc_retry_timer: 1}\n"

# What a call's variables were at its end: seen_in_h() reads this line.
SEEN = (
    "Verbose(1,site-h ${CHANNEL} dial=${DIALSTATUS} offered=${CC_OFFERED}/${CC_REASON}"
    " request=${CC_REQUEST_RESULT}/${CC_REQUEST_REASON} cancel=${CC_CANCEL_RESULT}/${CC_CANCEL_REASON}"
    " pending=${CC_PENDING}/${CC_PENDING_LIST})"
)

# So the dialplan of every site begins, and shows a test how its calls went.
HEAD = """\
[general]
[globals]
CC_AGI=agi://127.0.0.1:{port}
#include "{dialplan}/*.conf"

[phones]
include => cc-features
include => site
exten => h,1,{seen}
"""

# What a site writes.
SITE = """
[site]
exten => _[1-4]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}},{ring}))
 same => n,Verbose(1,site-back ${{CHANNEL}} dial=${{DIALSTATUS}} absolute=${{TIMEOUT(absolute)}} \
exit=${{AGIEXITONHANGUP}} offered=${{CC_OFFERED}})
 same => n,Hangup(${{HANGUPCAUSE}})
; no such number
exten => 9999,1,Gosub(cc-dial,s,1(PJSIP/2000/sip:nobody@127.0.0.1:{nowhere},3))
 same => n,Hangup()
exten => 8888,1,Gosub(cc-dial,s,1(PJSIP/trunk/sip:8888@127.0.0.1:{trunk},5))
 same => n,Hangup(${{HANGUPCAUSE}})
; what a site has of its own around its calls
exten => _7[1-4]000,1,Set(TIMEOUT(absolute)=60)
 same => n,Set(AGIEXITONHANGUP=mine)
 same => n,Goto(${{EXTEN:1}},1)
exten => _6[1-4]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN:1}},{ring},U(site-up^${{EXTEN}})b(site-pre^s^1),${{EXTEN:1}}))
 same => n,Hangup()
; asking by a digit
exten => _8[1-4]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN:1}},{ring},,${{EXTEN:1}}))
 same => n,Gosub(cc-offer,s,1)
 same => n,Hangup()
; plain Dial, and a hang-up handler
exten => _9[1-4]000,1,Set(CHANNEL(hangup_handler_push)=cc-hangup,s,1(${{EXTEN:1}},PJSIP/${{EXTEN:1}}))
 same => n,Dial(PJSIP/${{EXTEN:1}},{ring})
 same => n,Hangup(${{HANGUPCAUSE}})
; a call that stays up
exten => 5555,1,Answer()
 same => n,Wait(600)
; without cc-dial: plain Dial
exten => _5[1-4]000,1,Dial(PJSIP/${{EXTEN:1}},{ring})
 same => n,Hangup()

[site-up]
exten => s,1,Verbose(1,site-up ${{ARG1}})
 same => n,Return()
[site-pre]
exten => s,1,Verbose(1,site-pre ${{CHANNEL}})
 same => n,Return()

[trunk]
exten => _[1-4]000,1,Goto(phones,${{EXTEN}},1)
; as careless as a site can be
exten => _X!,1,Gosub(cc-dial,s,1(PJSIP/2000,5))
 same => n,Hangup(${{HANGUPCAUSE}})
{more}
"""


class Words:
    """What a test is written in; the phones may be those of one PBX or of several."""

    phones: dict[str, Phone]
    codes: Mapping[str, str] = {"*30": "*30", "*31": "*31", "*32": "*32"}
    """What the site has in place of our codes."""

    def pbx_of(self, number: str) -> Pbx:
        raise NotImplementedError

    def evidence(self) -> str:
        raise NotImplementedError

    def until(self, true: Callable[[], object], what: str, timeout: float = 5.0) -> None:
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end:
                raise AssertionError(f"not within {timeout} s: {what}\n{self.evidence()}")
            time.sleep(0.02)

    def talk(self, one: str, other: str) -> Call:
        """``one`` calls ``other`` and they talk; answers one's call. Whoever else calls them meets busy."""
        self.phones[other].answer = "answer"
        call = self.phones[one].dial(f"5{other}").wait_answered()
        self.forget(other)
        self.phones[one].answer = self.phones[other].answer = "busy"
        return call

    def forget(self, number: str) -> None:
        """The calls this phone has had so far are not the ones a test waits for."""
        with contextlib.suppress(PhoneTimeout):
            while True:
                self.phones[number].expect_call(0)

    def meets_busy(self, caller: str, callee: str) -> None:
        """A call that fails for busy; the phones' own behaviour is left as it was."""
        phone = self.phones[callee]
        before, phone.answer = phone.answer, "busy"
        self.phones[caller].dial(callee).wait_status(486)
        phone.answer = before
        self.forget(callee)

    def asks(self, caller: str, code: str = "*30", *, listens: bool = False) -> str:
        """Dials a code: ``RESULT/REASON`` of what the site's h saw.

        He hangs up at the first word, since what is known is known before it; or listens to all that is said.
        """
        pbx = self.pbx_of(caller)
        dialled = self.codes[code[:3]] + code[3:]
        count = len(pbx.channels_of(caller, dialled)) + 1
        call = self.phones[caller].dial(dialled).wait_answered()
        if not listens:
            word = f"<{pbx.channel_of(caller, dialled, count)}> Playing '"
            self.until(lambda: pbx.site_lines(word) or call.state == "ended", "he is told", 10)
            call.hangup()
        call.wait_ended(10)
        key = {"*30": "request", "*31": "cancel", "*32": "pending"}[code[:3]]
        return pbx.seen_in_h(caller, dialled, count)[key]

    def busy_and_asked(self, caller: str = "1000", callee: str = "2000", other: str = "3000") -> Call:
        """The callee talks to another, the caller meets busy and asks; answers the callee's call."""
        talk = self.talk(callee, other)
        self.meets_busy(caller, callee)
        assert self.asks(caller) == "SUCCESS/"
        self.phones[callee].answer = "ring"
        return talk

    def recalled(self, caller: str = "1000", timeout: float = 5.0) -> Call:
        """The recall that rings the caller."""
        call = self.phones[caller].expect_call(timeout)
        assert call.from_name.endswith("(callback)"), call.from_name
        return call

    def connects(self, recall: Call, callee: str) -> Call:
        """The caller picks up his recall, the callee his phone: they talk. Answers the callee's call."""
        recall.answer()
        call = self.phones[callee].expect_call()
        call.ring()
        call.answer()
        call.wait_answered()
        return call

    def device(self, number: str) -> str:
        """Asterisk's own word for this phone's state."""
        pbx = self.pbx_of(number)
        return pbx.asterisk.cli(f"dialplan eval function DEVICE_STATE({pbx.technology}/{number})")

    def quiet(self, number: str, seconds: float) -> None:
        """This phone is not called in that time."""
        self.phones[number].no_call(seconds)


class Pbx(Words):
    """One Asterisk and its phones; names: those of its phones, by number."""

    technology = "PJSIP"

    def __init__(self, asterisk: Asterisk, names: Mapping[str, str]) -> None:
        self.asterisk = asterisk
        self.names = names
        self.phones: dict[str, Phone] = {}
        self._extra: list[Phone] = []
        self._mark = 0

    def pbx_of(self, number: str) -> Pbx:
        return self

    def ready(self) -> None:
        """All phones registered and idle; the log counts from here."""
        for number, name in self.names.items():
            self.phones[number] = Phone(number, self.asterisk.sip_address, name=name).start()
            self.phones[number].register()
        self.forget_log()

    def forget_log(self) -> None:
        """What has been logged so far, and played, is not what a test looks at."""
        self._mark = self.asterisk.log_size()

    def clear(self) -> None:
        """After a test: nobody calls any more, and every channel ends by itself."""
        self.rest()
        self.until(self.is_still, "all channels are gone", 10)

    def rest(self) -> None:
        """Nobody calls any more, and Asterisk runs."""
        self.close_phones()
        self.asterisk.stay()

    def recover(self) -> None:
        """Before a test: what one before it has left behind shall not be its fault."""
        self.rest()
        if not self.is_still():
            self.asterisk.cli("channel request hangup all")
            try:
                self.until(self.is_still, "all channels are gone")
            except AssertionError:
                self.asterisk.restart()

    def is_still(self) -> bool:
        return not self.asterisk.channels()

    def close_phones(self, *, abruptly: bool = False) -> None:
        for phone in (*self.phones.values(), *self._extra):
            phone.close(abruptly=abruptly)
        self._extra.clear()
        self.phones.clear()

    def another(self, number: str, **options: Any) -> Phone:
        """One more phone, not registered yet."""
        phone = Phone(number, self.asterisk.sip_address, **options).start()
        self._extra.append(phone)
        return phone

    def site_lines(self, text: str) -> list[str]:
        """Lines of Asterisk's log since this test began."""
        return self.asterisk.log_lines(text, self._mark)

    def site_line(self, text: str, count: int = 1) -> str:
        """The latest of so many lines of Asterisk's log since this test began; waits for it, and there is no other.

        For Asterisk's logger is a thread of its own, which the end of a call may overtake.
        """
        self.until(lambda: len(self.site_lines(text)) >= count, f"{text!r} is logged, {count} times")
        lines = self.site_lines(text)
        assert len(lines) == count, lines
        return lines[-1]

    def channels_of(self, caller: str, number: str) -> list[str]:
        """The channels by which this phone has called that number since this test began."""
        begun = rf'Executing \[{re.escape(number)}@[^]]+:1\] \w+\("({self.technology}/{caller}-\w+)"'
        return re.findall(begun, "\n".join(self.site_lines(f"[{number}@")))

    def channel_of(self, caller: str, number: str, count: int = 1) -> str:
        """The latest of so many; waits for it."""
        self.until(
            lambda: len(self.channels_of(caller, number)) >= count, f"{caller}'s call {count} to {number}"
        )
        return self.channels_of(caller, number)[count - 1]

    def seen_in_h(self, caller: str, number: str, count: int = 1) -> dict[str, str]:
        """The variables of that call when it reached the site's own h; waits for it."""
        line = self.site_line(f"1,site-h {self.channel_of(caller, number, count)} ")
        return dict(re.findall(r'(\w+)=([^\s")]*)', line))

    def played(self) -> list[str]:
        """The prompts that were played since this test began."""
        return re.findall(r"Playing '([^'.]+)", "\n".join(self.site_lines("Playing '")))

    def evidence(self) -> str:
        if not self.asterisk.running():
            return "Asterisk does not run"
        return "\n".join(["channels:", *self.asterisk.channels()])

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        with self.asterisk:
            try:
                yield self
            finally:
                self.close()

    def close(self) -> None:
        self.close_phones(abruptly=True)


class Site(Pbx):
    """A PBX with the fastagi server beside it."""

    def __init__(self, folder: Path, asterisk: Asterisk, names: Mapping[str, str]) -> None:
        super().__init__(asterisk, names)
        self.folder = folder
        self.port = free_tcp_port()
        self.server = Server(folder / "fastagi", asterisk, QUICK, port=self.port)

    def dialplan(self) -> str:
        raise NotImplementedError

    # Before and after each test

    def fresh(self, config: str = QUICK) -> None:
        """Nothing recorded, nothing pending, all phones registered and idle."""
        self.recover()
        self.launch(config)
        self.server.wait_ready()
        self.ready()

    def launch(self, config: str = QUICK) -> None:
        for path in self.server.folder.glob("fastagi.db*"):
            path.unlink()
        self.server.log.unlink(missing_ok=True)
        self.server.configure(config)
        self.server.launch()

    def ready(self) -> None:
        self.asterisk.reload_dialplan(self.dialplan())
        super().ready()

    def rest(self) -> None:
        self.close_phones()
        self.server.stop()
        super().rest()

    def reconfigure(self, config: str) -> None:
        self.server.stop()
        self.server.configure(config)
        self.server.start()

    # A turn to its end

    def completes(self, call: Call, callee: str = "2000", caller: str = "1000") -> None:
        """This call of the callee's ends, his caller is called back, and they have talked."""
        self.phones[callee].answer = "ring"
        call.hangup()
        self.connects(self.recalled(caller), callee).hangup()
        self.ended("COMPLETED")

    # What the server knows

    def ended(self, reason: str, timeout: float = 5.0) -> Request:
        """The latest request to end, once it has ended for ``reason``."""

        def over() -> bool:
            history = self.server.history()
            return bool(history) and history[0].reason == reason

        self.until(over, f"a request ends for {reason}", timeout)
        return self.server.history()[0]

    def offers(self) -> list[Offer]:
        """The failed calls on record."""
        return Reader(self.server.store).offers()

    def evidence(self) -> str:
        lines = self.server.log_lines()[-30:] if self.server.log.exists() else []
        return "\n".join(["the server's log:", *lines, super().evidence()])

    def close(self) -> None:
        super().close()
        self.server.kill()


class Bench(Site):
    """Phones 1000 to 4000 on one Asterisk, and the server beside it."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        super().__init__(folder, Asterisk(folder / "asterisk", tree, say=lambda line: None, ami=True), NAMES)
        self.trunk_port = lasting_port(HOST)
        self.configure()

    def dialplan(self, ring: int = 20, more: str = "") -> str:
        return (HEAD + SITE).format(
            port=self.port,
            dialplan=DIALPLAN,
            ring=ring,
            trunk=self.trunk_port,
            nowhere=9,
            more=more,
            seen=SEEN,
        )

    def recorded(self, count: int = 1) -> None:
        self.until(lambda: len(self.offers()) == count, f"{count} calls are on record")

    def fails(self, number: str, caller: str = "1000") -> Call:
        """A call that fails by itself; answers it once it is on record."""
        before = len(self.offers())
        call = self.phones[caller].dial(number).wait_ended(8)
        self.recorded(before + 1)
        for phone in self.phones:
            self.forget(phone)
        return call

    def configure(self) -> None:
        phones = [Endpoint(number, name) for number, name in NAMES.items() if number != "4000"]
        phones.append(Endpoint("4000", NAMES["4000"], extra="language=xx\n"))
        phones.append(Endpoint("4500", ""))  # without callerid=
        self.asterisk.configure(self.dialplan(), phones, [Trunk("trunk", "127.0.0.1", self.trunk_port)])
