"""Detectors of adversarial images: scores, thresholds, ROC, and the model that an attack bypasses.

A detector is a callable pytree, ``detector(x) -> scores [B]``, larger for what looks adversarial.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import as_model
from advjax.arguments import check_number
from advjax.attacks.bpda import bpda
from advjax.pytrees import Array, ArrayLike, Key, pytree, replace
from advjax.report.charts import Chart, Line


@pytree
class FeatureSqueezing:
    """The largest L1 distance between the predictions for an image and for its squeezed copies (Xu
    et al., NDSS 2018).

    Attributes:
      model: ``model(x) -> logits [B, K]``.
      squeezers: transforms ``x -> x`` on batches; the paper's on MNIST are ``BitDepth(1)`` and
        ``MedianFilter(2)``.
    """

    model: Any = dataclasses.field(kw_only=False)
    squeezers: tuple[Any, ...] = dataclasses.field(kw_only=False)

    def check(self) -> None:
        if not isinstance(self.squeezers, tuple) or not self.squeezers:
            raise ValueError(
                f"FeatureSqueezing: given squeezers={self.squeezers!r}; "
                "expected a tuple of at least one transform"
            )
        object.__setattr__(self, "model", as_model(self.model))
        object.__setattr__(self, "squeezers", tuple(map(as_model, self.squeezers)))

    def __call__(self, x: Array) -> Array:
        """``[B]`` scores, 0 to 2."""
        plain = jax.nn.softmax(self.model(x))
        squeezed = [jax.nn.softmax(self.model(squeeze(x))) for squeeze in self.squeezers]
        distances = [jnp.sum(jnp.abs(plain - other), axis=-1) for other in squeezed]
        return jnp.max(jnp.stack(distances), axis=0)

    def adaptive(self) -> FeatureSqueezing:
        """The same scores, with the gradient of the identity for the squeezers' (BPDA)."""
        return replace(self, squeezers=tuple(map(bpda, self.squeezers)))


@pytree
class Mahalanobis:
    """The squared distance of an image's features to the nearest class of Gaussians with a common
    covariance (Lee et al., NeurIPS 2018, eq. 2; one layer, without their input noise).

    Made by ``Mahalanobis.fit``.

    Attributes:
      features: ``x -> [B, D]``; a model's logits, or any layer of it.
      means: ``[K, D]``, of the classes.
      whitening: ``[D, D]``; what multiplied on the features makes the covariance the identity.
    """

    features: Any = dataclasses.field(kw_only=False)
    means: ArrayLike
    whitening: ArrayLike

    def check(self) -> None:
        object.__setattr__(self, "features", as_model(self.features))

    @classmethod
    def fit(
        cls, features: Any, x: Any, y: Any, *, ridge: float = 1e-6, batch_size: int = 512
    ) -> Mahalanobis:
        """Means and covariance of the features of clean images.

        Args:
          features: ``x -> [B, D]``.
          x: ``[N, ...]`` float images.
          y: ``[N]`` labels 0 to K - 1, each of which occurs.
          ridge: added to the covariance's diagonal, as a share of its mean variance: logits, for
            one, may move in fewer than D dimensions.
          batch_size: how many images at once.

        Raises:
          ValueError: if a class has no image.
        """
        features, y = as_model(features), np.asarray(y)
        classes = _check_classes("Mahalanobis", y)
        found = _in_batches(features, x, batch_size).astype(np.float64)
        means = np.stack([found[y == k].mean(0) for k in range(classes)])
        centred = found - means[y]
        covariance = centred.T @ centred / len(found)
        size = np.trace(covariance) / len(covariance)
        covariance += ridge * size * np.eye(len(covariance))
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
        return cls(features, means=means, whitening=whitening)

    def __call__(self, x: Array) -> Array:
        """``[B]`` scores, >= 0."""
        offsets = (self.features(x)[:, None] - jnp.asarray(self.means)[None]) @ self.whitening
        return jnp.min(jnp.sum(offsets**2, axis=-1), axis=-1)


