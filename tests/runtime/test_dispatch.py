"""The hot path, with plain Python functions in place of compiled graphs: which variant runs, with which coefficients."""

import warnings
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from taylorseer_fx.passes.call_inputs import CallInputs
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.runtime import dispatch
from taylorseer_fx.runtime.buffers import BufferLayout, BufferTemplate, SizeSource
from taylorseer_fx.runtime.calls import CompiledVariant, GraphInfo, picker, read_time
from taylorseer_fx.runtime.dispatch import Dispatcher
from taylorseer_fx.runtime.schedule import Schedule
from taylorseer_fx.runtime.scope import Scope
from taylorseer_fx.runtime.state import Runtime

X = torch.zeros(2)


class TestPicker:
    @pytest.mark.parametrize(
        ("kept", "expected"), [((), ()), ((1,), ("b",)), ((0, 2), ("a", "c")), ((2, 0), ("c", "a")), ((0, 1, 2), ("a", "b", "c"))]
    )
    def test_always_a_sequence(self, kept, expected):
        """Also for one item and for none."""
        assert tuple(picker(kept)(["a", "b", "c"])) == expected


class TestReadTime:
    @pytest.mark.parametrize(
        ("tensor", "expected"),
        [
            pytest.param(torch.tensor([981, 981]), (981, 981), id="int64"),
            pytest.param(torch.tensor([0.5]), (0.5, 0.5), id="float32"),
            pytest.param(torch.tensor(7), (7, 7), id="0-dim"),
            pytest.param(torch.tensor([[3.0, 1.0], [2.0, 5.0]]), (5, 1), id="per-token"),
            pytest.param(torch.tensor([0.25], dtype=torch.bfloat16), (0.25, 0.25), id="bfloat16"),
            pytest.param(torch.arange(1000.0), (999, 0), id="large"),
            pytest.param(torch.arange(1000), (999, 0), id="large-int"),
            pytest.param(torch.arange(600.0).view(2, 300), (599, 0), id="large-2d"),
        ],
    )
    def test_largest_and_smallest(self, tensor, expected):
        assert read_time([tensor]) == (expected,)

    def test_several_inputs_one_after_the_other(self):
        assert read_time([torch.tensor([3, 4]), torch.tensor(0.5)]) == ((4, 3), (0.5, 0.5))

    def test_comparable_and_hashable(self):
        """The clock compares them and keeps them; the same time reads the same in every dtype."""
        assert read_time([torch.tensor([4])]) == read_time([torch.tensor([4.0])])
        assert hash(read_time([torch.tensor([4])])) == hash(read_time([torch.tensor([4.0])]))

    def test_small_and_large_agree(self):
        """Reading by Python and reading by torch give the same numbers."""
        small = torch.rand(256)
        assert read_time([small]) == read_time([torch.cat([small, small])])


@dataclass
class Call:
    """What a stand-in variant was given."""

    kind: StepKind
    inputs: list[Tensor]
    coefficients: tuple[float, ...]  # the weights in a forecast; in a full step the reciprocal gaps, if it is given any
    buffers: list[Tensor]
    found: list[float]  # in the first element of each buffer, when the call began


@dataclass
class Harness:
    """A dispatcher over two stand-ins that note their calls; inputs are ``x`` and a timestep ``t``."""

    runtime: Runtime
    layout: BufferLayout
    num_features: int
    calls: list[Call] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    fail_next: list[Exception] = field(default_factory=list)

    def dispatcher(
        self, graph_id: int = 1, time_inputs: tuple[int, ...] = (1,), conditioning: tuple[int, ...] = ()
    ) -> Dispatcher:
        variants = {kind: CompiledVariant(self._stand_in(kind), tuple) for kind in StepKind}
        return Dispatcher(
            self.runtime,
            GraphInfo(graph_id, CallInputs(None, time_inputs, bool(time_inputs), (), conditioning)),
            variants,
            self.layout,
            torch.float32,
        )

    def _stand_in(self, kind: StepKind) -> Any:
        def run(inputs: list[Any]) -> tuple[Tensor, ...]:
            x, t, weights, *rest = inputs
            inputs.clear()
            is_full = kind is StepKind.FULL
            gaps = rest.pop(0) if self.runtime.storage.keeps_differences else None
            given = gaps if is_full else weights
            assert (weights is None) is is_full
            assert gaps is None or is_full
            coefficients = tuple(given.tolist()) if given is not None else ()
            self.calls.append(Call(kind, [x, t], coefficients, rest, [b[0].item() for b in rest]))
            if self.fail_next:
                raise self.fail_next.pop()
            if is_full:
                for buffer in rest if self.runtime.storage.keeps_differences else rest[-self.num_features :]:
                    buffer.fill_(len(self.calls))
            return (x,)

        return run

    @property
    def kinds(self) -> str:
        return "".join("F" if call.kind is StepKind.FULL else "T" for call in self.calls)

    @property
    def coefficients(self) -> list[tuple[float, ...]]:
        return [call.coefficients for call in self.calls]


