"""Limits on what comes too often: how much of it is served, and how much of it is logged.  Bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from traceback import format_exc
from typing import Final, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_KEYS: Final = 4096
MAX_KEY: Final = 256  # characters
TRUNK_RATE, TRUNK_BURST = 50, 100
"""How many requests for call completion all of one trunk may send a second, and how many at once."""
CALLER_RATE, CALLER_BURST = 2, 10
"""The same of one From URI about one request-URI."""


class Timer(Protocol):
    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds; never goes back."""

    def call_at(self, when: float, call: Callable[[], None]) -> Timer: ...


class Buckets:
    """Token buckets, one for each key: ``rate`` tokens a second flow in, ``burst`` is the most it holds.

    Of too many keys the one unused longest is forgotten, and would begin full again: where anybody can make
    keys up, a second limit must stand behind this one.
    """

    def __init__(self, rate: float, burst: int, most: int = MAX_KEYS) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # tokens, and when there were so many

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: str, now: float) -> bool:
        """One token, if there is one.  Keys count up to `MAX_KEY` characters."""
        key = key[:MAX_KEY]
        tokens, at = self._levels.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        enough = tokens >= 1
        self._levels[key] = (tokens - enough, now)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return enough


class Admission:
    """How often one trunk may ask something of call completion."""

    def __init__(self) -> None:
        self._callers = Buckets(CALLER_RATE, CALLER_BURST)
        self._trunk = Buckets(TRUNK_RATE, TRUNK_BURST)

    def admits(self, caller: str, now: float) -> bool:
        """The caller's limit comes first: what is refused by it takes nothing from the others."""
        return self._callers.take(caller, now) and self._trunk.take("", now)


@dataclass(slots=True)
class _Window:
    count: int
    timer: Timer


class Notices:
    """A log that cannot be flooded: ``most`` lines of each kind in ``seconds``, then a line with the count of the rest.

    Kinds are few and ours; what peers wrote is none.
    """

    def __init__(self, clock: Clock, log: Callable[[str], None], most: int = 5, seconds: float = 10) -> None:
        self._clock = clock
        self._log = log
        self._most = most
        self._seconds = seconds
        self._windows: dict[str, _Window] = {}
        self._closed = False

    def say(self, kind: str, line: str) -> None:
        if self._closed:
            return
        window = self._windows.get(kind)
        if window is None:
            timer = self._clock.call_at(self._clock.now() + self._seconds, lambda: self._over(kind))
            window = self._windows[kind] = _Window(0, timer)
        window.count += 1
        if window.count <= self._most:
            self._log(line)

    def guarded(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What ``call`` gives; None if it fails, and the fault is logged."""
        try:
            return call(*args, **kwargs)
        except Exception:
            self.fault()
            return None

    def fault(self) -> None:
        """The exception at hand."""
        self.say("faults of fastagi itself", f"a fault of fastagi itself: {format_exc()}")

    def close(self) -> None:
        """Say what is still to be said, and nothing more."""
        self._closed = True
        for kind, window in list(self._windows.items()):
            window.timer.cancel()
            self._over(kind)

    def _over(self, kind: str) -> None:
        more = self._windows.pop(kind).count - self._most
        if more > 0:
            self._log(f"{kind}: {more} more in {self._seconds:g} s")
