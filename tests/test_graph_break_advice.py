"""What is said of a graph break: the line of the model, and what avoids a break of that kind. Following it gives one graph."""

import logging
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taylorseer_fx import TaylorSeerBackend, TaylorSeerWarning, taylorseer_backend
from taylorseer_fx.graph_breaks import PYTHON, USER, advice_on, model_frame, owner_of

HERE = Path(__file__).name
log = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class TwoLayers(nn.Module):
    """Two residual layers with ``between`` called between them, on the stream and an integer input."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(8, 8), nn.Linear(8, 8), between

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        x = x + self.first(x)
        x = self.between(x, number)
        return x + self.last(x)


def with_item(x: Tensor, number: Tensor) -> Tensor:
    return x * number.item()


def with_print(x: Tensor, number: Tensor) -> Tensor:
    print(end="")  # noqa: T201
    return x


def with_logging(x: Tensor, number: Tensor) -> Tensor:
    log.info("here")
    return x


def with_mask(x: Tensor, number: Tensor) -> Tensor:
    return x + x[x[:, 0] > 0].sum()


def with_branch(x: Tensor, number: Tensor) -> Tensor:
    return x if number > 0 else -x


def without_branch(x: Tensor, number: Tensor) -> Tensor:
    return torch.where(number > 0, x, -x)


def with_c_function(x: Tensor, number: Tensor) -> Tensor:
    return x * (zlib.crc32(b"seed") % 7)


@torch.compiler.assume_constant_result
def remembered() -> int:
    return zlib.crc32(b"seed") % 7


def with_remembered_result(x: Tensor, number: Tensor) -> Tensor:
    return x * remembered()


@torch.compiler.disable
def kept_from_the_compiler(x: Tensor) -> Tensor:
    return 2 * x


def with_disabled(x: Tensor, number: Tensor) -> Tensor:
    return kept_from_the_compiler(x)


def with_enabled(x: Tensor, number: Tensor) -> Tensor:
    return 2 * x


def with_file(x: Tensor, number: Tensor) -> Tensor:
    return x * (1 + len(Path("/dev/null").read_text()))


def called(between: Callable[[Tensor, Tensor], Tensor]) -> TaylorSeerBackend:
    torch._dynamo.reset()
    torch.manual_seed(0)
    backend = taylorseer_backend(compiler="eager")
    compiled = torch.compile(TwoLayers(between), backend=backend)
    with backend.stream("one"):
        compiled(torch.randn(4, 8), torch.tensor(3))
    return backend


def told(between: Callable[[Tensor, Tensor], Tensor]) -> tuple[str, str]:
    """Where a model breaks and what is advised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the function itself says, and Dynamo about it
        first = called(between).explain().graphs[0]
    return first.ends_at, first.advice


def set_to(**settings: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: torch._dynamo.config.patch(**settings)


KINDS = [
    (with_item, "capture_scalar_outputs = True", with_item, set_to(capture_scalar_outputs=True)),
    (with_print, "reorderable_logging_functions.add(print)", with_print, set_to(reorderable_logging_functions={print})),
    (
        with_logging,
        "ignore_logging_functions.add(logging.Logger.warning)",
        with_logging,
        set_to(ignore_logging_functions={logging.Logger.info}),
    ),
    (with_mask, "capture_dynamic_output_shape_ops = True", with_mask, set_to(capture_dynamic_output_shape_ops=True)),
    (with_branch, "torch.where", without_branch, nullcontext),
    (with_c_function, "assume_constant_result", with_remembered_result, nullcontext),
    (with_disabled, "torch.compiler.disable: take that away", with_enabled, nullcontext),
]


@pytest.mark.parametrize(("between", "advice", "instead", "setting"), KINDS, ids=[kind[0].__name__ for kind in KINDS])
def test_following_the_advice_gives_one_graph(between, advice, instead, setting):
    where, said = told(between)
    assert where.startswith(f"{HERE}:")
    assert advice in said
    with setting():
        backend = called(instead)
    assert [entry.ends_at for entry in backend.explain().graphs] == ["return"]
    assert len(backend.explain().regions) == 2


def test_the_warning_and_the_report_give_the_advice():
    """Not ``fullgraph=True``, under which the model raises."""

    class BrokenAtOnce(TwoLayers):
        def forward(self, x: Tensor, number: Tensor) -> Tensor:
            x = self.between(2 * x, number)
            return x + self.last(x)

    backend = taylorseer_backend(compiler="eager")
    compiled = torch.compile(BrokenAtOnce(with_item), backend=backend)
    wanted = r"First break: .*item.*To avoid it: .*capture_scalar_outputs = True"
    with pytest.warns(TaylorSeerWarning, match=wanted) as caught, backend.stream("one"):
        compiled(torch.randn(4, 8), torch.tensor(3))
    assert "fullgraph" not in str(caught[0].message)
    assert "to avoid such a break: a number is read from a tensor" in str(backend.explain())


def test_the_models_line_is_named_where_a_library_breaks():
    where, _ = told(with_file)
    assert where.startswith(HERE)
    assert "Path(" in where


def frames(*files: str) -> list[FrameSummary]:
    return [FrameSummary(file, i + 1, "f", line="") for i, file in enumerate(files)]


SITE = "/opt/lib/python3.11/site-packages"
STDLIB = Path(logging.__file__).parent.parent
MODEL = f"{SITE}/models_of_all/transformer.py"


class TestModelFrame:
    @pytest.mark.parametrize(
        ("stack", "modules", "line"),
        [
            pytest.param(["/home/a/model.py", "/home/a/rope.py", f"{SITE}/torch/nn/f.py"], [], 2, id="users-helper"),
            pytest.param(["/home/a/run.py", MODEL, f"{SITE}/psutil/_common.py"], [MODEL], 2, id="installed-model"),
            pytest.param(["/home/a/run.py", MODEL, f"{SITE}/psutil/_common.py"], [], 1, id="no-module-known"),
            pytest.param([MODEL, f"{SITE}/models_of_all/attention.py", f"{STDLIB}/pathlib.py"], [MODEL], 2, id="its-package"),
            pytest.param([f"{SITE}/torch/nn/a.py", f"{SITE}/psutil/b.py"], [], 2, id="torchs-own-model"),
            pytest.param([f"{SITE}/torch/nn/a.py", f"{SITE}/torch/b.py"], [f"{SITE}/torch/nn/a.py"], 2, id="torch-alone"),
        ],
    )
    def test_innermost_of_the_models_code(self, stack, modules, line):
        assert model_frame(frames(*stack), modules).lineno == line

    def test_no_frame(self):
        assert model_frame([], [MODEL]) is None

    @pytest.mark.parametrize(
        ("file", "owner"),
        [
            (torch.nn.__file__, "torch"),
            (logging.__file__, PYTHON),
            ("<frozen importlib._bootstrap>", PYTHON),
            (__file__, USER),
            ("<ipython-input-3>", USER),
            (f"{SITE}/six.py", "six"),
            (f"{sys.prefix}/lib/python3/dist-packages/a/b.py", "a"),
        ],
    )
    def test_owner(self, file, owner):
        assert owner_of(file) == owner


class TestAdviceOn:
    def test_an_unknown_kind_passes_on_what_dynamo_hints_at(self):
        assert advice_on("Something new\n  Hint: Do it otherwise.\n  Hint: Or so.") == "Dynamo's hint: Do it otherwise."

    def test_nothing_known(self):
        assert "TORCH_LOGS=graph_breaks" in advice_on("step_unsupported")
