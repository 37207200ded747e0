"""A small office for contrib/lab and contrib/demo: three phones on an Asterisk, with fastagi beside it."""

from __future__ import annotations

import os
import re
import shlex
import socket
from pathlib import Path

from tests.lab.asterisk import HOST, Asterisk
from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import Say, Tree
from tests.lab.server import DIALPLAN, Server, free_tcp_port

TOP = Path(__file__).resolve().parents[2]
NAMES = {"1000": "Alice", "2000": "Bob", "3000": "Carol"}
SIP_PORT, AGI_PORT = 5060, 4573
NOISE = re.compile(r"Executing \[|Goto \(|loader\.c|func_timeout\.c|Strict RTP")
RING = 20  # seconds a phone rings before the dialplan gives up

# The project's dialplan as a site includes it.
SITE = """\
[general]
[globals]
CC_AGI=agi://127.0.0.1:{port}
#include "{dialplan}/*.conf"

[phones]
include => cc-features
exten => _[1-3]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
"""


class Office:
    """Alice, Bob and Carol have the extensions 1000, 2000 and 3000."""

    def __init__(self, folder: Path, tree: Tree, say: Say, sip_port: int = 0, agi_port: int = 0) -> None:
        self.folder, self.tree = folder, tree
        self.asterisk = Asterisk(folder / "asterisk", tree, sip_port, say)
        self._agi_port = agi_port or free_tcp_port()
        self.server = Server(folder / "fastagi", self.asterisk, self.settings(), self._agi_port)
        self.console = folder / "asterisk-cli"
        endpoints = [Endpoint(number, name) for number, name in NAMES.items()]
        self.asterisk.configure(self.dialplan(), endpoints)

    def dialplan(self, ring: int = RING) -> str:
        return SITE.format(port=self._agi_port, dialplan=DIALPLAN, ring=ring)

    def settings(self, **timers: float) -> str:
        """The defaults: and extensions: of fastagi's configuration."""
        defaults = "".join(f"  {name}: {seconds:g}\n" for name, seconds in timers.items())
        people = "".join(f'  "{number}": {{name: {name}}}\n' for number, name in NAMES.items())
        return (f"defaults:\n{defaults}" if defaults else "") + f"extensions:\n{people}"

    def start(self) -> None:
        self.asterisk.start()
        self.server.start()
        command = [*self.tree.asterisk_command(), "-C", str(self.asterisk.etc / "asterisk.conf"), "-r"]
        self.console.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        self.console.chmod(0o755)

    def stop(self) -> None:
        try:
            self.server.stop()
        finally:
            self.asterisk.kill()


def hints(folder: Path, sip_port: int) -> list[str]:
    """How to look around in an office that runs; the commands are for the top of the clone."""
    try:
        here = folder.relative_to(TOP)
    except ValueError:
        here = folder
    people = ", ".join(f"{number} ({name})" for number, name in NAMES.items())
    return [
        f"Phones     {people} at {HOST}:{sip_port}, UDP; user and password are the number.",
        "           *30 asks to be called back, *31 takes that back, *32 tells how many are open.",
        f"Asterisk   {_shell(here / 'asterisk-cli')}   (asterisk -r, through its own loader)",
        f"           {_shell(here / 'asterisk-cli')} -x 'core show channels'",
        f"fastagi    .venv/bin/fastagi list --config {_shell(here / 'fastagi/fastagi.yaml')}",
        "           likewise history, and with a request's number: show, cancel",
        f"Logs       {_shell(here / 'asterisk/log/full')}",
        f"           {_shell(here / 'fastagi/fastagi.log')}",
    ]


def last_words(folder: Path, count: int = 12) -> list[str]:
    """The ends of both logs, without what Asterisk says of every step of the dialplan."""
    told = []
    for title, log in ("fastagi", folder / "fastagi/fastagi.log"), ("Asterisk", folder / "asterisk/log/full"):
        if log.exists():
            lines = log.read_text(errors="replace").splitlines()
            lines = [line for line in lines if not NOISE.search(line)]
            told += [f"The end of {title}'s log:", *(f"  {line[:180]}" for line in lines[-count:])]
    return told


def free_or(port: int, kind: socket.SocketKind) -> int:
    """This port of the loopback address if nobody holds it, else 0."""
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError:
            return 0
    return port


def _shell(path: Path) -> str:
    return shlex.quote(os.fspath(path))
