"""What a run has measured so far, in a file that is whole whenever the run is cut off."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class Record:
    """``header``: where it was measured and how. ``baselines``: each case without us, by name."""

    header: dict[str, Any]
    path: Path | None = None
    baselines: dict[str, dict[str, Row]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def content(self) -> dict[str, Any]:
        return {**self.header, "baselines": self.baselines, "rows": self.rows, "left_out": self.left_out}

    def save(self) -> None:
        """Write all of it at once."""
        if self.path is not None:
            unfinished = self.path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self.content, indent=2) + "\n")
            unfinished.replace(self.path)

    def add(self, row: Row) -> None:
        """Keep a row, or what was added to it."""
        if not any(row is other for other in self.rows):
            self.rows.append(row)
        self.save()
        print(_line(row), flush=True)

    def leave_out(self, what: str) -> None:
        self.left_out.append(what)
        self.save()
        print(f"left out, no time: {what}", flush=True)


def _line(row: Row) -> str:
    name, how = ("compiled", "without CUDA graphs") if "compiled" in row else ("cuda_graphs", "with CUDA graphs")
    ours = row[name]
    return (
        f"{row['case']}, {row['setting']}, {how}: full {ours['full_ms']:.2f} ms, forecast {ours['forecast_ms']:.3f} ms, "
        f"{ours['over_eager']:.2f}x over eager, {ours['over_plain']:.2f}x over torch.compile (ceiling {ours['ceiling']:.2f}x)"
    )
