"""How many calls the way through an element carries: sipp at both ends, a fastagi server between them.

python -m tests.real.rate      the highest rate without loss, with the element and without it
"""

from __future__ import annotations

import csv
import os
import resource
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.lab.asterisk import Address, Asterisk, free_port
from tests.lab.install import Tree, ensure_asterisk
from tests.lab.server import Server

SCENARIOS: Final = Path(__file__).parent / "sipp"
ELEMENT: Final = "127.0.3.3"
ENDS: Final = {"asterisk": "127.0.3.22", "peer": "127.0.3.2"}
PATIENCE: Final = 20  # seconds for what goes beyond the time the calls need at their rate
OPEN_SOCKETS: Final = 4000  # of one sipp


@dataclass(frozen=True)
class Load:
    """What came of a number of calls."""

    calls: int
    failed: int
    busy: int
    resent: int  # messages, by either end
    seconds: float
    element: float  # seconds of CPU
    sipps: float  # the same of both sipps
    said: str  # by the sipps, if anything

    @property
    def lossless(self) -> bool:
        return not (self.failed or self.resent or self.said)

    def __str__(self) -> str:
        used = f"element {self.element / self.calls * 1e6:.0f} us of CPU a call, " * (self.element > 0)
        return (
            f"{self.calls} calls at {self.calls / self.seconds:.0f}/s: {self.failed} failed, {self.busy} busy, "
            f"{self.resent} messages sent again; {used}both sipps {self.sipps / self.calls * 1e6:.0f} us"
        )


class Line:
    """A fastagi with one trunk, and the addresses of what stands at its two ends."""

    def __init__(self, folder: Path, tree: Tree, transport: str) -> None:
        self.folder, self.tree, self.transport = folder, tree, transport
        self.port = free_port(ELEMENT, *ENDS.values())
        # Never started: it lends its spool, and sipp or a test stands in its place.
        asterisk = Asterisk(folder / "asterisk", tree, self.port, lambda line: None, ENDS["asterisk"])
        self.server = Server(folder / "fastagi", asterisk)
        listen, peer, near = (f"{host}:{self.port}" for host in (ELEMENT, ENDS["peer"], ENDS["asterisk"]))
        self.server.configure(
            f'trunks:\n  line: {{listen: "{transport}:{listen}", peer: ["{peer}"], asterisk: "{near}",'
            " endpoint: line}\n"
        )

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.kill()

    @property
    def element(self) -> Address:
        return ELEMENT, self.port

    def end(self, name: str) -> Address:
        return ENDS[name], self.port

    def complaints(self) -> list[str]:
        """What the server has logged about the trunk: nothing, if all is well."""
        return self.server.log_lines("trunk ") + self.server.log_lines("Traceback")

    def carries(
        self, calls: int, rate: int, *, caller: str = "peer", beside: bool = False, each: bool = False
    ) -> Load:
        """sipp makes calls to another sipp, through the element or ``beside`` it.

        ACK and BYE of an answered call go where Contact says, except over TCP, where sipp can send them only by
        the one connection it has; with ``each``, it opens one for each call and another for its ACK and BYE.
        """
        here, there = self.end(caller), self.end("asterisk" if caller == "peer" else "peer")
        to = there if beside else self.element
        direct = ("-set", "direct", "yes") if each or self.transport == "udp" else ()
        modes = ("u1", "u1") if self.transport == "udp" else ("t1", "tn" if each else "t1")
        folder = Path(tempfile.mkdtemp(prefix="calls", dir=self.folder))
        seconds = calls // rate + PATIENCE
        with ExitStack() as both:
            called = both.enter_context(_Sipp(self.tree, folder, "trunk_callee", there, modes[0], calls))
            called.wait_ready()
            cpu, spent, began = _cpu(self.server.pid), _spent(), time.monotonic()
            more = ("-r", str(rate), "-l", str(OPEN_SOCKETS), *direct, "{}:{}".format(*to))
            calling = both.enter_context(
                _Sipp(self.tree, folder, "trunk_caller", here, modes[1], calls, *more)
            )
            calling.wait(seconds)
            took = time.monotonic() - began
            called.wait(5)
        one, other = calling.figures(), called.figures()
        return Load(
            calls=calls,
            failed=2 * calls - int(one["SuccessfulCall(C)"]) - int(other["SuccessfulCall(C)"]),
            busy=int(one["busy(C)"]),
            resent=int(one["Retransmissions(C)"]) + int(other["Retransmissions(C)"]),
            seconds=took,
            element=_cpu(self.server.pid) - cpu,
            sipps=_spent() - spent,
            said=calling.said() + called.said(),
        )


class _Sipp:
    """One run of sipp."""

    def __init__(
        self, tree: Tree, folder: Path, scenario: str, at: Address, mode: str, calls: int, *more: str
    ) -> None:
        self._at, self._udp = at, mode.startswith("u")
        self._errors, self._statistics = folder / f"{scenario}.err", folder / f"{scenario}.csv"
        self._command = [
            *(*tree.sipp_command(), "-sf", str(SCENARIOS / f"{scenario}.xml"), "-nostdin", "-t", mode),
            *("-i", at[0], "-p", str(at[1]), "-m", str(calls), "-max_socket", str(OPEN_SOCKETS)),
            *("-trace_err", "-error_file", str(self._errors)),
            *("-trace_stat", "-stf", str(self._statistics), "-fd", "1h", *more),
        ]
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=self._errors.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait_ready(self) -> None:
        end = time.monotonic() + 5
        while self._process.poll() is None and _is_free(self._at, self._udp):
            assert time.monotonic() < end, f"sipp does not listen: {self.said()}"
            time.sleep(0.02)

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # it still writes down how far it came
            self._process.wait()

    def figures(self) -> dict[str, str]:
        with self._statistics.open() as file:
            return list(csv.DictReader(file, delimiter=";"))[-1]

    def said(self) -> str:
        """What it complained of: the beginning, for one fault may be said of each call."""
        return self._errors.read_text("utf-8", "replace")[:2000] if self._errors.exists() else ""


def _is_free(at: Address, udp: bool) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, not udp)  # past connections do not count
        try:
            probe.bind(at)
        except OSError:
            return False
        return True


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _spent() -> float:
    """The same of all our processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def highest(line: Line, beside: bool) -> Load:
    """The highest rate at which nothing is lost, and nothing is late, in either of two tries."""
    best: Load | None = None
    rate, step = 600.0, 1.25
    while step > 1.02:
        tries = (line.carries(int(rate * 5), int(rate), beside=beside) for _ in range(2))
        good = next(
            (load for load in tries if load.lossless and load.calls / load.seconds > rate * 0.95), None
        )
        if good is None:
            rate, step = rate / step, step**0.5
        else:
            best = good
            print(f"    {good}", flush=True)
        rate *= step
    assert best is not None, "not even 600 calls a second"
    return best


def main() -> None:
    tree = ensure_asterisk()
    for transport in "udp", "tcp":
        with tempfile.TemporaryDirectory() as folder, Line(Path(folder), tree, transport) as line:
            for beside in True, False:
                print(f"{transport}, {'without' if beside else 'with'} the element:", flush=True)
                print(f"  highest: {highest(line, beside)}", flush=True)


if __name__ == "__main__":
    main()
