"""The study of meta-parameters: its images, its grids, and what it says of cells."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advjax.data import Dataset
from advjax.experiment import load_experiment
from advjax.sweeps import Here, sweep
from advjax.sweeps.store import Cell

PATH = Path(__file__).parents[2] / "experiments" / "meta_parameters.py"


def garments(name, split, data_dir=None):
    """Two kinds of noise, a dark and a bright one, and a third class that is not wanted."""
    rng = np.random.default_rng(len(split))
    y = rng.permutation(np.repeat([0, 6, 3], 60))
    x = rng.integers(0, 100, (180, 28, 28), dtype=np.uint8)
    x[y == 6] += 150
    names = ("T-shirt/top", "1", "2", "3", "4", "5", "Shirt")
    return Dataset(x, y, names, name=name, split=split)


@pytest.fixture
def study(monkeypatch):
    experiment = load_experiment(PATH)
    module = sys.modules["advjax_experiment_meta_parameters"]
    monkeypatch.setattr(module, "load", garments)
    module.images.cache_clear()
    yield experiment, module
    module.images.cache_clear()


def test_the_images_are_two_classes_with_the_majority_48_wide(study):
    experiment, module = study
    config = experiment.config(images=80, examples=40)
    training = experiment.build(config)
    for data, n in ((training.train, 80), (training.test, 40)):
        assert data.x.shape == (n, 48, 48, 1) and data.x.dtype == np.uint8
        assert data.classes == ("T-shirt/top", "Shirt")
        assert (data.y == 0).sum() == round(0.543 * n)
        assert data.x[data.y == 0].mean() < 60 < 190 < data.x[data.y == 1].mean()
    other = experiment.build(experiment.config(images=80, examples=40, seed=1))
    assert not np.array_equal(other.train.ids, training.train.ids)
    with pytest.raises(ValueError, match="images=200; fashion_mnist has 110"):
        experiment.build(experiment.config(images=200))
    with pytest.raises(ValueError, match="classes="):
        experiment.build(experiment.config(classes=("Shirt", "Dress")))


def test_a_folder_of_faces_drops_in(tmp_path, monkeypatch):
    experiment = load_experiment(PATH)
    rng = np.random.default_rng(0)
    for name in ("female", "male"):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    training = experiment.build(
        experiment.config(data=str(tmp_path), images=12, examples=4, batch_size=4)
    )
    assert training.train.x.shape == (12, 48, 48, 1) and training.test.x.shape == (4, 48, 48, 1)
    assert training.train.classes == ("female", "male")


def test_the_grids_are_the_studys(study):
    experiment, _ = study
    full = experiment.grid(experiment.config(table="full"))
    assert len(full) == 2 * 3 * (15 * 14 + 12 * 12)
    reduced = experiment.grid(experiment.config())
    axes = reduced.axes
    assert set(axes["network"]) == {"convnet48", "densenet48"} and set(axes["filters"]) == {4, 16}
    assert {1, 2, 4, 7} <= set(axes["convs"]) and set(axes["dropout"]) == {0, 0.15, 0.3, 0.5}
    assert set(axes["batch_norm"]) == {True, False} and {"glorot", "he"} <= set(axes["initialiser"])
    without = {tuple((n, v) for n, v in s.items() if n != "seed") for s in reduced}
    for setting in without:
        seeds = [s["seed"] for s in reduced if (setting[0][1], dict(setting)) ==
                 (s["network"], {n: v for n, v in s.items() if n != "seed"})]  # fmt: skip
        assert len(seeds) >= 2, setting
    with pytest.raises(ValueError, match="table=small"):
        experiment.grid(experiment.config(table="small"))


@pytest.mark.slow
def test_cells_run_and_share_programs(study, tmp_path, monkeypatch):
    experiment, _ = study
    monkeypatch.setattr("advjax.sweeps.cell.loaded", lambda path: experiment)
    base = experiment.config(images=64, examples=16, epochs=1, blocks=2)
    grid = experiment.grid(base).where(
        lambda s: s["filters"] == 4 and s["convs"] == 1 and s["batch_size"] == 64
        and s["network"] == "convnet48" and not s["batch_norm"] and s["initialiser"] == "glorot"
    )  # fmt: skip
    cells = sweep(PATH, tmp_path / "s", grid=grid, base=base, executor=Here())
    assert len(cells) == 4 and {c.status for c in cells} == {"done"}, [c.reason for c in cells]
    for cell in cells:
        assert 0 <= cell.metrics["last/worst"] <= cell.metrics["last/clean"] <= 1


def cells_of(module, accuracy, turned=lambda clean: 0.1 * clean, table="reduced"):
    """Cells of a table whose accuracies are made up by ``accuracy(config)``.

    ``turned(clean)`` is the share of right images that the attack turns.
    """
    base = module.Config(table=table)
    made = []
    for i, config in enumerate(module.grid(base).configs(base)):
        clean = accuracy(config) + 0.001 * (config.seed - 0.5)
        metrics = {"last/clean": clean, "last/worst": clean * (1 - turned(clean))}
        made.append(Cell(str(i), i, vars(config), "done", metrics=metrics))
    return made


def as_published(c):
    """Every claim is true."""
    dead = 0.543
    if c.network == "convnet48":
        if c.convs == 20:
            return 0.9 if c.batch_size == 256 else 0.6
        return 0.85 + 0.01 * c.batch_norm if c.batch_norm or c.convs == 1 else dead
    if c.dropout == 0.5 and c.filters == 4:
        return 0.8 if c.batch_size == 256 else 0.6
    return 0.8 + 0.01 * c.convs - (c.dropout - 0.2) ** 2


def told(module, *made_up):
    """Claim to verdict."""
    lines = module.findings(cells_of(module, *made_up)).partition("\nBetween")[0].splitlines()
    return dict(line.rsplit(": ", 1) for line in lines if not line.startswith(" "))


def test_claims_are_told_true_only_where_they_are(study, monkeypatch):
    _, module = study
    size = {network: 12.0 for network in module.KO} | {network: 6.0 for network in module.RAN}
    monkeypatch.setattr(module, "_gigabytes", lambda *network: size[network])
    true = told(module, as_published)
    assert list(true) == [claim for claim, _ in module.CLAIMS]
    assert set(true.values()) == {"reproduced"}, true
    size[module.KO[0]] = 5.0
    flat = told(module, lambda config: 0.7, lambda clean: 0.5 - 0.1 * clean)
    memory = flat.pop("KO for big networks and batches")
    assert memory == "in part" and set(flat.values()) == {"NOT reproduced"}, flat
    dead = told(module, lambda config: 0.543)
    assert dead["More accurate networks are more vulnerable"].startswith("untested")
    few = module.findings(cells_of(module, as_published)[:1])
    assert few.count("untested") == len(module.CLAIMS) - 1


def test_the_full_table_is_told_block_by_block_and_by_its_dropout_at_the_larger_batch(
    study, monkeypatch
):
    _, module = study
    monkeypatch.setattr(module, "_gigabytes", lambda *network: 0.0)  # traces the largest networks
    made_up = lambda c: as_published(c) if c.blocks == 4 else 0.3
    text = module.findings(cells_of(module, made_up, table="full"))
    found = text.partition("\nBetween")[0].splitlines()
    for claim in ("Deeper is better", "Dropout is a trade-off, best between .05 and .3"):
        assert f"{claim}: reproduced" in found, text
    rates = found[found.index("Dropout is a trade-off, best between .05 and .3: reproduced") + 1]
    assert [part.split()[0] for part in rates.split(": ")[1].split(", ")] == [
        "0", "0.05", "0.15", "0.3", "0.5"
    ]  # fmt: skip
    assert "blocks 3 -> 4: +" in text


def test_effects_are_those_between_cells_that_differ_in_nothing_else(study):
    _, module = study
    cells = cells_of(module, lambda c: 0.6 + 0.1 * c.batch_norm - 0.2 * c.dropout, lambda c: 0.5)
    found = dict(line.split(": ") for line in module.effects(cells))
    assert found["batch_norm False -> True"].startswith("+10.0 +- 0.0, +5.0 +- 0.0 (")
    assert found["dropout 0.15 -> 0.3"].startswith("-3.0 +- 0.0, -1.5 +- 0.0 (")
    assert found["filters 4 -> 16"].startswith("+0.0 +- 0.0, +0.0 +- 0.0 (")
    assert any(name.startswith("network") for name in found)


@pytest.mark.slow
def test_what_was_out_of_memory_is_predicted_to_need_more(study):
    _, module = study
    wide, narrow = module.KO[3], module.RAN[3]
    assert wide[:5] == narrow[:5] and (wide[5], narrow[5]) == (16, 4)
    assert module._gigabytes(*wide) > 11 > 2 * module._gigabytes(*narrow)
