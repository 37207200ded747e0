"""One connection to Asterisk's manager interface, and the way to it.

Things to keep in mind: a connection that takes nothing any more is silent too, so what waits to be sent is
bounded by DEAD_AFTER and MAX_WAITING.
"""

import re
import secrets
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

from twisted.internet import error as errors
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastagi.pbx.amiwire import (
    AmiError,
    AmiLost,
    AmiRefused,
    Framer,
    Login,
    Message,
    fault,
    login_fields,
    render,
    shown,
)

CONNECT_WITHIN: Final = 5.0  # seconds
ANSWER_WITHIN: Final = 5.0  # seconds
PING_AFTER: Final = 3.0  # seconds of silence
DEAD_AFTER: Final = 8.0  # seconds of silence
END_WITHIN: Final = 1.0  # seconds for the last bytes to go out when we stop
MAX_WAITING: Final = 1000  # actions
MAX_LISTED: Final = 100_000  # devices
MISFIT: Final = "is this the port of a manager interface, and tls set as it is there?"
CERTIFICATE: Final = re.compile(b"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)

_log = Logger()


@dataclass(slots=True)
class _Action:
    """One that waits for its answer, and for its list, if it has one."""

    name: str
    listed: dict[str, str] | None
    answer: "Deferred[Message]" = field(default_factory=Deferred)


class Connection(Protocol):
    """One, from its greeting until it is lost."""

    transport: Any

    def __init__(
        self,
        reactor: Any,
        login: Login,
        *,
        run: Callable[[], Coroutine[Any, Any, None]],
        event: Callable[[Message], None],
        lost: Callable[[str], None],
    ) -> None:
        """``run`` when logged in, ``event`` for each that answers nothing of ours, ``lost`` with a reason."""
        self._reactor = reactor
        self._login = login
        self._run = run
        self._event = event
        self._lost = lost
        self._framer = Framer()
        self._greeted: Deferred[None] = Deferred()
        self._life: Deferred[None] | None = None
        # Nobody whose text is shown in an event can forge an answer: the ids are not to be guessed.
        self._token = secrets.token_hex(8)
        self._serial = 0
        self._waiting: dict[str, _Action] = {}
        self._heard = 0.0
        self._alarm: Any = None
        self._ending: Any = None
        self._why = ""
        """Why we gave it up; empty: we did not."""
        self.refused = False
        """Asterisk did not let us in."""

    def connectionMade(self) -> None:
        if self.transport.getHost() == self.transport.getPeer():
            # Nobody listens, and Linux gave our socket the very port that it was to connect to.
            self._drop("nobody listens there")
            return
        self.transport.setTcpNoDelay(True)
        self._life = Deferred.fromCoroutine(self._live())
        self._life.addErrback(self._failed)

    async def _live(self) -> None:
        self._greeted.addTimeout(ANSWER_WITHIN, self._reactor)
        try:
            await self._greeted
        except TooLate:
            raise AmiError(f"it says nothing: {MISFIT}") from None
        challenge = await self.act("Challenge", {"AuthType": "MD5"})
        await self.act("Login", login_fields(self._login, challenge))
        self._watch()  # so far each step had its own deadline
        await self._run()

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, AmiError):
            self.refused = isinstance(failure.value, AmiRefused)
            self._drop(str(failure.value))
        elif not isinstance(failure.value, CancelledError):
            _log.failure("The AMI connection failed.", failure)
            self._drop("it failed")

    # Actions

    async def act(
        self, name: str, fields: Mapping[str, str], listed: dict[str, str] | None = None
    ) -> Message:
        """Its answer; devices that are listed behind that go into ``listed``."""
        if len(self._waiting) >= MAX_WAITING:
            raise AmiError(f"{name} is not sent: {MAX_WAITING} actions wait for Asterisk")
        self._serial += 1
        action_id = f"{self._token}-{self._serial}"
        data = render(name, action_id, fields)
        action = self._waiting[action_id] = _Action(name, listed)
        action.answer.addTimeout(ANSWER_WITHIN, self._reactor)
        self.transport.write(data)
        try:
            return await action.answer
        except TooLate:
            raise AmiError(f"Asterisk did not answer {name} within {ANSWER_WITHIN:g} s") from None
        finally:
            del self._waiting[action_id]

    def _answered(self, message: Message) -> None:
        action = self._waiting.get(message.get("ActionID", ""))
        if action is None:
            return
        if (refusal := fault(action.name, message)) is not None:
            action.answer.errback(refusal)
        elif action.listed is None:
            action.answer.callback(message)

    def _listed(self, message: Message) -> None:
        action = self._waiting.get(message["ActionID"])
        if action is None or action.listed is None:
            return
        if message["Event"] == "DeviceStateListComplete":
            action.answer.callback(message)
        elif "Device" in message and "State" in message:
            action.listed[message["Device"]] = message["State"]
            if len(action.listed) > MAX_LISTED:
                action.answer.errback(AmiError(f"Asterisk lists more than {MAX_LISTED} devices"))

    # Reading

    def dataReceived(self, data: bytes) -> None:
        self._heard = self._reactor.seconds()
        try:
            for message in self._framer.feed(data):
                self._receive(message)
        except AmiError as error:
            self._drop(str(error))
            return
        if self._framer.greeted and not self._greeted.called:
            self._greeted.callback(None)

    def _receive(self, message: Message) -> None:
        if next(iter(message)) == "Response":
            self._answered(message)
        elif "ActionID" in message:
            self._listed(message)
        else:
            self._event(message)

    # Whether it lives

    def _watch(self) -> None:
        silent = self._reactor.seconds() - self._heard
        if silent >= DEAD_AFTER:
            self._drop(f"no sign of life for {DEAD_AFTER:g} s")
            return
        if silent >= PING_AFTER:
            # Whatever is heard will do; that nothing is heard is seen here.
            Deferred.fromCoroutine(self.act("Ping", {})).addErrback(lambda _: None)
            nearest = min(PING_AFTER, DEAD_AFTER - silent)
        else:
            nearest = PING_AFTER - silent
        self._alarm = self._reactor.callLater(nearest, self._watch)

    def _drop(self, why: str) -> None:
        if not self._why:
            self._why = why
            self.transport.abortConnection()

    def ends_soon(self) -> None:
        """We are going down: what is unsent is not waited for any longer."""
        self._ending = self._reactor.callLater(END_WITHIN, self._drop, "it does not end")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._why:
            self._why = explained(reason.value)
            if not self._framer.greeted and isinstance(reason.value, errors.ConnectionClosed):
                self._why += f" at once: {MISFIT}"
        for alarm in self._alarm, self._ending:
            if alarm is not None and alarm.active():
                alarm.cancel()
        self._lost(self._why)
        if self._life is not None:
            self._life.cancel()
        for action in tuple(self._waiting.values()):
            action.answer.errback(AmiLost(f"{action.name} was not answered: the AMI connection is lost"))


