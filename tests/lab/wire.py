"""The wire between two SIP elements: passes on what either sends, keeps it, and loses or delays what a test says.

    wire = Wire(a=(("127.0.1.3", 5070), ("127.0.1.9", 5070)), b=(("127.0.2.3", 5070), ("127.0.2.9", 5070)))
    with wire:
        lost = wire.lose("NOTIFY", times=2)
        wire.wait("NOTIFY", way="a>b", body="cc-state: ready")

Each side has its own address and the one at which it meets the wire, which it takes for its peer.  Over TCP
every connection of one side becomes one to the other, which comes from the wire's address too.

Things to keep in mind: the wire stands in no Via.  An answer that is sent to the port of a Via and not to where
the request came from finds its way only if all four addresses have one port; hosts tell them apart.
"""

from __future__ import annotations

import heapq
import itertools
import re
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict, Unpack

from tests.lab.install import LabError
from tests.lab.phone import Address, Message

Ways = {"a": "b>a", "b": "a>b"}  # by whom it reaches
Parts = list[tuple[float, bytes]]  # what is passed on instead of a message: after so many seconds, this
LARGEST = 65536
IDLE = 0.1  # seconds; the wire looks so often whether it is closed


class Which(TypedDict, total=False):
    """Which messages are meant.  Without a status, a method or an event means requests only."""

    event: str
    way: str  # "a>b" or "b>a"
    status: int  # of a response; the method is then that of its request
    body: str  # a part of it
    where: Callable[[Message], bool]


def fits(message: Message, method: str, which: Which) -> bool:
    status, event = which.get("status", 0), which.get("event", "")
    if (method or event or status) and message.status != status:
        return False
    return (
        method in ("", message.method)
        and event in ("", message.get("Event").partition(";")[0].strip())
        and which.get("way", message.direction) == message.direction
        and which.get("body", "") in message.body
        and ("where" not in which or which["where"](message))
    )


@dataclass
class Fault:
    """What befalls the next messages of a kind; ``met`` are those it befell."""

    method: str
    which: Which
    instead: Callable[[bytes], Parts]
    left: int
    met: list[Message] = field(default_factory=list)


