"""A row for every objective of ``test_objectives.py``; a new objective is one more."""

import jax
import jax.numpy as jnp
import numpy as np
from linear import linear as model_of
from objective_row import (
    EDGES,
    Row,
    U,
    W,
    a_share_more,
    boosted,
    double_the_divergence,
    evenly,
    every_task,
    features_evenly,
    heads,
    perceptron,
)

from advjax.attacks import FGSM, PGD, Square
from advjax.balls import L1, Linf
from advjax.goals import Target
from advjax.models import Classifier, create
from advjax.training import schedule
from advjax.training.objectives import (
    AWP,
    DANN,
    IBP,
    MART,
    TRADES,
    VAT,
    AdversarialRegularization,
    EnsembleAdversarial,
    FreeAT,
    GradAlign,
    GradientPenalty,
    GraphRegularization,
    LogitSqueezing,
    Madry,
    MultiTask,
    Standard,
)

GROW = schedule("linear", 0.0, 1.0, 100)  # has an import path, so it can be written as a spec


def pgd(eps=0.1, step=0.03, **fields):
    return PGD(ball=Linf(eps=eps), step_size=step, steps=3, **fields)


def fgsm(eps=0.1):
    return FGSM(ball=Linf(eps=eps), best=False)


class Stateful:
    """An objective that carries a state from step to step."""

    def __call__(self, key, apply, params, stats, batch):
        raise NotImplementedError

    def start(self, shape):
        return {}


def carrier():
    return GradientPenalty(Stateful())


def other_network():
    """A model whose weights a spec leaves out."""
    return Classifier(create("mlp", hidden=(2,)), {"params": {"w": jnp.arange(3.0)}})


def _searched(objective, beta):
    """TRADES and MART: both crafted by PGD from noise, weighed by beta."""
    name = objective.__name__
    return {
        "numbers": {"eps": (0, 0.05, 0.1), "beta": (0, 1, beta), "sigma": (1e-3,) * 3},
        "scheduled": lambda grow, f: objective(pgd(0.1 * f, 0.03 * f), beta=2.0, eps_schedule=grow),
        "spec": lambda: objective(pgd(), beta=1 / 3, eps_schedule=GROW),
        "refused": {
            f"{name}: given beta=-1": lambda: objective(pgd(), beta=-1),
            f"{name}: given sigma=-1": lambda: objective(pgd(), sigma=-1),
        },
        "wrong_type": {
            f"{name}: given attack=Square": lambda: objective(Square(ball=Linf(0.1))),
            "an untargeted PGD": lambda: objective(fgsm_at_a_target()),
        },
    }


def fgsm_at_a_target():
    return FGSM(ball=Linf(eps=0.1), goal=Target())


