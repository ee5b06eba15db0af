"""The table in docs/models.md: what is found in each model. ``python -m tests.models.table`` writes it; test_models checks it."""

import os
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from taylorseer_fx import TaylorSeerBackend
from taylorseer_fx.config import BackendConfig
from tests.models import VARIANTS
from tests.models.both import BothBackend
from tests.models.variant import Variant
from tests.zoo import attention_backend_kept

PATH = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- models -->", "<!-- /models -->"
HEADER = (
    "model",
    "graphs",
    "attention",
    "mlp",
    "both",
    "features",
    "executed in every step",
    "forecast / full FLOPs",
    "the same, stack",
)


def row_of(variant: Variant, backend: BothBackend) -> str:
    """The line of a model, after one call or more of its compiled form. A graph that serves several layers counts for each."""
    num_graphs = backend.stats().graphs
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    num_features = 0
    for i in range(num_graphs):
        report = backend.explain(graph=i)
        summary = report.graphs[i]
        layers = summary.num_layers if summary.num_regions else 1  # none: superseded by a graph for more shapes
        num_features += layers * summary.num_features
        kinds.update({kind: layers * n for kind, n in Counter(region.kind for region in report.regions).items()})
        for entry in report.rejected:
            reasons[entry.reason.value] += layers
        flops.update({name: layers * count for name, count in summary.flops.items()})
    left_out = "; ".join(f"{count}: {reason}" for reason, count in sorted(reasons.items()))
    share = f"{flops['forecast'] / flops['full']:.1%}"
    stack = _flops(backend.stack)
    counts = [str(kinds[kind]) for kind in ("attention", "mlp", "attention+mlp")]
    return _line(
        [variant.name, str(num_graphs), *counts, str(num_features), left_out, share, f"{stack['forecast'] / stack['full']:.1%}"]
    )


def _flops(backend: TaylorSeerBackend) -> Counter[str]:
    """Of a forward; a graph that serves several layers counts for each."""
    flops: Counter[str] = Counter()
    for summary in backend.explain().graphs:
        layers = summary.num_layers if summary.num_regions else 1
        flops.update({name: layers * count for name, count in summary.flops.items()})
    return flops


def documented_row(name: str) -> str | None:
    """The line of a model as the docs have it."""
    return next((line for line in PATH.read_text().splitlines() if line.startswith(f"| {name} |")), None)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured(name: str) -> str:
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    backend = BothBackend(BackendConfig(order=0, compiler="eager", on_no_regions="warn"))
    torch._dynamo.reset()
    with torch.no_grad(), attention_backend_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(variant.build(), backend=backend, fullgraph=variant.fullgraph)
        with backend.stream("table", step=0):
            compiled(**variant.inputs(0, 0))
    return row_of(variant, backend)


def main() -> None:
    """Trace every model once and write the table between its marks."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(_measured, sorted(VARIANTS)), total=len(VARIANTS)))
    before, after = PATH.read_text().split(START)[0], PATH.read_text().split(END)[1]
    table = "\n".join([_line(list(HEADER)), _line(["---", *["---:"] * 5, "---", "---:", "---:"]), *rows])
    PATH.write_text(f"{before}{START}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
