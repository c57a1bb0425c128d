import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from mktai_kit.methods import segment_checks as C
from mktai_kit.methods.segments import Segmenter
from mktai_kit.settings import KitError


def test_agreement_is_sklearns():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 200), rng.integers(0, 5, 200)
    assert C.agreement(a, b).value == pytest.approx(adjusted_rand_score(a, b))
    one = C.agreement(a, 2 - a)
    assert (one.value, one.low, one.high) == (1, 1, 1)
    by_id = pd.Series(a, index=[f"c{i}" for i in range(200)])
    assert C.agreement(by_id, by_id[::-1]).value == 1
    assert C.agreement(a[:20], b[:20]).value is None


def test_agreement_covers():
    rng = np.random.default_rng(1)
    big = rng.integers(0, 3, 200_000)
    noisy = np.where(rng.random(200_000) < 0.2, rng.integers(0, 3, 200_000), big)
    truth = adjusted_rand_score(big, noisy)
    hits = 0
    for s in range(100):
        rows = rng.integers(0, 200_000, 400)
        e = C.agreement(big[rows], noisy[rows], n_boot=300, seed=s)
        hits += e.low <= truth <= e.high
    assert hits >= 88


def test_profile():
    rng = np.random.default_rng(2)
    ids = pd.Index([f"c{i}" for i in range(600)])
    segment = pd.Series(rng.integers(0, 3, 600), ids)
    frame = pd.DataFrame(
        {"age": 40 + 5 * (segment == 1) + 10 * rng.normal(size=600), "sex": rng.choice(["f", "m"], 600)}, ids
    )
    frame.loc[ids[:50], "age"] = np.nan
    table = C.profile(segment[::-1], frame).set_index(["variable", "value", "segment"])
    older = table.loc["age", "", 1]
    assert older["difference"].low > 0 and older["p_adjusted"] < 0.01 and 0.3 < older["d"] < 0.8
    assert older["mean"].n == (segment == 1).sum() - (segment[:50] == 1).sum()
    assert set(table.loc["sex"].index.get_level_values(0)) == {"f", "m"}
    with pytest.raises(KitError, match="no finding"):
        C.profile(segment, frame, clustered_on=["age"])
    with pytest.raises(KitError, match="ids are not those"):
        C.profile(segment.rename({"c0": "x"}), frame)
    with pytest.raises(KitError, match="holds times"):
        C.profile(segment, frame.assign(day=pd.Timestamp("2025-01-01")))
    few = C.profile(np.r_[np.zeros(595), np.ones(5)], frame[["age"]])
    assert (
        few["difference"].map(lambda e: e.note.startswith("not enough data")).all() and few["p_adjusted"].isna().all()
    )


def test_profile_raises_few_false_alarms():
    rng = np.random.default_rng(3)
    alarms = 0
    for _run in range(100):
        frame = pd.DataFrame(rng.normal(size=(200, 5)))
        alarms += C.profile(rng.integers(0, 3, 200), frame)["p_adjusted"].min() <= 0.05
    assert alarms <= 11


def test_over_time():
    rng = np.random.default_rng(4)
    kind = rng.choice(2, 400, p=[0.7, 0.3])
    ids = [f"c{i}" for i in range(400)]
    later = kind.copy()
    later[np.flatnonzero(kind == 0)[:30]] = 1
    jan, feb = (pd.DataFrame(8 * k[:, None] + rng.normal(size=(400, 2)), ids) for k in (kind, later))
    found = C.stability_over_time(
        {"Jan": jan, "Feb": feb.iloc[100:].sample(frac=1, random_state=1)}, Segmenter(n_segments=2)
    )
    row = found.table.iloc[0]
    changed = (kind != later)[100:]
    assert (
        row["n_shared"] == 300
        and row["moved"].value == pytest.approx(changed.mean())
        and row["same_borders"].value == 1
    )
    t = found.transitions.set_index(["from", "to"])["n"]
    assert t[0, 1] == changed.sum() and t[1, 0] == 0 and t.sum() == 300
    with pytest.raises(KitError, match="two or more"):
        C.stability_over_time({"Jan": jan}, Segmenter())
    with pytest.raises(KitError, match="one row per customer"):
        C.stability_over_time({"Jan": jan, "Feb": pd.concat([feb, feb])}, Segmenter())


def orders():
    day = pd.to_datetime(
        ["2025-01-01", "2025-03-01", "2025-03-01", "2025-02-01", "2025-03-05", "2025-03-20", "2025-02-02"]
    )
    return pd.DataFrame({
        "order_id": [1, 2, 2, 3, 4, 5, 6], "customer_id": ["a", "b", "b", "b", None, "a", "c"], "timestamp": day,
        "amount": [10.0, 5, 5, 20, 99, 50, -5],
    })  # fmt: skip


