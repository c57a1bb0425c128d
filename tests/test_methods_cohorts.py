"""Churn by month and cohort: nobody twice, nobody too early, and the world's own rate."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import cohorts
from mktai_kit.settings import KitError
from mktai_kit.world import saas


def company(seed, n=2000, rate=0.1):
    rng = np.random.default_rng(seed)
    start = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D")
    end = start + pd.to_timedelta(np.ceil(rng.exponential(30.4375 / -np.log(1 - rate), n)), unit="D")
    return pd.DataFrame(
        {"account_id": np.arange(n), "start_date": start, "end_date": end.where(end < "2024-12-01", pd.NaT)}
    )


def test_months_equal_a_count_by_hand_and_the_worlds_own():
    accounts = saas.clean(saas.simulate(0.05, 7), "accounts")
    table = cohorts.churn_by_month(accounts, "2023-01-01", "2026-01-01")
    own = saas.alive_and_left(accounts)
    assert np.array_equal(table["alive"], own["alive"]) and np.array_equal(table["left"], own["left"])
    kinds = table[["left_involuntary", "left_voluntary"]].sum(axis=1)
    assert (kinds == table["left"]).all()


def test_intervals_of_months_and_cohorts_cover():
    months, ages, differences = [], [], []
    for seed in range(60):
        accounts = company(seed)
        for e in cohorts.churn_by_month(accounts, "2023-06-01", "2024-12-01")["rate"]:
            months.append(e.low <= 0.1 <= e.high)
        table = cohorts.cohort_table(accounts, "2023-01-01", "2024-12-01", most=6)
        ages += [e.low <= 0.9**m <= e.high for e, m in zip(table["retained"], table["month"], strict=True)]
        d = cohorts.newer_against_older(table, 3)
        differences.append(d.low <= 0 <= d.high)
    assert 0.92 <= np.mean(months) <= 0.98 and 0.92 <= np.mean(ages) <= 0.98
    assert np.mean(differences) >= 0.9


def test_a_cohort_shows_no_age_that_some_have_not_reached():
    accounts = company(1)
    table = cohorts.cohort_table(accounts, "2023-01-01", "2024-12-01", freq="M", most=30)
    for cohort, rows in table.groupby("cohort"):
        born = accounts.loc[accounts["start_date"].dt.to_period("M").astype(str) == cohort, "start_date"]
        reached = born.max() + pd.DateOffset(months=int(rows["month"].max()))
        assert reached <= pd.Timestamp("2024-12-01")
    assert not cohorts.cohort_table(accounts, "2023-03-15", "2024-12-01")["cohort"].eq("2023-02").any()


def test_bad_input_speaks():
    accounts = company(1)
    with pytest.raises(KitError, match="2,000 of 4,000 rows repeat"):
        cohorts.churn_by_month(pd.concat([accounts, accounts]), "2023-06-01", "2024-12-01")
    with pytest.raises(KitError, match="no column 'end_date'"):
        cohorts.cohort_table(accounts.drop(columns="end_date"), "2023-06-01", "2024-12-01")
    with pytest.raises(KitError, match="no whole month"):
        cohorts.churn_by_month(accounts, "2024-11-02", "2024-12-01")
    with pytest.raises(KitError, match="freq"):
        cohorts.cohort_table(accounts, "2023-01-01", "2024-12-01", freq="W")
    small = cohorts.cohort_table(accounts.head(8), "2023-01-01", "2024-12-01")
    assert cohorts.newer_against_older(small, 1).value is None and small["retained"].iloc[0].value is None
