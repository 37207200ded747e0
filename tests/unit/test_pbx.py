"""Device states, call files and the poll session, without an Asterisk."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from asterisk.agi import AGIAppError, AGIHangup
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from fastagi.agi import Call
from fastagi.completion.model import Context, Device, Number, Presence, Request, Service, State
from fastagi.pbx.callfile import (
    ANSWER_GRACE,
    CallFileError,
    CallFiles,
    LocalAgent,
    Spool,
    poll_name,
    poll_text,
    recall_name,
    recall_text,
)
from fastagi.pbx.devicestate import PRESENCE, DeviceStates
from fastagi.pbx.lamp import Lamps
from fastagi.pbx.poll import AGAIN_AFTER, ANSWER_WITHIN, AT_ONCE, OPEN_WITHIN, SHUTDOWN_INTERVAL, Poller
from fastagi.pbx.watch import CALL_INTERVAL, Watcher

ID = "123456789012345"
BOB, CAROL = Device("PJSIP/2000"), Device("PJSIP/3000")


# Device states


class Told:
    def __init__(self) -> None:
        self.told: list[Any] = []
        self.states = DeviceStates(self.told.append, lambda: self.told.append("lost"), self.told.append)


def test_only_what_is_news_is_told() -> None:
    told = Told()
    told.states.watch([BOB])
    for name in ("NOT_INUSE", "UNKNOWN", "NOT_INUSE", "INUSE", "ONHOLD", "RINGING", "UNAVAILABLE", "INVALID"):
        told.states.seen(BOB, name)
    assert [p for change in told.told for p in change.values()] == [
        Presence.IDLE,
        Presence.IN_USE,
        Presence.RINGING,
        Presence.GONE,
    ]


def test_what_is_not_watched_is_not_told_and_told_again_later_is_news() -> None:
    told = Told()
    told.states.watch([BOB])
    told.states.seen(BOB, "NOT_INUSE")
    told.states.watch([])
    told.states.seen(BOB, "NOT_INUSE")  # an answer that was under way
    told.states.watch([BOB])
    told.states.seen(BOB, "NOT_INUSE")
    assert told.told == [{BOB: Presence.IDLE}] * 2


def test_what_is_no_device_state_is_said_once() -> None:
    told = Told()
    told.states.watch([BOB, CAROL])
    for device in (BOB, CAROL, BOB):
        told.states.seen(device, "")
    assert len(told.told) == 1 and "func_devstate" in told.told[0]


def test_all_of_asterisks_names_have_a_meaning() -> None:
    names = "UNKNOWN NOT_INUSE INUSE BUSY INVALID UNAVAILABLE RINGING RINGINUSE ONHOLD"
    names += " HOLDINUSE"  # of a hint
    assert set(PRESENCE) == set(names.split())


# Call files


def test_a_recalls_call_file() -> None:
    assert recall_text(ID, 20).splitlines() == [
        f"Channel: Local/{ID}@cc-recall/n",
        "Context: cc-call",
        f"Extension: {ID}",
        "Priority: 1",
        "MaxRetries: 0",
        "WaitTime: 20",
    ]


class FakeRecalls:
    """A way to begin recalls; ``broken`` ones fail."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.broken = False

    def begin(self, recall_id: str, wait: int) -> Deferred[None]:
        return self._done("begin", recall_id, wait)

    def withdraw(self, recall_id: str) -> Deferred[None]:
        return self._done("withdraw", recall_id)

    def _done(self, *event: object) -> Deferred[None]:
        self.events.append(event)
        return fail(CallFileError("the spool is full")) if self.broken else succeed(None)


class Caller:
    """The agent of a request that is READY, and what it did."""

    def __init__(self) -> None:
        self.recalls = FakeRecalls()
        self.said: list[tuple[str, ...]] = []
        self.agent = LocalAgent(
            self.recalls,
            ring=lambda request: 20.0,
            hang_up=lambda channel: self.said.append(("hang up", channel)),
            undelivered=lambda recall, why: self.said.append(("undelivered", recall, why)),
            log=lambda line: self.said.append(("log", line)),
        )

    @staticmethod
    def request(channel: str = "") -> Request:
        return Request(
            id=2,
            caller=Number("1000"),
            caller_devices=(Device("PJSIP/1000"),),
            caller_context=Context("phones"),
            callee=Number("2000"),
            callee_devices=(BOB,),
            service=Service.CCBS,
            state=State.READY,
            why="was busy",
            recall_id=ID,
            channel=channel,
        )


