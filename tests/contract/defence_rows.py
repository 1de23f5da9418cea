"""A row for every defence of ``test_defences.py``; a new defence is one more."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from linear import linear

from advjax import defences
from advjax.attacks import bpda
from advjax.defences import (
    JPEG,
    BitDepth,
    FeatureSqueezing,
    JumpReLU,
    KernelDensity,
    Mahalanobis,
    MedianFilter,
    NoisyConvolutions,
    PixelDropout,
    Preprocessed,
    RandomSelfEnsemble,
    Smoothed,
    TotalVariation,
    WithDetector,
)
from advjax.models import Classifier, Transformed, create, init
from advjax.pytrees import replace

_RNG = np.random.default_rng(0)
X = jnp.asarray(_RNG.random((4, 6, 4, 1)), jnp.float32)
W = jnp.asarray(_RNG.normal(size=(24, 3)), jnp.float32)
LINEAR = jax.tree_util.Partial(linear, W)
NET = create("lenet5", classes=3, filters=(2, 3), width=4)
VARIABLES = init(NET, jax.random.key(0), X.shape[1:])
CNN = Classifier(NET, VARIABLES)


def pixels(x):
    return x.reshape(x.shape[0], -1)


def score(x):
    """A detector of bright images."""
    return pixels(x).mean(axis=1)


def itself(defence):
    return defence


def identity(defence):
    """The gradient of the identity for its own."""
    return bpda(defence)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the table asks of a defence.

    Attributes:
      kind: the class that the row is for.
      make: the defence of one set of numbers: a model, a detector or a transform of a batch.
      numbers: name to two values of it, whose answers differ.
      spec: ``network -> object`` that is written and read again.
      refused: message to a call that raises it as a ValueError.
      adaptive: the same defence as an attack should see it.
      blocked: what the defence's own gradient is: ``""`` if it leads somewhere, ``"zero"``, or
        ``"refused"``.
      slope: the gradient of the adaptive answer for class 1 where it is known, ``[B, D]``.
      calm: its numbers change nothing of what is asked here.
      on_host: it calls back to the host.
    """

    kind: type
    make: Callable[..., Any]
    numbers: dict[str, Any]
    spec: Callable[[Any], Any] | None = None
    refused: dict[str, Any] = dataclasses.field(default_factory=dict)
    adaptive: Callable[[Any], Any] = itself
    blocked: str = ""
    slope: Any = None
    calm: bool = False
    on_host: bool = False

    def at(self, i):
        return self.make(**{name: np.float32(v[i]) for name, v in self.numbers.items()})


def preprocessed(transform, numbers, **fields):
    """A transform in front of a linear model, whose gradient comes back untouched."""
    slope = jnp.broadcast_to(W[:, 1], (4, 24))
    make = lambda **numbers: Preprocessed(LINEAR, transform(**numbers))
    adaptive = lambda model: model.adaptive()
    return Row(Preprocessed, make, numbers, adaptive=adaptive, slope=slope, **fields)


def squeezing(bits):
    return FeatureSqueezing(LINEAR, (BitDepth(bits), MedianFilter(2)))


