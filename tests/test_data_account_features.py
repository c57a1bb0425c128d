"""Account features: equal to plain pandas, blind to what was not yet known, the same bytes whatever the faults; outcomes equal to the world's."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import account_features as af
from mktai_kit.settings import KitError, load
from mktai_kit.world import saas

DAYS = [
    "2023-02-01",
    "2024-03-14",
    "2025-06-19",
]  # a young company, a Thursday after the week in seconds, another Thursday


def d(text):
    return pd.Timestamp(text)


@pytest.fixture(scope="module")
def world():
    return saas.simulate(0.01, 5, "guide")


@pytest.fixture(scope="module")
def tables(world):
    return dict(world.tables)


@pytest.fixture(scope="module")
def panel(tables):
    return af.account_panel(tables, DAYS)


@pytest.fixture(scope="module")
def perfect():
    """The same company without faults."""
    none = {f"fault_{name}": 0.0 for name in ("copies", "late", "broken", "units", "slips")}
    return dict(saas.simulate(0.01, 5, "guide", **none).tables)


# ------------------------------------------------------------------------------------------------- equal to plain pandas
def change(now, before):
    return 0.0 if now + before == 0 else (now - before) / (now + before)


def plain_usage(u, first, begun, day):
    """Use of one account, written the obvious way, from perfect tables with all accounts' first week."""
    end = first + (day - first) // pd.Timedelta(days=7) * pd.Timedelta(days=7)
    weeks = [end - pd.Timedelta(days=7 * k) for k in range(1, 13)]
    lived = [w for w in weeks if w >= max(begun, first)]
    u = u[u["period_start"].isin(weeks)]
    by = u.groupby("period_start").agg(
        events=("events", "sum"), users=("active_users", "max"), minutes=("minutes", "sum")
    )
    e, users, minutes = (by[c].reindex(lived, fill_value=0) for c in ("events", "users", "minutes"))
    if not lived:
        return dict.fromkeys(("events_recent", "weeks_idle", "features_used", "events_trend", "weeks_since_use"))
    now, before = u[u["period_start"].isin(weeks[:4])], u[u["period_start"].isin(weeks[4:])]
    used, was = set(now["feature"]), set(before["feature"])
    active = [i for i, w in enumerate(lived) if e[w] > 0]
    return {
        "events_recent": e[:4].mean(),
        "events_before": e[4:].mean() if len(lived) > 4 else None,
        "events_trend": change(e[:4].mean(), e[4:].mean()) if len(lived) > 4 else None,
        "events_last_change": change(e.iloc[0], e[1:4].mean()) if len(lived) > 1 else None,
        "users_recent": users[:4].mean(),
        "minutes_recent": minutes[:4].mean(),
        "volatility": e.std() / e.mean() if len(lived) > 2 and e.sum() else None,
        "weeks_idle": float((e == 0).sum()),
        "weeks_since_use": float(active[0] if active else len(lived)),
        "features_used": float(len(used)),
        "features_dropped": float(len(was - used)),
        "features_new": float(len(used - was)),
    }


