"""Strict arguments: what a verb's signature says, unknown names refused, and errors that name the value."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.surface.plain_text import visible

_SHOWN_ERRORS = 3
_SHOWN_VALUE = 100


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


def strict_model(model: type[BaseModel], defaults: Mapping[str, Any]) -> type[BaseModel]:
    """The argument model made strict: no coercion (`true` is no integer), no unknown names.

    Args:
        model: one field per argument.
        defaults: values that replace the defaults of the signature, e.g. from the workspace's settings.

    Returns:
        A subclass.
    """
    fields: dict[str, Any] = {}
    for name, value in defaults.items():
        info = copy(model.model_fields[name])
        info.default = value
        fields[name] = (info.annotation, info)
    return create_model(model.__name__, __base__=(_Strict, model), **fields)


def short_schema(schema: Any, drop: Collection[str]) -> Any:
    """A JSON schema without some of its annotations, which every client pays for in tokens.

    Args:
        schema: the schema or a part of it.
        drop: keywords to leave out, e.g. `title`; properties that happen to be called so stay.

    Returns:
        A new schema that accepts the same values.
    """
    if isinstance(schema, list):
        return [short_schema(item, drop) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: short_schema(each, drop) for name, each in value.items()}
        elif key not in drop:
            kept[key] = value if key == "default" else short_schema(value, drop)
    return kept


def invalid_input(error: ValidationError, verb: str, model: type[BaseModel]) -> InvalidInput:
    """Say what pydantic found in the project's own form: argument, value, what is wrong, what to do.

    Args:
        error: the failed validation.
        verb: name of the tool or route.
        model: the arguments that were expected.

    Returns:
        The error to raise.
    """
    found = error.errors(include_url=False, include_context=False)
    lines = [_line(item, verb) for item in found[:_SHOWN_ERRORS]]
    if len(found) > _SHOWN_ERRORS:
        lines.append(f"and {len(found) - _SHOWN_ERRORS} more")
    return InvalidInput("; ".join(lines) + ".", hint=_hint(_most_telling(found), verb, model))


def _most_telling(found: Sequence[Any]) -> Any:
    # A misspelt name explains the argument that seems to be missing, not the other way round.
    return next((item for item in found if item["type"] == "extra_forbidden"), found[0])


def _line(item: Any, verb: str) -> str:
    where = visible(".".join(str(part) for part in item["loc"]))
    match item["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            return f"{where} = {_shown(item['input'])} is not an argument of {verb}"
        case _:
            message = item["msg"]
            return f"{where} = {_shown(item['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    text = visible(json.dumps(value, ensure_ascii=False, default=repr))
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}…"


def _hint(item: Any, verb: str, model: type[BaseModel]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        if near:
            return f"Did you mean {near[0]}?"
        names = ", ".join(model.model_fields)
        return f"{verb} takes {names}." if names else f"{verb} takes no arguments."
    field = model.model_fields.get(name)
    return (
        f"{name}: {field.description}"
        if field and field.description
        else f"Correct {name} and repeat the call."
    )
