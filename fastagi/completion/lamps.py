"""What the lamp of each caller shows: the state of his calls, as one word of Asterisk's device states.

Of several things it is the one nearest to a call: he is being rung; somebody is waited for; a call is on offer.
The words are his settings ``cc_*_devstate``, which are those of Asterisk's ccss.conf.
"""

import heapq
from collections import defaultdict

from fastagi.completion.book import Book
from fastagi.completion.model import Number, Request, Settings, State
from fastagi.completion.ports import Directory

UNSET = "NOT_INUSE"
"""A lamp of which Asterisk was never told looks like this one."""


def of_request(request: Request, settings: Settings) -> tuple[int, str]:
    """How near it is to a call (more is nearer), and what the lamp shows of it."""
    match request.state:
        case State.READY if not request.taken:
            return 5, settings.cc_callee_ready_devstate
        case State.READY:
            return 6, settings.cc_recalling_devstate
        case State.CALLING:  # he has picked up: nothing is left to be done for him but to talk
            return 1, settings.cc_complete_devstate
        case State.QUEUED if request.suspended:
            return 4, settings.cc_caller_busy_devstate
        case State.QUEUED:
            return 3, settings.cc_active_devstate
    return 2, settings.cc_caller_requested_devstate


class LampRules:
    """Which lamps have changed since the last look."""

    def __init__(self, book: Book, directory: Directory) -> None:
        self._book = book
        self._directory = directory
        self._shown: dict[Number, str] = {}
        self._ends: list[tuple[float, Number]] = []

    def dark(self, extension: Number) -> str:
        """What the lamp of somebody shows for whom there is nothing."""
        return self._directory.extension(extension).settings.cc_available_devstate

    def start(self) -> None:
        """Look at each extension that is known: some show another word than `UNSET` while there is nothing."""
        self._book.touched.update(dict.fromkeys(self._directory.numbers()))

    def look(self, now: float) -> list[tuple[Number, str]]:
        """The lamps to be shown now, each with its state, in order; some for a moment only."""
        touched, self._book.touched = self._book.touched, {}
        open_requests: defaultdict[Number, list[Request]] = defaultdict(list)
        for request in self._book.requests() if touched or self._ends else ():
            open_requests[request.caller].append(request)
        while self._ends and self._ends[0][0] <= now:
            touched.setdefault(heapq.heappop(self._ends)[1], None)
        changed = []
        for caller, ended in touched.items():
            if "@" in caller:
                continue  # beyond a trunk: he has none here
            settings = self._directory.extension(caller).settings
            states = [self._state(caller, open_requests[caller], settings, now)]
            if ended is not None:
                done = ended.state is State.COMPLETED
                states.insert(0, settings.cc_complete_devstate if done else settings.cc_failed_devstate)
            for state in states:
                if state != self._shown.get(caller, UNSET):
                    self._shown[caller] = state
                    changed.append((caller, state))
        return changed

    def next_due(self) -> float | None:
        """When the next offer that a lamp shows is over."""
        return self._ends[0][0] if self._ends else None

    def shows_offers(self, caller: Number) -> bool:
        """Whether his lamp tells that a call is on offer."""
        settings = self._directory.extension(caller).settings
        return settings.cc_offered_devstate != settings.cc_available_devstate

    def _state(self, caller: Number, own: list[Request], settings: Settings, now: float) -> str:
        if own:
            return max(of_request(request, settings) for request in own)[1]
        latest = next(reversed(self._book.offers_of(caller)), None)
        if latest is None or latest.service is None or latest.offer_ends <= now:
            return settings.cc_available_devstate
        if self.shows_offers(caller):
            heapq.heappush(self._ends, (latest.offer_ends, caller))
        return settings.cc_offered_devstate
