"""The store: one database, opened, brought up to date, and asked in transactions.

SQLite in a file is the default; PostgreSQL is for several stations. Everything, images too, lies in
the database: one transaction covers a field, its cells and its image, a backup is one thing, and
what is deleted is gone together. A transaction that was confirmed is on the disk.

Whoever waits for news is woken by this process at once, and learns of other processes' changes by
one short question for all who wait, four times a second. LISTEN would tell sooner, but takes a
connection of its own per process, doesn't pass every pooler, and SQLite has nothing like it.

Knows transactions; what is in them is said in `leuko.service.shelf` and `reviews`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import OperationalError as Unreachable

from leuko.errors import MissingExtraError, StoreError
from leuko.service.tables import readings

WAIT = 10.0  # s for another process's transaction, before a request fails
WRITES = "leuko_writes"  # mark of a connection that will write


class Store:
    """An open store; made by `Store.open`.

    Attributes:
        url: Without the password.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._listeners: set[Callable[[int | None], None]] = set()
        self._over = False
        self._lock = threading.Lock()
        self.url = engine.url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, url: str | os.PathLike[str] | None = None) -> Store:
        """Opens a store and brings its tables up to date; makes it where there is none.

        Args:
            url: A path or ``sqlite:///PATH``, or ``postgresql://…``. None takes
                `find_default`.

        Raises:
            StoreError: It can't be opened, isn't a store, or was written by a newer Leuko.
            MissingExtraError: PostgreSQL's driver isn't installed.
        """
        from leuko.service.migrations import upgrade

        engine = _connect(url)
        store = cls(engine)
        try:
            with _explain(store.url):
                upgrade(engine)
        except BaseException:
            engine.dispose()
            raise
        return store

    @property
    def embedded(self) -> bool:
        """Whether it is a file of this machine."""
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state throughout.

        Raises:
            StoreError: The database doesn't answer.
        """
        with _explain(self.url), self._engine.connect() as connection:
            if not self.embedded:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is on the disk when the block has ended, or undone if it failed.

        Raises:
            StoreError: The database doesn't answer, or can't write.
        """
        with _explain(self.url), self._engine.connect() as connection:
            connection.execution_options(**{WRITES: True})
            with connection.begin():
                yield connection

    def check(self) -> None:
        """Asks something small.

        Raises:
            StoreError: The database doesn't answer.
        """
        with self.read() as connection:
            connection.execute(select(readings.c.id).limit(1)).first()

    def revisions(self, ids: set[int]) -> dict[int, int]:
        """The present revision of readings that exist."""
        asked = select(readings.c.id, readings.c.revision).where(readings.c.id.in_(ids))
        with self.read() as connection:
            return {row.id: row.revision for row in connection.execute(asked)}

    def listen(self, heard: Callable[[int | None], None]) -> Callable[[], None]:
        """Has `heard` called with the id of each reading that this process changes.

        After `hang_up` it is called with None, at once.

        Returns:
            A function that ends it.
        """
        with self._lock:
            self._listeners.add(heard)
            over = self._over
        if over:
            heard(None)
        return lambda: self._listeners.discard(heard)

    def hang_up(self) -> None:
        """Sends all who wait away, now and from now on, so that the service can end."""
        self._over = True
        self.tell(None)

    def tell(self, reading: int | None) -> None:
        """Wakes those who wait for a reading; for after the transaction."""
        with self._lock:
            listeners = list(self._listeners)
        for heard in listeners:
            heard(reading)

    def forget(self) -> None:
        """Makes sure that what was deleted can't be read from the files of SQLite either."""
        if self.embedded:
            with _explain(self.url), self._engine.connect() as connection:
                raw = connection.connection.driver_connection
                assert raw is not None
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Gives back all connections."""
        self._engine.dispose()


def find_default() -> Path:
    """Where the store lies if nobody says otherwise: the user's data folder."""
    home = os.environ.get("XDG_DATA_HOME", "")
    folder = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share"
    return folder / "leuko" / "leuko.db"


def now() -> str:
    """This moment in UTC, ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _connect(given: str | os.PathLike[str] | None) -> Engine:
    text = os.fspath(find_default() if given is None else given)
    if "://" not in text:
        text = f"sqlite:///{text}"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreError(
            "The store's URL can't be understood; expected a path, sqlite:///PATH or "
            "postgresql://USER:PASSWORD@HOST/DATABASE."
        ) from None
    kind = url.get_backend_name()
    if kind == "sqlite":
        return _connect_sqlite(url.database)
    if kind in ("postgresql", "postgres"):
        try:
            return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        except ModuleNotFoundError:
            raise MissingExtraError(
                "PostgreSQL needs a driver that isn't installed. Install it with: "
                "pip install 'leuko[postgres]'"
            ) from None
    raise StoreError(
        f"The store's URL begins with {kind!r}; expected a path, sqlite:///PATH or postgresql://…"
    )


def _connect_sqlite(path: str | None) -> Engine:
    if not path or path == ":memory:":
        raise StoreError("The store needs a file, such as sqlite:///leuko.db.")
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():  # patients' cells: for this user only
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(
            f"The store {place} can't be made ({error.strerror}). Name another with --store."
        ) from None
    engine = create_engine(
        f"sqlite:///{place}", connect_args={"timeout": WAIT, "check_same_thread": False}
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    # FULL: each transaction is flushed before it is answered; on macOS only fullfsync does flush.
    for setting in ("synchronous=FULL", "fullfsync=ON", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}").fetchall()
    end = monotonic() + WAIT
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        except sqlite3.OperationalError as error:
            # Of two processes that open a new file, this one is told "locked" without any waiting.
            if "locked" not in str(error) or monotonic() > end:
                raise
            sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that begins by reading can't become a writing one if another came between.
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _explain(url: str) -> Iterator[None]:
    """Turns what a database reports into one sentence."""
    try:
        yield
    except DBAPIError as error:
        words = " ".join(str(error.orig).split())[:200]
        if isinstance(error, Unreachable) and "locked" in words:
            raise StoreError(
                f"The store {url} is busy with another process for more than {WAIT:.0f} s. Try "
                "again."
            ) from error
        raise StoreError(
            f"The store {url} can't be used ({words}). Nothing that was confirmed is lost. Check "
            "that it is there, is a store of Leuko and can be written, or name another with "
            "--store."
        ) from error
    except SQLAlchemyError as error:
        raise StoreError(f"The store {url} can't be used ({error}).") from error