ROWS = {
    "BitDepth": Row(
        BitDepth,
        lambda bits: BitDepth(bits),
        {"bits": (1, 2)},
        spec=lambda m: BitDepth(bits=3),
        adaptive=identity,
        blocked="zero",
        refused={
            "BitDepth: given bits=0.0; expected numbers >= 1": lambda: BitDepth(0),
        },
    ),
    "MedianFilter": Row(
        MedianFilter,
        lambda: MedianFilter(3),
        {},
        spec=lambda m: MedianFilter(window=3),
        adaptive=identity,
        refused={
            "MedianFilter: given window=0": lambda: MedianFilter(0),
        },
    ),
    "JPEG": Row(
        JPEG,
        lambda quality: JPEG(quality),
        {"quality": (10, 90)},
        spec=lambda m: JPEG(quality=75),
        adaptive=identity,
        blocked="refused",
        on_host=True,
        refused={
            "JPEG: given quality=0.0; expected 1 to 100": lambda: JPEG(0),
        },
    ),
    "TotalVariation": Row(
        TotalVariation,
        lambda weight: TotalVariation(weight, steps=5),
        {"weight": (0.05, 0.2)},
        spec=lambda m: TotalVariation(weight=0.1),
        refused={
            "TotalVariation: given weight=0.0; expected numbers > 0": lambda: TotalVariation(0),
        },
    ),
    "PixelDropout": Row(
        PixelDropout,
        lambda keep, weight: Transformed(LINEAR, PixelDropout(keep, weight, steps=5)),
        {"keep": (0.9, 0.5), "weight": (0.1, 0.03)},
        spec=lambda m: PixelDropout(keep=0.7),
        refused={
            "PixelDropout: given keep=2.0; expected 0 to 1": lambda: PixelDropout(2),
        },
    ),
    "Preprocessed BitDepth": preprocessed(
        BitDepth,
        {"bits": (1, 2)},
        spec=lambda m: Preprocessed(model=m, transform=JPEG()),
        blocked="zero",
    ),
    "Preprocessed MedianFilter": preprocessed(lambda: MedianFilter(3), {}),
    "Preprocessed JPEG": preprocessed(JPEG, {"quality": (10, 90)}, blocked="refused", on_host=True),
    "JumpReLU": Row(
        JumpReLU,
        lambda kappa: JumpReLU(CNN, kappa),
        {"kappa": (0, 0.2)},
        spec=lambda m: JumpReLU(model=m, kappa=0.1),
        adaptive=lambda model: replace(model, backward="identity"),
        refused={
            "JumpReLU: given kappa=-1.0; expected numbers >= 0": lambda: JumpReLU(CNN, -1.0),
            "JumpReLU: given backward='sign'; expected 'exact', 'relu' or": lambda: JumpReLU(
                CNN, 1.0, backward="sign"
            ),
        },
    ),
    "RandomSelfEnsemble": Row(
        RandomSelfEnsemble,
        lambda first, inner: RandomSelfEnsemble(CNN, sigma_first=first, sigma_inner=inner, n=2),
        {"first": (0.1, 0.3), "inner": (0.1, 0.1)},
        spec=lambda m: RandomSelfEnsemble(model=m, sigma_first=0.2),
        refused={
            "given n=0; expected an integer >= 1": lambda: RandomSelfEnsemble(CNN, n=0),
            "given sigma_inner=-1.0; expected numbers": lambda: RandomSelfEnsemble(
                CNN, sigma_inner=-1
            ),
        },
    ),
    "NoisyConvolutions": Row(
        NoisyConvolutions,
        lambda first: Classifier(
            NoisyConvolutions(NET),
            {**VARIABLES, "hyper": {"sigma_first": first, "sigma_inner": 0.1 * first}},
        ),
        {"first": (0.1, 0.3)},
        spec=lambda m: NoisyConvolutions(network=m.module, sigma_first=0.1),
        calm=True,  # without noise in evaluation
    ),
    "Smoothed": Row(
        Smoothed,
        lambda sigma: Smoothed(LINEAR, sigma),
        {"sigma": (0.1, 0.3)},
        spec=lambda m: Smoothed(model=m, sigma=0.25),
        refused={
            "Smoothed: given sigma=0.0; expected numbers > 0": lambda: Smoothed(LINEAR, 0.0),
            "Smoothed: given batch_size=0; expected an integer >= 1": lambda: Smoothed(
                LINEAR, 0.3, batch_size=0
            ),
        },
    ),
    "FeatureSqueezing": Row(
        FeatureSqueezing,
        squeezing,
        {"bits": (1, 3)},
        spec=lambda m: FeatureSqueezing(model=m, squeezers=(BitDepth(bits=3),)),
        adaptive=lambda detector: detector.adaptive(),
        refused={
            r"FeatureSqueezing: given squeezers=\(\); expected a tuple": lambda: FeatureSqueezing(
                LINEAR, ()
            ),
        },
    ),
    "Mahalanobis": Row(
        Mahalanobis,
        lambda scale: Mahalanobis(LINEAR, means=np.eye(3), whitening=scale * np.eye(3)),
        {"scale": (0.1, 0.2)},
        spec=lambda m: Mahalanobis(features=pixels, means=np.eye(3), whitening=np.eye(3)),
    ),
    "KernelDensity": Row(
        KernelDensity,
        lambda width: KernelDensity(
            LINEAR, LINEAR, points=np.eye(3), labels=jnp.array([0, 2, 1]), bandwidth=width
        ),
        {"width": (0.1, 1.2)},
        spec=lambda m: KernelDensity(
            model=m, features=pixels, points=np.eye(3), labels=jnp.array([0, 2, 1]), bandwidth=0.3
        ),
        refused={
            "KernelDensity: given bandwidth=0.0; expected numbers > 0": lambda: KernelDensity(
                LINEAR, LINEAR, points=np.eye(3), labels=np.arange(3), bandwidth=0
            ),
        },
    ),
    "WithDetector": Row(
        WithDetector,
        lambda threshold, scale: WithDetector(LINEAR, score, threshold, scale=scale),
        {"threshold": (0.2, 0.6), "scale": (1, 2)},
        spec=lambda m: WithDetector(
            model=m,
            detector=FeatureSqueezing(model=pixels, squeezers=(JPEG(),)),
            threshold=0.2,
        ),
        refused={
            "WithDetector: given scale=0.0; expected numbers > 0": lambda: WithDetector(
                LINEAR, score, 0.0, scale=0
            ),
        },
    ),
    "WithDetector squeezing": Row(
        WithDetector,
        lambda bits: WithDetector(LINEAR, squeezing(bits), 0.1),
        {"bits": (1, 3)},
        adaptive=lambda model: replace(model, detector=model.detector.adaptive()),
    ),
}
RESULTS = ("Certificate", "Roc")  # no defences
PUBLIC = {
    cls
    for cls in (getattr(defences, name) for name in defences.__all__ if name not in RESULTS)
    if isinstance(cls, type)
}
