"""The lamps of Asterisk's own list, while one line to it takes over from another."""

from twisted.internet.defer import Deferred

from fastagi.pbx.lamp import Lamps


class Listing:
    """A line whose list of lamps comes when it is told to."""

    def __init__(self) -> None:
        self.listed: Deferred[list[str]] = Deferred()
        self.set_to: list[tuple[str, str]] = []

    async def ask(self, expression: str) -> str:
        return "INUSE"

    async def set(self, name: str, value: str) -> None:
        self.set_to.append((name, value))

    async def lamps(self) -> list[str]:
        return await self.listed


def say(lamps: Lamps, line: Listing) -> "Deferred[None]":
    return Deferred.fromCoroutine(lamps.say(line))


def test_what_an_older_line_has_listed_is_looked_at_over_the_new_one() -> None:
    lamps = Lamps(dark=lambda extension: "NOT_INUSE")
    lamps.all_told()
    older, newer = Listing(), Listing()
    older.listed.callback(["Custom:CC4000", "Custom:CC5000"])
    assert say(lamps, older).called and say(lamps, older).called
    lamps.new_line()
    while lamps.pending():
        assert say(lamps, newer).called
    assert older.set_to == [("DEVICE_STATE(Custom:CC4000)", "NOT_INUSE")]
    assert newer.set_to == [("DEVICE_STATE(Custom:CC5000)", "NOT_INUSE")]


def test_what_an_older_line_lists_late_is_listed_again_by_the_new_one() -> None:
    lamps = Lamps(dark=lambda extension: "NOT_INUSE")
    lamps.all_told()
    older, newer = Listing(), Listing()
    late = say(lamps, older)
    lamps.new_line()
    older.listed.callback(["Custom:CC4000"])
    assert late.called and lamps.pending()
    newer.listed.callback(["Custom:CC4000"])
    while lamps.pending():
        assert say(lamps, newer).called
    assert newer.set_to == [("DEVICE_STATE(Custom:CC4000)", "NOT_INUSE")] and older.set_to == []