def plain_rest(own, day, start):
    """Help, money, people, answers and contacts of one account."""
    since = {c: day - pd.Timedelta(days=n) for c, n in (("4w", 28), ("12w", 84), ("year", 365))}
    t, i, e, q, x = (own[n] for n in ("tickets", "invoices", "events", "surveys", "exposures"))
    t = t[t["timestamp"] < day]
    solved = t["resolved"] < day
    fresh, age = t[solved & (t["resolved"] >= since["12w"])], (day - t["timestamp"]) / pd.Timedelta(days=1)
    hard = ~solved & (t["priority"] == "high")
    i = i[(i["issue_date"] < day) & (i["recorded"] < day)].sort_values("issue_date")
    last, lately = i.iloc[-1] if len(i) else None, i[i["issue_date"] >= since["12w"]]
    paid = i["paid_date"] < day
    year = i[paid & (i["issue_date"] >= since["year"])]
    e = e[(e["timestamp"] < day) & (e["recorded"] < day)]
    near = e[e["timestamp"] >= since["12w"]]
    champion = e[e["event_type"].isin(["champion_left", "champion_joined"])]
    gone = len(champion) > 0 and champion["event_type"].iloc[-1] == "champion_left"
    q = q[q["timestamp"] < day - pd.Timedelta(days=7)]
    said = q[q["answered"]]
    x = x[(x["timestamp"] < day) & (x["arm"] != "nothing")]
    onboarded = (e["event_type"] == "onboarding_completed").any()
    overdue = i[~paid & (i["due_date"] < day)]
    return {
        "tickets_recent": float((t["timestamp"] >= since["4w"]).sum()),
        "tickets_history": float((t["timestamp"] >= since["12w"]).sum()),
        "tickets_open": float((~solved).sum()),
        "open_days": age[~solved].max() if (~solved).any() else 0.0,
        "tickets_open_hard": float(hard.sum()),
        "open_hard_days": age[hard].max() if hard.any() else 0.0,
        "tickets_slow": float((fresh["resolved"] - fresh["timestamp"] > pd.Timedelta(days=7)).sum()),
        "satisfaction": fresh["satisfaction"].mean(),
        "invoice_amount": last["amount"] + last["discount"] if last is not None else None,
        "invoice_discount": last["discount"] / (last["amount"] + last["discount"]) if last is not None else None,
        "seats_billed": last["seats"] if last is not None else None,
        "seats_change": lately["seats"].iloc[-1] - lately["seats"].iloc[0] if len(lately) else None,
        "late_share": (year["paid_date"] > year["due_date"]).mean() if len(year) else None,
        "failed_share": (year["failed_attempts"] > 0).mean() if len(year) else None,
        "failed_recent": float(lately.loc[lately["paid_date"] < day, "failed_attempts"].sum()),
        "pay_days": ((lately["paid_date"] - lately["issue_date"]) / pd.Timedelta(days=1))[
            lately["paid_date"] < day
        ].mean(),
        "overdue_days": (day - overdue["due_date"].min()) / pd.Timedelta(days=1) if len(overdue) else 0.0,
        "seats_added": near.loc[near["event_type"] == "seats_added", "value"].sum(),
        "seats_removed": near.loc[near["event_type"] == "seats_removed", "value"].sum(),
        "champion_gone": float(gone),
        "champion_gone_days": (day - champion["timestamp"].iloc[-1]) / pd.Timedelta(days=1) if gone else 0.0,
        "onboarded": 1.0 if onboarded else (0.0 if start >= d("2023-01-01") else None),
        "nps_last": said["score"].iloc[-1] if len(said) else None,
        "nps_change": said["score"].iloc[-1] - said["score"].iloc[-2] if len(said) > 1 else None,
        "nps_days": (day - said["timestamp"].iloc[-1]) / pd.Timedelta(days=1) if len(said) else None,
        "nps_answered": float(q["answered"].iloc[-1]) if len(q) else None,
        "contacts": float((x["timestamp"] >= since["12w"]).sum()),
        "contact_days": (day - x["timestamp"].max()) / pd.Timedelta(days=1) if len(x) else None,
    }


@pytest.mark.parametrize("day", [DAYS[0], DAYS[2]])
def test_features_equal_plain_pandas(perfect, day):
    found, day = af.account_panel(perfect, day).set_index("account_id"), d(day)
    a = perfect["accounts"].set_index("account_id")
    lives = (a["start_date"] < day) & (a["observed_from"] <= day) & ~(a["end_date"] < day)
    assert sorted(found.index) == sorted(a.index[lives]) and len(found) > 60
    names = ("usage", "tickets", "invoices", "events", "surveys", "exposures")
    first = perfect["usage"]["period_start"].min()
    for account in found.index[::2]:
        own = {n: perfect[n][perfect[n]["account_id"] == account] for n in names}
        begun = max(a.loc[account, "start_date"], a.loc[account, "observed_from"])
        expected = plain_usage(own["usage"], first, begun, day) | plain_rest(own, day, a.loc[account, "start_date"])
        row = found.loc[account]
        for name, value in expected.items():
            want = np.nan if value is None else float(value)
            assert np.isclose(row[name], want, rtol=1e-9, atol=1e-9, equal_nan=True), (account, name, row[name], want)


