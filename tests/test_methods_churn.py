"""Churn: definitions by hand, labels without a leak, probes that catch and do not slander, warnings counted by hand."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import churn as ch
from mktai_kit.methods.snapshots import snapshot_grid
from mktai_kit.settings import KitError

DAY = pd.Timedelta(days=1)


def day(text):
    return pd.Timestamp(f"2025-{text}")


def one_row_grid(snapshot, gap, horizon):
    s = pd.Series([snapshot])
    return pd.DataFrame(
        {
            "snapshot": s,
            "features_from": s - 10 * DAY,
            "features_to": s,
            "label_from": s + gap * DAY,
            "label_to": s + (gap + horizon) * DAY,
        }
    )


def test_cancelled_reads_events_and_accounts_and_pairs_returns():
    events = pd.DataFrame(
        {
            "account_id": [1, 1, 1, 2, 3],
            "timestamp": [day("02-01"), day("03-01"), day("04-01"), day("02-05"), day("02-06")],
            "event_type": ["cancelled", "reactivated", "cancelled", "closed", "renewed"],
        }
    )
    got = ch.cancelled(events)
    assert got["account_id"].tolist() == [1, 1, 2]
    assert got["returned"].tolist()[:1] == [day("03-01")] and got["returned"].isna().tolist() == [False, True, True]
    accounts = pd.DataFrame({"account_id": [2, 1], "end_date": [day("02-05"), pd.NaT]})
    assert ch.cancelled(accounts).values.tolist()[0][:2] == [2, day("02-05")]
    assert ch.cancelled(events, types=("renewed",))["account_id"].tolist() == [3]


def test_inactive_by_hand():
    activity = pd.DataFrame(
        {"account_id": [1, 1, 1, 2], "timestamp": [day("01-01"), day("01-05"), day("02-20"), day("02-25")]}
    )
    got = ch.inactive(activity, 30, until=day("03-01"))
    assert got.values.tolist() == [[1, day("02-04"), day("02-20")]]
    assert len(ch.inactive(activity, 46, until=day("03-01"))) == 0  # a silence of 46 days is not longer than 46
    assert ch.inactive(activity, 2, until=day("03-01"))["account_id"].tolist() == [1, 1, 1, 2]
    never = pd.DataFrame({"account_id": [1, 9], "start_date": day("01-01"), "observed_from": [pd.NaT, day("01-03")]})
    got = ch.inactive(activity, 30, until=day("03-01"), accounts=never).set_index("account_id")
    assert got.loc[9, "churn_date"] == day("02-02") and len(got) == 2
    weekly = activity.rename(columns={"timestamp": "period_start"})
    assert ch.inactive(weekly, 30, until=day("03-01"))["churn_date"].tolist() == [day("02-11")]


def test_inactive_knows_nothing_after_until():
    rng = np.random.default_rng(1)
    activity = pd.DataFrame(
        {
            "account_id": rng.integers(0, 40, 400),
            "timestamp": day("01-01") + pd.to_timedelta(rng.integers(0, 200, 400), unit="D"),
        }
    )
    early = ch.inactive(activity[activity["timestamp"] < day("04-01")], 14, until=day("04-01"))
    whole = ch.inactive(activity, 14, until=day("07-20"))
    whole = whole[whole["churn_date"] < day("04-01")].reset_index(drop=True)
    pd.testing.assert_frame_equal(early[["account_id", "churn_date"]], whole[["account_id", "churn_date"]])


def usage_of(**habits):
    mondays = pd.date_range("2025-01-06", periods=60, freq="7D")
    parts = [pd.DataFrame({"account_id": a, "period_start": mondays[: len(n)], "events": n}) for a, n in habits.items()]
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["events"] > 0]


def test_engagement_drop_by_hand():
    usage = usage_of(fades=[10] * 16 + [4] * 10, steady=[10] * 26, small=[1] * 16 + [0] * 10, late=[0] * 14 + [10] * 12)
    until = day("01-06") + 26 * 7 * DAY
    got = ch.engagement_drop(usage, until, drop=0.5, least=2)
    assert got["account_id"].tolist() == ["fades"]
    # the mean of four weeks is (10 - 6 k / 4) after k low weeks; half is reached with the fourth
    assert got["churn_date"].tolist() == [day("01-06") + 20 * 7 * DAY] and got["returned"].isna().all()
    back = usage_of(a=[10] * 16 + [0] * 4 + [3] * 6 + [9] * 6)
    got = ch.engagement_drop(back, day("01-06") + 32 * 7 * DAY, drop=0.5)
    assert len(got) == 1 and got["returned"].notna().all()  # held against 10 and not against 3
    assert got["returned"].iloc[0] > day("01-06") + 26 * 7 * DAY


def test_engagement_drop_knows_nothing_later():
    rng = np.random.default_rng(2)
    usage = usage_of(**{f"a{i}": rng.poisson(5 * rng.random(45) * (rng.random() + 0.3)) for i in range(60)})
    cut = day("01-06") + 30 * 7 * DAY
    early = ch.engagement_drop(usage[usage["period_start"] < cut], cut)
    whole = ch.engagement_drop(usage, day("01-06") + 45 * 7 * DAY)
    whole = whole[whole["churn_date"] <= cut].reset_index(drop=True)
    assert len(early)
    pd.testing.assert_frame_equal(early[["account_id", "churn_date"]], whole[["account_id", "churn_date"]])


ACCOUNTS = pd.DataFrame(
    {
        "account_id": [5, 4, 3, 2, 1, 0],
        "start_date": [day("01-01")] * 4 + [day("03-01"), day("02-28")],
        "observed_from": [day("01-01"), day("01-01"), day("03-02"), day("01-01"), day("03-01"), pd.NaT],
        "end_date": [day("03-01"), day("03-08"), pd.NaT, day("02-28"), pd.NaT, day("03-22")],
        "churn_kind": ["voluntary", "voluntary", None, "voluntary", None, "involuntary"],
    }
)


def test_labels_by_hand():
    grid = one_row_grid(day("03-01"), gap=7, horizon=14)
    got = ch.churn_labels(ACCOUNTS, grid, until=day("03-22")).set_index("account_id")
    # 1 starts on the day itself, 2 had left, 3 is observed from the day after
    assert got.index.tolist() == [0, 4, 5]
    assert got["left_in_gap"].tolist() == [False, False, True]
    assert got.loc[0, "churned"] == 0 and pd.isna(got.loc[0, "end_date"])  # the window is half-open
    assert got.loc[4, "churned"] == 1 and np.isnan(got.loc[5, "churned"])
    other = ch.churn_labels(ACCOUNTS, grid, kinds=["involuntary"], until=day("03-22")).set_index("account_id")
    assert other.loc[4, "churned"] == 0 and other.loc[4, "churn_kind"] == "voluntary"


def test_labels_do_not_know_what_comes_after_the_window():
    grid = one_row_grid(day("03-01"), gap=0, horizon=7)
    later = ACCOUNTS.assign(end_date=ACCOUNTS["end_date"].mask(ACCOUNTS["end_date"] >= day("03-08")))
    pd.testing.assert_frame_equal(
        ch.churn_labels(ACCOUNTS, grid, until=day("03-22")),
        ch.churn_labels(later, grid, until=day("03-22")),
        check_dtype=False,
    )


def test_labels_of_another_definition():
    spells = pd.DataFrame({"account_id": [4, 5, 5], "churn_date": [day("03-03"), day("02-01"), day("03-10")]})
    spells["returned"] = [pd.NaT, day("02-20"), pd.NaT]
    got = ch.churn_labels(ACCOUNTS, one_row_grid(day("03-01"), 2, 14), until=day("04-01"), spells=spells).set_index(
        "account_id"
    )
    assert got.loc[4, "churned"] == 1 and got.loc[5, "churned"] == 1 and 2 in got.index
    got = ch.churn_labels(ACCOUNTS, one_row_grid(day("02-10"), 2, 14), until=day("04-01"), spells=spells)
    assert 5 not in set(got["account_id"])  # away at the snapshot


def test_definition_table_counts_and_intervals():
    n = 400
    rng = np.random.default_rng(0)
    accounts = pd.DataFrame({"account_id": np.arange(n), "start_date": day("01-01")})
    accounts["end_date"] = (day("03-01") + pd.Series(pd.to_timedelta(rng.integers(0, 28, n), unit="D"))).where(
        rng.random(n) < 0.3
    )
    grid = one_row_grid(day("03-01"), 0, 28)
    table = ch.definition_table({"cancelled": ch.cancelled(accounts)}, accounts, grid, day("06-01"), n_boot=200)
    row = table.loc["cancelled"]
    assert row["base_rate"].value == pytest.approx(accounts["end_date"].notna().mean()) and row["at_risk"] == n
    assert row["base_rate"].low < row["base_rate"].value < row["base_rate"].high
    assert row["came_back"].value == 0 and 0 < row["came_back"].high < 0.05  # not an interval without width
    assert row["ended"].value == 1 and row["days_ahead"].value == 0
    few = ch.definition_table({"c": ch.cancelled(accounts[:30])}, accounts[:30], grid, day("06-01"), n_boot=200)
    assert few.loc["c", "base_rate"].value is None


def probes_of(n=3000, seed=0, **columns):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.12).astype(int)
    made = {name: make(rng, y) for name, make in columns.items()}
    return ch.leakage_probes(pd.DataFrame(made), y, day("03-01"), cluster=np.arange(n) // 3).set_index("feature")


def test_every_planted_leak_is_caught():
    strong = {
        "days_to_last_login": lambda rng, y: rng.normal(4 * y),  # number
        "state": lambda rng, y: np.where(
            y == 1, rng.choice(["a", "b"], len(y)), rng.choice(["c", "d"], len(y))
        ),  # word
        "u_shape": lambda rng, y: np.where(
            y == 1, rng.choice([-3.0, 3.0], len(y)), rng.normal(0, 0.5, len(y))
        ),  # no rank shows it
        "survey": lambda rng, y: np.where(y == 1, rng.normal(size=len(y)), np.nan),  # missing for stayers
        "flag": lambda rng, y: y == 1,
    }
    for seed in range(5):
        report = probes_of(seed=seed, **strong, Cancel_Reason=lambda rng, y: rng.normal(size=len(y)))
        assert (report.loc[list(strong), "verdict"] == ch.STRONG).all()
        assert report.loc["Cancel_Reason", "verdict"] == ch.NAMED
        with pytest.raises(KitError, match="Cancel_Reason"):
            ch.refuse_leaks(report.reset_index())


def test_a_strong_honest_feature_is_not_refused():
    honest = {
        "use_trend": lambda rng, y: rng.normal(1.2 * y),  # an AUC of 0.80
        "champion_left": lambda rng, y: (rng.random(len(y)) < 0.05 + 0.2 * y).astype(float),
        "satisfaction": lambda rng, y: np.where(rng.random(len(y)) < 0.6 - 0.2 * y, np.nan, rng.normal(size=len(y))),
        "plan": lambda rng, y: pd.Categorical(rng.choice(list("abc"), len(y))),
        "empty": lambda rng, y: np.full(len(y), np.nan),
        "constant": lambda rng, y: np.ones(len(y)),
    }
    for seed in range(5):
        report = probes_of(seed=seed, **honest)
        assert (report["verdict"] == ch.FINE).all() and report.loc["use_trend", "auc"] > 0.75
        assert len(ch.refuse_leaks(report.reset_index(), strict=True)) == 0


def test_timing_is_proof_and_cannot_be_cleared():
    n = 300
    y, snapshot = np.arange(n) % 3 == 0, pd.Series([day("03-01")] * n)
    X = pd.DataFrame({"a": np.arange(n, dtype=float) % 7, "b": 1.0, "churn_risk": np.arange(n, dtype=float) % 5})
    known = {"a": snapshot.mask(snapshot.index == 17, day("03-02")), "b": day("03-01")}
    report = ch.leakage_probes(X, y, snapshot, available_from=known)
    verdict = report.set_index("feature")["verdict"]
    assert verdict.to_dict() == {"a": ch.FUTURE, "b": ch.FINE, "churn_risk": ch.NAMED}
    assert "1 rows (by up to 1 days)" in report.set_index("feature").loc["a", "reasons"]
    clear = {"a": "trust me", "churn_risk": "last year's score, dated before"}
    with pytest.raises(KitError, match="1 of 3 features refused. 'a'"):
        ch.refuse_leaks(report, cleared=clear)
    kept = ch.refuse_leaks(report[report["feature"] != "a"], cleared={"churn_risk": clear["churn_risk"]})
    assert kept["feature"].tolist() == ["churn_risk"] and kept["cleared"].iloc[0]
    outcome = ch.leakage_probes(X, y, snapshot, known_names=["b"]).set_index("feature")
    assert outcome.loc["b", "verdict"] == ch.FUTURE


@pytest.mark.slow
def test_single_feature_auc_equals_scikit_learn_and_its_interval_covers():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(5)
    score, y = np.round(rng.normal(size=400), 1), rng.integers(0, 2, 400)
    assert ch._clustered_auc(score, y.astype(float), np.arange(400))[0] == pytest.approx(roc_auc_score(y, score))

    def study(seed, g=200):
        rng = np.random.default_rng(seed)
        who = np.repeat(np.arange(g), 4)
        habit = rng.normal(size=g)[who]
        y = (rng.random(4 * g) < 1 / (1 + np.exp(1.5 - habit))).astype(float)
        return ch._clustered_auc(habit * 0.8 + rng.normal(size=g)[who], y, who)

    truth = np.mean([study(s, 2000)[0] for s in range(1000, 1010)])
    covered = np.mean([low <= truth <= high for _a, low, high in map(study, range(200))])
    assert 0.91 <= covered <= 0.985


WEEKS = pd.date_range("2025-01-06", periods=12, freq="7D")


def warn(scores, ends, **kwargs):
    rows = [
        (a, w, s[i]) for a, s in scores.items() for i, w in enumerate(WEEKS) if not ends.get(a, pd.Timestamp.max) < w
    ]
    frame = pd.DataFrame(rows, columns=["account_id", "snapshot", "score"])
    table = pd.DataFrame({"account_id": list(scores), "end_date": [ends.get(a, pd.NaT) for a in scores]})
    return ch.early_warning(frame, table, until=day("04-07"), **kwargs)


def test_early_warning_by_hand():
    scores = {"a": [0.9] * 12, "b": [0.8] * 12, "c": [0.7] * 12, "d": [0.1] * 12}
    ends = {"b": WEEKS[5] + 2 * DAY, "c": WEEKS[8] + DAY}
    got = warn(scores, ends, capacity=1, quiet_weeks=3, horizon_weeks=4, act_weeks=1)
    # one call a week, nobody twice within three weeks: a, b, c in turn; after b has gone d fills up; c has gone by the last week
    assert "".join(got.alerts["account_id"]) == "abcabcadcad"
    outcome = got.alerts["outcome"].tolist()
    assert outcome[1] == ch.FALSE and outcome[4] == ch.IN_TIME  # b: 4.3 and 1.3 weeks before
    assert (
        outcome[2] == ch.FALSE and outcome[5] == ch.IN_TIME and outcome[8] == ch.TOO_LATE
    )  # c: 6.1 and 3.1 weeks, a day
    assert outcome[9] == ch.FALSE and outcome[10] == ch.OPEN  # the records end four weeks after the tenth list
    assert got.alerts.groupby("snapshot").size().eq(1).all()
    assert got.leavers["account_id"].tolist() == ["b", "c"]
    assert got.leavers["lead_weeks"].round(2).tolist() == [1.29, 3.14]
    assert got.summary["precision"].value is None and got.summary["false_per_warned"].value is None  # four accounts


def test_early_warning_does_not_depend_on_order_or_on_what_comes_later():
    rng = np.random.default_rng(3)
    scores = {f"a{i:03d}": np.round(rng.random(12), 1) for i in range(60)}
    ends = {f"a{i:03d}": WEEKS[0] + int(rng.integers(1, 90)) * DAY for i in range(0, 60, 2)}
    one = warn(scores, ends, capacity=5)
    assert one.alerts.equals(warn(dict(reversed(scores.items())), ends, capacity=5).alerts)
    changed = {a: np.where(np.arange(12) < 6, s, 1 - s) for a, s in scores.items()}
    other = warn(changed, ends, capacity=5)
    early = one.alerts["snapshot"] < WEEKS[6]
    columns = ["account_id", "snapshot", "rank", "score"]
    assert one.alerts.loc[early, columns].equals(other.alerts.loc[other.alerts["snapshot"] < WEEKS[6], columns])


def simulated(n=800, seed=0):
    rng = np.random.default_rng(seed)
    weeks = pd.date_range("2025-01-06", periods=40, freq="7D")
    ends = pd.Series(weeks[0] + pd.to_timedelta(rng.integers(30, 400, n), unit="D"))
    ends = ends.where(ends < weeks[-1] + 7 * DAY)
    frame = pd.MultiIndex.from_product([range(n), weeks], names=["account_id", "snapshot"]).to_frame(index=False)
    end = frame["account_id"].map(ends)
    frame = frame[~(end < frame["snapshot"])]
    near = ((end - frame["snapshot"]) / DAY < 42).reindex(frame.index)
    return (
        frame.assign(score=near * 1.0 + rng.normal(size=len(frame))),
        pd.DataFrame({"account_id": range(n), "end_date": ends}),
        weeks,
    )


def test_early_warning_summary_adds_up():
    scores, ends, weeks = simulated()
    got = ch.early_warning(scores, ends, capacity=20, until=weeks[-1] + 7 * DAY, n_boot=300)
    s, told = got.summary, got.alerts[got.alerts["outcome"] != ch.OPEN]
    assert (
        s["precision"].value == pytest.approx((told["outcome"] == ch.IN_TIME).mean())
        and s["precision"].low > s["by_lot"].high
    )
    warned = got.leavers["first_alert"].notna()
    assert s["warned"].value == pytest.approx(warned.mean())
    in_time = told.loc[told["outcome"] == ch.IN_TIME, "account_id"].nunique()
    assert s["false_per_warned"].value == pytest.approx((told["outcome"] == ch.FALSE).sum() / in_time)
    assert s["lead_weeks_median"].value == pytest.approx(
        np.quantile(got.leavers["lead_weeks"].dropna(), 0.5, method="inverted_cdf")
    )
    order = [s[f"lead_weeks_{q}"].value for q in ("q1", "median", "q3")]
    assert order == sorted(order) and all(e.low <= e.value <= e.high for k, e in s.items() if k != "alerts_per_week")
    by_account = got.alerts.sort_values(["account_id", "snapshot"])
    rest = by_account.groupby("account_id")["snapshot"].diff().dropna()
    assert rest.min() >= 28 * DAY and got.alerts.groupby("snapshot").size().max() == 20


def test_cross_section_leaves_nothing_of_the_outcome():
    n = 60
    accounts = pd.DataFrame(
        {
            "account_id": range(n),
            "churned": [True, False] * 30,
            "end_date": pd.Timestamp("2025-01-01"),
            "churn_kind": "voluntary",
            "total_amount": 1.0 * np.arange(n),
            "gender": ["f", "m", "m"] * 20,
            "plan": pd.Categorical(["a", "b", "c"] * 20),
            "same": "x",
            "seats": range(n),
            "seats_again": range(n),
        }
    )
    X, y = ch.cross_section(accounts)
    assert list(X) == ["plan=a", "plan=b", "plan=c", "seats"] and y.tolist() == [1, 0] * 30
    assert "gender=f" in ch.cross_section(accounts, protected=())[0] and X.dtypes.eq(float).all()


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: ch.cancelled(pd.DataFrame({"account_id": [1]})), "no column 'end_date'"),
        (
            lambda: ch.inactive(pd.DataFrame({"account_id": [1], "timestamp": [pd.NaT]}), 3, "2025-01-01"),
            "missing in 1 of 1",
        ),
        (lambda: ch.inactive(pd.DataFrame(), 0, "2025-01-01"), "days = 0"),
        (lambda: ch.engagement_drop(usage_of(a=[1] * 30), "2025-01-01"), "no week ended"),
        (lambda: ch.engagement_drop(usage_of(a=[1] * 30), "2026-01-01", drop=60), "drop = 60"),
        (
            lambda: ch.churn_labels(ACCOUNTS, one_row_grid(day("03-01"), 7, 30), until=day("03-22")),
            "records end at 2025-03-22",
        ),
        (
            lambda: ch.churn_labels(ACCOUNTS, one_row_grid(day("03-01"), 0, 7), kinds=["bored"]),
            "nobody has churn_kind 'bored'",
        ),
        (lambda: ch.churn_labels(pd.concat([ACCOUNTS] * 2), one_row_grid(day("03-01"), 0, 7)), "6 of 12 account_id"),
        (lambda: ch.leakage_probes(pd.DataFrame({"a": [1.0] * 9}), [0] * 9, day("03-01")), "9 rows"),
        (
            lambda: ch.leakage_probes(pd.DataFrame({"a": [1.0] * 40}), [0, 1] * 20, [day("03-01")] * 3),
            "3 times for 40 rows",
        ),
        (
            lambda: ch.refuse_leaks(pd.DataFrame({"feature": ["a"], "verdict": ["fine"]}), cleared={"b": "seen"}),
            "no feature 'b'",
        ),
        (
            lambda: ch.refuse_leaks(pd.DataFrame({"feature": ["a"], "verdict": ["fine"]}), cleared={"a": " "}),
            "a reason is empty",
        ),
        (lambda: ch.cost_threshold(45, 100, 0), "success = 0"),
        (lambda: ch.cost_threshold(-1, 100, 0.2), "contact_cost = -1"),
        (lambda: warn({"a": [1] * 12}, {}, capacity=0), "capacity = 0"),
        (lambda: warn({"a": [1] * 12}, {}, capacity=1, horizon_weeks=1, act_weeks=1), "horizon_weeks = 1"),
    ],
)
def test_bad_input_gets_one_clear_message(call, where):
    with pytest.raises(KitError) as e:
        call()
    assert where in str(e.value)


def test_scores_after_the_end_are_refused():
    scores = pd.DataFrame({"account_id": [1, 1], "snapshot": [day("02-03"), day("02-10")], "score": [0.1, 0.2]})
    ends = pd.DataFrame({"account_id": [1], "end_date": [day("02-05")]})
    with pytest.raises(KitError, match="1 rows after the account's end"):
        ch.early_warning(scores, ends, capacity=1)
    with pytest.raises(KitError, match="one row per account"):
        ch.early_warning(scores[:1], pd.concat([ends, ends]), capacity=1)


def test_population_and_labels_fit_a_world():
    """On a world's accounts: the labels name exactly those whose end lies in the window, at every snapshot."""
    from mktai_kit.world import saas

    accounts = saas.clean(saas.simulate(scale=0.02, seed=3).tables, "accounts")
    end = pd.Timestamp("2026-01-01")
    grid = snapshot_grid("2023-01-01", end, horizon_days=28, gap_days=7, history_days=84, n=6)
    labels = (
        ch.churn_labels(accounts, grid, until=end)
        .merge(grid.drop(columns="label_to"), on="snapshot")
        .merge(accounts, on="account_id", suffixes=("", "_true"))
    )
    inside = labels["end_date_true"].between(labels["label_from"], labels["label_to"], inclusive="left")
    assert (
        inside[~labels["left_in_gap"]] == (labels.loc[~labels["left_in_gap"], "churned"] == 1)
    ).all() and inside.any()
    assert not (labels["end_date_true"] < labels["snapshot"]).any()
    kinds = [
        ch.churn_labels(accounts, grid, kinds=[k], until=end)["churned"].sum() for k in ("voluntary", "involuntary")
    ]
    assert sum(kinds) == (labels["churned"] == 1).sum()


