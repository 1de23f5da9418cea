"""A tiny autoencoder of the digits as a program; as a command: RUN_DIR SECONDS, slow to be killed.

It shares nothing with the training of classifiers: a state of its own, batches of its own.
"""

import dataclasses
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax

from advjax.data import batch_indices, load, to_float
from advjax.runs import Patience, Program, train


@partial(jax.jit, static_argnums=0)
def update(optimizer, state, x):
    def loss(params):
        return jnp.mean((jnp.tanh(x @ params["encode"]) @ params["decode"] - x) ** 2)

    value, grads = jax.value_and_grad(loss)(state["params"])
    with jax.numpy_dtype_promotion("standard"):  # optax mixes counts and floats
        updates, slots = optimizer.update(grads, state["slots"])
    return {"params": optax.apply_updates(state["params"], updates), "slots": slots}, {
        "loss": value
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder(Program):
    optimizer: optax.GradientTransformation = optax.adam(1e-2)
    width: int = 8
    total_steps: int = 100
    patience: int | None = None
    checkpoint_every_s: float = 0.1
    log_every = 7

    def describe(self):
        return {"width": self.width, "steps": self.total_steps, "patience": self.patience}

    def init(self):
        a, b = jax.random.split(jax.random.key(1))
        shape = (64, self.width)
        params = {
            "encode": 0.1 * jax.random.normal(a, shape),
            "decode": 0.1 * jax.random.normal(b, shape[::-1]),
        }
        return {"params": params, "slots": self.optimizer.init(params)}

    def batch(self, step):
        x = load("digits").x
        return to_float(x[batch_indices(jax.random.key(0), step, len(x), 64)]).reshape(64, -1)

    def step(self, state, batch):
        return update(self.optimizer, state, batch)

    def model(self, state):
        return state["params"]

    def evaluates_at(self, step):
        return step % 10 == 0 or step == self.total_steps

    def evaluate(self, params, interrupt):
        x = to_float(load("digits", "test").x).reshape(-1, 64)
        loss = jnp.mean((jnp.tanh(x @ params["encode"]) @ params["decode"] - x) ** 2)
        return {"loss": float(loss)}

    def watchers(self):
        return () if self.patience is None else (Patience(self.patience),)


def run(run_dir=None, seconds=0.0, **fields):
    pause = lambda event: event.kind == "step" and time.sleep(seconds)
    return train(Autoencoder(**fields), run_dir, progress=pause)


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]))