def harness(schedule: Schedule, order: int = 2, num_features: int = 1, dtype: torch.dtype | None = None) -> Harness:
    said: list[str] = []
    with FakeTensorMode():
        template = torch.empty(2)
    runtime = Runtime(schedule, Storage(order, dtype), lambda topic, message: said.append(topic))
    return Harness(runtime, BufferLayout.of([template] * num_features * (order + 1), []), num_features, said=said)


def generate(dispatcher: Dispatcher, num_steps: int, start: float = 1000.0, times: int = 1) -> None:
    """Call through a generation of descending timesteps, with other inputs in each call of a step."""
    for step in range(num_steps):
        for i in range(times):
            dispatcher([X + i, torch.tensor([start - step])])


class TestWhatIsSaidOfTheSchedule:
    def test_a_run_beyond_the_list(self):
        """Said where the run comes by the first step that no list of its length would leave out; the list's last gap goes on."""
        h = harness(Schedule(full_steps=(0, 1, 3)))
        generate(h.dispatcher(), 5)
        assert (h.kinds, h.said) == ("FFTFT", [])
        generate(h.dispatcher(2), 8)
        assert h.kinds[5:] == "FFTFTFTF"
        assert set(h.said) == {"full_steps"}

    def test_a_run_too_short_for_a_forecast(self):
        """Said when the next generation begins: until then the run may go on."""
        h = harness(Schedule(5, 3))
        dispatcher = h.dispatcher()
        generate(dispatcher, 3)
        assert h.said == []
        generate(dispatcher, 3)
        assert (h.kinds, h.said) == ("FFFFFF", ["all full"])

    @pytest.mark.parametrize("num_steps", [1, 4])
    def test_one_step_or_a_forecast(self, num_steps):
        h = harness(Schedule(5, 3))
        dispatcher = h.dispatcher()
        for _ in range(2):
            generate(dispatcher, num_steps)
            h.runtime.forget(None)
        assert h.said == []

    def test_a_run_that_a_pipeline_ends(self):
        h = harness(Schedule(5, 3))
        generate(h.dispatcher(), 3)
        h.runtime.forget(None)
        assert h.said == ["all full"]


