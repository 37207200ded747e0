"""The timers of SIP (RFC 3261, 17 and table 4): values and schedules.  Nothing here tells the time.

Whatever the letters of the RFC, a non-INVITE transaction has two timers:

=================  =======================================  =================================
timer              unreliable transport                     reliable transport
=================  =======================================  =================================
retransmit (E)     T1, doubled up to T2; T2 once a 1xx came  none
end of life        F, J: 64*T1; K: T4                       F: 64*T1; J, K: 0
=================  =======================================  =================================

Subscriptions borrow 64*T1: so long a NOTIFY is waited for (Timer N, RFC 6665, 4.1.2.4).
"""

from dataclasses import dataclass

T1 = 0.5
"""Seconds: what a message and its answer are taken to need."""
T2 = 4.0
"""Seconds: the longest interval between two retransmissions."""
T4 = 5.0
"""Seconds: how long a message can linger in the network."""


@dataclass(frozen=True, slots=True)
class Timers:
    """One set of them, in seconds; an administrator may know a slower line (17.1.1.1)."""

    t1: float = T1
    t2: float = T2
    t4: float = T4

    @property
    def life(self) -> float:
        """Timers F, J and N: 64*T1."""
        return 64 * self.t1

    def linger(self, reliable: bool) -> float:
        """Timer K: how long a client absorbs the answer's retransmissions (17.1.2.2)."""
        return 0.0 if reliable else self.t4

    def replay(self, reliable: bool) -> float:
        """Timer J: how long a server repeats its answer (17.2.2)."""
        return 0.0 if reliable else self.life

    def after(self, interval: float) -> float:
        """Timer E, the interval that follows: MIN(2*interval, T2) (17.1.2.2)."""
        return min(2 * interval, self.t2)


TIMERS = Timers()


def refresh_at(now: float, granted: float, timers: Timers = TIMERS) -> float:
    """When to renew what was granted for so many seconds: early enough to fail once and be tried again."""
    return now + max(granted / 2, granted - 2 * timers.life)
