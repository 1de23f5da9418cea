"""Success counted over a randomised model's draws, and its intervals."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doubles import Brighten, Coin, brightness, greys

from advjax import Linf, Target, clopper_pearson, evaluate, success_over_draws, wilson
from advjax.evaluation import Evaluation, attack_key, robustness_curve, wilson_over_draws
from advjax.evaluation.draws import Shares
from advjax.evaluation.sections import accuracy_table

MEANS = np.array([0.1, 0.3, 0.5, 0.8])  # of the images: Coin says class 0 that often
X, Y = greys(*MEANS), np.array([0, 0, 0, 0])
run = partial(evaluate, devices=jax.devices()[:1])


def test_the_share_is_the_models_and_its_interval_clopper_and_pearsons(key):
    found = success_over_draws(key, Coin(), X, Y, draws=2000)
    np.testing.assert_allclose(found.share, 1 - MEANS, atol=0.04)  # 3.5 standard deviations
    for share, low, high in zip(*found, strict=True):
        assert (low, high) == clopper_pearson(round(share * 2000), 2000)
    np.testing.assert_array_less(found.low, 1 - MEANS)
    np.testing.assert_array_less(1 - MEANS, found.high)
    aimed = success_over_draws(key, Coin(), X, Y, draws=2000, goal=Target())
    np.testing.assert_allclose(aimed.share, 1 - found.share)
    wide = success_over_draws(key, Coin(), X, Y, draws=2000, level=0.999)
    assert (wide.low < found.low).all() and (wide.high > found.high).all()


def test_draws_follow_the_examples_key(key):
    keys = jax.random.split(jax.random.key(7), 4)
    whole = success_over_draws(keys, Coin(), X, Y, draws=50)
    part = success_over_draws(keys[1:3], Coin(), X[1:3], Y[1:3], draws=50)
    np.testing.assert_array_equal(whole.share[1:3], part.share)
    assert not np.array_equal(whole.share, success_over_draws(key, Coin(), X, Y, draws=50).share)


def test_logits_that_are_not_finite_are_no_success(key):
    class Broken:
        stochastic = True

        def __call__(self, x, *, key):
            return jnp.full((x.shape[0], 2), jnp.nan)

    jax.tree_util.register_static(Broken)
    assert (success_over_draws(key, Broken(), X, Y, draws=3).share == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": brightness}, "_Function, which is not randomised; expected a model with"),
        ({"draws": 0}, "draws: given 0; expected an integer >= 1"),
        ({"y": Y + 2}, "labels: given 2 to 2; expected 0 to 1"),
        ({"level": 1.0}, "level=1.0"),
    ],
)
def test_what_cannot_be_counted_is_refused(key, change, message):
    given = {"model": Coin(), "y": Y} | change
    with pytest.raises(ValueError, match=message):
        success_over_draws(key, given.pop("model"), X, given.pop("y"), **given)


@pytest.mark.parametrize("spread", [0.5, 20.0])
def test_the_interval_of_the_mean_covers_and_counting_draws_as_images_does_not(spread):
    """Images whose shares are Beta distributed: very unlike each other, or much alike."""
    rng, truth = np.random.default_rng(0), 0.25
    covered, pooled, lengths = 0, 0, []
    for _ in range(400):
        hits = rng.binomial(50, rng.beta(truth * spread, (1 - truth) * spread, 80))
        low, high = wilson_over_draws(hits, 50)
        covered += low <= truth <= high
        lengths.append(high - low)
        ends = wilson(int(hits.sum()), 80 * 50)
        pooled += ends[0] <= truth <= ends[1]
    assert covered >= 0.92 * 400 and pooled < 0.8 * 400
    ends = wilson(20, 80)
    assert np.mean(lengths) < ends[1] - ends[0]  # more is known than from one draw an image


def test_the_interval_of_the_mean_in_its_limits():
    hits = np.array([1, 0, 1, 1, 0, 0, 0, 0])
    low, high = wilson_over_draws(hits, 1)  # one draw an image: about Wilson's own
    np.testing.assert_allclose((low, high), wilson(3, 8), atol=0.03)
    assert wilson_over_draws(np.zeros(9, int), 100) == wilson(0, 9)  # not 900 images
    assert wilson_over_draws(np.full(9, 100), 100) == wilson(9, 9)
    np.testing.assert_allclose(wilson_over_draws(np.full(9, 30), 100), wilson(270, 900))
    assert wilson_over_draws(np.zeros(0, int), 5) == (0.0, 1.0)
    assert wilson_over_draws(np.array([3]), 10) == wilson(0.3, 1)


@pytest.fixture(scope="module")
def found():
    """Two stages that change nothing on four images, of which three are right when clean."""
    x, y = greys(0.1, 0.65, 0.75, 0.95), np.zeros(4, int)
    attack = Brighten(ball=Linf(0.0), each=(0.0, 0.0))
    key = jax.random.key(0)
    return run(Coin(), (x, y), {"none": attack}, key=key, draws=400), x, y


def test_an_evaluation_counts_further_draws(found, key):
    out, x, y = found
    result = out.attacks["none"]
    assert result.draws == out.about["draws"] == 400
    assert result.attacked.tolist() == [False, True, True, True] and not result.success.any()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(attack_key(key, "count none"), np.arange(4))
    fresh = success_over_draws(keys, Coin(), x, y, draws=400)
    np.testing.assert_array_equal(result.wrong_draws[1:], np.round(400 * fresh.share[1:]))
    assert result.wrong_draws[0] == 0
    shares = out.over_draws("none")
    assert np.isnan(shares.share[0]) and np.isnan(shares.low[0])
    np.testing.assert_array_equal(shares.high[1:], fresh.high[1:])


def test_the_summary_and_the_tables_say_it(found, tmp_path):
    out, _, _ = found
    wrong = out.attacks["none"].wrong_draws[1:]
    said = out.summary()["attacks"]["none"]["over_draws"]
    low, high = wilson_over_draws(wrong, 400)
    assert said == {"draws": 400, "value": wrong.mean() / 400, "low": low, "high": high}
    cell = f"{wrong.mean() / 4:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    header, rows = out.rows()
    assert rows[1][header.index("fooled draws %")] == cell
    assert cell in out.table() and cell in accuracy_table(out).html()
    assert "majority of 400 draws" in accuracy_table(out).html()
    out.save(tmp_path / "drawn")
    back = Evaluation.load(tmp_path / "drawn")
    assert back.to_json() == out.to_json() and back.table() == out.table()
    assert back.attacks["none"].wrong_draws.tolist() == [0, *wrong]


def test_the_draws_counted_are_not_those_it_was_judged_by(key):
    x, y = greys(*np.full(60, 0.8)), np.zeros(60, int)
    attack = Brighten(ball=Linf(0.0), each=(0.0,) * 3)
    out = run(Coin(), (x, y), attack, key=key, draws=1)
    result = out.attacks["Brighten"]
    assert 0 < result.success.sum() < 30
    assert (result.wrong_draws[result.success] == 0).any()
    said = out.summary()["attacks"]["Brighten"]["over_draws"]
    assert said["low"] < 0.2 < said["high"]
    settled = run(Coin(), (x, y), attack, key=key)  # by the majority of 100
    assert settled.attacks["Brighten"].draws == 100
    assert not settled.attacks["Brighten"].success.any()


def test_an_image_outside_the_ball_succeeds_in_no_draw(key):
    beyond = Brighten(ball=Linf(0.1), noise=0.5)
    x, y = greys(0.6, 0.7, 0.8), np.zeros(3, int)
    result = run(Coin(), (x, y), beyond, key=key).attacks["Brighten"]
    assert result.invalid.sum() == 3 and not result.wrong_draws.any()


def test_another_model_is_asked_once_and_nothing_is_said_of_draws(key):
    out = run(brightness, (X, np.array([0, 0, 1, 1])), Brighten(ball=Linf(0.1)), key=key)
    result = out.attacks["Brighten"]
    assert result.wrong_draws is None and result.draws == out.about["draws"] == 1
    assert out.over_draws("Brighten") is None
    assert json.loads(out.to_json())["attacks"]["Brighten"]["over_draws"] is None
    assert "draws" not in out.table() and "randomised" not in accuracy_table(out).html()


def test_nobody_attacked_is_said_without_a_number(key):
    out = run(Coin(), (X[:1], Y[:1]), Brighten(ball=Linf(0.1)), key=key)
    said = out.summary()["attacks"]["Brighten"]["over_draws"]
    assert said == {"draws": 100, "value": None, "low": 0.0, "high": 1.0}
    out.table()


def test_a_curve_judges_by_many_draws(key):
    """With one draw an image of share 0.75 would be wrong in a quarter of the cases."""
    x, y = greys(*np.full(40, 0.75)), np.zeros(40, int)
    attack = Brighten(ball=Linf(0.01))
    curve = robustness_curve(
        Coin(), (x, y), attack, (0.0, 0.01), key=key, devices=jax.devices()[:1]
    )
    assert [a.correct for a in curve.accuracy] == [40, 40]


def test_shares_of_counts():
    shares = Shares.of(np.array([0, 5, 10]), 10, 0.9)
    assert shares.share.tolist() == [0, 0.5, 1]
    assert [tuple(ends) for ends in np.stack(shares[1:], 1)] == [
        clopper_pearson(k, 10, 0.9) for k in (0, 5, 10)
    ]
