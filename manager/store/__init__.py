"""The managers' database: SQLAlchemy Core, rows as frozen structs, one file a noun."""
