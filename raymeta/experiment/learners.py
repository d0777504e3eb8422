"""The learners of an experiment file: one section for each, made of its settings."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import Field, create_model

from raymeta.meta.settings import SETTINGS, LearnerSettings
from raymeta.sections import Section


def section_of(settings: type[LearnerSettings]) -> type[Section]:
    """The section that validates a learner's settings: their names, types, defaults and rules."""
    types = get_type_hints(settings)
    definitions: dict[str, Any] = {
        f.name: (types[f.name], Field(f.default, **f.metadata)) for f in fields(settings)
    }
    return create_model(
        settings.__name__.replace("Settings", "Section"),
        __base__=Section,
        __doc__=settings.__doc__,
        **definitions,
    )


SECTIONS = {name: section_of(settings) for name, settings in SETTINGS.items()}
globals().update({section.__name__: section for section in SECTIONS.values()})  # pickle looks here

if TYPE_CHECKING:

    class Learners(Section):
        """The chosen learner, and the section of every learner under its name."""

        learner: str

        def __getattr__(self, name: str) -> Any: ...

else:
    Learners = create_model(
        "Learners",
        __base__=Section,
        learner=(Literal[*SETTINGS], "maml"),
        **{name: (section, section()) for name, section in SECTIONS.items()},
    )
