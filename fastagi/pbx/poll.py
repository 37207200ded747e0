"""The poll session: a standing AGI session over which Asterisk is asked for device states.

While somebody waits, a call file starts ``Local/idle@cc-poll`` whose other half runs ``AGI(.../poll)``:
that session stays up and answers one question after the other. It carries a random token, so that no
other program and no older session of ours can take its place; the newest wins. When Asterisk restarts or
drops it, it is made anew; when nobody waits any more, or AMI leads, it is closed.

It would hold up `core stop gracefully`, which nothing tells of; so every `SHUTDOWN_INTERVAL` a call within
Asterisk is tried, and when Asterisk lets none begin any more, the session is closed.
"""

from collections.abc import Callable
from typing import Any

from asterisk.agi import AGIAppError, AGIException
from twisted.python.failure import Failure

from fastagi.agi import Session
from fastagi.agi.server import Time
from fastagi.completion.model import Device
from fastagi.pbx.callfile import SpoolThread, poll_name, poll_text
from fastagi.pbx.lamp import PREFIX
from fastagi.pbx.watch import LineLost, Watcher

OPEN_WITHIN = 5.0
"""Seconds that Asterisk is given to open the session before it is asked again, more later."""
AGAIN_AFTER = 1.0
"""Seconds until one that was lost as soon as it was open is made anew, more later."""
AT_MOST = 30.0
"""Seconds, of both."""
ANSWER_WITHIN = 5.0
"""Seconds for one answer: a command that fails inside Asterisk may get none."""
SHUTDOWN_INTERVAL = 2.0
AT_ONCE = 50_000
"""Bytes of the names of custom device states that are asked for at once."""
MOST_NAMES = 100 * AT_ONCE
"""Bytes of all of them that are read."""


class Poller:
    """Opens a poll session whenever the watcher needs a line and has none."""

    def __init__(
        self,
        reactor: Time,
        thread: SpoolThread,
        watcher: Watcher,
        *,
        new_token: Callable[[], str],
        log: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._thread = thread
        self._watcher = watcher
        self._new_token = new_token
        self._log = log
        self._token = ""
        self._attempts = 0
        self._opening: Any | None = None
        self._open_sessions = 0

    def look(self) -> None:
        """There may be something to ask for, and no line."""
        if self._needed() and self._opening is None and not self._open_sessions:
            self._open()

    def stop(self) -> None:
        """We are going down: leave no call file behind that nobody would answer."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
            if self._token:  # else the session was there, and its end is waited for
                self._take_back(self._token)

    async def script(self, session: Session) -> None:
        """The AGI script ``poll``: 1 the token of its call file."""
        if not self._token or session.call.arg(1) != self._token:
            self._log(
                f"a poll session on {session.call.channel[:80]!r} with a token that is not ours was closed"
            )
            return
        token, self._token = self._token, ""  # good for one session
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if not self._needed():
            self._attempts = 0
            self._take_back(token)
            return
        self._log("poll session open")
        self._open_sessions += 1
        try:
            await self._watcher.serve(_AgiLine(session, self._lives), always=False)
            self._lives()
        except LineLost as error:
            self._log(f"poll session lost: {error}")
        finally:
            self._open_sessions -= 1
            self._take_back(token)
            if self._attempts and self._needed():  # it was lost as soon as it was opened: not at once again
                pause = _doubled(AGAIN_AFTER, self._attempts - 1)
                self._opening = self._reactor.callLater(pause, self._open)
            else:
                self.look()

    def _lives(self) -> None:
        self._attempts = 0

    def _needed(self) -> bool:
        return self._watcher.line is None and self._watcher.wanted()

    def _open(self) -> None:
        if self._token:
            self._take_back(self._token)
        self._token = ""
        self._opening = None
        if not self._needed():
            return
        wait = _doubled(OPEN_WITHIN, self._attempts - 2)
        self._attempts += 1
        if self._attempts == 3:
            self._log(
                "Asterisk did not open the poll session so far: does it run, is cc-poll in its dialplan, "
                "and can it read the files we put into its spool?"
            )
        self._token = self._new_token()
        done = self._thread.run(self._thread.spool.deposit, poll_name(self._token), poll_text(self._token))
        done.addErrback(self._say)
        self._opening = self._reactor.callLater(wait, self._open)

    def _take_back(self, token: str) -> None:
        self._thread.run(self._thread.spool.remove, poll_name(token)).addErrback(self._say)

    def _say(self, failure: Failure) -> None:
        self._log(failure.getErrorMessage())


def _doubled(seconds: float, times: int) -> float:
    return float(min(AT_MOST, seconds * 2.0 ** min(10, max(0, times))))


class _AgiLine:
    """An open poll session, as a line to Asterisk."""

    events = False
    beat = SHUTDOWN_INTERVAL

    def __init__(self, session: Session, lives: Callable[[], None]) -> None:
        """``lives()`` is called when Asterisk lets the session go on: it was not lost as soon as it was there."""
        self._session = session
        self._lives = lives

    def at_least(self, device: Device) -> float:
        return 0.0

    async def ask(self, expression: str) -> str:
        return await self._value(f"${{{expression}}}")

    async def set(self, name: str, value: str) -> None:
        try:
            self._session.bound(ANSWER_WITHIN)
            await self._session.set_variable(name, value)
        except AGIException as error:
            raise LineLost(str(error)) from error

    async def hang_up(self, channel: str) -> None:
        try:
            self._session.bound(ANSWER_WITHIN)
            await self._session.hangup(channel)
        except AGIAppError:
            pass  # it ended by itself first
        except AGIException as error:
            if self._session.hung_up:
                raise LineLost(str(error)) from error

    async def lamps(self) -> list[str]:
        # FreePBX keeps several states for each extension: all their names may be more than fits into one answer.
        known = b""
        while len(known) % AT_ONCE == 0 and len(known) < MOST_NAMES:
            part = await self.ask(f"DB_KEYS(CustomDevstate):{len(known)}:{AT_ONCE}")
            if not part:
                break
            known += part.encode("utf-8", "surrogateescape")
        devices = [f"Custom:{name}" for name in known.decode("utf-8", "replace").split(",")]
        return [device for device in devices if device.startswith(PREFIX)]

    def idle(self, idle: bool) -> None:
        self._session.bound(None if idle else ANSWER_WITHIN)

    async def check(self) -> None:
        """Asterisk that is being stopped waits for us to go, and lets no call begin any more."""
        try:
            self._session.bound(ANSWER_WITHIN)
            await self._session.execute("Dial", "Local/probe@cc-poll/n", "1")
        except AGIException as error:
            raise LineLost(str(error)) from error
        if await self._value("${DIALSTATUS}") != "BUSY":
            raise LineLost(
                "Asterisk lets no call begin: it is being stopped, or is full, or its cc-poll is not ours"
            )
        self._lives()

    async def _value(self, expression: str) -> str:
        try:
            self._session.bound(ANSWER_WITHIN)
            value = await self._session.get_full_variable(expression)
        except AGIException as error:
            raise LineLost(str(error)) from error
        return value or ""
