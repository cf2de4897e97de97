"""What a package hands over so that `type: …` in a configuration finds its destination.

The destinations of this package are declared by the same value. `docs/destinations/writing_one.md` shows a whole
package, whose entry point in the group `etl.destinations` is all that makes it known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from etl_core.destination.options import Option, Options
from etl_core.destination.protocol import Destination
from etl_core.destination.reader_names import ReaderNames
from etl_core.destination.url import DestinationUrl
from etl_core.type_options import Held
from etl_core.write_mode import WriteMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationType:
    """A type of destination. The module that holds it should import no library of the product: `build` does.

    `build(options, pipeline)` makes the destination of one pipeline, and connects to nothing yet. Options come as
    `Options` says; without `options` they come as they were given, any may be a secret, and `build` checks them itself.

    `check(options)` raises ConfigError, with a field, for what the declaration cannot tell, such as two options that
    exclude each other. Commands that write nothing call it too.

    `reader_names(options)` tells what queries call the tables, where they can be queried. Without it dbt sources cannot
    be written, and Dagster shows PostgreSQL's names and types.

    `refuses(write_mode, options)` tells, as the end of a sentence, why tables cannot have that write mode, None where
    they can. Without it they can be mirrors alone.

    `value_range` is what the destination holds of dates, times and intervals, and of -0, if that is less than Arrow
    does. Values beyond it come to the destination where `out_of_range` of a column is `refuse`, and it refuses them.
    One that reads PostgreSQL's text into PostgreSQL's types has EVERY_VALUE, and is given text.

    `has_enums` tells whether a column may be an enum (`etl_core.schema.pg_types.is_enum`), stored with its labels.

    `types` are the words of the options of types that are in force where the settings have none.

    `url` is how `destination: …` may be written in one word; without it the options are written one by one.

    `tables_in_commit` is how many tables a batch changes in one transaction at most, None for all; the tables of a
    larger batch become visible in several.
    """

    build: Callable[[Options, str], Destination]
    options: tuple[Option, ...] | None = None
    check: Callable[[Options], object] | None = None
    reader_names: Callable[[Options], ReaderNames | None] | None = None
    refuses: Callable[[WriteMode, Options], str | None] | None = None
    value_range: Held = None
    has_enums: bool = False
    types: Mapping[str, str] = field(default_factory=dict)
    url: DestinationUrl | None = None
    tables_in_commit: int | None = None
