"""``advjax predict IMAGE... --run RUN``: the classes of images, by a checkpoint loaded afresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from advjax.cli.console import Console
from advjax.cli.options import Images
from advjax.cli.parsing import parse
from advjax.report.text import ruled

if TYPE_CHECKING:
    import numpy as np

PROG = "advjax predict"
DESCRIPTION = """Tells the class and the probabilities of images.

The checkpoint is loaded from the run folder. Images of another size are resized to the network's
input, colour is turned to grey where it takes grey. With --json the logits come with every digit:
equal bit for bit to those of the training process.

examples:
  advjax predict digit.png --run runs/demo/robust
  advjax predict *.png --run runs/mnist_fast --checkpoint last --json"""

BATCH = 256  # what the evaluations of a run use


@dataclasses.dataclass(frozen=True)
class Options(Images):
    top: int = 3
    """How many classes to show."""
    batch_size: int = BATCH
    """Images at a time, padded. Another number changes the last bits of the logits."""


def main(args: Sequence[str]) -> None:
    options = parse(Options, args, prog=PROG, description=DESCRIPTION)
    run = options.load(PROG)
    import numpy as np

    from advjax.report.images import load_image

    console = Console(options.json)
    x = np.stack([load_image(path, run.input_shape) for path in options.images])
    logits = logits_of(run.model, x, options.batch_size)
    shares = softmax(logits)
    found, rows = [], []
    for path, logit, share in zip(options.images, logits, shares, strict=True):
        order = np.argsort(-share, kind="stable")
        best = int(order[0])
        found.append(
            {
                "image": str(path),
                "class": best,
                "name": run.classes[best],
                "probabilities": share.tolist(),
                "logits": logit.tolist(),
            }
        )
        shown = [f"{run.class_name(int(k))} {100 * share[k]:.2f} %" for k in order[: options.top]]
        rows.append([str(path), *shown])
    width = max(len(row) for row in rows)
    console.say(ruled(["image", "class", *[""] * (width - 2)], rows))
    console.result({"run": str(run.folder), "checkpoint": options.checkpoint, "images": found})


def logits_of(model: Any, x: np.ndarray, batch_size: int = BATCH) -> np.ndarray:
    """Logits ``[N, K]`` of images ``[N, H, W, C]`` in [0, 1], in padded batches of one size.

    On a CPU the row of an image depends on the size of its batch in the last bits (another kernel
    is chosen), but neither on its place nor on the other images. One size makes it reproducible.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from advjax.data import batches

    if batch_size < 1:
        raise ValueError(f"given batch_size={batch_size}; expected at least 1")
    apply = jax.jit(lambda model, x: model(x))
    out = []
    for ids, mask in batches(len(x), batch_size):
        out.append(np.asarray(apply(model, jnp.asarray(x[ids])), np.float32)[mask])
    return np.concatenate(out)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities ``[N, K]``."""
    import numpy as np

    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
