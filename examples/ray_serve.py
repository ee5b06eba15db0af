"""A server of digits with Ray Serve: replicas that draw one request at a time, or several by turns.

    python examples/ray_serve.py            one request at a time on each of two replicas
    python examples/ray_serve.py 4          four at a time, on one replica
    curl 'http://127.0.0.1:8000/digits?labels=3,1,4&steps=50&seed=1'

A replica holds one compiled model, and a pipeline for each request that it takes at once; all are attached, so a run is a
generation, and what it held is freed at its end. Ray Serve gives a replica no more requests than that (``max_ongoing_requests``),
and lets the others wait. Several replicas, rather than several requests on one, are the choice where each has a GPU or cores of
its own; several requests on one replica share its weights.
"""

import asyncio
import sys
from collections.abc import Mapping
from itertools import count
from queue import SimpleQueue
from typing import Any

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.bench.shipped_pipelines import DiTDigitsPipeline
from taylorseer_fx.digits import load_digits_model

MAX_STEPS, MAX_PICTURES = 1000, 64
SETTINGS = {"order": 1, "interval": 5, "granularity": "stack"}


@serve.deployment
class Digits:
    """A replica: builds model and backend itself, since neither is sent from one process to another as it is."""

    def __init__(self, num_pipelines: int = 1, settings: Mapping[str, Any] = SETTINGS) -> None:
        self._backend, self._numbers = taylorseer_backend(**settings), count()
        self._idle: SimpleQueue[DiTDigitsPipeline] = SimpleQueue()
        compiled = torch.compile(load_digits_model().requires_grad_(False), backend=self._backend)
        for _ in range(num_pipelines):
            pipe = DiTDigitsPipeline(compiled)
            pipe.set_progress_bar_config(disable=True)
            self._backend.attach(pipe)
            self._idle.put(pipe)
        for labels in ([0], [0, 1]):  # compiles for one picture and for several, before a request waits or threads meet the model
            self._draw(labels, num_steps=10, seed=0)

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            wanted = read_request(request.query_params)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        pictures = await asyncio.to_thread(self._draw, *wanted)
        stats = self._backend.stats()
        return JSONResponse({"pictures": pictures, "forecast_calls": stats.forecast_calls, "held": len(stats.held)})

    def _draw(self, labels: list[int], num_steps: int, seed: int) -> list[Any]:
        """Pictures as lists of rows; waits for a pipeline."""
        pipe = self._idle.get()
        try:
            with self._backend.stream(f"request {next(self._numbers)}"):
                return list(pipe(labels, num_inference_steps=num_steps, seed=seed)[0][:, 0].tolist())
        finally:
            self._idle.put(pipe)


def read_request(given: Mapping[str, str]) -> tuple[list[int], int, int]:
    """Labels, number of steps and seed.

    Raises:
        ValueError: with what to say to the client.
    """
    labels = [int(label) for label in given.get("labels", "").split(",") if label]
    num_steps, seed = int(given.get("steps", "50")), int(given.get("seed", "0"))
    if not 1 <= len(labels) <= MAX_PICTURES or not all(0 <= label <= 9 for label in labels):
        raise ValueError(f"labels must be 1 to {MAX_PICTURES} digits with commas between, got {given.get('labels')!r}")
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"steps must be 1 to {MAX_STEPS}, got {num_steps}")
    return labels, num_steps, seed


def deploy(num_replicas: int, num_streams: int, port: int = 8000, settings: Mapping[str, Any] = SETTINGS) -> None:
    """Serve on the loopback; returns when the replicas have compiled and answer."""
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    replicas = Digits.options(num_replicas=num_replicas, max_ongoing_requests=num_streams)
    serve.run(replicas.bind(num_streams, dict(settings)), route_prefix="/digits")


if __name__ == "__main__":
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    deploy(num_replicas=1 if streams > 1 else 2, num_streams=streams)
    input("serving; press Enter to stop\n")
    serve.shutdown()
