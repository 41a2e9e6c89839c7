"""Heads agree with SciPy, and scores and baselines with formulas and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxlstm.lab.tasks.forecasting import baselines, evaluation, heads
from jaxlstm.lab.tasks.forecasting.data import Origins, Spec
from jaxlstm.lab.tasks.forecasting.forecaster import Forecast, levels_of

RNG = np.random.default_rng(0)
RAW = RNG.normal(size=(5, 4, 3)).astype(np.float32)
CENTER = RNG.normal(size=(5, 4)).astype(np.float32)
WIDTH = np.tile(np.array([0.5, 1.0, 2.0, 3.0], np.float32), (5, 1))
LEVELS = (0.05, 0.3, 0.5, 0.8, 0.95)


def found(head, size):
    return np.asarray(head.parameters(jnp.asarray(RAW[..., :size]), CENTER, WIDTH))


@pytest.mark.parametrize(
    "name",
    [
        "normal",
        pytest.param("student_t", marks=pytest.mark.combinations),
        pytest.param("negative_binomial", marks=pytest.mark.combinations),
    ],
)
def test_distributions_have_the_probabilities_and_quantiles_of_scipy(name):
    head = getattr(heads, name)()
    if name == "negative_binomial":
        size = 2
        mean, dispersion = np.moveaxis(found(head, size).astype(float), -1, 0)
        oracle = stats.nbinom(1 / dispersion, 1 / (1 + mean * dispersion))
        y = RNG.integers(0, 9, (5, 4)).astype(np.float32)
        expected = -oracle.logpmf(y)
        np.testing.assert_allclose(oracle.var(), mean + dispersion * mean**2, rtol=1e-6)
    else:
        size = {"normal": 2, "student_t": 3}[name]
        loc, scale, *freedom = np.moveaxis(found(head, size).astype(float), -1, 0)
        family = stats.t(*freedom) if freedom else stats.norm()
        oracle = family.dist(*freedom, loc=loc, scale=scale)
        y = RNG.normal(size=(5, 4)).astype(np.float32)
        expected = -oracle.logpdf(y)
    assert head.size == size
    parameters = jnp.asarray(found(head, size))
    np.testing.assert_allclose(head.loss(parameters, y), expected, rtol=2e-4, atol=1e-5)
    quantiles = head.quantiles(parameters, LEVELS)
    expected = np.stack([oracle.ppf(level) for level in LEVELS], -1)
    np.testing.assert_allclose(quantiles, expected, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(head.sample, (0, None))(keys, parameters))
    np.testing.assert_allclose(
        drawn.mean(0), oracle.mean(), atol=5 * oracle.std().max() / 4000**0.5
    )


def test_center_and_width_shift_and_scale_a_distribution():
    head = heads.normal()
    plain = np.asarray(
        head.parameters(jnp.asarray(RAW[..., :2]), 0 * CENTER, 1 + 0 * WIDTH)
    )
    np.testing.assert_allclose(
        found(head, 2),
        np.stack([plain[..., 0] * WIDTH + CENTER, plain[..., 1] * WIDTH], -1),
        rtol=1e-5,
    )


def test_quantiles_never_cross_and_begin_as_those_of_a_normal_distribution():
    head = heads.quantiles(LEVELS)
    raw = RNG.normal(size=(5, 4, 5)).astype(np.float32) * 10
    values = np.asarray(head.parameters(jnp.asarray(raw), CENTER, WIDTH))
    assert (np.diff(values, axis=-1) >= 0).all()
    zero = np.asarray(head.parameters(jnp.zeros((1, 5)), jnp.zeros(1), jnp.ones(1)))
    np.testing.assert_allclose(zero[0], stats.norm.ppf(LEVELS), atol=1e-5)
    np.testing.assert_array_equal(head.point(values), values[..., 2])


def test_the_quantile_loss_is_twice_the_mean_pinball_loss():
    head = heads.quantiles((0.1, 0.5, 0.7))
    # 2/3 (0.1 * 2 + 0.5 * 1 + 0.3 * 1)
    loss = head.loss(jnp.array([[1.0, 2.0, 4.0]]), jnp.array([3.0]))
    np.testing.assert_allclose(loss, [2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"), [("mae", 3.0), ("mse", 9.0), ("huber", 0.5 * 4 + 2 * 1)]
)
def test_point_losses(loss, expected):
    head = heads.point(loss, delta=2.0)
    np.testing.assert_allclose(
        head.loss(jnp.array([[1.0]]), jnp.array([4.0])), [expected]
    )


def test_quantiles_at_other_levels_lie_between():
    values = np.array([[0.0, 1.0, 3.0]])
    at = heads.interpolate(values, (0.1, 0.5, 0.9), (0.05, 0.1, 0.3, 0.7, 0.95))
    np.testing.assert_allclose(at, [[0.0, 0.0, 0.5, 2.0, 3.0]], atol=1e-6)


# -- scores -------------------------------------------------------------------


def spec(**changes):
    given = {
        "ids": ("a", "b"),
        "center": (0.0, 0.0),
        "scale": (2.0, 4.0),
        "season": 2,
        "missing": True,
        "ends": ("1", "2", "3"),
        "names": {},
        "covariates": {},
        "frequency": "1",
        "naive_error": (0.5, float("nan")),
    }
    return Spec(**(given | changes))


def test_scores_are_those_of_their_formulas():
    y = np.array([[1.0, 10.0], [np.nan, 20.0]])
    point = np.array([[2.0, 12.0], [5.0, 16.0]])
    low, high = point - 1, point + 3
    levels = levels_of([80])
    scores = evaluation.Scores(spec(), 2, [80], levels)
    quantiles = np.stack([low, high], -1)
    scores.add(np.array([0, 1]), y, Forecast(point, quantiles))
    got = scores.result()
    assert got["MAE"] == pytest.approx((1 + 2 + 4) / 3)
    assert got["RMSE"] == pytest.approx(((1 + 4 + 16) / 3) ** 0.5)
    assert got["MSE (scaled)"] == pytest.approx((1 / 4 + 4 / 16 + 16 / 16) / 3)
    assert got["MASE"] == pytest.approx(1 / 0.5)  # b has no error of seasonal naive
    assert got["sMAPE %"] == pytest.approx(200 / 3 * (1 / 3 + 2 / 22 + 4 / 36))
    assert got["in 80 %"] == pytest.approx(100 / 3)  # 1 in [1, 5]; not 10, not 20
    np.testing.assert_allclose(scores.by_horizon, [[3.0, 4.0], [2, 1]])


def test_scores_agree_with_utilsforecast():
    pd = pytest.importorskip("pandas")
    losses = pytest.importorskip("utilsforecast.losses")
    y, point = RNG.normal(size=(6, 2)) + 5, RNG.normal(size=(6, 2)) + 5
    scores = evaluation.Scores(spec(), 6, [], ())
    scores.add(np.array([0, 1]), y, Forecast(point, None))
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(["a", "b"], 6),
            "y": y.T.ravel(),
            "model": point.T.ravel(),
        }
    )
    got = scores.result()
    for name, function, factor in (
        ("MAE", losses.mae, 1),
        ("sMAPE %", losses.smape, 200),
    ):
        expected = function(frame, models=["model"])["model"].mean() * factor
        assert got[name] == pytest.approx(expected)
    assert got["RMSE"] ** 2 == pytest.approx(
        (losses.mse(frame, models=["model"])["model"]).mean()
    )


@pytest.mark.parametrize("y", [-2.0, 0.1, 3.0])
def test_crps_is_the_integral_over_the_distribution(y):
    levels = np.linspace(0.001, 0.999, 999)
    got = evaluation.crps(stats.norm.ppf(levels, 0.5, 2.0), levels, np.array(y))

    def squared(x):
        return (stats.norm.cdf(x, 0.5, 2.0) - (x >= y)) ** 2

    expected = integrate.quad(squared, -30, y)[0] + integrate.quad(squared, y, 30)[0]
    assert got == pytest.approx(expected, rel=3e-3)
    coarse = evaluation.crps(
        stats.norm.ppf(evaluation.LEVELS, 0.5, 2.0), evaluation.LEVELS, np.array(y)
    )
    assert coarse == pytest.approx(expected, rel=0.05)


# -- baselines ----------------------------------------------------------------


def test_baselines_agree_with_loops():
    target = RNG.normal(size=40)
    target[[3, 25]] = np.nan
    starts, rows = np.array([0, 20]), np.array([12, 33, 26])
    chosen = Origins(np.array([0, 1, 1]), rows)
    before = baselines.context_values(target, starts, chosen, 10)
    naive = baselines.seasonal_naive(before, 7, 3)
    line = baselines.drift(before, 7)
    for b, (k, row) in enumerate(zip(chosen.series, rows, strict=True)):
        values = []
        for at in range(row - 10, row):
            value = target[max(at, starts[k])]
            values.append(values[-1] if np.isnan(value) else value)
        np.testing.assert_allclose(before[:, b], values)
        for h in range(7):
            assert naive[h, b] == values[10 - 3 + h % 3]
            slope = (values[-1] - values[0]) / 9
            assert line[h, b] == pytest.approx(values[-1] + (h + 1) * slope)


def test_quantiles_of_seasonal_naive_are_those_of_its_errors_in_training():
    target = RNG.normal(size=30)
    rows = np.array([[0, 20, 25, 30]])
    found_ = baselines.naive_quantiles(
        target, rows, season=3, horizon=5, levels=(0.1, 0.9)
    )
    for h, lag in enumerate((3, 3, 3, 6, 6)):
        errors = [target[t] - target[t - lag] for t in range(lag, 20)]
        np.testing.assert_allclose(found_[h, 0], np.quantile(errors, (0.1, 0.9)))
