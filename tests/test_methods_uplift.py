import json
import time
from importlib import util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.utils.estimator_checks import check_get_params_invariance, check_set_params

from mktai_kit.methods import uplift as U
from mktai_kit.settings import KitError
from mktai_kit.world import saas, truth

HERE = Path(__file__).parent
spec = util.spec_from_file_location("oracle_uplift", HERE / "oracles" / "uplift.py")
oracle = util.module_from_spec(spec)
spec.loader.exec_module(oracle)
GOLDEN = json.loads((HERE / "oracles" / "uplift.json").read_text())


def trial(n=600, seed=0, arms=("nothing", "call", "gift"), effect=0.0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 3)), columns=list("abc"))
    action = np.asarray(arms, dtype=object)[rng.integers(0, len(arms), n)]
    y = X["a"] + effect * X["b"] * (action == "call") + rng.normal(size=n)
    return X, y.to_numpy(), action


LEARNERS = {
    "S": U.SLearner(LinearRegression()),
    "T": U.TLearner(LinearRegression()),
    "X": U.XLearner(LinearRegression()),
    "DR": U.DRLearner(LinearRegression(), folds=3),
}
every = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)


@pytest.mark.parametrize("base", ["linear", "boosted"])
@pytest.mark.parametrize("arms", [2, 3])
@pytest.mark.parametrize("kind", LEARNERS)
def test_equal_to_econml_on_the_same_folds(kind, arms, base):
    model = {"linear": LinearRegression(), "boosted": GradientBoostingRegressor(n_estimators=30, random_state=0)}[base]
    d = oracle.trial(n=900, arms=arms)
    prior = DummyClassifier(strategy="prior")
    learner = {
        "S": U.SLearner(model, control=0),
        "T": U.TLearner(model, control=0),
        "X": U.XLearner(model, control=0, assignment=prior),
        "DR": U.DRLearner(model, control=0, folds=d["fold"], assignment=prior),
    }[kind]
    found = learner.fit(d["X"], d["money"], d["arm"]).effect(d["X"])
    golden = GOLDEN["learners"][f"{kind} {base} {arms - 1}"]
    np.testing.assert_allclose(found.to_numpy()[: oracle.SHOWN], golden["first"], atol=1e-8)
    np.testing.assert_allclose(found.mean(), golden["mean"], atol=1e-8)


@every
def test_scikit_learn_conventions(learner):
    X, y, action = trial()
    check_get_params_invariance("learner", learner)
    check_set_params("learner", learner)
    before = str(learner.get_params())
    fitted = clone(learner)
    assert fitted.fit(X, y, action) is fitted and str(learner.get_params()) == before
    assert fitted.n_features_in_ == 3 and list(fitted.feature_names_in_) == list("abc")
    assert fitted.actions_ == ["nothing", "call", "gift"]
    effects = fitted.effect(X.tail(5))
    assert list(effects.columns) == ["call", "gift"] and effects.index.equals(X.tail(5).index)
    pd.testing.assert_frame_equal(effects, clone(fitted).fit(X, y, action).effect(X.tail(5)))
    with pytest.raises(NotFittedError):
        clone(learner).effect(X)
    with pytest.raises(KitError, match="differ from those of fit"):
        fitted.effect(X.rename(columns={"a": "z"}))
    with pytest.raises(KitError, match="another order"):
        fitted.effect(X[list("cba")])


@every
def test_the_same_from_arrays_and_frames(learner):
    X, y, action = trial()
    X.index = X.index[::-1]
    a = clone(learner).fit(X, y, action).effect(X).to_numpy()
    b = clone(learner).fit(X.to_numpy(), list(y), pd.Categorical(action)).effect(X.to_numpy()).to_numpy()
    np.testing.assert_array_equal(a, b)


@every
def test_missing_values_reach_a_model_that_takes_them(learner):
    X, y, action = trial(300)
    X.iloc[::7, 0] = np.nan
    base = HistGradientBoostingRegressor(max_iter=5)
    fitted = (
        clone(learner).set_params(outcome=base).fit(X, y, action, dict.fromkeys(["nothing", "call", "gift"], 1 / 3))
    )
    assert np.isfinite(fitted.effect(X).to_numpy()).all()
    assert np.isfinite(U.dr_scores(X, y, action).to_numpy()).all()


