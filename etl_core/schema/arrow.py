"""The one mapping from a PostgreSQL column to the Arrow type that carries its values.

A value has the same Arrow type whether it came by COPY or by the stream, and in every destination.
"""

from __future__ import annotations
