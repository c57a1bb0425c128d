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


def test_many_small_cohorts_are_counted_not_guessed():
    """Cohorts too small for a figure of their own still count in the comparison of halves."""
    rng = np.random.default_rng(2)
    day = pd.to_datetime(["2024-01-10", "2024-02-10", "2024-03-10", "2024-04-10"])
    accounts = pd.DataFrame({"account_id": np.arange(80), "start_date": day[np.arange(80) % 4]})
    stays = np.where(np.arange(80) % 4 < 2, rng.random(80) < 0.9, rng.random(80) < 0.3)
    accounts["end_date"] = (accounts["start_date"] + pd.Timedelta(days=20)).where(~stays)
    table = cohorts.cohort_table(accounts, "2024-01-01", "2024-12-01", freq="M")
    d = cohorts.newer_against_older(table, 3)
    newer, older = stays[np.arange(80) % 4 >= 2].mean(), stays[np.arange(80) % 4 < 2].mean()
    assert all(e.value is None for e in table["retained"]) and np.isclose(d.value, newer - older) and d.high < 0
    assert cohorts.newer_against_older(table.sample(frac=1, random_state=1), 3) == d


def test_accounts_count_from_the_day_they_came_into_view():
    """A new billing system holds only those who are still there: nobody of them can have left before it."""
    accounts = company(3)
    moved = pd.Timestamp("2024-01-01")
    kept = accounts[~(accounts["end_date"] < moved)]
    kept = kept.assign(observed_from=kept["start_date"].clip(lower=moved))
    table, all_ = (cohorts.churn_by_month(a, "2023-06-01", "2024-12-01") for a in (kept, accounts))
    assert (table.loc[:"2023-12-01", "alive"] == 0).all()
    assert table.loc["2024-01-01":, "alive"].equals(all_.loc["2024-01-01":, "alive"])
    assert not cohorts.cohort_table(kept, "2023-01-01", "2024-12-01")["cohort"].str.startswith("2023").any()


def test_kinds_add_up_and_the_picture_shows_all():
    accounts = company(4)
    kinds = np.array(["a", "b", "c", "d", "e", None], dtype=object)[accounts["account_id"] % 6]
    accounts["churn_kind"] = np.where(accounts["end_date"].isna(), None, kinds)
    table = cohorts.churn_by_month(accounts, "2023-06-01", "2024-12-01", level=0.9)
    columns = [c for c in table.columns if c.startswith("left_")]
    assert "left_unknown" in columns and (table[columns].sum(axis=1) == table["left"]).all()
    from matplotlib.figure import Figure

    ax = cohorts.plot_churn_by_month(table, ax=Figure().subplots())
    top = np.sum([[bar.get_height() for bar in bars] for bars in ax.containers[: len(columns)]], axis=0)
    assert np.allclose(top, table["left"] / table["alive"])
    assert "90% interval" in ax.get_legend().get_texts()[-1].get_text() + ax.get_legend().get_texts()[0].get_text()
    empty = cohorts.cohort_table(accounts.iloc[:0], "2023-06-01", "2024-12-01")
    assert cohorts.plot_cohorts(empty, ax=Figure().subplots()).texts


def test_bad_input_speaks():
    accounts = company(1)
    with pytest.raises(KitError, match="2,000 of 4,000 rows repeat"):
        cohorts.churn_by_month(pd.concat([accounts, accounts]), "2023-06-01", "2024-12-01")
    with pytest.raises(KitError, match="no column 'end_date'"):
        cohorts.cohort_table(accounts.drop(columns="end_date"), "2023-06-01", "2024-12-01")
    with pytest.raises(KitError, match="no whole month"):
        cohorts.churn_by_month(accounts, "2024-11-02", "2024-12-01")
    with pytest.raises(KitError, match="not dates"):
        cohorts.churn_by_month(accounts.astype({"start_date": str}), "2023-06-01", "2024-12-01")
    with pytest.raises(KitError, match="end before it"):
        cohorts.churn_by_month(accounts.assign(end_date=pd.Timestamp("2022-01-01")), "2023-06-01", "2024-12-01")
    with pytest.raises(KitError, match="freq"):
        cohorts.cohort_table(accounts, "2023-01-01", "2024-12-01", freq="W")
    small = cohorts.cohort_table(accounts.head(8), "2023-01-01", "2024-12-01")
    assert cohorts.newer_against_older(small, 1).value is None and small["retained"].iloc[0].value is None


def test_intervals_hold_their_share_and_can_be_drawn():
    for n in range(30, 3000, 7):
        for k in (0, n):
            e = cohorts.share(k, n)
            assert e.low <= e.value <= e.high
    nobody_left = company(1).assign(end_date=pd.NaT)
    assert cohorts.plot_churn_by_month(cohorts.churn_by_month(nobody_left, "2023-06-01", "2024-12-01"))
