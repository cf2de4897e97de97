"""The shape of the component's YAML as it is checked: exact types, and no secret in any error."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model, model_validator

from etl_dagster.secrets import refuse_literal_secrets

_Template = Annotated[str, Field(pattern=r"\{\{")]


def exact_model(declared: type[BaseModel], derived: type[BaseModel]) -> type[BaseModel]:
    """What Dagster derives from `declared`, less the text it admits for any value; only a template `{{ … }}` stays.

    With it `dg check yaml` finds the wrong line inside a section, a word where a number belongs, and a number that is
    too small.
    """
    fields: dict[str, Any] = {}
    for name, field in declared.model_fields.items():
        resolver = next((data for data in field.metadata if isinstance(data, dg.Resolver)), None)
        constraints = [data for data in field.metadata if not isinstance(data, dg.Resolver)]
        given = resolver.model_field_type if resolver and resolver.model_field_type else field.annotation
        shape = _exact(given, constraints)
        known = derived.model_fields[name]
        default = ... if known.is_required() else known.default
        fields[name] = (shape, Field(default, description=known.description))
    return create_model(derived.__name__, __base__=derived, **fields)


def without_secrets(model: type[BaseModel], sections: Sequence[str]) -> type[BaseModel]:
    """The model, which refuses secrets as text in those of its sections before it finds anything else wrong.

    An error of the shape repeats what it is about, and Dagster prints the lines around it. For the same reason the
    refusal is not a ValueError, which would be made an error of the shape.
    """

    def refuse(raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for section in sections:
                refuse_literal_secrets(section, raw.get(section))
        return raw

    validators: dict[str, Any] = {"refuse_secrets": model_validator(mode="before")(refuse)}
    return create_model(model.__name__, __base__=model, __validators__=validators)


def _exact(annotation: Any, constraints: Sequence[Any] = ()) -> Any:
    if get_origin(annotation) is Annotated:
        return annotation  # sections told apart by a word in them; exact as they are
    if get_origin(annotation) in (Union, UnionType):
        parts = [_exact(part, constraints) for part in get_args(annotation)]
        # A section or nothing: to leave it out is nothing, and with an alternative the section's lines go unnamed.
        return next((part for part in parts if _is_model(part)), Union[*parts])
    if _is_model(annotation):
        return exact_model(annotation, annotation.model()) if issubclass(annotation, dg.Resolvable) else annotation
    if annotation is NoneType:
        return annotation
    shape = Annotated[annotation, *constraints] if constraints else annotation
    return shape if annotation is str else shape | _Template


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
