"""The AGI scripts tried on a small world: what Asterisk sends, and the variables that are set."""

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

from fastagi.agi import routes
from fastagi.agi.wire import Call
from fastagi.errors import Refused
from tests.unit.rules import World


class FakeSession:
    """One AGI session; ``call`` is what Asterisk said."""

    peer = "127.0.0.1:4000"

    def __init__(self, channel: str, *args: str, uniqueid: str = "1.1", hung_up: bool = False) -> None:
        env = {"channel": channel, "uniqueid": uniqueid, "context": "phones"}
        self.call = Call("x", {}, env, args)
        self.hung_up = hung_up

    async def get_full_variable(self, expression: str, channel: str | None = None) -> str | None:
        return None


class Script:
    """A script on its way: it waits where it asks the service."""

    def __init__(self, world: World, name: str, channel: str, *args: str, hung_up: bool = False) -> None:
        self._set: Mapping[str, str] | None = None
        session: Any = FakeSession(channel, *args, uniqueid=f"u-{len(world.store.offers)}", hung_up=hung_up)
        self._run = routes.answer(name, session, world.service, self._ask, world.logged.append)
        self._go_on()

    def _ask(self, method: Callable[..., None], *args: object) -> Awaitable[Any]:
        script = self

        class Answer:
            def __await__(self) -> Generator[None, None, object]:
                answers: list[object] = []
                waits = False

                def done(answer: object) -> None:
                    answers.append(answer)
                    if waits:
                        script._go_on()

                method(*args, done)
                if not answers:
                    waits = True
                    yield
                if isinstance(answers[0], Refused):
                    raise answers[0]
                return answers[0]

        return Answer()

    def _go_on(self) -> None:
        coroutine: Any = self._run
        try:
            coroutine.send(None)
        except StopIteration as end:
            self._set = end.value

    def sets(self) -> Mapping[str, str] | None:
        """What it sets, once it is over."""
        return self._set


def ran(world: World, name: str, channel: str, *args: str, hung_up: bool = False) -> Mapping[str, str]:
    """What a script sets that does not wait for anybody."""
    script = Script(world, name, channel, *args, hung_up=hung_up)
    world.look()
    made = script.sets()
    assert made is not None, "it waits"
    return made
