"""Named streams as a server has them: limits, eviction, expiry, release, threads, and requests that come at a wrong step."""

import random
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import (
    ConfigError,
    StreamLimitError,
    StreamStepError,
    TaylorSeerBackend,
    TaylorSeerError,
    TaylorSeerWarning,
    taylorseer_backend,
)
from taylorseer_fx.config import BackendConfig
from taylorseer_fx.runtime.dispatch import Dispatcher
from tests.runtime.graph_stand_in import StandIn
from tests.zoo import Tiny, randomize, tiny, tiny_inputs

NUM_STEPS = 8


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Seconds:
    """A clock that goes on when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A model and its backend; a request is a name and a seed."""

    def __init__(self, model: nn.Module | None = None, graph_api: StandIn | None = None, **settings: Any) -> None:
        settings = {"order": 1, "interval": 3, "warmup": 2, "compiler": "eager"} | settings
        self.backend = TaylorSeerBackend(BackendConfig(**settings), graph_api)
        self.seconds = self.backend._runtime.uses.now = Seconds()
        self.compiled: Callable[..., Tensor] = torch.compile(model if model is not None else tiny(), backend=self.backend)

    def call(self, step: int, seed: int = 0, **inputs: Any) -> Tensor:
        return self.compiled(**tiny_inputs(step, seed=seed, num_steps=NUM_STEPS, **inputs)).clone()

    def step(self, name: str, step: int, seed: int = 0, tell: bool = True, **inputs: Any) -> Tensor:
        with self.backend.stream(name, step=step if tell else None):
            return self.call(step, seed, **inputs)

    def run(self, name: str, seed: int = 0, first: int = 0, last: int = NUM_STEPS, **inputs: Any) -> list[Tensor]:
        return [self.step(name, step, seed, **inputs) for step in range(first, last)]

    @property
    def names(self) -> list[str | None]:
        return [entry.name for entry in self.backend.stats().held]

    @property
    def full_calls(self) -> int:
        return self.backend.stats().full_calls


SMALL = {"batch": 1, "length": 2}


def bytes_of_one(**inputs: Any) -> int:
    server = Server()
    server.step("a", 0, **inputs)
    return server.backend.stats().buffer_bytes


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@contextmanager
def said_once(pattern: str) -> Iterator[None]:
    with pytest.warns(TaylorSeerWarning, match=pattern) as caught:
        yield
    assert len(caught) == 1


def in_another_context(function: Callable[[], Any]) -> Any:
    """In a thread of its own, so outside the blocks that are open here."""

    def call() -> Any:
        with torch.no_grad():
            return function()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(60)


