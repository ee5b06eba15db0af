"""Fidelity, Frechet distance and the sweep over interval and order."""

import json

import numpy as np
import pytest
import torch

from taylorseer_fx.bench import claims, claims_report
from taylorseer_fx.bench.claims import Cell, Sampler, cells, run_claims
from taylorseer_fx.bench.claims_report import Claims
from taylorseer_fx.bench.fidelity import along_trajectory, relative_l2, smoothness, ssim
from taylorseer_fx.bench.frechet import feature_space, frechet_distance
from taylorseer_fx.digits.judge import load_real_digits


def test_ssim_of_the_same_is_one():
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    assert ssim(images, images) == pytest.approx(1.0)


def test_ssim_by_hand():
    """One window, constant pictures: the luminance term alone."""
    a, b = torch.full((1, 1, 7, 7), 0.5), torch.full((1, 1, 7, 7), 0.25)
    c1 = 0.02**2
    assert ssim(a, b) == pytest.approx((2 * 0.125 + c1) / (0.25 + 0.0625 + c1))


def test_ssim_falls_with_noise():
    images, _ = load_real_digits()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert 1 > ssim(images + 0.1 * noise, images) > ssim(images + 0.5 * noise, images) > 0


def test_relative_l2():
    assert relative_l2(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert along_trajectory([torch.ones(2)] * 2, [torch.ones(2), 2 * torch.ones(2)]) == [0.0, 0.5]


def test_smoothness_of_a_line():
    reuse, line = smoothness([torch.tensor([1.0 + step]) for step in range(10)])
    assert reuse > 0.1
    assert line == pytest.approx(0)


def test_frechet_of_known_gaussians():
    """Diagonal covariances: the squared distance of means and of standard deviations."""
    generator = np.random.default_rng(0)
    points = generator.standard_normal((4000, 3))
    points = (points - points.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False)).T)
    other = points * np.array([2.0, 1.0, 3.0]) + np.array([1.0, 0.0, -2.0])
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, other) == pytest.approx((1 + 4) + (1 + 0 + 4), rel=1e-6)


def test_feature_space_tells_digits_from_noise():
    space = feature_space()
    images, _ = load_real_digits()
    assert space.distance(images) == pytest.approx(0, abs=1e-6)
    assert 0 < space.between_halves() < space.distance(images + 0.5 * torch.randn(images.shape)) / 4


def test_cells():
    """Every interval and order at both granularities, with the full run and fewer steps at equal compute beside them."""
    found = list(cells(2000))
    assert len({cell.key for cell in found}) == len(found) == 1 + 9 + 9 * 5 * 2
    assert {cell.num_samples for cell in found} == {2000, 500}
    assert Cell("module", 1, 5, 2000).full_steps == 12
    assert Cell("full", 0, 1, 2000).full_steps == 50


@pytest.mark.turn(2, 3)
def test_resumes(tmp_path, monkeypatch):
    """A second run does what is missing, and nothing again; one with other settings is refused."""
    few = [Cell("full", 0, 1, 20), Cell("fewer steps", 0, 5, 20), Cell("module", 0, 5, 20), Cell("module", 1, 5, 20)]
    monkeypatch.setattr(claims, "cells", lambda *_: iter(few))
    sampler, path, drawn = Sampler(batch=20, compiler="eager", num_steps=10), tmp_path / "claims.json", []

    def on_cell(_number: int, _total: int, key: str) -> None:
        drawn.append(key)

    assert not run_claims(path, 20, sampler, on_cell, limit=2)
    assert run_claims(path, 20, sampler, on_cell)
    assert drawn == [cell.key for cell in few]
    assert run_claims(path, 20, sampler, on_cell)
    assert len(drawn) == 4
    content = json.loads(path.read_text())
    reuse, linear = (content["cells"][cell.key] for cell in few[2:])
    assert 10 < reuse["psnr_db"] < linear["psnr_db"]
    assert content["cells"][few[0].key]["psnr_db"] is None
    with pytest.raises(ValueError, match="holds cells of"):
        run_claims(path, 30, sampler, on_cell)
    text = claims_report.markdown(content)
    assert "better at every interval" in text
    alone = content | {"cells": {few[0].key: content["cells"][few[0].key]}}  # of a run that was broken off
    assert "nothing recorded" in claims_report.markdown(alone)
    claims_report.save_picture(content, tmp_path / "claims.png")
    assert (tmp_path / "claims.png").read_bytes().startswith(b"\x89PNG")


def test_measures_of_other_samples_are_not_mixed():
    """What is of all samples leaves the cells of fewer out; what is of the first ones has a figure of each cell."""

    def cell(order: int, num_samples: int) -> dict[str, object]:
        named = {"method": "module", "order": order, "interval": 3, "num_samples": num_samples, "full_steps": 18}
        return named | dict.fromkeys(claims_report.MEASURES, 1.0)

    cells_of = {"a": cell(2, 10_000), "b": cell(3, 500)}
    content = {"settings": {"num_samples": 10_000}, "cells": cells_of}
    heads = {measure: claims_report.table(Claims(content), measure).splitlines()[0] for measure in claims_report.MEASURES}
    assert {measure: ("O2" in head, "O3" in head) for measure, head in heads.items()} == {
        "psnr_db_of_first_500": (True, True),
        "psnr_db": (True, False),
        "frechet_of_first_500": (True, True),
        "frechet": (True, False),
    }
