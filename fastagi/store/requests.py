"""Rows <-> model, and the writer thread.

SQLite in WAL mode with ``synchronous=FULL``: what `Store.commit` has reported as done survives ``kill -9``
and a power cut. One thread writes, one transaction for each `Changes` it is given; nothing else in the
process touches the file. (Whose turn it is need not survive a power cut: it follows again. So a call file,
which is written at the same time, does not wait for the disk.) Readers in other processes (``fastagi list``)
open it for themselves.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import quote

from sqlite_utils import Database, Migrations

from fastagi.completion.model import OPEN, Device, Offer, Request, Service, State
from fastagi.completion.ports import Changes, LogEntry
from fastagi.errors import FastagiError, StoreError
from fastagi.store.schema import migrations

_Job = tuple[Changes, Callable[[Exception | None], None]]
_T = TypeVar("_T", Offer, Request)

_OFFER = [f.name for f in fields(Offer)]
_REQUEST = [f.name for f in fields(Request)]


def _insert(table: str, columns: list[str], or_replace: str = "") -> str:
    marks = ", ".join("?" * len(columns))
    return f"INSERT {or_replace} INTO {table} ({', '.join(columns)}) VALUES ({marks})"


# Prepared SQL for the hot path; sqlite-utils does the rest.
_PUT_OFFER = _insert("offers", _OFFER, "OR REPLACE")
_PUT_REQUEST = _insert("requests", _REQUEST, "OR REPLACE")
_ADD_LOG = _insert("log", [f.name for f in fields(LogEntry)])
_PRUNE = (
    "DELETE FROM log WHERE request IN (SELECT id FROM requests WHERE ended_at > 0 AND ended_at < ?)",
    "DELETE FROM requests WHERE ended_at > 0 AND ended_at < ?",
)


def _row(thing: Offer | Request, columns: list[str]) -> list[Any]:
    values = (getattr(thing, name) for name in columns)
    return [_text("&".join(v) if isinstance(v, tuple) else v) for v in values]


def _text(value: Any) -> Any:
    """What is no UTF-8 cannot be saved, and must not stop what can."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _thing(kind: type[_T], row: dict[str, Any]) -> _T:
    for name in ("caller_devices", "callee_devices"):
        row[name] = tuple(map(Device, row[name].split("&"))) if row[name] else ()
    row["service"] = Service(row["service"]) if row["service"] else None
    if kind is Request:
        row["state"] = State(row["state"])
        for name in ("suspended", "sign_needed", "taken"):
            row[name] = bool(row[name])
    return kind(**row)


def _kept(db: Database) -> dict[tuple[str, str], str]:
    if "kept" not in db.table_names():  # an older version's, that serve has not opened yet
        return {}
    return {(row["kind"], row["key"]): row["value"] for row in db.table("kept").rows}


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, FastagiError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        hint = ": run this as Asterisk's user" if isinstance(error, PermissionError) else ""
        raise StoreError(f"the database {path} cannot be used: {error}{hint}") from error