def test_asterisk_waits_longer_for_a_recall_than_the_phone_rings() -> None:
    caller = Caller()
    caller.agent.recall(caller.request())
    assert (caller.recalls.events, caller.said) == ([("begin", ID, 20 + ANSWER_GRACE)], [])


def test_a_recall_that_is_stopped_is_withdrawn_and_its_channel_hung_up() -> None:
    caller = Caller()
    caller.agent.stop(caller.request())
    assert (caller.recalls.events, caller.said) == ([("withdraw", ID)], [])
    caller.agent.stop(caller.request(f"Local/{ID}@cc-recall-00000001;2"))
    assert caller.said == [("hang up", f"Local/{ID}@cc-recall-00000001;2")]


def test_a_recall_that_cannot_begin_is_told_and_one_that_cannot_be_withdrawn_is_hung_up_all_the_same() -> (
    None
):
    caller = Caller()
    caller.recalls.broken = True
    caller.agent.recall(caller.request())
    caller.agent.stop(caller.request("Local/x"))
    assert caller.said == [
        ("undelivered", ID, "the spool is full"),
        ("log", "the spool is full"),
        ("hang up", "Local/x"),
    ]


def test_a_recall_by_call_file_is_put_down_and_taken_back() -> None:
    thread = FakeThread()
    files = CallFiles(thread)  # type: ignore[arg-type]
    files.begin(ID, 30)
    assert thread.files == {recall_name(ID): recall_text(ID, 30)}
    files.withdraw(ID)
    assert thread.files == {}


@pytest.mark.parametrize(
    "id",
    [
        "",
        "17",
        ID + "0",
        ID[:-1] + "\n",
        ID[:-1] + "x",
        f"{ID}\nApplication: System",
        f"{ID}\r\nSetvar: A=b",
        "../../../tmp/file1",
        "１２３４５６７８９０１２３４５",
    ],
)
def test_nothing_but_an_id_of_ours_goes_into_a_call_file(id: str) -> None:
    makers: list[Callable[[str], str]] = [lambda id: recall_text(id, 20), poll_text, recall_name, poll_name]
    for make in makers:
        with pytest.raises(CallFileError, match="no id of ours"):
            make(id)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    (tmp_path / "outgoing").mkdir()
    (tmp_path / "tmp").mkdir()
    return Spool(tmp_path / "outgoing", tmp_path / "tmp")


def test_a_file_is_seen_whole_and_can_be_written_by_asterisk(spool: Spool, tmp_path: Path) -> None:
    spool.deposit(recall_name(ID), recall_text(ID, 20))
    path = tmp_path / "outgoing" / f"fastagi-recall-{ID}.call"
    assert path.read_text() == recall_text(ID, 20)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not list((tmp_path / "tmp").iterdir())


def test_a_trap_in_the_temp_folder_is_not_written_through(spool: Spool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "tmp" / recall_name(ID)).symlink_to(victim)
    spool.deposit(recall_name(ID), recall_text(ID, 20))
    assert victim.read_text() == "mine"
    assert not (tmp_path / "outgoing" / recall_name(ID)).is_symlink()


def test_a_name_that_is_not_ours_is_refused(spool: Spool, tmp_path: Path) -> None:
    for name in ("x.call", "../x.call", f"fastagi-recall-{ID}.call\n", f"fastagi-other-{ID}.call"):
        with pytest.raises(CallFileError, match="no name of ours"):
            spool.deposit(name, "Channel: Local/1@x\n")
    assert not list((tmp_path / "outgoing").iterdir())


def test_a_spool_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    gone = Spool(tmp_path / "no", tmp_path)
    with pytest.raises(CallFileError, match=r"could not be written: .*No such file"):
        gone.deposit(recall_name(ID), recall_text(ID, 20))
    gone.remove(recall_name(ID))  # nothing there is what was wanted


