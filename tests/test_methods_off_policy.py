"""What off-policy evaluation promises: the right value, an interval that holds, and a refusal where there is no answer."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mktai_kit.data import loaders, sources
from mktai_kit.data.trials import trial, trial_context
from mktai_kit.methods import off_policy as op
from mktai_kit.methods.metrics import Estimate
from mktai_kit.methods.uplift import DRLearner, make_folds
from mktai_kit.settings import KitError

matplotlib.use("Agg")
EASY = {"min_ess": 0, "min_carriers": 0, "max_share": 1.0, "clip": 100.0}  # with a clip, the mean weight is not judged


def made(n=2000, seed=0, lift=0.1):
    """Two actions, chosen by known chances that lean on x; the second is better where x is 1."""
    rng = np.random.default_rng(seed)
    index = pd.Index([f"u{i}" for i in range(n)])
    X = pd.DataFrame({"x": rng.integers(0, 2, n), "z": rng.normal(size=n)}, index=index)
    true = pd.DataFrame({"a": 0.2 + 0.1 * X["x"], "b": 0.15 + 0.1 * X["x"] + lift * X["x"]})
    chance = np.where(X["x"] == 1, 0.25, 0.6)
    b = rng.random(n) < chance
    log = pd.DataFrame({"action": np.where(b, "b", "a"), "propensity": np.where(b, chance, 1 - chance)}, index=index)
    log["reward"] = (rng.random(n) < np.where(b, true["b"], true["a"])).astype(float)
    return X, true, log


def columns(log):
    return {"action": log["action"], "propensity": log["propensity"], "reward": log["reward"]}


def test_by_hand():
    policy = pd.DataFrame({"a": [1.0, 0.5, 0.0, 1.0], "b": [0.0, 0.5, 1.0, 0.0]})
    q = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [0.0, 1.0, 0.0, 1.0]})
    e = op.evaluate(policy, list("abba"), [0.5, 0.25, 0.5, 0.8], [2.0, 4.0, 1.0, 3.0], q, **EASY)
    w, r, taken = np.array([2.0, 2.0, 2.0, 1.25]), np.array([2.0, 4.0, 1.0, 3.0]), np.array([1.0, 1.0, 0.0, 4.0])
    assert e.estimates["IPS"].value == pytest.approx((w * r).mean())
    assert e.estimates["SNIPS"].value == pytest.approx((w * r).sum() / w.sum())
    assert e.estimates["DR"].value == pytest.approx((np.array([1.0, 1.5, 0.0, 4.0]) + w * (r - taken)).mean())
    assert e.ess == pytest.approx(w.sum() ** 2 / (w**2).sum()) and e.estimate is e.estimates["DR"]
    capped = op.weight_report(policy, list("abba"), [0.5, 0.25, 0.5, 0.8], clip=1.5)
    assert capped["cut"] == pytest.approx(1 - (1.5 * 3 + 1.25) / 7.25) and capped["max_weight"] == 1.5


def test_the_logs_own_policy_is_its_mean():
    _, _, log = made()
    same = pd.DataFrame(
        {"a": np.where(log["action"] == "a", log["propensity"], 1 - log["propensity"])}, index=log.index
    )
    same["b"] = 1 - same["a"]
    e = op.evaluate(same, **columns(log))
    assert e.ess == pytest.approx(len(log)) and e.estimate.value == pytest.approx(log["reward"].mean())
    gain = op.difference(same, None, **columns(log))
    assert gain.verdict == op.TOO_LITTLE  # it is the same policy: nothing varies, nothing to be said
    other = op.difference(same, op.same_policy(log.index, "a", "ab"), **columns(log)).estimate
    assert other.low < -0.00875 < other.high


def test_matched_by_id_and_deterministic():
    X, _, log = made()
    policy, q = op.greedy_policy(X.assign(a=0.5, b=X["x"])[["a", "b"]]), op.cross_q(X, log["action"], log["reward"])
    one = op.evaluate(policy, **columns(log), q=q, cluster=pd.Series(log.index, log.index))
    shuffled = log.sample(frac=1, random_state=1)
    two = op.evaluate(
        policy,
        **columns(shuffled),
        q=q.sample(frac=1, random_state=2)[["b", "a"]],
        cluster=pd.Series(log.index, log.index),
    )
    assert one.to_dict() == two.to_dict()
    again = op.evaluate(policy.iloc[::-1], **columns(log), q=q, cluster=pd.Series(log.index, log.index))
    assert again.estimate.value == pytest.approx(one.estimate.value) and again.estimate.low == pytest.approx(
        one.estimate.low
    )
    json.dumps(one.to_dict())


@pytest.mark.parametrize("bad_model", [False, True])
def test_intervals_hold(bad_model):
    hits, width = [], []
    for seed in range(40):
        X, true, log = made(1000, seed)
        policy = op.greedy_policy(true)
        q = op.cross_q(X, log["action"], log["reward"], LinearRegression())
        q = q * 0 + np.array([5.0, -3.0]) if bad_model else q
        e = op.evaluate(policy, **columns(log), q=q, n_boot=200)
        hits.append(e.estimate.low <= true.max(axis=1).mean() <= e.estimate.high)
        width.append(e.estimate.high - e.estimate.low)
    assert 0.87 <= np.mean(hits) <= 1.0
    assert (np.mean(width) < 0.2) != bad_model  # a wild model costs width, not truth


def test_skewed_rewards_are_held_too():
    """Three per cent buy, for log-normal amounts: the case of a shop."""
    hits = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = 6000
        a = rng.choice(["a", "b"], n, p=[0.7, 0.3])
        reward = (rng.random(n) < 0.03) * rng.lognormal(2.5, 0.7, n)
        e = op.evaluate(
            op.same_policy(n, "b", "ab"), a, np.where(a == "a", 0.7, 0.3), reward, n_boot=200, min_carriers=8
        ).estimate
        hits += [] if e.value is None else [e.low <= 0.03 * np.exp(2.5 + 0.245) <= e.high]
    assert len(hits) > 40 and np.mean(hits) > 0.87


def test_paired_difference_is_narrower():
    X, true, log = made(3000)
    best, near = op.greedy_policy(true), op.greedy_policy(true, explore=0.3)
    q = op.cross_q(X, log["action"], log["reward"])
    alone = op.evaluate(best, **columns(log), q=q).estimate
    pair = op.difference(best, near[["b", "a"]], **columns(log), q=q).estimate
    assert pair.high - pair.low < 0.5 * (alone.high - alone.low)
    assert pair.low < ((best - near) * true).sum(axis=1).mean() < pair.high


def test_refusals():
    n, rng = 5000, np.random.default_rng(0)
    a = np.where(rng.random(n) < 0.01, "b", "a")
    p = np.where(a == "b", 0.01, 0.99)
    r = (rng.random(n) < 0.3).astype(float)
    few = op.evaluate(op.same_policy(n, "b", "ab"), a, p, r)
    assert few.verdict == op.TOO_LITTLE and "sample size" in few.reason and few.estimate.value is None
    assert few.estimate.note.startswith("not enough data") and few.estimate.n == n
    unseen = op.evaluate(op.same_policy(n, {"a": 0.5, "c": 0.5}, "abc"), a, p, r)
    assert "never tried" in unseen.reason
    wrong = op.evaluate(op.same_policy(n, "a", "ab"), a, np.full(n, 0.5), r)
    assert "average" in wrong.reason
    rare = op.evaluate(op.same_policy(n, "a", "ab"), a, p, (np.arange(n) % 600 == 0).astype(float))
    assert "carry" in rare.reason
    assert op.evaluate(op.same_policy(n, "a", "ab"), a, p, np.zeros(n)).verdict == op.TOO_LITTLE
    w = np.where(np.arange(n) == 0, 1e-4, 1.0)
    assert op.evaluate(op.same_policy(n, "a", "ab"), np.full(n, "a"), w, r, min_ess=1).verdict == op.TOO_LITTLE


@pytest.mark.parametrize(
    "change, holds",
    [
        ({"policy": np.eye(2)}, "a policy is a table"),
        ({"policy": pd.DataFrame({"a": [0.5, 0.5], "b": [0.6, 0.5]})}, "add up to 1"),
        ({"policy": pd.DataFrame({"a": ["x", "y"], "b": [0.5, 0.5]})}, "does not hold numbers"),
        ({"policy": pd.DataFrame({"a": [np.nan, 1], "b": [0.5, 0.0]})}, "add up to 1"),
        ({"policy": pd.DataFrame()}, "a policy is a table"),
        ({"action": ["a", "c"]}, "the policy has not"),
        ({"action": ["a", None]}, "the policy has not"),
        ({"action": ["a"]}, "the policy has 2"),
        ({"propensity": [0.5, 0.0]}, "not above 0"),
        ({"propensity": [0.5, np.nan]}, "missing or infinite"),
        ({"propensity": [0.5]}, "the policy has 2"),
        ({"propensity": {"a": 0.5}}, "there is none for 'b'"),
        ({"reward": [1.0, np.nan]}, "missing or infinite"),
        ({"reward": ["x", "y"]}, "not numbers"),
        ({"reward": [1.0]}, "the policy has 2"),
        ({"q": pd.DataFrame({"a": [0.0, 0.0]})}, "not the policy's actions"),
        ({"cluster": [1, None]}, "ids are missing"),
        ({"n_boot": 5}, "n_boot"),
        ({"clip": 0}, "clip"),
        (
            {"reward": pd.Series([1.0, 0.0], ["p", "q"]), "action": pd.Series(["a", "b"], ["p", "r"])},
            "ids are not those",
        ),
    ],
)
def test_bad_input(change, holds):
    good = {
        "policy": pd.DataFrame({"a": [0.5, 0.5], "b": [0.5, 0.5]}, index=["p", "q"]),
        "action": ["a", "b"],
        "propensity": [0.5, 0.5],
        "reward": [1.0, 0.0],
    }
    with pytest.raises(KitError, match=holds):
        op.evaluate(**(good | change))


def test_policies():
    values = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 0.0], "c": [0.0, 0.0]})
    assert op.greedy_policy(values).to_numpy().tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert op.greedy_policy(values, explore=0.3).min().min() == pytest.approx(0.1)
    assert op.softmax_policy(values, 1e-3).round(6).equals(op.greedy_policy(values))
    assert op.softmax_policy(values * 1000, 1.0).sum(axis=1).tolist() == [1, 1]
    for call in (
        lambda: op.greedy_policy(values, explore=2),
        lambda: op.softmax_policy(values, 0),
        lambda: op.greedy_policy(values.mask(values == 0)),
        lambda: op.softmax_policy(values, 1.0, explore=-1),
        lambda: op.same_policy(2, "d", "abc"),
        lambda: op.same_policy(2, {"a": 0.7}, "abc"),
    ):
        with pytest.raises(KitError):
            call()


def test_q_never_saw_the_row():
    X, _, log = made(600)
    fold = make_folds(log["action"], 4)
    q = op.cross_q(X, log["action"], log["reward"], folds=fold)
    moved = log["reward"].mask(fold == 2, 50.0)
    again = op.cross_q(X, log["action"], moved, folds=fold)
    assert again[fold == 2].equals(q[fold == 2]) and not again[fold != 2].equals(q[fold != 2])
    given, cheap = (X, log["action"], log["propensity"]), DRLearner(LinearRegression(), control="a", folds=2)
    learnt = op.learn_policy(*given, log["reward"], cheap, folds=fold, sequential=False)
    assert op.learn_policy(*given, moved, cheap, folds=fold, sequential=False)[fold == 2].equals(learnt[fold == 2])
    forward, later = (op.learn_policy(*given, r, cheap, folds=fold).reindex(X.index) for r in (log["reward"], moved))
    assert (
        forward[fold == 0].isna().all().all()
        and forward[fold == 1].equals(later[fold == 1])
        and forward[fold == 2].equals(later[fold == 2])
    )


def test_q_of_rare_actions():
    X, _, log = made(600)
    log.loc[log.index[:9], "action"] = "c"
    apart = op.cross_q(X, log["action"], log["reward"], actions=["a", "b", "c", "d"])
    shared = op.cross_q(X, log["action"], log["reward"], actions=["a", "b", "c", "d"], shared=True)
    assert apart.notna().all().all() and shared.notna().all().all()
    assert apart["d"].nunique() <= 5 and apart["d"].mean() == pytest.approx(log["reward"].mean(), abs=0.01)
    with pytest.raises(KitError, match="name every action"):
        op.cross_q(X, log["action"], log["reward"], actions=["a"])


def test_learning():
    X, true, log = made(3000, lift=0.25)
    cheap = DRLearner(LinearRegression(), control="a", folds=2)
    learnt = op.learn_policy(X, log["action"], log["propensity"], log["reward"], folds=3)
    assert (learnt["b"] == X.loc[learnt.index, "x"]).mean() > 0.95
    timid = op.learn_policy(X, log["action"], log["propensity"], log["reward"], cheap, bar=1.0)
    assert (timid["a"] == 1).all()
    mixed = op.learn_policy(
        X,
        log["action"],
        log["propensity"],
        log["reward"],
        DRLearner(LinearRegression(), control="a"),
        temperature=0.1,
        explore=0.1,
    )
    assert mixed.min().min() >= 0.05 and list(mixed) == ["a", "b"]


def test_learning_from_nothing_claims_nothing():
    claims = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        X = pd.DataFrame(rng.normal(size=(500, 3))).add_prefix("x")
        a, y = pd.Series(rng.choice(["a", "b", "c"], 500)), pd.Series(rng.normal(size=500))
        fold, learner = make_folds(a, 3), DRLearner(LinearRegression(), control="a", folds=2)
        policy = op.learn_policy(X, a, np.full(500, 1 / 3), y, learner, folds=fold)
        assert set(policy.index) == set(np.flatnonzero(fold > 0))
        e = op.evaluate(
            policy, a, 1 / 3, y, op.cross_q(X, a, y, LinearRegression(), folds=fold), n_boot=100, min_ess=50
        )
        claims.append((e.estimate.value, e.estimate.low <= 0 <= e.estimate.high))
    values, held = zip(*claims)
    assert abs(np.mean(values)) < 3 * np.std(values) / 4 and np.mean(held) >= 0.8


def test_propensity_check():
    _, _, log = made(4000)
    assert op.propensity_check(log["action"], log["propensity"])["holds"].all()
    assert not op.propensity_check(log["action"], np.where(log["action"] == "a", 0.3, 0.7))["holds"].all()
    with pytest.raises(KitError):
        op.propensity_check([], [])
    with pytest.raises(KitError):
        op.propensity_check(["a", "b"], [0.5])


def test_plot():
    e = Estimate(1.0, 0.5, 1.5, 10, unit="$")
    ax = op.plot_values({"one": e, "none": Estimate(None, None, None, 3, note="not enough data: 3 rows")})
    assert ax.get_xlabel().endswith("($)") and len(ax.texts) == 1
    matplotlib.pyplot.close("all")


def log_of(variant):
    sources.fetch("open_bandit", variant=variant, progress=False)
    tables = loaders.load("open_bandit", tables=["exposures", "products"], variant=variant)
    return tables["exposures"], list(tables["products"]["product_id"])


def test_open_bandits_women_is_refused():
    seen, items = log_of("bts-women")
    given = {"action": seen["creative_id"], "propensity": seen["propensity"], "reward": seen["clicked"].astype(float)}
    chance_alone = op.evaluate(op.same_policy(len(seen), dict.fromkeys(items, 1 / len(items)), items), **given)
    assert chance_alone.verdict == op.TOO_LITTLE and chance_alone.ess < 10 and chance_alone.estimate.value is None
    for item in seen["creative_id"].value_counts().index[:3]:
        assert op.evaluate(op.same_policy(len(seen), item, items), **given).verdict == op.TOO_LITTLE

    random, items = log_of("random-women")
    given = {
        "action": random["creative_id"],
        "propensity": random["propensity"],
        "reward": random["clicked"].astype(float),
    }
    shares = seen["creative_id"].value_counts(normalize=True)
    for policy in (shares.to_dict(), *({i: 1.0} for i in items[:5])):
        e = op.evaluate(op.same_policy(len(random), {i: policy.get(i, 0.0) for i in items}, items), **given)
        assert e.verdict == op.TOO_LITTLE, e.reason


@pytest.mark.slow
def test_worlds():
    """A light version of the validation over 200 small worlds."""
    from mktai_kit.world import ecommerce, truth

    hits, refused = [], 0
    for seed in range(5):
        world = ecommerce.simulate(0.008, seed=seed)
        log = trial(world.tables, "creatives")
        hoped = truth.unseal(world).outcomes("creatives", "expected").loc[log.index]
        hoped, X = (
            hoped[sorted(hoped)],
            trial_context(world.tables, "creatives")[["mobile", "known", "above_median_price"]],
        )
        fold = make_folds(log["action"], 5, log["cluster"])
        q = op.cross_q(
            X, log["action"], log["goal"], LinearRegression(), folds=fold, cluster=log["cluster"], actions=list(hoped)
        )
        learner = DRLearner(LinearRegression(), control="plain", folds=2)
        policies = {
            "uniform": op.same_policy(log.index, dict.fromkeys(hoped, 0.2), list(hoped)),
            "plain": op.same_policy(log.index, "plain", list(hoped)),
            "learnt": op.learn_policy(
                X, log["action"], log["propensity"], log["goal"], learner, folds=fold, cluster=log["cluster"]
            ),
        }
        for p in policies.values():
            e = op.evaluate(p, log["action"], log["propensity"], log["goal"], q, log["cluster"], n_boot=300).estimate
            refused += e.value is None
            hits += [] if e.value is None else [e.low <= (p * hoped.loc[p.index]).sum(axis=1).mean() <= e.high]
    assert np.mean(hits) >= 0.8 and refused <= 2


def test_actions_that_are_numbers_are_as_good_as_names():
    X, _true, log = made()
    numbers = log.assign(action=log["action"].map({"a": 1, "b": 2}))
    learnt = op.learn_policy(X, **columns(numbers))
    named = op.learn_policy(X, **columns(log))
    assert list(learnt) == [1, 2] and np.array_equal(learnt, named)
    assert op.evaluate(learnt, **columns(numbers)).estimate == op.evaluate(named, **columns(log)).estimate


def test_a_policy_differs_from_itself_by_nothing():
    _X, _true, log = made()
    policy = op.same_policy(log.index, {"a": 0.5, "b": 0.5}, ["a", "b"])
    got = op.difference(policy, policy[["b", "a"]], **columns(log))
    assert got.verdict == op.ENOUGH and (got.estimate.value, got.estimate.low, got.estimate.high) == (0, 0, 0)
