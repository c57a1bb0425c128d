"""Metrics and their intervals: equal to scikit-learn, honest in coverage, clear about bad input."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mktai_kit.methods import metrics as mm
from mktai_kit.settings import KitError

RANKING = {"pr_auc": sk.average_precision_score, "roc_auc": sk.roc_auc_score}
PROBABILITY = {"brier": sk.brier_score_loss, "log_loss": sk.log_loss}
BINARY = [
    *RANKING,
    *PROBABILITY,
    "brier_skill",
    "lift_at_k",
    "precision_at_k",
    "recall_at_k",
    "calibration_error",
    "calibration_slope",
    "precision",
    "recall",
    "f1",
]
AT_THRESHOLD = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


def data(n=400, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 3, n)
    y = (rng.random(n) < p).astype(int)
    return y, np.round(p, 1) if ties else p, rng.integers(0, n // 3, n), rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", [*RANKING, *PROBABILITY])
@pytest.mark.parametrize("weights", ["none", "counts", "real"])
def test_equal_to_scikit_learn(name, ties, weights):
    for seed in range(5):
        y, p, _cluster, w = data(seed=seed, ties=ties)
        w = {"none": None, "counts": w, "real": w * 0.37 + 0.01}[weights]
        expected = (RANKING | PROBABILITY)[name](y, p, sample_weight=w)
        assert getattr(mm, name)(y, p, sample_weight=w) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", [*RANKING, *PROBABILITY])
def test_every_draw_equals_scikit_learn(name):
    y, p, cluster, w = data(n=300, ties=True)
    w = w + 0.5
    codes, g = mm._codes(cluster, len(y))
    kernel = mm._KERNELS[name]
    _point, draws, _moved = mm._sampled(kernel, mm._rank(kernel, y, p), codes, g, w, 120, 3, {})
    counts = np.concatenate(list(mm._draws(g, 120, 3, len(y))))
    expected = [(RANKING | PROBABILITY)[name](y, p, sample_weight=c[codes] * w) for c in counts]
    assert np.allclose(draws, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BINARY)
def test_a_weight_is_a_repetition_and_order_and_scale_do_not_matter(name):
    metric = getattr(mm, name)
    for ties in (False, True):
        y, p, _cluster, w = data(ties=ties)
        repeat = np.repeat(np.arange(len(y)), w.astype(int))
        assert metric(y, p, w) == pytest.approx(metric(y[repeat], p[repeat]), abs=1e-9)
        assert metric(y, p, w) == pytest.approx(metric(y, p, 3.7 * w), abs=1e-9)
        shuffled = np.random.default_rng(1).permutation(len(y))
        assert metric(y, p, w) == pytest.approx(metric(y[shuffled], p[shuffled], w[shuffled]), abs=1e-9)


@pytest.mark.parametrize("name", AT_THRESHOLD)
def test_threshold_metrics_equal_scikit_learn_on_every_draw(name):
    y, p, cluster, w = data(n=300, ties=True)
    w = w + 0.5
    for threshold in (0.1, 0.3, 0.55):
        expected = AT_THRESHOLD[name](y, p >= threshold, sample_weight=w)
        assert getattr(mm, name)(y, p, w, threshold=threshold) == pytest.approx(expected, abs=1e-12)
    codes, g = mm._codes(cluster, len(y))
    kernel, options = mm._KERNELS[name], {"threshold": 0.3}
    _point, draws, _moved = mm._sampled(kernel, mm._rank(kernel, y, p), codes, g, w, 120, 3, options)
    counts = np.concatenate(list(mm._draws(g, 120, 3, len(y))))
    expected = [AT_THRESHOLD[name](y, p >= 0.3, sample_weight=c[codes] * w) for c in counts]
    assert np.allclose(draws, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in BINARY if n not in AT_THRESHOLD])
@pytest.mark.parametrize("rate", [0.03, 0.5, 0.97])
def test_steps_of_clusters_change_no_draw(name, rate):
    """The prepared sums and curves of the bootstrap equal the metric on weighted rows."""
    rng = np.random.default_rng(3)
    p = np.clip(np.round(rng.beta(2 * rate, 2 * (1 - rate), 500), 2), 0.01, 0.99)
    y, cluster = (rng.random(500) < p).astype(int), rng.integers(0, 150, 500)
    codes, g = mm._codes(cluster, 500)
    kernel = mm._KERNELS[name]
    _point, draws, _moved = mm._sampled(kernel, mm._rank(kernel, y, p), codes, g, np.ones(500), 100, 3, {})
    counts = np.concatenate(list(mm._draws(g, 100, 3, 500)))
    for draw, c in zip(draws[:25], counts):
        assert draw == pytest.approx(getattr(mm, name)(y, p, c[codes]), abs=1e-9)


def test_many_scores_share_steps_of_calibration(monkeypatch):
    y, p, *_ = data(n=20_000)
    joined = mm.calibration_error(y, p)
    monkeypatch.setattr(mm, "FINE", 10**9)
    assert joined == pytest.approx(mm.calibration_error(y, p), abs=2e-4)


def test_calibration_slope_equals_a_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    for seed, power in enumerate([0.3, 0.6, 1, 2, 5]):
        y, p, _cluster, w = data(seed=seed)
        p = p**power / (p**power + (1 - p) ** power)
        x = np.log(p / (1 - p))[:, None]
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y, sample_weight=w)
        assert mm.calibration_slope(y, p, w) == pytest.approx(model.coef_[0, 0], abs=1e-5)


def test_calibration_error_by_hand():
    y, p, *_ = data(n=1000)
    order = np.argsort(p)
    expected = np.mean([abs(p[part].mean() - y[part].mean()) for part in np.split(order, 10)])
    assert mm.calibration_error(y, p) == pytest.approx(expected)
    assert mm.calibration_error(y, p, bins=1) == pytest.approx(abs(p.mean() - y.mean()))
    assert mm.calibration_error(y, np.full(1000, 0.5)) == pytest.approx(abs(0.5 - y.mean()))


def test_top_of_the_list_with_ties_is_the_mean_over_orders():
    y, score = np.array([1, 0, 1, 0, 0, 1]), np.array([3.0, 2, 2, 2, 1, 0])
    assert mm.precision_at_k(y, score, k=0.5) == pytest.approx((1 + 2 / 3) / 3)
    assert mm.recall_at_k(y, score, k=1.0) == 1 and mm.lift_at_k(y, score, k=1.0) == 1


def test_amounts():
    y, f, w = np.array([1.0, 2, 6]), np.array([2.0, 2, 2]), np.array([1, 0, 3])
    assert mm.mae(y, f, w) == pytest.approx(sk.mean_absolute_error(y, f, sample_weight=w))
    assert mm.rmse(y, f, w) == pytest.approx(sk.root_mean_squared_error(y, f, sample_weight=w))
    assert mm.mean(y, sample_weight=w) == pytest.approx(19 / 4)
    e = mm.with_interval("mean", np.arange(100.0), unit="EUR")
    assert e.low < e.value == 49.5 < e.high and e.unit == "EUR"


def test_intervals_are_reproducible_and_do_not_depend_on_order_or_chunks(monkeypatch):
    y, p, cluster, _w = data()
    e = mm.with_interval("pr_auc", y, p, cluster)
    assert e == mm.with_interval(mm.pr_auc, y, p, cluster) != mm.with_interval("pr_auc", y, p, cluster, seed=8)
    monkeypatch.setattr(mm, "CELLS", 1)
    assert e == mm.with_interval("pr_auc", y, p, cluster)
    o = np.random.default_rng(1).permutation(len(y))
    shuffled = mm.with_interval("pr_auc", y[o], p[o], cluster[o])
    assert np.allclose([e.low, e.value, e.high], [shuffled.low, shuffled.value, shuffled.high], atol=1e-12)
    named = mm.with_interval("pr_auc", pd.Series(y), pd.Series(p), pd.Series(cluster).map("c{:04d}".format))
    assert named == e


@pytest.mark.parametrize("name", BINARY)
def test_value_within_interval_and_compare_with_itself_is_zero(name):
    y, p, cluster, w = data()
    e = mm.with_interval(name, y, p, cluster, sample_weight=w + 1, n_boot=200)
    assert e.low <= e.value <= e.high and e.n == len(y) and "clusters" in e.note
    assert e.value == pytest.approx(getattr(mm, name)(y, p, w + 1), abs=1e-9)
    d = mm.compare(name, y, p, p, cluster, n_boot=200)
    assert (d.value, d.low, d.high) == (0, 0, 0)


def test_own_function_equals_the_batched_code():
    def average_precision(y, score, sample_weight):
        return sk.average_precision_score(y, score, sample_weight=sample_weight)

    y, p, cluster, _w = data()
    own, ours = (mm.with_interval(m, y, p, cluster, n_boot=150) for m in (average_precision, mm.pr_auc))
    assert np.allclose([own.low, own.value, own.high], [ours.low, ours.value, ours.high], atol=1e-12)
    assert mm.with_interval(average_precision, y[:20], p[:20]).value is None


def test_not_enough_data():
    y, p, cluster, _w = data()
    for kwargs in ({"min_n": 500}, {"min_events": 10_000}):
        e = mm.with_interval("roc_auc", y, p, cluster, **kwargs)
        assert (e.value, e.low, e.high) == (None, None, None) and e.note.startswith("not enough data: ") and str(e)
    assert mm.with_interval("brier", np.zeros(500), np.full(500, 0.2)).note.endswith("0 rows with the event, 10 needed")
    assert mm.with_interval("brier", [], []).note.startswith("not enough data: 0 rows")
    assert mm.with_interval("pr_auc", y, p, np.zeros(len(y))).note.startswith("not enough data: 1 clusters")
    rare = np.zeros(200)
    rare[0] = 1
    assert "not defined on" in mm.with_interval("roc_auc", rare, np.arange(200.0), min_events=1).note
    assert mm.compare("roc_auc", y[:20], p[:20], p[:20]).value is None


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: mm.pr_auc([0, 1, 2], [0.1, 0.2, 0.3]), "y_true: 1 of 3"),
        (
            lambda: mm.pr_auc([0, 1, 1], [0.1, np.nan, 0.3]),
            "score: 1 of 3 values are missing or infinite (first in row 1)",
        ),
        (lambda: mm.pr_auc([0, 1], [0.1, 0.2, 0.3]), "score: 3 rows"),
        (lambda: mm.pr_auc([0, 1], [[0.9, 0.1], [0.2, 0.8]]), "predict_proba"),
        (lambda: mm.pr_auc([], []), "no rows"),
        (lambda: mm.pr_auc([0, 0], [0.1, 0.2]), "not defined"),
        (lambda: mm.roc_auc([1, 1], [0.1, 0.2]), "not defined"),
        (lambda: mm.calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]), "not defined"),
        (lambda: mm.calibration_slope([0, 1], [0.5, 0.5]), "not defined"),
        (lambda: mm.brier([0, 1], [-0.1, 1.2]), "score: 2 of 2 values are not within [0, 1] (first: -0.1 in row 0)"),
        (lambda: mm.brier(["no", "yes"], [0.1, 0.2]), "not numbers"),
        (lambda: mm.brier(pd.array([0, None], dtype="Int64"), [0.1, 0.2]), "y_true"),
        (lambda: mm.lift_at_k([0, 1], [0, 1], k=10), "k = 10"),
        (lambda: mm.calibration_error([0, 1], [0, 1], bins=0), "bins = 0"),
        (lambda: mm.precision([0, 1], [0.1, 0.2]), "at or above a threshold"),
        (lambda: mm.recall([0, 0], [0.1, 0.2]), "not defined"),
        (lambda: mm.f1([0, 1], [0.1, 0.2], threshold="high"), "threshold = 'high'"),
        (lambda: mm.mae([0, 1], [0, 1], [1, -1]), "sample_weight"),
        (lambda: mm.mae([0, 1], [0, 1], [0, 0]), "all weights are 0"),
        (lambda: mm.with_interval("auc", [0, 1], [0, 1]), "'auc' is not known"),
        (lambda: mm.with_interval("pr_auc", [0, 1]), "score"),
        (lambda: mm.with_interval("pr_auc", [0, 1], [0, 1], n_boot=10), "n_boot"),
        (lambda: mm.with_interval("pr_auc", [0, 1], [0, 1], level=95), "level"),
        (lambda: mm.with_interval("pr_auc", [0, 1], [0, 1], cluster=[1]), "cluster"),
        (lambda: mm.with_interval("pr_auc", [0, 1], [0, 1], cluster=[1, None]), "cluster: 1 ids are missing"),
        (lambda: mm.reliability_table([], []), "no rows"),
        (lambda: mm.Estimate(float("nan"), None, None, 3), "Estimate"),
    ],
)
def test_bad_input_gets_one_clear_message(call, where):
    with pytest.raises(KitError) as e:
        call()
    assert where in str(e.value)


def test_estimate_prints_and_serialises():
    assert str(mm.Estimate(0.843, 0.812, 0.871, 1234)) == "0.843 [0.812, 0.871] (n = 1,234)"
    assert str(mm.Estimate(12345.6, 12000, 13000, 77, 0.9, "EUR")) == "12,346 EUR [12,000, 13,000] at 90 % (n = 77)"
    assert str(mm.Estimate(-0.00001, -0.5, 0.4, 9)) == "0.000 [-0.500, 0.400] (n = 9)"
    assert str(mm.Estimate(0, None, None, 9)) == "0.000 (n = 9)"
    none = mm.Estimate(None, None, None, 5, note="not enough data: 5 clusters, 50 needed")
    assert str(none) == "not enough data: 5 clusters, 50 needed (n = 5)"
    e = mm.Estimate(np.float64(1.5), np.float32(1), 2, np.int64(4))
    assert mm.Estimate(**json.loads(json.dumps(e.to_dict()))) == e


def test_reliability_table():
    y, p, cluster, _w = data(n=900, ties=True)
    t = mm.reliability_table(y, p, bins=5)
    assert t["n"].sum() == 900 and t["events"].sum() == y.sum() and t["score"].is_monotonic_increasing
    assert ((t["low"] <= t["rate"]) & (t["rate"] <= t["high"])).all()
    clustered = mm.reliability_table(np.repeat(y, 3), np.repeat(p, 3), bins=5, cluster=np.repeat(np.arange(900), 3))
    assert np.allclose(clustered[["low", "high"]], t[["low", "high"]], atol=2e-3)  # copies add no information
    assert len(mm.reliability_table(y, np.full(900, 0.2))) == 1
    assert mm.reliability_table([0, 0, 0], [0.1, 0.2, 0.3], bins=2)["high"].max() < 1


def test_wilson_as_published():
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for k, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert np.allclose(mm._wilson(k / n, n, 0.95), (low, high), atol=5e-5)


def test_plots_return_labelled_axes():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    y, p, *_ = data()
    for plot in (mm.plot_reliability, mm.plot_precision_recall, mm.plot_lift):
        ax = plot(y, p)
        assert ax.get_xlabel() and ax.get_ylabel() and plot(y, p, label="again", ax=ax) is ax
        with pytest.raises(KitError):
            plot([], [])
    plt.close("all")


def simulate(n_customers, seed):
    rng = np.random.default_rng(seed)
    customer = np.repeat(np.arange(n_customers), rng.integers(1, 5, n_customers))
    p = rng.beta(1, 3, n_customers)
    habit = rng.beta(2 * p, 2 * (1 - p))
    return customer, p[customer], (rng.random(len(customer)) < habit[customer]).astype(int)


@pytest.mark.slow
def test_intervals_cover():
    """200 studies with known truth: by customers near 95 %, by rows clearly less, and no false alarm about calibration."""
    _customer, p, y = simulate(200_000, seed=10_000)
    truth = {name: getattr(mm, name)(y, p) for name in ("pr_auc", "roc_auc", "brier")} | {"calibration_error": 0}
    hit = {name: [] for name in [*truth, "rows"]}
    for seed in range(200):
        customer, p, y = simulate(200, seed)
        for name, value in truth.items():
            e = mm.with_interval(name, y, p, customer, n_boot=200, seed=seed)
            hit[name].append(e.low <= value <= e.high)
        e = mm.with_interval("brier", y, p, n_boot=200, seed=seed)
        hit["rows"].append(e.low <= truth["brier"] <= e.high)
    covered = {name: np.mean(h) for name, h in hit.items()}
    assert all(covered[name] >= 0.91 for name in truth) and covered["rows"] < covered["brier"] - 0.02, covered


def test_fast_enough():
    rng = np.random.default_rng(0)
    y, cluster = rng.integers(0, 2, 10_000), rng.integers(0, 3000, 10_000)
    start = time.perf_counter()
    mm.with_interval("pr_auc", y, rng.normal(size=10_000) + y, cluster)
    assert time.perf_counter() - start < 5  # about 0.3 s; a loop over scikit-learn takes about 5 s


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pr_auc", "roc_auc", "lift_at_k", "f1", "brier", "calibration_error"])
def test_fast_enough_at_scale(name):
    """300,000 rows and 1,000 draws: about 1 to 2 s each on one core; one draw after the other over all rows took 5 to 26 s."""
    rng = np.random.default_rng(0)
    p, cluster = rng.beta(0.6, 20, 300_000), rng.integers(0, 12_000, 300_000)
    y = (rng.random(len(p)) < p).astype(int)
    start = time.process_time()
    e = mm.with_interval(name, y, p, cluster, **({"threshold": 0.1} if name == "f1" else {}))
    assert e.value is not None and time.process_time() - start < 8


def test_precision_of_a_few_alarms_has_no_interval():
    y, p = (np.arange(400) % 4 == 0).astype(float), np.linspace(0, 1, 400) * 0.5
    y[-12:] = 1
    few = mm.with_interval("precision", y, p, threshold=p[-12], n_boot=100)  # all right: no draw would vary
    assert few.value is None and "12 rows at or above the threshold, 20 needed" in few.note
    assert mm.with_interval("precision", y, p, threshold=p[-40], n_boot=100).value is not None