class TestRelease:
    def test_frees_one_stream(self):
        """Its buffers, and nothing of the others; used again, the name begins anew."""
        server = Server()
        first = server.run("a")
        server.run("b", seed=1, last=4)
        one = server.backend.stats().buffer_bytes // 2
        server.backend.release("a")
        assert (server.names, server.backend.stats().buffer_bytes) == (["b"], one)
        assert equal(server.run("a"), first)
        assert equal(server.run("b", seed=1, first=4), Server().run("b", seed=1)[4:])

    def test_with_what_is_nested(self):
        server = Server()
        for name in ("a", "b"):
            for half in ("cond", "uncond"):
                with server.backend.stream(name, step=0), server.backend.stream(half):
                    server.call(0)
        assert server.names == ["a/cond", "a/uncond", "b/cond", "b/uncond"]
        server.backend.release("a")
        assert server.names == ["b/cond", "b/uncond"]
        server.backend.release("b/cond")
        assert server.names == ["b/uncond"]
        server.backend.release("b")
        assert server.names == []

    def test_gives_back_captures(self):
        """Those over the stream's buffers. It is no churn: releasing any number of streams keeps the others captured."""
        api = StandIn()
        server = Server(graph_api=api)
        server.run("kept")
        alive = len(api.cuda.alive)
        for number in range(12):
            server.run(f"request {number}")
            assert len(api.cuda.alive) > alive
            server.backend.release(f"request {number}")
            assert len(api.cuda.alive) == server.backend._runtime.cuda_graphs.num_held == alive
        assert equal(server.run("kept"), Server(cuda_graphs=False).run("kept"))
        assert "since" not in "".join(server.backend.explain().cuda_graphs)

    def test_unknown(self):
        server = Server()
        with pytest.raises(ConfigError, match=r"^name must be that of a stream that is held, got 'a'\. None is held"):
            server.backend.release("a")
        server.step("b", 0)
        with pytest.raises(ConfigError, match=r"got 'a'\. Held are 'b'\. missing_ok=True for one that may have been evicted"):
            server.backend.release("a")
        server.backend.release("a", missing_ok=True)
        for number in range(10):
            server.step(str(number), 0)
        with pytest.raises(ConfigError, match="Held are '0', '1', '2', '3', '4', '5', '6', '7' and 3 more"):
            server.backend.release("a")

    def test_twice(self):
        server = Server()
        server.step("a", 0)
        server.backend.release("a")
        with pytest.raises(ConfigError, match="got 'a'"):
            server.backend.release("a")

    @pytest.mark.parametrize("name", [3, None])
    def test_no_name(self, name):
        with pytest.raises(ConfigError, match=f"name must be a string, got {name}"):
            taylorseer_backend().release(name)

    def test_within_its_block(self):
        server = Server()
        with server.backend.stream("a"):
            server.call(0)
            with pytest.raises(ConfigError, match=r"none of whose blocks is open, got 'a'\. Leave its block first"):
                server.backend.release("a")
            server.call(1)
        assert server.names == ["a"]

    def test_says_that_nothing_was_forecast(self):
        """As at the end of any other generation."""
        server = Server(interval=5, warmup=3)
        server.run("a", last=3)
        with said_once("a run of 3 steps forecasts nothing"):
            server.backend.release("a")


class TestStats:
    def test_lists_streams(self):
        server = Server()
        server.call(0)
        server.run("b", last=3)
        server.seconds.now += 5
        server.run("a", last=2)
        one = bytes_of_one()
        server.seconds.now += 2
        with server.backend.stream("b", step=3):
            server.call(3)
            held = server.backend.stats().held
        assert [(entry.name, entry.step, entry.buffer_bytes, entry.idle_s) for entry in held] == [
            (None, 0, one, None),
            ("a", 1, one, 2.0),
            ("b", 3, one, 0.0),
        ]
        assert sum(entry.buffer_bytes for entry in held) == server.backend.stats().buffer_bytes

    def test_no_limit_by_default(self):
        server = Server()
        for number in range(40):
            server.step(str(number), 0)
        stats = server.backend.stats()
        assert (len(stats.held), stats.evicted_streams, stats.expired_streams) == (40, 0, 0)

    def test_blocks_without_a_call_are_no_streams(self):
        server = Server(max_streams=1)
        for number in range(3):
            with server.backend.stream(str(number)):
                pass
        assert server.names == []
        assert not server.backend._runtime.uses.known


class TestCallsWithoutAName:
    def test_pay_nothing(self, monkeypatch):
        """After its first step, a stream of no name asks nothing about limits: not even what they are."""
        server = Server(max_streams=1, total_memory_budget=1 << 30, stream_policy="evict", stream_ttl=1)
        outputs = [server.call(0)]
        with monkeypatch.context() as patch:
            patch.setattr(server.backend._runtime, "uses", None)
            patch.setattr(server.backend._runtime, "limits", None)
            outputs += [server.call(step) for step in range(1, NUM_STEPS)]
        assert equal(outputs, Server().run("alone", tell=False))


