"""What the store keeps, as tables: the state after all of `migrations`.

Numbers of readings and cells never come again after a deletion. Times are text in UTC (ISO 8601):
they sort, and mean the same in both databases.

Knows columns; knows nothing of what they are for.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()


def _below(table: str, *, primary_key: bool = False) -> Column[int]:
    """A column that points to the row above, with which its row goes."""
    name = {"slides": "slide", "fields": "field", "readings": "reading", "cells": "cell"}[table]
    target = ForeignKey(f"{table}.id", ondelete="CASCADE")
    return Column(
        name, Integer, target, primary_key=primary_key, index=not primary_key, nullable=False
    )


slides = Table(
    "slides", metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("target", Integer, nullable=False),
    Column("keep_images", Boolean, nullable=False),
    Column("created", String(32), nullable=False),
    Column("model", String(64), nullable=False),
    Column("classes", JSON, nullable=False),
    Column("images_deleted", String(32)),
    sqlite_autoincrement=True,
)  # fmt: skip

fields = Table(
    "fields", metadata,
    Column("id", Integer, primary_key=True),
    _below("slides"),
    Column("name", Text, nullable=False),
    Column("key", String(100)),
    Column("sha256", String(64), nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    Column("scale", Float),  # px per µm of this field alone
    Column("reason", String(40)),  # why it was set aside
    Column("detail", Text),
    Column("created", String(32), nullable=False),
    UniqueConstraint("slide", "key", name="one_field_per_key"),
    UniqueConstraint("slide", "sha256", name="one_field_per_file"),
    sqlite_autoincrement=True,
)  # fmt: skip

# The bytes as they came, so that what is cut out later has the pixels that the model saw.
images = Table(
    "images", metadata,
    _below("fields", primary_key=True),
    Column("data", LargeBinary, nullable=False),
)  # fmt: skip

readings = Table(
    "readings", metadata,
    Column("id", Integer, primary_key=True),
    _below("slides"),
    Column("reader", Text, nullable=False),
    Column("arbitrates", JSON, nullable=False),  # ids of two readings, or none
    Column("created", String(32), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("signed_name", Text),
    Column("signed_at", String(32)),
    sqlite_autoincrement=True,
)  # fmt: skip

cells = Table(
    "cells", metadata,
    Column("id", Integer, primary_key=True),
    _below("slides"),
    _below("fields"),
    # Of an added cell, the one reading that has it; the machine's cells are everybody's.
    Column("reading", Integer, ForeignKey("readings.id", ondelete="CASCADE"), index=True),
    Column("x0", Float, nullable=False),
    Column("y0", Float, nullable=False),
    Column("x1", Float, nullable=False),
    Column("y1", Float, nullable=False),
    Column("label", Text),
    Column("probability", Float),
    Column("probabilities", JSON, nullable=False),
    Column("set", JSON, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip

# Beside the cells, because a review reads these for one cell at a time, and those for all.
portraits = Table(
    "portraits", metadata,
    _below("cells", primary_key=True),
    Column("image", LargeBinary),  # JPEG of the cell with a margin; goes with the slide's images
    Column("features", LargeBinary),  # float16 (D,), little-endian
)  # fmt: skip

changes = Table(
    "changes", metadata,
    Column("reading", Integer, ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("cells", JSON, nullable=False),
    Column("label", Text),
    Column("made", JSON, nullable=False),
    Column("target", String(64)),
    Column("by", Text, nullable=False),
    Column("at", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("wish", JSON),  # as it was asked for; a repeated request has to be the same
    UniqueConstraint("reading", "id", name="one_change_per_id"),
)  # fmt: skip

# The last adaptation of each reading: it couldn't be made again once the images are deleted.
adaptations = Table(
    "adaptations", metadata,
    _below("readings", primary_key=True),
    Column("at", String(32), nullable=False),
    Column("by", Text, nullable=False),
    Column("revision", Integer, nullable=False),  # of the reading whose labels were used
    Column("notes", JSON, nullable=False),
    Column("result", JSON, nullable=False),  # as of `leuko adapt --json`
    Column("bundle", LargeBinary, nullable=False),  # zipped
)  # fmt: skip

# What happened to a slide as a whole.
events = Table(
    "events", metadata,
    Column("id", Integer, primary_key=True),
    _below("slides"),
    Column("kind", String(20), nullable=False),
    Column("by", Text, nullable=False),
    Column("at", String(32), nullable=False),
    Column("detail", JSON, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip
