"""Says which option to set when two pipelines of a process define the same asset key.

In one code location Dagster refuses that with "Duplicate asset key", which names neither the pipelines nor the way out.
Whether the two belong to one location is not known where they are built, so it is said, not refused.
"""

import logging
import weakref
from collections.abc import Sequence

import dagster as dg

_log = logging.getLogger(__name__)

_alive: dict[dg.AssetKey, tuple[str, "weakref.ref[dg.AssetsDefinition]"]] = {}
"""Of each key the pipeline that defined it last, and its definition as long as anything uses it."""


def tell_clashes(pipeline: str, assets: Sequence[dg.AssetsDefinition]) -> None:
    """Warns if another pipeline's asset that is still in use has the key of one of `assets`."""
    for asset in assets:
        for key in asset.keys:
            other, definition = _alive.get(key, (pipeline, None))
            if other != pipeline and definition is not None and definition() is not None:
                _log.warning(
                    "pipelines %s and %s both define the asset %s, which Dagster refuses in one code location:"
                    " give one of them a prefix, in Python with translator=DagsterReplicationTranslator(key_prefix=%r),"
                    " in YAML with translation: {key_prefix: %s}",
                    other,
                    pipeline,
                    key.to_user_string(),
                    pipeline,
                    pipeline,
                )
                return
            _alive[key] = (pipeline, weakref.ref(asset))