class TestMaxStreams:
    def test_error(self):
        """The streams that are held go on as if nothing had been."""
        server = Server(max_streams=2)
        runs: dict[str, list[Tensor]] = {"a": [], "b": []}
        for step in range(NUM_STEPS):
            for seed, name in enumerate(runs):
                runs[name].append(server.step(name, step, seed))
            with pytest.raises(StreamLimitError, match=r"'c': 2 are held, and max_streams=2.*backend.release\(name\)"):
                server.step("c", 0)
        assert server.names == ["a", "b"]
        for seed, name in enumerate(runs):
            assert equal(runs[name], Server().run(name, seed))
        server.backend.release("a")
        assert equal(server.run("c"), Server().run("c"))

    def test_is_an_error_of_this_package(self):
        assert issubclass(StreamLimitError, TaylorSeerError)
        assert issubclass(StreamStepError, ConfigError)

    def test_evicted_stream_begins_anew(self):
        """With a warm-up of full steps, and said once however many go."""
        server = Server(max_streams=1, stream_policy="evict")
        server.run("a", last=5)
        with said_once("'a' was given up for the stream 'b'.*max_streams=1"):
            server.run("b", seed=1, last=5)
            before = server.full_calls
            outputs = server.run("a", first=5)
        assert server.full_calls == before + 2
        assert equal(outputs, Server().run("a", first=5))
        assert not equal(outputs, Server().run("a")[5:])
        assert (server.names, server.backend.stats().evicted_streams) == (["a"], 2)

    @pytest.mark.parametrize(("num_requests", "tell"), [(1000, True), (100, False)])
    def test_a_thousand_streams(self, num_requests, tell):
        """Ten requests at a time, at random, through a limit of eight: the one not used for longest goes, and nothing else."""
        limit, last = 8, 4
        server = Server(interval=2, warmup=1, max_streams=limit, stream_policy="evict")
        alone = Server(interval=2, warmup=1)

        @cache
        def expected(seed: int, first: int) -> list[Tensor]:
            alone.backend.reset()
            return alone.run("alone", seed, first, last, tell=tell, **SMALL)

        choice, one = random.Random(0), bytes_of_one(**SMALL)
        begun: OrderedDict[str, int] = OrderedDict()  # by name, the step that the stream began at; the latest used at the end
        steps: dict[str, int] = {}
        num_begun = num_done = num_whole = 0
        with said_once("was given up for"):
            while num_done < num_requests:
                while len(steps) < 10 and num_begun < num_requests:
                    steps[str(num_begun)] = 0
                    num_begun += 1
                name = choice.choice(list(steps)[:3] if choice.random() < 0.7 else list(steps))
                step, seed = steps[name], int(name) % 7
                first = begun.setdefault(name, step)
                begun.move_to_end(name)
                if len(begun) > limit:
                    begun.popitem(last=False)
                assert torch.equal(server.step(name, step, seed, tell=tell, **SMALL), expected(seed, first)[step - first])
                stats = server.backend.stats()
                assert stats.buffer_bytes <= stats.peak_buffer_bytes <= limit * one
                assert {entry.name for entry in stats.held} == set(begun)
                steps[name] += 1
                if steps[name] == last:
                    del steps[name]
                    num_done, num_whole = num_done + 1, num_whole + (first == 0)
        assert server.backend.stats().evicted_streams > num_requests / 2
        assert num_requests / 3 < num_whole < num_requests
        runtime = server.backend._runtime
        assert max(len(table) for table in (runtime.clock._tracks, runtime.clock.told.steps, runtime.swept)) <= limit

    def test_halves_of_a_request_go_together(self):
        server = Server(max_streams=1, stream_policy="evict")
        for step in range(4):
            for half in ("cond", "uncond"):
                with server.backend.stream("a", step=step), server.backend.stream(half):
                    server.call(step)
        assert (server.names, server.backend.stats().evicted_streams) == (["a/cond", "a/uncond"], 0)
        with said_once("'a' was given up"):
            server.step("b", 0)
        assert server.names == ["b"]

    def test_none_in_a_call_is_evicted(self, monkeypatch):
        """Though it is the one that was not used for longest."""
        server = Server(max_streams=2, stream_policy="evict")
        server.run("a", last=3)
        server.run("b", seed=1, last=3)
        inside, go_on = Event(), Event()
        run = Dispatcher._run

        def waiting(*args: Any) -> Any:
            inside.set()
            assert go_on.wait(60)
            return run(*args)

        def call() -> Tensor:
            with torch.no_grad():
                return server.step("a", 3)

        with ThreadPoolExecutor(1) as pool:
            with monkeypatch.context() as patch:
                patch.setattr(Dispatcher, "_run", waiting)
                future = pool.submit(call)
                assert inside.wait(60)
            with said_once("'b' was given up"), server.backend.stream("c", step=0):
                server.call(0)
                with pytest.raises(StreamLimitError, match="all others are in use"):
                    in_another_context(lambda: server.step("d", 0))
            with pytest.raises(ConfigError, match="none of whose blocks is open, got 'a'"):
                server.backend.release("a")
            go_on.set()
            outputs = [future.result(60)]
        assert equal([*outputs, *server.run("a", first=4)], Server().run("a")[3:])


