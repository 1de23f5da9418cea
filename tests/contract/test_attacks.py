"""What every attack keeps to; a new attack is one more row."""

import collections
import dataclasses
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from linear import linear

from advjax import (
    BIM,
    EOT,
    FGSM,
    L0,
    L1,
    L2,
    MIM,
    PGD,
    Linf,
    Restarts,
    Target,
    Targeted,
    WorstOf,
    device_loop,
    evaluate,
    example_keys,
    host_loop,
    least_likely_target,
    margin,
    pytree,
    random_target,
    replace,
)
from advjax.attacks.core import driver
from advjax.evaluation import attack_key
from advjax.pytrees import Settings

BALLS = {"linf": Linf(0.2), "l2": L2(0.6), "l1": L1(2.0), "l0": L0(3)}

ATTACKS = {
    "fgsm_linf": lambda: FGSM(ball=BALLS["linf"]),
    "fgsm_linf_random_start": lambda: FGSM(ball=BALLS["linf"], step_size=0.25, random_start=True),
    "fgsm_linf_free_start": lambda: FGSM(
        ball=BALLS["linf"], step_size=0.25, random_start=True, start_in_box=False
    ),
    "pgd_linf_free_start": lambda: PGD(ball=Linf(0.7), steps=0, start_in_box=False),
    "bim_l2": lambda: BIM(ball=BALLS["l2"], steps=4),
    "pgd_linf": lambda: PGD(ball=BALLS["linf"], steps=5),
    "pgd_linf_last": lambda: PGD(ball=BALLS["linf"], steps=5, best=False),
    "pgd_l2": lambda: PGD(ball=BALLS["l2"], steps=5),
    "pgd_l1": lambda: PGD(ball=BALLS["l1"], steps=5),
    "pgd_l0": lambda: PGD(ball=BALLS["l0"], steps=5),
    "pgd_no_steps": lambda: PGD(ball=BALLS["linf"], steps=0),
    "mim_linf": lambda: MIM(ball=BALLS["linf"], steps=4),
    "restarts": lambda: Restarts(PGD(ball=BALLS["l2"], steps=5), n=3),
    "worst_of": lambda: WorstOf(attacks=(FGSM(ball=BALLS["linf"]), PGD(ball=Linf(0.1), steps=5))),
    "nested": lambda: WorstOf(
        attacks=(FGSM(ball=Linf(0.03)), Restarts(attack=PGD(ball=Linf(0.03), steps=5), n=2))
    ),
    "targeted": lambda: Targeted(PGD(ball=BALLS["linf"], steps=4), choose=random_target),
}
for path in sorted(Path(__file__).parent.glob("rows_*.py")):
    ATTACKS |= import_module(path.stem).ROWS


# Called or run, equal to the bit in optimised code alone: elsewhere a product and a sum are rounded
# once in one program and twice in another.
OPTIMISED = ("patch",)


# Another norm or option of an attack that has a row: CI runs them.
SLOW = [
    "fgsm_linf_random_start",
    "fgsm_linf_free_start",
    "pgd_linf_free_start",
    "pgd_linf_last",
    "pgd_no_steps",
    "bim_l2",
    "nested",
    "apgd_l1_shrink",
    "fab_linf",
    "fab_l1_in_chunks",
    "deepfool_linf",
    "square_l2",
    "square_l1",
    "ddn_l2_in_box",
    "fmn_linf_limit",
    "fmn_l1",
    "fmn_l0",
    "minimal_norm_square",
    "penalised_l1",
    "penalised_linf",
    "nes_l2_chunk",
    "simba_l2_dct",
    "boundary_l2_limit",
    "hop_skip_jump_linf",
    "jsma_logits_down",
    "spatial_draws",
    "ti_l2",
    "acg_linf",
    "mim_linf",
    "spsa_linf",
]
assert set(SLOW) <= set(ATTACKS)


def rows(names=ATTACKS):
    return table.rows("attack", names, SLOW, OPTIMISED)


TABLE = pytest.mark.parametrize("name", rows())


def ball_of(attack):
    return next(part.ball for part in attack.walk() if part.ball is not None)


def on_ball(attack, **fields):
    """The attack with these fields of its ball replaced, however deep it is wrapped."""
    if isinstance(attack, WorstOf):
        return replace(attack, attacks=tuple(on_ball(part, **fields) for part in attack.parts()))
    if attack.parts():
        return replace(attack, attack=on_ball(attack.attack, **fields))
    return replace(attack, ball=replace(attack.ball, **fields))


