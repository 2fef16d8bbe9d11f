"""The flags of `tinydiff evaluate`."""

import argparse

import pytest

from tinydiff.cli import evaluate, main
from tinydiff.evaluation.evaluate import PARTS, Settings


def test_the_flags_are_the_settings(monkeypatch):
    parser = argparse.ArgumentParser()
    evaluate.add_command(parser.add_subparsers())
    seen = []
    monkeypatch.setattr("tinydiff.evaluation.evaluate.evaluate", lambda path, settings: seen.append((path, settings)))
    for words in (
        "", "--all-terms --raw --no-clip --only bits,samplers --step-counts 5,6",
        "--data D --images 9 --terms 8 --samples 7 --sampler ddpm --steps 6 --each 5 --png-folder P --out O --seed 4 "
        "--device cpu --threads 3 --force", "--training-images --clip",
    ):  # fmt: skip
        arguments = parser.parse_args(["evaluate", "RUN", *words.split()])
        assert arguments.run(arguments) == 0
    assert all(path == "RUN" for path, _ in seen)
    assert [settings for _, settings in seen] == [
        Settings(),
        Settings(terms=None, raw=True, clip=False, only=("bits", "samplers"), step_counts=(5, 6)),
        Settings(
            data="D", images=9, terms=8, samples=7, sampler="ddpm", steps=6, each=5, png_folder="P", out="O", seed=4,
            device="cpu", threads=3, force=True,
        ),
        Settings(training_images=True, clip=True),
    ]  # fmt: skip
    assert Settings().only == PARTS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--only bits,fid", "--only takes bits, frechet, neighbours, samplers, not 'fid'"),
        ("--step-counts 3,0", "--step-counts must be whole numbers of at least 1, such as 10,25,50"),
        ("--terms 2", "--terms must be at least 3, not 2"),
        ("--sampler euler", "--sampler must be one of ddpm, ddim, dpm++, not 'euler'"),
        ("--data X --training-images", "--data names the images to evaluate and --training-images takes the run's own; give one"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_flags(capsys, words, sentence):
    assert main(["evaluate", "/no/run", *words.split()]) == 2
    assert capsys.readouterr().err == f"tinydiff: {sentence}\n"
