"""Propensity: the future is never used, calibration mends what it should, bad input speaks."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import estimator_checks_generator

from mktai_kit.methods import propensity
from mktai_kit.methods.metrics import calibration_error
from mktai_kit.methods.snapshots import ForwardGroupSplit, snapshot_grid
from mktai_kit.settings import KitError

GRID = snapshot_grid("2025-01-01", "2025-12-31", horizon_days=28, gap_days=7, history_days=84, n=8)


def panel(n=300, seed=1, drift=0.0):
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=n)
    parts = []
    for k, row in enumerate(GRID.itertuples()):
        chance = 1 / (1 + np.exp(-(taste + drift * k)))
        active = (rng.random(n) < chance).astype(int)
        parts.append(
            pd.DataFrame(
                {
                    "customer_id": np.arange(n),
                    "snapshot": row.snapshot,
                    "label_to": row.label_to,
                    "sign": taste + rng.normal(0, 0.5, n),
                    "recency_days": rng.exponential(20, n),
                    "active": active,
                    "spend": active * rng.gamma(2, 10, n),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def splits(frame, folds=2):
    return ForwardGroupSplit(frame["snapshot"], frame["customer_id"], GRID, folds=folds)


class Spy(LinearRegression):
    """Remembers what it was trained on."""

    seen = []

    def fit(self, X, y):
        Spy.seen.append(X.index)
        return super().fit(X, y)


def test_no_model_sees_its_test_customers_or_unknown_outcomes():
    frame, Spy.seen = panel(), []
    cv = splits(frame)
    scores = propensity.forward_scores(Spy(), frame, ["sign"], "active", cv)
    tests = [test for _, test in cv.split(frame)]
    assert len(Spy.seen) == len(tests)
    for train, test in zip(Spy.seen, tests, strict=True):
        now = frame["snapshot"].iloc[test].unique()
        assert len(now) == 1 and (frame.loc[train, "label_to"] <= now[0]).all()
        assert not set(frame.loc[train, "customer_id"]) & set(frame["customer_id"].iloc[test])
    assert np.isnan(scores[frame["snapshot"] == frame["snapshot"].min()]).all()


def test_changing_the_future_changes_no_earlier_score():
    frame = panel()
    late = frame["snapshot"] == frame["snapshot"].max()
    other = frame.assign(active=np.where(late, 1 - frame["active"], frame["active"]))
    for name, model in propensity.candidates(trees=10).items():
        a = propensity.forward_scores(model, frame, ["sign", "recency_days"], "active", splits(frame))
        b = propensity.forward_scores(model, other, ["sign", "recency_days"], "active", splits(frame))
        assert np.array_equal(a, b, equal_nan=True), name
        ca = propensity.calibrate_forward(a, frame["active"], frame["snapshot"], frame["label_to"])
        cb = propensity.calibrate_forward(b, other["active"], frame["snapshot"], frame["label_to"])
        assert np.array_equal(ca, cb, equal_nan=True), name


def test_train_on_limits_training_but_not_scoring():
    frame, Spy.seen = panel(), []
    scores = propensity.forward_scores(Spy(), frame, ["sign"], "spend", splits(frame), train_on=frame["active"] == 1)
    assert all((frame.loc[rows, "active"] == 1).all() for rows in Spy.seen)
    late = frame["snapshot"] == frame["snapshot"].max()
    assert not np.isnan(scores[late]).any()


def test_recalibration_mends_a_spoilt_score_and_leaves_a_good_one():
    frame = panel(n=3000)
    good = propensity.forward_scores(propensity.candidates()["logistic"], frame, ["sign"], "active", splits(frame))
    spoilt = 1 / (1 + np.exp(-(3 * np.log(good / (1 - good)) - 1)))
    mended = [
        propensity.calibrate_forward(x, frame["active"], frame["snapshot"], frame["label_to"]) for x in (good, spoilt)
    ]
    seen = ~np.isnan(mended[0])
    assert np.allclose(mended[0][seen], mended[1][seen], atol=1e-3)
    assert calibration_error(frame["active"][seen], spoilt[seen]) > 0.15
    assert calibration_error(frame["active"][seen], mended[1][seen]) < 0.035


def test_calibration_without_a_known_past_gives_no_number():
    frame = panel(n=50).query("snapshot == snapshot.min()")
    out = propensity.calibrate_forward(np.full(50, 0.5), frame["active"], frame["snapshot"], frame["label_to"])
    assert np.isnan(out).all()


def test_missing_column_and_one_class_speak():
    frame = panel(n=50)
    model = propensity.candidates(trees=2)["boosting"]
    with pytest.raises(KitError, match="'visits' is missing"):
        propensity.forward_scores(model, frame, ["visits"], "active", splits(frame))
    with pytest.raises(KitError, match="one class"):
        propensity.forward_scores(model, frame.assign(active=0), ["sign"], "active", splits(frame))


def test_an_all_missing_column_does_not_stop_anyone():
    frame = panel(n=100).assign(empty=np.nan)
    for name, model in propensity.candidates(trees=5).items():
        scores = propensity.forward_scores(model, frame, ["sign", "recency_days", "empty"], "active", splits(frame))
        assert np.isfinite(scores).any(), name


def test_scores_are_the_same_bytes_again():
    frame = panel(n=200)
    for model in propensity.candidates(trees=20).values():
        a, b = (
            propensity.forward_scores(model, frame, ["sign", "recency_days"], "active", splits(frame)).tobytes()
            for _ in range(2)
        )
        assert a == b


def test_money_adds_up_on_data_from_the_model():
    frame = panel(n=2000)
    spend = propensity.forward_scores(
        propensity.spend_model(trees=60), frame, ["sign"], "spend", splits(frame), train_on=frame["active"] == 1
    )
    chance = propensity.forward_scores(propensity.candidates()["logistic"], frame, ["sign"], "active", splits(frame))
    seen = ~np.isnan(chance)
    assert propensity.expected_spend(chance, spend)[seen].sum() / frame["spend"][seen].sum() == pytest.approx(
        1, abs=0.06
    )


def test_signed_log_is_a_scikit_learn_transformer():
    for est, check in estimator_checks_generator(propensity.SignedLog(), legacy=False):
        check(est)


def test_a_rule_keeps_the_order_of_its_column():
    frame = panel(n=300)
    rule = propensity.candidates({"sign": "sign"})["sign"].fit(frame[["recency_days", "sign"]], frame["active"])
    chance = rule.predict_proba(frame[["recency_days", "sign"]])[:, 1]
    assert np.array_equal(np.argsort(chance, kind="stable"), np.argsort(frame["sign"], kind="stable"))


def test_recalibrate_needs_both_outcomes():
    with pytest.raises(KitError, match="one class"):
        propensity.recalibrate([0.2, 0.3], [0, 0], [0.5])


def test_cross_scores_never_train_on_the_customer():
    class Memory(LinearRegression):
        """Knows what it has seen: predicts 1 for a customer of the training rows."""

        def fit(self, X, y):
            self.seen_ = set(X["who"])
            return self

        def predict(self, X):
            return X["who"].isin(self.seen_).to_numpy(float)

    rng = np.random.default_rng(3)
    who, later = rng.integers(0, 60, 400), rng.integers(0, 80, 300)
    X, X_new = (pd.DataFrame({"who": ids}) for ids in (who, later))
    assert not propensity.cross_scores(Memory(), X, rng.random(400), who, X_new, later, folds=3).any()
    order = rng.permutation(300)
    args = LinearRegression(), X, who * 1.0, who
    one, other = (propensity.cross_scores(*args, X_new.iloc[o], later[o], folds=3) for o in (np.arange(300), order))
    assert np.array_equal(one[order], other)
    with pytest.raises(KitError, match="two folds"):
        propensity.cross_scores(*args, X_new, later, folds=1)


def test_cross_scores_wants_ids_of_one_kind():
    X = pd.DataFrame({"x": np.arange(40.0)})
    y, who = np.arange(40) % 2, np.arange(40)
    with pytest.raises(KitError, match="of type int, str"):
        propensity.cross_scores(LinearRegression(), X, y, who, X, who.astype(str))
    with pytest.raises(KitError, match="1 ids are missing"):
        propensity.cross_scores(LinearRegression(), X, y, np.where(who == 3, np.nan, who), X, who)
    as_words = propensity.cross_scores(LinearRegression(), X, y, who.astype(str), X, who.astype(str))
    assert np.isfinite(as_words).all()


def test_forward_chances_mend_a_spoilt_model_and_know_nothing_of_the_future():
    from sklearn.linear_model import LogisticRegression

    class Spoilt(LogisticRegression):
        """Says too much: log-odds doubled, and shifted."""

        def predict_proba(self, X):
            p = 1 / (1 + np.exp(-(2 * self.decision_function(X) + 1)))
            return np.column_stack([1 - p, p])

    rows = panel(n=600)
    features = [c for c in rows.columns if pd.api.types.is_float_dtype(rows[c]) and c not in ("chance", "active")]
    splits = ForwardGroupSplit(rows["snapshot"], rows["customer_id"], GRID, folds=3)
    found = propensity.forward_chances(Spoilt(), rows, features, "active", splits)
    seen = found["chance"].notna()
    y = rows.loc[seen, "active"]
    assert calibration_error(y, found.loc[seen, "chance"]) < 0.5 * calibration_error(y, found.loc[seen, "score"])
    last = rows["snapshot"] == rows["snapshot"].max()
    flipped = rows.assign(active=rows["active"].where(rows["label_to"] <= rows["snapshot"].max(), 1 - rows["active"]))
    again = propensity.forward_chances(Spoilt(), flipped, features, "active", splits)
    assert again.loc[last].equals(found.loc[last])
    for train, test in splits.split():
        left_out = splits.left_out(train)
        assert not rows.loc[left_out, "customer_id"].isin(rows.loc[train, "customer_id"]).any()
        assert (rows.loc[left_out, "label_to"].max() <= rows.loc[test, "snapshot"].min()) and len(left_out)
