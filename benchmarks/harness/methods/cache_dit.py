"""cache-dit: DBCache with its TaylorSeer calibrator and a static step mask, through the pipeline's own call."""

import logging
import warnings
from dataclasses import dataclass
from types import ModuleType

from taylorseer_fx.bench.running import Case, Method, NotInstalledError, Runner, compile_transformer

INSTALL = 'pip install "taylorseer-fx[peers]"'


@dataclass(frozen=True)
class CacheDit:
    """The first block is always executed (its least), the others by the mask. ``encoder``: whether text is forecast as well."""

    compiled: bool
    order: int = 1
    encoder: bool = True
    family = "cache-dit"
    caches = True

    @property
    def name(self) -> str:
        return f"cache-dit{'' if self.encoder else ', not the text'}, {'compiled' if self.compiled else 'eager'}"

    @property
    def note(self) -> str:
        return f"DBCache F1B0, static mask, TaylorSeer calibrator of order {self.order}"

    @property
    def counted_as(self) -> Method:
        return CacheDit(compiled=False, order=self.order, encoder=self.encoder)

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
            calibrator_config=cache_dit.TaylorSeerCalibratorConfig(
                taylorseer_order=self.order, enable_encoder_calibrator=self.encoder
            ),
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
