"""AMI as the watcher's line, its events, and recalls by Originate."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from fastagi.completion.model import Device, hint
from fastagi.pbx.ami import AmiDenied, AmiError, AmiLost
from fastagi.pbx.amiwatch import AmiLine, AmiWatch, Originates
from fastagi.pbx.callfile import CallFileError
from fastagi.pbx.watch import LineLost
from tests.unit.test_ami import Office, errors, outcome, text
from tests.unit.test_watch import BOB, CAROL, ID, NOBODY, Desk, of

HINT = hint("2000@phones")
T = TypeVar("T")


class FakeAmi:
    """What an Asterisk answers over AMI; ``error`` is what every action fails with."""

    def __init__(self, desk: Desk) -> None:
        self.line = desk.ami()
        self.known: dict[str, str] = {}
        self.error: AmiError | None = None
        self.held: Deferred[None] | None = None
        self.forbidden = ""

    async def ask(self, expression: str) -> str:
        if expression == self.forbidden:
            raise AmiDenied("Asterisk refuses Getvar: GetVar Access Forbidden: Variable")
        return await self._or_fails(self.line.ask(expression))

    async def set(self, variable: str, value: str) -> None:
        await self._or_fails(self.line.set(variable, value))

    async def hang_up(self, channel: str) -> None:
        await self._or_fails(self.line.hang_up(channel))

    async def device_states(self) -> dict[str, str]:
        if self.held is not None:
            await self.held
        return await self._or_fails(self._known())

    async def _known(self) -> dict[str, str]:
        return self.known

    async def _or_fails(self, answer: Coroutine[Any, Any, T]) -> T:
        made = await answer
        if self.error is not None:
            raise self.error
        return made


class Watched:
    """A desk, an AMI to come, and what it tells."""

    def __init__(self, compared: bool = True) -> None:
        self.desk = Desk(compared)
        self.watch = AmiWatch(self.desk.watcher)
        self.ami = FakeAmi(self.desk)

    def up(self) -> Deferred[None]:
        over = Deferred.fromCoroutine(self.watch.up(self.ami))  # type: ignore[arg-type]
        over.addErrback(lambda failure: self.desk.events.append(f"ami: {failure.getErrorMessage()}"))
        return over


# The line


def test_it_needs_no_check() -> None:
    line = AmiLine(FakeAmi(Desk()), [])  # type: ignore[arg-type]
    assert line.beat >= 3600


def test_what_events_tell_of_is_asked_for_seldom_and_all_else_as_often_as_it_is_wanted() -> None:
    """A user without read=call is told nothing, nor is one behind a filter."""
    watched = Watched()
    desk, line = watched.desk, watched.ami.line
    line.state = {of(BOB): "NOT_INUSE", "EXTENSION_STATE(2000@phones)": "NOT_INUSE"}
    desk.watcher.watch({BOB: 1.0, HINT: 1.0}, NOBODY)
    watched.up()

    def asked() -> tuple[int, int, bool]:
        """In 100 s: for the device, for the hint; and whether it costs nothing to watch more."""
        line.told()
        for _ in range(1000):
            desk.clock.advance(0.1)
        told = line.told()
        return told.count(of(BOB)), told.count("EXTENSION_STATE(2000@phones)"), desk.watcher.eager

    bob, his_hint, eager = asked()
    assert abs(bob - 100) <= 2 and abs(his_hint - 100) <= 2 and not eager
    watched.watch.device_state("PJSIP/3000", "INUSE")
    bob, his_hint, eager = asked()
    assert bob <= 11 and abs(his_hint - 100) <= 2 and eager
    watched.watch.extension_state("3000", "phones")
    bob, his_hint, eager = asked()
    assert bob <= 11 and his_hint <= 11 and eager


def test_a_name_that_asterisk_lets_nobody_ask_for_takes_away_no_other() -> None:
    watched = Watched()
    odd = Device("PJSIP/SHELL-lobby")
    watched.ami.forbidden = of(odd)
    watched.ami.line.state = {of(BOB): "INUSE"}
    watched.desk.watcher.watch({odd: 1.0, BOB: 1.0}, NOBODY)
    over = watched.up()
    watched.desk.clock.advance(30)
    assert not over.called and watched.desk.events == [{BOB: "in use"}]
    assert len(watched.desk.log) == 1 and str(odd) in watched.desk.log[0]


@pytest.mark.parametrize(
    "speak",
    [lambda line: line.ask(of(BOB)), lambda line: line.set(of(BOB), "INUSE")],
    ids=["ask", "set"],
)
@pytest.mark.parametrize(
    "error", [AmiDenied("Asterisk refuses Getvar: Asterisk is shutting down"), AmiLost("it is gone")]
)
def test_what_amis_actions_fail_with_is_the_end_of_the_line(
    speak: Callable[[AmiLine], Coroutine[Any, Any, Any]], error: AmiError
) -> None:
    ami = FakeAmi(Desk())
    ami.error = error
    [ended] = outcome(speak(AmiLine(ami, [])))  # type: ignore[arg-type]
    assert isinstance(ended, LineLost) and str(ended) == str(error)


def test_a_channel_that_is_gone_is_hung_up_already_and_a_connection_that_is_gone_is_not() -> None:
    ami = FakeAmi(Desk())
    line = AmiLine(ami, [])  # type: ignore[arg-type]
    ami.error = AmiDenied("Asterisk refuses Hangup: No such channel")
    assert outcome(line.hang_up("Local/1;2")) == [None]
    for error in AmiLost("the connection is lost"), AmiError("Asterisk did not answer Hangup within 5 s"):
        ami.error = error
        [ended] = outcome(line.hang_up("Local/1;2"))
        assert isinstance(ended, LineLost)


def test_the_lamps_are_those_that_were_listed() -> None:
    watched = Watched(compared=False)
    watched.ami.known = {"Custom:CC1000": "INUSE", "Custom:DND1": "INUSE", BOB: "INUSE"}
    watched.ami.line.state["DEVICE_STATE(Custom:CC1000)"] = "INUSE"
    watched.up()
    assert watched.ami.line.told() == [
        "DEVICE_STATE(Custom:CC1000)",
        "DEVICE_STATE(Custom:CC1000)=NOT_INUSE",
    ]


# Taking the lead, and losing it


def test_what_is_listed_is_not_known_before_it_was_asked_for() -> None:
    """The list may be old when it comes, and what an event says is no fact."""
    watched = Watched()
    watched.ami.known = {BOB: "NOT_INUSE"}
    watched.ami.line.state[of(BOB)] = "INUSE"
    watched.desk.watcher.watch({BOB: 0.5}, NOBODY)
    watched.up()
    assert watched.desk.told() == [{BOB: "in use"}] and watched.ami.line.told() == [of(BOB)]


def test_the_poll_session_goes_when_ami_leads_and_comes_when_it_is_gone() -> None:
    watched = Watched()
    desk = watched.desk
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    poll = desk.line()
    poll.state[of(BOB)] = watched.ami.line.state[of(BOB)] = "INUSE"
    polling = desk.serve(poll)
    leading = watched.up()
    assert polling.called and desk.told() == [{BOB: "in use"}], "no word of a loss, and not told again"
    desk.wanted = 0
    leading.cancel()
    assert desk.told()[0] == "lost" and desk.wanted == 1


def test_until_ami_has_listed_what_it_knows_the_poll_session_leads() -> None:
    """Asterisk lets us in while it is still loading."""
    watched = Watched()
    desk = watched.desk
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    poll = desk.line()
    poll.state[of(BOB)] = "NOT_INUSE"
    polling = desk.serve(poll)
    watched.ami.held = Deferred()
    watched.up()
    poll.state[of(BOB)] = "INUSE"
    desk.wait(1)
    assert desk.watcher.line is poll and desk.told() == [{BOB: "idle"}, {BOB: "in use"}]
    watched.ami.line.state[of(BOB)] = "NOT_INUSE"
    watched.ami.held.callback(None)
    assert polling.called and desk.told() == [{BOB: "idle"}]


def test_an_ami_that_fails_before_it_leads_takes_nothing_away() -> None:
    watched = Watched()
    desk = watched.desk
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    poll = desk.line()
    poll.state[of(BOB)] = "INUSE"
    desk.serve(poll)
    desk.told()
    watched.ami.error = AmiError("Asterisk refuses DeviceStateList: Invalid/unknown command")
    watched.up()
    assert desk.told() == ["ami: Asterisk refuses DeviceStateList: Invalid/unknown command"]
    assert desk.watcher.line is poll


# Events


def test_events_make_devices_and_hints_be_asked_for() -> None:
    watched = Watched()
    desk = watched.desk
    desk.watcher.watch({BOB: 0.5, HINT: 0.5}, NOBODY)
    ami = watched.ami.line
    ami.state = {of(BOB): "INUSE", "EXTENSION_STATE(2000@phones)": "INUSE"}
    watched.up()
    desk.told()
    ami.told()
    ami.state = {of(BOB): "NOT_INUSE", "EXTENSION_STATE(2000@phones)": "NOT_INUSE"}
    watched.watch.device_state(BOB, "INUSE")
    assert desk.told() == [{BOB: "idle"}] and ami.told() == [of(BOB)]
    watched.watch.extension_state("2000", "phones")
    assert desk.told() == [{HINT: "idle"}] and ami.told() == ["EXTENSION_STATE(2000@phones)"]
    watched.watch.device_state(CAROL, "NOT_INUSE")
    assert ami.told() == []


# With the real client


def office(desk: Desk) -> Office:
    """AMI's client below a watcher, connected; its list is asked for and not answered."""
    watch = AmiWatch(desk.watcher)
    made = Office(up=watch.up)
    made.connect()
    return made


