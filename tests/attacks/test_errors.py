"""Bad input ends in one line: what was given and what is expected, before any compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advjax import (
    EOT,
    FGSM,
    L0,
    L2,
    PGD,
    Linf,
    Restarts,
    Target,
    WorstOf,
    auto_loop,
    device_loop,
    dlr,
)

ATTACK = FGSM(ball=Linf(0.1))


def attack_with(tiny, attack=ATTACK, **changed):
    model, _, x, y = tiny
    arguments = {"model": model, "x": x, "y": y} | changed
    return attack(jax.random.key(0), *arguments.values())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": np.full((8, 4, 3, 2), 2.0, np.float32)}, ValueError, r"given values from 2 to 2"),
        ({"x": np.full((8, 4, 3, 2), np.nan, np.float32)}, ValueError, r"given values from nan"),
        ({"x": np.zeros((8, 4, 3, 2), np.uint8)}, TypeError, r"given uint8.*divide by 255"),
        ({"x": np.zeros((8, 4, 3, 2), int)}, TypeError, r"given int64; expected floats"),
        ({"x": np.float32(0.5)}, ValueError, r"given shape \(\)"),
        ({"x": np.zeros((0, 4, 3, 2), np.float32)}, ValueError, r"B >= 1"),
        ({"y": np.full(8, 5)}, ValueError, r"given 5 to 5; expected 0 to 4"),
        ({"y": np.full(8, -1)}, ValueError, r"given -1 to -1; expected 0 to 4"),
        ({"y": np.zeros(8, np.float32)}, TypeError, r"given float32; expected integers"),
        ({"y": np.zeros(5, int)}, ValueError, r"given shape \(5,\); expected \[8\]"),
        ({"y": np.zeros((8, 5), int)}, ValueError, r"given shape \(8, 5\)"),
        ({"model": 3}, TypeError, r"given int"),
        ({"model": lambda x: x}, ValueError, r"logits \[B, K\] with K >= 2"),
        ({"model": lambda x: (x, x)}, TypeError, r"returned tuple"),
        ({"attack": FGSM(ball=Linf([0.1, 0.2]))}, ValueError, r"eps: given shape \(2,\); .*\[8\]"),
        (
            {"attack": Restarts(attack=PGD(ball=L2(1.0), step_size=np.ones(3, np.float32)))},
            ValueError,
            r"step_size: given shape \(3,\)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny, changed, error, message):
    with pytest.raises(error, match=message) as caught:
        attack_with(tiny, **changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linf(-0.1), "given eps=-0.1"),
        (lambda: Linf(float("nan")), "given eps=nan"),
        (lambda: PGD(ball=Linf(0.1), steps=-1), "given steps=-1; expected an integer >= 0"),
        (lambda: PGD(ball=Linf(0.1), steps=2.5), "given steps=2.5"),
        (lambda: PGD(ball=Linf(0.1), step_size=-1), "given step_size=-1"),
        (
            lambda: PGD(ball=Linf(0.1), loss=dlr).with_goal(Target()),
            "given loss=dlr and goal=Target",
        ),
        (lambda: PGD(ball=0.1), "given ball=.*; expected a ball"),
        (lambda: PGD(ball=L2()), "given L2\\(eps=inf.*; expected a finite eps"),
        (lambda: Restarts(attack=ATTACK, n=0), "given n=0"),
        (lambda: WorstOf(attacks=()), "a tuple of attacks"),
        (lambda: EOT(attack=ATTACK, samples=0), "given samples=0"),
    ],
)
def test_bad_budgets_are_refused_when_they_are_made(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_the_default_step_in_l0_is_a_way_through_the_box():
    """An eps that counts features says nothing about how far one goes."""
    assert PGD(ball=L0(7, lower=-1.0, upper=3.0), steps=20).step_size == 0.5
    assert PGD(ball=Linf(0.4), steps=10).step_size == pytest.approx(0.1)


def softmax_model(weights, x):
    return jax.nn.softmax(x.reshape(x.shape[0], -1) @ weights)


@pytest.mark.parametrize("loop", [auto_loop, device_loop])
def test_probabilities_passed_as_logits_are_noticed(tiny, loop):
    _, weights, x, y = tiny
    # Another function: the warning comes once per structure of model.
    name = f"model_{loop.__name__}"
    function = type(softmax_model)(softmax_model.__code__, softmax_model.__globals__, name)
    model = jax.tree_util.Partial(function, weights)
    with pytest.warns(UserWarning, match="probabilities, not logits: all 8 rows"):
        FGSM(ball=Linf(0.1))(jax.random.key(0), model, x, y, loop=loop)


def test_images_a_few_ulp_outside_the_box_are_taken(tiny):
    _, _, x, _ = tiny
    assert np.isfinite(attack_with(tiny, x=x.at[0].set(-3e-8))).all()


def test_images_in_half_precision_or_float64_are_taken(tiny):
    _, _, x, _ = tiny
    for dtype in (jnp.bfloat16, jnp.float16):
        assert attack_with(tiny, x=x.astype(dtype)).dtype == jnp.float32
    assert attack_with(tiny, x=np.asarray(x, np.float64)).dtype == jnp.float32