def test_contract_and_per_seat(perfect):
    row = af.account_panel(perfect, "2025-06-01").set_index("account_id")
    a = perfect["accounts"].set_index("account_id").loc[row.index]
    annual = a["contract"].astype(str) == "annual"
    assert row["months_to_renewal"].notna().equals(annual)
    assert (row["months_to_renewal"][annual] == (a["start_date"].dt.month[annual] - 6) % 12).all()
    assert np.allclose(row["events_per_seat"] * row["seats_billed"], row["events_recent"], equal_nan=True)
    assert row["seats_in_use"].dropna().between(0, 1).all()


# ------------------------------------------------------------------------------------------------------ nothing too early
@pytest.mark.parametrize("preset", ["guide", "hard"])
def test_nothing_is_known_too_early(preset):
    tables = dict(saas.simulate(0.006, 2, preset).tables)
    for day in ("2023-01-20", "2024-03-12", "2025-06-19 10:00"):
        af.assert_accounts_as_of(tables, day)


def test_a_poisoned_future_changes_nothing(tables):
    day = d("2024-09-04")
    before = af.account_panel(tables, day)
    a, u, t, i, e, q, x = (
        tables[n].copy() for n in ("accounts", "usage", "tickets", "invoices", "events", "surveys", "exposures")
    )
    for c in af.STATE:
        a = a.assign(**{c: "poison"})
    a["end_date"] = a["end_date"].mask(~(a["end_date"] < day), day + pd.Timedelta(days=1))
    u.loc[u["period_start"] > day - pd.Timedelta(days=7), ["events", "active_users"]] = 99_999
    t["resolved"] = t["resolved"].mask(~(t["resolved"] < day), d("2031-01-01"))
    t.loc[~(t["resolved"] < day), "satisfaction"] = 1.0
    i.loc[~(i["paid_date"] < day), ["failed_attempts", "status"]] = [9, "paid"]
    i["paid_date"] = i["paid_date"].mask(~(i["paid_date"] < day), d("2031-01-01"))
    future = (i["issue_date"] >= day) | (i["recorded"] >= day)
    i.loc[future, ["amount", "seats"]] = [99_999.0, 99]
    e = e.assign(event_type=e["event_type"].astype(str))
    e.loc[(e["timestamp"] >= day) | (e["recorded"] >= day), "event_type"] = "champion_left"
    q.loc[q["timestamp"] >= day - pd.Timedelta(days=7), "score"] = 0.0
    x = x.assign(arm="call").where(x["timestamp"] >= day, x)
    poisoned = dict(accounts=a, usage=u, tickets=t, invoices=i, events=e, surveys=q, exposures=x)
    after = af.account_panel({k: v.sample(frac=1, random_state=3) for k, v in poisoned.items()}, day)
    pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_the_proof_finds_leaks_and_refuses_to_be_blind(tables):
    def leaky(t, day, history_days):
        panel = af.account_panel(t, day, history_days, until=day)
        last = af._checked(t, "usage").groupby("account_id")["period_start"].max()
        return panel.assign(last_seen=panel["account_id"].map(last))

    with pytest.raises(KitError, match="'last_seen' .in .* of .* rows"):
        af.assert_accounts_as_of(tables, "2025-01-01", build=leaky)
    with pytest.raises(KitError, match="no row of any table"):
        af.assert_accounts_as_of(tables, "2027-01-01")

    def other_people(t, day, history_days):
        return t["accounts"][["account_id"]].drop_duplicates()

    with pytest.raises(KitError, match="with or without the future"):
        af.assert_accounts_as_of(tables, "2025-01-01", build=other_people)


def test_no_protected_and_no_state_columns(panel):
    banned = {"region", "language", "gender", "age_band", "end_date", "observed_from", *af.STATE}
    as_of_the_day = {"tenure_months", "onboarded"}  # of the same name in accounts, but there as of its close
    assert banned & set(panel.columns) == as_of_the_day
    assert panel.groupby("account_id")["tenure_months"].nunique().max() > 1