def test_a_classifier_gives_probabilities_and_one_class_a_constant():
    X, y, action = trial(300)
    stayed = (y > 0).astype(int)
    stayed[action == "gift"] = 1
    t = U.TLearner(LogisticRegression()).fit(X, stayed, action)
    levels = t.outcomes(X)
    assert (levels["gift"] == 1).all() and levels["call"].between(0, 1).all()
    for learner in (U.XLearner(LogisticRegression()), U.DRLearner(LogisticRegression(), folds=3)):
        assert np.isfinite(learner.fit(X, stayed, action).effect(X).to_numpy()).all()
    with pytest.raises(KitError, match="give a regressor"):
        U.TLearner(LogisticRegression()).fit(X, y, action)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"action": ["call"] * 300}, "no row has the control"),
        ({"action": ["nothing"] * 300}, "all rows had the control"),
        ({"action": ["call", None] * 150}, "actions are missing"),
        ({"action": ["call", "nothing"]}, "2 in action"),
        ({"y": [np.nan] * 300}, "missing or infinite"),
        ({"X": pd.DataFrame({"plan": ["pro"] * 300})}, "does not hold numbers"),
        ({"X": [1.0] * 300}, "rows and columns"),
        ({"propensity": {"nothing": 0.5, "call": 0.5}}, "there is none for 'gift'"),
        ({"propensity": np.zeros(300)}, "probabilities above 0"),
        ({"propensity": {"nothing": 0.5, "call": 0.5, "gift": 0.5}}, "sum to 1"),
    ],
)
def test_bad_input_is_told(change, holds):
    X, y, action = trial(300)
    given = {"X": X, "y": y, "action": action, "propensity": None, **change}
    with pytest.raises(KitError, match=holds):
        U.dr_scores(**given)


def test_folds_keep_customers_together_and_deal_the_arms():
    rng = np.random.default_rng(0)
    customer = rng.integers(0, 200, 500)
    action = np.where(customer % 2, "call", "nothing")
    fold = U.make_folds(action, 5, customer, seed=1)
    assert pd.DataFrame({"c": customer, "f": fold}).groupby("c")["f"].nunique().max() == 1
    per_fold = pd.crosstab(fold, action)
    assert (per_fold > 25).all().all()
    order = rng.permutation(500)
    np.testing.assert_array_equal(U.make_folds(action[order], 5, customer[order], seed=1), fold[order])
    np.testing.assert_array_equal(U.make_folds(action, fold, customer), fold)
    with pytest.raises(KitError, match="lies in several folds"):
        U.make_folds(action, np.arange(500) % 5, customer)
    with pytest.raises(KitError, match="folds for"):
        U.make_folds(action, 1)


def test_nobody_is_scored_by_a_model_that_saw_them():
    class Memory(LinearRegression):
        """Predicts the outcome of a row it has seen, and 1,000 for any other."""

        def fit(self, X, y):
            self.seen_ = dict(zip(X.iloc[:, 0], y))
            return self

        def predict(self, X):
            return np.array([self.seen_.get(v, 1000.0) for v in X.iloc[:, 0]])

    X, y, action = trial(200)
    pair = np.arange(200) // 2
    X.iloc[1::2] = X.iloc[::2].to_numpy()  # the two rows of a customer look alike
    given = {"folds": 4, "cluster": pair}
    assert (U.cross_effects(U.TLearner(Memory()), X, y, action, **given) == 0).all().all()
    dr = U.dr_scores(X, y, action, {"nothing": 1 / 3, "call": 1 / 3, "gift": 1 / 3}, Memory(), **given)
    assert (dr.to_numpy()[dr.columns.to_numpy() != action[:, None]] == 1000).all()


def test_sequential_effects_look_back_only():
    X, y, action = trial(400)
    fold = U.make_folds(action, 4)
    e = U.cross_effects(U.TLearner(LinearRegression()), X, y, action, folds=fold, sequential=True)
    assert e[fold == 0].isna().all().all() and e[fold > 0].notna().all().all()
    changed = np.where(fold == 3, y + 100 * (action == "call"), y)
    again = U.cross_effects(U.TLearner(LinearRegression()), X, changed, action, folds=fold, sequential=True)
    pd.testing.assert_frame_equal(e, again)


def test_propensity_in_every_form():
    X, y, action = trial(400)
    each = {"nothing": 0.5, "call": 0.3, "gift": 0.2}
    taken = pd.Series(action).map(each)
    frame = pd.DataFrame(each, index=range(400))
    tables = [U.propensities(X, action, p) for p in (each, taken, frame)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], table)
    scores = [U.dr_scores(X, y, action, p) for p in (each, taken, taken.to_numpy(), frame)]
    for s in scores[1:]:
        pd.testing.assert_frame_equal(scores[0], s)
    varying = taken * np.linspace(0.5, 1, 400)
    partly = U.propensities(X, action, varying)
    assert (partly.notna().sum(axis=1) == 1).all()
    assert U.dr_scores(X, y, action, varying).notna().all().all()


