"""Checks whether an experiment can run on a cluster, before any machine is paid for."""

from __future__ import annotations

from collections.abc import Iterator

from raymeta.data.encoder import is_folder
from raymeta.deploy.files.cluster import Cluster
from raymeta.errors import DataError, RaymetaError, ResourceError
from raymeta.experiment.data_files import data_files
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.finding import Finding
from raymeta.placement import (
    NODES_VARIABLE,
    WORKERS_VARIABLE,
    Nodes,
    Placement,
    place_trials,
    to_json,
    worker_bundle,
)
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import RemotePath, path_at
from raymeta.training.trainer import estimate_memory

# Memory of a worker's process before it trains: Python, torch and Ray, measured on Linux.
PROCESS_BYTES = 450_000_000
LARGE_DATA_BYTES = 100_000_000  # Ray's limit of what a job uploads


def growth(cluster: Cluster) -> list[Nodes] | None:
    """Lists the nodes a cluster may grow to; None if its file does not state their resources."""
    if any(kind.resources is None for kind in cluster.nodes if not kind.is_head):
        return None
    return [
        Nodes(kind.name, dict(kind.resources), 1 if kind.is_head else kind.max_workers)
        for kind in cluster.nodes
        if kind.resources is not None and (kind.is_head or kind.max_workers > 0)
    ]


def job_environment(cluster: Cluster) -> dict[str, str]:
    """Makes the environment variables that tell a driver about the cluster's nodes."""
    nodes = growth(cluster)
    if nodes is not None:
        return {NODES_VARIABLE: to_json(nodes)}
    return {WORKERS_VARIABLE: str(max(1, sum(kind.min_workers for kind in cluster.nodes)))}


def check_on(experiment: Experiment, cluster: Cluster, runs_dir: str | None) -> list[Finding]:
    """Checks whether `experiment` can run on `cluster`.

    Args:
        experiment: checked, with its data.
        cluster: as `load_cluster` returned it.
        runs_dir: the `--runs-dir` of `raymeta submit`; None for the cluster's own.
    """
    found = [Finding("cluster file", f"{cluster.path} is in order ({cluster.provider})")]
    found += [Finding("cluster file", warning, "warning") for warning in cluster.warnings]
    nodes = growth(cluster)
    worker = " and ".join(f"{v:g} {k}" for k, v in worker_bundle(experiment.resources).items())
    needs = f"one trial takes {experiment.resources.num_workers} × ({worker})"
    if nodes is not None:
        try:
            placement = place_trials(experiment.resources, nodes)
        except ResourceError as error:
            found.append(Finding("one trial", str(error), "error"))
        else:
            found += _on_nodes(experiment, nodes, placement, needs)
    else:
        text = f"{needs}; what the hosts have is known once they are up: a trial that fits on none "
        found.append(Finding("one trial", text + "is refused before the search starts", "note"))
    found.append(_memory(experiment))
    found.append(_storage(runs_dir or cluster.runs_dir))
    found += _data(experiment)
    found += _encoder(experiment)
    return found


def _on_nodes(
    experiment: Experiment, nodes: list[Nodes], placement: Placement, needs: str
) -> Iterator[Finding]:
    resources, search = experiment.resources, experiment.search
    held = ", ".join(f"{count} on {name}" for name, count in placement.workers_per_node.items())
    yield Finding("one trial", f"{needs}; workers that a node holds: {held}")
    most = min(placement.trials, search.num_trials) if search.space else 1
    wanted = min(resources.max_concurrent_trials or most, search.num_trials) if search.space else 1
    at_once = f"{placement.trials} fit, {wanted} are asked for (resources.max_concurrent_trials)"
    if placement.trials < wanted:
        yield Finding("trials at once", f"{at_once}; the others wait", "warning")
    elif wanted < min(placement.trials, search.num_trials) and search.space:
        idle = f"{at_once}; nodes will stand idle: set it to null for as many as fit"
        yield Finding("trials at once", idle, "note")
    else:
        yield Finding("trials at once", at_once)
    holding = [kind for kind in nodes if placement.workers_per_node[kind.name]]
    if resources.gpus_per_worker == 0 and all(kind.resources.get("GPU") for kind in holding):
        idle = "every node that holds a worker has GPUs, and none is used: set "
        yield Finding("GPUs", f"{idle}resources.gpus_per_worker to 1, or to a fraction", "warning")
    single = place_trials(resources.model_copy(update={"num_workers": 1}), nodes).trials
    if resources.num_workers > 1 and search.space and placement.trials < search.num_trials:
        more = min(single, search.num_trials)
        yield Finding(
            "advice",
            f"resources.num_workers: 1 with max_concurrent_trials: {more} lets {more} trials train "
            "at once on the same nodes, and none waits for the others' gradients; more workers "
            "pay where one trial has to end sooner, or does not fit into one worker's memory",
            "note",
        )
    bytes_needed = _worker_bytes(experiment)
    for kind in nodes:
        workers = placement.workers_per_node[kind.name]
        memory = kind.resources.get("memory")
        if memory is not None and workers * bytes_needed > memory:
            yield Finding(
                "memory",
                f"{workers} workers of about {bytes_needed / 1e9:.1f} GB are more than the "
                f"{memory / 1e9:.1f} GB of a {kind.name}; raise resources.cpus_per_worker, so that "
                "fewer share a node, or lower training.memory_gb",
                "error",
            )


