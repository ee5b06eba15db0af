"""Nothing is forecast: eager, ``torch.compile``, and fewer steps at the compute that forecasting leaves."""

from dataclasses import dataclass

from taylorseer_fx.bench.running import Case, Method, Runner, compile_transformer


@dataclass(frozen=True)
class Plain:
    """Every step in full."""

    compiled: bool
    family = "every step"
    caches = False
    note = ""

    @property
    def name(self) -> str:
        return "torch.compile" if self.compiled else "eager"

    @property
    def counted_as(self) -> Method:
        return Plain(compiled=False)

    def prepare(self, case: Case) -> Runner:
        return _plain(case, case.num_steps, self.compiled)


@dataclass(frozen=True)
class FewerSteps:
    """A run of as many steps as the others execute in full, every one of them in full."""

    compiled: bool
    family = "fewer steps"
    caches = False
    note = "as many steps as the schedule executes"

    @property
    def name(self) -> str:
        return f"fewer steps, {'compiled' if self.compiled else 'eager'}"

    @property
    def counted_as(self) -> Method:
        return FewerSteps(compiled=False)

    def prepare(self, case: Case) -> Runner:
        return _plain(case, len(case.full_steps), self.compiled)


def _plain(case: Case, num_steps: int, compiled: bool) -> Runner:
    runner = Runner(case, case.pipeline(), num_steps)
    return compile_transformer(runner) if compiled else runner