class Wire:
    """Keeps every message in the order in which they came, the lost ones too; a direction is ``a>b`` or ``b>a``."""

    def __init__(
        self, a: tuple[Address, Address], b: tuple[Address, Address], transport: str = "udp"
    ) -> None:
        self.faults: list[str] = []  # tracebacks of the wire's thread: empty, or the wire has a bug
        self._messages: list[Message] = []
        self._troubles: list[Fault] = []
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        carrier = _Datagrams if transport == "udp" else _Connections
        self._carrier = carrier({"a": a, "b": b}, self._came)
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)

    # Life

    def start(self) -> Wire:
        self._thread.start()
        return self

    def close(self) -> None:
        self._closed = True
        if self._thread.is_alive():
            self._thread.join()
        self._carrier.close()

    def __enter__(self) -> Wire:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def clear(self) -> None:
        """Nothing has passed yet, and nothing befalls what will."""
        with self._changed:
            self._messages.clear()
            self._troubles.clear()
            self.faults.clear()

    # What passed

    def messages(
        self, method: str = "", *, after: Message | None = None, **which: Unpack[Which]
    ) -> list[Message]:
        """Those that fit, of all so far or of those after one."""
        with self._changed:
            found = self._messages[self._messages.index(after) + 1 if after else 0 :]
            return [message for message in found if fits(message, method, which)]

    def wait(
        self,
        method: str = "",
        *,
        after: Message | None = None,
        nth: int = 1,
        timeout: float = 5.0,
        **which: Unpack[Which],
    ) -> Message:
        """The nth that fits, once it has come."""

        def found() -> list[Message]:
            return self.messages(method, after=after, **which)

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= nth, timeout):
                asked = f"{method} {which or ''}"
                raise AssertionError(f"not on the wire in {timeout:g} s: {asked}\n{self.transcript()}")
            return found()[nth - 1]

    def answer(self, request: Message, timeout: float = 5.0) -> Message:
        """The final response to a request that passed."""

        def answers(message: Message) -> bool:
            same = message.cseq == request.cseq and message.get("Call-ID") == request.get("Call-ID")
            return same and message.status >= 200

        return self.wait(where=answers, after=request, timeout=timeout)

    def transcript(self) -> str:
        """All that passed, a line each with the milliseconds since the first; bodies of call completion too."""
        with self._changed:
            return "\n".join(_line(message, self._messages[0].at) for message in self._messages)

    # What befalls the next of them; times 0: all until clear() or mend()

    def lose(self, method: str = "", *, times: int = 1, **which: Unpack[Which]) -> Fault:
        return self.change(lambda raw: [], method, times=times, **which)

    def delay(self, seconds: float, method: str = "", *, times: int = 1, **which: Unpack[Which]) -> Fault:
        return self.change(lambda raw: [(seconds, raw)], method, times=times, **which)

    def double(self, method: str = "", *, times: int = 1, **which: Unpack[Which]) -> Fault:
        return self.change(lambda raw: [(0, raw), (0, raw)], method, times=times, **which)

    def cut(self) -> Fault:
        """Everything is lost until mend()."""
        return self.lose(times=0)

    def change(
        self, instead: Callable[[bytes], Parts], method: str = "", *, times: int = 1, **which: Unpack[Which]
    ) -> Fault:
        """Passes on what ``instead`` makes of a message: pairs of seconds to wait and bytes to send."""
        fault = Fault(method, which, instead, times or -1)
        with self._changed:
            self._troubles.append(fault)
        return fault

    def mend(self) -> None:
        with self._changed:
            self._troubles.clear()

    def send(self, to: str, raw: bytes) -> None:
        """Sends bytes of the test's own to ``a`` or ``b``, who takes them for its peer's."""
        with self._changed:
            self._messages.append(Message.of(Ways[to], self._carrier.ends[to][0], raw))
            self._carrier.send(to, raw)
            self._changed.notify_all()

    # The wire's thread

    def _run(self) -> None:
        while not self._closed:
            try:
                self._carrier.turn(self._changed)
            except Exception:
                self.faults.append(traceback.format_exc())

    def _came(self, to: str, raw: bytes) -> Parts:
        """Keeps a message; gives what is to be passed on in its place."""
        message = Message.of(Ways[to], self._carrier.ends[to][0], raw)
        self._messages.append(message)
        self._changed.notify_all()
        for fault in self._troubles:
            if fault.left and fits(message, fault.method, fault.which):
                fault.left -= 1
                fault.met.append(message)
                return fault.instead(raw)
        return [(0, raw)]


def _line(message: Message, began: float) -> str:
    what = message.start or repr(message.raw[:60])
    what += f" ({message.method})" if message.status else f" {message.get('Event')}"
    told = "".join(f" | {line}" for line in message.body.split("\r\n") if line.startswith("cc-"))
    basic = re.search("<basic>.*</basic>", message.body)
    return f"{(message.at - began) * 1000:9.1f} {message.direction} {what.strip()}{told}{basic[0] if basic else ''}"


# -- how it is carried -----------------------------------------------------------------------------------------

Came = Callable[[str, bytes], Parts]


