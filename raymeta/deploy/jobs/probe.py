"""Checks the storage on every node: `python -m raymeta.deploy.jobs.probe RUNS_DIR`.

The driver writes a file; each node must read it and write one of its own.
"""

from __future__ import annotations

import sys
import uuid
from contextlib import suppress

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymeta.errors import RaymetaError
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at, remove_folder

_TIMEOUT_S = 120


def _visit(folder: AnyPath, word: bytes) -> str:
    """Tests the storage on this node; returns why it cannot be used, or an empty text."""
    try:
        if (folder / "driver").read_bytes() != word:
            return "it reads another file there: the folder is not shared"
        write_file(folder / ray.get_runtime_context().get_node_id(), word)
    except (OSError, RaymetaError) as error:
        return f"{error}"
    return ""


def probe(runs_dir: str) -> list[tuple[str, str]]:
    """Tests the storage on every live node: address -> why it cannot be used, or an empty text."""
    name = uuid.uuid4().hex
    folder, word = path_at(runs_dir).resolve() / f".raymeta-probe-{name}", name.encode()
    write_file(folder / "driver", word)
    visit = ray.remote(num_cpus=0, max_retries=0)(_visit)
    answers = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = visit.options(scheduling_strategy=there).remote(folder, word)
            answers.append((node, answer))
    found = []
    for node, answer in answers:
        try:
            problem = ray.get(answer, timeout=_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            problem = f"no answer: {type(error).__name__}"
        if not problem and not (folder / node["NodeID"]).is_file():
            problem = "what it writes is not there: another folder"
        found.append((node["NodeManagerAddress"], problem))
    with suppress(OSError):  # the answers do not depend on it
        remove_folder(folder)
    return found


def main(runs_dir: str) -> int:
    """Prints a line for every node; returns the number of nodes that cannot use the storage."""
    ray.init(logging_level="ERROR")
    found = probe(runs_dir)
    for address, problem in found:
        print(f"node {address}: {problem or 'reads and writes ' + runs_dir}")  # noqa: T201
    return sum(bool(problem) for _, problem in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
