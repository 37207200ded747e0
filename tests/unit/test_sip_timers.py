"""The timers against the tables of RFC 3261: 17.1.1.1, 17.1.2.2 and table 4."""

import pytest

from fastagi.sip.timers import T1, T2, T4, TIMERS, Timers, refresh_at


def test_the_values_of_table_4() -> None:
    assert (T1, T2, T4) == (0.5, 4.0, 5.0)
    assert TIMERS.life == 32.0  # F, J
    assert (TIMERS.linger(reliable=False), TIMERS.linger(reliable=True)) == (5.0, 0.0)  # K
    assert (TIMERS.replay(reliable=False), TIMERS.replay(reliable=True)) == (32.0, 0.0)  # J


def test_each_interval_is_twice_the_last_up_to_t2() -> None:
    # 17.1.2.1: "500 ms, 1 s, 2 s, 4 s, 4 s, 4 s, etc."
    assert [TIMERS.after(interval) for interval in (0.5, 1.0, 2.0, 4.0)] == [1.0, 2.0, 4.0, 4.0]


def test_a_slower_line_lives_longer() -> None:
    slow = Timers(t1=1.0, t2=4.0)
    assert [slow.after(interval) for interval in (1.0, 2.0, 4.0)] == [2.0, 4.0, 4.0]
    assert slow.life == 64.0


@pytest.mark.parametrize(
    ("granted", "after"),
    [(3600, 3536), (200, 136), (128, 64), (100, 50), (10, 5), (1, 0.5), (0, 0)],
)
def test_a_refresh_leaves_time_to_fail_once(granted: float, after: float) -> None:
    assert refresh_at(1000.0, granted) == 1000.0 + after
