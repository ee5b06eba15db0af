"""The part of each feature that a forecast step reads, and what is not kept because of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx.passes.buffer_bytes import num_buffer_bytes
from taylorseer_fx.passes.find_stored import find_stored
from taylorseer_fx.passes.guard_regions import GuardedGraph, guard_regions
from taylorseer_fx.passes.specialize import specialize
from taylorseer_fx.passes.steps import StepKind
from taylorseer_fx.passes.storage import Storage
from taylorseer_fx.passes.verify import nodes_without_value
from taylorseer_fx.passes.windows import window_text
from tests.graphs import Found, find, find_stacks
from tests.passes.test_guard_regions import call, random_state

D, TEXT, IMAGE = 4, 2, 3


def norm(x: Tensor) -> Tensor:
    return x.tanh()


class Flux(nn.Module):
    """Blocks with joint attention of two streams, then blocks on both as one stream, of which the image leaves."""

    def __init__(self, joint: int = 1, single: int = 2) -> None:
        super().__init__()
        self.joint, self.single = (nn.ParameterList(torch.randn(D, D) for _ in range(n)) for n in (joint, single))
        self.text_mlps, self.image_mlps = (nn.ModuleList(nn.Linear(D, D) for _ in range(joint)) for _ in range(2))

    def forward(self, text: Tensor, image: Tensor, gate: Tensor) -> Tensor:
        length = text.shape[0]
        for weight, text_mlp, image_mlp in zip(self.joint, self.text_mlps, self.image_mlps, strict=True):
            mixed = attention(torch.cat([text, image]), weight)
            text, image = text + gate * mixed[:length], image + gate * mixed[length:]
            text, image = text + text_mlp(norm(text)), image + gate * image_mlp(norm(image))
        both = torch.cat([text, image])
        for weight in self.single:
            both = both + gate * attention(both, weight)
        return both[length:]


def attention(x: Tensor, weight: Tensor) -> Tensor:
    x = norm(x)
    return (x @ x.T).softmax(-1) @ x @ weight


def inputs(text: int = TEXT, image: int = IMAGE) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(text, D), torch.randn(image, D), torch.randn(D)


def kept(found: Found) -> list[list[str]]:
    """Of the features of each region: the part that is kept, as Python would slice it."""
    regions = find_stored(found.gm.graph, found.regions).regions
    return [
        ["unread" if f.stored_window is None else window_text(f.stored_window) for f in region.features] for region in regions
    ]


def guarded(found: Found) -> GuardedGraph:
    return guard_regions(found.gm, find_stored(found.gm.graph, found.regions), Storage(1))


class TestModules:
    def test_text_is_unread(self):
        """Two streams, then one: a forecast step reads the image's rows of everything, and nothing that is added to the text."""
        assert kept(find(Flux(), *inputs())) == [["unread", ""], ["unread"], [""], ["[2:5]"], ["[2:5]"]]

    def test_all_of_what_is_returned_is_kept(self):
        class Returned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(D, D)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                x = x + self.linear(x)
                return x[1:], x[:1]

        assert kept(find(Returned(), torch.randn(3, D))) == [[""]]

    def test_a_second_reader_widens_it(self):
        """The hull of all that is read: rows 1 to 2 and row 4."""

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(D, D)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                x = x + self.linear(x)
                return x[1:2].exp(), x[4:5]

        assert kept(find(Twice(), torch.randn(8, D))) == [["[1:5]"]]

    def test_what_regions_read_does_not_count(self):
        """In a forecast step no region runs, so what the next block reads of a stream is not read."""
        text_attention, text_mlp = kept(find(Flux(joint=2, single=1), *inputs()))[:2]
        assert (text_attention, text_mlp) == (["unread", ""], ["unread"])

    def test_the_graph_is_left_as_it_is(self):
        """Where no base has to be cut."""
        found = find(Flux(), *inputs())
        before = list(found.gm.graph.nodes)
        find_stored(found.gm.graph, found.regions)
        assert list(found.gm.graph.nodes) == before


class TestSymbolic:
    def test_all_of_an_unread_feature_is_kept(self):
        """Zeros in its place could not be made without its size."""
        found = find(Flux(), *inputs(5, 7), dynamic=True)
        joint, text, *_ = kept(found)
        assert all(isinstance(feature.node.meta["val"].shape[0], torch.SymInt) for feature in found.regions.features)
        assert (joint, text) == (["", ""], [""])
        assert kept(find(Flux(), *inputs(5, 7)))[:2] == [["unread", ""], ["unread"]]

    def test_open_end(self):
        """From the fourth token to the end of the stream, whatever its length; the buffers are that long."""
        found = find(Ending(), torch.randn(9, D), dynamic=True)
        assert kept(found) == [["[3:]"]]
        graph = guarded(found)
        assert nodes_without_value(graph.gm) == []
        length = next(v for v in found.traced.fake_inputs if isinstance(v, torch.SymInt)).node.expr
        assert {node.meta["val"].shape[0].node.expr for node in graph.buffers} == {length - 3}


