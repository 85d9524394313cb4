"""Run by Alembic: takes the connection that `upgrade` hands over, and its transaction."""

from alembic import context

from leuko.service.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
context.run_migrations()
