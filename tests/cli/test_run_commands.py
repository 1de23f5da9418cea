"""``evaluate``, ``predict``, ``attack`` and ``report`` on a trained run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from advjax import Restarts
from advjax.cli import main
from advjax.experiment import load_experiment
from advjax.spec import from_json

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *args: object) -> dict[str, Any]:
    """What a command prints with ``--json``: exactly one object."""
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys: Capture, *args: object) -> str:
    assert main(list(map(str, args))) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert out == "" and line.startswith("advjax: error: ") and "Traceback" not in err
    return line


# --- evaluate ---------------------------------------------------------------------------------


def test_evaluate_tells_every_attack_at_every_eps(run: Path, capsys: Capture) -> None:
    args = [
        "--attack",
        "fgsm",
        "pgd",
        "--eps",
        "0",
        "0.1",
        "51/255",
        "--steps",
        "3",
        "--restarts",
        "2",
        "--examples",
        "40",
    ]
    (found,) = told(capsys, "evaluate", run, *args)["evaluations"]
    assert found["clean"]["total"] == 40
    names = [f"{m}-linf eps {e}" for m in ("fgsm", "pgd") for e in ("0", "0.1", "0.2")]
    assert list(found["robust"]) == names
    clean = found["clean"]["correct"]
    assert found["robust"]["pgd-linf eps 0"]["correct"] == clean
    weak, strong = (found["robust"][f"pgd-linf eps {e}"]["correct"] for e in ("0.1", "0.2"))
    assert clean >= weak >= strong
    assert json.loads(Path(found["results"]).read_text())["clean"] == found["clean"]


def test_evaluate_prints_a_table_and_clean_accuracy_alone(run: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run), "--examples", "20", "--checkpoint", "last"]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out and "20 images of digits test" in out
    assert main(["evaluate", str(run), "--examples", "20", "--eps", "1", "--norm", "l2",
                 "--attack", "bim", "--targeted", "--steps", "2"]) == 0  # fmt: skip
    assert "bim-l2 eps 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--eps", "-0.1"], "-0.1"),
        (["--eps", "nan"], "nan"),
        (["--eps", "0.1", "--steps", "-1"], "steps=-1"),
        (["--eps", "0.1", "--restarts", "0"], "0"),
        (["--eps", "0.1", "--attack", "pdg"], "pdg"),
        (["--examples", "0"], "n=0"),
        (["--data", "nowhere.npz"], "no file nowhere.npz"),
        (["--data", "mnistt"], "near"),
        (["--split", "validation"], "no split"),
    ],
)
def test_evaluate_refuses_bad_input_in_one_line(
    run: Path, capsys: Capture, args: list[str], said: str
) -> None:
    assert said in complaint(capsys, "evaluate", run, *args)


def test_evaluate_takes_the_fields_of_any_attack_and_the_runs_own_radius(
    run: Path, capsys: Capture
) -> None:
    few = ("--examples", "16", "--json")
    (found,) = told(capsys, "evaluate", run, "--attack", "pgd", "--steps", "4", "--restarts", "2",
                    *few[:2])["evaluations"]  # fmt: skip
    assert list(found["robust"]) == ["pgd-linf eps 0.1"]
    saved = json.loads(Path(found["results"]).read_text())["about"]["attacks"]
    attack = from_json(saved["pgd-linf eps 0.1"])
    assert isinstance(attack, Restarts) and attack.n == 2 and attack.attack.steps == 4
    (found,) = told(capsys, "evaluate", run, "--attack", "ddn", "--steps", "20", *few[:2])[
        "evaluations"
    ]
    assert list(found["robust"]) == ["ddn-l2"] and found["robust"]["ddn-l2"]["correct"] == 0
    assert "not attacked in l2" in complaint(
        capsys, "evaluate", run, "--attack", "pgd", "--norm", "l2"
    )
    assert "--steps is for an attack" in complaint(capsys, "evaluate", run, "--steps", "3")
    assert "--restarts is for an attack" in complaint(capsys, "evaluate", run, "--restarts", "3")
    assert "no random start" in complaint(
        capsys, "evaluate", run, "--attack", "fgsm", "apgd", "--eps", "0.1", "--restarts", "3"
    )


# --- predict ----------------------------------------------------------------------------------


def test_predict_in_a_fresh_process_gives_the_bits_of_the_training_process(
    experiment: Path, images: list[Path], tmp_path: Path
) -> None:
    from advjax.data import load, to_float
    from advjax.training import fit

    loaded = load_experiment(experiment)
    assert loaded.build is not None
    result = fit(loaded.build(loaded.config(epochs=1)), tmp_path / "run")
    x = to_float(load("digits", "test").x[:256])  # a batch as the run's own evaluations use it
    logits = np.asarray(jax.jit(lambda model, x: model(x))(result.last.model, x))[: len(images)]

    command = [sys.executable, "-m", "advjax", "predict", *map(str, images)]
    command += ["--run", str(tmp_path / "run"), "--checkpoint", "last", "--json"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):  # a process with settings of its own
        environment.pop(name, None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    told_logits = [image["logits"] for image in json.loads(done.stdout)["images"]]
    assert np.asarray(told_logits, np.float32).tobytes() == logits.tobytes()


def test_predictions_do_not_depend_on_what_else_is_predicted(
    run: Path, images: list[Path], capsys: Capture
) -> None:
    together = told(capsys, "predict", *images, "--run", run)["images"]
    for image, one in zip(images, together, strict=True):
        assert told(capsys, "predict", image, "--run", run)["images"] == [one]
        assert sum(one["probabilities"]) == pytest.approx(1)
        assert one["class"] == int(np.argmax(one["logits"]))


def test_predict_takes_other_sizes_colours_and_formats(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    big = Image.open(images[0]).resize((40, 24)).convert("RGB")
    big.save(tmp_path / "big.jpg")
    assert main(["predict", str(tmp_path / "big.jpg"), "--run", str(run), "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "big.jpg" in out and out.count(" %") == 2


# --- attack -----------------------------------------------------------------------------------


def test_attack_writes_three_images_and_tells_the_predictions(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    found = told(capsys, "attack", *images, "--run", run, "--eps", "0.5", "--steps", "10",
                 "--out", tmp_path)["images"]  # fmt: skip
    for path, one in zip(images, found, strict=True):
        read = lambda kind, stem=path.stem: np.asarray(
            Image.open(tmp_path / f"{stem}_{kind}.png"), np.float32
        )
        original, modified, amplified = map(read, ("original", "modified", "amplified"))
        np.testing.assert_array_equal(original, np.asarray(Image.open(path)))
        assert 0 < np.abs(modified - original).max() <= 128
        assert one["distance"] <= 0.5 + 1e-6
        change = modified - original
        assert (amplified[change > 2] == 255).all() and (amplified[change < -2] == 0).all()
        assert one["success"] and one["after_png"]["class"] != one["before"]["class"]
    again = told(capsys, "predict", tmp_path / f"{images[0].stem}_modified.png", "--run", run)
    assert again["images"][0]["class"] == found[0]["after_png"]["class"]


def test_attack_reaches_a_target_and_says_what_it_resized(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "large.png"
    Image.open(images[0]).resize((30, 20)).save(path)
    args = ["attack", path, "--run", run, "--eps", "1", "--norm", "linf", "--target", "3"]
    assert main([*map(str, args), "--absolute", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "resized from 30x20 to 8x8" in out and "1 of 1 became 3" in out
    shown = np.asarray(Image.open(tmp_path / "large_amplified.png"))
    assert shown.shape == (8, 8)


def test_attack_and_predict_refuse_bad_input_in_one_line(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:40])
    for command in (["predict"], ["attack", "--eps", "0.1"]):
        assert "broken.png" in complaint(capsys, *command, broken, "--run", run)
        assert "no image" in complaint(capsys, *command, tmp_path / "none.png", "--run", run)
        assert "no run given" in complaint(capsys, *command, images[0])
        assert "no run folder" in complaint(capsys, *command, images[0], "--run", tmp_path)
    attack = ("attack", images[0], "--run", run)
    assert "no radius given" in complaint(capsys, *attack)
    assert "-1" in complaint(capsys, *attack, "--eps", "-1")
    assert "no class 'ten'; taken: 0 to 9" in complaint(
        capsys, *attack, "--eps", "0.1", "--target", "ten"
    )
    assert "two images are called digit0" in complaint(
        capsys, "attack", images[0], images[0], "--run", run, "--eps", "0.1"
    )
    assert "--steps is for bim, " in complaint(
        capsys, *attack, "--eps", "0.1", "--attack", "fgsm", "--steps", "3"
    )


def test_an_attack_may_be_named_after_the_images_with_its_own_fields(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    args = ("--run", run, "--eps", "0.5", "--loss", "dlr", "--steps", "5", "--out", tmp_path)
    (found,) = told(capsys, "attack", images[0], "apgd", *args)["images"]
    assert 0 < found["distance"] <= 0.5 + 1e-6
    (least,) = told(capsys, "attack", images[0], "ddn", "--run", run, "--out", tmp_path)["images"]
    assert least["success"] and least["distance"] == pytest.approx(least["distances"]["l2"], 1e-3)
    assert "no attack 'pdg'" in complaint(capsys, "attack", images[0], "pdg", *args)
    assert "patch needs --pixels" in complaint(capsys, "attack", images[0], "patch", "--run", run)
    assert "flow has no norm that --eps" in complaint(
        capsys, "attack", images[0], "flow", "--run", run, "--eps", "0.1"
    )


# --- damaged and foreign runs -------------------------------------------------------------------


def test_a_truncated_checkpoint_is_refused_by_name(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    for path in (broken / "checkpoints").rglob("*"):
        if path.is_file() and "state" in path.parts and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = complaint(capsys, "predict", images[0], "--run", broken)
    assert "checkpoints/" in line and "damaged" in line


def test_a_checkpoint_of_another_architecture_is_refused(
    run: Path, images: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["training"]["network"]["fields"]["hidden"] = [16]
    (other / "config.json").write_text(json.dumps(config))
    line = complaint(capsys, "predict", images[0], "--run", other)
    assert "another network" in line and "float32" in line


# --- report -----------------------------------------------------------------------------------


def test_report_writes_one_page_that_needs_nothing_else(run: Path, capsys: Capture) -> None:
    (run / "report.html").unlink()
    found = told(capsys, "report", run)
    page = Path(found["report"]).read_text()
    assert found["report"] == str(run / "report.html")
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page
