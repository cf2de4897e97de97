"""What a stored type is to the one that its column has now."""

from __future__ import annotations

from enum import Enum


class TypeChange(Enum):
    """What the type that a column has in a table is to the one that it is stored as now."""

    NONE = "it is that type"
    GROWS = "each of its values is the same in that type, and ALTER makes it that"
    COMPARABLE = "its values can be compared with that type's"
    OTHER = "they cannot"