def test_rfm():
    out = C.rfm_segments(orders(), "2025-03-10")
    assert list(out.index) == ["a", "b"], "guests, returns alone and what comes later are left out"
    assert out.loc["b", ["recency", "frequency", "monetary"]].tolist() == [9, 2, 30]
    assert out.loc["a", "recency"] == 68
    assert list(C.rfm_segments(orders(), "2025-03-10", history_days=30).index) == ["b"]
    rng = np.random.default_rng(5)
    many = pd.DataFrame({
        "customer_id": rng.integers(0, 900, 3000), "amount": np.exp(rng.normal(size=3000)),
        "timestamp": pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 200, 3000), unit="D"),
    })  # fmt: skip
    one, same = C.rfm_segments(many, "2025-07-20"), C.rfm_segments(many.sample(frac=1, random_state=1), "2025-07-20")
    pd.testing.assert_frame_equal(one.drop(columns="monetary"), same.drop(columns="monetary"))
    assert one["m"].value_counts().between(150, 210).all()
    assert one.groupby("frequency")["f"].nunique().eq(1).all(), "equal customers get equal scores"
    assert (
        one.loc[one["segment"] == "Champions", "recency"].mean() < one.loc[one["segment"] == "Lost", "recency"].mean()
    )
    utc = C.rfm_segments(many.assign(timestamp=many["timestamp"].dt.tz_localize("UTC")), "2025-07-20")
    pd.testing.assert_frame_equal(one, utc)
    with pytest.raises(KitError):
        C.rfm_segments(many, "soon")
    for bad, holds in [
        (many.drop(columns="amount"), "no column 'amount'"),
        (many.assign(timestamp="2025-01-01"), "no times"),
        (many.assign(amount=np.nan), "no amount"),
        (many.assign(amount=-1.0), "no orders with a positive amount"),
    ]:
        with pytest.raises(KitError, match=holds):
            C.rfm_segments(bad, "2025-07-20")


def scores(n, effect, seed):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"nothing": rng.normal(size=n), "mail": effect + rng.normal(size=n)})


def test_actionable_finds_and_does_not_invent():
    segment = np.repeat(["a", "b"], 500)
    found = C.actionable(segment, scores(1000, np.repeat([1, -1], 500), 1), baseline=np.tile(["x", "y"], 500))
    assert found.tests["p_adjusted"].item() < 0.001 and found.gain.low > 0 and found.over_baseline.low > 0
    assert (
        found.gain.value == pytest.approx(0.5, abs=0.15)
        and "pays" in found.statement
        and "better than" in found.statement
    )
    rejected = [C.actionable(segment, scores(1000, 0.3, 100 + s)).tests["p"].item() < 0.05 for s in range(200)]
    assert 0.01 <= np.mean(rejected) <= 0.095


def test_actionable_draws_whole_customers():
    """Every customer has five rows, in both segments: rows taken as independent reject far too often."""
    p = {True: [], False: []}
    for s in range(80):
        rng = np.random.default_rng(s)
        customer = np.repeat(np.arange(120), 5)
        home = np.repeat(rng.choice(["a", "b"], 120), 5)
        dr = pd.DataFrame({"nothing": 0.0, "mail": np.repeat(rng.normal(size=120), 5) + 0.1 * rng.normal(size=600)})
        for clustered in p:
            p[clustered].append(
                C.actionable(home, dr, cluster=customer if clustered else None, min_n=40).tests["p"].item()
            )
    assert np.mean(np.array(p[True]) < 0.05) < 0.15 < np.mean(np.array(p[False]) < 0.05)


def test_actionable_matches_by_id_and_refuses():
    rng = np.random.default_rng(6)
    ids = pd.Index([f"c{i}" for i in range(800)])
    segment = pd.Series(rng.choice(["a", "b"], 800), ids)
    action = pd.Series(rng.choice(["nothing", "mail"], 800), ids)
    outcome = pd.Series((segment == "a") * (action == "mail") * 2.0 + rng.normal(size=800), ids)
    given = dict(propensity={"nothing": 0.5, "mail": 0.5})
    one = C.actionable(segment, outcome=outcome, action=action, **given)
    same = C.actionable(segment, outcome=outcome[::-1], action=action.sample(frac=1, random_state=1), **given)
    pd.testing.assert_frame_equal(one.effects, same.effects)
    assert one.gain == same.gain and one.tests["p"].item() < 0.001
    small = C.actionable(segment.iloc[:60], outcome=outcome.iloc[:60], action=action.iloc[:60], **given)
    assert small.statement.startswith("not enough data") and small.gain.value is None
    with pytest.raises(KitError, match="neither"):
        C.actionable(segment)
    with pytest.raises(KitError, match="no scores of 'held_out'"):
        C.actionable(segment, scores(800, 0, 1), control="held_out")
    with pytest.raises(KitError, match="missing"):
        C.actionable(segment.mask(segment == "a"), scores(800, 0, 1).set_index(ids))


def test_plot():
    rng = np.random.default_rng(7)
    for d in (1, 2, 5):
        ax = C.plot_segments(rng.normal(size=(100, d)), rng.integers(0, 3, 100))
        assert ax.get_xlabel() and len(ax.get_legend().get_texts()) == 3
    with pytest.raises(KitError, match="told apart"):
        C.plot_segments(rng.normal(size=(100, 2)), np.arange(100))
    plt.close("all")
