"""The requests and answers of the server in OpenAPI's terms."""

from typing import Any

from raymeta.serving.bodies import ARROW, JSON

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLES = {
    "type": "array",
    "description": "an example each: a list of time steps, each a list with a number for each "
    "channel; or a text",
    "items": {
        "oneOf": [
            {
                "type": "array",
                "items": {"type": "array", "items": {"type": "number"}},
            },
            {"type": "string"},
        ]
    },
}
_TARGETS = {
    "type": "array",
    "description": "the class of each example (text or whole number), or its number(s)",
    "items": {},
}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _described(needed: dict[str, Any], answer: dict[str, Any], status: int) -> dict[str, Any]:
    """Describes a request and its answers in OpenAPI's terms."""
    sent: dict[str, Any] = {JSON: {"schema": _object(needed)}, ARROW: _BINARY}
    told = {"application/json": {"schema": _ERROR}}
    content: dict[str, Any] = {JSON: {"schema": {"type": "object", "properties": answer}}}
    if status == 200:
        content[ARROW] = _BINARY
    return {
        "requestBody": {"required": True, "content": sent},
        "responses": {
            str(status): {"description": "done", "content": content},
            "400": {"description": "an example or a label breaks a rule", "content": told},
            "401": {"description": "the token is missing or wrong", "content": told},
            "404": {"description": "there is no such task (any more)", "content": told},
            "413": {"description": "the body is too large", "content": told},
            "429": {"description": "too many tasks or requests", "content": told},
        },
    }


_WARNINGS = {"type": "array", "items": {"type": "string"}}
_TASK = {
    "id": {"type": "string"},
    "classes": {"type": "array", "items": {}, "nullable": True},
    "familiarity": {
        "type": "object",
        "nullable": True,
        "properties": {
            **{name: {"type": "number"} for name in ("distance", "threshold", "p_value")},
            "is_unlike_training": {"type": "boolean"},
        },
    },
    "expires": {"type": "string", "format": "date-time"},
    "num_examples": {"type": "integer"},
}
_NAME = {"type": "string", "description": "the column task of a stream of Arrow"}
_SUPPORT = {"x": _EXAMPLES, "y": _TARGETS}
ADAPT = _described(_SUPPORT, {**_TASK, "warnings": _WARNINGS}, 201)
ADAPT_MANY = _described(
    {
        "tasks": {
            "type": "array",
            "description": "the support examples of each task",
            "items": _object(_SUPPORT),
        }
    },
    {
        "tasks": {
            "type": "array",
            "description": "each task, in the order of the request",
            "items": {"type": "object", "properties": {"task": _NAME, **_TASK}},
        },
        "warnings": _WARNINGS,
    },
    201,
)
_PREDICTED = {
    "predictions": {"type": "array", "items": {}},
    "classes": {"type": "array", "items": {}},
    "probabilities": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number"}},
    },
    "ids": {"type": "array", "items": {"type": "string"}},
    "sets": {
        "type": "array",
        "description": "with coverage: the classes in each prediction set",
        "items": {"type": "array", "items": {}},
    },
    **{
        name: {
            "type": "array",
            "description": "with coverage: this end of each interval; null if it is infinite",
            "items": {},
        }
        for name in ("lower", "upper")
    },
}
PREDICT = _described({"x": _EXAMPLES}, _PREDICTED, 200)
PREDICT_MANY = _described(
    {
        "tasks": {
            "type": "array",
            "description": "the examples of each task",
            "items": _object({"id": {"type": "string"}, "x": _EXAMPLES}),
        }
    },
    {
        "tasks": {
            "type": "array",
            "description": "each task, in the order of the request",
            "items": {"type": "object", "properties": {"id": {"type": "string"}, **_PREDICTED}},
        }
    },
    200,
)

COVERAGE = (
    "adds prediction sets or intervals that hold the truth with this probability over new tasks, "
    "such as 0.9"
)