# ----------------------------------------------------------------------------------------------------------------- faults
def test_faults_hardly_matter(world, perfect, panel):
    """Only rows that arrive late or belong to nobody may count differently: copies, capitals, seconds do not."""
    clean = af.account_panel(perfect, DAYS)
    pd.testing.assert_frame_equal(clean.iloc[:, :2], panel.iloc[:, :2])
    differs = pd.DataFrame({c: ~((clean[c] == panel[c]) | (clean[c].isna() & panel[c].isna())) for c in panel})
    assert (
        differs.any(axis=1).mean() < 0.12
    )  # broken ids hit one row of usage in a thousand: a week of one feature of some
    week = clean["snapshot"] == DAYS[1]
    ratio = (panel["minutes_recent"] / clean["minutes_recent"])[week].dropna()
    assert ratio.between(0.5, 1.01).all() and week.sum() > 60


def test_the_week_in_seconds_is_there_and_mended(tables):
    u = tables["usage"]
    odd = u[(u["feature"] == "reports") & (u["period_start"] == "2024-03-04")]
    assert (odd["minutes"] / odd["events"]).median() > 100, "the fault is planted"
    blind = af.account_panel({"accounts": tables["accounts"], "usage": u.drop(columns="feature")}, "2024-03-14")
    mended = af.account_panel({"accounts": tables["accounts"], "usage": u}, "2024-03-14")
    assert blind["minutes_recent"].sum() > 1.5 * mended["minutes_recent"].sum()


def test_same_bytes_in_any_order_and_on_two_threads(tables, panel):
    shuffled = {k: t.sample(frac=1, random_state=1) for k, t in tables.items()}
    copied = shuffled | {k: pd.concat([t, t.iloc[:50]]) for k, t in shuffled.items() if k != "exposures"}
    again = af.account_panel(copied, DAYS[::-1], settings=replace(load(), threads=2))
    pd.testing.assert_frame_equal(panel, again, check_exact=True)
    alone = af.account_panel(tables, DAYS[1]).drop(columns=list(af.WORDS))
    one = panel[panel["snapshot"] == DAYS[1]].drop(columns=list(af.WORDS)).reset_index(drop=True)
    pd.testing.assert_frame_equal(one, alone, check_exact=True)


# ------------------------------------------------------------------------------------------------------- what there is
def small(**usage):
    weeks = pd.date_range("2025-01-06", periods=8, freq="7D")
    accounts = pd.DataFrame({"account_id": ["a", "b"], "start_date": pd.to_datetime(["2024-01-10", "2025-02-01"])})
    rows = {"account_id": ["a"] * 8, "period_start": weeks, "events": range(1, 9)} | usage
    return {"accounts": accounts, "usage": pd.DataFrame(rows)}


def test_accounts_and_usage_are_enough():
    out = af.account_panel(small(), "2025-03-03").set_index("account_id")
    assert out.loc["a", "events_recent"] == (5 + 6 + 7 + 8) / 4 and out.loc["a", "events_before"] == 2.5
    assert out.loc["b", "events_recent"] == 0 and out.loc["b", "weeks_idle"] == 4
    assert "features_used" not in out and "tickets_open" not in out and "plan" not in out
    only = af.account_panel({"accounts": small()["accounts"]}, "2025-02-03")
    assert list(only) == ["account_id", "snapshot", "tenure_months"]


def test_one_measure_is_enough():
    for column, name in af.MEASURES.items():
        t = small()
        t["usage"] = t["usage"].rename(columns={"events": column})
        out = af.account_panel(t, "2025-03-03").set_index("account_id")
        assert out.loc["a", f"{name}_recent"] == 6.5 and out.loc["a", f"{name}_before"] == 2.5
        assert {f"{name}_trend", f"{name}_last_change", "volatility", "weeks_idle"} <= set(out)
    t["usage"] = t["usage"].drop(columns="minutes")
    with pytest.raises(KitError, match="usage: none of events, active_users, minutes"):
        af.account_panel(t, "2025-03-03")


def test_days_are_put_together_into_weeks():
    t = small()
    week = t["usage"]
    parts = [week.assign(period_start=week["period_start"] + pd.Timedelta(days=k)) for k in (0, 3, 6)]
    t["usage"] = pd.concat(parts, ignore_index=True)
    daily = af.account_panel(t, "2025-03-03").set_index("account_id")
    assert daily.loc["a", "events_recent"] == 3 * 6.5 and daily.loc["a", "weeks_idle"] == 0


