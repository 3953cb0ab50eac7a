"""How often a caller may ask: requests of each token or address, and failed logins."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from starlette.types import Scope

from sessionsdb.admin.tokens import digest_of

REQUESTS_PER_SECOND = 200
"""The requests of one token, or of one address without a token. More are refused with 429."""

BURST_SECONDS = 10
"""The rate is a mean over this time: a caller that was idle may send so many seconds' requests at
once."""

FAILED_LOGINS = 10
"""Tokens of one address that are refused before it has to wait."""

LOGIN_SECONDS = 6.0
"""An address that has to wait may try one more token after this time."""

MAX_KEYS = 10_000
"""The callers that are remembered. The one that asked longest ago is forgotten first."""

Clock = Callable[[], float]


class Rate:
    """A mean rate with a burst, for each key (the generic cell rate algorithm).

    A key has one number: the time at which all that it spent is earned again. A key that was never
    seen, or was forgotten, has the whole burst.
    """

    def __init__(self, interval: float, burst: int, clock: Clock) -> None:
        self._interval = interval
        self._burst = burst * interval
        self._clock = clock
        self._earned: OrderedDict[Hashable, float] = OrderedDict()

    def wait(self, key: Hashable) -> float:
        """Return the seconds after which the key may spend one. 0: now."""
        now = self._clock()
        debt = max(self._earned.get(key, now) - now, 0.0)
        # A clock of floats: a wait below a microsecond is none.
        return seconds if (seconds := debt + self._interval - self._burst) > 1e-6 else 0.0

    def spend(self, key: Hashable) -> None:
        """Count one. A key never owes more than its burst."""
        now = self._clock()
        spent = max(self._earned.get(key, now), now) + self._interval
        self._earned[key] = min(spent, now + self._burst)
        self._earned.move_to_end(key)
        if len(self._earned) > MAX_KEYS:
            self._earned.popitem(last=False)


class Rates:
    """The rates of one server. ``per_second=None`` sets no bound on requests.

    A token counts as a caller of its own once it was accepted. Before, its requests count for its
    address: otherwise a client that invents tokens would have a new burst with each.
    """

    def __init__(
        self, *, per_second: float | None = REQUESTS_PER_SECOND, clock: Clock = time.monotonic
    ) -> None:
        self._requests = (
            None
            if per_second is None
            else Rate(1 / per_second, max(round(per_second * BURST_SECONDS), 1), clock)
        )
        self._failures = Rate(LOGIN_SECONDS, FAILED_LOGINS, clock)
        self._accepted: OrderedDict[str, None] = OrderedDict()

    def count_request(self, address: str, secret: str | None) -> float:
        """Count a request. Return 0, or the seconds to wait where it is refused and not counted."""
        if self._requests is None:
            return 0.0
        key = self.caller_of(address, secret)
        seconds = self._requests.wait(key)
        if not seconds:
            self._requests.spend(key)
        return seconds

    def caller_of(self, address: str, secret: str | None) -> Hashable:
        """Return the caller that a request counts for."""
        if secret is not None and (digest := digest_of(secret)) in self._accepted:
            return "token", digest
        return "address", address

    def login_wait(self, address: str, secret: str) -> float:
        """Return the seconds after which an address may try a token. 0: now.

        An accepted token never waits, so that a stranger behind the same proxy locks no one out.
        """
        return 0.0 if digest_of(secret) in self._accepted else self._failures.wait(address)

    def count_login(self, address: str, secret: str, *, accepted: bool) -> None:
        """Count a token that was accepted or refused."""
        digest = digest_of(secret)
        if accepted:
            self._accepted[digest] = None
            self._accepted.move_to_end(digest)
            if len(self._accepted) > MAX_KEYS:
                self._accepted.popitem(last=False)
        else:
            self._accepted.pop(digest, None)
            self._failures.spend(address)


def address_of(scope: Scope) -> str:
    """Return the address of the peer. Of IPv6 the first 64 bits: one host may use all behind them.

    Behind a proxy that the server does not know it is the proxy's address: see ``proxies.py``.
    """
    client = scope.get("client")
    if client is None:  # a socket of the file system
        return ""
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:  # a word of a proxy's header, which may be long
        return str(client[0])[:64]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