def test_leftovers_of_ours_go_and_what_is_others_stays(spool: Spool, tmp_path: Path) -> None:
    names = [recall_name(ID), poll_name(ID), recall_name(ID[::-1])]
    for name in names:
        spool.deposit(name, recall_text(ID, 20))
    other = tmp_path / "outgoing" / "somebody-elses.call"
    other.write_text("Channel: PJSIP/1\n")
    assert sorted(spool.remove_leftovers({names[2]})) == sorted(names[:2])
    assert sorted(os.listdir(tmp_path / "outgoing")) == sorted([names[2], other.name])


# The poll session


class FakeThread:
    """The spool's thread, at once; keeps what lies in the spool."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.spool = self
        self.broken = False

    def deposit(self, name: str, text: str) -> None:
        if self.broken:
            raise CallFileError("the spool is broken")
        self.files[name] = text

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def run(self, work: Callable[..., Any], *args: object) -> Deferred[Any]:
        try:
            return succeed(work(*args))
        except CallFileError:
            return fail()


class FakeSession:
    """Asterisk's end of the standing session: answers from ``state``, or breaks."""

    def __init__(self, token: str, clock: Clock) -> None:
        self.call = Call("poll", {}, {"channel": "Local/idle@cc-poll-00000000;1"}, (token,))
        self.hung_up = False
        self.state = {"${DIALSTATUS}": "BUSY"}
        self.asked: list[tuple[float, str]] = []
        self.set: list[tuple[str, str]] = []
        self.executed: list[tuple[float | str, ...]] = []
        self.bounds: list[float | None] = []
        self.broken = False
        self.hangups: list[str] = []
        self._clock = clock

    async def get_full_variable(self, expression: str) -> str | None:
        self.asked.append((self._clock.seconds(), expression))
        if self.hung_up:
            raise AGIHangup("gone")
        return self.state.get(expression, "")

    async def set_variable(self, name: str, value: str) -> None:
        if self.broken:
            raise AGIHangup("gone")
        self.set.append((name, value))

    async def execute(self, application: str, *args: str) -> str:
        self.executed.append((self._clock.seconds(), application, *args))
        if self.hung_up:
            raise AGIHangup("gone")
        return "0"

    async def hangup(self, channel: str | None = None) -> None:
        assert channel
        self.hangups.append(channel)
        if channel == "ended":
            raise AGIAppError("no such channel")

    def bound(self, seconds: float | None) -> None:
        self.bounds.append(seconds)


class Desk:
    """A watcher, the poller that opens its sessions, their clock, and what came of it."""

    def __init__(self, compared: bool = True) -> None:
        self.clock = Clock()
        self.thread = FakeThread()
        self.log: list[str] = []
        self.seen: list[Any] = []
        self.gone: list[str] = []
        self._tokens = 0
        states = DeviceStates(self.seen.append, lambda: self.seen.append("lost"), self.log.append)
        self.lamps = Lamps(dark=lambda extension: "NOT_INUSE")
        if compared:
            self.lamps.stop()
        self.watcher = Watcher(self.clock, states, self.lamps, gone=self.gone.append)
        self.poller = Poller(
            self.clock,
            self.thread,  # type: ignore[arg-type]
            self.watcher,
            new_token=self._new_token,
            log=self.log.append,
        )
        self.watcher.changed = self.poller.look

    def _new_token(self) -> str:
        self._tokens += 1
        return f"{self._tokens:015}"

    def token(self) -> str:
        [name] = self.thread.files
        return name.removeprefix("fastagi-poll-").removesuffix(".call")

    def connect(self, token: str = "") -> tuple[FakeSession, Deferred[None]]:
        session = FakeSession(token or self.token(), self.clock)
        return session, Deferred.fromCoroutine(self.poller.script(session))  # type: ignore[arg-type]


STATE_OF_BOB = "${DEVICE_STATE(PJSIP/2000)}"


def test_the_session_is_made_when_somebody_waits_and_closed_when_nobody_does() -> None:
    desk = Desk()
    assert not desk.thread.files
    desk.watcher.watch({BOB: 0.5}, frozenset())
    session, over = desk.connect()
    assert session.asked and not desk.seen
    desk.watcher.watch({}, frozenset())
    assert over.called
    assert not desk.thread.files, "the call file is taken back"
    assert desk.seen == ["lost"]


