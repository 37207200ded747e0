"""The AMI client: device states as they change, and what else Asterisk is asked, over one lasting connection.

Theory of operation
-------------------
A connection is greeted, logs in, and then runs the owner's coroutine ``up`` until it is lost. While it lives:

- Every action has an ActionID of its own and ends within ANSWER_WITHIN seconds, answered or not; those that
  still wait when the connection is lost end then.
- After PING_AFTER seconds of silence Asterisk is asked if it is there; after DEAD_AFTER it is taken for dead.

A connection that is lost, or cannot be had, is tried again for ever, after 0.2 s and then longer, up to 10 s; after
REFUSED_PAUSE if an Asterisk elsewhere did not let us in. Why is said once, and again when the reason has changed or
after it had worked.

Things to keep in mind: Asterisk lets us in while it still loads modules. DeviceStateList is unknown then, a
function that is not loaded yet gives an empty value, and a device that is not yet one comes by an event.
"""

import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from fastagi.errors import FastagiError
from fastagi.pbx.amilink import Connection, Connections, Tried, endpoint, explained
from fastagi.pbx.amiwire import (
    AmiDenied,
    AmiError,
    AmiLost,
    AmiRefused,
    Framer,
    Login,
    Message,
    fault,
    login_fields,
    missing_rights,
    render,
)

__all__ = ["Ami", "AmiDenied", "AmiError", "AmiLost", "AmiRefused", "Login", "try_login"]

FIRST_PAUSE: Final = 0.2  # seconds, doubled by each failure in a row
LONGEST_PAUSE: Final = 10.0  # seconds
LONGEST_RING: Final = 86400.0  # seconds
REFUSED_PAUSE: Final = 180.0  # seconds; fail2ban bans whoever fails five times in ten minutes, but not itself
BOOTED_WITHIN: Final = 5.0  # seconds in which it is not said why ``up`` failed
STEADY_AFTER: Final = 10.0  # seconds that a connection lasts to count as a success

_log = Logger()


class Ami:
    """One Asterisk's manager interface, connected again whenever the connection is lost."""

    def __init__(
        self,
        reactor: Any,
        login: Login,
        *,
        up: Callable[["Ami"], Coroutine[Any, Any, None]],
        device_state: Callable[[str, str], None],
        extension_state: Callable[[str, str], None],
        log: Callable[[str], None],
    ) -> None:
        """``up(self)`` runs for as long as a connection lasts, once it is logged in and events flow: it is
        cancelled when the connection is lost. If it fails, it is run again, after a pause.

        ``device_state(device, state)`` is called for each change, ``extension_state(extension, context)``
        when a hint's state changes; in the order in which Asterisk tells, also while ``up`` waits. Both are
        hints, not facts, for a caller can write events (see `amiwire`): what decides something is to be asked
        for. With ``eventfilter(action(include),name(DeviceStateChange)) =`` in manager.conf he cannot.
        """
        self._reactor = reactor
        self._login = login
        self._up = up
        self._listeners: dict[str, tuple[Callable[[str, str], None], tuple[str, ...]]] = {
            "DeviceStateChange": (device_state, ("Device", "State")),
            "ExtensionStatus": (extension_state, ("Exten", "Context")),
        }
        self._log = log
        self._service: Any = None
        self._connection: Connection | None = None
        self._connected_at: float | None = None
        self._failures = 0
        self._refused = False
        self._said = ""

    # Life

    def start(self) -> None:
        """Raises `AmiError` when the certificates cannot be read; whatever else fails is tried again."""
        way: Any = Tried(endpoint(self._reactor, self._login), self._complain)
        factory: Any = Connections(self._new_connection)
        self._service = ClientService(way, factory, self._retry, self._reactor)
        self._service.startService()

    def stop(self) -> "Deferred[None]":
        """Disconnect for good; fires when that is done."""
        service, self._service = self._service, None
        if service is None:
            return succeed(None)
        if self._connection is not None:
            self._connection.ends_soon()
        return maybeDeferred(service.stopService)

    @property
    def connected(self) -> bool:
        """Logged in, as far as we know."""
        return self._connected_at is not None

    # Actions; each raises `AmiError` when it failed, was refused or timed out, or when there is no connection

    async def ask(self, expression: str) -> str:
        """The value of a global variable or of a function that needs no channel, such as
        ``DEVICE_STATE(PJSIP/2000)``; empty too if there is no such thing."""
        return (await self._act("Getvar", {"Variable": expression})).get("Value", "")

    async def set(self, variable: str, value: str) -> None:
        """The same the other way: ``DEVICE_STATE(Custom:CC1000)`` to ``INUSE``."""
        await self._act("Setvar", {"Variable": variable, "Value": value})

    async def hang_up(self, channel: str) -> None:
        """Just this channel."""
        if channel.startswith("/"):
            raise AmiError("Hangup is not sent: Asterisk would read its Channel as a pattern")
        await self._act("Hangup", {"Channel": channel})

    async def originate(self, channel: str, context: str, exten: str, timeout: float) -> None:
        """Call ``channel``, for ``timeout`` seconds; whoever answers there goes to ``exten`` in ``context``.

        Returns when Asterisk has accepted it, not when it has succeeded.
        """
        if not 0.001 <= timeout <= LONGEST_RING:
            raise AmiError(f"Originate is not sent: {timeout} is no number of seconds to ring")
        fields = {
            "Channel": channel,
            "Context": context,
            "Exten": exten,
            "Priority": "1",
            "Timeout": str(round(timeout * 1000)),
            "Async": "true",
        }
        await self._act("Originate", fields)

    async def device_states(self) -> dict[str, str]:
        """Every device that Asterisk knows a state of, ``PJSIP/...``, ``Custom:...``, and that state."""
        listed: dict[str, str] = {}
        await self._act("DeviceStateList", {}, listed)
        return listed

    async def _act(
        self, action: str, fields: Mapping[str, str], listed: dict[str, str] | None = None
    ) -> Message:
        if self._connection is None or not self.connected:
            raise AmiLost(f"{action} is not sent: AMI is not connected")
        return await self._connection.act(action, fields, listed)

    # What the connections tell

    def _new_connection(self) -> Connection:
        self._connection = Connection(
            self._reactor, self._login, run=self._run, event=self._event, lost=self._lost
        )
        return self._connection

    async def _run(self) -> None:
        connected = self._connected_at = self._reactor.seconds()
        self._said = ""
        self._log(f"AMI connected to {self._login.where} as {self._login.username}")
        connection, failures = self._connection, 0
        while self._connection is connection:
            began = self._reactor.seconds()
            try:
                return await self._up(self)
            except CancelledError:
                raise
            except FastagiError as error:
                why = str(error)
            except Exception:
                _log.failure("What runs over AMI failed.")
                why = ""
            now = self._reactor.seconds()
            if now - began >= STEADY_AFTER:
                failures, self._said = 0, ""
            if why and now - connected >= BOOTED_WITHIN:
                self._complain(why)
            failures += 1
            await deferLater(self._reactor, _pause(failures))

    def _event(self, message: Message) -> None:
        listener, keys = self._listeners.get(message["Event"], (None, ()))
        if not self.connected or listener is None or not all(key in message for key in keys):
            return
        try:
            listener(*(message[key] for key in keys))
        except Exception:  # a fault of ours; the events behind this one shall come through
            _log.failure("An AMI event could not be handled.")

    def _lost(self, why: str) -> None:
        began, self._connected_at = self._connected_at, None
        self._refused = self._connection is not None and self._connection.refused
        self._connection = None
        if began is not None and self._reactor.seconds() - began >= STEADY_AFTER:
            self._failures = 0
        self._complain(why)

    def _complain(self, why: str) -> None:
        if self._service is not None and why != self._said:
            self._said = why
            self._log(f"AMI at {self._login.where}: {why}")

    def _retry(self, _: int) -> float:
        self._failures += 1
        refused, self._refused = self._refused, False
        return REFUSED_PAUSE if refused and not self._login.local else _pause(self._failures)


