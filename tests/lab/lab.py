"""contrib/lab up|down|status: the office, kept running in the background.

A keeper process owns Asterisk and fastagi, for Asterisk ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.lab.asterisk import HOST
from tests.lab.install import LAB, LabError, ensure_asterisk
from tests.lab.office import AGI_PORT, SIP_PORT, TOP, Office, free_or, hints, last_words

FOLDER = LAB / "up"
STATE = FOLDER / "state.json"
KEEPER_LOG = FOLDER / "keeper.log"
UP_TIMEOUT = 60.0
DOWN_TIMEOUT = 25.0
USAGE = """\
contrib/lab up       start Asterisk with three phones' accounts, and fastagi; they stay in the background
contrib/lab status   what runs, on which ports, and how to look in
contrib/lab down     stop it all and remove what it left"""


def main(words: list[str]) -> int:
    commands = {"up": up, "down": down, "status": status}
    if len(words) == 2 and words[0] == "keep":
        return keep()
    if len(words) != 1 or words[0] not in commands:
        print(USAGE)
        return 0 if words in (["-h"], ["--help"]) else 2
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # contrib/lab status | head
    try:
        with _one_at_a_time():
            return commands[words[0]]()
    except LabError as error:
        print(f"contrib/lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; contrib/lab down removes what there is.", file=sys.stderr)
        return 130


# The three commands

def up() -> int:
    if _running():
        print("It is up already.")
        return status()
    tree = ensure_asterisk()
    _clear()
    FOLDER.mkdir(mode=0o755, parents=True)
    FOLDER.chmod(0o755)  # Asterisk may run as another user, whatever our umask is
    with KEEPER_LOG.open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.lab", "keep", str(FOLDER)],
            cwd=TOP, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
    print(f"Starting Asterisk {tree.version} and fastagi")
    end = time.monotonic() + UP_TIMEOUT
    while not STATE.exists():
        if keeper.poll() is not None or time.monotonic() > end:
            keeper.kill()
            raise LabError("\n".join(["it did not start.", KEEPER_LOG.read_text(), *last_words(FOLDER)]))
        time.sleep(0.05)
    for name, usual, port in ("SIP", SIP_PORT, _state()["sip_port"]), ("AGI", AGI_PORT, _state()["agi_port"]):
        if port != usual:
            print(f"Port {usual} is taken: {name} is on {port} instead.")
    return status()


def down() -> int:
    was_there = FOLDER.exists()
    _clear()
    print("It is down, and nothing of it is left." if was_there else "It was not up.")
    return 0


def status() -> int:
    if not _running():
        print("It is not running; contrib/lab up starts it.")
        return 3
    state = _state()
    for title, what, port, pid in (
        ("Asterisk", "SIP", state["sip_port"], state["asterisk"]),
        ("fastagi", "AGI", state["agi_port"], state["fastagi"]),
    ):
        life = f"runs as process {pid}" if _ours(pid) else "has ENDED: contrib/lab down, then up"
        print(f"{title:9}  {what} on {HOST}:{port}, {life}")
    print(f"\nTo look around, from {TOP}:")
    print("\n".join(hints(FOLDER, state["sip_port"])))
    print(f"           {KEEPER_LOG.relative_to(TOP)}\nStop       contrib/lab down")
    return 0


# The keeper

def keep() -> int:
    """Own both until told to end, or until the folder has gone."""
    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sip_port, agi_port = free_or(SIP_PORT, socket.SOCK_DGRAM), free_or(AGI_PORT, socket.SOCK_STREAM)
    try:
        office = Office(FOLDER, ensure_asterisk(), lambda line: print(line, flush=True), sip_port, agi_port)
        try:
            office.start()
            _write_state(office)
            while FOLDER.exists():
                time.sleep(1)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            office.stop()
    except Exception as error:  # for whoever reads the log: a sentence
        print(error, flush=True)
        return 1
    return 0


def _write_state(office: Office) -> None:
    state = {
        "keeper": os.getpid(), "asterisk": office.asterisk.pid, "fastagi": office.server.pid,
        "sip_port": office.asterisk.sip_address[1], "agi_port": office.server.port,
        "version": office.tree.version, "control": str(office.server.control),
    }
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps(state, indent=1) + "\n")
    new.rename(STATE)


# What is there

def _state() -> dict[str, Any]:
    try:
        return dict(json.loads(STATE.read_text()))
    except (OSError, ValueError):
        return {}


def _running() -> bool:
    return _ours(_state().get("keeper", 0))


def _ours(pid: int) -> bool:
    """Whether this process lives and is one of our folder's: a number may be somebody else's by now."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return bytes(FOLDER) in words
    except OSError:
        return False


def _clear() -> None:
    """End the keeper, with it the others, and remove the folder; also after a keeper that was killed."""
    state = _state()
    pids = [state.get(name, 0) for name in ("keeper", "fastagi", "asterisk")]
    if _ours(pids[0]):
        os.kill(pids[0], signal.SIGTERM)
    end = time.monotonic() + DOWN_TIMEOUT
    while _ours(pids[0]) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in pids:
        if _ours(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if "control" in state:
        Path(state["control"]).unlink(missing_ok=True)
    if FOLDER.exists():
        shutil.rmtree(FOLDER)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    LAB.mkdir(exist_ok=True)
    here = os.open(LAB, os.O_RDONLY)
    try:
        fcntl.flock(here, fcntl.LOCK_EX)
        yield
    finally:
        os.close(here)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
