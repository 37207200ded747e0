"""One event, one transaction, then its effects.

Events come in at any time and wait in an inbox. A *turn* takes all that wait, lets each change the book,
looks what follows from everything together (``settle``), and hands every change to the store as one
transaction. Only when that is saved are the effects run and the events answered; what arrives meanwhile
waits for the next turn. So nothing is told or rung that a crash could make untrue, and under load one
commit serves many callers. One turn does not wait to be saved, that which says no more than whose turn it is
(`Changes.only_turns`): it would follow again, and no phone rings before Asterisk has taken the recall,
which is saved first.

When saving fails, everything is taken back and each event is refused with STORE_FAILED. What Asterisk has
told us and will not tell twice (``keep``) goes back into the inbox; it is tried again with the next event,
or after 1, 2, 4 ... 60 seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from traceback import format_exc

from fastagi.completion.book import Book
from fastagi.completion.ports import Changes, Clock, Store, Timer
from fastagi.errors import Refused

RETRY_AFTER = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
PRUNE_EVERY = 60.0

Done = Callable[[object], None]
"""Called with the answer, or with the `Refused` that says why not."""


def ignore(answer: object) -> None:
    """For events nobody waits to see answered."""


@dataclass(slots=True)
class _Event:
    work: Callable[[float], object]
    done: Done
    keep: bool


class Turns:
    """The inbox, and what carries it out.

    ``settle(now)`` changes the book until nothing more follows; ``watch()`` says what to watch once that is
    saved; ``next_due()`` is the nearest instant at which something follows from time alone.
    """

    def __init__(
        self,
        *,
        book: Book,
        store: Store,
        clock: Clock,
        log: Callable[[str], None],
        history: float,
        settle: Callable[[float], None],
        watch: Callable[[], None],
        next_due: Callable[[], float | None],
    ) -> None:
        self._book = book
        self._store = store
        self._clock = clock
        self._log = log
        self._history = history
        self._settle = settle
        self._watch = watch
        self._next_due = next_due
        self.effects: list[Callable[[], None]] = []
        """What the events of this turn want done, once it is saved."""
        self.stale = True
        """Something changed that `settle` has not seen."""
        self._inbox: list[_Event] = []
        self._busy = False
        self._failures = 0
        self._prune_at = 0.0
        self._timer: Timer | None = None
        self._armed_for: float | None = None

    def event(self, work: Callable[[float], object], done: Done = ignore, keep: bool = False) -> None:
        """Let ``work(now)`` change the book, and answer what it returns, or the `Refused` it raises."""
        self._inbox.append(_Event(work, done, keep))
        if not self._busy:
            self._turn()

    def look_again(self) -> None:
        """Something that no event tells has changed: a device state, the time."""
        self.stale = True
        if not self._busy:
            self._turn()

    def _turn(self) -> None:
        self._busy = True
        now = self._clock.now()
        batch, self._inbox = self._inbox, []
        answers = self._carry_out(batch, now)
        settled = self.stale
        if settled:
            try:
                self._settle(now)
                self.stale = False
            except Exception as fault:  # the service must go on
                self._fault()
                self._not_saved(fault, batch)
                self._refuse(answers, Refused("INTERNAL_ERROR", f"a fault of fastagi itself: {fault!r}"))
                return
        changes = self._book.take_changes()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_EVERY
            changes.prune_before = now - self._history

        def saved(error: Exception | None) -> None:
            if error is None:
                self._saved(settled)
                self._tell(changes)
                self._finish(answers)
            else:
                self._not_saved(error, batch)
                self._refuse(answers, Refused("STORE_FAILED", f"it could not be saved: {error}"))

        if changes.only_turns():
            # Whose turn it is need not be saved first: no phone rings before `RecallTaken` is.
            self._saved(settled)
            self._store.commit(changes, partial(self._turns_saved, changes))
            self._finish(answers)
        elif changes:
            self._store.commit(changes, saved)
        else:
            saved(None)

    def _turns_saved(self, changes: Changes, error: Exception | None) -> None:
        if error is None:
            self._tell(changes)
            return
        # Nothing is owed: what has come since may be saved already, and each change writes the whole row.
        for entry in changes.log:
            self._log(f"missing in the log of request {entry.request}: {entry.sentence}; not saved: {error}")

    def _tell(self, changes: Changes) -> None:
        for entry in changes.log:
            self._log(f"request {entry.request}: {entry.old} -> {entry.new}: {entry.sentence}")

    def _carry_out(self, batch: list[_Event], now: float) -> list[tuple[Done, object]]:
        broken: dict[int, Refused] = {}
        while True:
            answers: list[tuple[Done, object]] = []
            for place, event in enumerate(batch):
                try:
                    answer = broken.get(place) or event.work(now)
                except Refused as no:
                    answer = no
                except Exception as fault:  # one broken event must not stop the others: once more, without it
                    self._fault()
                    self._take_back()
                    broken[place] = Refused("INTERNAL_ERROR", f"a fault of fastagi itself: {fault!r}")
                    break
                answers.append((event.done, answer))
            else:
                return answers

    def _fault(self) -> None:
        self._log(f"a fault of fastagi itself: {format_exc()}")

    def _saved(self, settled: bool) -> None:
        self._book.keep()
        self._failures = 0
        effects, self.effects = self.effects, []
        for work in (*effects, self._watch) if settled else effects:
            try:
                work()
            except Exception:  # the others, and the service, must go on
                self._fault()

    def _take_back(self) -> None:
        self._book.rollback()
        self.effects.clear()
        self.stale = True

    def _not_saved(self, error: Exception, batch: list[_Event]) -> None:
        self._take_back()
        self._failures += 1
        self._inbox[:0] = [_Event(event.work, ignore, True) for event in batch if event.keep]
        self._log(f"nothing was changed, for it could not be saved: {error}")

    def _refuse(self, answers: Sequence[tuple[Done, object]], no: Refused) -> None:
        self._finish([(done, no) for done, _ in answers])

    def _finish(self, answers: Sequence[tuple[Done, object]]) -> None:
        for done, answer in answers:
            try:
                done(answer)
            except Exception:  # the service must go on
                self._fault()
        self._busy = False
        waiting = bool(self._inbox or self.stale)
        if any(not event.keep for event in self._inbox) or (waiting and not self._failures):
            self._turn()
        else:
            self._arm()

    def _arm(self) -> None:
        """One call, for the nearest instant."""
        if self._failures:
            wait = RETRY_AFTER[min(self._failures, len(RETRY_AFTER)) - 1]
            due: float | None = self._clock.now() + wait
        else:
            due = self._next_due()
            if due is not None:
                due = min(due, self._prune_at)
        if due == self._armed_for and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = due
        self._timer = None if due is None else self._clock.call_at(due, self._due)

    def _due(self) -> None:
        self._timer = None
        self.look_again()
