"""The store on a real SQLite file: every field, durable when said so, refused in a sentence, ids given once."""

import json
import os
import random
import signal
import sqlite3
import string
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

import fastagi
from fastagi.completion.model import OPEN, Context, Device, Number, Offer, Request, Service, State
from fastagi.completion.ports import Changes, LogEntry
from fastagi.errors import StoreError
from fastagi.store.requests import Reader, Store
from fastagi.store.schema import several_devices, trunks

Open = Callable[[], "Shop"]


class Shop:
    """A store whose commits are waited for."""

    def __init__(self, path: Path) -> None:
        self._done: Queue[Exception | None] = Queue()
        self.store = Store(path, lambda call, *args: call(*args))

    def commit(self, changes: Changes) -> Exception | None:
        self.store.commit(changes, self._done.put)
        return self._done.get(timeout=10)

    def good(self, **changes: Any) -> None:
        assert self.commit(Changes(**changes)) is None

    @property
    def connection(self) -> sqlite3.Connection:
        connection = self.store._db.conn
        assert isinstance(connection, sqlite3.Connection)
        return connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fastagi.db"


@pytest.fixture
def shop(path: Path) -> Iterator[Open]:
    opened: list[Shop] = []

    def open_one() -> Shop:
        for old in opened:
            old.store.close()
        opened[:] = [Shop(path)]
        return opened[0]

    yield open_one
    for old in opened:
        old.store.close()


def some_text(dice: random.Random) -> str:
    return "".join(dice.choices(string.printable + "äß'\";%&?\U0001f4de\0", k=dice.randint(0, 60)))


def some_devices(dice: random.Random, least: int) -> tuple[Device, ...]:
    return tuple(Device(f"PJSIP/{dice.randint(1, 9999)}_.+-{n}") for n in range(dice.randint(least, 8)))


def party(dice: random.Random, id: int) -> dict[str, Any]:
    return {
        "id": id,
        "caller": Number(dice.choice(("0123", "*30", "#1", "+49", "1000", "007", "7000@mxone", "ä;x=1@0"))),
        "caller_devices": some_devices(dice, 1),
        "caller_context": Context(dice.choice(("phones", "from-internal", "0"))),
        "callee": Number(dice.choice(("2000", "02000", "1e5", "*97", "00")).replace("e", "#")),
        "callee_devices": some_devices(dice, 0),
        "why": some_text(dice),
        "reason": some_text(dice),
        "agent": dice.choice(("", "mxone", "a-trunk_0.1")),
        "monitor": dice.choice(("", "mxone", "007")),
    }


def some_offer(dice: random.Random, id: int) -> Offer:
    return Offer(
        **party(dice, id),
        service=dice.choice([*Service, None]),
        offered_at=dice.uniform(0, 2e9),
        offer_ends=dice.uniform(0, 2e9),
        uniqueid=some_text(dice),
        call_in=some_text(dice),
        call_out=some_text(dice),
    )


def some_request(dice: random.Random, id: int, state: State | None = None) -> Request:
    state = state or dice.choice(list(State))
    return Request(
        **party(dice, id),
        service=dice.choice(list(Service)),
        state=state,
        asked_at=dice.uniform(0, 2e9),
        service_ends=dice.uniform(0, 2e9),
        suspended=dice.random() < 0.5,
        sign_needed=dice.random() < 0.5,
        idle_after=dice.choice((0.0, dice.uniform(0, 2e9))),
        retry_at=dice.choice((0.0, dice.uniform(0, 2e9))),
        recalls=dice.randint(0, 99),
        recall_id=dice.choice(("", "012345678901234", "999999999999999")),
        taken=dice.random() < 0.5,
        channel=some_text(dice),
        recall_ends=dice.uniform(0, 2e9),
        ended_at=0.0 if state in OPEN else dice.uniform(1, 2e9),
    )


DICE = random.Random(0)
OFFER = some_offer(DICE, 1)
REQUEST = replace(some_request(DICE, 2, State.QUEUED), asked_at=5.0)


def entry(request: int, sentence: str = "because", at: float = 1.5) -> LogEntry:
    return LogEntry(request, at, State.OFFERED, State.QUEUED, sentence)