@TABLE
def test_stays_in_ball_and_box_and_tells_the_truth(name, tiny, key):
    model, _, x, y = tiny
    attack = ATTACKS[name]()
    record = attack.run(key, model, x, y)
    batch = x.shape[0]
    assert record.x_adv.shape == x.shape
    assert record.x_adv.dtype == jnp.float32
    for name in ("loss", "distance"):
        assert getattr(record, name).shape == (batch,)
        assert np.isfinite(getattr(record, name)).all()
    for name in ("forwards", "backwards", "first_success", "zero_gradient"):
        assert getattr(record, name).shape == (batch,)
        assert getattr(record, name).dtype == jnp.int32
    assert record.x_adv.min() >= 0 and record.x_adv.max() <= 1
    ball = ball_of(attack)
    np.testing.assert_allclose(record.distance, ball.size(record.x_adv - x), atol=1e-5)
    assert (ball.size(record.x_adv - x) <= ball.eps * (1 + 1e-6) + 1e-6).all()
    if not isinstance(attack, Targeted):  # its targets are its own
        fooled = jnp.argmax(model(record.x_adv), axis=1) != y
        np.testing.assert_array_equal(record.success, fooled)


@TABLE
def test_images_that_are_wrong_already_stay_in_ball_and_box(name, tiny, key):
    model, _, x, y = tiny
    attack, wrong = ATTACKS[name](), (y + 1) % 5
    record, ball = attack.run(key, model, x, wrong), ball_of(attack)
    assert np.isfinite(record.x_adv).all() and np.isfinite(record.loss).all()
    assert record.x_adv.min() >= 0 and record.x_adv.max() <= 1
    assert (ball.size(record.x_adv - x) <= ball.eps * (1 + 1e-6) + 1e-6).all()
    if not isinstance(attack, Targeted):
        fooled = jnp.argmax(model(record.x_adv), axis=1) != wrong
        np.testing.assert_array_equal(record.success, fooled)
        assert record.success.any()


@TABLE
def test_call_run_jit_and_every_loop_agree(name, tiny, key):
    model, _, x, y = tiny
    attack = ATTACKS[name]()
    x_adv = attack(key, model, x, y)
    np.testing.assert_array_equal(x_adv, attack.run(key, model, x, y).x_adv)
    jitted = jax.jit(lambda attack, key, model, x, y: attack.run(key, model, x, y))
    np.testing.assert_allclose(x_adv, jitted(attack, key, model, x, y).x_adv, atol=1e-6)
    if isinstance(attack, PGD):
        looped = attack(key, model, x, y, loop=host_loop)
        np.testing.assert_array_equal(x_adv, looped)
        looped = attack.run(key, model, x, y, loop=device_loop)
        np.testing.assert_allclose(x_adv, looped.x_adv, atol=1e-6)


@TABLE
def test_an_example_does_not_feel_its_neighbours(name, tiny, key):
    """In another order, among others, and alone, the result is the same."""
    model, weights, x, y = tiny
    attack, keys = ATTACKS[name](), example_keys(key, 8)
    whole = attack.run(keys, model, x, y)

    def agree(mine, record, its):
        np.testing.assert_allclose(whole.x_adv[mine], record.x_adv[its], atol=rounding(name))
        np.testing.assert_array_equal(whole.success[mine], record.success[its])
        np.testing.assert_array_equal(whole.forwards[mine], record.forwards[its])

    order = np.array([4, 0, 5, 2])
    others = jnp.zeros((4, *x.shape[1:]))
    among = attack.run(
        jnp.concatenate([keys[order], jnp.broadcast_to(keys[:1], 4)]),
        model,
        jnp.concatenate([x[order], others]),
        jnp.concatenate([y[order], y[:4]]),
    )
    agree(order, among, np.arange(4))
    # In the program of the test of the ledger.
    agree(np.array([4]), attack.run(keys[4:5], watched(weights), x[4:5], y[4:5]), np.array([0]))


@TABLE
def test_budgets_and_checkpoints_are_one_trace(name, tiny, traces, key):
    model, weights, x, y = tiny
    attack = ATTACKS[name]()
    for i in range(3):
        model = jax.tree_util.Partial(model.func, weights * (1 + i))
        attack.scaled(np.float32(1 + i))(key, model, x, y)
        if i == 0:
            before = len(traces)
    assert len(traces) == before


