"""A wire between the server and Asterisk's manager interface, which can be watched, cut and mended."""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import threading
import time
from pathlib import Path

Address = tuple[str, int]

IN_MOVED_TO = 0x80


class Relay:
    """Takes connections for ``target`` at ``address`` while it is not cut; notes when what went by.

    ``seen``: (time.monotonic(), direction, bytes); direction is ``>`` towards the target, ``<`` from it, and
    ``+`` for the name of a file that was moved into ``folder``.
    """

    def __init__(self, target: Address, folder: Path | None = None) -> None:
        self.seen: list[tuple[float, str, bytes]] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._listener.getsockname()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other: dict[socket.socket, tuple[socket.socket, str]] = {}
        self._is_cut = False
        self._folder = _watched(folder) if folder else -1
        if folder:
            self._selector.register(self._folder, selectors.EVENT_READ)
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
        if self._folder >= 0:
            os.close(self._folder)
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
                elif isinstance(key.fileobj, int):
                    moved = os.read(key.fileobj, 65536)
                    self.seen.append((time.monotonic(), "+", moved))
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
        for end, other, direction in ((ours, theirs, ">"), (theirs, ours, "<")):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._other[end] = other, direction
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        if end not in self._other:
            return  # dropped a moment ago
        other, direction = self._other[end]
        try:
            data = end.recv(65536)
            if data:
                self.seen.append((time.monotonic(), direction, data))
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


def _watched(folder: Path) -> int:
    """A file descriptor on which files moved into the folder are told (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(0)
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(folder), IN_MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return int(fd)
