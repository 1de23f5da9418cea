import subprocess
import sys

import pytest

import advjax
from advjax.attacks import registry

NAMES = """
ABSTAIN APGD AWP Accuracy AdversarialRegularization Apply Attack Augment AutoAttack Aux BIM Ball
BitDepth Boundary CarliniWagner CarliniWagnerL0 CarliniWagnerLinf Certificate Classifier Curve
DANN DDN DIFGSM Dataset DeepFool EAD EOT EnsembleAdversarial Evaluation External FAB FGSM FMN
Goal Misclassify Target Undetected per_example
FeatureSqueezing Flow FreeAT GradAlign GradientPenalty GraphRegularization Heads HopSkipJump IBP
JPEG JSMA JumpReLU KernelDensity L0 L1 L2 Labels Lattice Linf LogitSqueezing MART MIM Madry
Mahalanobis MedianFilter MinimalNorm Model MultiTask NES NIFGSM NoisyConvolutions Objective
OnePixel PGD Patch Penalised PerExample PixelDropout Preprocessed RandomSelfEnsemble Record
Restarts ReverseGradient Roc SIFGSM SPSA Scores Shares SigmaZero SimBA Smoothed Spatial Square
Standard Substitute TIFGSM TRADES Targeted TotalVariation Training TransferFGSM TransferMatrix
Transferred Transformed Universal VAT WithDetector WorstOf as_model attack_accuracy auto_loop
bpda certified clopper_pearson create cross_entropy dann_factor dann_learning_rate device_loop
dlr evaluate every_target example_keys fit from_sklearn from_torch host_loop init jump_relu
kl_divergence least_likely_target load load_classifier load_torch margin nearest_neighbours
neighbours_from_edges pytree random_target replace retrain reverse_gradient robustness_curve roc
static success_over_draws targeted_dlr threshold_at train_patch train_substitute train_universal
train_universal_deepfool transfer_matrix undetected_target wilson worst_margins
"""


def test_every_public_name_is_importable():
    for name in advjax.__all__:
        assert getattr(advjax, name) is not None, name
    names = {*NAMES.split(), *registry.names(), "__version__"}  # an attack is listed there
    assert set(advjax.__all__) == set(dir(advjax)) == names


def test_packages_offer_what_their_faces_import():
    from advjax import attacks, sweeps, training

    assert "PGD" in attacks.__all__ and "apgd" not in attacks.__all__
    assert {"TRADES", "Crafting", "RunError"} <= set(training.__all__)
    assert {"Grid", "sweep"} <= set(sweeps.__all__) == set(dir(sweeps))
    for package in (attacks, sweeps, training):
        for name in package.__all__:
            assert getattr(package, name) is not None, name


def test_what_is_not_public_is_an_attribute_error():
    for name in ("PDG", "batches", "_LAZY"):
        with pytest.raises(AttributeError, match=f"module 'advjax' has no attribute '{name}'"):
            getattr(advjax, name)


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, advjax; from advjax import PGD, Linf, WorstOf; "
        "print([m for m in ('flax', 'orbax', 'sklearn', 'tensorflow_datasets', 'PIL') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
