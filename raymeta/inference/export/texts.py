"""Texts as the inputs of ONNX graphs: the numbers of their tokens, since ONNX splits no text.

The file's metadata say how a text is split, each as JSON:

- `tokens` is a regular expression (of Python's `re`) whose matches in the lower-cased text, from
  left to right, are its tokens;
- `vocabulary` has the number of each known token, and `unknown` that of all others.

`{prefix}x`, int64 `[N, T]`, has the numbers of each text's tokens, `{prefix}lengths` how many
there are.  With `tasks.encoder` the encoder stays outside: `{prefix}x`, float `[N, T, D]`, has its
vectors of the tokens, and the metadata `encoder` have its name and the digest of its files.  Of
either, no more than the first `max_tokens` of a text count.

Shape legend: N texts, T tokens, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raymeta.data.encoder import is_folder
from raymeta.data.readers.sentences import TOKEN
from raymeta.inference.export.nodes import Nodes
from raymeta.inference.trained import Trained
from raymeta.tasks.domains import UNKNOWN, number_of
from raymeta.tasks.settings import SentenceTasks


def text_input(
    nodes: Nodes, trained: Trained, settings: SentenceTasks, prefix: str, axis: str
) -> tuple[str, str]:
    """Adds the inputs of texts: what the network reads of them, and their lengths.

    Args:
        nodes: of the graph.
        trained: the network.
        settings: that it was trained with.
        prefix: of the inputs' names.
        axis: what the axis of texts is called.
    """
    spec, shape = trained.recipe.spec, [axis, f"{prefix}steps"]
    if spec.vocabulary_size is None:
        assert spec.num_features is not None, "there is an encoder"
        x = nodes.input(f"{prefix}x", "float", [*shape, spec.num_features])
    else:
        x = nodes.input(f"{prefix}x", "int64", shape)
        x = nodes.within(x, spec.vocabulary_size, UNKNOWN)  # padding may hold anything
    lengths = nodes.input(f"{prefix}lengths", "int64", [axis])
    most = nodes.constant([settings.max_tokens], np.int64)
    return x, nodes.op("Min", lengths, most)


def text_notes(trained: Trained, settings: SentenceTasks) -> dict[str, Any]:
    """What the metadata say of the preparation of texts."""
    facts, found = trained.identity.facts, {"max_tokens": settings.max_tokens}
    if settings.encoder is not None:
        # Others do not have a folder of this machine: its own name says enough beside the digest.
        is_own = is_folder(settings.encoder)
        name = Path(settings.encoder).name if is_own else settings.encoder
        return {**found, "encoder": {"name": name, "digest": facts["encoder"]}}
    vocabulary = number_of(facts["vocabulary"])
    return {**found, "tokens": TOKEN.pattern, "vocabulary": vocabulary, "unknown": UNKNOWN}
