"""What fastagi wants of a running Asterisk: device states told, recalls ended, lamps shown.

There are two *lines* to it: the poll session (see ``poll``), which is there while somebody needs it, and AMI (see
``ami``), which is there always. Over whichever is up the `Watcher` asks one question after the other. The newest
line leads, and AMI is never left for the poll session; when it ends, nothing is known until the next one.

Things to keep in mind: over the poll session a change shorter than the poll interval is not seen. Over AMI an
event says that it is time to ask; beside that, asking is only the net below.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from fastagi.agi.server import Time
from fastagi.completion.model import HINT, Device, Number
from fastagi.errors import FastagiError
from fastagi.pbx import lamp
from fastagi.pbx.devicestate import DeviceStates

CALL_INTERVAL = 2.0
"""Seconds between two looks whether a recall's channels still exist."""

_log = Logger()


class LineLost(FastagiError):
    """This way to Asterisk is gone."""


class Line(lamp.Line, Protocol):
    """A way to speak to Asterisk, one thing at a time. Its methods raise `LineLost`.

    ``ask`` gives the value of a dialplan function, ``set`` gives it one.
    """

    @property
    def events(self) -> bool:
        """Each change is told besides, so that it costs nothing to watch a device."""

    beat: float
    """Seconds between two of its own `check`."""

    def at_least(self, device: Device) -> float:
        """Seconds between two looks at the same device, where it is wanted more often."""

    async def check(self) -> None:
        """See if this line may be kept up."""

    async def hang_up(self, channel: str) -> None:
        """End a channel, if it exists."""

    def idle(self, idle: bool) -> None:
        """There is nothing to ask until it is False again."""


class Question(Protocol):
    """Something to ask every ``interval`` seconds, and what to do with the answer."""

    key: str
    expression: str
    interval: float
    turn: int
    """Its latest place among what is due; what stands at an older one is over."""

    def every(self, line: Line) -> float:
        """How often over this line, in seconds."""

    def answered(self, value: str) -> None: ...

    def restart(self) -> None:
        """What was answered before came over another line."""


class _DeviceQuestion:
    def __init__(self, device: Device, interval: float, states: DeviceStates) -> None:
        hint = device.removeprefix(HINT)
        self.key: str = device
        self.expression = f"DEVICE_STATE({device})" if hint == device else f"EXTENSION_STATE({hint})"
        self.interval = interval
        self.turn = 0
        self._device = device
        self._states = states

    def every(self, line: Line) -> float:
        return max(self.interval, line.at_least(self._device))

    def answered(self, value: str) -> None:
        self._states.seen(self._device, value)

    def restart(self) -> None:
        pass


class _CallQuestion:
    """Whether a recall's channels exist; gone only when missed twice, for its end may be on its way to us."""

    interval = CALL_INTERVAL

    def __init__(self, recall_id: str, gone: Callable[[str], None]) -> None:
        self.key = recall_id
        self.expression = f"CHANNELS(Local/{recall_id}@cc-recall)"
        self.turn = 0
        self._recall_id = recall_id
        self._gone = gone
        self._missed = 0

    def every(self, line: Line) -> float:
        return self.interval

    def restart(self) -> None:
        self._missed = 0

    def answered(self, value: str) -> None:
        self._missed = 0 if value.strip() else self._missed + 1
        if self._missed == 2:
            self._gone(self._recall_id)


