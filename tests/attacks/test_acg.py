"""ACG against the published algorithm in NumPy, and conjugate directions against the textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ascents import best_score, log_loss, published, score, sines, trajectory

from advjax import L1, L2, Linf, Target, cross_entropy, margin, replace
from advjax.attacks import acg
from advjax.attacks.acg import ACG, conjugate, hestenes_stiefel
from advjax.losses import dlr


@pytest.fixture(scope="module")
def network():
    return sines()


def beta(grad, before, direction):
    """Hestenes & Stiefel 1952 for one example, at least 0; 0 where it is up to rounding."""
    along, size = np.sum(direction * (before - grad)), lambda v: np.sqrt(np.sum(v * v))
    if abs(along) <= 1e-5 * size(direction) * (size(grad) + size(before)):
        return 0.0
    return max(-np.sum(grad * (before - grad)) / along, 0)


def test_beta_is_that_of_hestenes_and_stiefel():
    rng = np.random.default_rng(0)
    grad, before, direction = rng.normal(size=(3, 40, 3, 2)).astype(np.float32)
    found = np.asarray(hestenes_stiefel(grad, before, direction))
    expected = [beta(*example) for example in zip(grad, before, direction, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert 5 < (found == 0).sum() < 35  # some are negative by the formula
    # The direction is conjugate: the gradient does not change along it, to first order.
    product = ((grad + found[:, None, None] * direction) * (before - grad)).sum((1, 2))
    np.testing.assert_allclose(product[found > 0], 0, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_ascends_a_quadratic_loss_in_as_many_steps_as_it_has_dimensions(scale):
    """Conjugate gradients with exact line searches, at any scale of the loss; the gradient alone
    is far away still."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    curvature, slope = root @ root.T + 0.1 * np.eye(5), rng.normal(size=5)

    def left(follow):
        z, before, direction = np.zeros(5), np.zeros(5), np.zeros(5)
        for _ in range(5):
            grad = slope - curvature @ z
            direction = np.asarray(follow(grad, before, direction), np.float64)
            z, before = (
                z + direction * (grad @ direction) / (direction @ curvature @ direction),
                grad,
            )
        return np.linalg.norm(slope - curvature @ z) / np.linalg.norm(slope)

    as_batch = lambda v, unit: jnp.asarray(unit * v[None], jnp.float32)
    found = left(
        lambda grad, before, direction: conjugate(
            as_batch(grad, scale), as_batch(before, scale), as_batch(direction, 1)
        )[0]
    )
    assert found < 1e-3 < 0.05 < left(lambda grad, *_: grad)


def test_where_nothing_is_known_the_direction_is_the_gradients():
    grad = jnp.asarray([[3.0, -4.0, 0.0]])
    none, first = jnp.zeros_like(grad), [[0.75, -1.0, 0.0]]
    for before, direction in ((none, none), (grad, grad), (grad, none)):
        np.testing.assert_allclose(conjugate(grad, before, direction), first)
    np.testing.assert_array_equal(conjugate(none, none, none), none)
    np.testing.assert_array_equal(conjugate(none, grad, none), none)


@pytest.mark.parametrize("ball", [Linf(0.125), L2(0.5)], ids=["linf", "l2"])
@pytest.mark.parametrize("conjugated", [True, False], ids=["conjugate", "gradient"])
def test_iterates_and_step_sizes_are_the_published_ones(
    network, key, ball, conjugated, monkeypatch
):
    """In double precision; with beta zero they are those of APGD without momentum."""
    follow = lambda grad, before, direction: grad + beta(grad, before, direction) * direction
    if not conjugated:
        follow = lambda grad, before, direction: grad
        monkeypatch.setattr(acg, "hestenes_stiefel", lambda grad, *_: jnp.zeros(len(grad)))
    model, x, y, loss_and_grad = network
    with jax.enable_x64():
        attack = ACG(ball=ball, loss=log_loss, until_success=False)
        images, sizes = trajectory(attack, key, model, x, y)
    x = np.asarray(x, np.float64)
    agreed, halved = [], 0
    for b in range(x.shape[0]):
        arguments = (ball.eps, x[b], np.asarray(y[b]), images[b, 0], loss_and_grad, 100)
        norm = type(ball).__name__.lower()
        iterates, etas = published(norm, *arguments, share=1.0, conjugate=follow)
        close = np.isclose(images[b, 1:], np.stack(iterates)[1:], atol=1e-7).reshape(100, -1).all(1)
        close &= np.isclose(sizes[b], etas)
        agreed.append(100 if close.all() else int(np.argmin(close)))
        halved += len(np.unique(etas)) > 4
    assert halved >= 7  # the rules have been at work
    # Two losses may be equal up to rounding, late in a run.
    assert np.mean(agreed) > 80 and sum(a == 100 for a in agreed) >= 6, agreed


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.6)], ids=["linf", "l2"])
def test_reaches_the_optimum_of_a_linear_model(key, ball):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=20).astype(np.float32)
    x = rng.uniform(0, 1, size=(6, 5, 4)).astype(np.float32)
    model = jax.tree_util.Partial(score, jnp.asarray(weights), 0.1, jnp.zeros((6, 0)))
    y = jnp.argmax(model(x), axis=1)
    record = ACG(ball=ball, until_success=False).run(key, model, x, y)
    sign = np.asarray(1 - 2 * y)
    reached = sign * np.asarray(model(record.x_adv)[:, 1] - model(x)[:, 1])
    for b in range(6):
        gain = sign[b] * weights
        best = best_score(ball, np.abs(gain), np.where(gain > 0, 1 - x[b].ravel(), x[b].ravel()))
        np.testing.assert_allclose(reached[b], best, rtol=1e-3)
    np.testing.assert_allclose(record.loss, margin(model(record.x_adv), y), rtol=1e-5)


