"""Call files: how a recall and the poll session are started in Asterisk.

A call file holds nothing but names of ours: Asterisk treats a newline in one as a new directive and
``Application: System`` as a command, so nothing from outside may reach it. Each value is checked against
its one strict form here, at the last door.
"""

import os
import re
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from fastagi.completion.model import Request
from fastagi.errors import FastagiError

_T = TypeVar("_T")

_OUR_ID = re.compile(r"[0-9]{15}", re.ASCII)
_OUR_NAME = re.compile(r"fastagi-(recall|poll)-[0-9]{15}\.call", re.ASCII)
HAND_OVER = 0.001
"""Seconds that the reactor's thread gives way to the spool's."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ANSWER_GRACE = 10
"""Seconds that Asterisk waits for a recall's answer beyond those that the phone rings."""


class CallFileError(FastagiError):
    """A call file that must not, or could not, be written."""


def recall_id_of(text: str) -> str:
    """``text`` as an id of ours, 15 digits; raises `CallFileError`."""
    if not _OUR_ID.fullmatch(text):
        raise CallFileError(f"{text[:40]!r} is no id of ours (15 digits): it does not reach Asterisk")
    return text


def recall_name(recall_id: str) -> str:
    return f"fastagi-recall-{recall_id_of(recall_id)}.call"


def poll_name(token: str) -> str:
    return f"fastagi-poll-{recall_id_of(token)}.call"


def recall_text(recall_id: str, wait: int) -> str:
    """The call file of a recall that is given up after ``wait`` seconds; the dialplan asks us for the rest."""
    id = recall_id_of(recall_id)
    return (
        f"Channel: Local/{id}@cc-recall/n\nContext: cc-call\nExtension: {id}\nPriority: 1\n"
        f"MaxRetries: 0\nWaitTime: {wait}\n"
    )


def poll_text(token: str) -> str:
    """The call file of the poll session."""
    id = recall_id_of(token)
    return f"Channel: Local/idle@cc-poll/n\nContext: cc-poll\nExtension: {id}\nPriority: 1\nMaxRetries: 0\n"


class Spool:
    """Asterisk's folder of outgoing calls. All methods block."""

    def __init__(self, spool: Path, temp: Path) -> None:
        self._spool = spool
        self._temp = temp

    def deposit(self, name: str, text: str) -> None:
        """``text`` as a file that Asterisk sees whole or not at all; raises `CallFileError`.

        It is not synced: what a power cut takes, the database still knows, and it is written anew.
        """
        if not _OUR_NAME.fullmatch(name):
            raise CallFileError(f"{name!r} is no name of ours for a call file")
        temp = f"{self._temp}/{name}"
        try:
            try:
                fd = os.open(temp, _NEW, 0o600)
            except FileExistsError:
                os.unlink(temp)
                fd = os.open(temp, _NEW, 0o600)
            try:
                os.write(fd, text.encode("ascii"))
                # Asterisk reads it and appends to it: it must own the file, or at least be of its group.
                os.fchmod(fd, 0o660)
                if os.geteuid() == 0:
                    owner = os.stat(self._spool)
                    os.fchown(fd, owner.st_uid, owner.st_gid)
                os.rename(temp, f"{self._spool}/{name}")
            finally:
                os.close(fd)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temp)
            raise CallFileError(
                f"the call file {self._spool / name} could not be written: {error}"
            ) from error

    def remove(self, name: str) -> None:
        """Take a file back, if Asterisk has not done with it yet."""
        try:
            (self._spool / name).unlink(missing_ok=True)
        except OSError as error:
            raise CallFileError(
                f"the call file {self._spool / name} could not be removed: {error}"
            ) from error

    def remove_leftovers(self, keep: Collection[str]) -> list[str]:
        """Take back all files of ours but ``keep``: they would be surprise calls. Answers their names."""
        removed = []
        for folder in (self._spool, self._temp):
            try:
                names = [n for n in os.listdir(folder) if _OUR_NAME.fullmatch(n) and n not in keep]
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                removed += names
            except OSError as error:
                raise CallFileError(
                    f"left-over call files in {folder} could not be removed: {error}"
                ) from error
        return removed


class SpoolThread:
    """The spool's work in the order it was asked for, off the reactor's thread."""

    def __init__(self, reactor: IReactorFromThreads, spool: Spool) -> None:
        self._reactor = reactor
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # One thread: a removal never overtakes its deposit.
        self._thread = threading.Thread(target=self._work, name="fastagi-spool", daemon=True)
        self.spool = spool

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when all that was asked for is done."""
        self._jobs.put(None)
        self._thread.join()

    def run(self, work: Callable[..., _T], *args: object) -> "Deferred[_T]":
        done: Deferred[_T] = Deferred()
        over = threading.Event()

        def job() -> None:
            try:
                result = work(*args)
            except Exception:  # whatever it is, this thread must go on and say so
                self._reactor.callFromThread(done.errback, Failure())  # type: ignore[no-untyped-call]
            else:
                self._reactor.callFromThread(done.callback, result)
            over.set()

        self._jobs.put(job)
        # Whoever calls us would go on for as long as this takes, and both would be slower: one interpreter, one lock.
        over.wait(HAND_OVER)
        return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Recalls(Protocol):
    """A way to have Asterisk begin a recall."""

    def begin(self, recall_id: str, wait: int) -> "Deferred[None]":
        """Start Local/<id>@cc-recall, which may take ``wait`` seconds to be answered."""

    def withdraw(self, recall_id: str) -> "Deferred[None]":
        """See to it that it does not begin, if it has not."""


class CallFiles:
    """Recalls by call files."""

    def __init__(self, thread: SpoolThread) -> None:
        self._thread = thread

    def begin(self, recall_id: str, wait: int) -> "Deferred[None]":
        deposit = self._thread.spool.deposit
        return self._thread.run(deposit, recall_name(recall_id), recall_text(recall_id, wait))

    def withdraw(self, recall_id: str) -> "Deferred[None]":
        return self._thread.run(self._thread.spool.remove, recall_name(recall_id))


class LocalAgent:
    """Rings a caller of this PBX: the agent of the rules."""

    def __init__(
        self,
        recalls: Recalls,
        *,
        ring: Callable[[Request], float],
        hang_up: Callable[[str], None],
        undelivered: Callable[[str, str], None],
        log: Callable[[str], None],
    ) -> None:
        self._recalls = recalls
        self._ring = ring
        self._hang_up = hang_up
        self._undelivered = undelivered
        self._log = log

    def recall(self, request: Request) -> None:
        # Asterisk waits longer than the inner Dial(), or it cuts that off before it can report.
        done = self._recalls.begin(request.recall_id, int(self._ring(request)) + ANSWER_GRACE)
        done.addErrback(lambda f: self._undelivered(request.recall_id, f.getErrorMessage()))

    def stop(self, request: Request) -> None:
        done = self._recalls.withdraw(request.recall_id)
        done.addErrback(lambda f: self._log(f.getErrorMessage()))
        if request.channel:
            self._hang_up(request.channel)
