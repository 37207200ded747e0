"""The composition root: one flat function that builds the daemon from its parts."""

import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from fastagi import control
from fastagi.agi import Server, deadline, listen
from fastagi.agi.routes import ROUTES, answer
from fastagi.agi.server import Session
from fastagi.completion.model import Request, State
from fastagi.completion.ports import Timer
from fastagi.completion.service import CompletionService
from fastagi.config import Ami as AmiConfig
from fastagi.config import Config, resolved
from fastagi.errors import ConfigError, Refused
from fastagi.pbx.ami import Ami, Login
from fastagi.pbx.amiwatch import AmiWatch, Originates
from fastagi.pbx.callfile import CallFiles, LocalAgent, Spool, SpoolThread, recall_name
from fastagi.pbx.devicestate import DeviceStates
from fastagi.pbx.lamp import Lamps
from fastagi.pbx.poll import Poller
from fastagi.pbx.watch import Watcher
from fastagi.sip.callcompletion import CallCompletion
from fastagi.sip.element import BRANCH, Element
from fastagi.sip.transport import Link
from fastagi.sip.trunk import Address
from fastagi.store.requests import Store

SESSION_DEADLINE = 5.0
"""Seconds that one AGI session may take; the dialplan itself waits 2."""

_log = Logger()


class ReactorClock:
    """The wall clock at our start, plus the reactor's seconds since then."""

    def __init__(self, reactor: Any, wall: Callable[[], float] = time.time) -> None:
        self._reactor = reactor
        self._offset = wall() - reactor.seconds()

    def now(self) -> float:
        return float(self._offset + self._reactor.seconds())

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        return _ReactorTimer(self._reactor.callLater(max(0.0, when - self.now()), call))


class _ReactorTimer:
    def __init__(self, delayed: Any) -> None:
        self._delayed = delayed

    def cancel(self) -> None:
        if self._delayed.active():
            self._delayed.cancel()


def new_id() -> str:
    """15 random digits: the id of a recall, or a poll token. Who cannot guess it cannot use it."""
    return f"{secrets.randbelow(9 * 10**14) + 10**14}"


def new_token() -> str:
    """128 random bits, for the tags, branches and Call-IDs of SIP."""
    return secrets.token_hex(16)


def own_address(to: Address) -> str:
    """The IP address from which this machine sends to that one; nothing is sent."""
    family = socket.AF_INET6 if ":" in to.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(to)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError([f"there is no way to {to}: {error.strerror}"]) from None


def log(line: str) -> None:
    """One event, one line, whatever is in it."""
    _log.info("{line}", line=line.replace("\n", " "))


def ask(method: Callable[..., None], *args: object) -> "Deferred[Any]":
    """A method of the service that answers through ``done``, as something to await."""
    answered: Deferred[Any] = Deferred()

    def done(answer: object) -> None:
        if answered.called:
            return
        if isinstance(answer, Refused):
            answered.errback(answer)
        else:
            answered.callback(answer)

    method(*args, done)
    return answered


def manager(reactor: Any, ami: AmiConfig, watch: AmiWatch) -> Ami:
    """The AMI client of this configuration; raises `ConfigError`."""
    return Ami(
        reactor,
        Login(ami.host, ami.port, ami.username, ami.secret(), ami.tls, ami.ca),
        up=watch.up,
        device_state=watch.device_state,
        extension_state=watch.extension_state,
        log=log,
    )


