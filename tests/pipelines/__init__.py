"""Real diffusers pipelines, tiny and random: a module a kind, collected here."""

from tests.pipelines import image, video
from tests.pipelines.zoo import PipelineCase

CASES: dict[str, PipelineCase] = {case.name: case for case in (*image.CASES, *video.CASES)}
