"""Brings a store's tables up to date, step by step, or refuses what it doesn't know.

The steps lie in `versions`. All that are missing run in one transaction: a start that is killed
leaves the store as it was.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from leuko.errors import StoreError

TURN = 7_311_860_001  # of PostgreSQL's lock: one process migrates, others wait


def upgrade(engine: Engine) -> None:
    """Runs the missing steps.

    Raises:
        StoreError: The tables were made by a newer Leuko, or by another program.
    """
    with engine.connect() as connection:
        connection.execution_options(leuko_writes=True)
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": TURN})
            _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise StoreError(
            f"The store was written by a newer Leuko (its tables are {found!r}, this version knows "
            f"up to {scripts.get_current_head()!r}). Nothing was changed. Install the newer "
            "version, or name another store with --store."
        )
    if found is None and inspect(connection).get_table_names():
        raise StoreError(
            "The database holds tables of another program. Nothing was changed. Name an empty "
            "database, or another file, with --store."
        )
    if found != scripts.get_current_head():
        command.upgrade(config, "head")
