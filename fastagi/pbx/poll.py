"""The poll session: a timer scheduler that asks Asterisk for device states over one standing AGI session.

While somebody waits, a call file starts ``Local/idle@cc-poll`` whose other half runs ``AGI(.../poll)``:
that session stays up and answers one question after the other. It carries a random token, so that no
other program and no older session of ours can take its place; the newest wins. When Asterisk restarts or
drops it, it is made anew; when nobody waits any more, it is closed (it would block `core stop gracefully`).

Things to keep in mind: a change shorter than the poll interval is not seen; while there is no session,
nothing is known, and nobody is recalled.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from asterisk.agi import AGIException
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from fastagi.agi import Session
from fastagi.agi.server import Time
from fastagi.completion.model import Device
from fastagi.pbx.callfile import Spool, SpoolThread, poll_name, poll_text
from fastagi.pbx.devicestate import DeviceStates

CALL_INTERVAL = 2.0
"""Seconds between two looks whether a recall's channels still exist."""
OPEN_WITHIN = 5.0
"""Seconds that Asterisk is given to open the session before it is asked again, more later."""
OPEN_AT_MOST = 30.0
ANSWER_WITHIN = 5.0
"""Seconds for one answer: a command that fails inside Asterisk may get none."""


class Question(Protocol):
    """Something to ask every ``interval`` seconds: an expression, and what to do with its value."""

    key: str
    expression: str
    interval: float

    def answered(self, value: str) -> None: ...

    def restart(self) -> None:
        """What was answered before belongs to another session."""


class _DeviceQuestion:
    def __init__(self, device: Device, interval: float, states: DeviceStates) -> None:
        self.key: str = device
        self.expression = f"${{DEVICE_STATE({device})}}"
        self.interval = interval
        self._device = device
        self._states = states

    def answered(self, value: str) -> None:
        self._states.seen(self._device, value)

    def restart(self) -> None:
        pass


class _CallQuestion:
    """Whether a recall's channels exist; gone only when missed twice, for its end may be on its way to us."""

    interval = CALL_INTERVAL

    def __init__(self, recall_id: str, gone: Callable[[str], None]) -> None:
        self.key = recall_id
        self.expression = f"${{CHANNELS(Local/{recall_id}@cc-recall)}}"
        self._recall_id = recall_id
        self._gone = gone
        self._missed = 0

    def restart(self) -> None:
        self._missed = 0

    def answered(self, value: str) -> None:
        self._missed = 0 if value.strip() else self._missed + 1
        if self._missed == 2:
            self._gone(self._recall_id)


class Poller:
    """The monitor of the rules for devices of this PBX."""

    def __init__(
        self,
        reactor: Time,
        thread: SpoolThread,
        states: DeviceStates,
        *,
        gone: Callable[[str], None],
        new_token: Callable[[], str],
        log: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._thread = thread
        self._states = states
        self._gone = gone
        self._new_token = new_token
        self._log = log
        self._questions: dict[str, Question] = {}
        self._due: list[tuple[float, int, Question]] = []
        self._serial = 0
        self._hang_ups: deque[str] = deque()
        self._token = ""
        self._session: Session | None = None
        self._attempts = 0
        self._opening: Any | None = None
        self._wake: Deferred[None] | None = None
        self._alarm: Any | None = None

    def watch(self, devices: Mapping[Device, float], calls: frozenset[str]) -> None:
        """Ask for just these devices, each every so many seconds, and for these recalls' channels."""
        wanted: dict[str, Question] = {}
        for device, interval in devices.items():
            old = self._questions.get(device)
            if old is None or old.interval != interval:
                old = _DeviceQuestion(device, interval, self._states)
            wanted[device] = old
        for call in calls:
            wanted[call] = self._questions.get(call) or _CallQuestion(call, self._gone)
        new = [q for key, q in wanted.items() if self._questions.get(key) is not q]
        self._questions = wanted
        self._states.watch(devices)
        for question in new:
            self._push(self._reactor.seconds(), question)
        self._look()

    def hang_up(self, channel: str) -> None:
        """End a channel of a recall of ours."""
        self._hang_ups.append(channel)
        self._look()

    def stop(self) -> None:
        """We are going down: leave no call file behind that nobody would answer."""
        self._questions = {}
        self._hang_ups.clear()
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
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
        self._session = session
        self._log("poll session open")
        try:
            self._restart_questions()
            while self._wanted() and not session.hung_up:
                await self._ask(session)
        except AGIException as error:
            self._log(f"poll session lost: {error}")
        finally:
            self._session = None
            self._states.lost()
            self._take_back(token)
            if self._attempts and self._wanted():  # it was opened, and never answered: not at once again
                self._opening = self._reactor.callLater(self._patience(), self._open)
            else:
                self._look()

    def _wanted(self) -> bool:
        return bool(self._questions or self._hang_ups)

    def _look(self) -> None:
        """Somebody waits now who did not before, or nobody does any more."""
        if self._session is not None:
            self._awake()
        elif self._wanted() and self._opening is None:
            self._open()

    def _open(self) -> None:
        if self._token:
            self._take_back(self._token)
        self._token = ""
        self._opening = None
        if not self._wanted():
            return
        wait = self._patience()
        self._attempts += 1
        if self._attempts == 3:
            self._log(
                "Asterisk did not open the poll session so far: does it run, is cc-poll in its dialplan, "
                "and can it read the files we put into its spool?"
            )
        self._token = self._new_token()
        done = self._thread.run(self._spool.deposit, poll_name(self._token), poll_text(self._token))
        done.addErrback(self._say)
        self._opening = self._reactor.callLater(wait, self._open)

    def _patience(self) -> float:
        return min(OPEN_AT_MOST, OPEN_WITHIN * 2.0 ** min(10, max(0, self._attempts - 2)))

    @property
    def _spool(self) -> Spool:
        return self._thread.spool

    def _take_back(self, token: str) -> None:
        self._thread.run(self._spool.remove, poll_name(token)).addErrback(self._say)

    def _say(self, failure: Failure) -> None:
        self._log(failure.getErrorMessage())

    # The scheduler

    def _push(self, at: float, question: Question) -> None:
        self._serial += 1
        heapq.heappush(self._due, (at, self._serial, question))

    def _restart_questions(self) -> None:
        self._due.clear()
        for question in self._questions.values():
            question.restart()
            self._push(self._reactor.seconds(), question)

    async def _ask(self, session: Session) -> None:
        """The next thing to say, or a wait until there is one."""
        session.bound(ANSWER_WITHIN)
        if self._hang_ups:
            try:
                await session.hangup(self._hang_ups[0])
            except AGIException:
                if session.hung_up:
                    raise  # and ask the next session
                # The channel ended by itself first.
            self._hang_ups.popleft()
            self._attempts = 0
            return
        now = self._reactor.seconds()
        if not self._due or self._due[0][0] > now:
            session.bound(None)
            await self._sleep(self._due[0][0] - now if self._due else None)
            return
        at, _, question = heapq.heappop(self._due)
        if self._questions.get(question.key) is not question:
            return  # nobody waits for it any more
        value = await session.get_full_variable(question.expression)
        self._attempts = 0
        question.answered(value or "")
        self._push(max(at + question.interval, self._reactor.seconds()), question)

    async def _sleep(self, seconds: float | None) -> None:
        self._wake = Deferred()
        if seconds is not None:
            self._alarm = self._reactor.callLater(seconds, self._awake)
        await self._wake

    def _awake(self) -> None:
        wake, self._wake = self._wake, None
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._alarm = None
        if wake is not None:
            wake.callback(None)