def test_open_lists_flatter_nobody():
    scores, ends, weeks = simulated(seed=4)
    until = weeks[-1] + 7 * DAY
    short = scores[scores["snapshot"] >= weeks[-12]]
    got = ch.early_warning(short, ends, capacity=20, until=until, n_boot=100)
    closed = got.alerts["snapshot"] + 56 * DAY <= until
    assert ((got.alerts["outcome"] == ch.OPEN) == ~closed).all()  # also those that have come true already
    lead = got.alerts.loc[closed, "lead_weeks"]
    assert got.summary["precision"].value == pytest.approx(((lead >= 1) & (lead <= 8)).mean())
    # a leaver who was alerted by an open list has been warned all the same
    first = got.leavers["first_alert"].dropna()
    assert (first + 56 * DAY > until).any() and (got.leavers["end_date"] < until).all()


def test_a_leaver_seen_too_late_to_be_warned_is_none():
    scores = {"a": [0.5] * 12, "b": [None] * 8 + [0.9] * 4}
    rows = [(a, w, s) for a, each in scores.items() for w, s in zip(WEEKS, each) if s is not None]
    scored = pd.DataFrame(rows, columns=["account_id", "snapshot", "score"])
    ends = pd.DataFrame({"account_id": ["a", "b"], "end_date": [pd.NaT, WEEKS[8] + 3 * DAY]})
    scored = scored[~((scored["account_id"] == "b") & (scored["snapshot"] > WEEKS[8]))]
    got = ch.early_warning(scored, ends, 1, horizon_weeks=4, until=WEEKS[11] + 7 * DAY)
    assert got.leavers.empty  # b was first seen three days before the end


