"""Starts the application with a Ray of its own or on a cluster, and stops it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import ray
from ray import serve

from raymeta.errors import EndedBySignalError, ResourceError, RunError
from raymeta.inference.files import open_network
from raymeta.run_folder import Run
from raymeta.search.session import connect, stop_ray
from raymeta.serving.app import NAME, application, check_room
from raymeta.serving.settings import ServeSettings
from raymeta.serving.tasks import KeptTasks
from raymeta.storage.paths import path_at

UPDATE = signal.SIGUSR1  # asks for a rolling update
_TOKEN_BYTES = 32


def serve_run(
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    verbose: bool,
    say: Callable[[str], object],
) -> None:
    """Serves a run until SIGINT, SIGTERM or SIGHUP; a signal during the start ends that too.

    At SIGUSR1 the replicas open the run anew, one after another, while the others answer.

    Args:
        settings: an empty `tasks_dir` keeps the tasks in a private folder, until the server ends.
        host: address to listen at.
        port: of it.
        token_file: holds the token, or is made with a new one; None to serve everybody.
        verbose: show the log of Ray and Serve.
        say: receives what the user should read.

    Raises:
        ResourceError: the address is taken, there are too few cores, or it is open to others
            without a token.
        RunError: the run or the token cannot be read.
    """
    _check_address(host, port, has_token=token_file is not None)
    found = Run.open(settings.run, path_at(settings.runs_dir))
    settings = settings.model_copy(update={"run": str(found.path)})
    open_network(settings.run, ensemble=settings.ensemble)  # refuses what no replica could open
    token, is_new = (None, False) if token_file is None else _token(token_file)
    with _signals() as signals, tempfile.TemporaryDirectory(prefix="raymeta-") as own:
        if not settings.tasks_dir:
            if os.environ.get("RAY_ADDRESS"):
                raise ResourceError(
                    "on a cluster all replicas must reach the tasks: give --tasks-dir, a shared "
                    "folder or a URI"
                )
            settings = settings.model_copy(update={"tasks_dir": own})
        KeptTasks(path_at(settings.tasks_dir)).count()  # a storage out of reach is told now
        try:
            connect(verbose)
            check_room(settings.replicas)
            quiet = {"enable_access_log": False, "log_level": "INFO" if verbose else "ERROR"}
            logging.getLogger("ray.serve").setLevel(logging.INFO if verbose else logging.ERROR)
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config=quiet,
            )

            def deploy() -> None:
                serve.run(application(settings, token), name=NAME, logging_config=quiet)

            deploy()
            signals.is_serving = True
            _tell(say, host, port, token_file, token if is_new else None, found.path.name)
            while not signals.ended.is_set():
                if signals.updates.is_set():
                    signals.updates.clear()
                    deploy()
                    say("updated: all replicas have opened the run anew")
                signals.ended.wait(0.2)
            say("ending")
        except KeyboardInterrupt:
            name = signal.Signals(signals.received).name
            told = f"ended by {name} before anybody was served"
            raise EndedBySignalError(told, signals.received) from None
        finally:
            if ray.is_initialized():  # else Serve would start a Ray in order to end
                with contextlib.suppress(Exception):  # it may be what failed; Ray's end follows
                    serve.shutdown()
            stop_ray()


def _tell(
    say: Callable[[str], object],
    host: str,
    port: int,
    token_file: Path | None,
    new_token: str | None,
    run: str,
) -> None:
    where = f"[{host}]" if ":" in host else host
    url = f"http://{where}:{port}"
    header = f' -H "Authorization: Bearer $(cat {token_file})"' if token_file else ""
    say(f"{run} is served at {url} (schema: {url}/openapi.json); Ctrl-C ends it")
    if new_token is not None:
        say(f"token: {new_token} (shown once; kept in {token_file}, for you alone)")
    say(f"curl{header} {url}/model")


def _check_address(host: str, port: int, *, has_token: bool) -> None:
    try:
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not has_token and not is_loopback:
        raise ResourceError(
            f"--no-token is for this machine alone, but --host is {host}; leave one of them out"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ResourceError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; choose another "
            "--port or --host"
        ) from error


def _token(file: Path) -> tuple[str, bool]:
    """Reads or makes the token in a file; returns it and whether it is new."""
    try:
        with contextlib.suppress(FileExistsError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            token = secrets.token_urlsafe(_TOKEN_BYTES)
            with os.fdopen(made, "w") as stream:
                stream.write(token)
            return token, True
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise RunError(f"{file}: others may read the token; chmod 600 it, or remove it")
        token = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{file}: the token cannot be kept or read: {error}") from error
    if len(token) < 16:
        raise RunError(f"{file}: a token must have 16 characters at least; remove the file")
    return token, False


@dataclass
class _Signals:
    """Holds what signals have asked for: the end, by the first one's number, or an update."""

    ended: threading.Event = field(default_factory=threading.Event)
    updates: threading.Event = field(default_factory=threading.Event)
    received: int = 0
    is_serving: bool = False

    def end(self, number: int, _: FrameType | None) -> None:
        """Ends the server; the first signal also interrupts its start, which may take minutes."""
        is_first = not self.received
        self.received = self.received or number
        self.ended.set()
        if is_first and not self.is_serving:
            raise KeyboardInterrupt

    def update(self, _: int, __: FrameType | None) -> None:
        """Asks for a rolling update."""
        self.updates.set()


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Handles signals while the server runs, unless they are ignored (`nohup`)."""
    found = _Signals()
    heeded = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    handlers = dict.fromkeys(heeded, found.end)
    before = {
        number: signal.signal(number, handler)
        for number, handler in [*handlers.items(), (UPDATE, found.update)]
    }
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
