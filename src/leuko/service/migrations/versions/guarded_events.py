"""What happened to a slide is only ever added, as changes are: both are shown as its trail.

Events go with their slide, which can't be deleted once it was signed.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

SQLITE = (
    "CREATE TRIGGER events_stay BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'events are only added'); END",
    "CREATE TRIGGER events_remain BEFORE DELETE ON events "
    "WHEN EXISTS (SELECT 1 FROM slides WHERE id = OLD.slide) "
    "BEGIN SELECT RAISE(ABORT, 'events are only added'); END",
)
POSTGRESQL = (
    "CREATE FUNCTION refuse_event_alteration() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF TG_OP = 'UPDATE' OR EXISTS (SELECT 1 FROM slides WHERE id = OLD.slide) THEN "
    "RAISE EXCEPTION 'events are only added'; END IF; RETURN OLD; END $$",
    "CREATE TRIGGER events_stay BEFORE UPDATE OR DELETE ON events "
    "FOR EACH ROW EXECUTE FUNCTION refuse_event_alteration()",
)


def upgrade() -> None:
    """Makes the triggers."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE if sqlite else POSTGRESQL:
        op.execute(statement)