def test_early_warning_where_nobody_left_or_ids_do_not_match():
    scores, ends, weeks = simulated(n=60)
    nobody = ends.assign(end_date=pd.NaT)
    alive = scores[scores["account_id"].isin(ends.loc[ends["end_date"].isna(), "account_id"])]
    got = ch.early_warning(alive, nobody, 2, until=weeks[-1])
    assert got.leavers.empty and set(got.alerts["outcome"]) == {ch.FALSE, ch.OPEN}
    with pytest.raises(KitError, match="to which day"):
        ch.early_warning(alive, nobody, 2)
    with pytest.raises(KitError, match="would look loyal"):
        ch.early_warning(alive, nobody.assign(account_id=nobody["account_id"].astype(str)), 2, until=weeks[-1])


def test_labels_where_a_definition_calls_nobody_any_more():
    none = pd.DataFrame({"account_id": [4], "churn_date": [day("01-05")], "returned": [day("01-09")]})
    got = ch.churn_labels(ACCOUNTS, one_row_grid(day("03-01"), 7, 14), until=day("03-22"), spells=none)
    assert (got["churned"] == 0).all() and len(got) == 4
    with pytest.raises(KitError, match="no column 'returned'"):
        ch.churn_labels(ACCOUNTS, one_row_grid(day("03-01"), 7, 14), until=day("03-22"), spells=none[ch.SPELLS[:2]])


