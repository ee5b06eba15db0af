"""Fixed memory for inputs, and copies of outputs: layouts and aliasing are kept, whatever they are."""

import pytest
import torch

from taylorseer_fx.runtime.staging import Outputs, Staging


class TestStaging:
    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(torch.arange(6.0), id="dense"),
            pytest.param(torch.arange(6.0).reshape(2, 3).t(), id="transposed"),
            pytest.param(torch.arange(12.0)[::2], id="strided"),
            pytest.param(torch.arange(12)[3:7], id="offset"),
            pytest.param(torch.tensor(3.0), id="scalar"),
            pytest.param(torch.tensor(3.0).expand(4), id="expanded"),
            pytest.param(torch.arange(3.0).reshape(3, 1).expand(3, 5), id="partly-expanded"),
            pytest.param(torch.arange(4.0).as_strided((3, 2), (1, 1)), id="overlapping"),
            pytest.param(torch.zeros(0, 4), id="empty"),
            pytest.param(torch.tensor([True, False]), id="bool"),
            pytest.param(torch.ones(3).to(torch.float8_e5m2), id="float8"),
        ],
    )
    def test_layouts(self, value):
        """The staged tensor looks like the input, stays where it is, and has the values of the last input copied."""
        staging = Staging.of([7, value], [1])
        addresses = staging.addresses
        staging.fill([7, value])
        number, placed = staging.placed([7, value])
        assert number == 7
        assert (placed.shape, placed.stride(), placed.dtype) == (value.shape, value.stride(), value.dtype)
        assert torch.equal(placed.to(torch.float32), value.to(torch.float32))
        assert staging.addresses == addresses
        assert value.numel() == 0 or placed.data_ptr() != value.data_ptr()

    def test_several_dtypes(self):
        values = [torch.ones(2), torch.ones(2, dtype=torch.int64), torch.full((3,), 2.0)]
        staging = Staging.of(values, [0, 1, 2])
        staging.fill(values)
        assert all(torch.equal(a, b) for a, b in zip(staging.placed(values), values, strict=True))
        assert [len(targets) for targets, _ in staging.groups] == [2, 1]


class TestOutputs:
    def test_copies(self):
        """What the next replay writes does not reach the copies."""
        value = torch.ones(3)
        (copy,) = Outputs([value]).copied()
        value.fill_(9)
        assert torch.equal(copy, torch.ones(3))
        assert not copy._is_view()

    @pytest.mark.parametrize(
        "value",
        [
            torch.arange(6.0).reshape(2, 3).t(),
            torch.arange(12.0)[::2],
            torch.arange(12)[3:7],
            torch.tensor(2.0).expand(3),
            torch.zeros(0),
        ],
    )
    def test_layouts(self, value):
        (copy,) = Outputs([value]).copied()
        assert (copy.shape, copy.stride(), copy.dtype) == (value.shape, value.stride(), value.dtype)
        assert copy.storage_offset() == value.storage_offset()
        assert torch.equal(copy, value)

    def test_aliases(self):
        """Outputs that share memory do so in the copy, and with nothing else."""
        base = torch.arange(6.0)
        whole, part, again, other = Outputs([base, base[2:4], base, torch.ones(2)]).copied()
        part.fill_(7)
        assert whole.tolist() == again.tolist() == [0, 1, 7, 7, 4, 5]
        assert base.tolist() == [0, 1, 2, 3, 4, 5]
        assert other.tolist() == [1, 1]

    def test_other_values(self):
        assert Outputs([3, None, torch.ones(1)]).copied()[:2] == [3, None]

    def test_made_in_inference_mode(self):
        """The caller may go on in another mode."""
        with torch.inference_mode():
            outputs = Outputs([torch.ones(2), torch.arange(4.0)[::2]])
        copies = outputs.copied()
        assert not any(copy.is_inference() for copy in copies)
        copies[0].add_(1)
