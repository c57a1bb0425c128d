"""Quality: each kind of planted fault is found, clean tables give nothing, and honest data are not accused."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import contracts, quality
from mktai_kit.settings import KitError


def clean(n=400, seed=1):
    """Two tables without a fault."""
    rng = np.random.default_rng(seed)
    lines = pd.DataFrame(
        {
            "transaction_id": np.arange(n),
            "customer_id": rng.integers(1, 51, n),
            "product_id": rng.integers(1, 9, n),
            "timestamp": pd.Timestamp("2017-01-01 09:00") + pd.to_timedelta(np.arange(n) * 6, unit="h"),
            "quantity": rng.integers(1, 5, n),
            "amount": rng.lognormal(1, 0.7, n).round(2),
            "channel": rng.choice(["store", "online"], n),
        }
    )
    return {
        "customers": pd.DataFrame({"customer_id": np.arange(1, 51), "region": ["North", "South"] * 25}),
        "transactions": lines,
    }


def findings(change, table="transactions", as_of="2017-04-11", **options):
    """(column, finding) to row, of what a change to the clean tables brings up."""
    tables = clean()
    tables[table] = change(tables[table].copy())
    found = quality.audit(tables, as_of=as_of, **options)
    return {(r.column, r.finding): r for r in found.itertuples()}


def put(column, row, value):
    def change(frame):
        frame[column] = frame[column].astype("object")
        frame.loc[row, column] = value
        return frame

    return change


def test_clean_tables_have_no_findings():
    assert quality.audit(clean(), as_of="2017-04-11").empty
    assert list(quality.audit({}).columns) == [
        "dimension",
        "table",
        "column",
        "finding",
        "rows",
        "share",
        "severity",
        "todo",
    ]


FAULTS = {
    "missing column": (lambda f: f.drop(columns="amount"), "amount", "column is missing", "completeness", "high"),
    "missing key": (put("product_id", 3, None), "product_id", "values are missing", "completeness", "high"),
    "few gaps": (put("channel", 3, None), "channel", "values are missing", "completeness", "low"),
    "many gaps": (
        lambda f: f.assign(channel=f["channel"].where(f.index > 99)),
        "channel",
        "values are missing",
        "completeness",
        "medium",
    ),
    "all missing": (
        lambda f: f.assign(customer_id=np.nan),
        "customer_id",
        "values are missing",
        "completeness",
        "high",
    ),
    "disguised": (put("channel", 3, " N/A "), "channel", "missing in disguise", "completeness", "low"),
    "constant": (lambda f: f.assign(channel="store"), "channel", "one value only", "completeness", "low"),
    "constant number": (lambda f: f.assign(week=1), "week", "one value only", "completeness", "low"),
    "copies": (lambda f: pd.concat([f, f.head(7)]), "", "exact copies", "consistency", "medium"),
    "orphan": (put("customer_id", 3, 999), "customer_id", "not known in customers", "consistency", "medium"),
    "many orphans": (
        lambda f: f.assign(customer_id=f["customer_id"] + 40),
        "customer_id",
        "not known",
        "consistency",
        "high",
    ),
    "torn basket": (
        put("transaction_id", 3, 0),
        "timestamp",
        "differs within one transaction_id",
        "consistency",
        "medium",
    ),
    "spelling": (put("channel", 3, "Store "), "channel", "other spellings", "consistency", "medium"),
    "formula": (put("channel", 3, "=cmd|'/c calc'!A1"), "channel", "formula", "validity", "medium"),
    "html": (put("channel", 3, "<script>alert(1)</script>"), "channel", "HTML", "validity", "medium"),
    "negative money": (put("amount", 3, -2.0), "amount", "rule 'at least 0'", "validity", "high"),
    "infinite": (put("amount", 3, np.inf), "amount", "rule 'finite'", "validity", "high"),
    "wrong type": (put("quantity", 3, "two"), "quantity", "rule 'holds numbers'", "validity", "high"),
    "future": (put("timestamp", 3, pd.Timestamp("2071-01-01")), "timestamp", "rule 'not after", "validity", "high"),
    "outlier": (put("amount", 3, 1e6), "amount", "outliers: 1 from 1e+06", "accuracy", "low"),
    "dust": (put("amount", 3, 1e-15), "amount", "outliers: 1 up to 1e-15", "accuracy", "low"),
    "money for nothing": (put("quantity", 3, 0), "quantity", "0 although money", "accuracy", "low"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault):
    change, column, text, dimension, severity = FAULTS[fault]
    found = [
        r for (c, f), r in findings(change).items() if c == column and f.startswith(text) or c == column and text in f
    ]
    assert len(found) == 1, f"{fault} is not found"
    assert (found[0].dimension, found[0].severity) == (dimension, severity)
    assert found[0].rows >= 1 and 0 < found[0].share <= 1 and found[0].todo


def test_duplicate_keys_and_spaces_around_ids():
    found = findings(lambda f: pd.concat([f, f.head(1).assign(region="East")]), table="customers")
    assert found["customer_id", "key given more than once"].rows == 2
    names = clean()["customers"].assign(customer_id=[" 1", *map(str, range(2, 51))])
    got = quality.audit({"customers": names})
    assert got.loc[0, ["finding", "severity", "rows"]].tolist() == ["spaces around an id", "high", 1]


def test_orders_loaded_twice_under_a_new_key():
    orders = pd.DataFrame(
        {"order_id": [1, 2], "customer_id": [7, 7], "timestamp": ["2017-01-01 10:00:07"] * 2, "amount": [9.5] * 2}
    )
    assert "copies of an earlier row but for the key" in quality.audit({"orders": orders})["finding"].tolist()


def test_dates_that_end_before_they_start():
    campaigns = pd.DataFrame(
        {"campaign_id": [1, 2], "start_date": ["2017-01-05"] * 2, "end_date": ["2017-01-09", "2017-01-01"]}
    )
    got = quality.audit({"campaigns": campaigns})
    assert got["finding"].tolist() == ["lies before start_date", "one value only"] and got["rows"].tolist() == [1, 2]


def test_staleness_follows_the_tables_own_habit():
    stale = findings(lambda f: f, as_of="2017-05-30")
    assert [r.dimension for r in stale.values()] == ["freshness"] and "49 days old" in next(iter(stale))[1]
    weekly = lambda f: f.assign(
        timestamp=pd.Timestamp("2016-01-01") + pd.to_timedelta(np.arange(len(f)) // 8 * 7, unit="D")
    )
    assert not [r for r in findings(weekly, as_of="2016-12-25").values() if r.dimension == "freshness"]


def test_silent_stretches_are_found():
    found = findings(lambda f: f[(f["timestamp"] < "2017-02-01") | (f["timestamp"] > "2017-02-20")])
    assert any(text.startswith("one silent stretch of 2") for _, text in found)
    silent = ("2017-01-10", "2017-01-20"), ("2017-03-01", "2017-03-20")
    found = findings(lambda f: f[~(f["timestamp"].between(*silent[0]) | f["timestamp"].between(*silent[1]))])
    assert any(text.startswith("2 silent stretches, the longest of 2") for _, text in found)


def test_numbers_and_dates_written_as_text_are_no_formulas():
    assert not findings(lambda f: f.assign(channel=np.where(f.index % 2, "-5.5", "+34 600")))
    assert not findings(
        lambda f: f.assign(channel=np.where(f.index % 2, "-", "a < b")), checks={"t": quality.CHECKS["active text"]}
    )


def test_honest_skewed_data_are_not_accused_of_outliers():
    rates = []
    for seed in range(20):
        x = np.random.default_rng(seed).lognormal(2, 1, 5_000)
        rates.append(np.mean(np.abs(quality.robust_z(x)) > 6))
    assert np.mean(rates) < 1e-5


def test_robust_z_equals_its_definition_and_holds_where_values_do_not_spread():
    x = np.array([-1.0, 0.0, 1.0, 2.0, 30.0])
    np.testing.assert_allclose(quality.robust_z(x), 0.6745 * (x - 1) / 1.0)
    assert quality.robust_z(np.ones(4)).tolist() == [0] * 4
    assert quality.robust_z(np.array([0.0, 0.0])).tolist() == [0, 0]
    assert len(quality.robust_z(np.array([]))) == 0
    assert np.isnan(quality.robust_z(np.array([1.0, np.nan, np.inf]))).tolist() == [False, True, True]


def test_nothing_is_changed():
    tables = clean()
    before = {k: f.copy() for k, f in tables.items()}
    quality.audit(tables, as_of="2017-04-11")
    for name in tables:
        pd.testing.assert_frame_equal(tables[name], before[name])


def test_the_audit_is_deterministic_and_sorted():
    tables = clean()
    tables["transactions"] = put("amount", 3, -1)(put("channel", 5, "=1+1")(tables["transactions"]))
    one, two = quality.audit(tables), quality.audit(tables)
    pd.testing.assert_frame_equal(one, two)
    assert one["severity"].map(quality.SEVERITIES.index).is_monotonic_increasing


@pytest.mark.parametrize("bad", [None, [1], {"a": [1]}])
def test_not_a_table(bad):
    with pytest.raises(KitError, match="not a pandas DataFrame"):
        quality.audit({"customers": bad})


def test_unknown_table_repeated_columns_and_bad_dates():
    with pytest.raises(KitError, match="did you mean"):
        quality.audit({"custmers": pd.DataFrame({"a": [1]})})
    with pytest.raises(KitError, match="same name"):
        quality.audit({"customers": pd.DataFrame([[1, 2]], columns=["customer_id", "customer_id"])})
    with pytest.raises(KitError, match="as_of"):
        quality.audit(clean(), as_of="soon")


def test_empty_table_is_one_finding():
    tables = clean()
    tables["transactions"] = tables["transactions"].head(0)
    assert quality.audit(tables)["finding"].tolist() == ["no rows"]


def test_values_that_cannot_be_hashed():
    tables = {"customers": pd.DataFrame({"customer_id": [1, 2], "tags": [["a"], ["a"]], "more": [{"x": 1}, None]})}
    assert "values are missing" in quality.audit(tables)["finding"].tolist()
    assert quality.profile(tables["customers"]).loc["tags", "distinct"] == 1


def test_repeated_index_labels():
    tables = clean()
    tables["transactions"] = tables["transactions"].set_axis([0] * 400)
    assert quality.audit(tables, as_of="2017-04-11").empty


def daily(seed=1, days=60, a_day=40, spread=0.7):
    """Sales of two sources, every day."""
    rng, n = np.random.default_rng(seed), days * a_day
    return pd.DataFrame(
        {
            "transaction_id": np.arange(n),
            "timestamp": pd.Timestamp("2017-01-01") + pd.to_timedelta(np.arange(n) * 86_400 // a_day, unit="s"),
            "channel": rng.choice(["store", "online"], n),
            "amount": rng.lognormal(3, spread, n),
        }
    )


def jumps(frame):
    return list(quality.CHECKS["jumps"](quality.Look("transactions", frame, [], {}, None)))


@pytest.mark.parametrize("factor", [100, 0.01, 12])
def test_another_unit_is_found(factor):
    frame = daily()
    rows = (frame["channel"] == "online") & frame["timestamp"].between("2017-01-20", "2017-01-22 23:59")
    frame.loc[rows, "amount"] *= factor
    (found,) = jumps(frame)
    assert (found.column, found.rows) == ("amount", rows.sum())
    assert "3 times from 2017-01-20" in found.finding and "online" in found.finding


def test_another_unit_in_weeks_and_without_sources():
    frame = daily().drop(columns=["channel"])
    frame["week"] = 1 + frame["timestamp"].dt.day_of_year // 4
    frame = frame.drop(columns="timestamp")
    assert not jumps(frame)
    frame.loc[frame["week"].isin([5, 6]), "amount"] *= 60
    (found,) = jumps(frame)
    assert "2 times from week 5" in found.finding and found.rows == frame["week"].isin([5, 6]).sum()


def test_honest_sources_do_not_jump():
    for seed in range(40):
        assert not jumps(daily(seed, spread=0.7 if seed % 2 else 1.8))
    dear = daily()
    dear.loc[dear["channel"] == "store", "amount"] *= 50  # another source may sell dearer things, always
    one_day = daily()
    one_day.loc[one_day["timestamp"].dt.day == 9, "amount"] *= 30  # a feast is one day
    growth = daily()
    growth["amount"] *= np.exp(np.linspace(0, 2, len(growth)))
    assert not jumps(dear) and not jumps(growth) and not jumps(daily(days=5))
    assert len(jumps(one_day)) == 0
    assert not jumps(daily().drop(columns="timestamp"))


def test_late_rows_are_found():
    frame = daily()
    frame["recorded"] = frame["timestamp"] + pd.Timedelta("20min")
    look = quality.Look("transactions", frame, [], {}, None)
    assert not list(quality.CHECKS["late"](look)) and not list(quality.CHECKS["spans"](look))
    frame.loc[[3, 30, 300], "recorded"] += pd.Timedelta("9D")
    frame.loc[[5, 6], "timestamp"] += pd.Timedelta("5h")
    (found,) = quality.CHECKS["late"](look)
    assert found.rows == 3 and "9.0 days" in found.finding
    (found,) = quality.CHECKS["spans"](look)
    assert (found.column, found.rows) == ("recorded", 2)
    weekly = frame.assign(
        recorded=frame["timestamp"].dt.to_period("W").dt.end_time
    )  # a source that is loaded once a week
    assert not list(quality.CHECKS["late"](quality.Look("transactions", weekly, [], {}, None)))


# Profile


def test_profile_counts_shares_and_intervals():
    frame = pd.DataFrame({"customer_id": [1, 2, 3, 4], "region": ["a", None, "a", "\x1b[31m"]})
    got = quality.profile(frame, "customers")
    assert got.loc["region", ["missing", "distinct"]].tolist() == [1, 2] and got.loc["region", "missing_share"] == 0.25
    assert got.loc["region", "missing_low"] == pytest.approx(0.04559, abs=1e-4)  # Wilson's interval for 1 of 4
    assert got.loc["region", "missing_high"] == pytest.approx(0.69936, abs=1e-4)
    assert "\x1b" not in got.to_string() and got.loc["customer_id", "family"] == "id"


def test_profile_hides_personal_values():
    people = pd.DataFrame(
        {"system": ["crm"], "record_id": [1], "email": ["ana@example.org"], "birth_date": [pd.Timestamp("1970-01-01")]}
    )
    assert "ana@" not in quality.profile(people, "identities").to_string()
    assert "1970" not in quality.profile(people, "identities").to_string()


def test_profile_of_nothing():
    assert len(quality.profile(pd.DataFrame())) == 0
    empty = quality.profile(pd.DataFrame({"a": []}))
    assert empty.loc["a", ["missing", "missing_low", "missing_high"]].tolist() == [0, 0, 1]


def test_wilson_covers():
    """Share of seeds whose interval holds the truth; 95 % nominal."""
    rng = np.random.default_rng(0)
    for n, p in ((20, 0.05), (200, 0.02), (1000, 0.3)):
        low, high = quality._wilson(rng.binomial(n, p, 4000), n)
        assert 0.92 < np.mean((low <= p) & (p <= high)) < 0.985


def test_plot_missing_draws_on_the_given_axes():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _fig, ax = plt.subplots()
    assert quality.plot_missing(pd.DataFrame({"a": [1, None], "b": [1, 2]}), ax=ax) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"] and ax.get_xlabel()
    plt.close("all")


def test_by_dimension_names_all_five_even_without_findings():
    assert list(quality.by_dimension(quality.audit(clean(), as_of="2017-04-11")).index) == list(quality.DIMENSIONS)


def test_the_checks_stay_within_the_dimensions():
    assert set(quality.CHECKS) >= {"missing", "duplicates", "references", "outliers", "freshness", "contract"}
    assert set(quality.DIMENSIONS) == {"accuracy", "completeness", "consistency", "freshness", "validity"}
    assert set(contracts.TABLES["transactions"].references.values()) == {"customers", "products", "stores"}


def test_tidy_repairs_by_rule_and_says_so():
    from mktai_kit.world import saas

    world = saas.simulate(0.05, 7)
    before = {n: f.copy() for n, f in world.tables.items()}
    after, log = quality.tidy(world.tables, copies=["usage", "events"])
    assert contracts.validate_all(after, as_of="2026-01-01")
    for name, key in saas.KEYS.items():
        assert not after[name].duplicated(key).any(), name
        assert after[name]["account_id"].isin(after["accounts"]["account_id"]).all()
    dropped = {n: len(before[n]) - len(after[n]) for n in before}
    said = log[~log["repair"].str.contains("spelling")].groupby("table")["rows"].sum().to_dict()
    assert {n: k for n, k in dropped.items() if k} == said
    assert set(after["invoices"]["status"].astype(str).unique()) == {"paid", "open", "written off"}
    again, nothing = quality.tidy(after, copies=["usage", "events"])
    assert nothing.empty and all(again[n].equals(after[n]) for n in after)


def test_tidy_leaves_out_few_rows_or_none():
    accounts = pd.DataFrame({"account_id": np.arange(100), "plan": ["team"] * 100})
    tickets = pd.DataFrame({"ticket_id": np.arange(200), "account_id": np.arange(200) % 100})
    as_text = tickets.assign(account_id=tickets["account_id"].astype(str))
    assert len(quality.tidy({"accounts": accounts, "tickets": as_text})[0]["tickets"]) == 200
    twice = tickets.assign(ticket_id=np.arange(200) // 2)
    after, log = quality.tidy({"accounts": accounts, "tickets": twice})
    assert len(after["tickets"]) == 200 and log.empty
    assert len(quality.tidy({"tickets": twice}, most=0.5)[0]["tickets"]) == 100
    strange = tickets.assign(account_id=tickets["account_id"].where(tickets.index > 3, -1))
    after, log = quality.tidy({"tickets": strange, "accounts": accounts})
    assert len(after["tickets"]) == 196 and log["rows"].tolist() == [4]


def test_tidy_takes_no_part_of_a_key_for_the_key():
    lines = pd.DataFrame({"order_id": [1, 1, 2], "product_id": [5, 6, 5], "quantity": 1})
    assert len(quality.tidy({"order_lines": lines})[0]["order_lines"]) == 3
    nameless = pd.DataFrame({"ticket_id": pd.array([1, None, None, None], dtype="Int64"), "account_id": [1, 2, 3, 4]})
    assert len(quality.tidy({"tickets": nameless})[0]["tickets"]) == 4


def test_tidy_follows_rows_that_were_left_out():
    lines = pd.DataFrame({"order_id": np.arange(100), "line": 1, "quantity": 1})
    orders = pd.DataFrame({"order_id": np.arange(100), "customer_id": [*range(99), 999]})
    customers = pd.DataFrame({"customer_id": np.arange(100)})
    after, log = quality.tidy({"order_lines": lines, "orders": orders, "customers": customers})
    assert len(after["orders"]) == len(after["order_lines"]) == 99 and log["rows"].tolist() == [1, 1]
