"""The `tasks` section of an experiment: the settings of every source, but for those of tables.

`raymeta.tasks.load` says how to add a source.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    model_validator,
)
from pydantic_core import PydanticKnownError

from raymeta.data.files import files_in
from raymeta.sections import Probability, Section, Seed
from raymeta.storage.paths import AnyPath, path_at
from raymeta.tasks import python_settings  # noqa: F401  (its classes register themselves)
from raymeta.tasks.base_settings import SETTINGS, SHIPPED_DATA, FileTasks, TaskSettings

PEN_DIR, SENTENCES_DIR = SHIPPED_DATA / "uji_pen", SHIPPED_DATA / "uci_sentences"


class Augmentation(Section):
    """How meta-training episodes of pen strokes are varied.

    All examples of a class share one affine map: a rotation (uniform in ±degrees), a mirror image
    (with a probability), a log-normal stretch of each axis and a normal shear.  A class may also be
    written backwards, or blended point by point with another one (each with a probability).  So few
    characters become many classes: Rajendran et al. 2020, "Meta-learning requires
    meta-augmentation".  Each example adds a smaller affine map and a smooth random bending.
    """

    class_rotation_deg: float = Field(30.0, ge=0, le=180)
    class_mirror: float = Field(0.5, ge=0, le=1)
    class_reverse: float = Field(0.0, ge=0, le=1)
    class_blend: float = Field(0.0, ge=0, le=1)
    class_scale: float = Field(0.2, ge=0, le=2)
    class_shear: float = Field(0.2, ge=0, le=2)
    example_rotation_deg: float = Field(10.0, ge=0, le=180)
    example_scale: float = Field(0.1, ge=0, le=2)
    example_shear: float = Field(0.1, ge=0, le=2)
    example_bend: float = Field(0.1, ge=0, le=2)


class PenTasks(TaskSettings):
    """Characters written with a pen, UCI "UJI Pen Characters"."""

    problem: ClassVar[str] = "classification"
    FIXED: ClassVar[frozenset[str]] = TaskSettings.FIXED | {"split_seed"}

    source: Literal["pen"]
    num_ways: int = Field(5, ge=2)
    num_shots: int = Field(1, ge=1)
    num_queries: int = Field(3, ge=1, description="query examples a class")
    num_points: int = Field(24, ge=4, le=512, description="time steps a character is resampled to")
    context_grid: int = Field(
        0,
        ge=0,
        le=16,
        description="tells the network at every step what ink there is around the pen, on a square "
        "grid of so many places a side; 0 for none",
    )
    split_seed: Seed = Field(0, description="deals characters and writers into the splits")
    data_dir: str | None = Field(
        None, description="a folder of UNIPEN files UJIpenchars-w*; null for the shipped ones"
    )
    augmentation: Augmentation = Augmentation()

    def data_files(self) -> list[AnyPath]:
        """Lists the files, one for each writer."""
        folder = path_at(self.data_dir) if self.data_dir else PEN_DIR
        return files_in(folder, "UJIpenchars-w*")


class SentenceTasks(TaskSettings):
    """The settings of every source of text."""

    problem: ClassVar[str] = "classification"
    FIXED: ClassVar[frozenset[str]] = TaskSettings.FIXED | {"split_seed", "encoder"}

    num_shots: int = Field(5, ge=1)
    num_queries: int = Field(10, ge=1, description="query examples a class")
    split_seed: Seed = Field(0, description="keeps back sentences for meta-validation")
    encoder: str | None = Field(
        None,
        min_length=1,
        description="a frozen pretrained Transformer whose token vectors the network reads: a "
        "folder of safetensors, or a name of the Hugging Face hub; needs raymeta[text]",
    )
    max_tokens: int = Field(32, ge=4, le=512, description="longer sentences are cut here")
    min_count: int = Field(
        2, ge=1, description="rarer training tokens become <unk>; unused with an encoder"
    )
    token_dropout: Probability = Field(
        0.1, description="chance of a training token to be <unk>, or zeros with an encoder"
    )

    def pretrained(self) -> str | None:
        """The encoder."""
        return self.encoder

    @property
    def has_fixed_labels(self) -> bool:
        """All domains share their labels."""
        return True


class SentimentTasks(SentenceTasks):
    """Sentences of praise and blame by domain, UCI "Sentiment Labelled Sentences"."""

    FIXED: ClassVar[frozenset[str]] = SentenceTasks.FIXED | {"test_domain"}

    source: Literal["sentiment"]
    num_ways: Literal[2] = Field(2, description="praise and blame")
    test_domain: str = Field("yelp", description="held out whole: amazon, imdb or yelp")
    data_dir: str | None = Field(
        None, description="a folder of JSON files, one a domain; null for the shipped ones"
    )

    def data_files(self) -> list[AnyPath]:
        """Lists the files, one for each domain."""
        folder = path_at(self.data_dir) if self.data_dir else SENTENCES_DIR
        return files_in(folder, "*.json")


class SinusoidTasks(TaskSettings):
    """Regression of sine waves of random amplitude and phase (Finn et al. 2017, section 5.1)."""

    problem: ClassVar[str] = "regression"

    source: Literal["sinusoid"]
    num_ways: Literal[1] = Field(1, description="one output")
    num_shots: int = Field(10, ge=1, le=100_000)
    num_queries: int = Field(10, ge=1, le=100_000)
    data_dir: None = Field(None, description="sine waves are drawn, not read")

    @property
    def has_fixed_labels(self) -> bool:
        """A number means the same in all tasks."""
        return True


class TextTasks(SentenceTasks, FileTasks):
    """Texts in a table, a row each: one domain is a task, with the labels of all."""

    FIXED: ClassVar[frozenset[str]] = SentenceTasks.FIXED | {
        "files",
        "text",
        "label",
        "domain",
        "test_domains",
    }

    source: Literal["text"]
    num_ways: int = Field(2, ge=2, description="the labels that there are")
    text: str = Field("text", description="column of the texts")
    label: str = Field("label", description="column of the class")
    domain: str = Field("domain", description="column of the domain: a product, a forum, a user")
    test_domains: int = Field(1, ge=1, description="domains held out whole for the meta-test")

    @model_validator(mode="after")
    def _checks_columns(self) -> Self:
        columns = [self.text, self.label, self.domain]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text, label and domain must be three columns, but got {columns}")
        return self


def _settings_of_source(value: object) -> object:
    """Validates a mapping by the class that its `source` names."""
    if not isinstance(value, dict):
        return value
    source = value.get("source")
    if source is None:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'source'"})
    if not isinstance(source, str) or source not in SETTINGS:
        raise PydanticKnownError(
            "union_tag_invalid",
            {
                "discriminator": "'source'",
                "tag": str(source),
                "expected_tags": ", ".join(sorted(SETTINGS)),
            },
        )
    return SETTINGS[source].model_validate(value)


# The type of an experiment's `tasks`: the settings class of any registered source.
Tasks = Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_settings_of_source)]
