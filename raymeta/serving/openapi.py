"""The server's requests and answers in the terms of OpenAPI 3.1, whose schemas are JSON Schema."""

from __future__ import annotations

from typing import Any

from raymeta.serving.bodies import ARROW, JSON

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_BINARY = {"type": "string", "format": "binary"}
_LABEL = {"type": ["string", "integer"]}
_VALUE = {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER}]}
_END = {
    "anyOf": [
        {"type": ["number", "null"]},
        {"type": "array", "items": {"type": ["number", "null"]}},
    ]
}
# What a client is told with each status that is not a success.
_ERRORS = {
    400: "an example, a label or an option breaks a rule",
    401: "the token is missing or wrong",
    404: "there is no such task (any more)",
    406: "Accept names neither JSON nor Arrow",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "Content-Type names neither JSON nor Arrow",
    429: "too many tasks are kept, or too many requests wait",
    503: "no replica answers, or the tasks cannot be kept or read; try again",
}
_SENT = (400, 408, 413, 415)  # the errors of routes that take a body


def _list(items: dict[str, Any], description: str = "") -> dict[str, Any]:
    told = {"description": description} if description else {}
    return {"type": "array", "items": items, **told}


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _named(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_EXAMPLES = _list(
    {"anyOf": [_list(_list(_NUMBER)), _TEXT]},
    "an example each: a list of time steps, each a list with a number for each channel; or a text",
)
_TARGETS = _list(
    {"anyOf": [_LABEL, _VALUE]},
    "the class of each example (text or whole number), or its number(s)",
)
_KEPT = {
    "id": _TEXT,
    "classes": {"type": ["array", "null"], "items": _LABEL},
    "familiarity": {
        **_object(
            {
                **dict.fromkeys(("distance", "threshold", "p_value"), _NUMBER),
                "is_unlike_training": {"type": "boolean"},
            }
        ),
        "type": ["object", "null"],
    },
    "expires": {"type": "string", "format": "date-time"},
}
_ADAPTED = {**_KEPT, "num_examples": {"type": "integer"}}
_WARNINGS = {"warnings": _list(_TEXT)}
_PREDICTED = {
    "predictions": _list({"anyOf": [_LABEL, _VALUE]}),
    "classes": _list(_LABEL, "in the order of the probabilities"),
    "probabilities": _list(_list(_NUMBER)),
    "ids": _list(_TEXT, "of the examples, where a stream of Arrow has them"),
    "sets": _list(_list(_LABEL), "with coverage: the classes in each prediction set"),
    **{
        name: _list(_END, "with coverage: this end of each interval; null if it is infinite")
        for name in ("lower", "upper")
    },
}
_TABLE = {
    "type": "object",
    "additionalProperties": _list({"type": ["number", "string", "null"]}),
}
_MODEL = {
    **dict.fromkeys(("experiment", "problem", "learner"), _TEXT),
    **dict.fromkeys(("columns", "media_types"), _list(_TEXT)),
    "target": {"type": ["string", "null"]},
    "networks": {"type": "integer"},
    "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
}
_SOMETIMES = ("classes", "probabilities", "ids", "sets", "lower", "upper")
_SCHEMAS = {
    "Error": _object({"error": _TEXT}),
    "Support": _object({"x": _EXAMPLES, "y": _TARGETS}),
    "Supports": _object({"tasks": _list(_named("Support"), "the support examples of each task")}),
    "Examples": _object({"x": _EXAMPLES}),
    "ExamplesOfTasks": _object({"tasks": _list(_object({"id": _TEXT, "x": _EXAMPLES}))}),
    "Task": _object(_KEPT),
    "Adapted": _object({**_ADAPTED, **_WARNINGS}),
    "AdaptedTasks": _object(
        {
            "tasks": _list(
                _object(
                    {"task": {**_TEXT, "description": "as a stream of Arrow names it"}, **_ADAPTED},
                    "task",
                ),
                "each task, in the order of the request",
            ),
            **_WARNINGS,
        }
    ),
    "Predictions": _object(_PREDICTED, *_SOMETIMES),
    "PredictionsOfTasks": _object(
        {
            "tasks": _list(
                _object({"id": _TEXT, **_PREDICTED}, *_SOMETIMES),
                "each task, in the order of the request",
            )
        }
    ),
    "History": _object(
        {
            "history": {**_TABLE, "description": "a row a time step, of any number of series"},
            "known": {**_TABLE, "description": "what is known of the steps to come"},
        },
        "known",
    ),
    "Forecasts": _object({"forecasts": _TABLE, **_WARNINGS}),
    "Model": {
        "anyOf": [
            _object(
                {
                    **_MODEL,
                    **dict.fromkeys(("channels", "classes"), _list(_TEXT)),
                    "categories": {"type": "object", "additionalProperties": _list(_TEXT)},
                    "text": {"type": "boolean"},
                    "num_ways": {"type": ["integer", "null"]},
                    "num_shots": {"type": "integer"},
                }
            ),
            _object({**_MODEL, "known": _list(_TEXT), "horizon": {"type": "integer"}}),
        ]
    },
    "Health": _object({"status": _TEXT}),
}


def _route(
    summary: str,
    answer: str | None,
    *errors: int,
    sent: str | None = None,
    status: int = 200,
    arrow: str = "",
    parameters: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    """Describes a route.

    Args:
        summary: what it does.
        answer: the schema of its answer; None for an answer without a body.
        errors: further statuses than those that all routes have.
        sent: the schema of its JSON body, and then also takes Arrow.
        status: of success.
        arrow: what a stream of Arrow as the answer has; empty where there is none.
        parameters: of its address.
    """
    content: dict[str, Any] = {} if answer is None else {JSON: {"schema": _named(answer)}}
    if arrow:
        content[ARROW] = {"schema": {**_BINARY, "description": arrow}}
    success = {"description": "done", **({"content": content} if content else {})}
    told = {JSON: {"schema": _named("Error")}}
    known = sorted({*errors, *(_SENT if sent else ()), 429, 503})
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {
            str(status): success,
            **{str(code): {"description": _ERRORS[code], "content": told} for code in known},
        },
    }
    if sent:
        bodies = {JSON: {"schema": _named(sent)}, ARROW: {"schema": _BINARY}}
        found["requestBody"] = {"required": True, "content": bodies}
    if parameters:
        found["parameters"] = list(parameters)
    return found


_ID = {"name": "task_id", "in": "path", "required": True, "schema": _TEXT}
_COVERAGE = {
    "name": "coverage",
    "in": "query",
    "description": "adds prediction sets or intervals that hold the truth with this probability "
    "over new tasks, such as 0.9",
    "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
}
_COLUMNS = "the columns that `raymeta predict` writes"
_PATHS = {
    "/tasks": {
        "post": _route(
            "Adapts to the support examples of a new task, and keeps the task for a time",
            "Adapted",
            sent="Support",
            status=201,
        )
    },
    "/tasks/batch": {
        "post": _route(
            "Adapts to the support examples of many tasks at once: all of them are kept, or none; "
            "in Arrow the column `task` names the task of each row",
            "AdaptedTasks",
            sent="Supports",
            status=201,
        )
    },
    "/tasks/{task_id}": {
        "get": _route(
            "Returns the classes of a task, and when it expires", "Task", 404, parameters=(_ID,)
        ),
        "delete": _route("Forgets a task", None, 404, status=204, parameters=(_ID,)),
    },
    "/tasks/{task_id}/predict": {
        "post": _route(
            "Predicts the class and its probabilities, or the value, of a task's examples",
            "Predictions",
            *(404, 406),
            sent="Examples",
            arrow=_COLUMNS,
            parameters=(_ID, _COVERAGE),
        )
    },
    "/predict/batch": {
        "post": _route(
            "Predicts the examples of many tasks at once: all of them are answered, or none; in "
            "Arrow the column `task` has the id of each row's task",
            "PredictionsOfTasks",
            *(404, 406),
            sent="ExamplesOfTasks",
            arrow=f"the column `task`, and {_COLUMNS}, empty where a task has no such class",
            parameters=(_COVERAGE,),
        )
    },
    "/forecast": {
        "post": _route(
            "Forecasts what follows the past of each series",
            "Forecasts",
            *(404, 406),
            sent="History",
            arrow="the columns that `raymeta forecast` writes",
            parameters=(_COVERAGE,),
        )
    },
    "/model": {
        "get": _route(
            "Returns what the network expects: channels, columns, classes, shots, limits", "Model"
        )
    },
    "/health": {"get": _route("Tells whether a replica answers; needs no token", "Health")},
    "/metrics": {
        "get": _route(
            "Returns counts and times of requests, adaptations and tasks in Prometheus' format",
            None,
        )
    },
}
_OPEN = {"/health"}  # to everybody


def document(*, has_token: bool) -> dict[str, Any]:
    """Describes the server.

    Args:
        has_token: clients must send a token.
    """
    paths: dict[str, Any] = {}
    for path, routes in _PATHS.items():
        paths[path] = {}
        for method, route in routes.items():
            own = {**route, "responses": dict(route["responses"])}
            if path == "/metrics":
                content = {PROMETHEUS: {"schema": _TEXT}}
                own["responses"]["200"] = {"description": "done", "content": content}
            if has_token and path not in _OPEN:
                told = {JSON: {"schema": _named("Error")}}
                own["responses"]["401"] = {"description": _ERRORS[401], "content": told}
                own["security"] = [{"HTTPBearer": []}]
            paths[path][method] = own
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "raymeta", "version": "1"},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
    if has_token:
        found["components"] = {
            "schemas": _SCHEMAS,
            "securitySchemes": {"HTTPBearer": {"type": "http", "scheme": "bearer"}},
        }
    return found
