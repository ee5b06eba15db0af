"""cache-dit: DBCache with one of its calibrators and a static step mask, through the pipeline's own call."""

import logging
import warnings
from dataclasses import dataclass
from types import ModuleType

from taylorseer_fx.bench.running import Case, Method, NotInstalledError, Runner, compile_transformer

INSTALL = 'pip install "taylorseer-fx[peers]"'


@dataclass(frozen=True)
class CacheDit:
    """The first block is always executed (its least), the others by the mask. ``encoder``: whether text is forecast as well.

    ``calibrator``: "TaylorSeer" of order 1, "FoCa" (arXiv 2508.16211) or "DMD" (dynamic mode decomposition), by their defaults.
    """

    compiled: bool
    calibrator: str = "TaylorSeer"
    encoder: bool = True
    caches = True

    @property
    def family(self) -> str:
        return "cache-dit" if self.calibrator == "TaylorSeer" else f"cache-dit {self.calibrator}"

    @property
    def name(self) -> str:
        return f"{self.family}{'' if self.encoder else ', not the text'}, {'compiled' if self.compiled else 'eager'}"

    @property
    def note(self) -> str:
        return (
            f"DBCache F1B0, static mask, {self.calibrator} calibrator{' of order 1' if self.calibrator == 'TaylorSeer' else ''}"
        )

    @property
    def counted_as(self) -> Method:
        return CacheDit(False, self.calibrator, self.encoder)

    def prepare(self, case: Case) -> Runner:
        cache_dit = _imported()
        runner = Runner(case, case.pipeline(), case.num_steps)
        warmup = next((i for i, step in enumerate(case.full_steps) if i != step), len(case.full_steps))
        cache_dit.enable_cache(
            runner.pipe,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                max_warmup_steps=warmup,
                steps_computation_mask=[int(step in case.full_steps) for step in range(case.num_steps)],
                steps_computation_policy="static",
                num_inference_steps=case.num_steps,
            ),
            calibrator_config=getattr(cache_dit, f"{self.calibrator}CalibratorConfig")(enable_encoder_calibrator=self.encoder),
        )
        return compile_transformer(runner) if self.compiled else runner


def _imported() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cache_dit
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{error.name} is missing: {INSTALL}") from error
    for name in list(logging.root.manager.loggerDict):  # each of its modules has a level of its own
        if name.startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.ERROR)
    module: ModuleType = cache_dit
    return module
