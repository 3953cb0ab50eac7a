"""How often a caller may ask the HTTP server, with a clock that the tests set."""

from __future__ import annotations

from collections.abc import Sequence

import httpx2
import pytest

from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.admin import tokens
from sessionsdb.web import Rates, application, rates
from sessionsdb.web.api.access import COOKIE
from sessionsdb.web.rates import FAILED_LOGINS, LOGIN_SECONDS, Rate, address_of

OWN_FORM = {"Origin": "http://127.0.0.1:8700"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kind() -> str:
    """The rates are in memory."""
    return "sqlite"


def client_of(
    db: SessionsDB,
    rates: Rates,
    *,
    address: str = "192.0.2.1",
    require_token: bool = False,
    proxies: Sequence[str] = (),
) -> httpx2.AsyncClient:
    app = application(db, rates=rates, require_token=require_token, proxies=proxies)
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app, client=(address, 4_000)),
        base_url="http://127.0.0.1:8700",
    )


def spend_all(rate: Rate, key: str) -> int:
    number = 0
    while not rate.wait(key):
        rate.spend(key)
        number += 1
    return number


# ---- one rate ------------------------------------------------------------------------------------


def test_a_burst_is_spent_at_once_and_earned_with_time(clock: Clock) -> None:
    rate = Rate(0.5, 10, clock)
    assert spend_all(rate, "a") == 10
    assert rate.wait("a") == pytest.approx(0.5)
    assert rate.wait("b") == 0
    clock.now += 0.5
    assert spend_all(rate, "a") == 1
    clock.now += 1_000_000
    assert spend_all(rate, "a") == 10


def test_a_debt_is_never_above_the_burst(clock: Clock) -> None:
    rate = Rate(0.5, 10, clock)
    for _ in range(1_000):
        rate.spend("a")
    assert rate.wait("a") == pytest.approx(0.5)


def test_the_memory_of_callers_has_a_bound(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_KEYS", 3)
    rate = Rate(1, 1, clock)
    for key in "abcd":
        rate.spend(key)
    assert [rate.wait(key) > 0 for key in "abcd"] == [False, True, True, True]


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (None, ""),
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8:1:2:3::4", 5), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("::ffff:192.0.2.1", 5), "::ffff:192.0.2.1"),
        (("testclient", 5), "testclient"),
        (("x" * 60_000, 5), "x" * 64),
    ],
)
def test_an_address_of_ipv6_counts_with_its_network(
    client: tuple[str, int] | None, address: str
) -> None:
    found = address_of({"type": "http", "client": client})
    assert found.replace("::ffff:c000:201", "::ffff:192.0.2.1") == address


# ---- requests ------------------------------------------------------------------------------------


async def test_an_address_that_asks_too_often_is_told_when_to_come_back(
    db: SessionsDB, clock: Clock
) -> None:
    async with client_of(db, Rates(per_second=0.2, clock=clock)) as client:
        assert (await client.get("/api/v1/sessions")).status_code == 200
        assert (await client.get("/")).status_code == 200
        refused = await client.get("/api/v1/sessions")
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["type"] == "urn:sessionsdb:rate-exceeded"
        assert (await client.get("/health")).status_code == 200
        clock.now += 5
        assert (await client.get("/api/v1/sessions")).status_code == 200
        assert (await client.get("/api/v1/sessions")).status_code == 429


async def test_each_accepted_token_and_each_address_has_a_rate_of_its_own(
    db: SessionsDB, clock: Clock
) -> None:
    shared = Rates(per_second=0.2, clock=clock)
    first, second = [(await tokens.create(db, name)).secret for name in "ab"]

    async def answered(client: httpx2.AsyncClient, secret: str | None) -> int:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return (await client.get("/api/v1/sessions", headers=headers)).status_code

    async with client_of(db, shared) as near, client_of(db, shared, address="192.0.2.2") as far:
        assert [await answered(near, first) for _ in range(4)] == [200, 200, 200, 429]
        assert [await answered(far, second) for _ in range(4)] == [200, 200, 200, 429]
        # The first request of each counted for its address: the token was not known yet.
        assert [await answered(near, None) for _ in range(2)] == [200, 429]
        assert await answered(far, first) == 429


async def test_invented_tokens_have_no_rate_of_their_own(db: SessionsDB, clock: Clock) -> None:
    async with client_of(db, Rates(per_second=0.2, clock=clock)) as client:
        found = [
            await client.get("/static/style.css", headers={"Authorization": f"Bearer {number}"})
            for number in range(3)
        ]
    assert [one.status_code for one in found] == [200, 200, 429]


async def test_a_server_can_be_without_a_rate(db: SessionsDB, clock: Clock) -> None:
    async with client_of(db, Rates(per_second=None, clock=clock)) as client:
        for _ in range(30):
            assert (await client.get("/static/style.css")).status_code == 200


