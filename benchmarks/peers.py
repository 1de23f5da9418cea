"""The attacks of the PyTorch libraries, each as ``(network, images, labels, settings) -> images``.

Images are ``[N, 1, 28, 28]`` tensors in [0, 1]. Libraries are imported where they are used. What a
library calls by another number or another default is brought to the settings of the comparison;
settings win over what is fixed here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

Peer = Callable[[Any, Any, Any, dict[str, Any]], Any]
LIBRARIES = {
    "Foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "adv-lib": "adv-lib",
    "ART": "adversarial-robustness-toolbox",
}


def versions() -> dict[str, str]:
    return {name: version(package) for name, package in {**LIBRARIES, "PyTorch": "torch"}.items()}


def network(tensors: Mapping[str, np.ndarray]) -> Any:
    """AdverTorch's LeNet5 with the published weights, in PyTorch."""
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip
    net.load_state_dict(
        dict(zip(net.state_dict(), map(torch.from_numpy, tensors.values()), strict=True))
    )
    return net.eval().requires_grad_(False)


def _foolbox(name: str, **fixed: Any) -> Peer:
    def attack(net: Any, x: Any, y: Any, settings: dict[str, Any]) -> Any:
        import foolbox

        settings = dict(settings)
        eps = settings.pop("eps", None)
        model = foolbox.PyTorchModel(net, bounds=(0, 1))
        made = getattr(foolbox.attacks, name)(**{**fixed, **settings})
        if eps is not None:
            return made.run(model, x, y, epsilon=eps)
        found, _, _ = made(model, x, y, epsilons=None)
        return found

    return attack


def _torchattacks(name: str, **fixed: Any) -> Peer:
    def attack(net: Any, x: Any, y: Any, settings: dict[str, Any]) -> Any:
        import torchattacks

        return getattr(torchattacks, name)(net, **{**fixed, **settings})(x, y)

    return attack


def _adv_lib(module: str, name: str, **fixed: Any) -> Peer:
    def attack(net: Any, x: Any, y: Any, settings: dict[str, Any]) -> Any:
        # Imported for a distance and for plots that are not used here.
        for unused in ("torchvision", "torchvision.models", "visdom"):
            sys.modules.setdefault(unused, types.ModuleType(unused))
        sys.modules["torchvision"].models = sys.modules["torchvision.models"]  # type: ignore
        sys.modules["visdom"].Visdom = object  # type: ignore
        from importlib import import_module

        function = getattr(import_module(f"adv_lib.attacks.{module}"), name)
        return function(net, x, y, **{**fixed, **settings})

    return attack


def _art(name: str, **fixed: Any) -> Peer:
    def attack(net: Any, x: Any, y: Any, settings: dict[str, Any]) -> Any:
        import torch
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        wrapped = PyTorchClassifier(
            net, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1)
        )
        made = getattr(evasion, name)(wrapped, verbose=False, **{**fixed, **settings})
        return torch.from_numpy(made.generate(x=x.numpy(), y=y.numpy()))

    return attack


def _art_jsma(net: Any, x: Any, y: Any, settings: dict[str, Any]) -> Any:
    """ART takes one-hot targets; torchattacks aims at the next class by itself."""
    import torch

    one_hot = torch.nn.functional.one_hot((y + 1) % 10, 10)
    attack = _art("SaliencyMapMethod", theta=1.0, gamma=0.145, batch_size=64)
    return attack(net, x, one_hot, settings)


def _torchattacks_autoattack(net: Any, x: Any, y: Any, settings: dict[str, Any]) -> Any:
    """Its ``AutoAttack`` runs 10 steps where the reference runs 100: its parts with 100."""
    import torchattacks as ta

    eps = settings["eps"]
    parts = [
        ta.APGD(net, eps=eps, norm="Linf", steps=100),
        ta.APGDT(net, eps=eps, norm="Linf", steps=100),
        ta.FAB(net, eps=eps, norm="Linf", steps=100, multi_targeted=True),
        ta.Square(net, eps=eps, norm="Linf", n_queries=5000, resc_schedule=False),
    ]
    return ta.MultiAttack(parts)(x, y)