def ended(id: int, at: float) -> Request:
    return replace(REQUEST, id=id, state=State.ENDED, ended_at=at)


# ---------------------------------------------------------------------------------------------- round trip


def test_every_field_comes_back_as_it_was(shop: Open, path: Path) -> None:
    dice = random.Random(7)
    offers = [some_offer(dice, id) for id in range(1, 200)]
    requests = {id: some_request(dice, id) for id in range(200, 600)}
    shop().good(offers=offers, requests=requests)
    found_offers, found, last = shop().store.load()
    assert found_offers == offers
    assert found == [r for r in requests.values() if r.state in OPEN]
    assert last == 599
    reader = Reader(path)
    for id, request in requests.items():
        assert reader.request(id) == request
    for old, new in zip(offers, found_offers, strict=True):
        assert [type(getattr(new, f.name)) for f in fields(Offer)] == [
            type(getattr(old, f.name)) for f in fields(Offer)
        ]
    for request in found:
        assert [type(getattr(request, f.name)) for f in fields(Request)] == [
            type(getattr(requests[request.id], f.name)) for f in fields(Request)
        ]


def test_the_random_values_differ_in_every_field() -> None:
    dice = random.Random(7)
    for f in fields(Offer):
        assert len({getattr(some_offer(dice, id), f.name) for id in range(50)}) > 1, f.name
    for f in fields(Request):
        assert len({getattr(some_request(dice, id), f.name) for id in range(50)}) > 1, f.name


def test_a_request_is_replaced_and_an_offer_forgotten(shop: Open) -> None:
    one = shop()
    one.good(offers=[OFFER, replace(OFFER, id=3)], requests={2: REQUEST})
    one.good(forgotten_offers=[1], requests={2: replace(REQUEST, recalls=2)})
    offers, requests, _ = shop().store.load()
    assert [o.id for o in offers] == [3]
    assert requests == [replace(REQUEST, recalls=2)]


def test_what_is_over_is_not_loaded_but_can_be_read(shop: Open, path: Path) -> None:
    shop().good(requests={n: replace(REQUEST, id=n, state=s) for n, s in enumerate(State, 1)})
    assert {r.state for r in shop().store.load()[1]} == OPEN
    id = list(State).index(State.COMPLETED) + 1
    assert Reader(path).request(id) == replace(REQUEST, id=id, state=State.COMPLETED)


def test_the_log_is_read_in_order(shop: Open, path: Path) -> None:
    entries = [LogEntry(2, n / 4, old, State.ENDED, f"why {n}") for n, old in enumerate(State)]
    one = shop()
    one.good(requests={2: REQUEST}, log=entries[:3])
    one.good(log=[*entries[3:], entry(9)])
    assert Reader(path).log(2) == entries
    assert Reader(path).log(9) == [entry(9)]
    assert Reader(path).log(1) == []


def test_the_reader_lists_open_ones_by_age_then_the_latest_ended(shop: Open, path: Path) -> None:
    requests = [
        replace(REQUEST, id=1, asked_at=9.0),
        replace(REQUEST, id=2, asked_at=3.0, state=State.CALLING),
        replace(REQUEST, id=3, asked_at=3.0, state=State.READY),
        ended(4, 10.0),
        replace(ended(5, 20.0), state=State.COMPLETED),
        ended(6, 10.0),
    ]
    shop().good(requests={r.id: r for r in requests})
    assert [r.id for r in Reader(path).requests()] == [2, 3, 1, 5, 6, 4]
    assert [r.id for r in Reader(path).requests(open_only=True)] == [2, 3, 1]
    assert Reader(path).request(7) is None


def test_the_reader_lists_offers_by_age(shop: Open, path: Path) -> None:
    shop().good(offers=[replace(OFFER, id=3), replace(OFFER, id=1), replace(OFFER, id=2, offered_at=1.0)])
    assert [o.id for o in Reader(path).offers()] == [1, 2, 3]
    assert Reader(path).offers()[0] == OFFER


def test_a_reader_sees_what_is_written_while_it_is_open(shop: Open, path: Path) -> None:
    one = shop()
    reader = Reader(path)
    assert reader.requests() == []
    one.good(requests={2: REQUEST})
    assert reader.requests() == [REQUEST]


