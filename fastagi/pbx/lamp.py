"""The lamps: one device state for each extension, ``Custom:CC<ext>``, to which a key of his phone subscribes.

Asterisk keeps such states in its database: they outlive it, and us. So whenever a line to it is new, what we have
shown is compared with what it has; and once after our start all of them are, for a lamp may have been left lit.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fastagi.completion.model import Invalid, Number, number

PREFIX = "Custom:CC"


class Line(Protocol):
    async def ask(self, expression: str) -> str: ...

    async def set(self, name: str, value: str) -> None: ...

    async def lamps(self) -> list[str]:
        """The devices that begin with `PREFIX`, as far as Asterisk knows any."""


class Lamps:
    """What the lamps are to show, and what of that Asterisk has still to be told.

    ``dark(extension)``: what the lamp of somebody shows for whom there is nothing.
    """

    def __init__(self, dark: Callable[[Number], str]) -> None:
        self._dark = dark
        self._wanted: dict[Number, str] = {}
        self._to_show: deque[tuple[Number, str]] = deque()
        self._to_check: deque[Number] = deque()
        self._all_told = False
        self._compared = False
        self._missed = False
        """There was something to say, and no line."""

    def show(self, extension: Number, state: str, there: bool) -> None:
        """The lamp of this extension shows ``state``, one of Asterisk's words, from now on.

        ``there``: a line is there; else the next one compares it with the others.
        """
        self._wanted[extension] = state
        if there:
            self._to_show.append((extension, state))
        self._missed = self._missed or not there

    def all_told(self) -> None:
        """Since our start all lamps that are lit were shown: the others are dark."""
        self._all_told = True

    def pending(self) -> bool:
        """Whether Asterisk has still to be told, or asked, anything."""
        return bool(self._to_show or self._to_check) or self._missed or (self._all_told and not self._compared)

    def urgent(self) -> bool:
        return bool(self._to_show)

    def new_line(self) -> None:
        """Whatever was said over an older line may be lost."""
        # Not cleared: over that line something may still be on its way, and is taken off when it is answered.
        self._to_show = deque()
        # What an older line has listed and could not be asked for any more is still to be looked at.
        self._to_check = deque(dict.fromkeys((*self._to_check, *self._wanted)))
        self._missed = False

    def stop(self) -> None:
        self._to_show = deque()
        self._to_check = deque()
        self._compared = True
        self._missed = False

    async def say(self, line: Line) -> None:
        """One thing of what is `pending`."""
        if to_show := self._to_show:
            extension, state = to_show[0]
            await line.set(f"DEVICE_STATE({PREFIX}{extension})", state)
            to_show.popleft()
        elif to_check := self._to_check:
            extension = to_check[0]
            shown = await line.ask(f"DEVICE_STATE({PREFIX}{extension})")
            if to_check is not self._to_check:
                return  # a newer line compares, and what is wanted may have changed since
            state = self._wanted.get(extension) or self._dark(extension)
            if shown != state:
                await line.set(f"DEVICE_STATE({PREFIX}{extension})", state)
            to_check.popleft()
        elif self._all_told and not self._compared:
            to_check = self._to_check
            known = _extensions(await line.lamps())
            if to_check is self._to_check:  # else a newer line asks for them
                to_check.extend(known)
                self._compared = True


def _extensions(devices: list[str]) -> list[Number]:
    found = []
    for device in devices:
        try:
            found.append(number(device.removeprefix(PREFIX)))
        except Invalid:
            continue  # a site's own state, with a name like ours
    return found