class TestMemoryBudget:
    def test_error(self):
        server = Server(total_memory_budget=2 * bytes_of_one())
        server.run("a", last=3)
        server.run("b", seed=1, last=3)
        with pytest.raises(StreamLimitError, match=r"no memory for the stream 'c'.*total_memory_budget=\d+") as raised:
            server.step("c", 0)
        assert f"take {bytes_of_one()} bytes more, {2 * bytes_of_one()} are held" in str(raised.value)
        assert server.names == ["a", "b"]
        assert "c" not in server.backend._runtime.clock._tracks
        assert equal(server.run("a", first=3), Server().run("a")[3:])
        server.backend.release("b")
        assert equal(server.run("c"), Server().run("c"))

    def test_evict(self):
        budget = 3 * bytes_of_one()
        server = Server(total_memory_budget=budget, stream_policy="evict")
        with said_once("'0' was given up for the stream '3'.*total_memory_budget="):
            for number in range(10):
                server.run(str(number), number, last=4)
                assert server.backend.stats().peak_buffer_bytes <= budget
        assert server.names == ["7", "8", "9"]
        for number in (7, 8, 9):
            assert equal(server.run(str(number), number, first=4), Server().run("alone", number)[4:])

    def test_a_large_one_takes_the_place_of_several(self):
        server = Server(total_memory_budget=4 * bytes_of_one(), stream_policy="evict")
        for number in range(4):
            server.step(str(number), 0)
        with said_once("was given up"):
            server.step("large", 0, length=18)
        assert server.names == ["3", "large"]

    def test_one_that_is_too_large(self):
        server = Server(total_memory_budget=bytes_of_one() - 1, stream_policy="evict")
        with pytest.raises(StreamLimitError, match="all others are in use"):
            server.step("a", 0)
        assert server.backend.stats().buffer_bytes == 0
        with pytest.raises(StreamLimitError, match="the stream of calls without a name"):
            server.call(0)

    def test_calls_without_a_name_count_and_stay(self):
        server = Server(total_memory_budget=2 * bytes_of_one(), stream_policy="evict")
        outputs = [server.call(step) for step in range(4)]
        with said_once("'a' was given up for the stream 'b'"):
            server.step("a", 0)
            server.step("b", 0)
        assert server.names == [None, "b"]
        outputs += [server.call(step) for step in range(4, NUM_STEPS)]
        assert equal(outputs, Server().run("alone"))

    def test_gives_back_captures(self):
        api = StandIn()
        server = Server(graph_api=api, total_memory_budget=2 * bytes_of_one(), stream_policy="evict")
        plain = Server(cuda_graphs=False)
        with said_once("was given up"):
            for number in range(8):
                assert equal(server.run(str(number), number), plain.run(str(number), number))
        assert len(api.cuda.alive) == server.backend._runtime.cuda_graphs.num_held <= 2 * 4


