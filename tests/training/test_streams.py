"""What a batch has beside images and labels: unlabelled images, neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import flat_linear, random_data, run_steps, step_training

from advjax.data import Augment, to_float
from advjax.pytrees import pytree
from advjax.training import fit
from advjax.training.apply import Bound
from advjax.types import Aux

PARAMS = {"w": jnp.zeros((16, 4)), "b": jnp.zeros(4)}
INDEX = np.random.default_rng(3).integers(-1, 110, (40, 3)).astype(np.int32)
WEIGHTS = np.random.default_rng(4).uniform(0, 1, (40, 3)).astype(np.float32)


@pytree
class Recorder:
    """Writes the whole batch into the statistics, by place, and pulls on every stream."""

    def __call__(self, key, apply, params, stats, batch):
        whole = lambda v: jax.lax.all_gather(v, "batch").reshape(-1, *v.shape[1:])
        seen = {name: whole(value) for name, value in batch.items()}
        pull = jnp.mean(flat_linear(params, stats, batch["unlabelled"])[0])
        near = batch["neighbours"] * batch["weights"][..., None, None, None]
        pull += jnp.mean(near) * jnp.sum(params["b"])
        return pull, Aux(stats=seen, metrics={})


def recording(**changes):
    n, k = changes.get("batch_size", 16), changes.get("unlabelled_ratio", 1)
    image = (4, 4, 1)
    stats = {
        "x": jnp.zeros((n, *image)), "y": jnp.zeros(n, jnp.int32),
        "unlabelled": jnp.zeros((n * k, *image)),
        "neighbours": jnp.zeros((n, 3, *image)), "weights": jnp.zeros((n, 3)),
    }  # fmt: skip
    fields = dict(
        module=None, apply=flat_linear, params=PARAMS, stats=stats, objective=Recorder(),
        unlabelled=random_data(70, seed=7), neighbours=(INDEX, WEIGHTS), optimizer=optax.sgd(0.1),
    )  # fmt: skip
    return step_training(random_data(), **{**fields, **changes})


def seen(devices, n=1, **changes):
    state, _ = run_steps(recording(**changes), jax.local_devices()[:devices], n)
    return jax.tree.map(np.asarray, state.stats)


def places_in(pool, images):
    """Which image of the pool each is."""
    pool = np.asarray(to_float(pool.x)).reshape(len(pool), -1)
    distance = np.abs(images.reshape(len(images), 1, -1) - pool).max(-1)
    assert (distance.min(1) < 1e-6).all()
    return distance.argmin(1)


def test_a_batch_has_its_images_neighbours_and_ks_unlabelled_ones_in_an_order_of_their_own():
    pool = random_data(70, seed=7)
    batches = [seen(1, n, unlabelled_ratio=2) for n in (1, 2, 3)]
    drawn = np.stack([places_in(pool, b["unlabelled"]) for b in batches])
    assert drawn.shape == (3, 32)
    assert len(set(drawn[:2].ravel())) == 64  # two batches are an epoch of 70: none twice
    assert set(drawn[2]) != set(drawn[0])  # and the next one has another order
    train = random_data()
    for batch in batches:
        index = places_in(train, batch["x"])
        assert (batch["y"] == train.y[index]).all()
        expected = np.where(INDEX[index] < 0, 0, WEIGHTS[index])
        np.testing.assert_array_equal(batch["weights"], expected)
        near = np.asarray(to_float(np.concatenate([train.x, pool.x])))[INDEX[index]]
        here = INDEX[index] >= 0
        np.testing.assert_allclose(batch["neighbours"][here], near[here], atol=1e-7)
        assert np.isfinite(batch["neighbours"]).all()


def test_batches_are_the_same_on_any_number_of_devices():
    """Also when augmented, which the neighbours are not."""
    augment = Augment(crop=1, flip=True)
    one, eight = (seen(d, 2, augment=augment, unlabelled_ratio=2) for d in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)
    plain = seen(1, 2, unlabelled_ratio=2)
    np.testing.assert_allclose(one["neighbours"], plain["neighbours"], atol=1e-6)
    assert (one["unlabelled"] != plain["unlabelled"]).any()


def test_a_killed_run_goes_on_with_the_same_streams_to_the_bit(tmp_path):
    class Kill(Exception):
        pass

    def kill(event):
        if event.kind == "step" and event.step == 4:
            raise Kill

    training = recording(steps=5, test=random_data(seed=1), evaluate_every=2)
    devices = jax.local_devices()[:1]
    whole = fit(training, devices=devices)
    with pytest.raises(Kill):
        fit(training, tmp_path / "run", devices=devices, progress=kill)
    resumed = fit(training, tmp_path / "run", devices=devices)
    leaves = lambda r: [np.asarray(v).tobytes() for v in jax.tree.leaves(r.last.model)]
    assert isinstance(whole.last.model, Bound) and leaves(resumed) == leaves(whole)


def test_runs_with_other_streams_are_told_apart():
    said = [
        recording(**changes).describe()
        for changes in (
            {}, {"unlabelled": random_data(70, seed=8)}, {"unlabelled_ratio": 2},
            {"neighbours": (INDEX, WEIGHTS / 2)}, {"neighbours": None},
            {"unlabelled": None, "neighbours": None},
        )
    ]  # fmt: skip
    differ = [[n for n in said[0] if said[0][n] != other[n]] for other in said[1:]]
    assert differ == [
        ["unlabelled"], ["unlabelled_ratio"], ["neighbours"],
        ["neighbours"], ["unlabelled", "unlabelled_ratio", "neighbours"],
    ]  # fmt: skip


def test_neighbours_follow_their_images_into_a_split():
    training = recording(validation=0.25)
    assert (len(training.train), len(training.validation)) == (30, 10)
    index, weights = training.neighbours
    kept, whole = training.train.ids, random_data()
    for row, i in enumerate(kept):
        np.testing.assert_array_equal(training.train.x[row], whole.x[i])
        expected = [j if j in kept or j >= 40 else -1 for j in INDEX[i]]
        back = [*kept, *range(40, 110), -1]  # what the numbers of the split were, -1 last
        assert [back[j] for j in index[row]] == expected
        np.testing.assert_array_equal(weights[row], WEIGHTS[i])
    assert not set(training.validation.ids) & set(kept)
    again = dataclasses.replace(training, batch_size=8)  # is not split once more
    assert len(again.train) == 30 and again.validation is training.validation


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(unlabelled=random_data(70, (5, 4, 1))), r"unlabelled images are \(5, 4, 1\), train"),
        (dict(unlabelled_ratio=5), "a batch takes 80 unlabelled images; there are 70"),
        (dict(unlabelled_ratio=0), "unlabelled_ratio=0; expected a whole number of at least 1"),
        (
            dict(neighbours=(INDEX[:9], WEIGHTS[:9])),
            r"given an index of int32\[9, 3\]; .*\[40, n\]",
        ),
        (
            dict(neighbours=(WEIGHTS, WEIGHTS)),
            r"given an index of float32\[40, 3\]; expected whole",
        ),
        (
            dict(neighbours=(INDEX + 5, WEIGHTS)),
            "the index runs from 4 to 112; expected -1 for .* 0 to 109, for",
        ),
        (dict(neighbours=(INDEX, WEIGHTS[:, :2])), r"given weights \[40, 2\]; .*shape \[40, 3\]"),
        (dict(neighbours=(INDEX, -WEIGHTS)), "finite numbers >= 0"),
    ],
)
def test_streams_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recording(**changes)