def test_each_device_is_asked_at_its_own_interval() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5, CAROL: 2.0}, frozenset())
    session, _ = desk.connect()
    for _ in range(80):
        desk.clock.advance(0.05)
    asked = [expression for _, expression in session.asked]
    assert asked.count(STATE_OF_BOB) in (8, 9)  # 4 s, give or take the last instant
    assert asked.count("${DEVICE_STATE(PJSIP/3000)}") in (2, 3)


def test_who_is_newly_watched_is_asked_at_once() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 60.0}, frozenset())
    session, _ = desk.connect()
    session.state["${DEVICE_STATE(PJSIP/3000)}"] = "INUSE"
    desk.clock.advance(1)
    desk.watcher.watch({BOB: 60.0, CAROL: 60.0}, frozenset())
    assert session.asked[-1] == (1.0, "${DEVICE_STATE(PJSIP/3000)}")
    assert desk.seen == [{CAROL: Presence.IN_USE}]


def test_a_session_without_our_token_is_closed_and_a_token_is_good_once() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    token = desk.token()
    _, stranger = desk.connect("999999999999999")
    assert stranger.called
    _, ours = desk.connect(token)
    _, again = desk.connect(token)
    assert again.called and not ours.called
    assert sum("not ours" in line for line in desk.log) == 2


def test_a_session_that_asterisk_does_not_open_is_asked_for_again() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    first = desk.token()
    for _ in range(3):
        desk.clock.advance(OPEN_WITHIN)
    assert desk.token() != first, "one file at a time, each with a token of its own"
    assert sum("cc-poll" in line for line in desk.log) == 1
    _, late = desk.connect(first)
    assert late.called, "an old token opens nothing"


def test_a_session_that_is_lost_is_made_anew() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    session, over = desk.connect()
    session.hung_up = True
    desk.clock.advance(0.5)
    assert over.called and desk.seen == ["lost"]
    desk.clock.advance(AGAIN_AFTER)
    session, over = desk.connect()
    assert [expression for _, expression in session.asked] == [STATE_OF_BOB]


def test_a_spool_that_cannot_be_written_is_tried_again() -> None:
    desk = Desk()
    desk.thread.broken = True
    desk.watcher.watch({BOB: 0.5}, frozenset())
    assert "the spool is broken" in desk.log
    desk.thread.broken = False
    desk.clock.advance(OPEN_WITHIN)
    desk.connect()


def test_a_recall_is_hung_up_even_if_nobody_waits_any_more() -> None:
    desk = Desk()
    desk.watcher.hang_up("Local/1@cc-recall-00000001;2")
    desk.watcher.hang_up("ended")  # by itself, meanwhile: no harm
    desk.watcher.hang_up("Local/2@cc-recall-00000002;2")
    session, over = desk.connect()
    assert session.hangups == ["Local/1@cc-recall-00000001;2", "ended", "Local/2@cc-recall-00000002;2"]
    assert over.called


def test_a_recalls_channels_are_gone_when_missed_twice() -> None:
    desk = Desk()
    desk.watcher.watch({}, frozenset({ID}))
    session, _ = desk.connect()
    expression = f"${{CHANNELS(Local/{ID}@cc-recall)}}"
    session.state[expression] = "x"
    desk.clock.advance(CALL_INTERVAL)
    session.state[expression] = ""
    desk.clock.advance(CALL_INTERVAL)
    session.state[expression] = "x"
    desk.clock.advance(CALL_INTERVAL)
    session.state[expression] = ""
    desk.clock.advance(CALL_INTERVAL)
    assert not desk.gone, "missed once may be its end, still on its way to us"
    desk.clock.advance(CALL_INTERVAL)
    desk.clock.advance(CALL_INTERVAL)
    assert desk.gone == [ID]


def test_going_down_leaves_no_file_behind() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    desk.poller.stop()
    assert not desk.thread.files
    assert not desk.clock.getDelayedCalls()