class Watcher:
    """The monitor of the rules for devices of this PBX, and its lamps."""

    def __init__(
        self, reactor: Time, states: DeviceStates, lamps: lamp.Lamps, *, gone: Callable[[str], None]
    ) -> None:
        self._reactor = reactor
        self._states = states
        self._lamps = lamps
        self._gone = gone
        self.changed: Callable[[], None] = lambda: None
        """Called when there is something to ask for, and no line."""
        self.line: Line | None = None
        self._questions: dict[str, Question] = {}
        self._due: list[tuple[float, int, Question]] = []
        self._serial = 0
        self._hang_ups: deque[str] = deque()
        self._beat_at = 0.0
        self._wake: Deferred[None] | None = None
        self._alarm: Any | None = None

    def watch(self, devices: Mapping[Device, float], calls: frozenset[str]) -> None:
        """Tell of just these devices, each looked at every so many seconds, and of these recalls' channels."""
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
        self._lamps.all_told()  # the rules show them first
        self._states.watch(devices)
        for question in new:
            self._push(self._reactor.seconds(), question)
        self._look()

    def hang_up(self, channel: str) -> None:
        """End a channel of a recall of ours."""
        self._hang_ups.append(channel)
        self._look()

    def show(self, extension: Number, state: str) -> None:
        """The lamp of this extension shows ``state`` from now on."""
        self._lamps.show(extension, state, there=self.line is not None)
        self._look()

    @property
    def eager(self) -> bool:
        """Whether to watch also those who will matter only later."""
        return self.line is not None and self.line.events

    def look_at(self, device: str) -> None:
        """It may have changed: ask at once. (Whoever calls can forge an event, but no answer.)"""
        question = self._questions.get(device)
        if isinstance(question, _DeviceQuestion):
            self._push(self._reactor.seconds(), question)
            self._look()

    def look_at_hints(self, extension: str) -> None:
        """The hint of this extension may have changed, in some context."""
        for device in [key for key in self._questions if key.startswith(f"{HINT}{extension}@")]:
            self.look_at(device)

    def wanted(self) -> bool:
        """Whether there is anything to ask, to end or to show."""
        return bool(self._questions or self._hang_ups) or self._lamps.pending()

    def stop(self) -> None:
        """We are going down."""
        self._questions = {}
        self._hang_ups.clear()
        self._lamps.stop()
        self._look()

    async def serve(self, line: Line, *, always: bool) -> None:
        """Ask over this line until another takes the lead; raises `LineLost`.

        ``always``: also while there is nothing to ask.
        """
        self.line = line
        self._awake()  # whoever asked over another line sees that it leads no more
        try:
            self._due.clear()
            for question in self._questions.values():
                question.restart()
                self._push(self._reactor.seconds(), question)
            self._lamps.new_line()
            self._beat_at = self._reactor.seconds() + line.beat
            while self.line is line and (always or self.wanted()):
                await self._ask(line)
        finally:
            if self.line is line:
                self.line = None
                self._states.lost()
                self.changed()

    def _look(self) -> None:
        """Somebody waits now who did not before, or nobody does any more."""
        if self.line is not None:
            self._awake()
        else:
            self.changed()

    def _push(self, at: float, question: Question) -> None:
        if self.line is None:
            return  # the next one begins with every question
        self._serial += 1
        question.turn = self._serial
        heapq.heappush(self._due, (at, self._serial, question))

    async def _ask(self, line: Line) -> None:
        """The next thing to say, or a wait until there is one."""
        if self._hang_ups:
            channel = self._hang_ups[0]
            await line.hang_up(channel)
            if channel in self._hang_ups:  # a newer line may have been faster
                self._hang_ups.remove(channel)
            return
        now = self._reactor.seconds()
        if self._beat_at <= now:
            self._beat_at = now + line.beat
            await line.check()
            return
        due = bool(self._due) and self._due[0][0] <= now
        if self._lamps.urgent() or (self._lamps.pending() and not due):
            await self._lamps.say(line)
            return
        if not due:
            line.idle(True)
            await self._sleep(min([self._beat_at, *(at for at, _, _ in self._due[:1])]) - now)
            line.idle(False)
            return
        at, turn, question = heapq.heappop(self._due)
        if self._questions.get(question.key) is not question or question.turn != turn:
            return  # nobody waits for it any more, or it is to be asked at another time
        value = await line.ask(question.expression)
        if self.line is not line:
            return  # it is asked again over the line that leads
        if question.turn == turn:  # else it is to be asked again at once
            self._push(max(at + question.every(line), self._reactor.seconds()), question)
        try:
            question.answered(value)
        except Exception:  # a fault of ours; the other questions shall be asked
            _log.failure("What Asterisk has answered could not be handled.")

    async def _sleep(self, seconds: float) -> None:
        self._wake = Deferred()
        self._alarm = self._reactor.callLater(seconds, self._awake)
        await self._wake

    def _awake(self) -> None:
        wake, self._wake = self._wake, None
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._alarm = None
        if wake is not None:
            wake.callback(None)
