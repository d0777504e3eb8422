"""The Ray Serve application: a door that speaks HTTP, and replicas that adapt and predict.

The door checks token and size, and asks any replica.  A replica that dies takes no request with it:
the door asks another, since every request may be asked twice (the id of a task is chosen here).

A killed door loses what it has under way, answered by 500, and no more: later requests wait for the
next door.  Ray Serve's proxy asks another replica only until one has accepted a request, so that a
second door would lose its own share all the same.  There is one, whose figures are those of all
requests.

Requests are not batched (`serve.batch`): a replica answers one at a time, and one may hold many
examples.  HTTP takes most of a request's time (`scripts/bench_serving_http.py`).
"""

import asyncio
import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import ray
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray import serve
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from raymeta.errors import ResourceError
from raymeta.inference.files import open_network
from raymeta.inference.forecaster import Forecaster
from raymeta.serving import openapi
from raymeta.serving.bodies import JSON, RequestError, too_large
from raymeta.serving.forecasts import ForecastService
from raymeta.serving.service import Answer, Service, error_answer
from raymeta.serving.settings import Limits, ServeSettings
from raymeta.serving.tasks import KeptTasks, new_id
from raymeta.storage.paths import path_at

TOKEN_VARIABLE = "RAYMETA_SERVE_TOKEN"  # noqa: S105  (its name)
NAME = "raymeta"  # of the application
_BODY_S = 60  # to receive a body in
_FORGOTTEN = 8  # times the most bytes of a body: what is longer breaks the connection
_RETRY_S = 60  # to find a replica in that lives
_QUEUED = 200  # requests that wait for a replica; more are refused
_AT_ONCE = 2  # requests that a replica has taken, one of which is under way

_CPUS = ({"num_cpus": 0}, {"num_cpus": 1})  # of the door, and of a replica

# Their pages of documentation load scripts from elsewhere, and their schema does not know our
# bodies: `openapi.document` does.
api = FastAPI(openapi_url=None)


def _response(answer: Answer) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if answer.status == 401 else {}
    if answer.status == 204:
        return Response(status_code=204)
    return Response(answer.body, answer.status, headers, answer.kind)


@api.exception_handler(HTTPException)
async def _no_such_route(_: Request, error: HTTPException) -> Response:
    routes = (
        "POST /tasks, POST /tasks/batch, POST /tasks/ID/predict, POST /predict/batch, "
        "POST /forecast, GET or DELETE /tasks/ID, GET /model"
    )
    return _response(error_answer(f"{error.detail}; there are {routes}", error.status_code))


class Replica:
    """Adapts and predicts in a process of its own."""

    def __init__(self, settings: ServeSettings) -> None:
        opened = open_network(settings.run, ensemble=settings.ensemble, runs_dir=settings.runs_dir)
        self._tasks = KeptTasks(path_at(settings.tasks_dir), settings.tasks_kept)
        self._service = (
            ForecastService(forecaster=opened, limits=settings.limits)
            if isinstance(opened, Forecaster)
            else Service(model=opened, tasks=self._tasks, limits=settings.limits)
        )

    def ask(self, method: str, *arguments: Any) -> Answer:
        """Calls a method of the service and returns its answer."""
        work: Callable[..., Answer] | None = getattr(self._service, method, None)
        return self._service.refusal() if work is None else work(*arguments)

    def num_tasks(self) -> int:
        """Counts the tasks that all replicas together keep."""
        return self._tasks.count()


# Above the class: Serve copies its methods, with what they use, as it is defined.
def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