def test_starts_in_the_middle_or_at_random(tiny, key):
    model, _, x, y = tiny
    eps = np.linspace(0.1, 0.4, 8).astype(np.float32)
    start = ACG(ball=Linf(eps), steps=0)(key, model, x, y)
    wide = eps.reshape(8, 1, 1, 1)
    middle = (np.maximum(x - wide, 0) + np.minimum(x + wide, 1)) / 2
    np.testing.assert_allclose(start, middle, atol=1e-6)
    np.testing.assert_array_equal(ACG(ball=L2(0.5), steps=0)(key, model, x, y), x)
    ball = Linf(0.1)
    drawn = ACG(ball=ball, steps=0, random_start=True)(key, model, x, y)
    assert ball.size(drawn - x).min() > 0.08 and ball.size(drawn - x).max() <= 0.1 + 1e-6


def test_stops_an_example_at_its_first_adversarial_image(tiny, key):
    model, _, x, y = tiny
    y = y.at[0].set((y[0] + 1) % 5)  # wrong from the start
    attack = ACG(ball=L2(0.15), steps=30)
    record = attack.run(key, model, x, y)
    np.testing.assert_array_equal(record.x_adv[0], x[0])
    fooled = np.asarray(record.success)
    assert fooled[0] and 1 < fooled.sum() < 8, "the eps must fool some only"
    # The image found at iterate n cost a gradient at each of iterates 0 to n.
    np.testing.assert_array_equal(record.backwards[fooled], record.first_success[fooled] + 1)
    assert (record.backwards[~fooled] == 30).all() and (record.forwards[~fooled] == 32).all()
    further = replace(attack, until_success=False).run(key, model, x, y)
    np.testing.assert_array_equal(record.success, further.success)
    assert (further.loss >= record.loss - 1e-6).all() and (further.loss > record.loss).any()
    assert (further.backwards == 30).all() and (further.forwards == 32).all()


def test_other_budgets_and_counts_of_steps_are_no_new_program(tiny, traces, key):
    model, _, x, y = tiny
    ACG(ball=Linf(0.1), steps=5)(key, model, x, y)
    before = len(traces)
    ACG(ball=Linf(np.float32(0.2)), steps=9)(key, model, x, y)
    ACG(ball=Linf(0), steps=20)(key, model, x, y)
    assert len(traces) == before


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5)], ids=["linf", "l2"])
@pytest.mark.parametrize("loss", [margin, cross_entropy])
def test_constant_logits_give_a_finite_answer_for_one_image(key, ball, loss):
    model = lambda x: jnp.zeros((x.shape[0], 3)).at[:, 1].set(5.0)
    x = jnp.full((1, 4, 3, 2), 0.5)
    record = ACG(ball=ball, loss=loss, steps=6).run(key, model, x, jnp.ones(1, jnp.int32))
    assert np.isfinite(record.x_adv).all() and np.isfinite(record.loss).all()
    assert not record.success.any() and (record.zero_gradient == 6).all()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"ball": L1(3)}, "Linf or L2"),
        ({"ball": Linf()}, "finite"),
        ({"ball": Linf(0.1), "steps": -1}, "steps=-1"),
        ({"ball": L2(0.1), "rho": 2}, "rho=2; expected 0 to 1"),
        ({"ball": L2(0.1), "loss": dlr, "goal": Target()}, "loss=dlr and goal=Target"),
    ],
)
def test_what_it_cannot_take_it_refuses(fields, words):
    with pytest.raises((TypeError, ValueError), match=words) as error:
        ACG(**fields)
    assert "\n" not in str(error.value)
