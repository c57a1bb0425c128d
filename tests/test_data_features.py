"""Features: equal to plain pandas, blind to the future, the same bytes in any order and on any number of threads."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import features as ft
from mktai_kit.settings import KitError, load

DAY = pd.Timestamp("2024-07-01")
HISTORY = 120


def shop(n=4000, seed=0):
    """Lines with ties in time, refunds, repeated lines, unknown products, no card, and lines on the borders of the window."""
    rng = np.random.default_rng(seed)
    baskets = pd.DataFrame(
        {
            "customer_id": rng.integers(1, 80, n // 3),
            "store_id": rng.integers(1, 6, n // 3),
            "timestamp": pd.Timestamp("2024-02-01")
            + pd.to_timedelta(rng.integers(0, 200 * 24, n // 3) * 3600, unit="s"),
        }
    )
    baskets.loc[:5, "timestamp"] = [DAY, DAY - pd.Timedelta(seconds=1), DAY - pd.Timedelta(days=HISTORY)] * 2
    basket = rng.integers(0, n // 3, n)
    t = baskets.iloc[basket].reset_index(drop=True).assign(transaction_id=basket + 1000)
    t["product_id"] = rng.integers(0, 30, n)
    t["amount"] = np.where(rng.random(n) < 0.02, -1, 1) * rng.integers(0, 5000, n) / 100
    t["discount"], t["coupon_discount"] = rng.integers(0, 300, n) / 100, np.where(rng.random(n) < 0.1, 0.55, 0.0)
    t = pd.concat([t, t.iloc[:20]], ignore_index=True)
    t["customer_id"] = t["customer_id"].astype("Int64").mask(t["customer_id"] == 79)
    return t


def goods():
    names = ["Grocery", "Meat & Fish", "MEAT-FISH", "Panadería", None]
    return pd.DataFrame({"product_id": range(25), "department": [names[i % 5] for i in range(25)]})


def plain(t, products, day, categories):
    """The same features, written the obvious way."""
    t = t.dropna(subset="customer_id")
    t = t[(t["timestamp"] >= day - pd.Timedelta(days=HISTORY)) & (t["timestamp"] < day)].merge(
        products, how="left", on="product_id"
    )
    rows = []
    for customer, own in t.groupby("customer_id"):
        b = own.groupby("transaction_id").agg(
            time=("timestamp", "min"),
            amount=("amount", "sum"),
            coupon=("coupon_discount", "sum"),
            lines=("amount", "size"),
        )
        age = (day - b["time"]).dt.total_seconds() / 86400
        gaps = b["time"].sort_values().diff().dropna().dt.total_seconds() / 86400
        recent, before = age <= 28, (age > 28) & (age <= 56)
        full = own["amount"].sum() + own["discount"].sum() + own["coupon_discount"].sum()
        n, spend = len(b), own["amount"].sum()
        rows.append({
            "customer_id": customer, "recency_days": age.min(), "tenure_days": age.max(), "frequency": n, "monetary": spend,
            "basket_value": b["amount"].mean(), "lines_per_basket": b["lines"].mean(),
            "gap_mean_days": gaps.mean(), "gap_sd_days": gaps.std(),
            "baskets_recent": recent.sum(), "spend_recent": b["amount"][recent].sum(),
            "baskets_trend": recent.sum() - before.sum(), "spend_trend": b["amount"][recent].sum() - b["amount"][before].sum(),
            "weekend_share": (b["time"].dt.day_of_week >= 5).mean(), "morning_share": (b["time"].dt.hour < 12).mean(),
            "evening_share": (b["time"].dt.hour >= 17).mean(), "n_stores": own["store_id"].nunique(),
            "discount_share": own["discount"].sum() / full if full > 0 else 0,
            "coupon_share": own["coupon_discount"].sum() / full if full > 0 else 0,
            "coupon_basket_share": (b["coupon"] > 0).mean(),
            **{
                c: own["amount"][own["department"] == d].sum() / spend if spend > 0 else np.nan
                for c, d in ft.category_columns(categories).items()
            },
        })  # fmt: skip
    return pd.DataFrame(rows)


def test_equal_to_plain_pandas():
    t, names = shop(), ["Grocery", "Meat & Fish", "MEAT-FISH", "Panadería"]
    days = [DAY, pd.Timestamp("2024-06-01 12:00")]
    panel = ft.feature_panel(t, goods(), days, HISTORY, categories=names)
    assert panel["snapshot"].is_monotonic_increasing and list(panel.columns[:2]) == ["customer_id", "snapshot"]
    for day, got in panel.groupby("snapshot"):
        expected = plain(t, goods(), day, names)
        got = got.drop(columns="snapshot").reset_index(drop=True)
        assert list(got.columns) == list(expected.columns)
        pd.testing.assert_frame_equal(got, expected, check_dtype=False, rtol=1e-12, atol=1e-9)
    assert {str(d) for d in panel.dtypes} == {"int64", "float64", "datetime64[us]"}
    assert set(panel.columns[2:]) == set(ft.FEATURES) | set(ft.category_columns(names))


def test_same_bytes_in_any_order_and_on_two_threads():
    t, p = shop(), goods()
    one = ft.feature_panel(t, p, [DAY], HISTORY, categories=3)
    settings = replace(load(), threads=2, memory="200MB")
    for seed in range(3):
        again = ft.feature_panel(
            t.sample(frac=1, random_state=seed),
            p.sample(frac=1, random_state=seed),
            [DAY],
            HISTORY,
            3,
            settings=settings,
        )
        assert list(one) == list(again) and all(
            one[c].to_numpy().tobytes() == again[c].to_numpy().tobytes() for c in one
        )


def test_nothing_of_the_future():
    t, p = shop(), goods()
    panel = ft.feature_panel(t, p, DAY, HISTORY, categories=2)
    past = ft.feature_panel(t[t["timestamp"] < DAY], p, DAY, HISTORY, categories=2)
    pd.testing.assert_frame_equal(panel, past, check_exact=True)
    changed = t.assign(amount=t["amount"].where(t["timestamp"] < DAY, 1e6))
    pd.testing.assert_frame_equal(panel, ft.feature_panel(changed, p, DAY, HISTORY, categories=2), check_exact=True)


def test_categories_are_chosen_before_the_first_snapshot():
    t = pd.DataFrame({
        "customer_id": [1, 1, 1], "transaction_id": [1, 2, 3], "product_id": [0, 1, 2], "amount": [5.0, 9.0, 1000.0],
        "timestamp": pd.to_datetime(["2024-05-01", "2024-05-02", "2024-06-15"]),
    })  # fmt: skip
    panel = ft.feature_panel(t, goods(), ["2024-06-01", "2024-06-16"], 100, categories=2)
    assert [c for c in panel if c.startswith("share_")] == ["share_meat_fish", "share_grocery"]
    assert not {"n_stores", "discount_share", "coupon_share"} & set(panel)


def test_text_ids_and_a_single_customer():
    t = shop(200).dropna(subset="customer_id")
    t = t.assign(
        customer_id=t["customer_id"].map("c{:03d}".format).astype("category"),
        transaction_id=t["transaction_id"].astype(str),
    )
    panel = ft.feature_panel(t, None, DAY, HISTORY)
    assert panel["customer_id"].is_monotonic_increasing and panel["customer_id"].iloc[0].startswith("c")
    one = ft.feature_panel(t[t["customer_id"] == panel["customer_id"].iloc[0]], None, DAY, HISTORY, until="2025-01-01")
    pd.testing.assert_frame_equal(one, panel.iloc[:1], check_exact=True)


def test_repeated_lines_add_money_but_no_visits():
    t = shop().drop_duplicates()
    once, twice = (ft.feature_panel(x, None, DAY, HISTORY) for x in (t, pd.concat([t, t])))
    assert (twice["monetary"] == 2 * once["monetary"]).all() and (twice["frequency"] == once["frequency"]).all()


def test_refunds_that_leave_no_spend_give_no_shares():
    t = pd.DataFrame({
        "customer_id": [1, 1], "transaction_id": [1, 2], "product_id": [0, 0], "amount": [5.0, -5.0], "discount": [0.0, 0.0],
        "timestamp": pd.to_datetime(["2024-05-01", "2024-05-02"]),
    })  # fmt: skip
    panel = ft.feature_panel(t, goods(), "2024-05-03", 60, categories="Grocery")
    assert (
        np.isnan(panel["share_grocery"].iloc[0])
        and panel["discount_share"].iloc[0] == 0
        and panel["monetary"].iloc[0] == 0
    )


def test_names_and_meanings():
    assert list(ft.category_columns(["A b", "a-B", "Ñandú", "???", "A b"])) == [
        "share_a_b",
        "share_a_b_2",
        "share_nandu",
        "share_other",
    ]
    d = ft.describe([*ft.FEATURES, "share_a_b", "customer_id"], ["A b"])
    assert len(d) == len(ft.FEATURES) + 1 and (d != "").all(axis=None) and "A b" in d.loc["share_a_b", "label"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: k | {"transactions": shop().iloc[:0]}, "no line has a customer (0 rows)"),
        (lambda k: k | {"transactions": shop().drop(columns="amount")}, "column 'amount' is missing"),
        (lambda k: k | {"transactions": shop().drop(columns="product_id")}, "column 'product_id' is missing"),
        (lambda k: k | {"transactions": shop().assign(customer_id=None)}, "no line has a customer"),
        (lambda k: k | {"transactions": shop().assign(amount=np.inf)}, "column 'amount' is missing or infinite in"),
        (lambda k: k | {"transactions": shop().assign(timestamp="2024-05-01")}, "column 'timestamp' is str"),
        (
            lambda k: k | {"transactions": shop().assign(timestamp=lambda x: x["timestamp"].dt.tz_localize("UTC"))},
            "without time zone",
        ),
        (lambda k: k | {"transactions": shop().assign(product_id="x")}, "make both the same type"),
        (lambda k: k | {"products": None}, "products: column 'product_id' is missing"),
        (lambda k: k | {"products": goods().drop(columns="department")}, "products: column 'department' is missing"),
        (lambda k: k | {"products": pd.concat([goods(), goods()])}, "25 product ids are repeated"),
        (lambda k: k | {"snapshots": "2030-01-01"}, "absence would look like silence"),
        (
            lambda k: k | {"snapshots": "2020-01-01"},
            "no transaction of a known customer in the 120 days before 2020-01-01",
        ),
        (lambda k: k | {"snapshots": "2024-02-30"}, "is no date"),
        (lambda k: k | {"snapshots": pd.Timestamp("2024-07-01", tz="UTC")}, "time zone"),
        (lambda k: k | {"snapshots": []}, "there are none"),
        (lambda k: k | {"snapshots": pd.DataFrame({"day": [1]})}, "column 'snapshot' is missing"),
        (lambda k: k | {"history_days": 30}, "history_days = 30"),
        (lambda k: k | {"history_days": "90"}, "history_days = '90'"),
        (lambda k: k | {"categories": 0}, "top = 0"),
        (lambda k: k | {"settings": replace(load(), memory="lots")}, "DuckDB refuses memory = 'lots'"),
    ],
)
def test_bad_input_gets_one_clear_message(change, message):
    with pytest.raises(KitError) as e:
        ft.feature_panel(
            **change(
                {
                    "transactions": shop(300),
                    "products": goods(),
                    "snapshots": DAY,
                    "history_days": HISTORY,
                    "categories": 2,
                }
            )
        )
    assert message in str(e.value)


def test_the_expressions_compile_for_another_engine():
    import ibis

    t = ibis.table({
        "customer_id": "int64", "transaction_id": "int64", "timestamp": "timestamp", "product_id": "int64", "amount": "float64",
        "discount": "float64", "coupon_discount": "float64", "store_id": "int64",
    }, name="transactions")  # fmt: skip
    p = ibis.table({"product_id": "int64", "department": "string"}, name="products")
    for expression in (
        ft.rfm(t, DAY, 90),
        ft.category_shares(t, p, DAY, 90, ["Meat"]),
        ft.top_categories(t, p, DAY, 90),
    ):
        assert "GROUP BY" in str(ibis.to_sql(expression, dialect="databricks"))
    with pytest.raises(KitError, match="'timestamp' is missing"):
        ft.rfm(t.drop("timestamp"), DAY, 90)