@serve.ingress(api)
class Door:
    """Speaks HTTP and checks tokens; the replicas hold the network."""

    def __init__(
        self,
        replicas: DeploymentHandle,
        token_hash: str | None,
        limits: Limits,
        keep_for_s: float,
    ) -> None:
        self._replicas, self._token_hash = replicas, token_hash
        self._limits, self._keep_for_s = limits, keep_for_s
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "raymeta_requests", "Requests answered", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "raymeta_request_seconds", "Time to an answer", ["route"], registry=self._registry
        )
        self._adaptations = Counter(
            "raymeta_adaptations", "Tasks adapted to", registry=self._registry
        )
        self._retries = Counter(
            "raymeta_retries", "Requests asked again, of another replica", registry=self._registry
        )
        self._tasks = Gauge("raymeta_tasks_kept", "Tasks kept now", registry=self._registry)

    @api.post("/tasks", status_code=201)
    async def adapt(self, request: Request) -> Response:
        """Adapts to the support examples of a new task, and keeps the task for a time."""

        async def work() -> Answer:
            body = await self._body(request)
            kind = request.headers.get("content-type")
            answer = await self._ask("adapt", new_id(self._keep_for_s), body, kind)
            if answer.status == 201:
                self._adaptations.inc()
            return answer

        return await self._served(request, "adapt", work)

    @api.post("/tasks/batch", status_code=201)
    async def adapt_many(self, request: Request) -> Response:
        """Adapts to the support examples of many tasks at once: all of them are kept, or none."""

        async def work() -> Answer:
            body = await self._body(request)
            kind = request.headers.get("content-type")
            answer = await self._ask("adapt_many", new_id(self._keep_for_s), body, kind)
            if answer.status == 201:
                self._adaptations.inc(len(json.loads(answer.body)["tasks"]))
            return answer

        return await self._served(request, "adapt_many", work)

    @api.post("/tasks/{task_id}/predict")
    async def predict(
        self, task_id: str, request: Request, coverage: str | None = None
    ) -> Response:
        """Predicts the class and its probabilities, or the value, of a task's examples."""

        async def work() -> Answer:
            body = await self._body(request)
            kinds = [request.headers.get(name) for name in ("content-type", "accept")]
            return await self._ask("predict", task_id, body, *kinds, coverage)

        return await self._served(request, "predict", work)

    @api.post("/predict/batch")
    async def predict_many(self, request: Request, coverage: str | None = None) -> Response:
        """Predicts the examples of many tasks at once: all of them are answered, or none."""

        async def work() -> Answer:
            body = await self._body(request)
            kinds = [request.headers.get(name) for name in ("content-type", "accept")]
            return await self._ask("predict_many", body, *kinds, coverage)

        return await self._served(request, "predict_many", work)

    @api.post("/forecast")
    async def forecast(self, request: Request, coverage: str | None = None) -> Response:
        """Forecasts what follows the past of each series."""

        async def work() -> Answer:
            body = await self._body(request)
            kinds = [request.headers.get(name) for name in ("content-type", "accept")]
            return await self._ask("forecast", body, *kinds, coverage)

        return await self._served(request, "forecast", work)

    @api.get("/tasks/{task_id}")
    async def task(self, task_id: str, request: Request) -> Response:
        """Returns the classes of a task, and when it expires."""
        return await self._served(request, "task", lambda: self._ask("task", task_id))

    @api.delete("/tasks/{task_id}", status_code=204)
    async def delete(self, task_id: str, request: Request) -> Response:
        """Forgets a task."""
        return await self._served(request, "delete", lambda: self._ask("delete", task_id))

    @api.get("/model")
    async def model(self, request: Request) -> Response:
        """Returns what the network expects: channels, columns, classes, shots, limits."""
        return await self._served(request, "model", lambda: self._ask("describe"))

    @api.get("/openapi.json")
    async def schema(self) -> dict[str, Any]:
        """Returns the description of all routes but this one; needs no token."""
        return openapi.document(has_token=self._token_hash is not None)

    @api.get("/health")
    async def health(self, request: Request) -> Response:
        """Tells whether a replica answers; needs no token."""

        async def work() -> Answer:
            await self._call("num_tasks")
            return Answer(200, JSON, json.dumps({"status": "ok"}).encode())

        return await self._served(request, "health", work, needs_token=False)

    @api.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """Returns counts and times of requests, adaptations and tasks in Prometheus' format."""

        async def work() -> Answer:
            self._tasks.set(await self._call("num_tasks"))
            return Answer(200, openapi.PROMETHEUS, generate_latest(self._registry))

        return await self._served(request, "metrics", work)

    async def _served(
        self,
        request: Request,
        route: str,
        work: Callable[[], Awaitable[Answer]],
        *,
        needs_token: bool = True,
    ) -> Response:
        """Runs `work` for a request with a valid token; counts and times it."""
        began = time.perf_counter()
        try:
            if needs_token:
                self._check_token(request)
            answer = await work()
        except RequestError as error:
            answer = error_answer(str(error), error.status)
        except BackPressureError:
            answer = error_answer("too many requests wait for an answer; try again later", 429)
        except TimeoutError:
            answer = error_answer(f"the body did not arrive within {_BODY_S} s", 408)
        self._requests.labels(route, answer.status).inc()
        self._seconds.labels(route).observe(time.perf_counter() - began)
        return _response(answer)

    def _check_token(self, request: Request) -> None:
        if self._token_hash is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found = _hash(token.strip())
        if scheme.lower() != "bearer" or not hmac.compare_digest(found, self._token_hash):
            raise RequestError(
                "the token is missing or wrong; send the header Authorization: Bearer TOKEN", 401
            )

    async def _body(self, request: Request) -> bytes:
        """Receives the body; of one that is too large, the rest is received and forgotten.

        A client that is answered while it sends sees a broken connection, and no answer.
        """
        most = self._limits.body_bytes
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > _FORGOTTEN * most:
            raise too_large(self._limits)
        parts, size = [], 0
        chunks: AsyncIterator[bytes] = request.stream()
        async with asyncio.timeout(_BODY_S):
            async for part in chunks:
                size += len(part)
                if size > _FORGOTTEN * most:
                    raise too_large(self._limits)
                if size <= most:
                    parts.append(part)
        if size > most:
            raise too_large(self._limits)
        return b"".join(parts)

    async def _ask(self, method: str, *arguments: Any) -> Answer:
        answer: Answer = await self._call("ask", method, *arguments)
        return answer

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Asks a replica, and another one if that replica dies."""
        until = time.monotonic() + _RETRY_S
        while True:
            try:
                return await getattr(self._replicas, method).remote(*arguments)
            except (RayActorError, WorkerCrashedError, DeploymentUnavailableError):
                if time.monotonic() > until:
                    raise RequestError("no replica answers; try again later", 503) from None
                self._retries.inc()
                await asyncio.sleep(0.1)


def application(settings: ServeSettings, token: str | None) -> serve.Application:
    """Builds the application; without a token, whoever reaches it may ask."""
    # It waits more than it works.
    door = serve.deployment(
        Door, name="Door", num_replicas=1, max_ongoing_requests=1000, ray_actor_options=_CPUS[0]
    )
    replicas = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=_AT_ONCE,
        max_queued_requests=_QUEUED,
        ray_actor_options=_CPUS[1],
    )
    handle = replicas.bind(settings)
    found = None if token is None else _hash(token)
    return door.bind(handle, found, settings.limits, settings.keep_for_s)


def build(args: ServeSettings) -> serve.Application:
    """Builds the application for `serve run` and for KubeRay's `serveConfigV2`.

    Args:
        args: of the configuration file.

    Raises:
        ResourceError: the environment has no token.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ResourceError(f"the variable {TOKEN_VARIABLE} must hold the server's token")
    return application(args, token)


def check_room(replicas: int) -> None:
    """Refuses more replicas than there are cores: the surplus would wait for ever.

    Raises:
        ResourceError: naming both.
    """
    cores = ray.cluster_resources().get("CPU", 0)
    if replicas > cores:
        raise ResourceError(
            f"{replicas} replicas take a core each, but there are {cores:g}; lower --replicas"
        )
