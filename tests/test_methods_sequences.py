"""What the sequences promise: backward induction is right, values hold on fresh carts, and the shop's log is read right."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import sequences as S
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce

matplotlib.use("Agg")
STATE = ["keen", "offered"]
# what happens: chance to return at step 1 by (keen, action), at step 2 by (offered, action); an offer takes 2 of 10
EARLY = {(0, "none"): 0.05, (0, "offer"): 0.20, (1, "none"): 0.40, (1, "offer"): 0.45}
LATE = {(0, "none"): 0.05, (0, "offer"): 0.20, (1, "none"): 0.10, (1, "offer"): 0.06}


def carts(n, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    keen, steps = rng.integers(0, 2, n), []
    unit, offered = np.arange(n), np.zeros(n, int)
    for step, odds in ((1, EARLY), (2, LATE)):
        offer = rng.random(len(unit)) < share
        action = np.where(offer, "offer", "none")
        first = keen[unit] if step == 1 else offered[unit]
        back = rng.random(len(unit)) < [odds[k, a] for k, a in zip(first, action)]
        reward = back * np.where(offer, 8.0, 10.0) - 0.1 * offer
        facts = {
            "unit": unit,
            "step": step,
            "keen": keen[unit],
            "offered": offered[unit],
            "contacts": offered[unit] + 2 * (keen[unit] == 0),
        }
        steps.append(
            pd.DataFrame(facts | {"action": action, "propensity": np.where(offer, share, 1 - share), "reward": reward})
        )
        if step == 1:
            offered[unit] = offer
            unit = unit[~back]
    return pd.concat(steps, ignore_index=True)


def gain(odds, key, action):
    return odds[key, action] * (8.0 if action == "offer" else 10.0) - 0.1 * (action == "offer")


def true_value(plan):
    """Of a plan: first action by keen, second by offered."""
    total = 0.0
    for keen in (0, 1):
        a = plan[1, keen]
        sent = int(a == "offer")
        total += gain(EARLY, keen, a) + (1 - EARLY[keen, a]) * gain(LATE, sent, plan[2, sent])
    return total / 2


def best_plan():
    second = {(2, s): max(("none", "offer"), key=lambda a: gain(LATE, s, a)) for s in (0, 1)}

    def worth(k, a):
        sent = int(a == "offer")
        return gain(EARLY, k, a) + (1 - EARLY[k, a]) * gain(LATE, sent, second[2, sent])

    return second | {(1, k): max(("none", "offer"), key=lambda a: worth(k, a)) for k in (0, 1)}


def rules_of(plan):
    return {(1, k, 0): plan[1, k] for k in (0, 1)} | {(2, k, s): plan[2, s] for k in (0, 1) for s in (0, 1)}


def test_backward_induction_is_right():
    learnt = S.sequence_policy(carts(60_000), STATE)
    plan = learnt.plan().set_index(["step", *STATE])["action"]
    best = best_plan()
    assert all(plan[1, k, 0] == best[1, k] for k in (0, 1))
    assert all(plan[2, k, s] == best[2, s] for k in (0, 1) for s in (0, 1))
    values = learnt.plan().query("step == 1")
    assert np.average(values["value"], weights=[0.5, 0.5]) == pytest.approx(true_value(best), abs=0.08)
    uneven = S.sequence_policy(carts(60_000, 1, share=0.3), STATE).plan()
    pd.testing.assert_frame_equal(uneven[["step", *STATE, "action"]], learnt.plan()[["step", *STATE, "action"]])


def test_intervals_hold_on_fresh_carts():
    rules = {(1, k, 0): a for k, a in ((0, "offer"), (1, "none"))} | {2: "offer"}
    true = true_value({(1, 0): "offer", (1, 1): "none", (2, 0): "offer", (2, 1): "offer"})
    less = true_value({(1, 0): "none", (1, 1): "none", (2, 0): "none", (2, 1): "none"})
    hits, learnt_hits = [], []
    for seed in range(20):
        log = carts(3000, seed)
        teach, judge = log[log["unit"] < 1500], log[log["unit"] >= 1500]
        fixed, silent = (S.sequence_policy(teach, STATE, rules=r, min_rows=1) for r in (rules, {1: "none", 2: "none"}))
        e = S.sequence_value(fixed, judge, n_boot=200)
        hits += [x.low <= true <= x.high for x in e.estimates.values()]
        d = S.sequence_value(fixed, judge, baseline=silent, n_boot=200).estimate
        hits.append(d.low <= true - less <= d.high)
        learnt = S.sequence_policy(teach, STATE)
        p = learnt.plan().set_index(["step", *STATE])["action"]
        worth = [
            gain(EARLY, k, p[1, k, 0]) + (1 - EARLY[k, p[1, k, 0]]) * gain(LATE, s, p[2, k, s])
            for k in (0, 1)
            for s in [int(p[1, k, 0] == "offer")]
        ]
        v = S.sequence_value(learnt, judge, n_boot=200).estimate
        learnt_hits.append(v.low <= np.mean(worth) <= v.high)
    assert np.mean(hits) > 0.87 and np.mean(learnt_hits) > 0.83


def test_by_hand():
    log = pd.DataFrame({
        "unit": [1, 1, 2, 3, 3], "step": [1, 2, 1, 1, 2], "action": ["a", "b", "a", "b", "b"],
        "propensity": [0.5, 0.25, 0.5, 0.5, 0.75], "reward": [1.0, 3.0, 5.0, 7.0, 9.0]})  # fmt: skip
    policy = pd.DataFrame({"a": [1.0, 0, 1, 1, 0], "b": [0.0, 1, 0, 0, 1]})
    values, weights = S._per_decision(policy, S._decisions(log, []), None, "none")
    ips = np.array([2 * 1 + 8 * 3, 2 * 5, 0])
    assert values["IPS"][0] == pytest.approx(ips.mean())
    assert values["SNIPS"][0] == pytest.approx((2 * 1 + 2 * 5) / 4 + 8 * 3 / (8 + 2))
    assert weights["ess"] == pytest.approx(10**2 / (64 + 4)) and "DR" not in values


def test_order_of_rows_and_determinism():
    log = carts(2000)
    mixed = log.sample(frac=1, random_state=3)
    one, two = (S.sequence_policy(x, STATE) for x in (log, mixed))
    pd.testing.assert_frame_equal(one.table, two.table)
    assert S.sequence_value(one, log, n_boot=200).to_dict() == S.sequence_value(one, mixed, n_boot=200).to_dict()


def test_cap_and_bar():
    log = carts(4000)
    capped = S.sequence_policy(log, STATE, cap=2)
    e = S.sequence_value(capped, log, cap=2)
    assert e.estimate.value < S.sequence_value(S.sequence_policy(log, STATE), log).estimate.value
    assert (S._capped(capped.chances(log), log, 2, "none").loc[log["contacts"] >= 2, "none"] == 1).all()
    assert set(S.sequence_policy(log, STATE, bar=100.0).plan()["action"]) == {"none"}


def test_pure_noise_is_pooled():
    """States that mean nothing do not split the plan."""
    rng = np.random.default_rng(0)
    same = []
    for seed in range(10):
        log = carts(2000, seed).assign(noise=lambda d: d["unit"] % 15)
        log["reward"] = rng.permutation(log["reward"])
        same.append(
            S.sequence_policy(log, ["noise"], min_rows=1)
            .plan()
            .query("step == 1")["action"]
            .value_counts(normalize=True)
            .max()
        )
    assert np.mean(same) > 0.8


@pytest.mark.parametrize(
    "change, holds",
    [
        (lambda d: d.drop(columns="reward"), "'reward' is missing"),
        (lambda d: d[:0], "no decisions"),
        (lambda d: d.assign(keen=d["keen"].where(d.index > 0)), "are missing"),
        (lambda d: d.assign(reward="x"), "not numbers"),
        (lambda d: pd.concat([d, d[:1]]), "labels appear twice"),
        (lambda d: pd.concat([d, d[:1]], ignore_index=True), "share unit and step"),
        (lambda d: d[~((d["step"] == 1) & (d["unit"] == 0))] if 0 in set(d.query("step == 2")["unit"]) else d[d["step"] == 2].assign(step=[1, *[2] * (d["step"].eq(2).sum() - 1)]), "skip a step"),
        (lambda d: d.assign(propensity=0.0), "not above 0"),
    ],
)  # fmt: skip
def test_bad_logs(change, holds):
    with pytest.raises(KitError, match=holds):
        S.sequence_policy(change(carts(300)), STATE)


def test_other_bad_input():
    log = carts(500)
    with pytest.raises(KitError, match="never shows"):
        S.sequence_policy(log, STATE, rules={1: "letter"})
    with pytest.raises(KitError, match="too few rows"):
        S.sequence_policy(log[:40], STATE, min_rows=50)
    with pytest.raises(KitError, match="'contacts' is missing"):
        S.sequence_policy(log.drop(columns="contacts"), STATE, cap=2)
    with pytest.raises(KitError, match="never met"):
        S.sequence_value(S.sequence_policy(log, STATE, min_rows=1), log.assign(keen=7))
    few = S.sequence_value(S.sequence_policy(log, STATE, min_rows=1), log[log["unit"] < 100])
    assert few.estimate.value is None and "sample size" in few.reason


def test_the_shops_log():
    tables = ecommerce.simulate(0.006, seed=3).tables
    log = S.cart_log(tables)
    arms = ecommerce.readout(tables, "retargeting").set_index("session_id")
    assert set(log["unit"]) == set(arms.index)
    profit = log.groupby("unit")["reward"].sum()
    np.testing.assert_allclose(
        profit, arms.loc[profit.index, "profit"], atol=1e-9
    )  # margins and contacts, none lost, none twice
    np.testing.assert_allclose(
        log.groupby("unit")["propensity"].prod().loc[log[log["step"] == 2]["unit"].unique()], 0.2
    )
    early = log[log["step"] == 1].set_index("unit")["back"]
    assert (log[log["step"] == 2]["unit"].map(early) == 0).all() and 0 < early.mean() < 0.1
    for arm, pair in S.SEQUENCES.items():
        plan = S.sequence_policy(log, ["offered"], rules=dict(enumerate(pair, 1)), min_rows=1)
        ips = S.sequence_value(plan, log, min_ess=0, min_carriers=0, n_boot=100).estimates["IPS"].value
        if ips is not None:  # a cart that came back early speaks for all sequences with that beginning
            own = arms["action"] == arm
            assert ips == pytest.approx(arms.loc[own, "profit"].sum() / 0.2 / len(arms), abs=1.0)
    with pytest.raises(KitError, match="no assignment"):
        S.cart_log(tables, {"x": ("none", "none")})
