"""PostgreSQL logical replication into analytical destinations, column by column."""

from __future__ import annotations

__version__ = "0.1.0"