def _pause(failures: int) -> float:
    """Seconds until the next try, after so many failures in a row."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(10, failures - 1)))


# -- trying it, for a person who waits ---------------------------------------------------------------------


def try_login(login: Login, timeout: float = 5.0) -> str:
    """Log in, look what this user may do, and leave; blocks for ``timeout`` seconds at most, if ``host`` is
    an address.

    Answers a sentence on what is wrong; empty: nothing is. Whether events would come (read=call) is not seen.
    """
    end = time.monotonic() + timeout
    try:
        with socket.create_connection((login.host, login.port), timeout) as plain:
            plain.settimeout(max(0.01, end - time.monotonic()))
            with _tls(plain, login) if login.tls else plain as connection:
                talk = _Talk(connection, end)
                challenge = talk.act("Challenge", {"AuthType": "MD5"})
                talk.act("Login", {**login_fields(login, challenge), "Events": "off"})
                lacks = missing_rights(talk.act("ListCommands", {}))
    except (AmiError, OSError, UnicodeError) as error:
        lacks = explained(error)
    return f"AMI at {login.where}: {lacks}" if lacks else ""


def _tls(plain: socket.socket, login: Login) -> socket.socket:
    import ssl  # only if it is asked for

    try:
        context = ssl.create_default_context(cafile=login.ca)
    except OSError as error:
        raise AmiError(f"{login.ca} holds no certificates that can be read: {error.strerror}") from None
    return context.wrap_socket(plain, server_hostname=login.host)


class _Talk:
    """A question, its answer, the next question."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection = connection
        self._end = end
        self._framer = Framer()
        self._serial = 0
        while not self._framer.greeted:
            self._read()

    def act(self, action: str, fields: Mapping[str, str]) -> Message:
        self._serial += 1
        self._connection.sendall(render(action, str(self._serial), fields))
        while True:
            for message in self._read():
                if message.get("Response") and message.get("ActionID") == str(self._serial):
                    if (refusal := fault(action, message)) is not None:
                        raise refusal
                    return message

    def _read(self) -> list[Message]:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionResetError
        return list(self._framer.feed(data))