def test_months():
    starts = pd.date_range("2024-10-01", periods=5, freq="MS")
    rows = {"account_id": ["a"] * 5, "period_start": starts, "events": [9, 8, 8, 8, 4], "active_users": [2] * 5}
    t = small()
    t["usage"] = pd.DataFrame(rows)
    out = af.account_panel(t, ["2025-03-01", "2025-03-20"]).set_index(["account_id", "snapshot"])
    for day in ("2025-03-01", "2025-03-20"):
        a = out.loc[("a", d(day))]
        assert np.isclose(a["events_recent"], 4 / 30.4375 * 7) and np.isclose(a["events_before"], 8 / 30.4375 * 7)
        assert np.isclose(a["events_trend"], -1 / 3) and a["users_recent"] == 2 and a["weeks_idle"] == 0
        assert np.isclose(a["events_last_change"], -1 / 3) and a["volatility"] > 0
        b = out.loc[("b", d(day))]  # began on 1 February: one whole month, without use
        assert b["events_recent"] == 0 and np.isclose(b["weeks_idle"], 30.4375 / 7)
    af.assert_accounts_as_of(t, "2025-02-10")


def test_users_counted_from_people():
    t = small()
    t["usage"] = pd.concat([t["usage"].assign(user_id=u) for u in ("x", "y")], ignore_index=True)
    out = af.account_panel(t, "2025-03-03").set_index("account_id")
    assert out.loc["a", "users_recent"] == 2 and out.loc["a", "events_recent"] == 13


def test_late_rows_of_use_wait_until_they_are_there():
    t = small()
    arrived = t["usage"]["period_start"] + pd.Timedelta(days=7, hours=1)
    t["usage"]["recorded"] = arrived.mask(arrived == arrived.max(), d("2025-03-10"))
    out = af.account_panel(t, ["2025-03-03", "2025-03-04", "2025-03-11"]).set_index(["account_id", "snapshot"])
    assert out.loc["a", "events_recent"].tolist() == [(5 + 6 + 7) / 4, (5 + 6 + 7) / 4, (6 + 7 + 8) / 4]


def test_empty_tables_and_gaps_in_features():
    t = small(feature=["f"] * 4 + [None] * 4, minutes=2.0)
    t |= {"tickets": pd.DataFrame({"ticket_id": [], "account_id": [], "timestamp": pd.to_datetime([])})}
    out = af.account_panel(t, "2025-03-03").set_index("account_id")
    assert out.loc["a", ["features_used", "features_dropped", "minutes_recent"]].tolist() == [0, 1, 2]
    assert out["tickets_recent"].tolist() == [0, 0]
    nothing = small() | {
        n: pd.DataFrame({c: [] for c in ["account_id", *af.MUST[n], *af.MAY[n]]}) for n in list(af.MUST)[1:]
    }
    empty = af.account_panel(nothing, "2025-02-03").set_index("account_id")
    assert (
        empty["events_recent"].isna().all() and empty["champion_gone"].eq(0).all() and empty["onboarded"].isna().all()
    )


@pytest.mark.parametrize(
    "mend, message",
    [
        (lambda t: t.pop("accounts"), "the table accounts is missing"),
        (lambda t: t.update(accounts=t["accounts"].iloc[:0]), "there is no account"),
        (lambda t: t.update(accounts=t["accounts"].drop(columns="start_date")), "accounts: column 'start_date' is missing"),
        (lambda t: t.update(usage=t["usage"].assign(events="3")), "column 'events' is str"),
        (lambda t: t.update(usage=t["usage"].assign(account_id=1)), "account_id is int64 there and str in accounts"),
        (lambda t: t.update(usage=t["usage"].assign(period_start="2025-01-06")), "convert it to local datetime64"),
        (lambda t: t.update(usage=t["usage"].assign(period_start=t["usage"]["period_start"].where(lambda s: s > s.min()))),
         "'period_start' is missing in 1 of 8 rows"),
    ],
)  # fmt: skip
def test_errors_speak(mend, message):
    t = small()
    mend(t)
    with pytest.raises(KitError, match=message):
        af.account_panel(t, "2025-03-03")