def test_while_asterisk_lets_a_call_begin_the_session_goes_on() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 60.0}, frozenset())
    session, over = desk.connect()
    for _ in range(70):
        desk.clock.advance(0.1)
    dials = [("Dial", "Local/probe@cc-poll/n", "1")] * 3
    assert [tuple(what) for _, *what in session.executed] == dials and not over.called
    assert [round(float(at)) for at, *_ in session.executed] == [2, 4, 6]


def stopped(desk: Desk) -> tuple[FakeSession, Deferred[None]]:
    """A session whose Asterisk is being stopped from now on."""
    session, over = desk.connect()
    session.state["${DIALSTATUS}"] = "CHANUNAVAIL"
    desk.clock.advance(SHUTDOWN_INTERVAL)
    return session, over


def test_an_asterisk_that_is_being_stopped_is_let_go_and_asked_again_with_patience() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 60.0}, frozenset())
    _, over = stopped(desk)
    assert over.called and desk.seen == ["lost"]
    assert any("poll session lost: Asterisk lets no call begin: it is being stopped" in line for line in desk.log)
    tokens = []
    for _ in range(1200):
        if desk.thread.files and desk.token() not in tokens:
            tokens.append(desk.token())
        desk.clock.advance(0.1)
    assert 5 <= len(tokens) <= 12, "its files are dropped, but not a file each second"
    _, over = desk.connect()
    assert not over.called
    assert [line for line in desk.log if "cc-poll in its dialplan" in line] != []


def test_an_asterisk_that_is_gone_while_there_is_nothing_to_ask_is_noticed() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 3600.0}, frozenset())
    session, over = desk.connect()
    session.hung_up = True
    desk.clock.advance(SHUTDOWN_INTERVAL)
    assert over.called and desk.seen == ["lost"]
    desk.clock.advance(AGAIN_AFTER)
    assert desk.thread.files


def test_a_session_that_is_opened_and_never_answers_is_not_opened_again_at_once() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    opened = []
    for _ in range(600):
        if desk.thread.files:
            opened.append(desk.clock.seconds())
            session = FakeSession(desk.token(), desk.clock)
            session.hung_up = True
            Deferred.fromCoroutine(desk.poller.script(session))  # type: ignore[arg-type]
        desk.clock.advance(0.1)
    pauses = [round(later - earlier) for earlier, later in pairwise(opened)]
    assert pauses == [AGAIN_AFTER * factor for factor in (1, 2, 4, 8, 16)]


def test_a_session_that_answers_and_is_lost_at_once_is_not_opened_again_at_once_for_ever() -> None:
    """As when one answer is too long for us: each new session would end by the same."""
    desk = Desk()
    opened = 0
    for second in range(60):
        desk.watcher.watch({BOB: 0.5}, frozenset())
        if desk.thread.files:
            opened += 1
            session, _ = desk.connect()
            assert session.asked
            session.hung_up = True
        desk.clock.advance(1)
        assert opened <= 3 or second >= 7
    assert 4 <= opened <= 6


def test_a_session_that_was_not_needed_any_more_has_not_failed() -> None:
    desk = Desk()
    for _ in range(5):
        desk.watcher.watch({BOB: 0.5}, frozenset())
        desk.connect()
        desk.watcher.watch({}, frozenset())
        assert not desk.thread.files
    for _ in range(5):
        desk.watcher.watch({BOB: 0.5}, frozenset())
        leading = Deferred.fromCoroutine(desk.watcher.serve(OtherLine(), always=True))
        leading.addErrback(lambda failure: None)
        desk.connect()
        desk.watcher.watch({}, frozenset())
        leading.cancel()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    assert desk.thread.files and not any("did not open" in line for line in desk.log)


def test_going_down_between_two_sessions_is_no_fault() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    session, over = desk.connect()
    session.hung_up = True
    desk.clock.advance(0.5)
    assert over.called and not desk.thread.files
    desk.poller.stop()
    desk.watcher.stop()
    assert not desk.clock.getDelayedCalls()


def test_a_session_has_a_deadline_while_it_is_asked_and_none_while_it_is_idle() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 60.0}, frozenset())
    session, _ = desk.connect()
    assert session.bounds == [ANSWER_WITHIN, None]
    desk.clock.advance(SHUTDOWN_INTERVAL)
    assert session.bounds[2] == ANSWER_WITHIN and session.bounds[-1] is None


