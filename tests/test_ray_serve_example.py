"""``examples/ray_serve.py`` with real requests over HTTP: what each gets is what it gets alone."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install 'taylorseer-fx[serve]'")
pytest.importorskip("fastapi", reason="Ray Serve is not installed: pip install 'taylorseer-fx[serve]'")

from ray import serve

from examples import ray_serve
from taylorseer_fx import taylorseer_backend
from taylorseer_fx.bench.shipped_pipelines import DiTDigitsPipeline
from taylorseer_fx.digits import load_digits_model
from taylorseer_fx.ray import connected
from tests.turns import in_turns

SETTINGS = {"order": 1, "interval": 3, "warmup": 2, "granularity": "stack", "compiler": "eager"}
REQUESTS = [("3", 5, 0), ("1", 6, 1), ("4,1", 5, 2), ("5", 7, 3)]


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    with connected(workers=4):
        yield number
        serve.shutdown()


def get(port: int, query: str) -> tuple[int, Any]:
    try:
        with urlopen(f"http://127.0.0.1:{port}/digits?{query}", timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def alone(labels: str, steps: int, seed: int) -> Any:
    """As one process draws it, on as many threads as a replica has."""
    backend, threads = taylorseer_backend(**SETTINGS), torch.get_num_threads()
    torch.set_num_threads(1)
    pipe = DiTDigitsPipeline(torch.compile(load_digits_model().requires_grad_(False), backend=backend))
    pipe.set_progress_bar_config(disable=True)
    backend.attach(pipe)
    pictures = pipe([int(label) for label in labels.split(",")], num_inference_steps=steps, seed=seed)[0]
    torch.set_num_threads(threads)
    return pictures[:, 0].tolist()


@pytest.mark.parametrize(("num_replicas", "num_streams"), in_turns([(2, 1), (1, 4)], weeks=8))
def test_requests_at_once(num_replicas, num_streams, port):
    ray_serve.deploy(num_replicas, num_streams, port, SETTINGS)
    queries = [f"labels={labels}&steps={steps}&seed={seed}" for labels, steps, seed in REQUESTS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda query: get(port, query), queries * 2))
    assert [status for status, _ in answers] == [200] * 8
    pictures = [content["pictures"] for _, content in answers]
    assert pictures[:4] == pictures[4:]
    assert pictures[0] == alone(*REQUESTS[0])
    assert all(content["forecast_calls"] > 0 for _, content in answers)
    assert get(port, queries[0])[1]["held"] == 0
    assert get(port, "labels=12") == (400, {"error": "labels must be 1 to 64 digits with commas between, got '12'"})
    assert get(port, "labels=1&steps=0")[0] == 400