def test_there_is_nothing_to_read_yet(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database .*fastagi.db yet"):
        Reader(path)
    assert not path.exists()


# --------------------------------------------------------------------------------------------------- safety


def test_a_write_is_synced_before_it_is_reported(shop: Open) -> None:
    connection = shop().connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"


WRITER = """
    import sys
    from dataclasses import replace
    from pathlib import Path
    from threading import Semaphore
    from fastagi.completion.ports import Changes
    from fastagi.store.requests import Store
    from tests.unit.test_store import OFFER, REQUEST, entry

    def done(error, id):
        assert error is None
        print(id, flush=True)
        room.release()

    room = Semaphore(8)
    store = Store(Path(sys.argv[1]), lambda call, *args: call(*args))
    for id in range(1, 1_000_000, 2):
        room.acquire()
        changes = Changes(
            offers=[replace(OFFER, id=id)],
            requests={id + 1: replace(REQUEST, id=id + 1)},
            log=[entry(id + 1)],
        )
        store.commit(changes, lambda error, id=id: done(error, id))
"""


@pytest.mark.parametrize("commits", [1, 40, 77])
def test_kill_9_loses_nothing_that_was_reported_done(shop: Open, path: Path, commits: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    root = Path(fastagi.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(commits)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
    offers, requests, last = shop().store.load()
    assert {o.id for o in offers} >= set(told)
    assert [r.id for r in requests] == [o.id + 1 for o in offers], "half of a transaction"
    assert last == requests[-1].id
    for id in told:
        assert Reader(path).log(id + 1) == [entry(id + 1)]


def test_what_was_handed_in_is_written_before_it_closes(path: Path) -> None:
    told: list[Exception | None] = []
    store = Store(path, lambda call, *args: call(*args))
    for id in range(1, 101):
        store.commit(Changes(offers=[replace(OFFER, id=id)]), told.append)
    store.close()
    assert told == [None] * 100
    again = Store(path, lambda call, *args: call(*args))
    assert len(again.load()[0]) == 100
    again.close()


def test_commits_are_reported_in_order_through_the_call_back(path: Path) -> None:
    called: list[tuple[Any, ...]] = []
    store = Store(path, lambda call, *args: called.append((call, *args)))
    marks = [lambda error, n=n: None for n in range(5)]
    for n, done in enumerate(marks, 1):
        store.commit(Changes(offers=[replace(OFFER, id=n)]), done)
    store.close()
    assert called == [(done, None) for done in marks]


# ----------------------------------------------------------------------------------------- what others keep


@dataclass(frozen=True)
class Note:
    text: str

    def to_json(self) -> str:
        return json.dumps(self.text)


def test_what_others_keep_comes_back_by_kind_and_key(shop: Open, path: Path) -> None:
    texts = {("agent", "7"): "a'\"; --", ("agent", "8"): "\U0001f4de\0\udcff", ("secret", "trunks"): ""}
    shop().good(kept={key: Note(text) for key, text in texts.items()})
    one = shop()
    assert {key: json.loads(text) for key, text in one.store.kept().items()} == texts
    assert Reader(path).kept() == one.store.kept()
    one.good(kept={("agent", "7"): None, ("agent", "8"): Note("new"), ("monitor", "8"): Note("other")})
    assert {key: json.loads(text) for key, text in shop().store.kept().items()} == {
        ("agent", "8"): "new",
        ("monitor", "8"): "other",
        ("secret", "trunks"): "",
    }


def test_what_others_keep_is_saved_with_the_rest_or_not_at_all(shop: Open) -> None:
    one = shop()
    one.good(kept={("agent", "1"): Note("old")})
    broken = replace(REQUEST, why=["no", "column"])  # type: ignore[arg-type]
    assert one.commit(Changes(kept={("agent", "1"): None, ("agent", "2"): Note("x")}, requests={2: broken}))
    assert one.store.kept() == {("agent", "1"): '"old"'}


def test_a_database_of_before_the_trunks_is_brought_up_to_date(shop: Open, path: Path) -> None:
    of_here: dict[str, Any] = {"agent": "", "monitor": "", "call_in": "", "call_out": ""}
    offer, request = replace(OFFER, **of_here), replace(REQUEST, agent="", monitor="")
    one = shop()
    one.good(offers=[offer], requests={2: request}, log=[entry(2)])
    for table, columns in (("offers", of_here), ("requests", ("agent", "monitor"))):
        for column in columns:
            one.connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    one.connection.execute("DROP TABLE kept")
    one.connection.execute("DELETE FROM _sqlite_migrations WHERE name = ?", [trunks.__name__])
    assert Reader(path).kept() == {}, "before serve has opened it"
    one = shop()
    assert one.store.load() == ([offer], [request], 2)
    assert (one.store.kept(), Reader(path).log(2)) == ({}, [entry(2)])
    one.good(kept={("agent", "2"): Note("new")}, offers=[replace(OFFER, id=3)])
    assert Reader(path).offers() == [offer, replace(OFFER, id=3)]


def test_a_database_of_before_several_devices_is_brought_up_to_date(shop: Open, path: Path) -> None:
    """All keep their place and wait on; who waited for a sign of life is not rung for a phone idle all along."""
    waits = replace(REQUEST, service=Service.CCBS, idle_after=0.0, recalls=0)
    awaited = replace(waits, id=3, service=Service.CCNR, asked_at=6.0)
    failed = replace(waits, id=4, recalls=1, asked_at=7.0)
    over = replace(waits, id=5, state=State.ENDED, ended_at=9.0)
    one = shop()
    one.good(requests={r.id: r for r in (waits, awaited, failed, over)}, offers=[OFFER])
    one.connection.execute("ALTER TABLE requests DROP COLUMN idle_after")
    one.connection.execute("DELETE FROM _sqlite_migrations WHERE name = ?", [several_devices.__name__])
    assert Reader(path).request(3) == awaited, "before serve has opened it"
    one = shop()
    kept = [waits, replace(awaited, idle_after=6.0), replace(failed, idle_after=7.0)]
    assert one.store.load() == ([OFFER], kept, 5)
    assert Reader(path).request(5) == over
    one.good(requests={2: replace(waits, idle_after=8.5)})
    assert Reader(path).request(2) == replace(waits, idle_after=8.5)
    assert shop().store.load()[1][1:] == kept[1:], "once is enough"


# ---------------------------------------------------------------------------------------- a commit that fails


def test_all_or_nothing(shop: Open, path: Path) -> None:
    one = shop()
    one.good(offers=[OFFER])
    broken = replace(OFFER, id=4, why=["no", "column"])  # type: ignore[arg-type]
    error = one.commit(Changes(requests={2: REQUEST}, log=[entry(2)], offers=[replace(OFFER, id=3), broken]))
    assert isinstance(error, sqlite3.Error)
    one.good(requests={4: replace(REQUEST, id=4)})
    offers, requests, _ = shop().store.load()
    assert ([o.id for o in offers], [r.id for r in requests]) == ([1], [4])
    assert Reader(path).log(2) == []


def test_the_last_write_failing_undoes_the_first(shop: Open) -> None:
    one = shop()
    one.good(offers=[OFFER])
    one.connection.execute("CREATE TRIGGER no BEFORE INSERT ON log BEGIN SELECT RAISE(FAIL, 'no'); END")
    error = one.commit(
        Changes(
            offers=[replace(OFFER, id=3)],
            forgotten_offers=[1],
            requests={2: REQUEST},
            log=[entry(2)],
            prune_before=1e12,
        )
    )
    assert "no" in str(error)
    one.connection.execute("DROP TRIGGER no")
    assert ([o.id for o in shop().store.load()[0]], shop().store.load()[1]) == ([1], [])


def test_a_read_only_moment(shop: Open) -> None:
    one = shop()
    one.connection.execute("PRAGMA query_only=ON")
    error = one.commit(Changes(offers=[OFFER], requests={2: REQUEST}))
    assert "readonly" in str(error)
    assert "readonly" in str(one.commit(Changes(prune_before=1.0)))
    one.connection.execute("PRAGMA query_only=OFF")
    one.good(offers=[replace(OFFER, id=5)])
    offers, requests, _ = shop().store.load()
    assert ([o.id for o in offers], requests) == ([5], [])


def test_a_full_disk(shop: Open) -> None:
    one = shop()
    one.good(offers=[OFFER])
    pages = one.connection.execute("PRAGMA page_count").fetchone()[0]
    one.connection.execute(f"PRAGMA max_page_count={pages}")
    much = [replace(OFFER, id=id, why="x" * 2000) for id in range(10, 60)]
    for _ in range(3):
        error = one.commit(Changes(offers=much, requests={2: REQUEST}))
        assert "full" in str(error)
        assert not one.connection.in_transaction
    one.connection.execute("PRAGMA max_page_count=1000000")
    one.good(offers=much)
    offers, requests, _ = shop().store.load()
    assert ([o.id for o in offers], requests) == ([1, *range(10, 60)], [])


# ----------------------------------------------------------------------------------------------------- ids


def test_a_new_store_has_given_no_id(shop: Open) -> None:
    assert shop().store.load() == ([], [], 0)


def test_no_id_is_given_again_when_its_rows_are_gone(shop: Open) -> None:
    one = shop()
    one.good(offers=[replace(OFFER, id=6)], requests={7: ended(7, 10.0)}, log=[entry(7)])
    assert shop().store.load()[2] == 7
    one = shop()
    one.good(forgotten_offers=[6], prune_before=11.0)
    assert shop().store.load() == ([], [], 7)
    one = shop()
    one.good(offers=[replace(OFFER, id=9)])
    one.good(forgotten_offers=[9])
    assert shop().store.load() == ([], [], 9)
    assert shop().store.load() == ([], [], 9)


def test_no_id_is_given_again_whatever_the_order(shop: Open) -> None:
    dice = random.Random(3)
    one, last = shop(), 0
    for _ in range(200):
        changes = Changes()
        for _ in range(dice.randint(0, 2)):
            last += 1
            if dice.random() < 0.5:
                changes.offers.append(replace(OFFER, id=last))
            else:
                changes.requests[last] = ended(last, dice.uniform(1, 100))
        if dice.random() < 0.3:
            changes.forgotten_offers = [o.id for o in one.store.load()[0]] if dice.random() < 0.5 else []
        if dice.random() < 0.2:
            changes.prune_before = dice.uniform(1, 120)
        if changes:
            assert one.commit(changes) is None
        if dice.random() < 0.2:
            one = shop()
            assert one.store.load()[2] == last


# ------------------------------------------------------------------------------------------------- pruning


def test_pruning_takes_what_ended_before_with_its_log(shop: Open, path: Path) -> None:
    open_ones = [replace(REQUEST, id=n, state=s, asked_at=1.0) for n, s in enumerate(sorted(OPEN), 10)]
    over = [ended(1, 99.0), ended(2, 100.0), ended(3, 101.0), replace(ended(4, 99.0), state=State.COMPLETED)]
    every = [*open_ones, *over]
    one = shop()
    one.good(requests={r.id: r for r in every}, log=[entry(r.id, at=1.0) for r in every])
    one.good(prune_before=100.0)
    still = {2, 3, *(r.id for r in open_ones)}
    assert {r.id for r in Reader(path).requests()} == still
    logged = {r.id for r in every if Reader(path).log(r.id)}
    assert logged == still
    one.good(prune_before=1e12)
    assert Reader(path).requests() == open_ones
    assert one.store.load()[1] == open_ones


def test_offers_are_not_pruned(shop: Open) -> None:
    one = shop()
    one.good(offers=[OFFER])
    one.good(prune_before=1e12)
    assert one.store.load()[0] == [OFFER]


# ------------------------------------------------------------------------------------ refused in a sentence


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as no:
        Store(path, lambda call, *args: call(*args))
    sentence = str(no.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_a_newer_version_is_refused_and_its_file_left_alone(path: Path) -> None:
    Shop(path).store.close()
    connection = sqlite3.connect(path)
    table = "_sqlite_migrations"
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    row = connection.execute(f"SELECT * FROM {table}").fetchone()
    values = [
        "of_tomorrow" if c == "name" else 99 if c == "id" else v for c, v in zip(columns, row, strict=True)
    ]
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    connection.commit()
    connection.close()
    before = path.read_bytes()
    names = set(os.listdir(path.parent))
    sentence = refused(path)
    assert "newer version" in sentence and "of_tomorrow" in sentence
    with pytest.raises(StoreError, match="newer version"):
        Reader(path)
    assert path.read_bytes() == before
    assert {n for n in os.listdir(path.parent) if n.endswith(("-wal", "-shm"))} <= names | {
        "fastagi.db-wal",
        "fastagi.db-shm",
    }


@pytest.mark.parametrize("content", [b"not a database" * 100, b"#!/bin/sh\n", bytes(4096)])
def test_what_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "cannot be used" in refused(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE requests (id, what)")
    connection.close()
    before = path.read_bytes()
    assert "another program's" in refused(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a b.db", "a%41.db", "a?b.db", "a#b.db", "ä.db"])
def test_any_name_of_the_file(tmp_path: Path, name: str) -> None:
    Shop(tmp_path / name).store.close()
    again = Shop(tmp_path / name)
    again.good(requests={2: REQUEST})
    assert Reader(tmp_path / name).request(2) == REQUEST
    again.store.close()
    assert all(n.startswith(name) for n in os.listdir(tmp_path))


def test_an_empty_file_becomes_a_database(shop: Open, path: Path) -> None:
    path.touch()
    assert shop().store.load() == ([], [], 0)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere" / "fastagi.db")
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_in_its_place(path: Path) -> None:
    path.mkdir()
    assert "cannot be used" in refused(path)


OPENER = """
    import os, sys
    from pathlib import Path
    from fastagi.errors import StoreError
    from fastagi.store.requests import Store
    import sqlite_utils.migrations
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        Store(Path(sys.argv[1]), print)
    except StoreError as error:
        print(error)
"""


@pytest.mark.parametrize("read_only", ["file", "directory"])
def test_what_may_not_be_written_is_refused(tmp_path: Path, read_only: str) -> None:
    """In a process of its own, since root may write everywhere."""
    path = Path("data/fastagi.db")
    (tmp_path / "data").mkdir()
    Shop(tmp_path / path).store.close()
    before = (tmp_path / path).read_bytes()
    (tmp_path / path).chmod(0o444 if read_only == "file" else 0o666)
    for lock in (tmp_path / "data").glob("*.lock"):
        lock.chmod(0o666 if read_only == "file" else 0o444)
    (tmp_path / "data").chmod(0o777 if read_only == "file" else 0o555)
    command = [sys.executable, "-c", textwrap.dedent(OPENER), str(path)]
    env = {**os.environ, "PYTHONPATH": str(Path(fastagi.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    # The test's directory may be closed to others, so the path is taken from where we stand in it.
    said = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=30
    )
    assert said.stdout.startswith(f"the database {path} cannot be used: "), said
    assert said.stdout.count("\n") == 1
    assert (tmp_path / path).read_bytes() == before


def test_a_second_server_is_refused(shop: Open, path: Path) -> None:
    one = shop()
    assert "in use by another fastagi serve" in refused(path)
    one.good(offers=[OFFER])
    assert shop().store.load()[0] == [OFFER]


def test_one_that_was_killed_leaves_no_lock(shop: Open, path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fastagi.store.requests import Store;"
        "Store(Path(sys.argv[1]), print); os.kill(os.getpid(), 9)"
    )
    root = Path(fastagi.__file__).parents[1]
    assert (
        subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=root, timeout=30).returncode
        == -9
    )
    assert shop().store.load() == ([], [], 0)


def test_an_error_while_reading_is_told_in_a_sentence(shop: Open, path: Path) -> None:
    shop().good(requests={2: REQUEST}, log=[entry(2)])
    reader = Reader(path)
    shop().connection.execute("UPDATE requests SET state = 'NOWHERE', ended_at = 1")
    shop().connection.execute("UPDATE log SET new = 'NOWHERE'")
    for read in (reader.requests, lambda: reader.request(2), lambda: reader.log(2)):
        with pytest.raises(StoreError, match="cannot be used.*NOWHERE"):
            read()
