"""Every fault of a configuration file at once, without a connection.

The code that reads a configuration raises the first fault that it finds. So the faulty value is left out, or one that
is missing is put in, and the file is read again: one rule for all settings, and none is checked in two places.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etl_core.config import PipelineConfig
from etl_core.config_file import build_config
from etl_core.config_values import WHOLE_URL, UnknownKey
from etl_core.config_yaml import Document
from etl_core.destination.registry import (
    check_destination,
    check_enums,
    check_write_modes,
    find_type,
)
from etl_core.errors import ConfigError

_INSTEAD: Mapping[str, object] = {
    "pipeline": "x",
    "source": {"host": "x", "publication": "x"},
    "source.publication": "x",
    "destination": {"type": "null"},
    "destination.type": "null",
    "state.url": "sqlite:///x.db",
    "metrics.prometheus": ":0",
    "hash_key": "x" * 32,
}
"""What stands for a required value while the others are looked at."""
_ITEM = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)


def find_faults(document: Document) -> tuple[PipelineConfig | None, Sequence[ConfigError]]:
    """The faults in the order of their lines, each located; the configuration if there are none."""
    search = _Search(document)
    config = search.run()
    faults = sorted((document.located(fault) for fault in search.faults), key=lambda fault: fault.line or 0)
    return (None if faults else config), faults


class _Search:
    def __init__(self, document: Document) -> None:
        self.faults = list(document.faults)
        self._folder = document.folder
        self._values: dict[str, Any] = copy.deepcopy(document.values)
        left_out = {fault.field for fault in document.faults if fault.field is not None}
        self._changed = {field for field in left_out if _find(self._values, field)[2]}
        """Fields that were left out or put in: what is said of them, or because of them, is no fault of the file."""
        self._taken: dict[str, list[int]] = {}
        """By list, the places of items that were left out."""
        self._put_in: set[str] = set()

    def run(self) -> PipelineConfig | None:
        while True:
            try:
                config = build_config(self._values, self._folder)
                self._check(config)
                return config
            except ConfigError as error:
                if not self._note(error):
                    return None

    def _check(self, config: PipelineConfig) -> None:
        """What the configuration's own classes leave to whoever uses it."""
        from etl_core.shape.rules import check_settings  # it loads Arrow

        key = str(_INSTEAD["hash_key"]) if self._is_changed("hash_key") else config.hash_key
        check_settings(config.tables, key)
        if not self._changed & {"destination", "destination.type"}:
            self._check_destination(config)

    def _check_destination(self, config: PipelineConfig) -> None:
        destination = config.destination
        found = find_type(destination.type)
        declared = {f"destination.{option.name}": option.name for option in found.type.options or ()}
        unknown = [name for where, name in declared.items() if where in self._changed]
        if unknown and WHOLE_URL not in destination.options:
            given = {name: value for name, value in destination.options.items() if name not in unknown}
            found.read_options(given, destination.folder, unknown)
            return
        check_destination(destination)
        check_write_modes(destination, config.write_modes)
        check_enums(destination, config.enum_fields)

    def _note(self, error: ConfigError) -> bool:
        """Takes the error down and its cause out of the values; whether there is more to look at."""
        if error.field is None:
            self.faults.append(error)
            return False
        field, where = error.field, self._in_file(error.field)
        if not self._is_consequence(where):
            error.field = where
            error.args = (str(error).replace(field, where, 1),)
            self.faults.append(error)
        return self._repair(error, field, where)

    def _is_consequence(self, field: str) -> bool:
        return field in self._changed or (field == "source" and self._is_changed("source.dsn", "source.host"))

    def _is_changed(self, *fields: str) -> bool:
        return any(field in self._changed for field in fields)

    def _repair(self, error: ConfigError, field: str, where: str) -> bool:
        """Changes the values so that the error, at `where` in the file, is not raised again; False if nothing helps."""
        holder, key, rest = _find(self._values, field)
        meant = error.meant if isinstance(error, UnknownKey) else None
        if key is not None and not rest:
            if isinstance(holder, dict) and meant is not None and meant not in holder:
                holder[meant] = holder.pop(key)  # to be looked at as what was meant
                return True
            if isinstance(holder, list):
                match = _ITEM.fullmatch(field)
                assert match is not None  # noqa: S101 - it was found by its place
                self._taken.setdefault(match[1], []).append(self._place_in_file(match))
            del holder[key]
        elif field.startswith("destination.") and field not in self._changed and field not in _INSTEAD:
            pass  # an option that is missing: the others are read without it
        elif field in _INSTEAD and field not in self._put_in:
            return self._put(field)
        elif key is not None:
            del holder[key]
            where = field[: len(field) - len(rest)]
        else:
            return False
        self._changed.add(where)
        return True

    def _put(self, field: str) -> bool:
        section, _, key = field.rpartition(".")
        holder = self._values.get(section) if section else self._values
        self._put_in.add(field)
        self._changed.add(field)
        if isinstance(holder, dict):
            holder[key] = copy.deepcopy(_INSTEAD[field])
        return isinstance(holder, dict)

    def _in_file(self, field: str) -> str:
        """The field as it is in the file, whose lists have the items that were left out."""
        match = _ITEM.fullmatch(field)
        return field if match is None else f"{match[1]}[{self._place_in_file(match)}]"

    def _place_in_file(self, match: re.Match[str]) -> int:
        place = int(match[2])
        for taken in sorted(self._taken.get(match[1], ())):
            place += taken <= place
        return place


def _find(values: Any, field: str) -> tuple[Any, Any, str]:
    """The mapping or list with the field, or with the nearest section around it, its key, and what is left of `field`.

    The key is None where not even a section is there.
    """
    if isinstance(values, dict):
        for key in sorted(values, key=len, reverse=True):
            rest = field.removeprefix(key)
            if field == key:
                return values, key, ""
            if field.startswith(key) and rest[0] in ".[":
                inner = _find(values[key], rest.removeprefix("."))
                return (values, key, rest) if inner[1] is None else inner
    if isinstance(values, list):
        match = re.match(r"\[(\d+)\]", field)
        if match is not None and int(match[1]) < len(values):
            return values, int(match[1]), field[match.end() :]
    return values, None, field
