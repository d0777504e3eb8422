"""From training to use: trains a small network, adapts it to a new task, exports and serves it.

    python scripts/use_result.py [--meta-steps N] [--episodes N] [--runs-dir DIR]

The new task is five digits written by somebody whose hand meta-training has not seen: one example
of each to adapt to, another one to recognise.  It needs `pip install -e '.[onnx,serve]'`.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime

import raymeta
from raymeta.data.readers.unipen import read_unipen
from raymeta.experiment.schema import Experiment
from raymeta.tasks.load import load_tasks

DIGITS = ("1", "2", "3", "4", "7")
START_S = 300


def new_task(experiment: Experiment) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two examples of each digit by one writer: points `[P, 3]`, x, y and the stroke's number."""
    writers = load_tasks(experiment).deal["writer"]
    files = {path.name: path for path in experiment.tasks.data_files()}
    name = min(writer for writer, split in writers.items() if split == "test")
    recordings, _ = read_unipen(files[name])
    first, second = [], []
    for digit in DIGITS:
        rows = [row for row, name in enumerate(recordings.classes) if name == digit]
        first.append(recordings.x[rows[0]])
        second.append(recordings.x[rows[1]])
    return first, second


def padded(x: list[np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Examples as the inputs of an exported graph."""
    sizes = np.array([len(one) for one in x], dtype=np.int64)
    filled = [np.pad(one, ((0, sizes.max() - len(one)), (0, 0))) for one in x]
    return {f"{prefix}x": np.stack(filled), f"{prefix}lengths": sizes}


@contextmanager
def server_of(run: str, token_file: Path) -> Iterator[str]:
    """`raymeta serve RUN` on this machine; its address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ["--port", port, "--replicas", "1", "--token-file", str(token_file)]
    log = token_file.with_name("serve.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "raymeta", "serve", run, *options], stdout=stream, stderr=stream
        )
    try:
        deadline = time.monotonic() + START_S
        while b"curl" not in log.read_bytes():  # it ends by saying how to ask it
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server does not start: {log.read_text()}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


def asked(url: str, token: str, **body: object) -> dict[str, object]:
    """The answer to a request."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:  # noqa: S310
        return dict(json.load(answer))


def main() -> None:
    """Reads the command line, trains, adapts, predicts, exports, serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--meta-steps", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=100, help="of the meta-test")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    report = raymeta.train(
        "pen",
        overrides={
            "training.meta_steps": arguments.meta_steps,
            "training.val_episodes": max(2, arguments.episodes // 2),
            "evaluation.num_episodes": arguments.episodes,
            "search.refit": None,
        },
        runs_dir=arguments.runs_dir,
    )
    row, folder = report.meta_test.rows[0], Path(str(report.run.path))
    print(f"meta-test: {report.meta_test.metric} {row.score.mean:.3f}")

    support_x, new_x = new_task(report.experiment)
    model = raymeta.load(folder)
    start = time.perf_counter()
    adapted = model.adapt(support_x, DIGITS)
    print(f"adapted to {len(support_x)} examples in {1e3 * (time.perf_counter() - start):.1f} ms")
    chances, sets = adapted.predict_proba(new_x), adapted.predict_set(new_x, coverage=0.9)
    for digit, answer, chance, members in zip(
        DIGITS, adapted.predict(new_x), chances.max(axis=1), sets, strict=True
    ):
        print(f"  a new {digit} is read as {answer} (p {chance:.2f}); at 90 % one of {members}")
    print(f"accuracy: {adapted.score(new_x, DIGITS):.2f}")
    if adapted.familiarity is not None:
        likeness = "unlike" if adapted.familiarity.is_unlike_training else "like"
        print(f"the examples look {likeness} the training (p {adapted.familiarity.p_value:.2f})")

    # What `raymeta adapt` writes and `raymeta predict` reads.
    file = folder / "mine.raymeta"
    adapted.save(file)
    assert (raymeta.load_adapted(file).predict_proba(new_x) == chances).all()
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")

    # The same as scikit-learn has it.
    classifier = raymeta.FewShotClassifier(str(folder)).fit(support_x, DIGITS)
    assert (classifier.predict(new_x) == adapted.predict(new_x)).all()

    # Without Python or torch: the adapted network, and one that adapts itself.
    adapted.export(folder / "adapted.onnx")
    model.export(folder / "adapts.onnx")
    session = onnxruntime.InferenceSession(str(folder / "adapted.onnx"))
    (found,) = session.run(["probabilities"], padded(new_x))
    np.testing.assert_allclose(found, chances, atol=1e-4)
    session = onnxruntime.InferenceSession(str(folder / "adapts.onnx"))
    given = {**padded(support_x, "support_"), "support_y": np.arange(5), **padded(new_x)}
    (found,) = session.run(["probabilities"], given)
    np.testing.assert_allclose(found, chances, atol=1e-4)
    print("onnxruntime answers the same, and adapts itself to the same")

    # By HTTP.
    token_file = folder / "serve.token"
    with server_of(str(folder), token_file) as url:
        token, x = token_file.read_text().strip(), [one.tolist() for one in support_x]
        task = asked(f"{url}/tasks", token, x=x, y=DIGITS)
        answer = asked(
            f"{url}/tasks/{task['id']}/predict", token, x=[one.tolist() for one in new_x]
        )
    np.testing.assert_allclose(np.array(answer["probabilities"]), chances, atol=1e-9)
    print(f"the server answers the same: {answer['predictions']}")


if __name__ == "__main__":
    main()