def _worker_bytes(experiment: Experiment) -> float:
    """Computes a worker's largest memory over the file's values and the ends of searched ranges."""
    candidates = [experiment]
    for key, dimension in experiment.search.space.items():
        for value in dimension.ends:
            whole = experiment.is_integer(key) and isinstance(value, float)
            candidates.append(with_values(experiment, {key: int(value) if whole else value}))
    return PROCESS_BYTES + max(estimate_memory(candidate) for candidate in candidates)


def _memory(experiment: Experiment) -> Finding:
    limit = experiment.training.memory_gb
    return Finding(
        "memory",
        f"about {_worker_bytes(experiment) / 1e9:.1f} GB a worker at most; a meta-step is planned "
        f"to take no more than {limit:g} GB of it (training.memory_gb)",
    )


def _storage(runs_dir: str | None) -> Finding:
    if runs_dir is None:
        text = "no RAYMETA_RUNS_DIR in the cluster file; submit with --runs-dir FOLDER or URI"
        return Finding("storage", text, "error")
    try:
        place = path_at(runs_dir)
        if not isinstance(place, RemotePath):
            if not place.is_absolute():
                text = f"{runs_dir}: is another folder on every node; name it in full"
                return Finding("storage", text, "error")
            text = f"{place}: must be one and the same folder on all nodes; --live asks them"
            return Finding("storage", text, "note")
        probe = place / ".raymeta-check"
        write_file(probe, b"")
        place.filesystem.delete_file(probe.path)
    except (RaymetaError, OSError) as error:
        text = f"cannot be written from here: {error}; the nodes may have keys that are not here"
        return Finding("storage", text, "warning")
    return Finding("storage", f"{place}: can be written from here; --live asks the nodes")


def _encoder(experiment: Experiment) -> Iterator[Finding]:
    encoder = experiment.tasks.pretrained()
    if encoder is None:
        return
    if is_folder(encoder):
        text = f"{encoder}: does not travel with the job; every node needs this folder"
    else:
        text = f"{encoder}: downloaded by every node that lacks it in its Hugging Face cache"
    yield Finding("encoder", f"{text}; nodes need raymeta[text] as well", "note")


def _data(experiment: Experiment) -> Iterator[Finding]:
    folder = experiment.tasks.data_dir
    if folder is None:
        return
    place = path_at(folder)
    if isinstance(place, RemotePath):
        yield Finding("data", f"{place}: read by every trial")
        return
    try:
        size = sum(file.stat().st_size for file in data_files(experiment))
    except (DataError, OSError) as error:
        yield Finding("data", str(error), "error")
        return
    text = f"{place}: {size / 1e6:.1f} MB travel with the job, into the run folder"
    if size > LARGE_DATA_BYTES:
        text += f"; Ray takes {LARGE_DATA_BYTES / 1e6:.0f} MB at most, so put them in a storage "
        yield Finding("data", text + "and set tasks.data_dir to its URI", "error")
    else:
        yield Finding("data", text)


def has_errors(findings: list[Finding]) -> bool:
    """Whether a finding prevents the experiment from running."""
    return any(finding.level == "error" for finding in findings)