def lists(office: Office, *devices: str) -> None:
    """Asterisk answers DeviceStateList."""
    [action] = office.heard()
    assert action["Action"] == "DeviceStateList"
    id = f"ActionID: {action['ActionID']}"
    events = [text("Event: DeviceStateChange", id, f"Device: {device}", "State: INUSE") for device in devices]
    office.says(office.answers(action, "EventList: start"), *events)
    office.says(text("Event: DeviceStateListComplete", id, "EventList: Complete", "ListItems: 1"))


def test_an_action_that_asterisk_refuses_is_tried_again_and_why_is_said_once() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    made = office(desk)
    with capturedLogs() as logged:
        for pause in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4):
            lists(made, BOB)
            [asked] = made.heard()
            assert (asked["Action"], asked["Variable"]) == ("Getvar", of(BOB))
            made.says(made.refuses(asked, "Permission denied"))
            assert desk.told() == ["lost"]
            for _ in range(round(pause / 0.2)):
                made.says(text("Event: FullyBooted"))  # so that nothing must be asked to know if it lives
                made.advance(0.201)
    assert made.log[1:] == ["AMI at 192.0.2.1:5038: Asterisk refuses Getvar: Permission denied"]
    assert not [event for event in logged if "log_failure" in event]


def test_after_a_refusal_it_is_not_dead() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    made = office(desk)
    lists(made)
    made.says(made.refuses(made.heard()[0], "Permission denied"))
    made.advance(0.2)
    lists(made)
    [asked] = made.heard()
    made.says(made.answers(asked, "Value: INUSE"))
    assert desk.told() == ["lost", {BOB: "in use"}] and not made.wire.lost


