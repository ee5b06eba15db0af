"""The harness' timing under the name that the benchmarks here use."""

from taylorseer_fx.bench.timing import PairedSteps, interleaved_steps, paired_steps

__all__ = ["PairedSteps", "interleaved_steps", "paired_steps"]