def test_estimated_propensities_are_clipped_and_counted():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=2000)})
    action = np.where(rng.random(2000) < 1 / (1 + np.exp(-5 * X["a"])), "call", "nothing")
    e = U.propensities(X, action, model=LogisticRegression(), clip=0.05)
    assert e.min().min() == 0.05 and e.attrs["estimated"] and e.attrs["clipped"] > 0
    table = U.overlap(e, action)
    assert (table["effective_rows"] < table["rows"]).all() and table["rows"].sum() == 2000
    scores = U.dr_scores(X, rng.normal(size=2000), action, assignment=LogisticRegression(), clip=0.05)
    assert scores.attrs == e.attrs


def test_scores_by_hand():
    X = pd.DataFrame({"a": np.zeros(8)})
    action = np.array(["call", "nothing"] * 4)
    y = np.array([4.0, 1, 2, 3, 6, 5, 8, 7])
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    dr = U.dr_scores(X, y, action, {"call": 0.5, "nothing": 0.5}, LinearRegression(), folds=fold)
    # the other fold's means: 7 and 6 for the first half, 3 and 2 for the second
    np.testing.assert_allclose(dr["call"], [1, 7, -3, 7, 9, 3, 13, 3])
    np.testing.assert_allclose(dr["nothing"], [6, -4, 6, 0, 2, 8, 2, 12])


def test_shared_and_separate_outcome_models_may_be_given():
    X, y, action = trial(500, effect=1.0)
    separate = U.dr_scores(X, y, action, outcome=LinearRegression())
    pd.testing.assert_frame_equal(separate, U.dr_scores(X, y, action, outcome=U.TLearner(LinearRegression())))
    shared = U.dr_scores(X, y, action, outcome=U.SLearner(LinearRegression()))
    assert not np.allclose(separate, shared)
    learner = U.DRLearner(U.SLearner(LinearRegression())).fit(X, y, action)
    assert list(learner.effect(X).columns) == ["call", "gift"]


def test_average_effects_are_cluster_robust():
    X, y, action = trial(400)
    dr = U.dr_scores(X, y, action)
    rows = U.average_effects(dr)["call"]
    assert rows.value == pytest.approx((dr["call"] - dr["nothing"]).mean())
    alone = U.average_effects(dr, cluster=np.arange(400))["call"]
    assert alone == rows
    doubled = U.average_effects(pd.concat([dr, dr]), cluster=np.tile(np.arange(400), 2))["call"]
    assert (doubled.low, doubled.high) == pytest.approx((rows.low, rows.high)) and doubled.n == 800
    few = U.average_effects(dr.head(30))["call"]
    assert few.value is None and few.note.startswith("not enough data")


def test_doubly_robust_means_what_it_says():
    rng = np.random.default_rng(5)
    X = pd.DataFrame({"a": rng.normal(size=20_000)})
    e = 1 / (1 + np.exp(-1.5 * X["a"]))
    action = np.where(rng.random(len(X)) < e, "call", "nothing")
    y = 2 * X["a"] + 1.0 * (action == "call") + rng.normal(size=len(X))
    known = pd.DataFrame({"nothing": 1 - e, "call": e})
    right, wrong = LinearRegression(), GradientBoostingRegressor(n_estimators=1, max_depth=1)
    halves = {"nothing": 0.5, "call": 0.5}
    for propensity, outcome in ((known, wrong), (halves, right)):
        assert abs(U.average_effects(U.dr_scores(X, y, action, propensity, outcome))["call"].value - 1) < 0.1
    assert abs(U.average_effects(U.dr_scores(X, y, action, halves, wrong))["call"].value - 1) > 0.5


def test_money():
    effects = pd.DataFrame({"call": [0.1, 0.2], "gift": [0.0, 0.1]})
    money = U.net_effects(effects, value=[100, 200], costs={"call": 15})
    np.testing.assert_allclose(money, [[-5, 0], [25, 20]])
    with pytest.raises(KitError, match="no action 'cal'"):
        U.net_effects(effects, costs={"cal": 1})


