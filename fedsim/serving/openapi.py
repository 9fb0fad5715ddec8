"""The service's own description: OpenAPI 3.1, with the table's columns and an example."""

from __future__ import annotations

from typing import Any

from fedsim import __version__
from fedsim.core.data import released
from fedsim.core.data.released import Cell, ReleasedSchema
from fedsim.core.data.schema import Column

_REFUSALS = {
    "400": "The body is no JSON in UTF-8, or ended early.",
    "401": "No valid key.",
    "408": "The body was too slow.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "A record does not fit the table.",
    "429": "Beyond the key's budget; Retry-After says when asking again has a chance.",
}


def describe(schema: ReleasedSchema, most: int) -> dict[str, Any]:
    """Return the OpenAPI document of a service that answers at most ``most`` records a request."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "A model released by a federation",
            "version": __version__,
            "description": "Send records in the table's own columns; the key's policy decides what is told.",
        },
        "security": [{"key": []}],
        "paths": {
            "/predict": {"post": _predict(schema, most)},
            "/model": {"get": _get("The model card, the columns and the key's policy", ("401",))},
            "/healthz": {"get": _get("Whether the service is alive", (), public=True)},
            "/metrics": {"get": _get("Counters, for keys of the role 'operator'", ("401", "403"))},
            "/openapi.json": {"get": _get("This document", (), public=True)},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _error(), "Record": _record(schema), "Answer": _answer(schema)},
        },
    }


def example(schema: ReleasedSchema) -> dict[str, Cell]:
    """Return a made-up record: numbers in the middle of their bounds, the first of each category."""
    return {column.name: _example(column, schema.is_date(column.name)) for column in schema.schema.columns}


def _predict(schema: ReleasedSchema, most: int) -> dict[str, Any]:
    body = {
        "type": "object",
        "required": ["records"],
        "additionalProperties": False,
        "properties": {
            "records": {
                "type": "array",
                "minItems": 1,
                "maxItems": most,
                "items": {"$ref": "#/components/schemas/Record"},
            }
        },
    }
    answer = {"schema": {"$ref": "#/components/schemas/Answer"}, "example": _example_answer(schema)}
    content = {"application/json": {"schema": body, "example": {"records": [example(schema)]}}}
    return {
        "summary": "What the policy tells of the model's probabilities",
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "An answer per record.", "content": {"application/json": answer}},
            **_refusals(tuple(_REFUSALS)),
        },
    }


def _get(summary: str, refusals: tuple[str, ...], public: bool = False) -> dict[str, Any]:
    responses = {"200": {"description": summary}, **_refusals(refusals)}
    return {"summary": summary, "responses": responses, **({"security": []} if public else {})}


def _refusals(statuses: tuple[str, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        status: {
            "description": _REFUSALS.get(status, "The key's role does not allow it."),
            "content": content,
        }
        for status in statuses
    }


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["error", "detail"],
        "properties": {"error": text, "detail": text},
    }


def _record(schema: ReleasedSchema) -> dict[str, Any]:
    properties = {column.name: _property(column, schema) for column in schema.schema.columns}
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _property(column: Column, schema: ReleasedSchema) -> dict[str, Any]:
    """Return the JSON Schema of a cell; any category is allowed, also one that nobody declared."""
    if schema.is_date(column.name):
        said = f"a date, {schema.written[column.name].words} or YYYY-MM-DD; null where it is missing"
        return {
            "type": ["string", "integer", "null"],
            "description": said,
            "examples": [_example(column, True)],
        }
    if column.kind == "number":
        low, high = column.bounds or (0.0, 1.0)
        said = f"a number, also as text, clipped to [{low:g}, {high:g}]; null where it is missing"
        return {
            "anyOf": [{"type": ["number", "null"]}, *_number_texts(column, schema)],
            "description": said,
            "examples": [_example(column, False)],
        }
    known = list(column.categories or ())
    other = f"as '{known[-1]}'" if column.other else "as unseen"
    return {
        "type": ["string", "number", "boolean", "null"],
        "description": f"a category; any other value counts {other}; null where it is missing",
        "examples": known[:20],
    }


def _number_texts(column: Column, schema: ReleasedSchema) -> list[dict[str, Any]]:
    """Return the texts that a number may be: as the table writes it, or a spelling of a missing value."""
    if column.name in schema.written:
        return [{"type": "string", "maxLength": released.LONGEST}]
    plain = {"type": "string", "pattern": "^[+-]?[0-9]{1,15}([.][0-9]{1,15})?$"}
    return [plain, *([{"enum": list(schema.spellings)}] if schema.spellings else [])]


def _example(column: Column, dated: bool) -> Cell:
    if column.kind == "category":
        return (column.categories or ("",))[0]
    low, high = column.bounds or (0.0, 1.0)
    middle = (low + high) / 2
    return released.iso_date(round(middle)) if dated else round(middle, 3)


def _answer(schema: ReleasedSchema) -> dict[str, Any]:
    classes = list(schema.schema.classes)
    row = {"type": "array", "items": {"type": ["number", "null"]}, "minItems": len(classes)}
    return {
        "type": "object",
        "required": ["classes", "labels", "probabilities"],
        "properties": {
            "classes": {"type": "array", "items": {"type": "string"}, "const": classes},
            "labels": {"type": "array", "items": {"enum": [*classes, None]}},
            "probabilities": {"type": "array", "items": row, "description": "null: the policy tells nothing"},
        },
    }


def _example_answer(schema: ReleasedSchema) -> dict[str, Any]:
    classes = schema.schema.classes
    p = [1.0] + [0.0] * (len(classes) - 1)
    return {"classes": list(classes), "labels": [classes[0]], "probabilities": [p]}