@pytest.mark.parametrize("column", [lambda c: c.dt.tz_localize("UTC"), lambda c: c.astype(str), lambda c: c.dt.date])
def test_dates_must_be_local_times(column):
    accounts = ACCOUNTS.assign(end_date=column(ACCOUNTS["end_date"]))
    with pytest.raises(KitError, match="no local times"):
        ch.churn_labels(accounts, one_row_grid(day("03-01"), 7, 14), until=day("03-22"))


def test_a_small_pure_leak_is_seen_and_unknown_values_are_no_proof():
    rng = np.random.default_rng(5)
    n = 4000
    y = (rng.random(n) < 0.1).astype(int)
    x = pd.DataFrame(
        {
            "exit_form": np.where((y == 1) & (rng.random(n) < 0.3), 1.0, np.nan),
            "word": np.where((y == 1) & (rng.random(n) < 0.2), "moved", rng.choice(["a", "b"], n)),
            "paid_late": np.where(rng.random(n) < 0.5, np.nan, rng.normal(0.5 * y)),
        }
    )
    later = pd.Series(day("02-01")).repeat(n).mask(x["paid_late"].notna().to_numpy(), day("01-01"))
    report = ch.leakage_probes(x.rename(columns={"exit_form": "form"}), y, day("01-15"), {"paid_late": later})
    verdict = report.set_index("feature")["verdict"].to_dict()
    assert verdict == {"form": ch.STRONG, "word": ch.STRONG, "paid_late": ch.FINE}
    assert report["auc"].max() < 0.7  # none of them is strong
    with pytest.raises(KitError, match="no feature 'paid'"):
        ch.leakage_probes(x, y, day("01-15"), {"paid": later})
