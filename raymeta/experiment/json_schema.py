"""The JSON Schema of experiment files, with which an editor completes keys and marks mistakes.

It combines pydantic's schemas of the sections with the rules of the file format: a file with
`base` holds only what differs, `tasks` has the keys of its `source`, and `search.space` is keyed by
the dotted keys that can be searched.  Rules over several keys are checked by
`raymeta.experiment.file` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from raymeta.experiment.file import FIXED_TRAINING_KEYS, SEARCHABLE_SECTIONS
from raymeta.experiment.schema import Experiment
from raymeta.tasks.base_settings import SETTINGS

_BASE = {
    "type": "string",
    "description": "the file, or shipped experiment, that this one builds on: it holds only what "
    "differs",
}


def json_schema() -> dict[str, Any]:
    """Builds the schema, in dialect 2020-12."""
    models = [(model, "validation") for model in (Experiment, *SETTINGS.values())]
    references, whole = models_json_schema(models, title="raymeta experiment")  # type: ignore[arg-type]
    definitions = whole["$defs"]
    experiment = definitions.pop("Experiment")
    properties = experiment["properties"]
    sources = [references[model, "validation"] for model in SETTINGS.values()]
    required = {}
    for source, reference in zip(SETTINGS, sources, strict=True):
        settings = definitions[reference["$ref"].rpartition("/")[2]]
        required[source] = settings.pop("required")
    properties["tasks"] = {"anyOf": sources, "description": "the data, and what a task of them is"}
    del definitions["TaskSettings"]  # what all sources share; each has it
    space = definitions["Search"]["properties"]["space"]
    space["propertyNames"] = {"enum": sorted(set(_searchable()))}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **experiment,
        "title": whole["title"],
        "properties": {"base": _BASE, **properties},
        "required": [],
        "if": {"required": ["base"]},
        "else": {
            "required": experiment["required"],
            "properties": {"tasks": {"oneOf": [_whole(*item) for item in required.items()]}},
        },
        "$defs": definitions,
    }


def _whole(source: str, required: list[str]) -> dict[str, Any]:
    """Requires all keys without a default in the tasks of a file without `base`."""
    return {"properties": {"source": {"const": source}}, "required": required}


def _searchable() -> Iterator[str]:
    """Lists the dotted keys that a search may vary, for every source and learner."""
    yield "learner"
    for section in SEARCHABLE_SECTIONS:
        if section == "tasks":
            for source in SETTINGS.values():
                yield from _leaves(source, section, source.FIXED)
        elif section != "learner":
            model = Experiment.model_fields[section].annotation
            fixed = {key.partition(".")[2] for key in FIXED_TRAINING_KEYS if section == "training"}
            yield from _leaves(model, section, fixed)


def _leaves(model: Any, prefix: str, fixed: Any) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name in fixed:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, f"{prefix}.{name}", ())
        else:
            yield f"{prefix}.{name}"