@pytree
class KernelDensity:
    """Minus the log density of an image's features among those of its class (Feinman et al. 2017,
    arXiv 1703.00410, section 3.1): the class that the model predicts, of whose training images each
    has a Gaussian kernel.

    Made by ``KernelDensity.fit``. A score compares the image to all N training images.

    Attributes:
      model: ``model(x) -> logits [B, K]``, which tells the class.
      features: ``x -> [B, D]``; the paper's are the model's last hidden layer.
      points: ``[N, D]``, of training images.
      labels: ``[N]`` their classes, each of which occurs.
      bandwidth: standard deviation of the kernel, > 0; the paper's are 1.2 on MNIST, .26 on
        CIFAR-10 and 1 on SVHN, each for its network's features.
    """

    model: Any = dataclasses.field(kw_only=False)
    features: Any = dataclasses.field(kw_only=False)
    points: ArrayLike
    labels: ArrayLike
    bandwidth: ArrayLike = 1.2

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        object.__setattr__(self, "features", as_model(self.features))
        check_number("KernelDensity", "bandwidth", self.bandwidth)

    @classmethod
    def fit(
        cls,
        model: Any,
        features: Any,
        x: Any,
        y: Any,
        *,
        bandwidth: ArrayLike = 1.2,
        batch_size: int = 512,
    ) -> KernelDensity:
        """The features of clean training images, by class.

        Args:
          model: ``model(x) -> logits [B, K]``.
          features: ``x -> [B, D]``.
          x: ``[N, ...]`` float images.
          y: ``[N]`` labels 0 to K - 1, each of which occurs.
          bandwidth: see the class.
          batch_size: how many images at once.

        Raises:
          ValueError: if a class has no image.
        """
        model, features, y = as_model(model), as_model(features), np.asarray(y)
        _check_classes("KernelDensity", y, jax.eval_shape(model, x[:1]).shape[-1])
        points = _in_batches(features, x, batch_size)
        return cls(model, features, points=points, labels=y, bandwidth=bandwidth)

    def __call__(self, x: Array) -> Array:
        """``[B]`` scores, in nats."""
        labels = jnp.asarray(self.labels).astype(jnp.int32)
        own = jnp.argmax(self.model(x), axis=-1)[:, None] == labels[None]
        points = jnp.asarray(self.points)
        # What is taken off changes no distance, but their rounding.
        centre = jnp.mean(points, axis=0, keepdims=True)
        found, points = self.features(x) - centre, points - centre
        products = jnp.matmul(found, points.T, precision=jax.lax.Precision.HIGHEST)
        lengths = jnp.sum(found**2, axis=-1)[:, None] + jnp.sum(points**2, axis=-1)[None]
        squares = jnp.maximum(lengths - 2 * products, 0)
        width = jnp.asarray(self.bandwidth)
        kernels = jnp.where(own, -squares / (2 * width**2), -jnp.inf)
        mean = jax.nn.logsumexp(kernels, axis=-1) - jnp.log(jnp.sum(own, axis=-1))
        return points.shape[-1] * (jnp.log(width) + math.log(2 * math.pi) / 2) - mean


def _in_batches(features: Any, x: Any, batch_size: int) -> np.ndarray:
    """``[N, D]`` features of N images, so many at once."""
    run = jax.jit(lambda features, x: features(x))
    starts = range(0, len(x), batch_size)
    parts = [run(features, jnp.asarray(x[i : i + batch_size])) for i in starts]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def _check_classes(name: str, y: np.ndarray, classes: int = 0) -> int:
    """How many classes there are, by the labels or as given; raises where one has no image."""
    counts = np.bincount(y, minlength=classes)
    if not counts.all():
        missing = np.flatnonzero(counts == 0).tolist()
        raise ValueError(f"{name}: given no image of {missing}; expected all classes")
    return len(counts)