class TestExpiry:
    def test_idle_streams_expire(self):
        """When any stream is entered; one that is entered in time lives on. No thread watches."""
        server = Server(stream_ttl=60)
        server.run("a", last=3)
        server.run("b", seed=1, last=3)
        server.seconds.now += 59
        server.step("b", 3, seed=1)
        server.seconds.now += 1
        assert server.names == ["a", "b"]
        with said_once("'a' was given up, since it was idle for stream_ttl=60 seconds"):
            rest = server.run("b", seed=1, first=4)
        assert equal(rest, Server().run("b", seed=1)[4:])
        assert (server.names, server.backend.stats().expired_streams) == (["b"], 1)

    def test_a_stream_that_comes_too_late_begins_anew(self):
        server = Server(stream_ttl=0.5)
        server.run("a", last=4)
        server.seconds.now += 0.5
        with said_once("'a' was given up"):
            assert equal(server.run("a", first=4), Server().run("a", first=4))

    def test_none_whose_block_is_open(self):
        server = Server(stream_ttl=1)
        with server.backend.stream("a"):
            outputs = [server.call(step) for step in range(4)]
            server.seconds.now += 100
            in_another_context(lambda: server.step("b", 0))
            outputs += [server.call(step) for step in range(4, NUM_STEPS)]
        assert equal(outputs, Server().run("a", tell=False))


class TestThreads:
    @pytest.mark.parametrize("tell", [True, False])
    @pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
    def test_four_requests_from_two_threads(self, tell, compiler):
        """Each at its own step, in a random order: to the bit what each is alone."""
        alone = Server(compiler=compiler)
        expected = [alone.run(str(seed), seed, tell=tell) for seed in range(4)]
        server = Server(compiler=compiler, max_streams=4)
        server.step("warm", 0)
        server.backend.release("warm")

        def serve(seeds: tuple[int, int]) -> dict[int, list[Tensor]]:
            turns, outputs = list(seeds) * NUM_STEPS, {seed: [] for seed in seeds}
            random.Random(seeds[0]).shuffle(turns)
            with torch.no_grad():
                for seed in turns:
                    outputs[seed].append(server.step(str(seed), len(outputs[seed]), seed, tell=tell))
            return outputs

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(serve, [(0, 1), (2, 3)])
        for seed, outputs in (first | second).items():
            assert equal(outputs, expected[seed])

    def test_more_than_the_limit_from_two_threads(self):
        """Streams come and go under both threads; what is kept for a whole run is right, and the limit holds."""
        alone = Server().run("alone")
        server = Server(max_streams=3, stream_policy="evict")
        server.step("warm", 0)

        def serve(thread: int) -> int:
            num_right = 0
            with torch.no_grad():
                for number in range(20):
                    num_right += equal(server.run(f"{thread}, {number}"), alone)
                    assert len(server.names) <= 3
            return num_right

        with said_once("was given up"), ThreadPoolExecutor(2) as pool:
            assert list(pool.map(serve, (0, 1))) == [20, 20]
        assert server.backend.stats().peak_buffer_bytes <= 3 * bytes_of_one()


