"""The first tables.

Changes are only ever added: the database itself refuses to alter one, to take one out of a reading,
or to remove a reading that was signed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SQLITE = (
    "CREATE TRIGGER changes_stay BEFORE UPDATE ON changes "
    "BEGIN SELECT RAISE(ABORT, 'changes are only added'); END",
    "CREATE TRIGGER changes_remain BEFORE DELETE ON changes "
    "WHEN EXISTS (SELECT 1 FROM readings WHERE id = OLD.reading) "
    "BEGIN SELECT RAISE(ABORT, 'changes are only added'); END",
    "CREATE TRIGGER signed_remains BEFORE DELETE ON readings "
    "WHEN OLD.state = 'signed' OR OLD.version > 1 "
    "BEGIN SELECT RAISE(ABORT, 'what was signed stays'); END",
)
POSTGRESQL = (
    "CREATE FUNCTION refuse_alteration() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF TG_OP = 'UPDATE' OR EXISTS (SELECT 1 FROM readings WHERE id = OLD.reading) THEN "
    "RAISE EXCEPTION 'changes are only added'; END IF; RETURN OLD; END $$",
    "CREATE FUNCTION refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF OLD.state = 'signed' OR OLD.version > 1 THEN "
    "RAISE EXCEPTION 'what was signed stays'; END IF; RETURN OLD; END $$",
    "CREATE TRIGGER changes_stay BEFORE UPDATE OR DELETE ON changes "
    "FOR EACH ROW EXECUTE FUNCTION refuse_alteration()",
    "CREATE TRIGGER signed_remains BEFORE DELETE ON readings "
    "FOR EACH ROW EXECUTE FUNCTION refuse_removal()",
)


def upgrade() -> None:
    """Makes them."""
    op.create_table(
        "slides",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("keep_images", sa.Boolean(), nullable=False),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("images_deleted", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slide", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["slide"], ["slides.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_slide", "events", ["slide"], unique=False)
    op.create_table(
        "fields",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slide", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", sa.String(length=100), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("scale", sa.Float(), nullable=True),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["slide"], ["slides.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("slide", "key", name="one_field_per_key"),
        sa.UniqueConstraint("slide", "sha256", name="one_field_per_file"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_fields_slide", "fields", ["slide"], unique=False)
    op.create_table(
        "readings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slide", sa.Integer(), nullable=False),
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("arbitrates", sa.JSON(), nullable=False),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("signed_name", sa.Text(), nullable=True),
        sa.Column("signed_at", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["slide"], ["slides.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_readings_slide", "readings", ["slide"], unique=False)
    op.create_table(
        "cells",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slide", sa.Integer(), nullable=False),
        sa.Column("field", sa.Integer(), nullable=False),
        sa.Column("reading", sa.Integer(), nullable=True),
        sa.Column("x0", sa.Float(), nullable=False),
        sa.Column("y0", sa.Float(), nullable=False),
        sa.Column("x1", sa.Float(), nullable=False),
        sa.Column("y1", sa.Float(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("probabilities", sa.JSON(), nullable=False),
        sa.Column("set", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["field"], ["fields.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["reading"], ["readings.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["slide"], ["slides.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_cells_field", "cells", ["field"], unique=False)
    op.create_index("ix_cells_reading", "cells", ["reading"], unique=False)
    op.create_index("ix_cells_slide", "cells", ["slide"], unique=False)
    op.create_table(
        "changes",
        sa.Column("reading", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("cells", sa.JSON(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("made", sa.JSON(), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("wish", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["reading"], ["readings.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("reading", "revision"),
        sa.UniqueConstraint("reading", "id", name="one_change_per_id"),
    )
    op.create_table(
        "images",
        sa.Column("field", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["field"], ["fields.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("field"),
    )
    op.create_table(
        "portraits",
        sa.Column("cell", sa.Integer(), nullable=False),
        sa.Column("image", sa.LargeBinary(), nullable=True),
        sa.Column("features", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["cell"], ["cells.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("cell"),
    )
    # ### end Alembic commands ###
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE if sqlite else POSTGRESQL:
        op.execute(statement)
