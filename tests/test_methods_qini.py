import json
import time
from importlib import util
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LinearRegression

from mktai_kit.methods import qini as Q
from mktai_kit.methods import uplift as U
from mktai_kit.methods.metrics import Estimate
from mktai_kit.settings import KitError

matplotlib.use("Agg")
HERE = Path(__file__).parent
spec = util.spec_from_file_location("oracle_uplift", HERE / "oracles" / "uplift.py")
oracle = util.module_from_spec(spec)
spec.loader.exec_module(oracle)
GOLDEN = json.loads((HERE / "oracles" / "uplift.json").read_text())["curves"]
FAST = {"n_boot": 100}


def known(n, seed, strength=0.2):
    """A two-arm trial whose effect rises with the score, and the population's Qini, AUUC and uplift at 30 %."""
    rng = np.random.default_rng(seed)
    score = rng.random(n)
    action = np.where(rng.random(n) < 0.5, "call", "nothing")
    tau = strength * (score - 0.4)
    y = (rng.random(n) < 0.5 + tau * (action == "call")).astype(int)
    # top share k: gain(k) = strength * (0.6 k - k^2 / 2)
    area = strength * (0.6 / 2 - 1 / 6)
    return y, score, action, {"qini": area - strength * 0.1 / 2, "auuc": area, "uplift_at_k": strength * (0.6 - 0.15)}


@pytest.mark.parametrize("name", ["score", "tied"])
def test_equal_to_scikit_uplift(name):
    d, golden = oracle.trial(), GOLDEN[name]
    given, n, treated = (d["y"], d[name], d["arm"]), len(d["y"]), d["arm"].sum()
    few = {"control": 0, **FAST}
    curve = Q.qini_curve(*given, points=0, **few)
    if golden["qini_x"]:
        np.testing.assert_allclose(curve["share"] * n, golden["qini_x"], atol=1e-9)
        np.testing.assert_allclose(curve["gain"] * treated, golden["qini_y"], atol=1e-9)
    end = curve["gain"].iloc[-1]
    area = Q.qini(*given, **few).value
    assert (area + end / 2) * treated * n == pytest.approx(golden["qini_area"], rel=1e-9)
    assert Q.qini(*given, relative=True, **few).value == pytest.approx(golden["qini_auc_score"], abs=1e-9)
    assert Q.auuc(*given, **few).value == pytest.approx(golden["uplift_area"] / n**2, abs=1e-9)
    if name == "score":  # scikit-uplift cuts through ties as the file happens to be sorted
        assert Q.uplift_at_k(*given, k=0.3, **few).value == pytest.approx(golden["uplift_at_30"], abs=1e-9)


def test_beside_causalml():
    d, golden = oracle.trial(), GOLDEN["causalml"]
    given = (d["y"], d["score"], d["arm"])
    curve = Q.qini_curve(*given, control=0, **FAST)
    assert curve["gain"].iloc[-1] * len(d["y"]) == pytest.approx(golden["gain_end"], rel=1e-9)
    # its area is a mean over rows, ours is made of trapezia; its default divides by the size of the curve's end
    assert Q.auuc(*given, control=0, **FAST).value * len(d["y"]) == pytest.approx(golden["auuc"], abs=0.1)
    assert golden["auuc"] / abs(golden["gain_end"]) == pytest.approx(golden["auuc_default"])


@pytest.mark.parametrize("tied", [False, True])
def test_the_order_of_rows_does_not_matter(tied):
    y, score, action, _true = known(600, 1)
    score = np.round(score, 1) if tied else score
    customer = np.arange(600) // 2
    dr = np.random.default_rng(0).normal(size=600)
    order = np.random.default_rng(9).permutation(600)
    for f in (Q.qini, Q.auuc, Q.uplift_at_k):
        a = f(y, score, action, cluster=customer, **FAST)
        b = f(y[order], score[order], action[order], cluster=customer[order], **FAST)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)
    for f in (Q.targeting_area, Q.gates, Q.blp):
        a, b = f(score, dr, cluster=customer), f(score[order], dr[order], cluster=customer[order])
        a, b = (list(x["effect"]) if isinstance(x, pd.DataFrame) else [getattr(x, "slope", x)] for x in (a, b))
        for one, other in zip(a, b):
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_a_constant_score_is_random():
    y, _score, action, _true = known(400, 2)
    assert Q.qini(y, np.zeros(400), action, **FAST).value == pytest.approx(0, abs=1e-12)
    table = Q.gates(np.zeros(400), y.astype(float))
    assert len(table) == 2 and table["effect"].iloc[-1].value is None
    nothing = Q.blp(np.full(400, 0.1), y.astype(float))
    assert nothing.slope.value is None and nothing.p is None and nothing.average.value == pytest.approx(y.mean())


