"""Figures that were promised: measured here, printed, and held."""

import asyncio
import random
import statistics
import time

import pytest

from tests.real.bench import Bench

INTERVAL = 0.2


def test_recall_delay(bench: Bench) -> None:
    """From the callee's BYE to the INVITE at the caller's phone: the poll interval and at most 20 ms."""
    bench.reconfigure(f"defaults: {{poll_interval: {INTERVAL}, cc_max_recalls: 100}}\n")
    delays = []
    for _ in range(20):
        talk = bench.busy_and_asked()
        bench.quiet("1000", random.random() * INTERVAL)  # at any moment of the interval
        bye = time.monotonic()
        talk.hangup()
        recall = bench.recalled()
        delays.append(recall.started_at - bye)
        recall.answer()
        call = bench.phones["2000"].expect_call()
        call.ring().answer().wait_answered()
        call.hangup()
        recall.wait_ended()
        bench.until(lambda: not bench.server.requests(), "it is completed")
    worst = max(delays)
    print(
        f"\nBYE -> INVITE, poll_interval {INTERVAL} s, 20 runs: min {min(delays) * 1000:.0f} ms, "
        f"median {statistics.median(delays) * 1000:.0f} ms, max {worst * 1000:.0f} ms"
    )
    assert sorted(delays)[-2] <= INTERVAL + 0.020
    assert worst <= INTERVAL + 0.200, "one run of twenty may meet a busy machine, and no more"


async def _record(port: int, serial: int) -> bytes:
    """One session as Asterisk makes it; answers what the server set."""
    caller, callee = 100000 + serial, 900000 + serial
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = {
        "network": "yes",
        "network_script": "record",
        "request": f"agi://127.0.0.1:{port}/record",
        "channel": f"PJSIP/{caller}-{serial:08x}",
        "uniqueid": f"load-{serial}.1",
        "callerid": str(caller),
        "context": "phones",
        "extension": str(callee),
        "arg_1": str(callee),
        "arg_2": "BUSY",
        "arg_3": "17",
        "arg_4": f"PJSIP/{callee}",
    }
    writer.write("".join(f"agi_{key}: {value}\n" for key, value in lines.items()).encode() + b"\n")
    said = await reader.read()  # the server's last commands come with a half-close
    for _ in range(said.count(b"\n")):
        writer.write(b"200 result=1\n")
    writer.write(b"HANGUP\n")
    writer.close()
    return said


@pytest.mark.parametrize("at_once", [50, 500])
def test_recording_under_load(bench: Bench, at_once: int) -> None:
    """Every caller is told, and everything that was told is on disk after kill -9."""
    sessions = 5000

    async def load() -> list[bytes]:
        gate = asyncio.Semaphore(at_once)

        async def one(serial: int) -> bytes:
            async with gate:
                return await _record(bench.port, serial)

        return await asyncio.gather(*(one(serial) for serial in range(sessions)))

    began = time.monotonic()
    said = asyncio.run(load())
    rate = sessions / (time.monotonic() - began)
    bench.server.kill()
    print(f"\n{sessions} sessions, {at_once} at once: {rate:.0f}/s (the client is the slower half)")
    assert all(b"CC_OFFERED" in answer and b"CC_ACK" in answer for answer in said)
    assert len(bench.offers()) == sessions
