"""`scripts/use_result.py` runs as it stands: training, use, export and serving."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "use_result.py"


@pytest.mark.ray
@pytest.mark.slow
def test_a_network_goes_from_training_to_predictions(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--meta-steps", "8", "--episodes", "8"),
            *("--runs-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "adapted to 5 examples" in ended.stdout
    assert "a new 7 is read as" in ended.stdout
    (run,) = tmp_path.iterdir()
    assert (run / "mine.raymeta").is_file()
    assert "onnxruntime answers the same" in ended.stdout
    assert "the server answers the same" in ended.stdout