def test_probabilities_are_weighed():
    """A trial that treats likely responders more often: weighing brings back the curve of an even trial."""
    rng = np.random.default_rng(0)
    n = 20_000
    score = rng.random(n)
    e = np.where(score > 0.5, 0.8, 0.2)
    action = np.where(rng.random(n) < e, "call", "nothing")
    y = 0.3 * (score > 0.5) + 0.2 * (score - 0.4) * (action == "call") + 0.1 * rng.normal(size=n)
    taken = np.where(action == "call", e, 1 - e)
    true = 0.2 * (0.6 / 2 - 1 / 6) - 0.2 * 0.1 / 2
    assert abs(Q.qini(y, score, action, propensity=taken, **FAST).value - true) < 0.005
    assert abs(Q.qini(y, score, action, **FAST).value - true) > 0.01
    even = dict.fromkeys(["call", "nothing"], 0.5)
    assert Q.qini(y, score, action, propensity=even, **FAST) == Q.qini(y, score, action, **FAST)


def test_one_arm_of_several():
    y, score, action, _true = known(900, 3)
    action = np.where(np.arange(900) % 3 == 0, "gift", action)
    rows = action != "gift"
    with pytest.raises(KitError, match="2 actions besides"):
        Q.qini(y, score, action)
    assert Q.qini(y, score, action, "call", **FAST) == Q.qini(y[rows], score[rows], action[rows], **FAST)
    table = Q.uplift_table(pd.DataFrame({"call": score, "gift": 1 - score}), y, action, **FAST)
    assert table.loc["call", "qini"] == Q.qini(y, score, action, "call", **FAST)
    with pytest.raises(KitError, match="no row has the action 'cal'"):
        Q.qini(y, score, action, "cal")


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"score": [0.5, np.nan] * 50}, "missing or infinite"),
        ({"score": [0.5] * 3}, "3 scores for 100 rows"),
        ({"n_boot": 10}, "too few"),
        ({"level": 95}, "no coverage"),
        ({"propensity": {"call": 0.5, "nothing": 0.0}}, "above 0"),
        ({"fold": [1, 2]}, "folds of shape"),
    ],
)
def test_bad_input_is_told(change, holds):
    y, score, action, _true = known(100, 0)
    with pytest.raises(KitError, match=holds):
        Q.qini(**{"y": y, "score": score, "action": action, **change})
    with pytest.raises(KitError, match="needs outcomes of 0 and 1"):
        Q.qini(y * 3.5, score, action, relative=True)
    with pytest.raises(KitError, match="no share"):
        Q.uplift_at_k(y, score, action, k=30)


def test_too_few_rows_give_no_figure():
    y, score, action, _true = known(60, 0)
    e = Q.qini(y, score, action)
    assert e.value is None and "50 needed" in e.note and "Do not act" in Q.warning(e)


def test_warning_fires_where_the_interval_holds_zero():
    held, clear = Estimate(0.1, -0.1, 0.3, 100), Estimate(0.2, 0.1, 0.3, 100)
    assert "holds zero" in Q.warning(held, "the Qini") and "the Qini" in Q.warning(held, "the Qini")
    assert Q.warning(clear) == "" and Q.warning(Estimate(-0.2, -0.3, -0.1, 100)) == ""
    assert "holds zero" in Q.warning(Estimate(0.1, 0.0, 0.2, 100))
    assert "no interval" in Q.warning(Estimate(0.1, None, None, 100))
    y, _score, action, _true = known(2000, 4)
    assert Q.warning(Q.qini(y, np.random.default_rng(0).random(2000), action))


def test_versus_is_the_paired_difference():
    y, score, action, _true = known(3000, 5, strength=0.6)
    noise = np.random.default_rng(0).random(3000)
    a, b, lead = (Q.qini(y, score, action), Q.qini(y, noise, action), Q.qini(y, score, action, versus=noise))
    assert lead.value == pytest.approx(a.value - b.value) and lead.low > 0
    assert Q.qini(y, score, action, versus=score, **FAST).value == 0


