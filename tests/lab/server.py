"""The fastagi server as the lab runs it: the real command, in a process of its own."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from fastagi.completion.model import OPEN, Request
from fastagi.store.requests import Reader
from tests.lab.asterisk import AMI_SECRET, AMI_USER, Asterisk

DIALPLAN = Path(__file__).parents[2] / "dialplan"
START_TIMEOUT = 15.0
STOP_TIMEOUT = 15.0


def free_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """``fastagi serve`` for one Asterisk: start, stop, kill, start again; its log and its command line."""

    def __init__(self, folder: Path, asterisk: Asterisk, config: str = "", port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_tcp_port()
        self.log = folder / "fastagi.log"
        self.config = folder / "fastagi.yaml"
        self.store = folder / "fastagi.db"
        self.limit_file_size = 0  # bytes; 0: none
        self.ami_secret = AMI_SECRET
        self.ami_address: tuple[str, int] | None = None  # None: Asterisk's own
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # A UNIX socket's path is short; a test's folder may not be.
        self.control = Path(f"/tmp/fastagi-{os.getpid()}-{self.port}.sock")
        self._asterisk = asterisk
        self.mode = "poll"
        """How it learns who is free, and rings a caller: ``poll``, ``ami`` (with call files) or ``originate``."""
        self.configure(config)

    def configure(self, more: str = "") -> None:
        """The configuration of the next start; ``more``: its ``defaults:`` and ``extensions:``."""
        self.config.write_text(
            f"fastagi:\n  listen: 127.0.0.1:{self.port}\n  control: {self.control}\n"
            f"asterisk:\n{self._ways()}store: {self.store}\n{more}"
        )

    def _ways(self) -> str:
        lines = f"  spool: {self._asterisk.spool}\n  temp: {self._asterisk.spool_temp}\n"
        if self.mode == "originate":
            lines = "  recall: originate\n"
        if self.mode != "poll":
            secret = self.folder / "ami.secret"
            secret.write_text(self.ami_secret + "\n")
            host, port = self.ami_address or self._asterisk.ami_address
            lines += f"  ami: {{host: {host}, port: {port}, username: {AMI_USER}, secret_file: {secret}}}\n"
        return lines

    def start(self) -> Server:
        self.launch()
        return self.wait_ready()

    def launch(self) -> None:
        """Start it without waiting: several may start at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                # It goes when whoever started it goes, however.
                ["setpriv", "--pdeathsig", "KILL", sys.executable]
                + ["-m", "fastagi", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=self._limit if self.limit_file_size else None,
            )

    def wait_ready(self) -> Server:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"fastagi did not start:\n{self.log.read_text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        raise RuntimeError(f"fastagi did not answer within {START_TIMEOUT} s")

    def _limit(self) -> None:
        # Beyond the limit a write fails; ignoring the signal lets it fail with an error rather than die.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit_file_size, self.limit_file_size))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Whatever becomes of it, it has gone then; raises when it had to be killed for that."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            last = "\n".join(self.log_lines()[-20:])
            raise RuntimeError(
                f"fastagi did not stop within {STOP_TIMEOUT} s and was killed:\n{last}"
            ) from None
        finally:
            self.control.unlink(missing_ok=True)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def cli(self, *words: str) -> str:
        """What ``fastagi WORDS`` prints; raises when it fails."""
        command = [sys.executable, "-m", "fastagi", *words, "--config", str(self.config)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def requests(self) -> list[Request]:
        """The open requests, as the database has them."""
        return Reader(self.store).requests(open_only=True)

    def history(self) -> list[Request]:
        """The requests that ended, the latest first."""
        return [r for r in Reader(self.store).requests() if r.state not in OPEN]

    def log_lines(self, containing: str = "") -> list[str]:
        return [line for line in self.log.read_text().splitlines() if containing in line]

    def wait_log(self, text: str, timeout: float = 5.0) -> str:
        """The first line of the log that holds ``text``, now or soon."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for line in self.log_lines(text):
                return line
            time.sleep(0.02)
        raise AssertionError(f"{text!r} is not in the server's log:\n" + "\n".join(self.log_lines()[-20:]))
