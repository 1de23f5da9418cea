from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doubles import BATCHES, Brighten, Coin, brightness, greys
from linear import linear

from advjax import (
    BIM,
    FGSM,
    PGD,
    Linf,
    Restarts,
    Targeted,
    Transferred,
    WorstOf,
    example_keys,
    least_likely_target,
    pytree,
)
from advjax.data import Dataset
from advjax.evaluation import Evaluation, attack_accuracy, attack_key, evaluate

X = greys(0.1, 0.2, 0.3, 0.4, 0.45, 0.7, 0.9, 0.6)
Y = np.array([0, 0, 0, 0, 0, 1, 1, 0])  # the last one is wrong when clean


# One structure throughout, so that tests share compiled programs.
PGD_2 = PGD(ball=Linf(0.08), step_size=0.04, steps=2)
TWICE = Restarts(attack=PGD_2, n=2)
# One device compiles fastest; that the number of devices changes nothing has its own test.
ONE = jax.devices()[:1]
run = partial(evaluate, devices=ONE)


@pytest.fixture(autouse=True)
def forget():
    BATCHES.clear()


@pytest.fixture(scope="module")
def task():
    """A linear model on 60 images with labels it mostly gets right."""
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(4 * 5 * 2, 6)), jnp.float32)
    x = rng.integers(0, 256, (60, 4, 5, 2), dtype=np.uint8)
    model = jax.tree_util.Partial(linear, weights)
    y = np.array(jnp.argmax(model(x / np.float32(255)), -1))
    y[::10] = (y[::10] + 1) % 6
    return model, Dataset(x, y, tuple("abcdef"))


def test_counts_by_hand(key):
    out = run(brightness, (X, Y), {"b": Brighten(ball=Linf(0.15))}, key=key)
    assert (out.clean.correct, out.clean.total) == (7, 8)
    # 0.4 and 0.45 cross one half; 0.9 + 0.15 leaves [0, 1]: no success, and not robust either.
    assert out.attacks["b"].success.tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert (out.robust["b"].correct, out.worst.correct) == (4, 4)
    assert out.attacks["b"].invalid.tolist() == [False] * 6 + [True, False]
    assert out.attacks["b"].forwards.tolist() == [2] * 7 + [0]
    assert out.attacks["b"].prediction.tolist() == [0, 0, 0, 1, 1, 1, 1, -1]


def test_an_example_that_is_wrong_when_clean_is_never_attacked_and_not_robust(key):
    out = run(brightness, (X, Y), {"b": Brighten(ball=Linf(0.0))}, key=key, keep_images=True)
    result = out.attacks["b"]
    assert not result.attacked[7] and not result.success[7] and not out.standing("b")[7]
    assert np.isnan(result.loss[7]) and result.stage[7] == -1
    assert np.array_equal(result.x_adv[7], X[7])
    assert out.robust["b"].correct == 7


def test_success_is_judged_afresh_whatever_the_attack_claims(key):
    attacks = {
        "boasts": Brighten(ball=Linf(0.0), claim=True),
        "shy": Brighten(ball=Linf(0.2), claim=False),
    }
    out = run(brightness, (X, Y), attacks, key=key)
    assert not out.attacks["boasts"].success.any()
    assert out.attacks["shy"].success.sum() == 2


def test_an_image_with_nan_is_no_success(key):
    attacks = {"nan": Brighten(ball=Linf(0.1), noise=jnp.nan)}
    out = run(brightness, (X, Y), attacks, key=key)
    assert not out.attacks["nan"].success.any() and out.attacks["nan"].invalid.sum() == 7
    assert "7 invalid images" in out.table()


def test_a_stage_never_sees_what_an_earlier_one_fooled(key):
    attack = Brighten(ball=Linf(0.0), each=(0.07, 0.12, 0.25))
    out = run(brightness, (X, Y), {"b": attack}, key=key)
    assert out.attacks["b"].stage.tolist() == [-1, -1, 2, 1, 0, -1, -1, -1]
    assert out.attacks["b"].forwards.tolist() == [6, 6, 6, 4, 2, 6, 6, 0]
    assert BATCHES == [8, 8, 8]  # 7, 6 and 5 survivors: sizes are 8, 2 and 1