def test_a_connection_that_is_lost_while_there_is_nothing_to_ask() -> None:
    desk = Desk()
    made = office(desk)
    lists(made)
    made.wire.lose(errors.ConnectionDone())
    assert desk.told()[-1] == "lost" and desk.watcher.line is None
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    poll = desk.line()
    poll.state[of(BOB)] = "INUSE"
    desk.serve(poll)
    desk.clock.advance(3600)
    assert desk.told() == [{BOB: "in use"}]


# Recalls


def test_a_recall_is_our_id_and_nothing_else() -> None:
    made = Office().connect()
    began = outcome(made.ami.originate("x", "y", "z", 1.0))
    made.heard()
    done = Originates(made.ami).begin(ID, 30)
    [action] = made.heard()
    del action["ActionID"]
    assert action == {
        "Action": "Originate",
        "Channel": f"Local/{ID}@cc-recall/n",
        "Context": "cc-call",
        "Exten": ID,
        "Priority": "1",
        "Timeout": "30000",
        "Async": "true",
    }
    assert not done.called and not began


@pytest.mark.parametrize(
    "id",
    [
        "",
        "17",
        ID + "0",
        ID[:-1] + "\n",
        f"{ID}\nApplication: System\nData: touch x",
        f"{ID}\r\n\r\nAction: Command",
        f"{ID}@phones/n",
        "１２３４５６７８９０１２３４５",
        "../../../tmp/file1",
    ],
)
def test_what_is_no_id_of_ours_is_refused_and_nothing_is_sent(id: str) -> None:
    made = Office().connect()
    with pytest.raises(CallFileError, match="no id of ours"):
        Originates(made.ami).begin(id, 30)
    assert made.wire.written == b""


def test_a_recall_without_a_connection_has_failed() -> None:
    made = Office()
    made.ami.start()
    failed: list[Any] = []
    Originates(made.ami).begin(ID, 30).addErrback(lambda failure: failed.append(failure.value))
    assert [type(error) for error in failed] == [AmiLost]


def test_a_recall_that_asterisk_refuses_has_failed() -> None:
    made = Office().connect()
    failed: list[Any] = []
    Originates(made.ami).begin(ID, 30).addErrback(lambda failure: failed.append(str(failure.value)))
    made.says(made.refuses(made.heard()[0], "Originate failed"))
    assert failed == ["Asterisk refuses Originate: Originate failed"]


def test_to_withdraw_sends_nothing() -> None:
    made = Office().connect()
    assert Originates(made.ami).withdraw(ID).called and made.wire.written == b""