@TABLE
def test_awkward_inputs_give_finite_answers(name, key):
    attack = ATTACKS[name]()
    x = jnp.stack([jnp.zeros((2, 3, 1)), jnp.ones((2, 3, 1)), jnp.full((2, 3, 1), 0.5)])
    cases = {  # (slope, offset, what the square root is taken of: its slope at zero is infinite)
        "no gradient": (0.0, 1.0, 1.0),
        "saturated": (1e4, 0.0, 1.0),
        "nan gradient": (0.0, 1.0, 0.0),
    }
    for name, numbers in cases.items():
        model = jax.tree_util.Partial(two_classes, *map(jnp.float32, numbers))
        for images in (x[:1], x[1:2], x[2:]):
            record = attack.run(key, model, images, jnp.zeros(images.shape[0], jnp.int32))
            for field in ("x_adv", "loss", "distance"):
                assert np.isfinite(getattr(record, field)).all(), (name, field)
            if name != "saturated" and record.backwards[0] > 0:
                assert (record.zero_gradient == record.backwards).all(), name


SEEN: collections.Counter[str] = collections.Counter()


@jax.custom_vjp
def _watch(x):
    return _watch_forward(x)[0]


def _watch_forward(x):
    jax.debug.callback(lambda x: SEEN.update(forwards=len(x)), x)
    return x, None


def _watch_backward(_, dx):
    jax.debug.callback(lambda dx: SEEN.update(backwards=len(dx)), dx)
    return (dx,)


_watch.defvjp(_watch_forward, _watch_backward)


def watched(weights):
    """``tiny``'s model; it counts in ``SEEN`` the images shown and the image gradients asked."""
    return jax.tree_util.Partial(_watched, weights)


def _watched(weights, x):
    return linear(weights, _watch(x))


def two_classes(slope, offset, root, x):
    flat = x.reshape(x.shape[0], -1)[:, :2]
    return (slope * flat + offset + jnp.sqrt(0 * flat + root)) * jnp.array([[1.0, -1.0]])


# These move all pixels.
MASKLESS = ("spatial_grid", "spatial_draws", "flow", "patch")


@pytest.mark.parametrize("name", rows(name for name in ATTACKS if name not in MASKLESS))
def test_pixels_off_the_mask_are_untouched(name, tiny, key):
    model, _, x, y = tiny
    mask = np.ones(x.shape[1:], np.float32)
    mask[0] = 0
    x_adv = on_ball(ATTACKS[name](), mask=mask)(key, model, x, y)
    np.testing.assert_array_equal(x_adv[:, 0], x[:, 0])
    assert (x_adv[:, 1:] != x[:, 1:]).any()


@pytest.mark.parametrize("name", rows(MASKLESS))
def test_a_mask_that_cannot_hold_is_refused(name, tiny):
    with pytest.raises(ValueError, match="given a mask; expected a ball without one"):
        on_ball(ATTACKS[name](), mask=np.ones(tiny[2].shape[1:], np.float32))


# Losses that are no use towards a class; and one that chooses its own.
UNAIMED = ("apgd_linf_dlr", "autoattack_linf", "apgd_l2_rank")