ROWS = {
    "Standard": Row(
        make=lambda smoothing: Standard(label_smoothing=smoothing),
        numbers={"smoothing": (0, 0.1, 0.2)},
        then=evenly,
        spec=lambda: Standard(label_smoothing=0.1),
        refused={
            "label_smoothing: given 1.5; expected numbers from 0 to 1": lambda: Standard(
                label_smoothing=1.5
            ),
        },
    ),
    "Madry": Row(
        make=lambda eps, smoothing: Madry(fgsm(eps), label_smoothing=smoothing),
        numbers={"eps": (0, 0.05, 0.1), "smoothing": (0, 0, 0)},
        spec=lambda: Madry(pgd(), eps_schedule=GROW),
        scheduled=lambda grow, f: Madry(pgd(0.1 * f, 0.03 * f), eps_schedule=grow),
        refused={
            "label_smoothing: given -1.0; expected numbers from 0 to 1": lambda: Madry(
                fgsm(), label_smoothing=-1
            ),
        },
    ),
    "Madry mixed": Row(
        make=lambda eps, weight: Madry(pgd(eps), clean_weight=weight),
        numbers={"eps": (0, 0.1, 0.1), "weight": (0.5, 0.5, 0)},
        refused={
            "clean_weight: given -0.5; expected numbers from 0 to 1": lambda: Madry(
                fgsm(), clean_weight=-0.5
            ),
        },
    ),
    "TRADES": Row(
        make=lambda eps, beta, sigma: TRADES(pgd(eps, 0.3 * eps), beta=beta, sigma=sigma),
        **_searched(TRADES, 6),
    ),
    "TRADES paired": Row(
        make=lambda eps, beta: TRADES(pgd(eps, 0.3 * eps), beta=beta, paired=True),
        numbers={"eps": (0, 0.05, 0.1), "beta": (0, 1, 6)},
    ),
    "MART": Row(
        make=lambda eps, beta, sigma: MART(pgd(eps, 0.3 * eps), beta=beta, sigma=sigma),
        known=boosted,
        **_searched(MART, 5),
    ),
    "FreeAT": Row(
        make=lambda eps, smoothing: FreeAT(Linf(eps), label_smoothing=smoothing),
        numbers={"eps": (0, 0.05, 0.1), "smoothing": (0, 0, 0)},
        spec=lambda: FreeAT(ball=Linf(0.1), replays=4),
        refused={
            "FreeAT: given replays=0; expected a whole number": lambda: FreeAT(
                Linf(0.1), replays=0
            ),
            "FreeAT: given .*a finite eps": lambda: FreeAT(Linf()),
            "label_smoothing: given 2.0; expected numbers from 0 to 1": lambda: FreeAT(
                Linf(0.1), label_smoothing=2
            ),
        },
    ),
    "AWP": Row(
        make=lambda gamma: AWP(Standard(), gamma=gamma),
        numbers={"gamma": (0, 0.01, 0.05)},
        coupled="the weights move along the gradient of the whole batch",
        spec=lambda: AWP(Madry(pgd()), gamma=0.01),
        scheduled=lambda grow, f: AWP(Madry(pgd(0.1 * f, 0.03 * f), eps_schedule=grow)),
        refused={
            "AWP: given gamma=-1.0; expected finite numbers": lambda: AWP(Standard(), gamma=-1.0),
            "AWP: given warmup=inf": lambda: AWP(Standard(), warmup=np.inf),
        },
        wrong_type={
            "AWP: given FreeAT; expected an objective that carries": lambda: AWP(FreeAT(Linf(0.1))),
        },
    ),
    "GradAlign": Row(
        make=lambda eps, weight: GradAlign(Madry(FGSM(ball=Linf(eps=eps))), weight=weight),
        numbers={"eps": (0, 0.1, 0.5), "weight": (0, 0.1, 0.5)},
        spec=lambda: GradAlign(Madry(pgd()), weight=0.2),
        scheduled=lambda grow, f: GradAlign(Madry(pgd(0.1 * f, 0.03 * f), eps_schedule=grow)),
        refused={
            "GradAlign: given weight=-1": lambda: GradAlign(Madry(fgsm()), weight=-1),
        },
        wrong_type={
            "GradAlign: given Standard; expected an objective with an attack": lambda: GradAlign(
                Standard()
            ),
        },
    ),
    "GradientPenalty": Row(
        make=lambda weight: GradientPenalty(weight=weight),
        numbers={"weight": (0, 1, 2)},
        then=evenly,
        spec=lambda: GradientPenalty(weight=0.2),
        scheduled=lambda grow, f: GradientPenalty(Madry(pgd(0.1 * f, 0.03 * f), eps_schedule=grow)),
        refused={
            "GradientPenalty: given weight=-1": lambda: GradientPenalty(weight=-1),
        },
        wrong_type={
            "GradientPenalty: given Stateful; expected an objective that carries no state": carrier,
        },
    ),
    "LogitSqueezing": Row(
        make=lambda weight, sigma: LogitSqueezing(weight=weight, sigma=sigma),
        numbers={"weight": (0, 1, 2), "sigma": (0, 0, 0)},
        then=evenly,
        spec=lambda: LogitSqueezing(weight=0.2),
        refused={
            "LogitSqueezing: given sigma=-1": lambda: LogitSqueezing(sigma=-1),
            "LogitSqueezing: given weight=-1": lambda: LogitSqueezing(weight=-1),
        },
    ),
    "LogitSqueezing noisy": Row(
        make=lambda weight: LogitSqueezing(weight=weight, sigma=weight),
        numbers={"weight": (0, 0.5, 1)},
    ),
    "EnsembleAdversarial": Row(
        make=lambda eps, weight, smoothing: EnsembleAdversarial(
            FGSM(ball=Linf(eps=eps), step_size=eps),
            models=(jax.tree_util.Partial(model_of, W),),
            clean_weight=weight,
            label_smoothing=smoothing,
        ),
        numbers={"eps": (0, 0.05, 0.1), "weight": (0.5, 0.5, 0), "smoothing": (0, 0, 0)},
        order=(0, 5, 3, 1, 4, 2),
        coupled="the first example's key draws the model that the whole batch is attacked on",
        spec=lambda: EnsembleAdversarial(attack=pgd(), models=(other_network(),)),
        refused={
            "EnsembleAdversarial: given no models": lambda: EnsembleAdversarial(fgsm()),
            "clean_weight: given 2.0; expected numbers from 0 to 1": lambda: EnsembleAdversarial(
                fgsm(), clean_weight=2
            ),
        },
    ),
    "VAT": Row(
        make=lambda eps, weight, xi: VAT(eps=eps, weight=weight, xi=xi),
        numbers={"eps": (0, 0.5, 0.5), "weight": (1, 1, 2), "xi": (1e-2,) * 3},
        then=double_the_divergence,
        spec=lambda: VAT(eps=2.0),
        refused={
            "VAT: given eps=-1": lambda: VAT(eps=-1.0),
            "VAT: given xi=0": lambda: VAT(xi=0.0),
            "VAT: given iterations=1.5": lambda: VAT(iterations=1.5),
            "VAT: given statistics='both'; expected 'labelled' or 'unlabelled'": lambda: VAT(
                statistics="both"
            ),
        },
    ),
    "VAT and entropy": Row(
        make=lambda weight, entropy: VAT(eps=0.5, weight=weight, entropy=entropy),
        numbers={"weight": (0, 1, 2), "entropy": (0, 0.3, 1)},
        batch={"unlabelled": U},
        refused={
            "VAT: given entropy=-1": lambda: VAT(entropy=-1.0),
        },
    ),
    "AdversarialRegularization": Row(
        make=lambda multiplier, step: AdversarialRegularization(multiplier=multiplier, step=step),
        numbers={"multiplier": (0, 0.2, 0.2), "step": (0.1, 0, 0.1)},
        then=a_share_more,
        spec=lambda: AdversarialRegularization(step=0.1),
        refused={
            "AdversarialRegularization: given norm='linf'; expected 'l2', 'infinity' or": lambda: (
                AdversarialRegularization(norm="linf")
            ),
            "AdversarialRegularization: given iterations=0": lambda: AdversarialRegularization(
                iterations=0
            ),
            "AdversarialRegularization: given step=-1": lambda: AdversarialRegularization(
                step=-1.0
            ),
        },
    ),
    "AdversarialRegularization infinity": Row(
        make=lambda multiplier, step: AdversarialRegularization(
            multiplier=multiplier, step=step, norm="infinity", random_start=True
        ),
        numbers={"multiplier": (0, 0.4, 0.8), "step": (0, 0.05, 0.05)},
    ),
    "GraphRegularization": Row(
        make=lambda multiplier: GraphRegularization(multiplier=multiplier),
        numbers={"multiplier": (0, 1, 2)},
        then=evenly,
        batch=EDGES,
        coupled="the distances are divided by the edges of the batch",
        spec=lambda: GraphRegularization(multiplier=0.1),
        refused={
            "given distance='l3'; expected one of l1, l2, cosine": lambda: GraphRegularization(
                distance="l3"
            ),
            "given kl alone; expected sum_over_axis=-1": lambda: GraphRegularization(distance="kl"),
            "given jsd of logits; expected transform='softmax'": lambda: GraphRegularization(
                distance="jsd", sum_over_axis=-1
            ),
            "given sum_over_axis=0; expected None or -1": lambda: GraphRegularization(
                sum_over_axis=0
            ),
        },
    ),
    "DANN": Row(
        make=lambda factor, weight: DANN(factor=factor, weight=weight),
        numbers={"factor": (0, 1, 2), "weight": (1, 1, 1)},
        known=None,  # the domain's loss is always there
        then=features_evenly,
        network=heads,
        batch={"unlabelled": U},
        spec=lambda: DANN(factor=0.5),
        refused={
            "DANN: given factor=-1": lambda: DANN(factor=-1),
            "DANN: given total_steps=0": lambda: DANN(total_steps=0),
        },
    ),
    "MultiTask": Row(
        make=lambda weight: MultiTask(weight=weight, tables={"parity": (0, 1, 0, 1)}),
        numbers={"weight": (0, 1, 2)},
        then=every_task,
        fewest=4,  # a table has an entry for every class
        network=heads,
        spec=lambda: MultiTask(tables={"parity": (0, 1, 0, 1)}),
        refused={
            "MultiTask: given tables={}": lambda: MultiTask(tables={}),
        },
    ),
    "IBP": Row(
        make=lambda eps, kappa: IBP(Linf(eps), kappa=kappa),
        numbers={"eps": (0, 0.1, 0.2), "kappa": (1, 0.5, 0.1)},
        network=perceptron,
        spec=lambda: IBP(
            ball=Linf(0.1), eps_schedule=GROW, kappa_schedule=schedule("constant", 0.5)
        ),
        scheduled=lambda grow, f: IBP(Linf(0.1 * f), eps_schedule=grow),
        refused={
            "kappa: given 2.0; expected numbers from 0 to 1": lambda: IBP(Linf(0.1), kappa=2),
        },
        wrong_type={
            "IBP: given ball=L1.*; expected Linf": lambda: IBP(L1(0.1)),
        },
    ),
}
