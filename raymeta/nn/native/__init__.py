"""Compiled scans and steps for CPUs, built at first use where the machine has a C++ compiler.

The library lies in the user's cache; its name is a hash of sources, compiler, flags and processor.
Without a compiler, or with RAYMETA_NATIVE=0, `raymeta.nn.recurrence` and `raymeta.nn.stepwise` run
the same formulas on torch's own operations, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent
SOURCES = (_FOLDER / "scans.cpp", _FOLDER / "step.cpp")
HEADERS = (_FOLDER / "products.h",)
# Without -ffast-math: NaN and infinity must be preserved.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
OFF = "0"  # value of RAYMETA_NATIVE

_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None if they cannot be built or loaded, which is logged."""
    if os.environ.get("RAYMETA_NATIVE") == OFF:
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        _log.info("no C++ compiler: the recurrent layers run on torch's operations, more slowly")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, _cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or error
        _log.warning("the compiled scans cannot be used, torch's operations serve: %s", output)
        return None


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of up to 32 MiB; other C libraries are left alone.

    Training allocates the same sizes at every step.  By default they return to the system, which
    clears each page before reuse.
    """
    trim_threshold, mmap_threshold = -1, -3  # of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 2**31 - 1)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "raymeta"


def _built(compiler: str, folder: Path) -> Path:
    """Returns the library's path; builds it if it is missing."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout  # noqa: S603
    texts = [file.read_bytes() for file in (*HEADERS, *SOURCES)]
    content = b"\0".join([*texts, version, " ".join(FLAGS).encode(), _processor().encode()])
    target = folder / f"scans-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / target.name
        subprocess.run(  # noqa: S603
            [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)],
            capture_output=True,
            check=True,
            text=True,
            timeout=300,
        )
        made.replace(target)  # atomic: another process may be looking for it
    return target


def _processor() -> str:
    """The processor features behind `-march=native`: machines may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    return "\n".join(next((x for x in lines if x.startswith(key)), "") for key in wanted)
