"""Checkpoints: whole or refused by name, never cast, the one before a bad one is used."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from small_runs import digits_training, one_device

from advjax.runs.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    arrays_of,
    fill,
    read,
    steps_in,
)
from advjax.runs.folder import read_rows
from advjax.training import CheckpointError, RunError, fit, load_classifier, read_config


@pytest.fixture(scope="module")
def state():
    return {
        "params": {"w": jnp.arange(6.0).reshape(2, 3), "half": jnp.ones(3, jnp.bfloat16)},
        "count": jnp.int32(7),
        "empty": jnp.zeros((0, 4)),
        "key": jax.random.key(3),
    }


def test_a_state_comes_back_bit_for_bit(state, tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(5, state, {"step": 5})
    arrays, record = read(tmp_path / "c", 5)
    back = fill("it", state, arrays)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    before, after = arrays_of(state), arrays_of(back)
    assert all(before[n].dtype == after[n].dtype for n in before)
    assert all(before[n].tobytes() == after[n].tobytes() for n in before)
    assert record["position"] == {"step": 5}


def test_the_latest_two_and_the_best_are_kept(state, tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in range(1, 6):
            checkpoints.best = 2 if step >= 2 else None
            checkpoints.save(step, state, {})
    assert steps_in(tmp_path / "c") == [2, 4, 5]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: {**s, "count": jnp.float32(7)},
            r"count is given as int32\[\], expected float32\[\]",
        ),
        (
            lambda s: {**s, "params": {"w": jnp.zeros((3, 3)), "half": s["params"]["half"]}},
            r"params/w is given as float32\[2, 3\], expected float32\[3, 3\]$",
        ),
        (
            lambda s: {**s, "params": {"v": s["params"]["w"]}},
            r"given as bfloat16\[3\], expected nothing \(3 arrays differ\)",
        ),
    ],
    ids=["dtype", "shape", "names"],
)
def test_another_architecture_is_refused_in_one_line(state, change, message):
    with pytest.raises(CheckpointError, match="it is of another network.*" + message) as error:
        fill("it", change(state), arrays_of(state))
    assert "\n" not in str(error.value)


def damage(folder, step, how):
    files = [p for p in (folder / str(step)).rglob("*") if p.is_file()]
    if how == "position cut":
        path = folder / str(step) / "position" / "metadata"
    else:
        path = max((p for p in files if "state" in p.parts), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "bit flipped":
        content[len(content) // 2] ^= 1
    else:
        content = content[: len(content) // 2]
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["state cut", "bit flipped", "position cut"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_refused_by_name(state, tmp_path, how):
    folder = tmp_path / "c"
    random = {**state, "params": {"w": jax.random.normal(jax.random.key(0), (64, 64))}}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(5, random, {})
    damage(folder, 5, how)
    with pytest.raises(DamagedCheckpointError) as error:
        read(folder, 5)
    assert str(folder / "5") in str(error.value) and "damaged" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(finished, tmp_path):
    result, _ = finished
    folder = shutil.copytree(result.run_dir, tmp_path / "run")
    damage(folder / "checkpoints", 30, "state cut")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # and a line that was cut off
    earlier = load_classifier(folder, "last")  # passes over the damaged one
    events = []
    again = fit(
        digits_training(), folder, config={"steps": 30}, devices=one_device(),
        progress=events.append,
    )  # fmt: skip
    notes = [e.text for e in events if e.kind == "note"]
    assert f"{folder / 'checkpoints' / '30'} is damaged" in notes[0]
    assert notes[1] == "resumed after step 20"
    before, after = arrays_of(result.last.model), arrays_of(again.last.model)
    assert all(before[n].tobytes() == after[n].tobytes() for n in before)
    assert [(r["kind"], r["step"]) for r in read_rows(folder)] == [
        (r["kind"], r["step"]) for r in result.history
    ]
    assert (folder / "refused" / "30").is_dir()
    assert earlier.module == again.last.model.module


def test_missing_things_are_named(finished, tmp_path):
    result, _ = finished
    with pytest.raises(CheckpointError, match="no checkpoint .*/7; there are: "):
        load_classifier(result.run_dir, 7)
    with pytest.raises(ValueError, match="which='newest'; expected 'best', 'last' or a step"):
        load_classifier(result.run_dir, "newest")
    with pytest.raises(RunError, match="is no run folder: it has no config.json"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"format": 1, "tra', "config.json is damaged"),
        ("[]", "is not of a run"),
        ('{"format": 1, "training": {"network": {}}}', "'input_shape' or 'classes' is missing"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=message):
        read_config(tmp_path)
