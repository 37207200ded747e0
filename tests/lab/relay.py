"""Asterisk's manager interface on a wire that can be cut and mended, and seen through other eyes."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import select
import selectors
import socket
import threading
import time
from pathlib import Path

from tests.lab.asterisk import AMI_SECRET, AMI_USER

Address = tuple[str, int]

IN_MOVED_TO = 0x80


class Observer:
    """Somebody else who is logged in at AMI, and who watches the spool: notes when he has seen what.

    Events, and the names of files that were moved into the folder.
    """

    def __init__(self, address: Address, folder: Path) -> None:
        # time.monotonic(), and what came; from each of the two, since either may come in pieces.
        self._events: list[tuple[float, bytes]] = []
        self._names: list[tuple[float, bytes]] = []
        self._ami = socket.create_connection(address, 5)
        self._ami.sendall(f"Action: Login\r\nUsername: {AMI_USER}\r\nSecret: {AMI_SECRET}\r\n\r\n".encode())
        libc = ctypes.CDLL(None, use_errno=True)
        self._folder = int(libc.inotify_init1(0))
        if self._folder < 0 or libc.inotify_add_watch(self._folder, os.fsencode(folder), IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """What was seen so far is not what a test looks at."""
        self._events.clear()
        self._names.clear()

    def when(self, what: bytes) -> float | None:
        """When all that this regular expression matches was first seen; None: it was not yet."""
        for pieces in (list(self._events), list(self._names)):
            if found := re.search(what, b"".join(data for _, data in pieces)):
                ends = itertools.accumulate(len(data) for _, data in pieces)
                return next(at for (at, _), end in zip(pieces, ends, strict=True) if end >= found.end())
        return None

    def close(self) -> None:
        self._closed = True
        self._thread.join()
        self._ami.close()
        os.close(self._folder)

    def _run(self) -> None:
        while not self._closed:
            ready, _, _ = select.select([self._ami.fileno(), self._folder], [], [], 0.2)
            now = time.monotonic()
            if self._ami.fileno() in ready:
                self._events.append((now, self._ami.recv(65536)))
            if self._folder in ready:
                self._names.append((now, os.read(self._folder, 65536)))


class Relay:
    """Takes connections for ``target`` at ``address`` while it is not cut."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._listener.getsockname()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}
        self._is_cut = False
        self._bell, bell = socket.socketpair()
        self._selector.register(bell, selectors.EVENT_READ)
        self._ring = bell
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Every connection ends, and none is let in."""
        self._is_cut = True
        self._bell.send(b"x")

    def mend(self) -> float:
        """Connections are let in again; answers the time."""
        self._is_cut = False
        return time.monotonic()

    def close(self) -> None:
        self._closed = True
        self._bell.send(b"x")
        self._thread.join()
        self._drop()
        for end in (self._listener, self._bell, self._ring):
            end.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._ring:
                    self._ring.recv(100)
                    if self._is_cut:
                        self._drop()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        ours, _ = self._listener.accept()
        if self._is_cut:
            ours.close()
            return
        try:
            theirs = socket.create_connection(self._target, 1)
        except OSError:
            ours.close()
            return
        for end, other in ((ours, theirs), (theirs, ours)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._other[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        if end not in self._other:
            return  # dropped a moment ago
        other = self._other[end]
        try:
            data = end.recv(65536)
            if data:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._end(end, other)

    def _drop(self) -> None:
        for end in list(self._other):
            self._end(end)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            if self._other.pop(end, None):
                self._selector.unregister(end)
                end.close()