def test_too_late_and_too_early():
    with pytest.raises(KitError, match="absence would look like silence"):
        af.account_panel(small(), "2025-03-20")
    assert len(af.account_panel(small(), "2025-03-20", until="2025-04-01")) == 2
    with pytest.raises(KitError, match="no account lives and is observed on 2023-01-01"):
        af.account_panel(small(), "2023-01-01")


# -------------------------------------------------------------------------------------------------- words and numbers
def test_encode(panel):
    levels = af.levels_of(panel)
    X = af.encode(panel, levels)
    assert X.index.equals(panel.index) and X.dtypes.eq("float64").all()
    assert {"plan=basic", "contract=annual"} <= set(X) and "account_id" not in X
    assert (X[[c for c in X if c.startswith("plan=")]].sum(axis=1) == 1).all()
    few = panel.head(3)
    assert list(af.encode(few, levels)) == list(X) and af.encode(few, levels).equals(X.head(3))
    assert af.unseen(panel, levels).empty
    old = levels | {"plan": ["basic"]}
    odd = af.unseen(panel, old)
    assert set(odd["level"]) == {"business", "team"} and np.isclose(
        odd["share"].sum(), (panel["plan"] != "basic").mean()
    )
    with pytest.raises(KitError, match="give levels_of"):
        af.encode(panel.drop(columns="plan"), levels)
    with pytest.raises(KitError, match="'plan'"):
        af.encode(panel, {k: v for k, v in levels.items() if k != "plan"})


def test_every_feature_is_described(panel):
    X = af.encode(panel, af.levels_of(panel))
    said = af.describe_accounts([*panel.columns[2:], *X.columns])
    assert (said != "").all(axis=None) and (said["meaning"].str.len() > 3).all()
    assert (said.loc["champion_gone", "says_high"] == "the champion has left").all()
    assert af.describe_accounts(["strange"]).loc["strange", "label"] == "strange"
    assert not af.describe_accounts(panel.columns[2:])["label"].duplicated().any()


# ---------------------------------------------------------------------------------------------------------------- consent
def test_consent_equals_plain_pandas(tables):
    consent, when = tables["consent"], d("2024-07-01")
    found = af.consent_as_of(consent, "contact", when)
    c = consent[(consent["purpose"] == "contact") & (consent["timestamp"] <= when)].sort_values(
        "timestamp", kind="stable"
    )
    last = c.groupby("account_id")["granted"].last()
    assert found.loc[last.index].equals(last.astype(bool).rename("contact")) and not found.drop(last.index).any()
    per = pd.Series([d("2023-01-01"), when], index=[found.index[5], found.index[3]])
    expected = [af.consent_as_of(consent, "CONTACT ", m)[i] for i, m in per.items()]
    assert af.consent_as_of(consent, "contact", per).tolist() == expected


def test_consent_ties_systems_expiry():
    c = pd.DataFrame(
        {
            "account_id": [1, 1, 2, 2, 3, 4],
            "purpose": "contact",
            "system": ["crm", "crm", "crm", "web", "crm", "crm"],
            "timestamp": pd.to_datetime(
                ["2025-01-01", "2025-01-01", "2025-01-01", "2025-02-01", "2025-01-01", "2025-01-01"]
            ),
            "granted": [False, True, False, True, True, None],
            "expires": pd.to_datetime([None, None, None, None, "2025-01-10", None]),
        }
    )
    assert af.consent_as_of(c, "contact", "2025-03-01").tolist() == [False, False, False, False]
    assert af.consent_as_of(c, "contact", "2025-01-10 12:00").tolist() == [False, False, True, False]
    stranger = af.consent_as_of(c, "contact", pd.Series([d("2025-01-05")] * 2, index=[3, 9]))
    assert stranger.tolist() == [True, False]
    with pytest.raises(KitError, match="did you mean 'contact'"):
        af.consent_as_of(c, "contacts", "2025-01-01")


