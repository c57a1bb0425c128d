"""Policies: economics by hand, the knapsack against brute force, intervals against a known truth, bad input."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mktai_kit.decide import policy
from mktai_kit.decide.policy import Offer
from mktai_kit.settings import KitError

OFFER = Offer(effect=0.2, margin=0.3, contact_cost=0.5, face_value=2.0, redemption=0.1)


def town(seed, n=400):
    rng = np.random.default_rng(seed)
    chance = rng.beta(1.2, 1.5, n)
    return pd.DataFrame(
        {
            "customer": np.arange(n),
            "chance": chance,
            "spend": rng.gamma(2, 40, n),
            "active": (rng.random(n) < chance).astype(int),
        }
    )


def test_profit_and_cost_by_hand():
    # Sure to come: contact 0.5 and one in ten redeems 2. Sure to stay away: one in five comes, spends 100 at 30 %, redeems.
    assert policy.incremental_profit(OFFER, [1, 0], [100, 100]) == pytest.approx([-0.7, 0.2 * 30 - 0.5 - 0.4])
    assert policy.offer_cost(OFFER, [1, 0]) == pytest.approx([0.7, 0.9])


@pytest.mark.parametrize(
    "bad",
    [
        {"effect": -0.1},
        {"effect": 1.1},
        {"margin": 2},
        {"redemption": np.nan},
        {"contact_cost": -1},
        {"face_value": np.inf},
    ],
)
def test_offer_out_of_range(bad):
    with pytest.raises(KitError, match=next(iter(bad))):
        Offer(**{"effect": 0.1, **bad})


def test_choose_is_within_one_customer_of_the_best_there_is():
    rng = np.random.default_rng(3)
    for _ in range(30):
        profit, cost = rng.normal(1, 2, 10), rng.uniform(0.5, 2, 10)
        best = max(
            (sum(profit[list(c)]) for k in range(11) for c in combinations(range(10), k) if sum(cost[list(c)]) <= 4),
            default=0,
        )
        taken = policy.choose(profit, cost, 4)
        assert cost[taken].sum() <= 4
        assert profit[taken].sum() >= best - profit.max() - 1e-9


def test_choose_respects_consent_capacity_and_ties():
    ones = np.ones(6)
    assert policy.choose(ones, ones, 3).tolist() == [True] * 3 + [False] * 3
    assert policy.choose(ones, ones, 9, capacity=2).sum() == 2
    consent = pd.array([True, None, False, True, None, True], dtype="boolean")
    assert policy.choose(ones, ones, 9, consent=consent).tolist() == [True, False, False, True, False, True]
    assert policy.spend_by_rank([1, 2, 3, 4, 5, 6], ones, 2, consent=consent).tolist() == [False] * 3 + [
        True,
        False,
        True,
    ]
    assert policy.choose(-ones, ones, 9).sum() == 0
    assert policy.choose([], [], 1).shape == (0,)


@pytest.mark.parametrize("budget", [-1, np.nan, np.inf])
def test_choose_refuses_a_bad_budget(budget):
    with pytest.raises(KitError, match="budget"):
        policy.choose([1], [1], budget)


@pytest.mark.parametrize("profit, cost", [([np.nan], [1]), ([1, 2], [1]), ([1], [-1]), ([1], [np.nan])])
def test_choose_refuses_bad_numbers(profit, cost):
    with pytest.raises(KitError, match="one number per customer"):
        policy.choose(profit, cost, 1)


def test_no_effect_means_nobody():
    data = town(1)
    hoped = policy.incremental_profit(Offer(effect=0.0), data["chance"], data["spend"])
    assert policy.choose(hoped, policy.offer_cost(Offer(effect=0.0), data["chance"]), 1e6).sum() == 0


def test_few_customers_get_no_number():
    data = town(2, n=20)
    table = policy.compare_policies(
        {"all": np.ones(20)}, data["spend"], data["spend"], data["customer"], reference="all"
    )
    assert table.loc["all", "profit"].value is None and "not enough data" in str(table.loc["all", "profit"])
    assert "not enough data" in str(
        policy.break_even_effect(OFFER, np.ones(20), data["active"], data["spend"], data["customer"])
    )


def test_unknown_reference():
    with pytest.raises(KitError, match="no policy 'boss'"):
        policy.compare_policies({"all": [1.0]}, [1.0], [1.0], [1], reference="boss")


def test_an_offer_that_cannot_pay_says_so():
    data = town(3)
    dear = Offer(effect=0.1, contact_cost=1000.0)
    out = policy.break_even_effect(dear, np.ones(400), data["active"], data["spend"], data["customer"])
    assert out.value is None and out.note == "no effect would pay"


def test_rows_of_one_customer_are_drawn_together():
    once = policy.bootstrap_sums(np.ones((200, 1)), np.arange(200) % 20, n_boot=4000)
    assert np.all(once == 200)
    lumpy = policy.bootstrap_sums(np.repeat([0.0, 1.0], 100)[:, None], np.repeat(np.arange(20), 10), n_boot=4000)
    assert lumpy.std() == pytest.approx(10 * np.sqrt(20 * 0.25), rel=0.1)


def test_a_random_policy_spends_the_budget_on_average():
    cost = np.array([1.0, 2.0, 3.0])
    assert (policy.at_random(cost, 3.0) * cost).sum() == pytest.approx(3.0)
    assert policy.at_random(cost, 100.0).tolist() == [1, 1, 1]


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Profit, difference of policies and break-even effect against the truth of 200 towns drawn from one population."""
    big = town(12345, n=200_000)
    hits, n = np.zeros(3), 200
    rule = lambda d: (d["chance"] < 0.5).to_numpy(float)
    gain = policy.incremental_profit(OFFER, big["chance"], big["spend"])
    true_profit, true_all = (rule(big) * gain).mean() * 400, gain.mean() * 400
    fixed = (rule(big) * policy.incremental_profit(Offer(0.0, 0.3, 0.5, 2.0, 0.1), big["chance"], big["spend"])).mean()
    slope = (
        rule(big) * policy.incremental_profit(Offer(1.0, 0.3, 0.5, 2.0, 0.1), big["chance"], big["spend"])
    ).mean() - fixed
    truth = np.array([true_profit, true_profit - true_all, -fixed / slope])
    for seed in range(n):
        d = town(seed)
        earned = policy.incremental_profit(OFFER, d["active"], d["spend"])
        table = policy.compare_policies(
            {"all": np.ones(400), "rule": rule(d)}, earned, earned, d["customer"], "all", n_boot=400, seed=seed
        )
        even = policy.break_even_effect(OFFER, rule(d), d["active"], d["spend"], d["customer"], n_boot=400, seed=seed)
        found = [table.loc["rule", "profit"], table.loc["rule", "versus"], even]
        hits += [e.low <= t <= e.high for e, t in zip(found, truth, strict=True)]
    assert np.all(hits / n >= 0.90) and np.all(hits / n <= 0.99), hits / n