@pytest.mark.parametrize("name", rows(n for n in ATTACKS if n not in (*UNAIMED, "targeted")))
def test_aimed_at_a_class_it_goes_there(name, tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    attack = Targeted(ATTACKS[name]())
    record = attack.run(key, model, x, target)
    ball = ball_of(attack)
    assert (ball.size(record.x_adv - x) <= ball.eps * (1 + 1e-6) + 1e-6).all()
    np.testing.assert_array_equal(record.success, jnp.argmax(model(record.x_adv), axis=1) == target)
    assert (margin(model(record.x_adv), target) < margin(model(x), target)).any()


@pytest.mark.parametrize("name", rows(UNAIMED))
def test_what_cannot_be_aimed_is_refused(name):
    with pytest.raises(ValueError, match="goal=Target"):
        ATTACKS[name]().with_goal(Target())


# The model sees more than is counted where parts of equal size are padded, and less where a source
# is attacked in its place; the tests of these attacks count otherwise.
PADDED = ("hop_skip_jump_l2", "hop_skip_jump_linf", "transferred")


@pytest.mark.parametrize("name", rows(name for name in ATTACKS if name not in PADDED))
def test_the_ledger_is_what_the_model_saw(name, tiny, key):
    """One example that hardly moves: nothing is padded, and nobody who is done is carried on."""
    _, weights, x, y = tiny
    keys = example_keys(key, 1)
    jax.effects_barrier()  # what another test has asked
    SEEN.clear()
    record = ATTACKS[name]().scaled(np.float32(1e-3)).run(keys, watched(weights), x[:1], y[:1])
    jax.effects_barrier()
    assert SEEN["forwards"] == int(record.forwards[0])
    assert SEEN["backwards"] == int(record.backwards[0])


@TABLE
def test_eight_devices_are_as_one(name, tiny, key):
    model, _, x, y = tiny
    attack, keys = ATTACKS[name](), example_keys(key, 8)
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), "batch"), PartitionSpec("batch"))
    one = attack.run(keys, model, x, y)
    eight = attack.run(*jax.device_put((keys, model, x, y), (sharding, None, sharding, sharding)))
    # NES divides the rounding of the model's answers by 2 sigma, .002.
    atol = rounding(name)
    np.testing.assert_allclose(one.x_adv, eight.x_adv, atol=atol)
    for field in ("success", "forwards", "backwards", "first_success"):
        np.testing.assert_array_equal(getattr(one, field), getattr(eight, field), err_msg=field)


@TABLE
def test_stages_are_the_attack_in_parts(name, tiny, key):
    model, _, x, y = tiny
    attack = ATTACKS[name]()
    keys = example_keys(key, x.shape[0])
    success = np.zeros(x.shape[0], bool)
    for tag, part in attack.stages():
        drawn = keys if tag is None else jax.vmap(jax.random.fold_in, (0, None))(keys, tag)
        success |= np.asarray(part.run(drawn, model, x, y).success)
    np.testing.assert_array_equal(success, attack.run(key, model, x, y).success)


def varied(settings, n):
    """With n different numbers, one per example, wherever the contract says that may be."""

    def new(field, value):
        if isinstance(value, Settings):
            return varied(value, n)
        if isinstance(value, tuple) and any(isinstance(v, Settings) for v in value):
            return tuple(varied(v, n) for v in value)
        if field.metadata.get("per_example") != "number" or not np.isfinite(value).all():
            return value
        if field.name == "rank":
            return 1 + np.arange(n) % 3
        sign = np.where(np.arange(n) % 2, -1, 1) if field.name == "theta" else 1
        return value * sign * np.linspace(0.8, 1.2, n)

    fields = [field for field in dataclasses.fields(settings) if field.init]
    given = {field: getattr(settings, field.name) for field in fields}
    return replace(settings, **{f.name: new(f, v) for f, v in given.items() if v is not None})