class _Carrier:
    """What waits to be sent, and one selector; ``turn`` is one round of the thread."""

    def __init__(self, ends: dict[str, tuple[Address, Address]], came: Came) -> None:
        self.ends = ends
        self._came = came
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []  # when, unique, what
        self._order = itertools.count()
        self._selector = selectors.DefaultSelector()

    def turn(self, lock: threading.Condition) -> None:
        with lock:
            pause = min(IDLE, max(0.0, self._waiting[0][0] - time.monotonic())) if self._waiting else IDLE
        ready = self._selector.select(pause)
        with lock:
            for key, _ in ready:
                key.data()
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                heapq.heappop(self._waiting)[2]()

    def pass_on(self, to: str, raw: bytes, send: Callable[[bytes], object]) -> None:
        for after, part in self._came(to, raw):
            job: Callable[[], object] = partial(send, part)
            heapq.heappush(self._waiting, (time.monotonic() + after, next(self._order), job))

    def send(self, to: str, raw: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


class _Datagrams(_Carrier):
    def __init__(self, ends: dict[str, tuple[Address, Address]], came: Came) -> None:
        super().__init__(ends, came)
        self._sockets = {}
        for side, (_, here) in ends.items():
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.bind(here)
            self._sockets[side] = one
            self._selector.register(one, selectors.EVENT_READ, partial(self._receive, side))

    def _receive(self, side: str) -> None:
        raw, source = self._sockets[side].recvfrom(LARGEST)
        other = "b" if side == "a" else "a"
        if source == self.ends[side][0]:
            self.pass_on(other, raw, partial(self.send, other))

    def send(self, to: str, raw: bytes) -> None:
        with suppress(OSError):  # nobody is there: lost
            self._sockets[to].sendto(raw, self.ends[to][0])


class _Connections(_Carrier):
    """Connections are joined in pairs, one of each side; what ends one ends the other."""

    def __init__(self, ends: dict[str, tuple[Address, Address]], came: Came) -> None:
        super().__init__(ends, came)
        self._latest: dict[str, socket.socket] = {}  # by whom it leads to
        for side, (_, here) in ends.items():
            listener = socket.create_server(here)
            self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, side, listener))

    def _accept(self, side: str, listener: socket.socket) -> None:
        near, source = listener.accept()
        other = "b" if side == "a" else "a"
        try:
            if source[0] != self.ends[side][0][0]:
                raise OSError(f"{source[0]} is nobody here")
            there, here = self.ends[other]
            far = socket.create_connection(there, timeout=1, source_address=(here[0], 0))
        except OSError:
            near.close()
            return
        near.settimeout(1)
        for one in near, far:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._join(near, far, other)
        self._join(far, near, side)

    def _join(self, source: socket.socket, target: socket.socket, to: str) -> None:
        self._latest[to] = target
        kept = bytearray()
        call = partial(self._receive, source, target, to, kept)
        self._selector.register(source, selectors.EVENT_READ, call)

    def _receive(self, source: socket.socket, target: socket.socket, to: str, kept: bytearray) -> None:
        if source.fileno() < 0:
            return
        try:
            data = source.recv(LARGEST)
        except OSError:
            data = b""
        if not data:
            self._part(source, target)
        kept += data
        for raw in _whole(kept):
            send = partial(self._put, target)
            if raw.strip():
                self.pass_on(to, raw, send)
            else:
                send(raw)

    def _part(self, *pair: socket.socket) -> None:
        for one in pair:
            if one.fileno() >= 0:
                self._selector.unregister(one)
                one.close()

    @staticmethod
    def _put(target: socket.socket, raw: bytes) -> None:
        with suppress(OSError):
            target.sendall(raw)

    def send(self, to: str, raw: bytes) -> None:
        """On the connection to it that was made last."""
        if to not in self._latest or self._latest[to].fileno() < 0:
            raise LabError(f"no connection leads to {to}")
        self._put(self._latest[to], raw)


def _whole(kept: bytearray) -> list[bytes]:
    """Takes the messages that are complete, and the blank lines between them, from the front of what came."""
    found = []
    while kept:
        blank = re.match(rb"(\r\n)+", kept)
        head = kept.find(b"\r\n\r\n")
        if blank:
            end = blank.end()
        elif head < 0:
            break
        else:
            length = re.search(rb"(?im)^(?:content-length|l)[ \t]*:[ \t]*(\d+)", kept[:head])
            end = head + 4 + (int(length[1]) if length else 0)
        if end > len(kept):
            break
        found.append(bytes(kept[:end]))
        del kept[:end]
    return found
