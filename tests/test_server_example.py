"""The example of a server, over real HTTP on the loopback, with a tiny model."""

import importlib.util
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from diffusers import DiTTransformer2DModel
from torch import nn

from taylorseer_fx import taylorseer_backend
from taylorseer_fx.digits.model import DIGITS_CONFIG
from tests.zoo import randomize

SETTINGS: dict[str, Any] = {"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"}


def load_example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "server_streams.py"
    spec = importlib.util.spec_from_file_location("server_streams", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_digits() -> nn.Module:
    small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    return randomize(DiTTransformer2DModel(**DIGITS_CONFIG | small)).eval()


class Client:
    """The example's server with a pool of four pipelines, and what is asked of it."""

    def __init__(self, **limits: Any) -> None:
        self.example = load_example()
        self.backend = taylorseer_backend(**SETTINGS, **limits)
        self.replica = self.example.Replica(tiny_digits(), self.backend, num_pipelines=4)
        self.server = self.example.build_server(self.replica, 0)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urlopen(f"http://127.0.0.1:{self.server.server_port}{path}", timeout=120) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.backend.detach()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def test_requests_at_once(client):
    """Eight over four pipelines, of several lengths: each as if it were alone, and nothing is held afterwards."""
    wanted = [([seed % 10, 7], 5 + seed % 3, seed) for seed in range(8)]
    alone = [client.replica.draw(*request) for request in wanted]
    before = client.backend.stats()
    paths = [f"/digits?labels={','.join(map(str, labels))}&steps={steps}&seed={seed}" for labels, steps, seed in wanted]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.get, paths))
    assert [status for status, _ in answers] == [200] * 8
    assert [answer["pictures"] for _, answer in answers] == alone
    after = client.backend.stats()
    assert after.forecast_calls == 2 * before.forecast_calls > 0
    assert after.buffer_bytes == 0
    assert client.get("/streams") == (200, [])


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/digits", 400, "labels must be 1 to 64 digits"),
        ("/digits?labels=12", 400, "got '12'"),
        ("/digits?labels=1&steps=0", 400, "steps must be 1 to 1000, got 0"),
        ("/digits?labels=one", 400, "invalid literal"),
        ("/numbers", 404, "/digits or /streams"),
    ],
)
def test_bad_requests(client, path, status, text):
    answered, content = client.get(path)
    assert answered == status
    assert text in content["error"]


def test_no_room():
    """The answer is 503, and the server serves on."""
    client = Client(total_memory_budget=1)
    for _ in range(2):
        status, content = client.get("/digits?labels=1&steps=4")
        assert status == 503
        assert "total_memory_budget=1" in content["error"]
    assert client.get("/streams") == (200, [])
    client.close()
