from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax.data import batch_indices, batches, epoch_order, steps_per_epoch

order = partial(jax.jit, static_argnums=1)(epoch_order)
indices = partial(jax.jit, static_argnums=(2, 3))(batch_indices)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_evaluation_batches_cover_everything_once_and_mask_the_padding(n, size):
    got = list(batches(n, size))
    assert all(ids.shape == mask.shape == (size,) for ids, mask in got)
    assert np.concatenate([ids[mask] for ids, mask in got]).tolist() == list(range(n))
    assert all(((ids >= 0) & (ids < n)).all() for ids, _ in got)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 100, 1297])
def test_an_epoch_is_a_permutation(key, n):
    assert sorted(order(key, n).tolist()) == list(range(n))


def test_orders_of_other_keys_differ_and_all_permutations_come_equally_often(key):
    keys = jax.random.split(key, 6000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: epoch_order(k, 4)))(keys))
    counts = np.unique(drawn @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    chi2 = ((counts - 250) ** 2 / 250).sum()
    assert chi2 < 50  # 23 degrees of freedom: passed by chance 99.9 % of the time


def test_neighbours_in_the_set_are_no_neighbours_in_the_order(key):
    drawn = np.asarray(order(key, 1297)).astype(float)
    for lag in (1, 2, 100):
        assert abs(np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]) < 0.1
    assert abs(np.corrcoef(drawn, np.arange(1297))[0, 1]) < 0.1


def test_a_training_batch_is_a_slice_of_its_epochs_order(key):
    n, size = 23, 5
    assert steps_per_epoch(n, size) == 4
    for epoch in range(2):
        whole = order(jax.random.fold_in(key, epoch), n)
        for b in range(4):
            got = indices(key, jnp.int32(4 * epoch + b), n, size)
            assert got.tolist() == whole[size * b : size * (b + 1)].tolist()


def test_all_steps_share_one_trace(key):
    traces = []

    @jax.jit
    def batch(step):
        traces.append(1)
        return batch_indices(key, step, 50, 8)

    first = [batch(jnp.int32(step)).tolist() for step in range(8)]
    assert len(traces) == 1 and first[0] != first[6]


def test_impossible_batches_are_refused(key):
    with pytest.raises(ValueError, match="batch of 6 is more than the 5"):
        batch_indices(key, 0, 5, 6)
    with pytest.raises(ValueError, match="at least 1"):
        next(batches(5, 0))
