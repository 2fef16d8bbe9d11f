"""Bits per dimension against `Diffusion.vlb`, and what stratified steps estimate against known terms."""

import csv
import math

import numpy as np
import pytest

import tinydiff as td
from tinydiff.data.pixels import to_float
from tinydiff.evaluation.bits import EVALUATION, BitsPerDim, choose_steps, measure_bits
from tinydiff.random import Generator


@pytest.mark.parametrize(("T", "terms"), [(1000, 50), (1000, 3), (20, 5), (20, 19), (100, 99), (4000, 50)])
def test_strata_cover_every_step_once(T, terms):
    strata = choose_steps(T, terms, Generator(0).at(EVALUATION))
    covered = np.concatenate([np.arange(s.first, s.last + 1) for s in strata])
    np.testing.assert_array_equal(covered, np.arange(1, T + 1))
    evaluated = np.concatenate([s.evaluated for s in strata])
    assert 0.85 * terms <= len(evaluated) <= terms or (terms < 10 and 3 <= len(evaluated) <= terms)
    for s in strata:
        assert len(set(s.evaluated)) == min(2, s.last - s.first + 1)
        assert s.first <= s.evaluated.min() and s.evaluated.max() <= s.last
    assert strata[0].evaluated.tolist() == [1]


def test_every_step_of_a_stratum_is_as_likely():
    counts = np.zeros(21)
    for seed in range(600):
        for s in choose_steps(20, 7, Generator(seed).at(EVALUATION)):
            counts[s.evaluated] += s.weight
    # each step's expected weight is 1; the widest stratum has about 8 steps, a step 2/8 of the draws at weight 4
    np.testing.assert_allclose(counts[1:] / 600, 1, atol=5 * math.sqrt((4 - 1) / 600))


def test_all_terms_are_the_bound_of_diffusion_vlb(run, pictures):
    pipeline = td.load(run)
    unet, diffusion = pipeline.unet, pipeline.diffusion
    images, labels = pictures(5, 3), np.array([0, 1, 2, 0, 1])
    result = measure_bits(unet, diffusion, images, labels, terms=None, seed=4)
    bound = diffusion.vlb(unet, to_float(images), Generator(4).at(EVALUATION, 1), labels)
    np.testing.assert_allclose(result.totals, bound.total, rtol=1e-12)
    assert result.total().bits == pytest.approx(bound.total.mean(), rel=1e-12)
    by_images, by_steps = result.errors()
    assert by_steps == 0 and by_images == pytest.approx(bound.total.std(ddof=1) / math.sqrt(5), rel=1e-9)


def test_rows_and_csv_add_up_to_the_total(run, pictures):
    pipeline = td.load(run)
    for terms in (5, 9, None):
        result = measure_bits(pipeline.unet, pipeline.diffusion, pictures(4), None, terms)
        assert sum(row.bits for row in result.rows()) == pytest.approx(result.total().bits, rel=1e-12)
        lines = list(csv.DictReader(result.csv().splitlines()))
        total = sum(float(line["weight"]) * float(line["bits_per_dim"]) for line in lines)
        assert total == pytest.approx(result.total().bits, rel=1e-7)
        assert [int(line["t"]) for line in lines if line["term"] != "L_T"] == result.steps.tolist()
        assert result.rows()[-1].bits == pytest.approx(result.terms[:, 0].mean())
        assert result.table().splitlines()[-1].startswith("total")


def test_the_estimate_is_unbiased_and_its_error_honest():
    """For terms that are known, over many choices of steps."""
    t = np.arange(1, 101)
    L_t = np.stack([2 / t, 1 / t**1.5 + 0.01])
    exact, estimates, errors = L_t.sum(1).mean() + 0.25, [], []
    for seed in range(400):
        strata = choose_steps(100, 14, Generator(seed).at(EVALUATION))
        steps = np.concatenate([s.evaluated for s in strata])
        result = BitsPerDim(np.full(2, 0.25), L_t[:, steps - 1], strata)
        estimates.append(result.total().bits)
        errors.append(result.errors()[1])
    spread = np.std(estimates)
    assert spread > 0.01 and abs(np.mean(estimates) - exact) < 4 * spread / math.sqrt(400)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.1)


def test_batches_do_not_change_what_is_measured_and_have_noise_of_their_own(run, monkeypatch, pictures):
    pipeline = td.load(run)
    images = pictures(1, 3).repeat(5, 0)
    whole = measure_bits(pipeline.unet, pipeline.diffusion, images, None, None)
    monkeypatch.setattr("tinydiff.evaluation.bits._PIXELS_AT_ONCE", 2 * 8 * 8)
    parts = measure_bits(pipeline.unet, pipeline.diffusion, images, None, None)
    np.testing.assert_allclose(parts.L_T, whole.L_T, rtol=1e-12)
    assert parts.terms.shape == whole.terms.shape
    assert np.abs(parts.totals - whole.totals).max() < 0.2 * whole.totals.mean()
    assert len(set(parts.totals)) == 5
