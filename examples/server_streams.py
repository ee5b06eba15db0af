"""A server that draws digits, several requests at a time on one compiled model.

    python examples/server_streams.py 8000
    curl 'http://127.0.0.1:8000/digits?labels=3,1,4&steps=50&seed=1'
    curl http://127.0.0.1:8000/streams

Each request runs a pipeline of its own, one of a pool, all over the one model: a pipeline has a scheduler and a progress bar,
which two requests cannot share. All are attached, so a run is a stream, and what it held is freed at its end. The pool bounds how
many run at once; ``total_memory_budget`` bounds their buffers, and where these leave no room the answer is 503, for the client to
come again.
"""

import json
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from diffusers import DiTTransformer2DModel

from taylorseer_fx import StreamLimitError, TaylorSeerBackend, taylorseer_backend
from taylorseer_fx.bench.shipped_pipelines import DiTDigitsPipeline
from taylorseer_fx.digits import load_digits_model

MAX_STEPS, MAX_PICTURES = 1000, 64


class Replica:
    """One compiled model, and the pipelines that take turns on it."""

    def __init__(self, model: DiTTransformer2DModel, backend: TaylorSeerBackend, num_pipelines: int) -> None:
        self.backend, self._numbers = backend, count()
        self._idle: SimpleQueue[DiTDigitsPipeline] = SimpleQueue()
        compiled = torch.compile(model.requires_grad_(False), backend=backend)
        for _ in range(num_pipelines):
            pipe = DiTDigitsPipeline(compiled)
            pipe.set_progress_bar_config(disable=True)
            backend.attach(pipe)
            self._idle.put(pipe)

    def draw(self, labels: list[int], num_steps: int, seed: int) -> list[Any]:
        """Pictures as lists of rows; waits for a pipeline."""
        pipe = self._idle.get()
        try:
            with self.backend.stream(f"request {next(self._numbers)}"):
                return list(pipe(labels, num_inference_steps=num_steps, seed=seed)[0][:, 0].tolist())
        finally:
            self._idle.put(pipe)


def read_request(query: str) -> tuple[list[int], int, int]:
    """Labels, number of steps and seed.

    Raises:
        ValueError: with what to say to the client.
    """
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    labels = [int(label) for label in given.get("labels", "").split(",") if label]
    num_steps, seed = int(given.get("steps", 50)), int(given.get("seed", 0))
    if not 1 <= len(labels) <= MAX_PICTURES or not all(0 <= label <= 9 for label in labels):
        raise ValueError(f"labels must be 1 to {MAX_PICTURES} digits with commas between, got {given.get('labels')!r}")
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"steps must be 1 to {MAX_STEPS}, got {num_steps}")
    return labels, num_steps, seed


def build_server(replica: Replica, port: int) -> ThreadingHTTPServer:
    """A server on the loopback, with a thread a request; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/digits":
                self._answer(*self._draw(url.query))
            elif url.path == "/streams":
                self._answer(200, [asdict(entry) for entry in replica.backend.stats().held])
            else:
                self._answer(404, {"error": f"no {url.path} here: /digits or /streams"})

        def _draw(self, query: str) -> tuple[int, Any]:
            try:
                return 200, {"pictures": replica.draw(*read_request(query))}
            except StreamLimitError as error:
                return 503, {"error": str(error)}
            except ValueError as error:
                return 400, {"error": str(error)}

        def _answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve the trained digits model; the first call compiles it, before threads meet it."""
    backend = taylorseer_backend(order=1, interval=5, granularity="stack", total_memory_budget=1 << 30)
    replica = Replica(load_digits_model(), backend, num_pipelines=4)
    replica.draw([0], num_steps=10, seed=0)
    build_server(replica, int(sys.argv[1]) if len(sys.argv) > 1 else 8000).serve_forever()


if __name__ == "__main__":
    main()
