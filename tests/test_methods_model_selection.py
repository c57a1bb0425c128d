"""Model selection: a stack without foresight, a search within its budget whose optimism is real, and the Telco benchmark."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold, cross_validate

from mktai_kit.data import loaders, sources
from mktai_kit.methods import metrics as mm
from mktai_kit.methods import model_selection as ms
from mktai_kit.methods.churn import cross_section
from mktai_kit.methods.propensity import forward_scores
from mktai_kit.methods.snapshots import ForwardGroupSplit, snapshot_grid
from mktai_kit.settings import KitError

GRID = snapshot_grid("2025-01-01", "2025-12-31", horizon_days=28, gap_days=7, history_days=84, n=8)


def made(n=300, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    parts = []
    for row in GRID.itertuples():
        x = rng.normal(size=(n, 4))
        p = 1 / (1 + np.exp(1.5 - signal * (x[:, 0] + x[:, 1] * (x[:, 2] > 0))))
        frame = pd.DataFrame(x, columns=list("abcd"))
        parts.append(
            frame.assign(
                account_id=range(n), snapshot=row.snapshot, label_to=row.label_to, y=(rng.random(n) < p) * 1.0, p=p
            )
        )
    panel = pd.concat(parts, ignore_index=True)
    return panel, ForwardGroupSplit(panel["snapshot"], panel["account_id"], GRID, folds=2)


PANEL, CV = made()
X, Y = PANEL[list("abcd")], PANEL["y"]


def test_candidates_take_missing_values_and_repeat_themselves():
    holes = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
    for model in ms.churn_candidates(trees=20).values():
        first, again = (model.fit(holes, Y).predict_proba(holes)[:, 1] for _ in range(2))
        assert np.array_equal(first, again) and mm.roc_auc(Y, first) > 0.7


def test_the_stack_sees_no_outcome_before_it_is_known():
    rng = np.random.default_rng(1)
    scores = {
        k: np.clip(PANEL["p"] + rng.normal(scale=s, size=len(PANEL)), 0.01, 0.99).to_numpy()
        for k, s in (("x", 0.1), ("z", 0.2))
    }
    scores["z"] = np.where(PANEL.index < 100, np.nan, scores["z"])
    args = PANEL["snapshot"], PANEL["label_to"]
    stack = ms.stack_forward(scores, Y, *args)
    assert np.isnan(stack[PANEL["snapshot"] <= GRID["snapshot"].iloc[1]]).all() and np.isfinite(stack).sum() > 1000
    for when in GRID["snapshot"][2:]:
        hidden = ms.stack_forward(scores, Y.where(PANEL["label_to"] <= when), *args)  # outcomes that nobody knew yet
        now = PANEL["snapshot"] == when
        assert np.array_equal(stack[now], hidden[now])
        flipped = ms.stack_forward(scores, Y.where(PANEL["label_to"] <= when, 1 - Y), *args)
        assert np.array_equal(stack[now], flipped[now])


def test_the_stack_is_no_worse_than_its_parts_and_mends_a_bad_one():
    rng = np.random.default_rng(1)
    logit = np.log(PANEL["p"] / (1 - PANEL["p"])).to_numpy()
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    scores = {k: sigmoid(logit + rng.normal(scale=0.7, size=len(logit))) for k in "uv"} | {
        "noise": rng.random(len(logit))
    }
    stack = ms.stack_forward(scores, Y, PANEL["snapshot"], PANEL["label_to"])
    seen = np.isfinite(stack)
    brier = {k: mm.brier(Y[seen], s[seen]) for k, s in {**scores, "stack": stack}.items()}
    assert brier["stack"] < min(brier["u"], brier["v"], brier["noise"])
    assert abs(stack[seen].mean() - Y[seen].mean()) < 0.03


def test_score_table_equals_the_metrics_and_uses_common_rows():
    scores = {"good": PANEL["p"].to_numpy(), "holes": PANEL["p"].where(PANEL.index > 500, np.nan).to_numpy() * 0.5}
    y = Y.where(PANEL.index < 2000)
    table = ms.score_table(
        scores, y, PANEL["account_id"], threshold=0.4, k=0.2, reference="good", paired="brier", n_boot=200
    )
    rows = (PANEL.index > 500) & (PANEL.index < 2000)
    assert table.loc["good", "f1"].value == pytest.approx(mm.f1(y[rows], scores["good"][rows], threshold=0.4))
    assert table.loc["holes", "lift_at_k"].value == pytest.approx(mm.lift_at_k(y[rows], scores["good"][rows], k=0.2))
    assert table.loc["holes", "brier against good"].high < 0 == table.loc["good", "brier against good"].value
    assert {e.n for e in table["brier"]} == {rows.sum()}


BOOSTING = ms.churn_candidates(trees=20)["boosting"]
SMALL = ms.churn_candidates(trees=8)["boosting"]
SEARCH = {"max_depth": [1, 2, 3, 6], "learning_rate": [0.05, 0.3], "min_child_weight": [1, 20]}


class Counted(LogisticRegression):
    fits = 0

    def fit(self, X, y):
        Counted.fits += 1
        return super().fit(X, y)


def test_tune_spends_no_more_than_its_budget():
    n = CV.get_n_splits()
    for budget in (2 * n, 3 * n + 1, 100 * n):
        Counted.fits = 0
        found = ms.tune(
            Counted(), {"C": [0.01, 0.1, 1, 10]}, X, Y, CV, budget, PANEL["account_id"], metric="brier", n_boot=100
        )
        assert Counted.fits == found.fits <= budget and len(found.table) == min(budget // n, 4)
        assert found.table["brier"].is_monotonic_increasing and found.model.C == found.params["C"]


def test_tune_chooses_each_outer_score_without_its_own_outcomes():
    found = ms.tune(Counted(), {"C": [1e-5, 1e-3, 1]}, X, Y, CV, 10**4, metric="log_loss", n_boot=100)
    last = PANEL["snapshot"] == GRID["snapshot"].iloc[-1]
    flipped = ms.tune(
        Counted(), {"C": [1e-5, 1e-3, 1]}, X, Y.where(~last, 1 - Y), CV, 10**4, metric="log_loss", n_boot=100
    )
    assert np.array_equal(found.score, flipped.score, equal_nan=True) and found.inner != flipped.inner
    first_tested = PANEL["snapshot"] <= GRID["snapshot"].iloc[CV.tests[0]]
    assert np.isnan(found.score[first_tested]).all() and np.isfinite(found.score[last]).all()
    missing = ms.tune(
        Counted(), {"C": [1e-3, 1]}, X, Y.where(PANEL.index % 9 > 0), CV, 10**4, metric="log_loss", n_boot=100
    )
    assert missing.outer.n < found.outer.n


def test_tune_with_an_ordinary_split():
    found = ms.tune(
        BOOSTING, SEARCH, X, Y, StratifiedKFold(4, shuffle=True, random_state=1), 16, metric="roc_auc", n_boot=100
    )
    assert np.isfinite(found.score).all() and found.fits == 16 and found.outer.value > 0.6
    with pytest.raises(KitError, match="tested twice"):
        ms.tune(BOOSTING, SEARCH, X, Y, RepeatedStratifiedKFold(n_splits=2, n_repeats=2, random_state=1), 20)


@pytest.mark.slow
def test_optimism_is_real_where_nothing_can_be_learnt():
    """Ten searches over noise: the inner AUC lies above 0.5 and above the outer one, and the outer one is centred on 0.5."""
    inner, outer = [], []
    for seed in range(10):
        panel, cv = made(n=100, seed=seed, signal=0)
        found = ms.tune(
            BOOSTING,
            SEARCH,
            panel[list("abcd")],
            panel["y"],
            cv,
            100,
            panel["account_id"],
            metric="roc_auc",
            n_boot=100,
        )
        inner, outer = [*inner, found.inner.value], [*outer, found.outer.value]
    print(f"inner {np.mean(inner):.4f}, outer {np.mean(outer):.4f}")
    assert np.mean(inner) > np.mean(outer) and np.mean(inner) > 0.5
    assert abs(np.mean(outer) - 0.5) < 3 * np.std(outer) / np.sqrt(10)


def test_learning_curve_takes_whole_accounts_and_ends_with_all():
    curve = ms.learning_curve(
        LogisticRegression(), X, Y, PANEL["account_id"], CV, sizes=(1.0, 0.2), metric="roc_auc", n_boot=100
    )
    assert curve["size"].tolist() == [0.2, 1.0] and curve["accounts"].tolist() == [30, 150]
    scores = forward_scores(LogisticRegression(), PANEL, list("abcd"), "y", CV)
    tested = np.isfinite(scores)
    assert curve["test"].iloc[-1].value == pytest.approx(mm.roc_auc(Y[tested], scores[tested]))
    assert curve["train"].iloc[0] > curve["train"].iloc[-1]
    again = ms.learning_curve(
        LogisticRegression(), X, Y, PANEL["account_id"], CV, sizes=(0.2,), metric="roc_auc", n_boot=100
    )
    assert again["test"].iloc[0] == curve["test"].iloc[0]
    top = ms.learning_curve(
        LogisticRegression(), X, Y, PANEL["account_id"], CV, sizes=(1.0,), metric="lift_at_k", n_boot=100, k=0.3
    )
    assert top["test"].iloc[0].value == pytest.approx(mm.lift_at_k(Y[tested], scores[tested], k=0.3))


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: ms.stack_forward({"a": Y}, Y, PANEL["snapshot"], PANEL["label_to"]), "1 model"),
        (lambda: ms.stack_forward({"a": Y, "b": Y}, Y[:5], PANEL["snapshot"], PANEL["label_to"]), "5 outcomes"),
        (lambda: ms.score_table({"a": Y}, Y, PANEL["account_id"], reference="b"), "no model 'b'"),
        (lambda: ms.tune(BOOSTING, {"depth": [1]}, X, Y, CV, 100), "'depth' is no parameter of XGBClassifier"),
        (lambda: ms.tune(BOOSTING, {}, X, Y, CV, 100), "no values to try"),
        (lambda: ms.tune(BOOSTING, SEARCH, X, Y, CV, 20), "pays for 1 setting(s) on 12 splits"),
        (lambda: ms.learning_curve(BOOSTING, X, Y, PANEL["account_id"], CV, sizes=(10, 100)), "are no shares"),
        (lambda: ms.learning_curve(BOOSTING, X, Y * 0, PANEL["account_id"], CV), "one class only"),
    ],
)
def test_bad_input_gets_one_clear_message(call, where):
    with pytest.raises(KitError) as e:
        call()
    assert where in str(e.value)


@pytest.fixture(scope="module")
def telco():
    """The Telco accounts, fetched where they are not there yet."""
    sources.fetch("telco", progress=False)
    return loaders.load("telco")["accounts"]


# found by `tune` with a budget of 100 fits on five folds, metric roc_auc, without the protected attributes
TUNED = {
    "max_depth": 1,
    "n_estimators": 600,
    "learning_rate": 0.05,
    "min_child_weight": 5,
    "colsample_bytree": 0.4,
    "reg_lambda": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic", "boosting"])
def test_telco_benchmark(telco, name):
    """5x5 stratified folds: ROC-AUC 0.845 or better with Brier 0.137 or less; above 0.86 would be a leak."""
    features, y = cross_section(telco)
    assert not {"gender", "senior_citizen", "total_amount"} & {c.split("=")[0] for c in features}
    model = ms.churn_candidates()[name]
    model = model.set_params(**TUNED) if name == "boosting" else model
    cv = RepeatedStratifiedKFold(n_splits=5, n_repeats=5, random_state=7)
    found = cross_validate(model, features, y, cv=cv, scoring={"auc": "roc_auc", "brier": "neg_brier_score"})
    auc, brier = found["test_auc"].mean(), -found["test_brier"].mean()
    print(f"{name}: ROC-AUC {auc:.4f}, Brier {brier:.4f}")
    assert 0.845 <= auc <= 0.86 and brier <= 0.137


@pytest.mark.slow
def test_telco_has_no_single_feature_that_is_too_good(telco):
    from mktai_kit.methods.churn import leakage_probes

    features, y = cross_section(telco)
    report = leakage_probes(features, y, pd.Timestamp("2020-01-01"))
    assert (report["verdict"] == "fine").all() and report["auc"].max() < 0.8


@pytest.mark.parametrize(
    "change, match",
    [
        ({"X": np.zeros((60, 1))}, "ndarray of 60 rows"),
        ({"y": np.ones(5)}, "5 outcomes"),
        ({"cv": 5}, "no split"),
        (
            {"cv": StratifiedKFold(3), "y": np.where(np.arange(60) == 3, np.nan, np.arange(60) % 2)},
            "1 outcomes are missing",
        ),
        ({"metric": "auc"}, "no metric 'auc'"),
        ({"params": {"C": None}}, "no values to try"),
        ({"budget": 9.5}, "budget = 9.5"),
    ],
)
def test_tune_says_what_it_cannot_take(change, match):
    X, y = pd.DataFrame({"x": np.arange(60.0)}), (np.arange(60) % 2).astype(float)
    given = {
        "model": LogisticRegression(),
        "params": {"C": [0.1, 1]},
        "X": X,
        "y": y,
        "cv": StratifiedKFold(3),
        "budget": 9,
    }
    with pytest.raises(KitError, match=match):
        ms.tune(**(given | change))


def test_scores_of_other_rows_are_refused():
    s, day = np.full(6, 0.5), pd.Series(pd.Timestamp("2025-01-01")).repeat(6)
    with pytest.raises(KitError, match="5 scores of b"):
        ms.stack_forward({"a": s, "b": s[:5]}, s, day, day)
    with pytest.raises(KitError, match="5 scores of b"):
        ms.score_table({"a": s, "b": s[:5]}, s > 0, np.arange(6))
    with pytest.raises(KitError, match="no model"):
        ms.score_table({}, s > 0, np.arange(6))
