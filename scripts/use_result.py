"""From training to predictions: trains a small network, adapts it to a new task and uses it.

    python scripts/use_result.py [--meta-steps N] [--episodes N] [--runs-dir DIR]

The new task is five digits written by somebody whose hand meta-training has not seen: one example
of each to adapt to, another one to recognise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import raymeta
from raymeta.data.readers.unipen import read_unipen
from raymeta.experiment.schema import Experiment
from raymeta.tasks.load import load_tasks

DIGITS = ("1", "2", "3", "4", "7")


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


def main() -> None:
    """Reads the command line, trains, adapts, predicts."""
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
    row = report.meta_test.rows[0]
    print(f"meta-test: {report.meta_test.metric} {row.score.mean:.3f}")

    support_x, new_x = new_task(report.experiment)
    model = raymeta.load(report.run.path)
    start = time.perf_counter()
    adapted = model.adapt(support_x, DIGITS)
    print(f"adapted to {len(support_x)} examples in {1e3 * (time.perf_counter() - start):.1f} ms")
    for digit, answer, chances in zip(
        DIGITS, adapted.predict(new_x), adapted.predict_proba(new_x), strict=True
    ):
        print(f"  a new {digit} is read as {answer} (probability {chances.max():.2f})")
    print(f"accuracy: {adapted.score(new_x, DIGITS):.2f}")

    # What `raymeta adapt` writes and `raymeta predict` reads.
    file = Path(str(report.run.path)) / "mine.raymeta"
    adapted.save(file)
    again = raymeta.load_adapted(file)
    assert (again.predict_proba(new_x) == adapted.predict_proba(new_x)).all()
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")

    # The same as scikit-learn has it.
    classifier = raymeta.FewShotClassifier(str(report.run.path)).fit(support_x, DIGITS)
    assert (classifier.predict(new_x) == adapted.predict(new_x)).all()


if __name__ == "__main__":
    main()
