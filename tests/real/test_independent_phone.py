"""The first scenario with a caller's phone that is not ours: sipp plays Alice."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.asterisk import free_udp_port
from tests.real.bench import Bench

SCENARIOS = Path(__file__).parent / "sipp"


class Sipp:
    """One phone on one port; each scenario is a run of sipp, which fails unless all of it came to pass."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self._folder = folder
        self._port = free_udp_port()
        self._media = free_udp_port()

    def start(self, scenario: str, service: str = "1000") -> subprocess.Popen[str]:
        host, port = self._bench.asterisk.sip_address
        command = [
            *self._bench.asterisk.tree.sipp_command(),
            *("-sf", str(SCENARIOS / f"{scenario}.xml"), "-s", service, "-m", "1", "-nostdin"),
            *("-i", host, "-p", str(self._port), "-mi", host, "-mp", str(self._media)),
            *("-timeout", "20s", "-timeout_error", "-trace_err", f"{host}:{port}"),
        ]
        return subprocess.Popen(
            command, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def plays(self, scenario: str, service: str = "1000") -> None:
        self.finished(self.start(scenario, service))

    def finished(self, run: subprocess.Popen[str]) -> None:
        said, _ = run.communicate(timeout=30)
        assert run.returncode == 0, said[-3000:]


def test_busy_asked_called_back_with_sipp(bench: Bench, tmp_path: Path) -> None:
    bench.phones["1000"].unregister()
    alice = Sipp(bench, tmp_path)
    alice.plays("register", "300")
    talk = bench.talk("2000", "3000")
    alice.plays("meets_busy", "2000")
    bench.forget("2000")
    alice.plays("asks", "*30")
    assert bench.played() == ["activated"]
    recall = alice.start("answers")
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    call = bench.phones["2000"].expect_call()
    assert call.from_number == "1000"
    call.ring().answer().wait_answered()
    call.hangup()
    alice.finished(recall)
    bench.ended("COMPLETED")
    alice.plays("register", "0")
