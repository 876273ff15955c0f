"""alembic's entry: runs the migrations on the connection that migrate.py hands over."""

from alembic import context

from manager.store import engine  # noqa: F401 - declares every table
from manager.store.mapping import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
