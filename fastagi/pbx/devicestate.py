"""One stream of device states, whatever the source: Asterisk's names in, changes of presence out."""

from collections.abc import Callable, Collection, Mapping

from fastagi.completion.model import HINT, Device, Presence

# What `core show function DEVICE_STATE` and `core show hints` have. An endpoint with device_state_busy_at shows
# BUSY while it merely rings, so there ringing counts as being in use.
PRESENCE = {
    "NOT_INUSE": Presence.IDLE,
    "UNKNOWN": Presence.IDLE,
    "RINGING": Presence.RINGING,
    "INUSE": Presence.IN_USE,
    "RINGINUSE": Presence.IN_USE,
    "HOLDINUSE": Presence.IN_USE,
    "ONHOLD": Presence.IN_USE,
    "BUSY": Presence.IN_USE,
    "UNAVAILABLE": Presence.GONE,
    "INVALID": Presence.GONE,
}


class DeviceStates:
    """What each watched device was last seen to be, by Asterisk's own name."""

    def __init__(
        self,
        changed: Callable[[Mapping[Device, Presence]], None],
        lost: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._told: dict[Device, Presence] = {}
        self._strange: set[str] = set()
        self._log = log
        self._watched: frozenset[Device] = frozenset()
        self._changed = changed
        self._lost = lost

    def seen(self, device: Device, name: str) -> None:
        """``device`` is ``name`` now; told on only if that is news."""
        presence = PRESENCE.get(name)
        if presence is None:
            self._once(name, f"{name[:40]!r}, said of {device}, is no device state: is func_devstate loaded?")
            return
        if device not in self._watched:
            return
        if device.startswith(HINT) and name == "UNKNOWN":
            # Nobody can tell whether he is free, and nobody rings a caller on a guess.
            self._once(
                device, f"there is no hint {device.removeprefix(HINT)}: who waits for it waits in vain"
            )
            presence = Presence.GONE
        if self._told.get(device) is not presence:
            self._told[device] = presence
            self._changed({device: presence})

    def watch(self, devices: Collection[Device]) -> None:
        """Tell of these from now on, and forget the others: told again later, they are news."""
        self._watched = frozenset(devices)
        for device in self._told.keys() - self._watched:
            del self._told[device]

    def lost(self) -> None:
        """The source is gone, and what it said with it."""
        self._told.clear()
        self._lost()

    def _once(self, about: str, sentence: str) -> None:
        if about not in self._strange and len(self._strange) < 10:
            self._strange.add(about)
            self._log(sentence)