inf = float("inf")
# Row of the comparison to peer to how it is called with the row's settings.
PEERS: dict[str, dict[str, Peer]] = {
    "pgd linf": {
        "Foolbox": _foolbox("LinfPGD", abs_stepsize=0.01, steps=40),
        "torchattacks": _torchattacks("PGD", alpha=0.01, steps=40),
        "adv-lib": lambda net, x, y, s: _adv_lib(
            "projected_gradient_descent", "pgd_linf", absolute_step_size=0.01, steps=40
        )(net, x, y, {"ε": s["eps"]}),
        "ART": _art("ProjectedGradientDescent", eps_step=0.01, max_iter=40, num_random_init=1),
    },
    "mim linf": {
        "Foolbox": _foolbox("LinfMomentumIterativeFastGradientMethod", abs_stepsize=0.03, steps=10),
        "torchattacks": _torchattacks("MIFGSM", alpha=0.03, steps=10),
    },
    "ni-fgsm linf": {"torchattacks": _torchattacks("NIFGSM", alpha=0.03, steps=10)},
    "si-ni-fgsm linf": {"torchattacks": _torchattacks("SINIFGSM", alpha=0.03, steps=10)},
    "apgd-ce linf": {
        "torchattacks": _torchattacks("APGD", norm="Linf", steps=100),
        "adv-lib": _adv_lib("auto_pgd", "apgd", norm=inf, n_iter=100, loss_function="ce"),
        "ART": _art("AutoProjectedGradientDescent", norm=inf, nb_random_init=1, max_iter=100),
    },
    "apgd-ce l2": {
        "torchattacks": _torchattacks("APGD", norm="L2", steps=100),
        "adv-lib": _adv_lib("auto_pgd", "apgd", norm=2, n_iter=100, loss_function="ce"),
        "ART": _art("AutoProjectedGradientDescent", norm=2, nb_random_init=1, max_iter=100),
    },
    "apgd-ce l1": {
        "adv-lib": _adv_lib(
            "auto_pgd", "apgd", norm=1, n_iter=100, loss_function="ce", use_large_reps=True
        ),
        "ART": _art("AutoProjectedGradientDescent", norm=1, nb_random_init=1, max_iter=100),
    },
    "apgd-t linf": {
        "torchattacks": _torchattacks("APGDT", norm="Linf", steps=100),
        "adv-lib": _adv_lib("auto_pgd", "apgd_targeted", norm=inf, n_iter=100, num_targets=9),
    },
    # ART's takes three times as long and found the same on 60 images.
    "square linf": {
        "torchattacks": _torchattacks("Square", norm="Linf", n_queries=1000, resc_schedule=False),
    },
    "square linf 200": {
        "torchattacks": _torchattacks("Square", norm="Linf", n_queries=200, resc_schedule=False),
    },
    "square l2": {
        "torchattacks": _torchattacks("Square", norm="L2", n_queries=1000, resc_schedule=False),
    },
    "fab linf": {
        "torchattacks": _torchattacks("FAB", norm="Linf", eps=1.0, steps=20),
        "adv-lib": _adv_lib("fast_adaptive_boundary", "fab", norm=inf, n_iter=20),
    },
    "fab l2": {
        "torchattacks": _torchattacks("FAB", norm="L2", eps=100.0, steps=20),
        "adv-lib": _adv_lib("fast_adaptive_boundary", "fab", norm=2, n_iter=20),
    },
    "fab l1": {
        "torchattacks": _torchattacks("FAB", norm="L1", eps=1000.0, steps=20),
        "adv-lib": _adv_lib("fast_adaptive_boundary", "fab", norm=1, n_iter=20),
    },
    "deepfool l2": {
        "Foolbox": _foolbox("L2DeepFoolAttack", steps=50),
        "torchattacks": _torchattacks("DeepFool", steps=50),
        "adv-lib": _adv_lib("deepfool", "df", norm=2, steps=50),
        "ART": _art("DeepFool", max_iter=50, epsilon=0.02, batch_size=100),
    },
    "deepfool linf": {
        "Foolbox": _foolbox("LinfDeepFoolAttack", steps=50),
        "adv-lib": _adv_lib("deepfool", "df", norm=inf, steps=50),
    },
    "cw l2": {
        "Foolbox": _foolbox("L2CarliniWagnerAttack", steps=1000),
        "adv-lib": _adv_lib("carlini_wagner.l2", "carlini_wagner_l2", max_iterations=1000),
    },
    "cw l2 short": {
        "Foolbox": _foolbox(
            "L2CarliniWagnerAttack", binary_search_steps=5, steps=100, stepsize=0.1
        ),
        "adv-lib": _adv_lib(
            "carlini_wagner.l2",
            "carlini_wagner_l2",
            binary_search_steps=5,
            max_iterations=100,
            learning_rate=0.1,
        ),
    },
    "cw l2 one search": {
        "Foolbox": _foolbox(
            "L2CarliniWagnerAttack", binary_search_steps=1, steps=100, abort_early=False
        ),
        "adv-lib": _adv_lib(
            "carlini_wagner.l2",
            "carlini_wagner_l2",
            binary_search_steps=1,
            max_iterations=100,
            abort_early=False,
        ),
    },
    "cw linf": {
        "adv-lib": _adv_lib(
            "carlini_wagner.linf", "carlini_wagner_linf", max_iterations=20, learning_rate=0.05
        ),
    },
    "ead l1": {
        "Foolbox": _foolbox(
            "EADAttack",
            binary_search_steps=5,
            steps=50,
            regularization=1e-3,
            decision_rule="L1",
        ),
    },
    "ddn l2": {
        "Foolbox": _foolbox("DDNAttack", steps=100),
        "adv-lib": _adv_lib("decoupled_direction_norm", "ddn", steps=100),
    },
    "fmn linf": {
        "Foolbox": _foolbox("LInfFMNAttack", steps=100),
        "adv-lib": _adv_lib("fast_minimum_norm", "fmn", norm=inf, steps=100),
    },
    "fmn l2": {
        "Foolbox": _foolbox("L2FMNAttack", steps=100),
        "adv-lib": _adv_lib("fast_minimum_norm", "fmn", norm=2, steps=100),
    },
    "fmn l1": {
        "Foolbox": _foolbox("L1FMNAttack", steps=100),
        "adv-lib": _adv_lib("fast_minimum_norm", "fmn", norm=1, steps=100),
    },
    "fmn l0": {
        "Foolbox": _foolbox("L0FMNAttack", steps=100),
        "adv-lib": _adv_lib("fast_minimum_norm", "fmn", norm=0, steps=100),
    },
    "sigma-zero l0": {"adv-lib": _adv_lib("sigma_zero", "sigma_zero", num_steps=100)},
    "hopskipjump l2": {"Foolbox": _foolbox("HopSkipJumpAttack", steps=5)},
    # torchattacks' takes 6 s an image; on 100 images it reached all of them with a median of 36.
    "jsma l0": {"ART": _art_jsma},
    "autoattack linf": {"torchattacks": _torchattacks_autoattack},
}
