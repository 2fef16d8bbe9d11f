"""The page of the scaling benchmark, and what training takes from its figures."""

import json

import pytest

from tests.benchmarks import scale_page
from tests.benchmarks.scale import RESULT
from tinydiff.runs.config import RunConfig


def figures(gains):
    """Figures with these gains of two processes over two threads, by batch, and a network like that of the page."""
    steps = []
    for batch, gain in gains.items():
        for layout, seconds in (("1x1", 2.0), ("1x2", 1.0 + gain), ("2x1", 1.0)):
            row = {"network": "W1", "layout": layout, "batch": batch, "seconds": seconds * batch, "fastest": seconds}
            steps.append(row | {"steps": 5, "wait": 0.01, "sum": 0.02})
    found = {
        "machine": {"processor": "a processor", "processors": 2},
        "networks": {"W1": {"flops": 4e8, "gradient_bytes": 8e6}},
        "steps": steps,
        "sums": [{"bytes": n, "seconds": 1e-4 + n / 2e9} for n in (1000, 10**6, 10**8)],
        "overlap": [{"bytes": 8, "compute": 0.05, "exchange": 0.02, "both": 0.07, "asked": 0.06}],
    }
    found["fitted"] = scale_page.fit(found["sums"])
    found["predicted"] = scale_page.predictions(found)
    return found


def test_the_model_is_found_again_in_its_own_figures():
    fitted = figures({2: 0.1})["fitted"]
    assert fitted["latency"] == pytest.approx(1e-4) and fitted["bandwidth"] == pytest.approx(2e9)
    assert fitted["worst_error"] < 1e-6


@pytest.mark.parametrize(
    ("gains", "largest"),
    [({2: 0.1, 4: 0.06, 8: 0.0}, 4), ({2: 0.0, 4: 0.5}, 0), ({2: 0.2, 4: 0.2}, 4), ({16: 0.01}, 0)],
)
def test_doctor_learns_the_largest_batch_that_gains(gains, largest):
    assert scale_page.largest_gaining_batch(figures(gains)) == largest


def test_the_page_has_the_figures():
    text = scale_page.page(figures({2: 0.1, 4: -0.02}))
    for part in (
        "up to 2 images", "| 100% |", "100 microseconds and 2.00 GB/s", "At best 50% is hidden", "**Predicted, not measured**",
        "1,024",
    ):  # fmt: skip
        assert part in text, part


def test_efficiency_falls_with_the_number_of_gpus_and_rises_with_overlap():
    rows = figures({2: 0.1})["predicted"]
    eight, many = ([r for r in rows if r["gpus"] == n] for n in (8, 1024))
    for few, more in zip(eight, many, strict=True):
        assert few["efficiency"] > more["efficiency"] and few["efficiency_with_overlap"] >= few["efficiency"]
    ((_, _, images), *_) = scale_page.half_speed(figures({2: 0.1}))
    one = eight[0]
    assert one["compute"] * images >= one["sum"] > one["compute"] * (images - 1)


@pytest.mark.skipif(not RESULT.exists(), reason="tests.benchmarks.scale has not been run")
def test_training_starts_processes_for_batches_that_gained():
    assert scale_page.largest_gaining_batch(json.loads(RESULT.read_text())) >= 2 * RunConfig.batch_size