# ------------------------------------------------------------------------------------------------------------------ trial
@pytest.mark.parametrize(
    "seed, preset, scale", [(5, "guide", 0.01), (1, "hard", 0.02), (2, "null", 0.006), (3, "tiny", 0.003)]
)
def test_outcomes_equal_the_readout(seed, preset, scale):
    tables = dict(saas.simulate(scale, seed, preset).tables)
    for campaign, name in ((1, "retention"), (2, "outreach")):
        units, truth = af.trial_units(tables, campaign), saas.readout(tables, name)
        found = af.trial_outcomes(tables, units)
        assert (units["account_id"] == truth["account_id"]).all() and (units["snapshot"] == truth["month"]).all()
        assert (units["action"] == truth["action"].astype(str)).all() and units["propensity"].equals(
            truth["propensity"]
        )
        assert (found["kept"] == truth["goal"]).all() and np.allclose(found["profit"], truth["profit"], atol=1e-9)
        assert (found["months_paid"] <= 8).all()


def test_trials_are_generic_and_refuse_what_they_cannot_tell(tables):
    units = af.trial_units(tables, 1)
    short = af.trial_outcomes(tables, units, kept_months=1, paid_months=2)
    assert short["kept"].mean() > af.trial_outcomes(tables, units)["kept"].mean() and (short["months_paid"] <= 3).all()
    with pytest.raises(KitError, match=r"window of 12 months is not complete for .* the data end on 2026-01-01"):
        af.trial_outcomes(tables, units, paid_months=12)
    with pytest.raises(KitError, match="is not complete"):
        af.trial_outcomes(tables, units, until="2025-12-01")
    with pytest.raises(KitError, match="there is no campaign 9"):
        af.trial_units(tables, 9)
    x = tables["exposures"]
    with pytest.raises(KitError, match="draw an account again on the same day"):
        af.trial_units({"exposures": pd.concat([x, x.head(3).assign(cost=99.0)])}, x["campaign_id"].iloc[0])
    copies = af.trial_units({"exposures": pd.concat([x, x.head(30)])}, 2)
    assert copies.equals(af.trial_units(tables, 2))
    with pytest.raises(KitError, match="'arm' is missing in"):
        af.trial_units({"exposures": x.assign(arm=None)}, 1)
    a = tables["accounts"]
    with pytest.raises(KitError, match="have no account"):
        af.trial_outcomes(tables | {"accounts": a[a["account_id"] != units["account_id"].iloc[0]]}, units)


def test_money_is_what_was_paid(tables):
    units = af.trial_units(tables, 1)
    i = tables["invoices"]
    by_date = af.trial_outcomes(tables | {"invoices": i.drop(columns="status")}, units)
    assert np.allclose(by_date, af.trial_outcomes(tables, units))
    with pytest.raises(KitError, match="neither status nor paid_date"):
        af.trial_outcomes(tables | {"invoices": i.drop(columns=["status", "paid_date"])}, units)


@pytest.mark.slow
def test_single_features_know_something_and_none_knows_the_future():
    """Ranks of leaving within eight weeks: above 0.9 would be a leak, and below 0.6 there would be nothing to learn."""
    tables = dict(saas.simulate(0.05, 7).tables)
    panel = af.account_panel(tables, pd.date_range("2023-06-01", periods=9, freq="3MS"))
    end = panel["account_id"].map(saas.clean(tables, "accounts").set_index("account_id")["end_date"])
    y = (end >= panel["snapshot"]) & (end < panel["snapshot"] + pd.Timedelta(days=56))
    X = af.encode(panel, af.levels_of(panel)).rank().fillna(0)
    n1, n0 = y.sum(), (~y).sum()
    auc = (X.rank()[y].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
    strength = (auc - 0.5).abs() + 0.5
    assert 0.6 < strength.max() < 0.75


def test_many_snapshots_in_one_query_are_each_alone(tables, monkeypatch):
    days = pd.date_range("2024-06-03", periods=7, freq="7D")
    whole = af.account_panel(tables, days)
    monkeypatch.setattr(af, "BATCH", 3 * len(tables["accounts"]))
    pd.testing.assert_frame_equal(whole, af.account_panel(tables, days), check_exact=True)
    alone = [af.account_panel(tables, day) for day in days]
    words = whole.select_dtypes("category").columns
    rows = pd.concat(alone, ignore_index=True).astype(dict.fromkeys(words, "str"))
    pd.testing.assert_frame_equal(whole.astype(dict.fromkeys(words, "str")), rows, check_exact=True)
    with pytest.raises(KitError, match="observed on 1990-01-01"):
        af.account_panel(tables, ["1990-01-01", *days])