class TestCalls:
    def test_follows_the_schedule(self):
        h = harness(Schedule(4, 2))
        generate(h.dispatcher(), 10)
        assert h.kinds == "FFTTTFTTTF"
        assert h.runtime.counters.calls == {StepKind.FULL: 4, StepKind.FORECAST: 6}

    def test_coefficients_of_order_two(self):
        """Differences: full steps get 1/gap for each order they form, forecasts k**i / i! for each formed; D1 is there from
        step 1 on.
        """
        h = harness(Schedule(4, 2), dtype=torch.float8_e5m2)
        generate(h.dispatcher(), 10)
        assert h.coefficients == [
            (0, 0),
            (1, 0),
            (1, 1, 0),
            (1, 2, 0),
            (1, 3, 0),
            (0.25, 0.25),
            (1, 1, 0.5),
            (1, 2, 2),
            (1, 3, 4.5),
            (0.25, 0.25),
        ]

    def test_weights_of_order_two(self):
        """Snapshots: full steps are given nothing; forecasts get what the same differences come to in snapshots at gaps 1 and 4.

        With F at steps 0, 1, 5: D1 = (F5 - F1) / 4, D2 = (D1 - (F1 - F0)) / 4.
        """
        h = harness(Schedule(4, 2))
        generate(h.dispatcher(), 8)
        assert h.coefficients[:6] == [(), (), (0, 2, -1), (0, 3, -2), (0, 4, -3), ()]  # the newest in the second place
        for k in (1, 2):
            d0, d1, d2 = (1, 0, 0), (1 / 4, -1 / 4, 0), (1 / 16, -1 / 16 - 1 / 4, 1 / 4)
            assert h.coefficients[5 + k] == pytest.approx([a + k * b + k * k / 2 * c for a, b, c in zip(d0, d1, d2, strict=True)])

    def test_coefficients_with_uneven_gaps(self):
        h = harness(Schedule(full_steps=(0, 2, 5)), order=1, dtype=torch.float8_e5m2)
        generate(h.dispatcher(), 7)
        assert h.coefficients == [(0,), (1, 0), (0.5,), (1, 1), (1, 2), (pytest.approx(1 / 3),), (1, 1)]

    @pytest.mark.parametrize("order", range(5))
    def test_numbers_of_coefficients(self, order):
        for dtype, num_gaps in ((None, 0), (torch.float8_e4m3fn, order)):
            h = harness(Schedule(2, 1), order, dtype=dtype)
            generate(h.dispatcher(), 4)
            assert [len(c) for c in h.coefficients] == [num_gaps, order + 1, num_gaps, order + 1]

    def test_inputs_and_outputs_pass_through(self):
        h = harness(Schedule(2, 1))
        t = torch.tensor([5.0])
        (out,) = h.dispatcher()([X, t])
        assert out is X
        assert h.calls[0].inputs[0] is X
        assert h.calls[0].inputs[1] is t

    def test_arguments_are_taken(self):
        """torch's boxed convention: the caller's list is emptied, so that nothing is kept alive."""
        args = [X, torch.tensor([5.0])]
        harness(Schedule()).dispatcher()(args)
        assert args == []

    @pytest.mark.parametrize("dtype", [None, torch.float8_e5m2])
    def test_buffers_stay_in_place(self, dtype):
        """One allocation a stream; each step gets the very tensors, differences in the same order every time."""
        h = harness(Schedule(3, 1), dtype=dtype)
        generate(h.dispatcher(), 7)
        given = {tuple(buffer.data_ptr() for buffer in call.buffers) for call in h.calls}
        assert len(set.union(*map(set, given))) == 3
        assert len(given) == (3 if dtype is None else 1)
        assert h.runtime.buffer_bytes == 3 * 8

    def test_snapshots_take_turns(self):
        """A full step is given the newest first and writes over the oldest, the last; forecasts find all in their places.

        A stand-in writes its call's number, so what is found at steps 0 to 7 are the numbers of the last full calls.
        """
        h = harness(Schedule(2, 1), num_features=2)
        generate(h.dispatcher(), 8)
        assert h.kinds == "FTFTFTFT"
        assert [call.found for call in h.calls] == [
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 3, 3, 1, 1],
            [3, 3, 1, 1, 0, 0],
            [5, 5, 3, 3, 1, 1],
            [5, 5, 3, 3, 1, 1],
            [5, 5, 3, 3, 7, 7],
        ]
        assert all(list(map(id, call.buffers)) == list(map(id, h.calls[0].buffers)) for call in h.calls[1::2])
        assert [id(buffer) for buffer in h.calls[0].buffers] == [id(buffer) for buffer in h.calls[6].buffers]

    def test_a_failed_full_step_turns_nothing(self):
        """Its snapshot may be half written; the next call begins a generation on zeroed buffers."""
        h = harness(Schedule(2, 1))
        dispatcher = h.dispatcher()
        generate(dispatcher, 2)
        h.fail_next.append(RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            dispatcher([X, torch.tensor([998.0])])
        generate(dispatcher, 2, start=997.0)
        assert [call.found for call in h.calls[3:]] == [[0, 0, 0], [0, 0, 4]]

    def test_coefficient_tensors_are_made_once(self):
        """The steady state allocates nothing."""
        h = harness(Schedule(5, 1))
        dispatcher = h.dispatcher()
        generate(dispatcher, 50)
        made = len(dispatcher._coefficients)
        generate(dispatcher, 50)
        assert len(dispatcher._coefficients) == made


class TestStreams:
    def test_guidance_keeps_two_streams_apart(self):
        h = harness(Schedule(3, 1))
        generate(h.dispatcher(conditioning=(0,)), 4, times=2)
        assert h.kinds == "FFTTTTFF"
        cond, uncond = ({id(buffer) for call in h.calls[i::2] for buffer in call.buffers} for i in (0, 1))
        assert not cond & uncond
        assert len({stream for stream, _ in h.runtime.states}) == 2

    def test_next_generation_starts_anew(self):
        """Full again from its first step, in the same buffers, zeroed."""
        h = harness(Schedule(4, 1))
        dispatcher = h.dispatcher()
        generate(dispatcher, 3)
        generate(dispatcher, 3)
        assert h.kinds == "FTTFTT"
        assert h.coefficients[4] == h.coefficients[1] == (0, 0, 1)
        assert {b.data_ptr() for b in h.calls[3].buffers} == {b.data_ptr() for b in h.calls[0].buffers}
        assert h.calls[0].found == h.calls[3].found == [0.0, 0.0, 0.0]
        assert h.calls[1].found == [0.0, 0.0, 1.0]

    def test_names_have_buffers_of_their_own(self):
        h = harness(Schedule(3, 1))
        dispatcher = h.dispatcher()
        for step in range(3):
            for name in ("a", "b"):
                with h.runtime.scopes.entered(Scope(name, step)):
                    dispatcher([X, torch.tensor([0.0])])
        assert h.kinds == "FFTTTT"
        assert {stream for stream, _ in h.runtime.states} == {("a", 0), ("b", 0)}

    def test_said_step_decides(self):
        """With a step said, the timestep is not looked at."""
        h = harness(Schedule(3, 1))
        dispatcher = h.dispatcher()
        for step in (0, 1, 2, 3):
            with h.runtime.scopes.entered(Scope("a", step)):
                dispatcher([X, None])
        assert h.kinds == "FTTF"

    def test_two_graphs_have_buffers_of_their_own(self):
        """Two models' graphs behind one backend do not write into each other's derivatives."""
        h = harness(Schedule(3, 1))
        first, second = h.dispatcher(1), h.dispatcher(2)
        with h.runtime.scopes.entered(Scope("a", 0)):
            first([X, torch.tensor([9.0])])
        with h.runtime.scopes.entered(Scope("b", 0)):
            second([X, torch.tensor([9.0])])
        one, other = ({id(buffer) for buffer in call.buffers} for call in h.calls)
        assert not one & other

    def test_joining_late_begins_with_full_steps(self):
        """A stream whose first call says step 10 has nothing to forecast from."""
        h = harness(Schedule(4, 2))
        dispatcher = h.dispatcher()
        for step in (10, 11, 12):
            with h.runtime.scopes.entered(Scope("a", step)):
                dispatcher([X, torch.tensor([0.0])])
        assert h.kinds == "FFT"


def sized_harness() -> Harness:
    """With buffers as long as ``x``."""
    h = harness(Schedule(4, 1), order=1)
    length = sympy.Symbol("length")
    template = BufferTemplate((length,), (1,), torch.float32, torch.device("cpu"))
    h.layout = BufferLayout((template, template), (SizeSource(length, 0, 0),))
    return h


def fail(*_args: object) -> None:
    raise torch.OutOfMemoryError


class TestSizes:
    def test_old_buffers_are_freed_before_there_are_new_ones(self, monkeypatch):
        """A change of sizes must not need room for both."""
        h = sized_harness()
        dispatcher = h.dispatcher()
        dispatcher([torch.zeros(2), torch.tensor([9.0])])
        old = [weakref.ref(buffer) for buffer in h.calls.pop().buffers]
        allocate, alive = BufferLayout.allocate, []

        def watched(layout: BufferLayout, args: Any) -> list[Tensor]:
            alive.append(sum(buffer() is not None for buffer in old))
            return allocate(layout, args)

        monkeypatch.setattr(BufferLayout, "allocate", watched)
        dispatcher([torch.zeros(3), torch.tensor([8.0])])
        assert alive == [0]
        assert [tuple(buffer.shape) for buffer in h.calls[0].buffers] == [(3,), (3,)]

    def test_change_in_mid_generation_is_said(self):
        h = sized_harness()
        dispatcher = h.dispatcher()
        for step, length in enumerate((2, 2, 3, 3)):
            dispatcher([torch.zeros(length), torch.tensor([9.0 - step])])
        assert h.kinds == "FTFT"
        assert h.said == ["change in mid-generation"]

    def test_peak(self):
        """The most that was allocated at once: two streams of four-element buffers, not what is left after."""
        h = sized_harness()
        dispatcher = h.dispatcher()
        for step, (name, length) in enumerate([("a", 2), ("b", 4), ("a", 4), ("a", 2), ("b", 2)]):
            with h.runtime.scopes.entered(Scope(name, step)):
                dispatcher([torch.zeros(length), None])
        assert h.runtime.buffer_bytes == 2 * 2 * (2 + 2) * 2
        assert h.runtime.peak_buffer_bytes == 2 * 4 * (4 + 4)
        h.runtime.reset()
        assert (h.runtime.buffer_bytes, h.runtime.peak_buffer_bytes) == (0, 2 * 4 * (4 + 4))


class TestCudaStreams:
    """Numbers stand for them; runs are forgotten at their end, as those of a pipeline are."""

    @pytest.fixture
    def kept(self, monkeypatch) -> list[int]:
        """How many tensors were said to be in use, each time."""
        kept: list[int] = []
        monkeypatch.setattr(dispatch, "keep_until_done", lambda tensors: kept.append(len(tensors)))
        return kept

    def run(self, h: Harness, cuda_streams: list[int]) -> list[int]:
        """One run, each step on the CUDA stream that is given; where its buffers lay."""
        dispatcher = h.dispatcher()
        for step, number in enumerate(cuda_streams):
            dispatcher._current_stream = lambda number=number: number
            with h.runtime.scopes.entered(Scope("a", step)):
                dispatcher([X, None])
        addresses = [buffer.data_ptr() for buffer in h.calls[-1].buffers]
        h.calls.clear()
        h.runtime.forget("a")
        return sorted(addresses)

    def captured_harness(self) -> Harness:
        h = harness(Schedule(2, 1))
        h.runtime.cuda_graphs = SimpleNamespace(num_held=1)
        return h

    def test_the_next_run_on_the_same(self, kept):
        h = self.captured_harness()
        first = self.run(h, [7, 7, 7])
        assert self.run(h, [7, 7]) == first
        assert kept == []
        assert h.runtime.buffer_bytes == 3 * 8

    def test_the_next_run_on_another(self, kept):
        """It may begin before the last one is done, so it allocates; what was spare is freed."""
        h = self.captured_harness()
        self.run(h, [7, 7, 7])
        references = [weakref.ref(buffer) for state in h.runtime.spare[("graph", 1), 0] for buffer in state.buffers]
        self.run(h, [8, 8])
        assert len(references) == 3
        assert not any(reference() is not None for reference in references)
        assert kept == []

    def test_changed_in_mid_run(self, kept):
        """The allocator is told once of each that its memory is used on, besides the first; it serves no other run."""
        h = self.captured_harness()
        self.run(h, [7, 8, 7, 8, 9])
        assert kept == [3, 3]
        assert h.runtime.buffer_bytes == 0

    def test_nothing_is_captured(self, kept):
        """Then the end of a run frees its buffers."""
        h = self.captured_harness()
        h.runtime.cuda_graphs = SimpleNamespace(num_held=0)
        self.run(h, [7, 7])
        assert h.runtime.buffer_bytes == 0


class TestTrouble:
    def test_no_source_executes_and_says_so(self):
        """No timestep and no scope: full every time, nothing kept."""
        h = harness(Schedule(3, 1))
        dispatcher = h.dispatcher(time_inputs=())
        for _ in range(4):
            dispatcher([X, None])
        assert h.kinds == "FFFF"
        assert h.runtime.counters.unforecast_calls == 4
        assert set(h.said) == {"no step"}
        assert h.runtime.buffer_bytes == 0

    def test_failed_call_begins_a_generation(self):
        """After an exception in the model, forecasts from half-written derivatives are never given out."""
        h = harness(Schedule(4, 1))
        dispatcher = h.dispatcher()
        generate(dispatcher, 2)
        h.fail_next.append(RuntimeError("out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            dispatcher([X, torch.tensor([998.0])])
        generate(dispatcher, 2, start=997.0)
        assert h.kinds == "FTTFT"

    def test_no_room_for_other_sizes(self, monkeypatch):
        """Buffers of other sizes can't be allocated, and the ones before are gone: calls of the sizes before begin anew."""
        h = sized_harness()
        dispatcher = h.dispatcher()
        small, large = torch.zeros(2), torch.zeros(3)
        dispatcher([small, torch.tensor([9.0])])
        with monkeypatch.context() as patch:
            patch.setattr(BufferLayout, "allocate", fail)
            with pytest.raises(torch.OutOfMemoryError):
                dispatcher([large, torch.tensor([8.0])])
        dispatcher([small, torch.tensor([7.0])])
        dispatcher([small, torch.tensor([6.0])])
        assert h.kinds == "FFT"
        assert [tuple(buffer.shape) for buffer in h.calls[-1].buffers] == [(2,), (2,)]

    def test_reset_frees_the_buffers(self):
        h = harness(Schedule(4, 1))
        dispatcher = h.dispatcher()
        generate(dispatcher, 2)
        h.runtime.reset()
        assert h.runtime.buffer_bytes == 0
        dispatcher([X, torch.tensor([998.0])])
        assert h.kinds == "FTF"

    def test_nothing_is_said_when_all_is_well(self):
        h = harness(Schedule(4, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(h.dispatcher(conditioning=(0,)), 8, times=2)
        assert h.said == []