def start(config: Config, reactor: Any) -> Callable[[], "Deferred[None]"]:
    """Build and start everything on ``reactor``; answers what stops it all in order.

    Raises `FastagiError` (a sentence) when a part cannot be had: the database, the port, the socket.
    """
    # Twisted counts by the wall clock; a step of that must move no timer.
    reactor.seconds = time.monotonic
    store = Store(config.store, reactor.callFromThread)
    clock = ReactorClock(reactor)
    directory = config.directory
    spool = SpoolThread(reactor, Spool(config.spool, config.temp))

    states = DeviceStates(
        changed=lambda seen: service.levels(seen), lost=lambda: service.levels_lost(), log=log
    )
    lamps = Lamps(dark=lambda extension: service.lamps.dark(extension))
    watcher = Watcher(reactor, states, lamps, gone=lambda recall: service.call_gone(recall))
    poller = Poller(reactor, spool, watcher, new_token=new_id, log=log)
    ami = manager(reactor, config.ami, AmiWatch(watcher)) if config.ami else None
    agent = LocalAgent(
        Originates(ami) if ami and config.originate else CallFiles(spool),
        ring=lambda request: service.ring(request),
        hang_up=watcher.hang_up,
        undelivered=lambda recall, why: service.recall_undelivered(recall, why),
        log=log,
    )
    trunks = {trunk.name: resolved(trunk, own_address) for trunk in config.trunks}
    beyond = CallCompletion(trunks, directory, clock, new_token, log)
    service = CompletionService(
        store=store,
        clock=clock,
        directory=directory,
        agent=agent,
        monitor=watcher,
        lamp=watcher,
        limits=config.limits,
        new_recall_id=new_id,
        log=log,
        beyond=beyond,
    )
    links = {name: Link(reactor, trunk, log) for name, trunk in trunks.items()}
    for name, link in links.items():
        link.element = Element(trunks[name], beyond, clock, link.send, log, lambda: BRANCH + new_token())
    beyond.join(service, {name: link.element for name, link in links.items()})

    def script(name: str) -> Callable[[Session], Coroutine[Any, Any, Mapping[str, str]]]:
        async def run(session: Session) -> Mapping[str, str]:
            return await answer(name, session, service, ask, log)

        return run

    scripts: dict[str, Any] = {name: script(name) for name in ROUTES}

    @deadline(None)
    async def poll(session: Session) -> None:
        await poller.script(session)

    scripts["poll"] = poll
    server = Server(scripts, allow=config.allow, deadline=SESSION_DEADLINE)

    offers, requests, last_id = store.load()
    if not config.originate:
        _remove_leftovers(spool.spool, requests)
    # Before anything is begun: a server that cannot listen rings nobody.
    # First the trunks: where the AGI port answers, calls pass.
    for link in links.values():
        link.start()
    try:
        port: Any = listen(reactor, config.listen_host, config.listen_port, server)
    except CannotListenError as error:
        where = f"{config.listen_host}:{config.listen_port}"
        raise ConfigError([f"nobody can listen on {where}: {error.socketError.strerror}"]) from error
    stop_control = control.listen(reactor, config.control, service, beyond.probe)
    spool.start()
    if not config.originate:
        watcher.changed = poller.look
    if ami:
        ami.start()
    service.start(offers, requests, last_id, store.kept())
    # Said when it is true that a signal stops us in order.
    reactor.callWhenRunning(
        log, f"fastagi answers on {config.listen_host}:{config.listen_port}; open requests: {len(requests)}"
    )

    async def stop() -> None:
        await _maybe(port.stopListening())
        try:
            await _maybe(stop_control())
        except OSError as error:
            log(f"the control socket could not be removed: {error}")
        for link in links.values():
            link.element.close()
            await _maybe(link.stop())
        poller.stop()
        watcher.stop()
        if ami:
            await ami.stop()
        server.close()
        spool.stop()
        store.close()

    return lambda: Deferred.fromCoroutine(stop())


async def _maybe(result: Any) -> None:
    if isinstance(result, Awaitable):
        await result


def _remove_leftovers(spool: Spool, requests: list[Request]) -> None:
    """Files of ours that nobody waits for would be surprise calls."""
    under_way = {recall_name(r.recall_id) for r in requests if r.state is not State.QUEUED and r.taken}
    for name in spool.remove_leftovers(under_way):
        log(f"removed the left-over call file {name}")


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    from twisted.internet import reactor as installed  # on import: only a running server may do that

    reactor: Any = installed
    os.umask(0o027)
    reactor.addSystemEventTrigger("before", "shutdown", start(config, reactor))
    reactor.run()