class Broken(nn.Module):
    """Two blocks with a graph break between them; the second takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = tiny(), Tiny(timed=False)
        randomize(self.second)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        x = self.first(x, timestep)
        torch._dynamo.graph_break()
        return self.second(x, timestep)


class TestWrongStep:
    """A request that enters another's stream."""

    @pytest.mark.parametrize("model", [tiny, Broken])
    @pytest.mark.parametrize("prompt", [None, 1.0])
    def test_in_every_position(self, model, prompt):
        """A step that jumps, goes back or repeats is refused, and the stream goes on as if nothing had been."""
        inputs = {"prompt": prompt} if prompt is not None and model is tiny else {}
        expected = Server(model()).run("a", **inputs)
        server, outputs, num_refused = Server(model()), [], 0
        for at in range(NUM_STEPS):
            outputs.append(server.step("a", at, **inputs))
            stats = server.backend.stats()
            for step in set(range(NUM_STEPS + 3)) - {0, at + 1}:
                allowed = f"{at + 1}, or 0 to begin a new generation, in the stream 'a', which stands at {at}"
                with pytest.raises(StreamStepError, match=re.escape(f"step must be {allowed}, got {step}. ")):
                    server.step("a", step, seed=1, **inputs)
                num_refused += 1
            assert server.backend.stats() == stats
        assert num_refused > 60
        assert equal(outputs, expected)

    @pytest.mark.parametrize("at", range(2, NUM_STEPS - 1))
    def test_a_new_generation_under_a_running_request(self, at):
        """Step 0 begins a new generation, as ever; then it is the running request that is refused."""
        server = Server()
        server.run("a", last=at + 1)
        server.step("a", 0, seed=1)
        with pytest.raises(StreamStepError, match=f"step must be 1, or 0 .*got {at + 1}"):
            server.step("a", at + 1)
        assert equal(server.run("a", seed=1, first=1), Server().run("a", seed=1)[1:])

    @pytest.mark.parametrize("at", range(NUM_STEPS))
    def test_the_same_step_with_other_conditioning(self, at):
        """It is taken for the other half of guidance: a stream of its own, that begins in full, and disturbs nothing."""
        model = tiny()
        server = Server(model)
        outputs = server.run("a", last=at + 1, prompt=1.0)
        other = server.step("a", at, seed=1, prompt=2.0)
        outputs += server.run("a", first=at + 1, prompt=1.0)
        assert equal(outputs, Server(model).run("a", prompt=1.0))
        expected = model(**tiny_inputs(at, seed=1, num_steps=NUM_STEPS, prompt=2.0))
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-5)

    def test_guidance_that_pauses(self):
        """The step is that of the request: a half of it may miss some."""
        server = Server()
        for step in range(NUM_STEPS):
            with server.backend.stream("a", step=step):
                for half in ("cond", "uncond") if step not in (2, 3, 4) else ("cond",):
                    with server.backend.stream(half):
                        server.call(step)
        held = server.backend.stats().held
        assert [(entry.name, entry.step) for entry in held] == [("a/cond", NUM_STEPS - 1), ("a/uncond", NUM_STEPS - 1)]

    def test_the_step_of_an_inner_block_is_its_own(self):
        server = Server()
        for step in range(3):
            with server.backend.stream("a"), server.backend.stream("cond", step=step):
                server.call(step)
        with (
            server.backend.stream("a"),
            server.backend.stream("cond", step=7),
            pytest.raises(StreamStepError, match=r"'a/cond', which stands at 2, got 7.*release\('a/cond'\)"),
        ):
            server.call(7)

    @pytest.mark.parametrize("begin_anew", ["release", "reset", "evict", "expire"])
    def test_once_it_is_freed_it_may_begin_anywhere(self, begin_anew):
        server = Server(max_streams=1, stream_policy="evict", stream_ttl=10)
        server.run("a", last=3)
        with pytest.warns(TaylorSeerWarning) if begin_anew in ("evict", "expire") else nullcontext():
            if begin_anew == "release":
                server.backend.release("a")
            elif begin_anew == "reset":
                server.backend.reset()
            elif begin_anew == "evict":
                server.step("b", 0)
            else:
                server.seconds.now += 10
            assert equal(server.run("a", first=5), Server().run("a", first=5))

    def test_after_a_call_that_failed(self):
        """It is made again at the same step, and begins anew."""
        server = Server()
        server.run("a", last=4)
        with pytest.raises(RuntimeError), server.backend.stream("a", step=4):
            server.compiled(x=torch.zeros(2, 6, 31), timestep=torch.zeros(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Dispatcher, "_run", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                server.step("a", 4)
        assert equal(server.run("a", first=4), Server().run("a", first=4))
