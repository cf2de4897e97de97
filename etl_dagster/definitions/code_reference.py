"""Where the code is that defines a pipeline's assets, for the link on their pages."""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence

import dagster as dg

_OURS = "etl_dagster"
_CODE_REFERENCES = "dagster/code_references"


def caller() -> dg.LocalFileCodeReference | None:
    """The line outside of this package that asked for the definitions.

    None if that is Dagster itself, which loads a component and refers to its YAML by itself.
    """
    frame = inspect.currentframe()
    while frame is not None and _package(frame.f_globals) == _OURS:
        frame = frame.f_back
    if frame is None or _package(frame.f_globals) == "dagster":
        return None
    with _without_warnings():
        return dg.LocalFileCodeReference(file_path=frame.f_code.co_filename, line_number=frame.f_lineno)


def refer_to(
    reference: dg.LocalFileCodeReference | None, assets: Sequence[dg.AssetsDefinition]
) -> list[dg.AssetsDefinition]:
    """The assets with the reference, but for those whose translator gave one."""
    if reference is None:
        return [*assets]
    with _without_warnings():
        value = dg.CodeReferencesMetadataValue(code_references=[reference])

    def refer(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec if _CODE_REFERENCES in spec.metadata else spec.merge_attributes(metadata={_CODE_REFERENCES: value})

    return [*dg.map_asset_specs(refer, assets)]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Code references are in beta, which their user here can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
