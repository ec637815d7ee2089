"""LogME against the evidence computed directly, and what it says of good and bad features."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from edgetl.selection import logme


def directly(features, target):
    """The largest log density of y ~ N(0, F F' / alpha + 1 / beta) for each picture."""

    def cost(log_params):
        alpha, beta = np.exp(log_params)
        covariance = features @ features.T / alpha + np.eye(len(target)) / beta
        return -multivariate_normal(np.zeros(len(target)), covariance).logpdf(target)

    best = min((minimize(cost, start, method="Nelder-Mead") for start in ((0, 0), (3, 3))), key=lambda r: r.fun)
    return -best.fun / len(target)


@pytest.mark.parametrize("width", [5, 40])
def test_evidence_is_that_of_the_gaussian_it_stands_for(width):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, width))
    labels = (features[:, 0] + 0.5 * rng.normal(size=30) > 0).astype(int)
    wanted = np.mean([directly(features, np.eye(2)[labels][:, c]) for c in range(2)])
    assert logme(features, labels, 2) == pytest.approx(wanted, abs=2e-3)


def test_features_that_separate_score_higher():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 4
    centres = rng.normal(size=(4, 16)) * 3
    scores = [logme(centres[labels] + rng.normal(size=(200, 16)) * noise, labels, 4) for noise in (0.5, 2.0, 10.0)]
    assert scores == sorted(scores, reverse=True)
