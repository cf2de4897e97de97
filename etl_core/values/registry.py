"""The registry of type families: which one a PostgreSQL type belongs to, ours or another package's.

Another package adds families by the entry point group `etl.types`, each entry naming a TypeFamily or a sequence of
them. They are looked for once, when a column has a type that none of ours knows; ours come first.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.metadata import entry_points

import pyarrow as pa

from etl_core.errors import ConfigError
from etl_core.schema.pg_types import has_form, under_domains
from etl_core.schema.table import PgType, TypeKind
from etl_core.values.families import FAMILIES, UNKNOWN
from etl_core.values.family import TypeFamily, is_carried

GROUP = "etl.types"
"""Of the entry points that add families."""


def family_of(pg_type: PgType) -> TypeFamily:
    """The family of a type, under its domains; UNKNOWN for one that no family knows, an array and a composite.

    So it is for a type whose form nobody has asked for.
    """
    base, _ = under_domains(pg_type, -1)
    if base.kind in (TypeKind.ARRAY, TypeKind.COMPOSITE) or (has_form(base) and base.form < 0):
        return UNKNOWN
    ours = _find(_OURS, base)
    return ours or _find(_others(), base) or UNKNOWN


@lru_cache(maxsize=4096)
def resolve(pg_type: PgType, type_modifier: int) -> tuple[TypeFamily | None, pa.DataType]:
    """The family of a type and the Arrow type of its values; None and a list for an array, a struct for a composite.

    The same for a multirange and a range that the settings make a list and a struct.
    """
    base, type_modifier = under_domains(pg_type, type_modifier)
    if is_struct(base) or (base.kind is TypeKind.RANGE and base.attributes):
        fields = [pa.field(one.name, resolve(one.type, one.type_modifier)[1]) for one in base.attributes]
        return None, pa.struct(fields)
    if is_list(base):
        return None, pa.list_(resolve(base.element, type_modifier)[1])
    family = family_of(base)
    arrow = family.arrow_type(base.form if has_form(base) else type_modifier)
    if not is_carried(arrow):
        raise ConfigError(
            f"type family {family.name} has Arrow type {arrow}, which the destinations do not store",
            hint="repair or uninstall the package that adds it; `etl_core.values.family` lists the types",
        )
    return family, arrow


def is_struct(base: PgType) -> bool:
    """Whether it is a composite whose attributes are known. No warehouse tells names apart by their case alone."""
    names = {attribute.name.lower() for attribute in base.attributes}
    return base.kind is TypeKind.COMPOSITE and bool(names) and len(names) == len(base.attributes)


def is_list(base: PgType) -> bool:
    """Whether it is an array whose elements are known, or a multirange whose ranges are structs."""
    if base.element is None:
        return False
    return base.kind is TypeKind.ARRAY or (base.kind is TypeKind.MULTIRANGE and bool(base.element.attributes))


def known_families() -> tuple[TypeFamily, ...]:
    """All families, ours first."""
    return (*FAMILIES, *_installed())


_Key = int | str | TypeKind
_Index = dict[tuple[str, _Key], TypeFamily]


def _index(families: Iterable[TypeFamily]) -> _Index:
    index: _Index = {}
    for family in families:
        keys: list[tuple[str, _Key]] = [("oid", oid) for oid in family.oids]
        keys += [("name", name) for name in family.names]
        keys += [("kind", kind) for kind in family.kinds]
        for key in keys:
            if key in index:
                raise ConfigError(
                    f"type families {index[key].name} and {family.name} both claim the PostgreSQL type {key[1]}",
                    hint=f"uninstall one of the packages that add them (entry point group {GROUP})",
                )
            index[key] = family
    return index


def _find(index: _Index, base: PgType) -> TypeFamily | None:
    found = index.get(("oid", base.oid))
    if found is None and base.kind is TypeKind.BASE:
        found = index.get(("name", base.name))
    return found or index.get(("kind", base.kind))


_OURS = _index(FAMILIES)


@cache
def _others() -> _Index:
    return _index(_installed())


@cache
def _installed() -> tuple[TypeFamily, ...]:
    found: list[TypeFamily] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            loaded = entry.load()
        except Exception as error:
            raise ConfigError(
                f"type family {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}",
                hint="repair or uninstall the package that adds it",
            ) from error
        families = (loaded,) if isinstance(loaded, TypeFamily) else tuple(loaded)
        for family in families:
            # Destinations know some of ours by their names.
            if family.name in {one.name for one in (*FAMILIES, *found)}:
                raise ConfigError(
                    f"type family {family.name} of {entry.value} has the name of another",
                    hint="give it one of its own, or uninstall the package that adds it",
                )
            found.append(family)
    return tuple(found)
