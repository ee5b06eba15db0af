"""Run the stages one by one: switch off, time, verify, record and log each of them.

``TORCH_LOGS="+taylorseer_fx"`` prints a line per stage, with what it did to the number of operators, and has each verified.
``TAYLORSEER_FX_GRAPHS=narrow_forecast,guard_regions`` (or ``all``) prints the graphs that those stages made. ``TORCH_TRACE=dir``
records all of them, read with tlparse. A stage that fails names those that ran before it. One that a graph is right without
(``OPTIONAL``) can be switched off, and is left out if it fails where that can be reported.
"""

import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from torch import fx

from taylorseer_fx.compat import dynamo_timed, trace_structured
from taylorseer_fx.errors import PassError
from taylorseer_fx.passes.failures import failure_report
from taylorseer_fx.passes.ops import any_overload
from taylorseer_fx.passes.steps import OPTIONAL, StepKind
from taylorseer_fx.passes.verify import Verifier

log = logging.getLogger(__name__)
T = TypeVar("T")
Notify = Callable[[str, str], None]  # takes a topic, and the text to show once for it

DISABLED = "it is in disabled_passes"
SHOWN_CHANGES = 6  # operators in a line of the log

always_verifies = False  # the tests'; else only what is logged is verified


@dataclass(frozen=True)
class StageRecord:
    """One line of the table of passes in ``explain()``; ``left_out``: the reason for that, its error or ``DISABLED``."""

    name: str
    num_ops: int
    duration_ms: float
    left_out: str = ""

    @property
    def has_failed(self) -> bool:
        return self.left_out not in ("", DISABLED)


Watch = Callable[[StageRecord, fx.GraphModule], None]  # takes a stage and the graph that it made


class Runner:
    """Runs stages on one traced graph."""

    def __init__(
        self, traced: fx.GraphModule, disabled: Collection[str] = (), notify: Notify | None = None, watch: Watch | None = None
    ) -> None:
        self.records: list[StageRecord] = []
        self._disabled, self._notify, self._watch = frozenset(disabled), notify, watch
        self._verifier = Verifier(traced) if always_verifies or log.isEnabledFor(logging.DEBUG) else None
        self._shown = os.environ.get("TAYLORSEER_FX_GRAPHS", "").split(",")
        self._source = traced

    def run(
        self,
        name: str,
        stage: Callable[[], T],
        graph_of: Callable[[T], fx.GraphModule],
        *,
        source: fx.GraphModule | None = None,
        kind: StepKind | None = None,
        without: Callable[[], T] | None = None,
    ) -> T:
        """Run a stage and return what it makes.

        Args:
            name: the name of the pass.
            stage: the pass on its graph.
            graph_of: returns the graph in what it makes.
            source: the graph that it works on; None: what the stage before made.
            kind: the step kind of which it is the graph.
            without: makes what to go on with if the pass is optional, and switched off or failing.
        """
        label = name if kind is None else f"{name}_{kind.value}"
        started, left_out = time.perf_counter(), ""
        if name in self._disabled and without is not None:
            result, left_out = without(), DISABLED
        else:
            try:
                result = self.checked(label, lambda: self._verified(stage(), graph_of, stores=kind is not None))
            except PassError as failure:
                if name not in OPTIONAL or without is None or self._notify is None:
                    raise
                result, left_out = without(), self._leave_out(name, label, failure.__cause__, self._notify)
        gm, source = graph_of(result), source or self._source
        self.records.append(StageRecord(label, count_ops(gm.graph), (time.perf_counter() - started) * 1e3, left_out))
        self._log(gm, source)
        if self._watch is not None:
            self._watch(self.records[-1], gm)
        self._source = gm
        return result

    def checked(self, label: str, stage: Callable[[], T]) -> T:
        """Run a stage without a record of it; whatever it raises becomes a ``PassError``."""
        try:
            with dynamo_timed(f"taylorseer_fx.{label}"):
                return stage()
        except Exception as error:
            before = ", ".join(record.name for record in self.records) or "none"
            failure = PassError(f"taylorseer_fx pass {label!r} failed: {error} (passes that ran before it: {before})")
            failure.add_note("".join(traceback.format_exception(error)))  # Dynamo takes the cause off
            raise failure from error

    def _verified(self, result: T, graph_of: Callable[[T], fx.GraphModule], stores: bool) -> T:
        if self._verifier is not None:
            self._verifier.check(graph_of(result), stores=stores)
        return result

    @staticmethod
    def _leave_out(name: str, label: str, error: BaseException | None, notify: Notify) -> str:
        assert isinstance(error, Exception)
        log.debug("%s failed and is left out", label, exc_info=error)
        notify(f"left out {label}", failure_report(label, error, OPTIONAL[name]))
        return f"{type(error).__name__}: {error}"

    def _log(self, gm: fx.GraphModule, source: fx.GraphModule) -> None:
        record = self.records[-1]
        if log.isEnabledFor(logging.DEBUG):
            change = f" ({text})" if (text := change_text(source.graph, gm.graph)) else ""
            out = f", left out: {record.left_out}" if record.left_out else ""
            line = "%d %s: %d ops%s, %.1f ms%s"
            log.debug(line, len(self.records), record.name, record.num_ops, change, record.duration_ms, out)
        if record.name in self._shown or "all" in self._shown:
            sys.stderr.write(f"# {record.name}\n{gm.print_readable(print_output=False)}\n")
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": f"taylorseer_fx_{record.name}", "encoding": "string"},
            payload_fn=lambda: gm.print_readable(print_output=False),
        )


def change_text(before: fx.Graph, after: fx.Graph) -> str:
    """The operators that became more or fewer, as ``+2 cond, -3 mm``: those that changed most first."""
    old, new = _ops(before), _ops(after)
    changes = {op: new[op] - old[op] for op in (*old, *new) if new[op] != old[op]}
    largest = sorted(changes.items(), key=lambda change: (-abs(change[1]), change[0]))
    shown = [f"{count:+d} {op}" for op, count in largest[:SHOWN_CHANGES]]
    return ", ".join([*shown, *(["..."] if len(largest) > SHOWN_CHANGES else [])])


def _ops(graph: fx.Graph) -> Counter[str]:
    return Counter(_op_name(node) for node in graph.nodes if node.op == "call_function")


def _op_name(node: fx.Node) -> str:
    operator = any_overload(node)
    return str(getattr(operator, "__name__", operator))


def count_ops(graph: fx.Graph) -> int:
    return sum(node.op == "call_function" for node in graph.nodes)