class Connections(Factory):
    noisy = False

    def __init__(self, build: Callable[[], Connection]) -> None:
        self._build = build

    def buildProtocol(self, addr: Any) -> Connection:
        return self._build()


# -- the way there: the only difference between TCP and TLS ------------------------------------------------


class Tried:
    """Tells why there is no connection."""

    def __init__(self, endpoint: Any, failed: Callable[[str], None]) -> None:
        self._endpoint = endpoint
        self._failed = failed

    def connect(self, factory: Any) -> "Deferred[Any]":
        connecting: Deferred[Any] = maybeDeferred(self._endpoint.connect, factory)
        return connecting.addErrback(self._note)

    def _note(self, failure: Failure) -> Failure:
        self._failed(explained(failure.value))
        return failure


def endpoint(reactor: Any, login: Login) -> Any:
    try:
        version = ip_address(login.host).version
    except ValueError:
        kind: Any = HostnameEndpoint
    else:
        kind = TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint
    plain = kind(reactor, login.host, login.port, CONNECT_WITHIN)
    return _with_tls(reactor, plain, login) if login.tls else plain


def _with_tls(reactor: Any, plain: Any, login: Login) -> Any:
    # Only if it is asked for.
    import twisted.internet.ssl

    ssl: Any = twisted.internet.ssl
    trust = None
    if login.ca is not None:
        try:
            found = [ssl.Certificate.loadPEM(one) for one in CERTIFICATE.findall(login.ca.read_bytes())]
        except OSError as error:
            raise AmiError(f"{login.ca} cannot be read: {error.strerror}") from None
        except Exception:  # OpenSSL's own, which are no others' kin
            found = []
        if not found:
            raise AmiError(f"{login.ca} holds no certificates, or a broken one")
        trust = ssl.trustRootFromCertificates(found)
    try:
        return wrapClientTLS(ssl.optionsForClientTLS(login.host, trust), plain, reactor)
    except UnicodeError:
        raise AmiError(f"{shown(login.host)} is no name of a host") from None


_REASONS: Final = (
    ((errors.ConnectionRefusedError, ConnectionRefusedError), "nobody listens there"),
    # A host that is off gives now the one, now the other of these.
    ((errors.ConnectError, TimeoutError), "no answer"),
    ((errors.DNSLookupError, socket.gaierror, UnicodeError), "there is no such host"),
    ((errors.ConnectionClosed, ConnectionError), "the connection was closed"),
)


def explained(error: BaseException | None) -> str:
    """Why a connection was lost or could not be had, Twisted's or one of the standard library."""
    for kinds, sentence in _REASONS:
        if isinstance(error, kinds):
            return sentence
    if isinstance(error, AmiError):
        return str(error)
    # TLS: first by pyOpenSSL and service_identity, then by the standard library; none is imported for this.
    if type(error).__name__ == "VerificationError":
        return "TLS failed: the certificate is for another host"
    if error is not None and error.args and isinstance(error.args[0], list):
        return shown(f"TLS failed: {', '.join(str(entry[-1]) for entry in error.args[0])}")
    if isinstance(error, OSError) and hasattr(error, "reason"):
        return shown(f"TLS failed: {getattr(error, 'verify_message', error.reason)}")
    return shown(f"{type(error).__name__}: {error}")