async def test_a_browser_gets_a_page_when_it_is_refused(db: SessionsDB, clock: Clock) -> None:
    opens = {"Accept": "text/html,*/*;q=0.8"}
    async with client_of(db, Rates(per_second=0.1, clock=clock)) as client:
        for headers, status in (
            ({"Host": "evil.example"}, 421),
            ({"Origin": "http://evil.example"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Content-Length": "1000000000"}, 413),
            ({}, 200),
            ({}, 429),
        ):
            shown = await client.get("/", headers=opens | headers)
            assert shown.status_code == status
            assert shown.headers["content-type"].startswith("text/html")
            assert ("That did not work" in shown.text) is (status != 200)
            assert shown.headers["x-content-type-options"] == "nosniff"
            assert "script-src 'self'" in shown.headers["content-security-policy"]
        assert shown.headers["retry-after"] == "10"
        for path, headers in (("/api/v1/sessions", opens), ("/", {}), ("/mcp", {})):
            told = await client.get(path, headers=headers)
            assert told.status_code == 429
            assert told.headers["content-type"] == "application/problem+json"
            assert told.headers["x-content-type-options"] == "nosniff"


async def test_a_page_of_a_refusal_shows_no_markup_of_a_stranger(db: SessionsDB) -> None:
    async with client_of(db, Rates()) as client:
        refused = await client.get("/", headers={"Accept": "text/html", "Host": "<script>x"})
    assert "&lt;script&gt;x" in refused.text
    assert "<script>x" not in refused.text


async def test_behind_a_known_proxy_each_caller_has_a_rate_of_its_own(
    db: SessionsDB, clock: Clock
) -> None:
    shared = Rates(per_second=0.1, clock=clock)
    known = ["192.0.2.0/24", "2001:db8::1"]
    async with (
        client_of(db, shared, proxies=known) as proxied,
        client_of(db, shared, proxies=known, address="203.0.113.9") as direct,
    ):

        async def status(client: httpx2.AsyncClient, forwarded: str) -> int:
            headers = {"X-Forwarded-For": forwarded}
            return (await client.get("/static/style.css", headers=headers)).status_code

        assert await status(proxied, "198.51.100.1") == 200
        assert await status(proxied, "198.51.100.2") == 200
        # The caller wrote the first address, and each proxy added one.
        assert await status(proxied, "198.51.100.3, 198.51.100.1, 2001:db8::1") == 429
        assert await status(direct, "198.51.100.4") == 200
        assert await status(direct, "198.51.100.5") == 429


async def test_without_a_known_proxy_the_header_of_a_proxy_is_not_read(
    db: SessionsDB, clock: Clock
) -> None:
    async with client_of(db, Rates(per_second=0.1, clock=clock)) as client:
        found = [
            await client.get("/static/style.css", headers={"X-Forwarded-For": f"198.51.100.{last}"})
            for last in range(2)
        ]
    assert [one.status_code for one in found] == [200, 429]


@pytest.mark.parametrize("proxy", ["*", "", "localhost", "10.0.0.1/8"])
def test_a_proxy_is_an_address_or_a_network(db: SessionsDB, proxy: str) -> None:
    with pytest.raises(InvalidArgument, match=r"proxies has .*, which is no address"):
        application(db, proxies=[proxy])


# ---- logins --------------------------------------------------------------------------------------


async def test_an_address_tries_few_tokens_over_api_pages_and_login(
    db: SessionsDB, clock: Clock
) -> None:
    made = (await tokens.create(db, "a person")).secret
    late = (await tokens.create(db, "late")).secret
    shared = Rates(clock=clock)
    async with (
        client_of(db, shared, require_token=True) as client,
        client_of(db, shared, require_token=True, address="192.0.2.2") as elsewhere,
    ):

        async def over_api(secret: str) -> httpx2.Response:
            return await client.get(
                "/api/v1/sessions", headers={"Authorization": f"Bearer {secret}"}
            )

        async def over_login(secret: str) -> httpx2.Response:
            return await client.post("/login", data={"token": secret}, headers=OWN_FORM)

        async def over_page(secret: str) -> httpx2.Response:
            return await client.get("/", headers={"Cookie": f"{COOKIE}={secret}"})

        assert (await over_api(made)).status_code == 200
        ways = [(over_api, 401), (over_login, 401), (over_page, 303)]
        for number in range(FAILED_LOGINS):
            way, status = ways[number % 3]
            assert (await way(f"wrong-{number}")).status_code == status
        for way, _ in ways:
            for secret in ("wrong", late):
                refused = await way(secret)
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == f"{LOGIN_SECONDS:.0f}"
        # A token that was accepted before, a request without one, and another address go on.
        assert (await over_api(made)).status_code == 200
        assert (await over_page(made)).status_code == 200
        assert (await client.get("/login")).status_code == 200
        there = await elsewhere.get("/api/v1/sessions", headers={"Authorization": "Bearer wrong"})
        assert there.status_code == 401
        clock.now += LOGIN_SECONDS
        assert (await over_login(late)).status_code == 303


async def test_a_revoked_token_counts_as_a_failed_login(db: SessionsDB, clock: Clock) -> None:
    made = await tokens.create(db, "a person")
    async with client_of(db, Rates(clock=clock), require_token=True) as client:
        headers = {"Authorization": f"Bearer {made.secret}"}
        assert (await client.get("/api/v1/sessions", headers=headers)).status_code == 200
        assert await tokens.revoke(db, made.token.id)
        found = [
            (await client.get("/api/v1/sessions", headers=headers)).status_code
            for _ in range(FAILED_LOGINS + 1)
        ]
    assert found == [401] * FAILED_LOGINS + [429]
