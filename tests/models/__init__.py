"""Every diffusion transformer that diffusers exports, tiny and random: a module a family, collected here."""

from importlib import import_module
from pathlib import Path

from tests.models.variant import Variant

_TOOLS = ("__init__", "both", "table", "variant")
_FAMILIES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _TOOLS)

VARIANTS: dict[str, Variant] = {
    variant.name: variant for family in _FAMILIES for variant in import_module(f"tests.models.{family}").VARIANTS
}

EXCLUDED: dict[str, str] = {
    "DualTransformer2DModel": "mixes two Transformer2DModels inside a UNet; no denoiser by itself",
    "MiniMaxMusic3RVQDepthDecoder": "decodes tokens autoregressively; has no denoising steps",
}
