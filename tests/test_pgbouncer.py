"""A real pgbouncer, where one is installed (Debian: ``apt install pgbouncer``)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database
from sessionsdb import SessionsDB, StorageError
from sessionsdb.handlers import echo
from tests.support.work import running

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

if PGBOUNCER is None:
    pytest.skip("pgbouncer is not installed", allow_module_level=True)


@pytest.fixture
def kind() -> str:
    return "postgresql"


@contextmanager
def pgbouncer(database: Database, mode: str) -> Iterator[str]:
    """Run a pgbouncer before the server of a database, and yield a URL of the database over it."""
    url = make_url(database.url)
    folder = Path(tempfile.mkdtemp(prefix="sessionsdb-pgbouncer-"))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    host, server_port = url.query.get("host", url.host), url.query.get("port", url.port or 5432)
    (folder / "users").write_text(f'"{url.username}" "{url.password or ""}"\n')
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host={host} port={server_port}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\n"
        "default_pool_size = 10\n"
    )
    # The user of the server may use its socket. pgbouncer refuses to run as root.
    user = Path(str(host)).stat().st_uid
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, user)
    process = subprocess.Popen(
        [str(PGBOUNCER), str(configuration)],
        user=user if os.geteuid() == 0 else None,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not _accepts(port):
            assert time.monotonic() < deadline, "pgbouncer does not answer"
            assert process.poll() is None, "pgbouncer has ended"
            time.sleep(0.02)
        yield f"postgresql://{url.username}@127.0.0.1:{port}/{url.database}?sslmode=disable"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("mode", "transaction_pooler"), [("session", False), ("transaction", True)]
)
async def test_work_goes_on_behind_pgbouncer(
    database: Database, mode: str, transaction_pooler: bool
) -> None:
    with pgbouncer(database, mode) as url:
        async with SessionsDB(url, transaction_pooler=transaction_pooler) as db:
            await db.broker.register("chat", channel="test", peer="p")
            async with running(db, echo, poll_interval=0.05):
                receipt = await db.broker.send("chat", "hello")
                assert (await db.broker.wait(receipt, timeout=30)).status == "done"


async def test_a_setting_that_pgbouncer_refuses_is_explained(database: Database) -> None:
    with pgbouncer(database, "session") as url:
        engine = create_async_engine(
            url.replace("postgresql:", "postgresql+asyncpg:").replace("sslmode", "ssl"),
            connect_args={"server_settings": {"jit": "off"}},
        )
        with pytest.raises(StorageError, match=r"server_settings.*transaction_pooler=True"):
            async with SessionsDB(engine):
                pass
        await engine.dispose()


async def test_the_settings_of_a_connection_are_made(database: Database) -> None:
    async with SessionsDB(database.url) as db, db.engine.connect() as connection:
        for name, value in (
            ("plan_cache_mode", "force_generic_plan"),
            ("jit", "off"),
            ("application_name", "sessionsdb"),
        ):
            assert (await connection.exec_driver_sql(f"SHOW {name}")).scalar() == value
