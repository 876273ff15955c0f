"""One definition a table: a frozen struct gives the columns, their types and the row objects."""

from __future__ import annotations

import datetime as dt
import enum
import types
import typing
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(sa.types.TypeDecorator[dt.datetime]):
    """Aware UTC on both sides; SQLite keeps naive text of fixed width, so it still sorts."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(sa.DateTime(timezone=dialect.name != "sqlite"))

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        when: dt.datetime = value
        return when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        if dialect.name == "sqlite":
            return super().result_processor(dialect, coltype)
        # The driver reads them so already, in the time zone of our connections.
        return None


class PlainText(sa.types.TypeDecorator[str]):
    """Any text; a NUL, which PostgreSQL can not keep, becomes the sign for what is unreadable."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\x00", "\ufffd")


class Json(sa.types.TypeDecorator[Any]):
    """Any value of the struct's field type, as JSON text."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        # Made once: looking at a kind takes longer than decoding most values.
        self._decode = msgspec.json.Decoder(kind).decode

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        decode = self._decode
        return lambda value: None if value is None else decode(value)


class EnumText(sa.types.TypeDecorator[enum.Enum]):
    """An enum by its value: text, or a number for IntEnum."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: type[enum.Enum]) -> None:
        super().__init__()
        self.kind = kind

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        number = issubclass(self.kind, enum.IntEnum)
        return dialect.type_descriptor(sa.Integer() if number else sa.Text())

    def process_bind_param(self, value: enum.Enum | None, dialect: Dialect) -> Any:
        return None if value is None else value.value

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        members: dict[Any, enum.Enum | None] = {member.value: member for member in self.kind}
        return {**members, None: None}.__getitem__


_PLAIN: dict[Any, Any] = {
    str: PlainText,
    int: sa.BigInteger,
    float: sa.Float,
    bool: sa.Boolean,
    dt.datetime: UtcDateTime,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The base of every stored struct; `__table__` is set by `table`."""

    __table__: typing.ClassVar[sa.Table]
    __key__: typing.ClassVar[tuple[str, ...]]


def _column(name: str, annotation: Any, key: tuple[str, ...]) -> sa.Column[Any]:
    nullable = False
    kind = annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = [a for a in typing.get_args(annotation) if a is not type(None)]
        nullable, kind = True, kinds[0]
    column_type: Any
    if kind in _PLAIN:
        column_type = _PLAIN[kind]()
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        column_type = EnumText(kind)
    else:
        column_type = Json(kind)
    return sa.Column(name, column_type, primary_key=name in key, nullable=nullable)


def table(
    name: str, *key: str, index: tuple[tuple[str, ...], ...] = (), unique: tuple[str, ...] = ()
) -> typing.Callable[[type[Row]], Any]:
    """Class decorator: declare the table of a Row with its primary key and indexes."""

    def declare(cls: type[Row]) -> type[Row]:
        hints = typing.get_type_hints(cls)
        columns = [_column(field, hints[field], key) for field in cls.__struct_fields__]
        extras: list[Any] = [sa.Index(None, *fields) for fields in index]
        if unique:
            extras.append(sa.UniqueConstraint(*unique))
        cls.__table__ = sa.Table(name, metadata, *columns, *extras)
        cls.__key__ = key
        return cls

    return declare