def world_features(tables, readout):
    """Age of the account and recent use."""
    start = tables["accounts"].drop_duplicates("account_id").set_index("account_id")["start_date"]
    use = saas.clean(tables, "usage").merge(readout[["account_id", "month"]], on="account_id")
    weeks = (use["month"] - use["period_start"]).dt.days // 7
    late = use[(weeks >= 1) & (weeks <= 4)].groupby("account_id")["events"].sum()
    age = (readout["month"] - readout["account_id"].map(start)).dt.days / 30.4
    return pd.DataFrame({"age": age, "use": np.log1p(readout["account_id"].map(late).fillna(0))})


@pytest.mark.slow
def test_intervals_cover_the_worlds_truth():
    # 200 worlds were run once for the report; this is the light version.
    held = []
    for seed in range(25):
        w = saas.simulate(0.02, seed=seed)
        r, sealed = saas.readout(w, "retention"), truth.unseal(w)
        X = world_features(w.tables, r)
        for outcome, kind in (("goal", "expected"), ("profit", "expected_profit")):
            dr = U.dr_scores(X, r[outcome], r["action"], r["propensity"], cluster=r["account_id"])
            held += [
                truth.judge(e, truth.effect(sealed, "retention", a, kind=kind)).covers
                for a, e in U.average_effects(dr, r["account_id"]).items()
            ]
    assert 0.88 <= np.mean(held) <= 1


def test_the_work_is_fast_enough():
    X, y, action = trial(5000)
    start = time.process_time()
    U.dr_scores(X, y, action, dict.fromkeys(["nothing", "call", "gift"], 1 / 3))
    assert time.process_time() - start < 5


def test_series_by_id_may_come_in_any_order():
    rng = np.random.default_rng(2)
    n, arms = 240, ["nothing", "a", "b"]
    ids = pd.Index([f"c{i:03}" for i in range(n)])
    X, y = pd.DataFrame(rng.normal(size=(n, 2)), ids, list("uv")), pd.Series(rng.normal(size=n), ids)
    action, who = pd.Series(rng.choice(arms, n), ids), pd.Series(rng.integers(0, 90, n), ids)
    chances = pd.DataFrame(rng.dirichlet([5, 5, 5], n), ids, arms)
    taken = pd.Series(chances.to_numpy()[np.arange(n), chances.columns.get_indexer(action)], ids)
    mix, plain = (lambda v: v.sample(frac=1, random_state=1)), LinearRegression()
    fold = pd.Series(U.make_folds(action, 3, who), ids)
    for e in (chances, taken, dict(chances.items())):
        shuffled = {a: mix(v) for a, v in e.items()} if isinstance(e, dict) else mix(e)
        given = dict(folds=mix(fold), cluster=mix(who))
        for learner in (U.SLearner(plain), U.XLearner(plain), U.DRLearner(plain, folds=2)):
            right = U.cross_effects(learner, X, y, action, e, fold, who)
            pd.testing.assert_frame_equal(U.cross_effects(learner, X, mix(y), mix(action), shuffled, **given), right)
        right = U.dr_scores(X, y, action, e, plain, fold, who)
        pd.testing.assert_frame_equal(U.dr_scores(X, mix(y), mix(action), shuffled, plain, **given), right)
        assert U.average_effects(right, mix(who)) == U.average_effects(right, who)
    assert U.net_effects(right, mix(y)).equals(U.net_effects(right, y))
    odd = rng.permutation(n)  # row labels that X, an array, knows nothing of: by place
    by_place = U.dr_scores(X.to_numpy(), y.set_axis(odd), action.set_axis(odd), taken.set_axis(odd), plain, 3)
    np.testing.assert_array_equal(
        by_place, U.dr_scores(X.to_numpy(), y.to_numpy(), action.to_numpy(), taken.to_numpy(), plain, 3)
    )


def test_rows_that_cannot_be_matched_are_refused():
    X, y, action = pd.DataFrame({"u": range(6)}, list("abcdef")), np.arange(6.0), np.array(["nothing", "a"] * 3)
    for ids in ("abcdeg", "aabbcc"):
        with pytest.raises(KitError, match="not those of the other columns"):
            U.TLearner(LinearRegression()).fit(X, pd.Series(y, list(ids)), action)
    with pytest.raises(KitError, match="3 probabilities of 'a'"):
        U.propensities(X, action, {"nothing": 0.5, "a": [0.5] * 3})
    with pytest.raises(KitError, match="words"):
        U.dr_scores(X, y, np.array([0, "a"] * 3, dtype=object), control=0)
    with pytest.raises(KitError, match="a feature 'action=a' already"):
        U.SLearner(LinearRegression()).fit(X.rename(columns={"u": "action=a"}), y, action)
    with pytest.raises(KitError, match="2 values for 6 rows"):
        U.net_effects(X, [1.0, 2.0])
