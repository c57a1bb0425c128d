"""What the bandits promise: the book's formulas, exact chances in the log, memory that fades, and limits that hold."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from mktai_kit.methods import bandits as B
from mktai_kit.methods.off_policy import evaluate, same_policy
from mktai_kit.settings import KitError

matplotlib.use("Agg")
BOTH = [B.LinUCB, B.LinearThompson]


def history(n=300, seed=0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n, 3)), columns=list("xyz"))
    action = rng.choice(["a", "b", "c"], n)
    reward = X["x"] * (action == "a") + 0.3 * (action == "b") + rng.normal(size=n)
    return X, action, reward.to_numpy()


def test_linucb_is_mabwisers():
    mab = pytest.importorskip("mabwiser.mab")
    X, action, reward = history()
    theirs = mab.MAB(["a", "b", "c"], mab.LearningPolicy.LinUCB(alpha=0.7, l2_lambda=2.0))
    theirs.fit(action[:200], reward[:200], X[:200].to_numpy())
    theirs.partial_fit(action[200:], reward[200:], X[200:].to_numpy())
    mine = B.LinUCB(["a", "b", "c"], alpha=0.7, l2=2.0, intercept=False)
    mine.update(X[:200], action[:200], reward[:200]).update(X[200:], action[200:], reward[200:])
    new = history(50, seed=1)[0]
    mean, se = mine.beliefs(new)
    np.testing.assert_allclose(
        mean + 0.7 * se, pd.DataFrame(theirs.predict_expectations(new.to_numpy()))[["a", "b", "c"]], atol=1e-10
    )
    assert mine.choose(new)["action"].tolist() == theirs.predict(new.to_numpy())


def test_thompson_is_mabwisers():
    mab = pytest.importorskip("mabwiser.mab")
    X, action, reward = history(60)
    theirs = mab.MAB(["a", "b", "c"], mab.LearningPolicy.LinTS(alpha=0.7, l2_lambda=2.0), seed=3)
    theirs.fit(action, reward, X.to_numpy())
    mine = B.LinearThompson(["a", "b", "c"], alpha=0.7, l2=2.0, intercept=False).update(X, action, reward)
    new = history(4, seed=1)[0]
    mean, se = mine.beliefs(new)
    models = [theirs._imp.arm_to_model[a] for a in "abc"]
    for k in range(4):
        x, rng = new.iloc[k].to_numpy(), np.random.default_rng(k)
        drawn = pd.DataFrame(theirs.predict_expectations(np.repeat(x[None], 4000, axis=0)))[["a", "b", "c"]]
        np.testing.assert_allclose(drawn.mean(), mean.iloc[k], atol=0.03)
        np.testing.assert_allclose(drawn.std(), 0.7 * se.iloc[k], atol=0.01)
        # The library's arms share one state of luck, so their draws move together; drawn apart from its beliefs, they win as often as we say.
        apart = np.column_stack([rng.multivariate_normal(m.beta, 0.49 * m.A_inv, 20_000) @ x for m in models])
        np.testing.assert_allclose(
            mine.chances(new).iloc[k], np.bincount(apart.argmax(axis=1), minlength=3) / 20_000, atol=0.015
        )


@pytest.mark.parametrize("kind", BOTH)
def test_chances_are_those_of_the_draw(kind):
    X, action, reward = history()
    bandit = kind(["a", "b", "c"], explore=0.3).update(X, action, reward)
    new = pd.DataFrame(np.repeat(X.iloc[[0]].to_numpy(), 20_000, axis=0), columns=X.columns)
    p, taken = bandit.chances(new), bandit.choose(new)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert p.min().min() >= 0.1 - 1e-12
    shares = taken["action"].value_counts(normalize=True).reindex(p.columns)
    np.testing.assert_allclose(shares, p.iloc[0], atol=0.015)
    assert all(taken.loc[taken["action"] == a, "propensity"].eq(p[a].iloc[0]).all() for a in p)


@pytest.mark.parametrize("kind", BOTH)
def test_conventions_and_determinism(kind):
    X, action, reward = history()
    bandit = kind(["a", "b", "c"], alpha=0.4)
    assert clone(bandit).get_params() == bandit.get_params()
    runs = [clone(bandit).update(X, action, reward).choose(X) for _ in range(2)]
    pd.testing.assert_frame_equal(*runs)
    order = np.random.default_rng(1).permutation(len(X))
    mixed = clone(bandit).update(X.iloc[order], pd.Series(action), pd.Series(reward))  # matched by id
    np.testing.assert_allclose(mixed.beliefs(X)[0], clone(bandit).update(X, action, reward).beliefs(X)[0], atol=1e-9)


def test_forgetting_is_weighting():
    X, action, reward = history()
    mine = B.LinUCB(["a", "b", "c"], discount=0.5, intercept=False)
    mine.update(X[:100], action[:100], reward[:100]).update(X[100:], action[100:], reward[100:])
    w = np.where(np.arange(300) < 100, 0.5, 1.0) * (action == "a")
    x = X.to_numpy()
    expected = np.linalg.solve((x * w[:, None]).T @ x + np.eye(3), x.T @ (w * reward))
    np.testing.assert_allclose(mine.beliefs(X)[0]["a"], x @ expected, atol=1e-10)


def test_late_rewards():
    X, _, _ = history(6)
    bandit, straight = B.LinearThompson(["a", "b"]), B.LinearThompson(["a", "b"])
    taken = bandit.choose(X, remember=True)["action"]
    assert bandit.waiting == 6
    bandit.reward(pd.Series([1.0, 2.0], index=[4, 1]))
    straight.update(X.loc[[4, 1]], taken.loc[[4, 1]], pd.Series([1.0, 2.0], index=[4, 1]))
    assert bandit.waiting == 4 and bandit.beliefs(X)[0].equals(straight.beliefs(X)[0])
    with pytest.raises(KitError, match="waits for no reward"):
        bandit.reward(pd.Series([1.0], index=[1]))
    with pytest.raises(KitError, match="waits for a reward already"):
        bandit.choose(X.loc[[0]], remember=True)


@pytest.mark.parametrize(
    "call, holds",
    [
        (lambda b, X, a, r: b.update(X, a, r[:5]), "rewards"),
        (lambda b, X, a, r: b.update(X, np.where(a == "a", "q", a), r), "no action 'q'"),
        (lambda b, X, a, r: b.update(X.mask(X > 2), a, r), "missing or infinite"),
        (lambda b, X, a, r: b.update(X, a, np.full(len(X), np.nan)), "missing or infinite"),
        (lambda b, X, a, r: b.update(X, a, r).choose(X[["y", "x", "z"]]), "columns"),
        (lambda b, X, a, r: b.choose(X.assign(x="word")), "numbers"),
        (lambda b, X, a, r: b.choose(X, cost={"q": 1.0}), "no action 'q'"),
        (lambda b, X, a, r: b.choose(X, allowed=pd.DataFrame(False, X.index, list("abc"))), "no action left"),
        (lambda b, X, a, r: b.choose(X, allowed=pd.DataFrame(True, X.index[:3], list("abc"))), "allowed"),
        (lambda b, X, a, r: b.set_params(actions=["a"]).choose(X), "two or more"),
        (lambda b, X, a, r: b.set_params(discount=0).choose(X), "discount"),
    ],
)
def test_bad_input(call, holds):
    X, action, reward = history()
    with pytest.raises(KitError, match=holds):
        call(B.LinUCB(["a", "b", "c"]), X, action, reward)


@pytest.mark.parametrize("kind", BOTH)
def test_what_is_not_allowed_is_not_done(kind):
    X, action, reward = history()
    bandit = kind(["a", "b", "c"], explore=0.5).update(X, action, reward)
    may = pd.DataFrame({"a": X["x"] < 0, "b": True, "c": False})
    p = bandit.chances(X, allowed=may)
    assert (p["c"] == 0).all() and (p.loc[X["x"] >= 0, "a"] == 0).all()
    assert (bandit.choose(X, cost={"a": 99.0, "c": 99.0}, allowed=None)["action"] == "b").mean() > 0.6


def test_allowed_actions():
    may = B.allowed_actions([1, 2, 3], ["none", "mail"], contacts=[0, 4, 1], cap=4, consent=[True, True, False])
    assert may["none"].all() and may["mail"].tolist() == [True, False, False]
    broke = B.allowed_actions(range(5), ["none", "mail"], costs={"mail": 2.0}, left=5.0)
    assert broke["mail"].sum() == 2
    with pytest.raises(KitError, match="none of"):
        B.allowed_actions([1], ["mail"])
    with pytest.raises(KitError, match="number of contacts"):
        B.allowed_actions([1], ["none", "mail"], cap=3)


def test_pacing_never_overspends_and_spends():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        value, cost = pd.Series(rng.exponential(1, 2000)), rng.uniform(0.1, 0.5, 2000)
        out = B.pace(value, cost, np.repeat(np.arange(20), 100), budget=100)
        spent = cost[out["taken"]].sum()
        assert 75 < spent <= 100 + 1e-9 and out["spent"].iloc[-1] == pytest.approx(spent)
        half = cost[:1000][out["taken"][:1000]].sum()
        assert 0.3 < half / spent < 0.75
    rich = B.pace(value, cost, np.repeat(np.arange(20), 100), budget=1e6)
    assert (rich["taken"] == (value > cost)).all() and (rich["price"] == 0).all()
    with pytest.raises(KitError, match="above 0"):
        B.pace(value, cost * 0, np.zeros(2000), 5)
    with pytest.raises(KitError, match="above 0"):
        B.Pacer(0, 5)
    with pytest.raises(KitError, match="was spent"):
        B.Pacer(1, 5).spent(float("nan"))


def lab(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"m": rng.integers(0, 2, n)})
    worth = pd.DataFrame({"a": 0.3 + 0 * X["m"], "b": 0.1 + 0.4 * X["m"]})
    return X, worth, (rng.random((n, 1)) < worth).astype(float)


def test_learning_beats_testing():
    X, worth, fate = lab()
    runs = {
        k.__name__: B.run_bandit(lambda s, k=k: k(["a", "b"], alpha=0.5, seed=s), X, fate, worth, 150, seeds=range(3))
        for k in BOTH
    }
    test = B.run_bandit(lambda s: B.LinUCB(["a", "b"], explore=1.0, seed=s), X, fate, worth, 150, seeds=range(3))
    for r in runs.values():
        assert B.regret(r).high < B.regret(test).low
        assert (r.groupby("seed")["regret"].diff().dropna() >= -1e-12).all()
    assert B.regret(test.query("seed < 2")).value is None
    assert B.regret(test, "reward").value == pytest.approx(fate.to_numpy().mean(), abs=0.03)
    late = B.run_bandit(lambda s: B.LinUCB(["a", "b"], alpha=0.5, seed=s), X, fate, worth, 150, 4, range(3))
    assert B.regret(late).value > B.regret(runs["LinUCB"]).value
    assert len(B.plot_regret(runs | {"test": test}).lines) == 3
    matplotlib.pyplot.close("all")
    with pytest.raises(KitError, match="differ in rows"):
        B.run_bandit(lambda s: None, X, fate[:5])
    with pytest.raises(KitError, match="batch"):
        B.run_bandit(lambda s: None, X, fate, batch=0)


class Always:
    def choose(self, X):
        return pd.DataFrame({"action": "b", "propensity": 1.0}, index=X.index)

    def update(self, X, action, reward):
        assert set(action) == {"b"}


def test_replay_is_unbiased():
    values = []
    for seed in range(25):
        X, worth, fate = lab(2000, seed)
        b = np.random.default_rng(100 + seed).random(2000) < np.where(X["m"] == 1, 0.2, 0.6)
        p = np.where(b, np.where(X["m"] == 1, 0.2, 0.6), np.where(X["m"] == 1, 0.8, 0.4))
        reward = np.where(b, fate["b"], fate["a"])
        values.append(B.replay(Always(), X, np.where(b, "b", "a"), p, reward, 500, seed=seed).value - worth["b"].mean())
    assert abs(np.mean(values)) < 3 * np.std(values) / 25**0.5
    assert B.replay(Always(), X, np.where(b, "b", "a"), p, reward, min_n=5000).value is None
    with pytest.raises(KitError, match="above 0"):
        B.replay(Always(), X, np.where(b, "b", "a"), p * 0, reward)


def test_a_bandits_log_values_other_policies():
    hits = []
    for seed in range(12):
        X, worth, fate = lab(1500, seed)
        bandit, parts = B.LinearThompson(["a", "b"], alpha=0.5, explore=0.2, seed=seed), []
        for start in range(0, 1500, 250):
            x = X.iloc[start : start + 250]
            taken = bandit.choose(x)
            reward = np.where(taken["action"] == "a", fate.loc[x.index, "a"], fate.loc[x.index, "b"])
            bandit.update(x, taken["action"], reward)
            parts.append(taken.assign(reward=reward))
        log = pd.concat(parts)
        e = evaluate(
            same_policy(X.index, "a", ["a", "b"]),
            log["action"],
            log["propensity"],
            log["reward"],
            n_boot=200,
            min_ess=50,
        ).estimate
        hits.append(e.low <= 0.3 <= e.high)
    assert np.mean(hits) > 0.75