@pytree
class WithDetector:
    """A model and its detector as one model with a further class, "detected" (Carlini & Wagner,
    AISec 2017: the combined classifier of their perfect-knowledge attack).

    The further logit is ``max logits + scale (score - threshold)``, the largest of all exactly
    where the detector raises an alarm. (The paper's product, ``(score - threshold + 1) max
    logits``, decides alike where the largest logit is positive; the sum does everywhere.) So
    whatever reaches one of the model's own classes has bypassed the detector: the goal
    ``Undetected()`` of any attack, or a target, ``Targeted(APGD(...), choose=undetected_target)``.
    With the goal ``Misclassify()`` being detected would count as success. Of a squeezing detector
    take the ``adaptive()`` one.

    Attributes:
      model: ``model(x) -> logits [B, K]``.
      detector: ``x -> scores [B]``.
      threshold: of the score; larger is detected.
      scale: > 0, logits per unit of the score: changes gradients, no decision. Small enough that
        the score's differences are no larger than those of the logits, or a gradient step that
        lowers the one overshoots in the other; try several.
    """

    model: Any = dataclasses.field(kw_only=False)
    detector: Any = dataclasses.field(kw_only=False)
    threshold: ArrayLike = dataclasses.field(kw_only=False)
    scale: ArrayLike = 1.0

    def check(self) -> None:
        object.__setattr__(self, "model", as_model(self.model))
        object.__setattr__(self, "detector", as_model(self.detector))
        check_number("WithDetector", "scale", self.scale)

    def __call__(self, x: Array) -> Array:
        """``[B, K + 1]`` logits."""
        logits = self.model(x)
        over = self.scale * (self.detector(x) - self.threshold)
        detected = jnp.max(logits, axis=-1) + over
        return jnp.concatenate([logits, detected[:, None]], axis=-1)


def undetected_target(keys: Key, logits: Array, y: Array) -> Array:
    """``[B]`` the likeliest class that is neither the label nor "detected", for ``Targeted``."""
    del keys
    own = logits[:, :-1]
    return jnp.argmax(jnp.where(jax.nn.one_hot(y, own.shape[-1], dtype=bool), -jnp.inf, own), -1)


def threshold_at(clean: Any, false_positives: float) -> float:
    """The smallest threshold that at most this share of clean scores exceeds.

    Args:
      clean: ``[N]`` scores of clean images, not those that anything was fitted to.
      false_positives: in [0, 1).
    """
    if not 0 <= false_positives < 1:
        raise ValueError(f"given false_positives={false_positives}; expected 0 <= a share < 1")
    scores = np.sort(np.asarray(clean, np.float64))[::-1]
    return float(scores[int(false_positives * len(scores))])


class Roc(NamedTuple):
    """Shares of alarms at every threshold, from none to all.

    Attributes:
      false_positives: of clean images, ascending.
      true_positives: of adversarial ones.
      thresholds: the scores from which on there is an alarm; the first is infinite.
    """

    false_positives: np.ndarray
    true_positives: np.ndarray
    thresholds: np.ndarray

    @property
    def auc(self) -> float:
        """The area under the curve: how often an adversarial image scores above a clean one, ties
        counted half. 0.5 is chance."""
        return float(np.trapezoid(self.true_positives, self.false_positives))

    def chart(self, name: str) -> Chart:
        """The curve as a picture, beside the diagonal of chance."""
        percent = lambda shares: (100 * shares).tolist()
        line = Line(name, percent(self.false_positives), percent(self.true_positives))
        return Chart(
            title=f"{name}: AUC {self.auc:.3f}",
            lines=[line, Line("chance", [0, 100], [0, 100], dashed=True)],
            x_label="clean images detected, %",
            y_label="adversarial images detected, %",
            y_range=(0, 100),
        )


def roc(clean: Any, adversarial: Any) -> Roc:
    """The curve of a detector from its scores ``[N]`` and ``[M]`` of clean and adversarial images.

    Raises:
      ValueError: if there are none of one kind, or scores are NaN.
    """
    kinds = [np.sort(np.asarray(scores, np.float64)) for scores in (clean, adversarial)]
    if not all(len(scores) and not np.isnan(scores).any() for scores in kinds):
        given = " and ".join(str(len(scores)) for scores in kinds)
        raise ValueError(f"roc: given {given} scores; expected at least one of each kind, no NaN")
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate(kinds))[::-1]])
    share = lambda scores: 1 - np.searchsorted(scores, thresholds) / len(scores)
    return Roc(share(kinds[0]), share(kinds[1]), thresholds)
