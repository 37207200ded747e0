"""AMI as a line to Asterisk: events lead, asking is the net below them; and recalls by Originate."""

from twisted.internet.defer import Deferred, succeed

from fastagi.completion.model import HINT, Device
from fastagi.pbx.ami import Ami, AmiDenied, AmiError
from fastagi.pbx.callfile import recall_id_of
from fastagi.pbx.lamp import PREFIX
from fastagi.pbx.watch import LineLost, Watcher

NET = 10.0
"""Seconds between two looks at a device whose every change an event tells."""
FORBIDDEN = "Forbidden"
"""What Asterisk says of a name with EVAL or SHELL in it: nobody may ask for that."""


class AmiLine:
    """A connection to AMI, as a line of the watcher."""

    beat = 3600.0

    def __init__(self, ami: Ami, lamps: list[str]) -> None:
        self._ami = ami
        self._lamps = lamps
        self._told: set[bool] = set()

    def event(self, of_hint: bool) -> None:
        """One has come, so this user is told such changes."""
        self._told.add(of_hint)

    @property
    def events(self) -> bool:
        return bool(self._told)

    def at_least(self, device: Device) -> float:
        # A user without read=call, or behind a filter, is told nothing: then asking is all there is.
        return NET if device.startswith(HINT) in self._told else 0.0

    async def ask(self, expression: str) -> str:
        try:
            return await self._ami.ask(expression)
        except AmiDenied as error:
            if FORBIDDEN not in str(error):
                raise LineLost(str(error)) from error
            return ""  # the other devices can be asked for
        except AmiError as error:
            raise LineLost(str(error)) from error

    async def set(self, name: str, value: str) -> None:
        try:
            await self._ami.set(name, value)
        except AmiError as error:
            raise LineLost(str(error)) from error

    async def hang_up(self, channel: str) -> None:
        try:
            await self._ami.hang_up(channel)
        except AmiDenied:
            pass  # it ended by itself first
        except AmiError as error:
            raise LineLost(str(error)) from error

    async def lamps(self) -> list[str]:
        return self._lamps

    async def check(self) -> None:
        """It pings by itself."""

    def idle(self, idle: bool) -> None:
        """It needs no deadline of ours."""


class AmiWatch:
    """Lets a connection lead for as long as it lasts."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._line: AmiLine | None = None

    async def up(self, ami: Ami) -> None:
        """Raises `LineLost` or `AmiError`."""
        # While Asterisk is still loading its modules, this is refused, and no answer could be trusted.
        known = await ami.device_states()
        lamps = [device for device in known if device.startswith(PREFIX)]
        self._line = AmiLine(ami, lamps)
        await self._watcher.serve(self._line, always=True)

    def device_state(self, device: str, state: str) -> None:
        """An event says so; whoever calls could have written it (see ``ami``)."""
        self._heard(of_hint=False)
        self._watcher.look_at(device)

    def extension_state(self, extension: str, context: str) -> None:
        self._heard(of_hint=True)
        self._watcher.look_at_hints(extension)

    def _heard(self, of_hint: bool) -> None:
        if self._line is not None:
            self._line.event(of_hint)


class Originates:
    """Recalls by the AMI action Originate: for an Asterisk on another machine."""

    def __init__(self, ami: Ami) -> None:
        self._ami = ami

    def begin(self, recall_id: str, wait: int) -> "Deferred[None]":
        id = recall_id_of(recall_id)
        done = self._ami.originate(f"Local/{id}@cc-recall/n", "cc-call", id, float(wait))
        return Deferred.fromCoroutine(done)

    def withdraw(self, recall_id: str) -> "Deferred[None]":
        """What Asterisk has begun asks us what to ring, and is told: nothing."""
        return succeed(None)
