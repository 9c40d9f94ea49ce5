"""The tables of the catalog, and migration from earlier formats."""

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

FORMAT = 9
"""1 had no versions: a table `adapters` had one row per name. 2 to 5 lacked columns, and 6 lacked
tasks and disabled tenants, which it would admit. 7 lacked seals and adapters that answer questions
or embed, and its task column was too short for the latter. 8 did not store which adapters seem to
be made for another base model."""

metadata = sa.MetaData()

store = sa.Table(
    "store",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)

names = sa.Table(
    "names",
    metadata,
    sa.Column("tenant", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    # Outlives the versions, so that a number is never assigned twice.
    sa.Column("last_version", sa.Integer, nullable=False),
)


def _content() -> list[sa.Column[object]]:
    """Return the columns that describe a version, in format 1 and later."""
    return [
        sa.Column("digest", sa.String(71), nullable=False, index=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("item_bytes", sa.Integer, nullable=False),
        sa.Column("target_modules", sa.Text, nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("stamp", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    ]


versions = sa.Table(
    "versions",
    metadata,
    sa.Column("tenant", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    *_content(),
    sa.Column("is_pinned", sa.Boolean, nullable=False, default=False),
    sa.Column("edit_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("method", sa.String(32), nullable=False, server_default="lora"),
    sa.Column("vocab_size", sa.Integer, nullable=False, server_default="0"),
    sa.Column("invocation", sa.Text, nullable=False, server_default="[]"),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("origin", sa.Text, nullable=False, server_default=""),
    sa.Column("virtual_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("has_cache", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("task", sa.String(32), nullable=False, server_default=""),
    sa.Column("seal", sa.String(71), nullable=False, server_default=""),
    sa.Column("other_base", sa.Text, nullable=False, server_default=""),
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("tenant", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("alias", sa.String(63), primary_key=True),
    sa.Column("split", sa.Text, nullable=False),
)

moves = sa.Table(
    "moves",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("tenant", sa.String(63), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("alias", sa.String(63), nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("moved_by", sa.Text, nullable=False),
    sa.Index("moves_of_alias", "tenant", "name", "alias", "number"),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(63), primary_key=True),
    sa.Column("tenant", sa.String(63), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("tenant", sa.String(63), primary_key=True),
    sa.Column("requests_per_second", sa.Float),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("concurrent_requests", sa.Integer),
    sa.Column("weight", sa.Integer, nullable=False),
)

disabled_tenants = sa.Table(
    "disabled_tenants",
    metadata,
    sa.Column("tenant", sa.String(63), primary_key=True),
    sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=False),
)

_adapters = sa.Table(
    "adapters",
    sa.MetaData(),
    sa.Column("name", sa.String(63), primary_key=True),
    *_content(),
)


class NewerFormatError(Exception):
    """The catalog was written by a newer version of the server."""


def prepare(connection: sa.Connection, default_tenant: str) -> None:
    """Create or migrate the tables; an adapter of format 1 becomes version 1 of its name.

    Atomic, in the transaction of `connection`.

    Raises:
        NewerFormatError: The catalog has a newer format than this version knows.
    """
    metadata.create_all(connection)
    is_format = store.c.key == "format"
    found = connection.scalar(sa.select(store.c.value).where(is_format))
    if found and int(found) > FORMAT:
        raise NewerFormatError(
            f"the catalog has format {found}, but this version supports formats up to {FORMAT}; "
            "start the version that wrote it, or a newer one"
        )
    if found is None:
        if sa.inspect(connection).has_table(_adapters.name):
            _take_over(connection, default_tenant)
        connection.execute(sa.insert(store).values(key="format", value=str(FORMAT)))
    elif int(found) < FORMAT:
        _add_columns(connection)
        _widen_columns(connection)
        connection.execute(sa.update(store).where(is_format).values(value=str(FORMAT)))


def _add_columns(connection: sa.Connection) -> None:
    """Add the columns that an earlier format lacks, with their defaults."""
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        known = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def _widen_columns(connection: sa.Connection) -> None:
    """Widen string columns to their length in this format."""
    if connection.dialect.name == "sqlite":
        return  # does not enforce lengths
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        found = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            there = getattr(found[column.name], "length", None)
            wanted = getattr(column.type, "length", None)
            if there and wanted and there < wanted:
                kind = column.type.compile(dialect=connection.dialect)
                connection.execute(
                    sa.text(f"ALTER TABLE {table.name} ALTER COLUMN {column.name} TYPE {kind}")
                )


def _take_over(connection: sa.Connection, tenant: str) -> None:
    shared = [column.name for column in _adapters.columns]
    old = sa.select(
        sa.literal(tenant), sa.literal(1), sa.false(), *(_adapters.c[name] for name in shared)
    )
    connection.execute(
        sa.insert(versions).from_select(["tenant", "version", "is_pinned", *shared], old)
    )
    connection.execute(
        sa.insert(names).from_select(
            ["tenant", "name", "last_version"],
            sa.select(sa.literal(tenant), _adapters.c.name, sa.literal(1)),
        )
    )
    _adapters.drop(connection)
