"""Images on the lattice: through a real PNG and back they are the same, and so is the answer."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import linear
from PIL import Image

from advjax import L0, L2, PGD, Linf, Restarts, Targeted, WorstOf
from advjax.attacks.jsma import JSMA
from advjax.attacks.lattice import Lattice

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, size=(24, 8, 8, 3)).astype(np.uint8)
X = jnp.asarray(BYTES.astype(np.float32) / 255)
WEIGHTS = jnp.asarray(RNG.normal(size=(192, 4)), jnp.float32)


MODEL = jax.tree_util.Partial(linear, WEIGHTS)
Y = jnp.argmax(MODEL(X), axis=1).astype(jnp.int32)


def through_png(images):
    out = []
    for image in np.asarray(images):
        memory = io.BytesIO()
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(memory, "PNG")
        out.append(np.asarray(Image.open(memory)).astype(np.float32) / 255)
    return np.stack(out)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(ball=Linf(8 / 255), steps=5),
        PGD(ball=L2(0.4), steps=5),
        JSMA(ball=L0(12), theta=0.3),
    ],
    ids=lambda attack: f"{type(attack.ball).__name__}{attack.ball.eps:.2g}",
)
def test_a_png_changes_nothing(attack, key):
    record = Lattice(attack).run(key, MODEL, X, Y)
    back = through_png(record.x_adv)
    np.testing.assert_array_equal(back, record.x_adv)
    np.testing.assert_array_equal(jnp.argmax(MODEL(back), axis=1) != Y, record.success)
    np.testing.assert_allclose(record.distance, attack.ball.size(back - X), atol=1e-6)
    assert (record.distance <= attack.ball.eps + 1e-5).all()
    free = attack.run(key, MODEL, X, Y)
    assert int(record.success.sum()) >= 0.9 * int(free.success.sum())
    assert record.success.any()
    assert (record.forwards > free.forwards).all()


def test_less_than_a_level_changes_nothing(key):
    record = Lattice(PGD(ball=Linf(0.4 / 255), steps=5)).run(key, MODEL, X, Y)
    np.testing.assert_array_equal(record.x_adv, X)
    assert not record.success.any() and (record.distance == 0).all()


def test_rounding_along_the_gradient_saves_what_rounding_loses(key):
    """Small changes and few levels: the nearest level is the clean one."""
    attack = PGD(ball=Linf(0.5), step_size=0.02, steps=3, random_start=False)
    levels = 9
    x = jnp.round(X * 8) / 8
    y = jnp.argmax(MODEL(x), axis=1)
    plain = Lattice(attack, levels=levels, repair=False).run(key, MODEL, x, y)
    mended = Lattice(attack, levels=levels).run(key, MODEL, x, y)
    np.testing.assert_array_equal(plain.x_adv, x)
    assert mended.success.mean() > 0.9
    for record in (plain, mended):
        place = np.asarray(record.x_adv) * 8
        np.testing.assert_allclose(place, np.round(place), atol=1e-5)
        assert (record.distance <= 0.5 + 1e-5).all()
        np.testing.assert_array_equal(record.success, jnp.argmax(MODEL(record.x_adv), 1) != y)
    assert (mended.loss >= plain.loss - 1e-4).all()


def test_success_that_rounding_loses_is_not_claimed(key):
    record = Lattice(PGD(ball=Linf(0.03), steps=5), levels=3).run(key, MODEL, jnp.round(X), Y)
    np.testing.assert_array_equal(record.x_adv, jnp.round(X))
    wrong = jnp.argmax(MODEL(jnp.round(X)), axis=1) != Y
    np.testing.assert_array_equal(record.success, wrong)
    assert (record.first_success[~wrong] == -1).all()


def test_a_clean_image_off_the_lattice_keeps_the_ball(key):
    x = X * 0.9 + 0.033
    record = Lattice(PGD(ball=Linf(4 / 255), steps=5)).run(key, MODEL, x, Y)
    np.testing.assert_array_equal(through_png(record.x_adv), record.x_adv)
    assert (record.distance <= 4 / 255 + 1e-5).all() and (record.distance > 0).all()
    # Two changed features cannot also put the other 190 on the lattice.
    record = Lattice(JSMA(ball=L0(2))).run(key, MODEL, x, Y)
    np.testing.assert_array_equal(record.x_adv, x)


def test_clean_values_an_ulp_off_do_not_count_as_changed(key):
    x = jnp.nextafter(X, jnp.float32(0.5))
    record = Lattice(JSMA(ball=L0(12), theta=0.3)).run(key, MODEL, x, Y)
    assert (record.distance <= 12).all() and record.success.any()


def test_mask_holds_and_wrappers_go_around(key):
    mask = np.zeros((8, 8, 1), np.float32)
    mask[:4] = 1
    attack = Restarts(Lattice(PGD(ball=Linf(0.1, mask=mask), steps=3)), n=2)
    x_adv = attack(key, MODEL, X, Y)
    np.testing.assert_array_equal(x_adv[:, 4:], X[:, 4:])
    np.testing.assert_array_equal(through_png(x_adv), x_adv)
    aimed = Targeted(Lattice(PGD(ball=Linf(0.2), steps=10))).run(key, MODEL, X, (Y + 1) % 4)
    assert aimed.success.all()
    np.testing.assert_array_equal(jnp.argmax(MODEL(aimed.x_adv), axis=1), (Y + 1) % 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lattice(WorstOf((PGD(ball=Linf(0.1)),))), "expected an attack with a ball"),
        (lambda: Lattice(PGD(ball=Linf(0.1)), levels=1), "given levels=1; expected an integer >="),
        (lambda: Lattice(PGD(ball=Linf(0.1, lower=(0.0, 0.1)))), "one value for all channels"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