def test_blp_equals_statsmodels():
    rng = np.random.default_rng(0)
    score, customer = rng.normal(size=500), rng.integers(0, 120, 500)
    gain = 0.3 + 0.5 * score + rng.normal(size=500)
    x = sm.add_constant(score - score.mean())
    found = Q.blp(score, gain)
    robust = sm.OLS(gain, x).fit(cov_type="HC0", use_t=True)
    assert found.slope.value == pytest.approx(robust.params[1])
    half = robust.bse[1] * np.sqrt(500 / 499) * 1.9647294  # t with 499 degrees of freedom
    assert found.slope.high - found.slope.value == pytest.approx(half, rel=1e-6)
    clustered = Q.blp(score, gain, cluster=customer)
    groups = {"groups": customer, "use_correction": False}
    robust = sm.OLS(gain, x).fit(cov_type="cluster", cov_kwds=groups)
    g = len(np.unique(customer))
    ratio = (clustered.slope.high - clustered.slope.value) / robust.bse[1]
    assert ratio / np.sqrt(g / (g - 1)) == pytest.approx(1.98, abs=0.01)
    assert found.average.value == pytest.approx(gain.mean())


def test_gates_by_hand():
    score = np.repeat([1.0, 2, 3, 4, 5], 40)
    gain = score * 10 + np.tile([-1.0, 1.0], 100)
    table = Q.gates(score, gain)
    assert [e.value for e in table["effect"]] == pytest.approx([10, 20, 30, 40, 50, 40])
    assert list(table["n"]) == [40] * 5 + [80] and table.index[-1] == Q.TOP_LESS_BOTTOM
    top, bottom, apart = (table["effect"].iloc[i] for i in (4, 0, 5))
    half = np.hypot(top.high - top.value, bottom.high - bottom.value)
    assert apart.high - apart.value == pytest.approx(half, rel=0.05)
    assert Q.gates(score, gain, min_n=50)["effect"].iloc[0].value is None


def test_pick_takes_the_best_and_its_gain():
    effects = pd.DataFrame({"call": [0.1, 0.3], "gift": [0.2, 0.0]}, index=[7, 9])
    dr = pd.DataFrame({"nothing": [1.0, 1.0], "call": [2.0, 3.0], "gift": [5.0, 9.0]}, index=[7, 9])
    picked = Q.pick(effects, dr)
    assert list(picked["action"]) == ["gift", "call"] and list(picked["gain"]) == [4.0, 2.0]
    assert Q.pick(effects, dr.loc[[9, 7]]).equals(picked), "matched by id"
    with pytest.raises(KitError, match="different rows"):
        Q.pick(effects, dr.loc[[9]])


def test_targeting_ends_at_the_average():
    rng = np.random.default_rng(0)
    score = rng.random(300)
    gain = score + rng.normal(size=300)
    curve = Q.targeting_curve(score, gain, **FAST)
    assert curve["gain"].iloc[-1] == pytest.approx(gain.mean()) and curve["gain"].iloc[0] == 0
    area = Q.targeting_area(score, gain, **FAST).value
    exact = np.trapezoid(np.cumsum(gain[np.argsort(-score)]) / 300, dx=1 / 300) - gain.mean() / 2
    assert area == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("name", ["qini", "auuc", "uplift_at_k"])
def test_intervals_cover_the_known_truth(name):
    # Light: many small trials. The report's figures come from 1,000.
    f, held = getattr(Q, name), []
    for seed in range(150):
        y, score, action, true = known(500, seed)
        e = f(y, score, action, n_boot=200)
        held.append(e.low <= true[name] <= e.high)
    assert 0.88 <= np.mean(held) <= 0.99