class Ending(nn.Module):
    """The first tokens of the stream are dropped at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).exp()
        return (x + self.linear(x))[3:]


class TestBuffers:
    @pytest.mark.parametrize("storage", [Storage(0), Storage(2), Storage(1, torch.bfloat16), Storage(2, torch.float8_e5m2)])
    def test_sizes(self, storage):
        """Buffers of the kept part, none of an unread feature; as many bytes as are announced."""
        found = find(Flux(), *inputs())
        regions = find_stored(found.gm.graph, found.regions)
        graph = guard_regions(found.gm, regions, storage)
        per_order = [tuple(node.meta["val"].shape) for node in graph.buffers][: len(graph.buffers) // (storage.order + 1)]
        assert per_order == [(IMAGE, D)] * 4
        announced = sum(num_buffer_bytes(feature, storage) for feature in regions.features)
        assert announced == sum(node.meta["val"].nbytes for node in graph.buffers)

    def test_bytes_of_an_unread_feature(self):
        found = find(Flux(), *inputs())
        text, *_ = find_stored(found.gm.graph, found.regions).features
        assert text.stored_window is None
        assert num_buffer_bytes(text, Storage(4)) == 0

    @pytest.mark.parametrize("make", [find, find_stacks])
    def test_full_side_is_the_model_and_forecast_side_reads_the_part(self, make: Callable[..., Found]):
        """Of a constant model, a forecast from a snapshot is the model's output again: what was not kept was not read."""
        model, args = Flux(), inputs()
        found = make(model, *args)
        graph = guarded(found)
        weights, *buffers = random_state(graph)
        (result,), new = call(graph, found.traced.real_inputs, True, weights, *buffers)
        torch.testing.assert_close(result, model(*args))
        (forecast,), _ = call(graph, found.traced.real_inputs, False, torch.tensor([1.0, 0.0]), *new)
        torch.testing.assert_close(forecast, result)

    def test_forecast_is_zero_where_nothing_is_kept(self):
        """The text's forecast is there, for whoever asks: zeros of its shape."""
        found = find(Flux(), *inputs())
        graph = guarded(found)
        text, _, *_ = graph.gm.region0_forecast.graph.output_node().args[0]
        assert text.target is torch.ops.aten.full.default
        assert text.meta["val"].shape == (TEXT, D)
        padded = graph.gm.region3_forecast.graph.output_node().args[0][0]
        assert padded.target is torch.ops.aten.constant_pad_nd.default
        assert padded.args[1:] == ([0, 0, TEXT, 0], 0.0)

    def test_writes_of_the_full_step(self):
        """Only the kept rows are written."""
        found = find(Flux(), *inputs())
        graph = specialize(guarded(found), StepKind.FULL).graph
        writes = [node for node in graph.nodes if node.name.startswith("copy_")]
        assert [tuple(node.args[1].meta["val"].shape) for node in writes] == [(IMAGE, D)] * 4


class TestBases:
    def test_cut_to_the_part(self):
        """The entry of a stream that is joined halfway is a concatenation; what is left of it is the image itself."""
        text, image, gate = inputs()
        found = find_stacks(Flux(), text, image, gate)
        (feature,) = found.regions.features
        assert feature.base.meta["val"].shape == (TEXT + IMAGE, D)
        (feature,) = find_stored(found.gm.graph, found.regions).features
        assert feature.stored_window == ((TEXT, TEXT + IMAGE), None)
        assert feature.base is found.node(image)

    def test_the_cut_base_is_a_live_in(self):
        """Of the region that it is taken off in; the whole one no longer is, unless it is read there."""
        found = find_stacks(Flux(), *inputs())
        (region,) = find_stored(found.gm.graph, found.regions).regions
        (feature,) = region.features
        assert feature.base in region.live_ins
        order = {node: i for i, node in enumerate(found.gm.graph.nodes)}
        assert list(region.live_ins) == sorted(region.live_ins, key=order.__getitem__)

    def test_of_no_concatenation(self):
        """A slice of it."""
        found = find_stacks(Ending(), torch.randn(5, D))
        (feature,) = find_stored(found.gm.graph, found.regions).features
        assert feature.base.target is torch.ops.aten.slice.Tensor
        assert feature.base.meta["val"].shape == (2, D)
