"""PostGIS's geometry, geography and raster as their bytes, which PostGIS prints in hexadecimal.

Those of the first two are EWKB: WKB with flags for Z, M and SRID in the type, and the SRID after it.
https://github.com/postgis/postgis/blob/master/doc/ZMSgeoms.txt
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from etl_core.identifiers import TableName
from etl_core.schema.table import Column
from etl_core.values.bytea import decode_pairs
from etl_core.values.refusal import unreadable
from etl_core.values.text import Array, offsets_from_lengths, text_bytes, variable_width

_SHORTEST = 5
"""The byte order, 0 or 1, and a number of 32 bits: the type of a geometry."""


def load_wkb(text: Array, arrow: pa.DataType, column: Column, table: TableName) -> Array:
    """Bytes. What a type of the same name prints that is not PostGIS's is refused."""
    part = text_bytes(text)
    lengths = np.diff(part.offsets)
    if (lengths & 1).any() or (part.ends - part.starts < 2 * _SHORTEST).any():
        raise unreadable(column, table)
    decoded = decode_pairs(part.data.view(np.uint16), column, table)
    if (decoded[part.starts >> 1] > 1).any():
        raise unreadable(column, table)
    return variable_width(arrow, decoded, offsets_from_lengths(lengths >> 1), part.valid)