def found_by_chance(seed, sequential):
    """Is heterogeneity claimed (one-sided 5 %) where there is none?"""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(400, 3)), columns=list("abc"))
    action = np.where(rng.random(400) < 0.5, "call", "nothing")
    y = X["a"].to_numpy() + rng.normal(size=400)
    half, fold = {"call": 0.5, "nothing": 0.5}, U.make_folds(action, 4, seed=seed)
    score = U.cross_effects(U.TLearner(LinearRegression()), X, y, action, folds=fold, sequential=sequential)["call"]
    dr = U.dr_scores(X, y, action, half, LinearRegression(), folds=fold)
    rows = score.notna().to_numpy()
    gain = (dr["call"] - dr["nothing"])[rows]
    apart = Q.gates(score[rows], gain, groups=3, fold=fold[rows], level=0.9)["effect"].iloc[-1]
    return Q.blp(score[rows], gain, fold=fold[rows]).p < 0.05, apart.low > 0


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [False, True])
def test_heterogeneity_is_seldom_found_where_there_is_none(sequential):
    by_blp, by_gates = np.mean([found_by_chance(seed, sequential) for seed in range(120)], axis=0)
    assert by_blp <= 0.12 and by_gates <= 0.13


def test_a_thousand_draws_of_ten_thousand_rows_take_a_second():
    y, score, action, _true = known(10_000, 0)
    start = time.process_time()
    Q.qini(y, score, action)
    assert time.process_time() - start < 3  # 0.8 measured


def test_plots():
    import matplotlib.pyplot as plt

    y, score, action, _true = known(300, 0)
    curve = Q.qini_curve(y, score, action, **FAST)
    ax = Q.plot_qini({"a": curve, "b": curve}, unit="EUR")
    assert len(ax.get_legend().get_texts()) == 3 and "EUR" in ax.get_ylabel()
    assert Q.plot_gates(Q.gates(score, score), unit="EUR").get_xlabel().endswith("(EUR)")
    few = {"a": Estimate(1, 0.5, 1.5, 100, unit="EUR"), "b": Estimate(None, None, None, 3, note="not enough data")}
    assert "EUR" in U.plot_effects(few).get_xlabel()
    plt.close("all")


def test_series_by_id_may_come_in_any_order():
    rng = np.random.default_rng(2)
    n = 300
    ids = pd.Index([f"c{i:03}" for i in range(n)])
    y, score, other = (pd.Series(rng.normal(size=n), ids) for _ in range(3))
    action, fold = pd.Series(rng.choice(["nothing", "a"], n), ids), pd.Series(rng.integers(0, 3, n), ids)
    who, e = pd.Series(rng.integers(0, 200, n), ids), pd.Series(rng.uniform(0.3, 0.5, n), ids)
    mix = lambda v: v.sample(frac=1, random_state=1)
    given = dict(propensity=e, cluster=who, fold=fold)
    shuffled = {k: mix(v) for k, v in given.items()}
    for f in (Q.qini, Q.auuc, Q.uplift_at_k):
        right = f(y, score, action, versus=other, **given, **FAST)
        assert f(y, mix(score), mix(action), versus=mix(other), **shuffled, **FAST) == right
    pd.testing.assert_frame_equal(
        Q.qini_curve(y, mix(score), mix(action), **shuffled, **FAST), Q.qini_curve(y, score, action, **given, **FAST)
    )
    pair, mixed = dict(cluster=who, fold=fold), dict(cluster=mix(who), fold=mix(fold))
    assert Q.gates(score, mix(y), **mixed)["effect"].tolist() == Q.gates(score, y, **pair)["effect"].tolist()
    assert Q.blp(score, mix(y), **mixed) == Q.blp(score, y, **pair)
    assert Q.targeting_area(score, mix(y), versus=mix(other), **mixed, **FAST) == Q.targeting_area(
        score, y, versus=other, **pair, **FAST
    )
    dr = pd.DataFrame({"nothing": y, "a": other})
    assert Q.pick(dr[["a"]], mix(dr)).equals(Q.pick(dr[["a"]], dr))
    with pytest.raises(KitError, match="not those of the other columns"):
        Q.gates(score, y.rename({"c000": "stranger"}))


def test_bad_groups_folds_and_actions():
    score = np.arange(10.0)
    for groups in (0, 1, 2.5):
        with pytest.raises(KitError, match="groups"):
            Q.gates(score, score, groups)
    for fold in (np.zeros(9), [0.0, np.nan] * 5):
        with pytest.raises(KitError, match="one fold number per row"):
            Q.blp(score, score, fold=fold, min_n=5)
    with pytest.raises(KitError, match="actions are missing"):
        Q.qini(score, score, ["nothing", None] * 5)
