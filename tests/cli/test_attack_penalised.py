"""``advjax attack --method penalised`` on a trained run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advjax.cli import main

Capture = pytest.CaptureFixture[str]
SHORT = ["--method", "penalised", "--steps", "150", "--step-size", "0.005"]


def attack(*args: object) -> int:
    return main(["attack", *map(str, args)])


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path), np.float32)


def test_writes_three_images_and_tells_distances_labels_and_confidences(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    assert attack(*images, "--run", run, *SHORT, "--out", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)["images"]
    for path, one in zip(images, found, strict=True):
        original, modified, amplified = map(read, one["files"].values())
        np.testing.assert_array_equal(original, read(str(path)))
        assert one["success"] and one["after_png"]["class"] != one["before"]["class"]
        assert 0 < one["after"]["probability"] <= 1
        change = np.abs(modified - original)
        # The size of the change, 50 times: black where nothing changed, whatever the sign.
        assert (amplified[change > 6] == 255).all() and amplified.min() == 0
        sizes = one["distances"]
        assert one["distance"] == pytest.approx(sizes["linf"], abs=1e-6)
        assert 0 < sizes["linf"] <= sizes["l2"] <= sizes["l1"] <= sizes["l0"] * sizes["linf"] + 1e-6
        assert sizes["linf"] == pytest.approx(change.max() / 255, abs=0.002)


def test_the_change_may_be_shown_with_its_sign_and_the_table_tells_every_norm(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    args = (images[0], "--run", run, *SHORT, "--signed", "--penalty", "l1", "--out", tmp_path)
    assert attack(*args) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("before", "linf", "l2", "l1", "1 of 1 changed class"))
    original, modified, amplified = (
        read(str(tmp_path / f"{images[0].stem}_{kind}.png"))
        for kind in ("original", "modified", "amplified")
    )
    change = modified - original
    assert (amplified[change > 2] == 255).all() and (amplified[change < -2] == 0).all()
    assert (np.abs(amplified[change == 0] - 128) <= 28).all()  # grey: less than half a level


def test_options_of_other_methods_are_refused_in_one_line(
    run: Path, images: list[Path], capsys: Capture
) -> None:
    for args, said in (
        ((*SHORT, "--restarts", "3"), "no random start"),
        ((*SHORT, "--weight", "-1"), "weight"),
        ((*SHORT, "--penalty", "l7"), "l7"),
        (("--eps", "0.1", "--penalty", "l1"), "--penalty is for penalised, not for pgd"),
        (("--eps", "0.1", "--signed"), "--signed is for penalised"),
        (("--attack", "fgsm"), "no radius given"),
    ):
        assert attack(images[0], "--run", run, *args) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") <= 2, error
