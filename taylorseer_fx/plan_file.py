"""The file that ``calibrate`` makes and ``taylorseer_backend(plan=...)`` reads: lists of full steps, and what they are for.

    {"schema": 1, "num_steps": 50, "order": 1, "granularity": "module",
     "full_steps": {"10": [0, 1, 4, ...]}, "curve": [...], "signature": {...}, "versions": {...}}

What a list is good for is named by the signature; where a run differs in any of it, the difference is named.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from taylorseer_fx.errors import ConfigError

SCHEMA = 1
FILE_NAME = "taylorseer_plan.json"  # in a repository of the Hugging Face hub
WAYS_DIFFER = '(compiled whole, a model has other graphs than by its blocks: accelerate takes compile="whole" or "blocks")'


@dataclass(frozen=True)
class GraphSignature:
    """One compiled graph with regions: how many of each kind, and shapes and dtypes of its features."""

    kinds: tuple[tuple[str, int], ...]
    features: tuple[str, ...]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds)
        return f"{kinds} ({', '.join(self.features)})"


@dataclass(frozen=True)
class RunSignature:
    """One run of a pipeline: its scheduler, by class and settings, and its guidance scale; None where there is none."""

    scheduler: str | None = None
    settings: str | None = None
    guidance: float | None = None

    @classmethod
    def of(cls, pipe: Any) -> "RunSignature":
        scheduler, guidance = getattr(pipe, "scheduler", None), getattr(pipe, "_guidance_scale", None)
        settings = {name: value for name, value in dict(getattr(scheduler, "config", {})).items() if not name.startswith("_")}
        return cls(
            type(scheduler).__name__ if scheduler is not None else None,
            json.dumps(settings, sort_keys=True, default=str) if scheduler is not None else None,
            float(guidance) if isinstance(guidance, (int, float)) else None,
        )


@dataclass(frozen=True)
class PlanFile:
    """Lists of full steps for runs of ``num_steps`` steps, by their number, and what they were found for.

    ``curve``: for each list the decibels, mean and worst sample, and those of the paper's schedule, as ``calibrate`` measured
    them. ``graphs`` and ``runs`` are the signature; ``runs`` is None where no pipeline was attached.
    """

    num_steps: int
    order: int
    granularity: str
    full_steps: tuple[tuple[int, ...], ...]
    graphs: tuple[GraphSignature, ...]
    runs: RunSignature | None = None
    curve: tuple[Mapping[str, float | None], ...] = field(default=(), compare=False)
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def num_regions(self) -> int:
        """The regions of the graph that has most: fewer than the model has blocks, if it was compiled by these."""
        return max((sum(count for _, count in graph.kinds) for graph in self.graphs), default=0)

    def list_for(self, speedup: float | None) -> tuple[int, ...]:
        """The list of ``ceil(num_steps / speedup)`` full steps; the only one there is, where ``speedup`` is None.

        Raises:
            ConfigError: there is none.
        """
        by_number = {len(steps): steps for steps in self.full_steps}
        if speedup is None and len(by_number) == 1:
            return self.full_steps[0]
        number = ceil(self.num_steps / speedup - 1e-9) if speedup is not None else None
        if number not in by_number:
            there = ", ".join(f"{self.num_steps / count:.4g} ({count} full)" for count in sorted(by_number))
            raise ConfigError("speedup", f"one that the plan has a list for: {there}", speedup)
        return by_number[number]

    def differences(self, graph: GraphSignature) -> Iterator[str]:
        """Name what differs in a graph that was compiled."""
        if graph not in self.graphs:
            yield f"the model: the plan is for {' and '.join(map(str, self.graphs))}, here is {graph} {WAYS_DIFFER}"

    def differences_of_run(self, run: RunSignature) -> Iterator[str]:
        """Name what differs in a run of an attached pipeline."""
        if self.runs is None:
            return
        for name in ("scheduler", "settings", "guidance"):
            planned, here = getattr(self.runs, name), getattr(run, name)
            if planned != here:
                what = {"settings": "the scheduler's settings", "guidance": "the guidance scale"}.get(name, "the scheduler")
                yield f"{what}: the plan is for {planned}, here is {here}"
                return

    def to_json(self) -> str:
        content = asdict(self)
        lists = content.pop("full_steps")
        signature = {"graphs": content.pop("graphs"), "runs": content.pop("runs")}
        content |= {"full_steps": {str(len(steps)): list(steps) for steps in lists}, "signature": signature}
        return json.dumps({"schema": SCHEMA, **content}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> "PlanFile":
        """Raises:
        ConfigError: ``text`` is no plan, or one of another version.
        """
        try:
            content = json.loads(text)
            schema = content["schema"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                "plan", "a file that calibrate wrote", where, "It is not the JSON of a plan, or not all of it."
            ) from None
        if schema != SCHEMA:
            raise ConfigError("plan", f"a plan file of version {SCHEMA}", where, f"It is of version {schema!r}; calibrate again.")
        try:
            return cls(
                num_steps=_whole(content["num_steps"]),
                order=_whole(content["order"]),
                granularity=str(content["granularity"]),
                full_steps=_lists(content["full_steps"], content["num_steps"]),
                graphs=tuple(_graph(graph) for graph in content["signature"]["graphs"]),
                runs=RunSignature(**content["signature"]["runs"]) if content["signature"]["runs"] is not None else None,
                curve=tuple(content["curve"]),
                versions=dict(content["versions"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ConfigError("plan", "a file that calibrate wrote", where, f"Its content is wrong: {error}.") from None

    def save(self, path: str | Path) -> None:
        """Write the file."""
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, source: str | Path) -> "PlanFile":
        """Read a file, or the one of a repository of the Hugging Face hub, such as "someone/flux-plans".

        Raises:
            ConfigError: there is no such file, or it is no plan.
        """
        path = Path(source)
        if not path.is_file():
            path = _from_hub(str(source))
        try:
            return cls.from_json(path.read_text(), str(source))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("plan", "a readable file", str(source), str(error)) from None


def _from_hub(name: str) -> Path:
    allowed = f"the path of a file, or a repository of the Hugging Face hub that holds {FILE_NAME}"
    if name.count("/") != 1 or name.endswith(".json"):
        raise ConfigError("plan", allowed, name)
    from huggingface_hub import hf_hub_download  # comes with diffusers
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, FILE_NAME))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError("plan", allowed, name, str(error).splitlines()[0]) from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of steps or order")
    return value


def _lists(content: Mapping[str, Sequence[int]], num_steps: int) -> tuple[tuple[int, ...], ...]:
    lists = []
    for number, steps in content.items():
        found = tuple(map(_whole, steps))
        if found != tuple(sorted(set(found))) or found[:1] != (0,) or len(found) != int(number) or found[-1] >= num_steps:
            raise ValueError(f"{list(found)} is no list of {number} full steps of {num_steps}")
        lists.append(found)
    if not lists:
        raise ValueError("it has no lists")
    return tuple(lists)


def _graph(content: Mapping[str, Any]) -> GraphSignature:
    return GraphSignature(
        tuple((str(kind), int(count)) for kind, count in content["kinds"]), tuple(map(str, content["features"]))
    )