def test_nobody_left_ends_an_attack(key):
    x, y = greys(0.4, 0.45), np.array([0, 0])
    attack = Brighten(ball=Linf(0.0), each=(0.2, 0.2, 0.2))
    out = run(brightness, (x, y), {"b": attack, "again": attack}, key=key, cascade=True)
    assert len(BATCHES) == 1 and out.worst.correct == 0
    assert out.attacks["again"].attacked.sum() == 0 and out.robust["again"].correct == 0


def test_a_model_that_is_always_wrong_is_not_attacked(key):
    out = run(brightness, (X[:5], np.ones(5, int)), {"b": Brighten(ball=Linf(0.1))}, key=key)
    assert out.clean.correct == 0 and out.robust["b"].correct == 0 and BATCHES == []
    assert out.summary()["attacks"]["b"]["attacked"] == 0
    assert "0/0" in out.table()


def test_without_attacks_it_is_clean_accuracy(key):
    out = run(brightness, (X, Y), {}, key=key)
    assert out.clean.correct == out.worst.correct == 7 and out.robust == {}


def test_a_cascade_counts_who_still_stands(key):
    attacks = {"weak": Brighten(ball=Linf(0.07)), "strong": Brighten(ball=Linf(0.15))}
    alone = run(brightness, (X, Y), attacks, key=key)
    cascade = run(brightness, (X, Y), attacks, key=key, cascade=True)
    assert alone.attacks["strong"].attacked.sum() == 7
    assert cascade.attacks["strong"].attacked.sum() == 6
    for out in (alone, cascade):
        assert [a.correct for a in out.robust.values()] == [
            6,
            4,
        ] and out.worst.correct == 4  # one invalid


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (16, 1), (60, 8)])
def test_batch_size_and_devices_change_nothing(task, key, batch_size, devices):
    model, data = task
    attacks = {"r": TWICE} if batch_size > 1 else {"r": FGSM(ball=Linf(0.1))}
    few = data if batch_size > 1 else data.take(slice(0, 12))
    one = run(model, few, attacks, key=key, keep_images=True)
    spread = jax.devices()[:devices]
    other = evaluate(
        model, few, attacks, key=key, keep_images=True, batch_size=batch_size, devices=spread
    )
    assert other.about["devices"] == devices
    same(one, other, np.arange(len(few)))
    assert one.robust["r"].correct < one.clean.correct - 1


def test_order_and_subset_change_nothing_because_draws_follow_ids(task, key):
    model, data = task
    attacks = {"p": PGD_2}
    order = np.random.default_rng(0).permutation(len(data))[:33]
    whole = run(model, data, attacks, key=key, keep_images=True)
    part = run(model, data.take(order), attacks, key=key, keep_images=True, batch_size=15)
    same(whole, part, order)
    assert part.ids.tolist() == order.tolist()


def test_the_other_attacks_and_their_order_change_nothing(task, key):
    model, data = task
    a, b = PGD_2, FGSM(ball=Linf(0.04))
    one = run(model, data, {"a": a, "b": b}, key=key)
    other = run(model, data, {"b": b, "a": a}, key=key)
    assert np.array_equal(one.attacks["a"].loss, other.attacks["a"].loss, equal_nan=True)


def same(one, other, order):
    """``other`` holds ``one``'s examples ``order``, with the same outcome."""
    assert np.array_equal(one.prediction[order], other.prediction)
    for name, result in one.attacks.items():
        got = other.attacks[name]
        for field in ("attacked", "success", "stage", "prediction", "forwards", "first_success"):
            assert np.array_equal(getattr(result, field)[order], getattr(got, field)), field
        apart = np.abs(result.x_adv[order] - got.x_adv) > 1e-5
        assert apart.mean() <= 1e-4