class OtherLine:
    """AMI, which leads and is never asked for anything."""

    beat = 3600.0
    events = True

    def at_least(self, device: Device) -> float:
        return 3600.0

    async def ask(self, expression: str) -> str:
        return "NOT_INUSE"

    async def set(self, name: str, value: str) -> None: ...

    async def hang_up(self, channel: str) -> None: ...

    async def lamps(self) -> list[str]:
        return []

    async def check(self) -> None: ...

    def idle(self, idle: bool) -> None: ...


def test_when_ami_leads_the_session_goes_and_it_comes_when_ami_is_gone() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    _, polling = desk.connect()
    leading = Deferred.fromCoroutine(desk.watcher.serve(OtherLine(), always=True))
    assert polling.called and not desk.thread.files
    leading.addErrback(lambda failure: None)
    leading.cancel()
    assert desk.seen == [{BOB: Presence.IDLE}, "lost"]
    _, polling = desk.connect()
    assert not polling.called


def test_a_session_that_opens_when_ami_leads_already_is_closed() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    Deferred.fromCoroutine(desk.watcher.serve(OtherLine(), always=True))
    session, over = desk.connect()
    assert over.called and not session.asked and not desk.thread.files
    desk.clock.advance(100)
    assert not desk.thread.files


def test_a_session_that_is_not_opened_until_ami_leads_is_taken_back() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    Deferred.fromCoroutine(desk.watcher.serve(OtherLine(), always=True))
    desk.clock.advance(OPEN_WITHIN)
    assert not desk.thread.files


def names(at: int) -> str:
    return f"${{DB_KEYS(CustomDevstate):{at}:{AT_ONCE}}}"


def test_the_names_of_a_great_many_states_come_in_parts() -> None:
    desk = Desk(compared=False)
    desk.watcher.watch({}, frozenset())
    session = FakeSession(desk.token(), desk.clock)
    known = ",".join([*(f"DND{n}\u00e9" for n in range(9000)), "CC1000"]).encode()
    for at in range(0, len(known), AT_ONCE):
        session.state[names(at)] = known[at : at + AT_ONCE].decode("utf-8", "surrogateescape")
    session.state["${DEVICE_STATE(Custom:CC1000)}"] = "INUSE"
    over = Deferred.fromCoroutine(desk.poller.script(session))  # type: ignore[arg-type]
    assert len(known) > AT_ONCE and over.called
    assert session.set == [("DEVICE_STATE(Custom:CC1000)", "NOT_INUSE")]


def test_a_session_is_opened_once_after_our_start_for_the_lamps() -> None:
    desk = Desk(compared=False)
    desk.watcher.watch({}, frozenset())
    session = FakeSession(desk.token(), desk.clock)
    session.state[names(0)] = "CC1000,CCTV,DND2000,CC1000),CC2000"
    session.state["${DEVICE_STATE(Custom:CC1000)}"] = "INUSE"
    session.state["${DEVICE_STATE(Custom:CC2000)}"] = "NOT_INUSE"
    over = Deferred.fromCoroutine(desk.poller.script(session))  # type: ignore[arg-type]
    assert session.set == [("DEVICE_STATE(Custom:CC1000)", "NOT_INUSE")]
    assert over.called and not desk.thread.files
    desk.watcher.watch({}, frozenset())
    assert not desk.thread.files


def test_a_lamp_that_cannot_be_set_is_set_over_the_next_session() -> None:
    desk = Desk()
    desk.watcher.show(Number("1000"), "INUSE")
    session = FakeSession(desk.token(), desk.clock)
    session.broken = True
    Deferred.fromCoroutine(desk.poller.script(session))  # type: ignore[arg-type]
    desk.clock.advance(OPEN_WITHIN)
    session, over = desk.connect()
    assert session.set == [("DEVICE_STATE(Custom:CC1000)", "INUSE")] and over.called


def test_going_down_while_a_session_is_open_ends_it_and_opens_none() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, frozenset())
    _, over = desk.connect()
    desk.poller.stop()
    desk.watcher.stop()
    assert over.called and not desk.thread.files and not desk.clock.getDelayedCalls()