def _open_to_read(path: Path) -> Database:
    """Read-only: a file that is not ours, or a newer version's, is left as it is."""
    db = Database(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5))
    try:
        _check_version(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check_version(db: Database, path: Path) -> None:
    if db.table_names() and Migrations.migrations_table not in db.table_names():
        raise StoreError(f"the database {path} is another program's: name another file under store:")
    known = {m.name for m in migrations._migrations}
    newer = [m.name for m in migrations.applied(db) if m.name not in known]
    if newer:
        raise StoreError(
            f"the database {path} was written by a newer version of fastagi (it has {', '.join(newer)}); "
            "it is left as it is: run that version, or name another file under store:"
        )


class Reader:
    """The database as another process may see it: for ``fastagi list`` and the like."""

    def __init__(self, path: Path) -> None:
        with _in_a_sentence(path):
            if not path.exists():
                raise StoreError(
                    f"there is no database {path} yet: fastagi serve makes it at its first start"
                )
            self._db = _open_to_read(path)
        self._path = path

    def requests(self, *, open_only: bool = False) -> list[Request]:
        """Open ones first in the order of asking; then those that ended, the latest first."""
        marks = ", ".join(f"'{state}'" for state in sorted(OPEN))
        with _in_a_sentence(self._path):
            table = self._db.table("requests")
            rows = list(table.rows_where(f"state IN ({marks})", order_by="asked_at, id"))
            if not open_only:
                rows += table.rows_where("ended_at > 0", order_by="ended_at DESC, id DESC")
            return [_thing(Request, row) for row in rows]

    def request(self, id: int) -> Request | None:
        with _in_a_sentence(self._path):
            rows = list(self._db.table("requests").rows_where("id = ?", [id]))
            return _thing(Request, rows[0]) if rows else None

    def offers(self) -> list[Offer]:
        """The failed calls on record, oldest first."""
        with _in_a_sentence(self._path):
            return [_thing(Offer, row) for row in self._db.table("offers").rows_where(order_by="id")]

    def kept(self) -> dict[tuple[str, str], str]:
        """What others keep, by kind and key."""
        with _in_a_sentence(self._path):
            return _kept(self._db)

    def log(self, id: int) -> list[LogEntry]:
        """What happened to request ``id``, in order."""
        with _in_a_sentence(self._path):
            rows = self._db.table("log").rows_where("request = ?", [id], order_by="id")
            return [
                LogEntry(r["request"], r["at"], State(r["old"]), State(r["new"]), r["sentence"]) for r in rows
            ]


class Store:
    """The one writer. ``call_back(f, *args)`` runs ``f`` on the thread that owns the service."""

    def __init__(self, path: Path, call_back: Callable[..., object]) -> None:
        self._path = path
        self._call_back = call_back
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        with _in_a_sentence(path):
            self._lock = self._lock_file(path)
            try:
                self._db = self._open(path)
                self._waits = True
                self._last_id = self._read_last_id()
            except BaseException:
                os.close(self._lock)
                raise
        self._thread = threading.Thread(target=self._write, name="fastagi-store", daemon=True)
        self._thread.start()

    @staticmethod
    def _open(path: Path) -> Database:
        if path.exists() and path.stat().st_size:
            _open_to_read(path).close()
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        db = Database(connection)
        migrations.apply(db)
        connection.execute("BEGIN IMMEDIATE")  # a file that cannot be written is refused now, not later
        connection.execute("ROLLBACK")
        return db

    @staticmethod
    def _lock_file(path: Path) -> int:
        fd = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StoreError(f"the database {path} is in use by another fastagi serve") from None
        return fd

    def load(self) -> tuple[list[Offer], list[Request], int]:
        """The offers, the open requests, and the highest id ever given; to be called before any commit."""
        marks = ", ".join(f"'{state}'" for state in sorted(OPEN))
        with _in_a_sentence(self._path):
            offers = [_thing(Offer, row) for row in self._db.table("offers").rows_where(order_by="id")]
            rows = self._db.table("requests").rows_where(f"state IN ({marks})", order_by="id")
            return offers, [_thing(Request, row) for row in rows], self._last_id

    def kept(self) -> dict[tuple[str, str], str]:
        """What others keep, by kind and key; to be called before any commit."""
        with _in_a_sentence(self._path):
            return _kept(self._db)

    def commit(self, changes: Changes, done: Callable[[Exception | None], None]) -> None:
        """Write all of ``changes`` or nothing, durably, then call ``done(error or None)`` back."""
        self._jobs.put((changes, done))

    def close(self) -> None:
        """Write what was handed in, then let go of the file."""
        self._jobs.put(None)
        self._thread.join()
        self._db.close()
        os.close(self._lock)

    def _read_last_id(self) -> int:
        sql = (
            "SELECT max(coalesce((SELECT max(id) FROM offers), 0), coalesce((SELECT max(id) FROM requests), 0),"
            " (SELECT value FROM ids WHERE name = 'last'))"
        )
        return int(self._db.execute(sql).fetchone()[0])

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            changes, done = job
            try:
                self._wait_for_the_disk(not changes.only_turns())
                with self._db.atomic():
                    self._write_rows(changes)
            except Exception as error:  # whatever it is, this thread must go on and say so
                self._call_back(done, error)
            else:
                self._call_back(done, None)

    def _wait_for_the_disk(self, wait: bool) -> None:
        """In WAL mode NORMAL does not wait, and the next FULL does for both."""
        if self._waits != wait:
            self._db.execute(f"PRAGMA synchronous={'FULL' if wait else 'NORMAL'}")
            self._waits = wait

    def _write_rows(self, changes: Changes) -> None:
        connection = self._db.conn
        if changes.offers:
            self._last_id = max(self._last_id, *(o.id for o in changes.offers))
            connection.executemany(_PUT_OFFER, [_row(o, _OFFER) for o in changes.offers])
        if changes.forgotten_offers:
            self._save_last_id()
            connection.executemany(
                "DELETE FROM offers WHERE id = ?", [(i,) for i in changes.forgotten_offers]
            )
        if changes.requests:
            self._last_id = max(self._last_id, *changes.requests)
            connection.executemany(_PUT_REQUEST, [_row(r, _REQUEST) for r in changes.requests.values()])
        if changes.log:
            connection.executemany(
                _ADD_LOG, [(e.request, e.at, e.old, e.new, _text(e.sentence)) for e in changes.log]
            )
        for key, value in changes.kept.items():
            if value is None:
                connection.execute("DELETE FROM kept WHERE kind = ? AND key = ?", key)
            else:
                connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (*key, value.to_json()))
        if changes.prune_before is not None:
            self._save_last_id()
            for sql in _PRUNE:
                connection.execute(sql, [changes.prune_before])

    def _save_last_id(self) -> None:
        """The rows that hold the highest id may go: it must not be given again."""
        self._db.execute("UPDATE ids SET value = ? WHERE name = 'last'", [self._last_id])