def test_the_images_are_those_of_the_attack_called_alone(task, key):
    model, data = task
    attack = PGD_2
    out = run(model, data, {"pgd": attack}, key=key, keep_images=20)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(attack_key(key, "pgd"), data.ids[:20])
    alone = attack(keys, model, data.x[:20] / np.float32(255), data.y[:20])
    attacked = out.attacks["pgd"].attacked[:20]
    assert out.attacks["pgd"].x_adv.shape == (20, 4, 5, 2)
    np.testing.assert_allclose(out.attacks["pgd"].x_adv[attacked], alone[attacked], atol=1e-6)


def test_restarts_by_stages_are_the_restarts_of_run(task, key):
    model, data = task
    attack = TWICE
    out = run(model, data, {"r": attack}, key=key).attacks["r"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(attack_key(key, "r"), data.ids)
    record = attack.run(keys, model, data.x / np.float32(255), data.y)
    attacked = out.attacked
    assert np.array_equal(out.success[attacked], np.asarray(record.success)[attacked])
    unfooled = attacked & ~out.success
    np.testing.assert_allclose(out.loss[unfooled], np.asarray(record.loss)[unfooled], rtol=1e-4)
    assert 0 < out.success.sum() < attacked.sum() and out.stage.max() > 0


def test_bytes_and_their_floats_are_the_same_data(task, key):
    model, data = task
    attacks = {"f": FGSM(ball=Linf(0.05))}
    one = run(model, data, attacks, key=key)
    other = run(model, (data.x / 255, data.y), attacks, key=key)  # float64
    assert np.array_equal(one.attacks["f"].success, other.attacks["f"].success)


def test_any_number_of_survivors_costs_at_most_three_traces(key):
    traces = []

    def counted(x):
        traces.append(x.shape)
        return brightness(x)

    attack = Brighten(ball=Linf(0.0), each=(0.02, 0.05, 0.2, 0.4, 0.45))
    x = np.random.default_rng(0).uniform(0, 0.5, (323, 3, 4, 1)).astype(np.float32)
    run(counted, (x, np.zeros(323, int)), {"a": attack}, key=key, batch_size=64)
    assert len(BATCHES) > 12 and {4, 64} <= set(BATCHES) <= {4, 16, 64}
    # One trace per size, and one for the check of the logits' shape on a single image.
    assert sorted(shape[0] for shape in traces) == sorted({1, *BATCHES})


def test_other_weights_and_another_eps_are_no_new_trace(task, key):
    model, data = task
    traces = []

    def counted(weights, x):
        traces.append(x.shape)
        return linear(weights, x)

    for scale, eps in ((1.0, 0.02), (0.5, 0.03), (2.0, 0.01)):
        weights = jax.tree_util.Partial(counted, model.args[0] * scale)
        run(weights, data, {"p": PGD(ball=Linf(eps), steps=2)}, key=key, batch_size=256)
        if scale == 1.0:
            first = len(traces)
    assert len(traces) == first


def test_numbers_per_example_follow_their_examples(key):
    eps = np.array([0.45, 0.0, 0.25, 0.0, 0.1, 0.0, 0.0, 0.0])
    attack = Brighten(ball=Linf(eps), each=())
    out = run(brightness, (X, Y), {"b": attack}, key=key, batch_size=3)
    assert out.attacks["b"].success.tolist() == [True, False, True, False, True] + [False] * 3
    np.testing.assert_allclose(out.attacks["b"].distance[:7], eps[:7])
    bim = BIM(ball=Linf(eps), steps=1)
    assert run(brightness, (X, Y), bim, key=key, batch_size=3).robust["PGD"].correct == 4
    with pytest.raises(ValueError, match=r"eps: given shape \(3,\).*\[8\]"):
        run(brightness, (X, Y), PGD(ball=Linf(eps[:3]), steps=1), key=key)


def test_a_model_inside_an_attack_is_left_whole(key):
    """Whatever its numbers are called, and however many there are: they are not per example."""

    @pytree
    class Scaled:
        weight: jax.Array
        eps: jax.Array

        def __call__(self, x):
            flat = x.reshape(x.shape[0], -1) * self.weight[None]
            return jnp.stack([flat @ self.eps, -flat @ self.eps], axis=1)

    rng, n = np.random.default_rng(0), 24
    x = rng.uniform(size=(n, 2, 3, 4)).astype(np.float32)
    model = Scaled(weight=rng.normal(size=n), eps=rng.normal(size=n))
    y = np.array(jnp.argmax(model(x), axis=1))
    y[0] = 1 - y[0]  # so that positions in a batch are not those in the data
    attack = Transferred(PGD(ball=Linf(0.05), steps=3), source=model)
    direct = attack.run(example_keys(attack_key(key, "t"), n), model, x, y)
    for batch_size in (24, 8):
        found = run(model, (x, y), {"t": attack}, key=key, batch_size=batch_size).attacks["t"]
        np.testing.assert_array_equal(found.success[1:], direct.success[1:])
        np.testing.assert_allclose(found.loss[1:], direct.loss[1:], rtol=1e-4)


def test_a_randomised_model_draws_by_example_and_afresh_when_judged(key):
    x, y = greys(*np.linspace(0.05, 0.95, 64)), np.zeros(64, int)
    attacks = {"none": Brighten(ball=Linf(0.0), each=(0.0,) * 2)}
    one = run(Coin(), (x, y), attacks, key=key, batch_size=64, draws=1)
    other = run(Coin(), (x, y), attacks, key=key, batch_size=9, draws=1)
    assert np.array_equal(one.prediction, other.prediction)
    assert np.array_equal(one.attacks["none"].success, other.attacks["none"].success)
    assert one.attacks["none"].success.any()  # fresh draws, not those of the clean pass
    settled = run(Coin(), (x, y), attacks, key=key, draws=400)
    sure = np.abs(np.linspace(0.05, 0.95, 64) - 0.5) > 0.1
    assert np.array_equal(settled.correct[sure], (np.linspace(0.05, 0.95, 64) > 0.5)[sure])
    assert not settled.attacks["none"].success[sure].any()


def test_progress_counts_every_stage_to_its_end(key):
    told = []
    attack = Brighten(ball=Linf(0.0), each=(0.07, 0.12))
    run(
        brightness,
        (X, Y),
        {"b": attack},
        key=key,
        batch_size=2,
        progress=lambda *call: told.append(call),
    )
    assert [c for c in told if c[1] == c[2]] == [("clean", 8, 8), ("b 1/2", 7, 7), ("b 2/2", 6, 6)]
    assert told[:2] == [("clean", 2, 8), ("clean", 4, 8)]


def test_it_is_saved_and_read_again(tmp_path, task, key):
    model, data = task
    attacks = {"p": PGD_2, "a/b": FGSM(ball=Linf(0.05))}
    out = run(model, data, attacks, key=key, keep_images=5)
    out.save(tmp_path / "deep" / "eval.1")
    back = Evaluation.load(tmp_path / "deep" / "eval.1")
    assert back.table() == out.table() and back.to_json() == out.to_json()
    assert np.array_equal(back.attacks["a/b"].x_adv, out.attacks["a/b"].x_adv)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["eval.1.json", "eval.1.npz"]
    whole = (tmp_path / "deep" / "eval.1.npz").read_bytes()
    (tmp_path / "deep" / "eval.1.npz").write_bytes(whole[:200])
    with pytest.raises(ValueError, match="are no saved evaluation"):
        Evaluation.load(tmp_path / "deep" / "eval.1")
    with pytest.raises(FileNotFoundError):
        Evaluation.load(tmp_path / "none")


def test_the_table_shows_every_number(task, key):
    model, data = task
    attacks = {"pgd": PGD_2, "fgsm": FGSM(ball=Linf(0.02))}
    out = run(model, data, attacks, key=key)
    lines = out.table().splitlines()
    assert lines[0].split("  ")[0] == "attack" and "95 % interval" in lines[0]
    assert [line.split("  ")[0] for line in lines[2:]] == ["clean", "pgd", "fgsm", "worst case"]
    assert f"{100 * out.robust['pgd'].value:.2f}" in lines[3]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": (X * 2, Y)}, ValueError, "values from 0.2 to 1.8; expected 0 to 1"),
        ({"data": (X * np.nan, Y)}, ValueError, "values from nan"),
        ({"data": (X.astype(np.int64), Y)}, TypeError, "images: given int64"),
        ({"data": (X[:0], Y[:0])}, ValueError, "N >= 1"),
        ({"data": (X, Y[:3])}, ValueError, "labels: given shape"),
        ({"data": (X, Y + 1)}, ValueError, "labels: given 1 to 2; expected 0 to 1"),
        ({"data": (X, Y * 1.0)}, TypeError, "labels: given float64"),
        ({"data": "mnist"}, TypeError, "data: given str"),
        ({"key": 0}, TypeError, "jax.random.key"),
        ({"batch_size": 0}, ValueError, "batch_size: given 0"),
        ({"draws": 0}, ValueError, "draws: given 0"),
        ({"level": 95}, ValueError, "level: given 95"),
        ({"devices": []}, ValueError, "devices: given none"),
        ({"model": "net"}, TypeError, "a model is a callable"),
        ({"model": lambda x: x}, ValueError, "logits"),
        ({"model": lambda x: brightness(x) / 0}, ValueError, "not finite on 8 of 8 clean"),
        ({"attacks": {"f": print}}, TypeError, "f: given builtin_function.*an advjax attack"),
        (
            {"attacks": {"t": Restarts(attack=Targeted(attack=FGSM(ball=Linf(0.1))), n=2)}},
            ValueError,
            "t: a targeted attack would aim at the true labels",
        ),
        (
            {"attacks": {"b": FGSM(ball=Linf(0.1, lower=0.2))}},
            ValueError,
            "b: images run from 0.1 to 0.9; the attack's box is 0.2",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line(key, change, error, message):
    given = {"model": brightness, "data": (X, Y), "attacks": {}, "key": key} | change
    with pytest.raises(error, match=message) as raised:
        run(given.pop("model"), given.pop("data"), given.pop("attacks"), **given)
    assert "\n" not in str(raised.value)


def test_targets_that_are_chosen_are_evaluated_as_misclassification(task, key):
    model, data = task
    attack = Targeted(attack=FGSM(ball=Linf(0.2)), choose=least_likely_target)
    out = run(model, data, {"t": attack}, key=key)
    assert out.robust["t"].correct < out.clean.correct


def test_attack_accuracy_is_evaluates_number(task, key):
    model, data = task
    attack = FGSM(ball=Linf(0.1))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(attack_key(key, "PGD"), data.ids)
    share = attack_accuracy(attack, keys, model, data.x / np.float32(255), data.y)
    assert share.shape == () and np.isclose(share, run(model, data, attack, key=key).worst.value)


def test_attack_accuracy_over_a_grid_of_eps_is_the_loop(task, key):
    model, data = task
    x, y, grid = data.x[:40] / np.float32(255), data.y[:40], jnp.array([0.01, 0.03, 0.1])
    pgd = partial(PGD, steps=2, random_start=False)
    attacks = pgd(ball=Linf(eps=grid), step_size=grid / 2)
    curve = jax.vmap(attack_accuracy, in_axes=(0, None, None, None, None))(
        attacks, key, model, x, y
    )
    loop = [attack_accuracy(pgd(ball=Linf(eps=e), step_size=e / 2), key, model, x, y) for e in grid]
    np.testing.assert_allclose(curve, loop, atol=1e-6)
    assert curve[0] > curve[-1]


def test_worst_of_is_evaluated_part_by_part(task, key):
    model, data = task
    parts = (FGSM(ball=Linf(0.02)), PGD_2)
    out = run(model, data, {"w": WorstOf(attacks=parts)}, key=key).attacks["w"]
    assert set(out.stage[out.success]) <= {0, 1} and (out.stage[out.success] > 0).any()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(attack_key(key, "w"), data.ids)
    record = WorstOf(attacks=parts).run(keys, model, data.x / np.float32(255), data.y)
    assert np.array_equal(out.success, np.asarray(record.success) & out.attacked)


def test_an_attack_that_leaves_its_ball_fools_nobody(key):
    beyond = Brighten(ball=Linf(0.1), noise=0.5)
    out = run(brightness, (X, Y), {"b": beyond}, key=key)
    assert out.attacks["b"].invalid.sum() == 7 and not out.attacks["b"].success.any()