# One perturbation for all images has one eps.
@pytest.mark.parametrize("name", rows(name for name in ATTACKS if name != "universal"))
def test_numbers_per_example_follow_their_examples(name, tiny, key):
    """An evaluation drops the image that is wrong already: the others keep their own numbers."""
    model, _, x, y = tiny
    attack, y = varied(ATTACKS[name](), 8), y.at[0].set((y[0] + 1) % 5)
    found = evaluate(
        model, (x, y), {"a": attack}, key=key, batch_size=8, devices=jax.devices()[:1]
    ).attacks["a"]
    direct = attack.run(example_keys(attack_key(key, "a"), 8), model, x, y)
    assert found.attacked.tolist() == [False] + 7 * [True]
    np.testing.assert_array_equal(found.success[1:], direct.success[1:])
    same = found.attacked & (direct.success if len(attack.stages()) > 1 else True)
    np.testing.assert_allclose(
        found.distance[same], direct.distance[same], atol=10 * rounding(name)
    )


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0"])
def test_vmap_over_eps_equals_the_loop(name, tiny, key):
    model, _, x, y = tiny
    grid = np.linspace(0, 2, 4).astype(np.float32)
    make = lambda factor: PGD(ball=BALLS[name], steps=3).scaled(factor)
    swept = jax.vmap(lambda attack: attack.run(key, model, x, y))(make(grid))
    for i, factor in enumerate(grid):
        one = make(factor).run(key, model, x, y)
        np.testing.assert_allclose(swept.x_adv[i], one.x_adv, atol=1e-5)
        np.testing.assert_array_equal(swept.success[i], one.success)


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l0"])
def test_eps_per_example_equals_one_at_a_time(name, tiny, key):
    model, _, x, y = tiny
    eps = np.asarray(BALLS[name].eps * np.arange(1, 9) / 3, np.float32)
    if name == "l0":
        eps = np.floor(eps)
    attack = PGD(ball=replace(BALLS[name], eps=eps), steps=3)
    record = attack.run(key, model, x, y)
    keys = example_keys(key, x.shape[0])
    for i in (0, 7):
        one = PGD(ball=replace(BALLS[name], eps=eps[i]), steps=3)
        alone = one(keys[i : i + 1], model, x[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(record.x_adv[i], alone[0], atol=1e-5)


def test_targeted_reaches_the_label_given(tiny, key):
    model, _, x, y = tiny
    target = (y + 1) % 5
    record = Targeted(attack=PGD(ball=Linf(1.0), steps=40)).run(key, model, x, target)
    assert record.success.all()
    np.testing.assert_array_equal(jnp.argmax(model(record.x_adv), axis=1), target)


def test_chosen_targets_are_never_the_label(tiny, key):
    model, _, x, y = tiny
    keys = example_keys(key, 8)
    for choose in (random_target, least_likely_target):
        assert (choose(keys, model(x), y) != y).all()


def test_worst_over_restarts_is_monotone_per_example(tiny, key):
    model, _, x, y = tiny
    attack = PGD(ball=Linf(0.03), step_size=0.02, steps=2)
    before = np.zeros(8, bool)
    for n in range(1, 6):
        success = np.asarray(Restarts(attack=attack, n=n).run(key, model, x, y).success)
        assert (success >= before).all()
        before = success


def test_costs_are_counted(tiny, key):
    model, _, x, y = tiny
    plain = PGD(ball=Linf(0.1), steps=5, best=False)
    record = plain.run(key, model, x, y)
    assert (record.forwards == 6).all() and (record.backwards == 5).all()
    record = Restarts(attack=plain, n=3).run(key, model, x, y)
    assert (record.forwards == 18).all() and (record.backwards == 15).all()


@pytree
class Noisy:
    """A linear model behind input noise, drawn per example."""

    weights: jax.Array
    sigma: float = 0.1
    stochastic = True

    def __call__(self, x, *, key):
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(key)
        return (x + self.sigma * noise).reshape(x.shape[0], -1) @ self.weights


def test_eot_averages_the_gradient_over_draws(tiny, key):
    _, weights, x, y = tiny
    noisy = Noisy(weights=weights, sigma=0.5)
    attack = PGD(ball=L2(0.4), steps=3, best=False)
    plain = attack.run(key, noisy, x, y)
    averaged = EOT(attack=attack, samples=64).run(key, noisy, x, y)
    assert (averaged.forwards == 64 * plain.forwards).all()
    quiet = attack(key, Noisy(weights=weights, sigma=0.0), x, y)
    # With more draws the path approaches the one without noise.
    gap = lambda x_adv: float(jnp.mean(jnp.square(x_adv - quiet)))
    assert gap(averaged.x_adv) < gap(plain.x_adv)
    again = EOT(attack=attack, samples=64)(example_keys(key, 8)[:2], noisy, x[:2], y[:2])
    np.testing.assert_allclose(averaged.x_adv[:2], again, atol=1e-5)


def test_eot_refuses_a_model_without_randomness(tiny, key):
    model, _, x, y = tiny
    with pytest.raises(ValueError, match="not randomised"):
        EOT(attack=FGSM(ball=Linf(0.1)))(key, model, x, y)


def test_a_compiled_step_is_shared_by_every_number_and_count_of_steps(tiny, key):
    model, _, x, y = tiny
    PGD(ball=Linf(0.11), steps=3)(key, model, x, y)
    before = driver._step._cache_size()
    PGD(ball=Linf(np.float32(0.3)), step_size=1, steps=7)(key, model, x, y)
    PGD(ball=Linf(0), step_size=np.float64(0.5), steps=3)(jax.random.key(9), model, x, y)
    assert driver._step._cache_size() == before


def rounding(name):
    """NES and SPSA divide a loss's rounding by twice a sigma of 1e-3."""
    return 5e-5 if name.startswith(("nes", "spsa")) else 1e-6
