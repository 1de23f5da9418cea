"""Models that are no JAX: any function of NumPy arrays, scikit-learn's classifiers among them."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from advjax.pytrees import Array, pytree, static

HostFunction = Callable[[np.ndarray], np.ndarray]

_METHODS = ("decision_function", "predict_proba", "predict")
# Several cores and batches in flight ask at once; few libraries like that, and none gains by it.
_one_at_a_time = threading.RLock()
_LEAST = float(np.log(np.finfo(np.float32).tiny))  # the logarithm of a probability of zero


@pytree
class External:
    """A function that runs on the host as a model, for everything that asks for no gradient.

    It can be evaluated, be attacked through its scores or labels, and be the target of images
    crafted on another model. Differentiating it raises a TypeError: it has no gradient, and zeros
    would look like a defence.

    Each call leaves the device and comes back. Data on several devices would have to meet on one
    for that, which blocks virtual CPU devices for good: keep to one,
    ``evaluate(..., devices=jax.devices()[:1])``; ``runs_on_host`` tells such models.

    Attributes:
      function: ``[B, ...]`` float32 to scores ``[B, classes]``; the class with the highest score is
        the answer. It must not call JAX, must answer equal images equally, and each image as if it
        were alone. Structure: another function is another compilation.
      classes: how many scores it returns.
    """

    function: HostFunction = static(kw_only=False)
    classes: int = static(kw_only=False)
    on_host = True

    def check(self) -> None:
        if not callable(self.function):
            given = type(self.function).__name__
            raise TypeError(f"External: given {given}; expected a function of NumPy arrays")
        if not isinstance(self.classes, int) or self.classes < 2:
            raise ValueError(f"External: given classes={self.classes!r}; expected an integer >= 2")

    def __call__(self, x: Array) -> Array:
        return _call(self.function, self.classes, x)

    def scores(self, x: Any) -> np.ndarray:
        """The scores ``[B, classes]`` float32 of images on the host, without JAX.

        Raises:
          ValueError: if the function returns another shape.
        """
        x = np.ascontiguousarray(x, np.float32)
        with _one_at_a_time:
            out = np.asarray(self.function(x))
        if out.shape != (len(x), self.classes):
            raise ValueError(
                f"External: the function returned shape {out.shape} for {len(x)} images; "
                f"expected {(len(x), self.classes)}"
            )
        return out.astype(np.float32)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _call(function: HostFunction, classes: int, x: Array) -> Array:
    example = x.shape[1:]

    def host(x: Any) -> np.ndarray:
        x = np.asarray(x)  # under vmap with the mapped axes in front, as one batch
        mapped = x.shape[: x.ndim - len(example)]
        batch = x.reshape((math.prod(mapped), *example))
        return External(function, classes).scores(batch).reshape((*mapped, classes))

    out = jax.ShapeDtypeStruct((x.shape[0], classes), np.float32)
    return jax.pure_callback(host, out, x, vmap_method="broadcast_all")


@_call.defjvp
def _no_gradient(function: HostFunction, classes: int, primals: Any, tangents: Any) -> Any:
    del function, classes, primals, tangents
    raise TypeError(
        "External: given to something that differentiates it, but a function on the host has no "
        "gradient; expected attacks on scores or labels, or Transferred from another model"
    )


@dataclasses.dataclass(frozen=True)
class _Estimator:
    """A scikit-learn classifier as a function to scores; equal for the same estimator."""

    estimator: Any
    method: str
    classes: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        found = np.asarray(getattr(self.estimator, self.method)(x.reshape(len(x), -1)))
        known = np.asarray(self.estimator.classes_)
        if self.method == "predict":
            return (found[:, None] == np.arange(self.classes)).astype(np.float32)
        if self.method == "predict_proba":
            floor, found = _LEAST, np.log(np.maximum(found, np.exp(_LEAST)))
        else:
            found = np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found
            floor = float(found.min()) - 1
        if found.shape[1] != len(known):
            raise ValueError(
                f"from_sklearn: {self.method} returned {found.shape[1]} columns for {len(known)} "
                "classes; expected one score per class (decision_function_shape='ovr')"
            )
        if len(known) == self.classes:
            return found
        out = np.full((len(x), self.classes), floor)  # classes that it has never seen
        out[:, known] = found
        return out


def from_sklearn(
    estimator: Any, *, method: str | None = None, classes: int | None = None
) -> External:
    """A fitted scikit-learn classifier (or pipeline) as a model of images in [0, 1].

    Images are flattened to float32 rows, as ``estimator.fit(x.reshape(len(x), -1), y)`` saw them.
    Fit it to ``advjax.data.to_float`` of bytes: a tree may split exactly at a byte, where a
    division by 255, rounded differently, falls on the other side.

    Args:
      estimator: fitted; its classes are numbers 0, 1, ...
      method: where the logits come from: ``"decision_function"`` as it is (for two classes half of
        it, with either sign), the logarithm of ``"predict_proba"``, or ``"predict"`` as 0 and 1.
        The first of them that the estimator has by default. ``SVC`` breaks the ties of its votes
        differently in ``predict`` and ``decision_function`` unless ``break_ties=True``.
      classes: the number of classes, where the estimator may not have seen all of them.

    Raises:
      TypeError: if it is no classifier, lacks the method, or was fitted to other labels.
      ValueError: if it is not fitted, or the method or the number of classes is wrong.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "predict"):
        raise TypeError(f"from_sklearn: given {name}; expected a fitted classifier")
    if method is not None and method not in _METHODS:
        raise ValueError(f"from_sklearn: given method={method!r}; expected one of {_METHODS}")
    if not hasattr(estimator, "classes_"):
        raise ValueError(f"from_sklearn: given {name} without classes_; expected a fitted one")
    if method is None:
        method = next(m for m in _METHODS if hasattr(estimator, m))
    if not hasattr(estimator, method):
        raise TypeError(f"from_sklearn: {name} has no {method}; leave method out for what it has")
    known = np.asarray(estimator.classes_)
    if known.ndim != 1 or known.dtype.kind not in "iu" or known.min() < 0:
        raise TypeError(
            f"from_sklearn: {name} was fitted to {known.dtype} labels; expected numbers 0, 1, ..."
        )
    highest = int(known.max()) + 1
    classes = highest if classes is None else classes
    if classes < highest:
        raise ValueError(
            f"from_sklearn: given classes={classes}; expected at least {highest}, one more "
            "than the highest label"
        )
    return External(_Estimator(estimator, method, classes), classes)
