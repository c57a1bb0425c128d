"""Contracts: bad tables get one clear message with everything that is wrong; good ones pass unchanged."""

import datetime as dt
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import pandera.errors
import pytest

from mktai_kit.data import contracts as c
from mktai_kit.settings import KitError


def basket_lines(**changes):
    """Five good lines of a basket, with some columns changed."""
    good = {
        "transaction_id": [11, 11, 12, 13, 14],
        "customer_id": [1, 1, 2, 3, 4],
        "product_id": [101, 102, 101, 103, 104],
        "timestamp": pd.to_datetime(["2017-03-01", "2017-03-01", "2017-03-02", "2017-04-01", "2017-04-02"]),
        "quantity": [1, 2, 0, 1, 8000],
        "amount": [2.5, 4.0, 0.0, 3.0, 20.0],
    }
    return pd.DataFrame({**good, **changes})


def found(table, frame, **options):
    """What `validate` complains about: {(column, rule): rows}."""
    with pytest.raises(c.ContractError) as e:
        c.validate(table, frame, **options)
    return {(v.column, v.check): v.failed for v in e.value.violations}


# The definitions hold together


def test_every_contract_is_sound():
    for name, contract in c.TABLES.items():
        assert contract.name == name and contract.meaning.endswith(".") and contract.columns
        assert set(contract.cases) <= {"ecommerce", "saas", "retail"} and contract.cases
        for column in contract.columns.values():
            assert column.need in c.NEEDS and column.family in c.FAMILIES and column.meaning
            if column.reference:
                assert column.family == "id" and column.name in c.TABLES[column.reference].columns
        assert len(c.describe(name)) == len(contract.columns)


def test_the_tables_of_the_three_cases_are_there():
    needed = (
        "customers products sessions events orders order_lines accounts usage tickets invoices stores transactions "
    )
    needed += "campaigns exposures offers consent identities promotions"
    assert set(needed.split()) <= set(c.TABLES)


def test_import_is_light():
    code = "import sys, mktai_kit.data.contracts; print([m for m in ('pandera', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Good tables


def test_good_lines_pass_and_keep_order_extra_columns_and_input():
    lines = basket_lines(colour=list("abcde"))[::-1]
    before = lines.copy()
    out = c.validate("transactions", lines, as_of="2017-04-02")
    assert list(out.index) == [4, 3, 2, 1, 0] and out["colour"].tolist() == list("edcba")
    pd.testing.assert_frame_equal(lines, before)


def test_validating_twice_changes_nothing():
    once = c.validate("transactions", basket_lines())
    pd.testing.assert_frame_equal(c.validate("transactions", once), once)


@pytest.mark.parametrize(
    "family, values, dtype",
    [
        ("id", [1.0, np.nan], "Int64"),
        ("id", ["007", None], "str"),
        ("id", pd.Series(["a"], dtype="category"), "str"),
        ("money", ["1.50", None], "float64"),
        ("money", [Decimal("1.5")], "float64"),
        ("count", pd.Series([1, None], dtype="int64[pyarrow]"), "Int64"),
        ("count", ["3"], "int64"),
        ("number", [1, 2], "int64"),
        ("flag", ["Yes", "no"], "bool"),
        ("flag", [1.0, None], "boolean"),
        ("timestamp", ["2017-01-01 10:00", "20170101"], "datetime64[us]"),
        ("timestamp", pd.Series(pd.to_datetime(["2017-01-01"])).dt.as_unit("ns"), "datetime64[us]"),
        ("timestamp", pd.Series(["2017-01-01"], dtype="timestamp[us][pyarrow]"), "datetime64[us]"),
        ("date", [dt.date(2017, 1, 1), None], "datetime64[us]"),
        ("date", ["9999-12-31"], "datetime64[us]"),
        ("category", [1, 2], "str"),
        ("category", [1.0, np.nan], "str"),
        ("text", pd.Series(["=1+1", "<script>"], dtype="string"), "str"),
    ],
)
def test_loss_free_conversions(family, values, dtype):
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    out, bad = c.coerce(series, family)
    assert out.dtype == dtype and not bad.any() and (out.isna() == series.isna()).all()


@pytest.mark.parametrize(
    "family, values",
    [
        ("id", [1.5]),
        ("id", [True]),
        ("id", ["a", 1]),
        ("id", [2.0**60]),
        ("money", ["1,50"]),
        ("money", [True]),
        ("money", pd.Series(pd.period_range("2017-01", periods=1))),
        ("money", pd.Series(pd.to_datetime(["2017-01-01"]))),
        ("count", [3.5]),
        ("count", [np.inf]),
        ("flag", ["maybe"]),
        ("flag", [2]),
        ("timestamp", [20170101]),
        ("timestamp", ["2017"]),
        ("timestamp", ["01/02/2017"]),
        ("timestamp", ["2017-01-01T10:00+02:00"]),
        ("timestamp", pd.Series(pd.to_datetime(["2017-01-01"], utc=True))),
        ("date", ["2017-01-01 10:00"]),
        ("category", ["a", 3.5]),
        ("text", [b"bytes"]),
        ("text", [["a", "list"]]),
    ],
)
def test_what_would_lose_or_guess_is_refused(family, values):
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    out, bad = c.coerce(series, family)
    assert bad.any() and out is series


# Bad tables, one fault each


BAD = {
    "missing column": (lambda: basket_lines().drop(columns="amount"), ("amount", "column is missing")),
    "empty table": (lambda: basket_lines().head(0), ("", "rule 'not empty' broken")),
    "missing value": (lambda: basket_lines(product_id=[1, None, 2, 3, 4]), ("product_id", "not missing")),
    "all missing": (lambda: basket_lines(customer_id=[None] * 5), ("customer_id", "holds at least one value")),
    "blank id": (lambda: basket_lines(product_id=["a", " ", "b", "c", "d"]), ("product_id", "not blank")),
    "negative money": (lambda: basket_lines(amount=[1, 2, -3, 4, 5]), ("amount", "at least 0")),
    "infinite": (lambda: basket_lines(amount=[1, 2, np.inf, 4, 5]), ("amount", "finite")),
    "text in a number": (lambda: basket_lines(quantity=[1, 2, "x", 4, 5]), ("quantity", "holds numbers")),
    "mixed types": (
        lambda: basket_lines(transaction_id=[1, 2, "x", 4, 5]),
        ("transaction_id", "holds whole numbers or text, not mixed"),
    ),
    "time zone": (
        lambda: basket_lines(timestamp=pd.date_range("2017-01-01", periods=5, tz="UTC")),
        ("timestamp", "holds moments without time zone (2017-12-31 23:59)"),
    ),
    "future": (
        lambda: basket_lines(timestamp=["2017-01-01"] * 4 + ["2017-12-02"]),
        ("timestamp", "not after 2017-12-01"),
    ),
    "column twice": (
        lambda: pd.concat([basket_lines(), basket_lines()[["amount"]]], axis=1),
        ("amount", "column appears twice"),
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_named(fault):
    make, expected = BAD[fault]
    assert list(found("transactions", make(), as_of="2017-12-01")) == [expected]


@pytest.mark.parametrize("thing", [None, [1, 2], {"amount": [1]}, pd.Series([1])])
def test_not_a_frame(thing):
    assert list(found("transactions", thing)) == [("", f"a {type(thing).__name__}, not a pandas DataFrame")]


def test_all_faults_come_together_with_counts_and_three_examples():
    lines = basket_lines(amount=[-1, -2, -3, -4, 5], quantity=[1, 1, 1, 1, -1]).drop(columns="product_id")
    with pytest.raises(c.ContractError) as e:
        c.validate("transactions", lines)
    by_column = {v.column: v for v in e.value.violations}
    assert set(by_column) == {"amount", "quantity", "product_id"}
    assert by_column["amount"].failed == 4 and by_column["amount"].rows == 5
    assert by_column["amount"].examples == (("0", "-1.0"), ("1", "-2.0"), ("2", "-3.0"))
    assert len(e.value.frame) == 3 and "4 of 5 rows" in str(e.value) and "Mend:" in str(e.value)


def test_duplicate_keys_show_every_row_of_the_pair():
    frame = pd.DataFrame({"customer_id": [7, 8, 7]}, index=["x", "y", "z"])
    with pytest.raises(c.ContractError, match="broken in 2 of 3 rows.*row 'x': 7; row 'z': 7"):
        c.validate("customers", frame)


def test_key_of_several_columns():
    frame = pd.DataFrame({"system": ["web", "web", "store"], "record_id": [1, 1, 1]})
    assert found("identities", frame) == {("system, record_id", "unique"): 2}


def test_repeated_index_labels_do_not_confuse_the_count():
    lines = basket_lines(amount=[-1, 2, 3, 4, 5]).set_axis([0] * 5)
    assert found("transactions", lines) == {("amount", "at least 0"): 1}


def test_one_of_several_columns_is_needed():
    events = pd.DataFrame({"timestamp": ["2017-01-01"], "event_type": ["view"]})
    assert list(found("events", events)) == [
        ("", "rule 'has at least one of customer_id, visitor_id, account_id' broken")
    ]
    c.validate("events", events.assign(visitor_id="v"))


def test_plans_may_lie_ahead_and_the_as_of_day_counts_to_its_end():
    campaigns = pd.DataFrame({"campaign_id": [1], "start_date": ["2030-01-01"]})
    c.validate("campaigns", campaigns, as_of="2017-12-31")
    late = basket_lines(timestamp=pd.Timestamp("2017-12-31 23:59:59"))
    c.validate("transactions", late, as_of="2017-12-31")
    assert found("transactions", late, as_of="2017-12-31 23:00")


@pytest.mark.parametrize("as_of", ["soon", object(), pd.Timestamp("2017-01-01", tz="UTC"), pd.NaT])
def test_bad_as_of(as_of):
    with pytest.raises(KitError, match="as_of"):
        c.validate("transactions", basket_lines(), as_of=as_of)


def test_the_schema_alone_wants_canonical_dtypes():
    with pytest.raises(pandera.errors.SchemaErrors, match="whole numbers or text"):
        c.schema("customers").validate(pd.DataFrame({"customer_id": [1.0, 2.0]}), lazy=True)


def test_a_missing_column_suggests_its_near_name():
    with pytest.raises(c.ContractError, match="is it 'Amount'"):
        c.validate("transactions", basket_lines().rename(columns={"amount": "Amount"}))


def test_hostile_text_is_allowed_but_never_printed_raw():
    lines = basket_lines(note=["=1+1"] * 5, channel=["<script>alert(1)</script>"] * 5)
    assert c.validate("transactions", lines)["channel"].iloc[0].startswith("<script>")
    nasty = "\x1b[31m" + "x" * 500 + "\n\u202e"
    with pytest.raises(c.ContractError) as e:
        c.validate("transactions", basket_lines(quantity=[nasty, 1, 1, 1, 1]))
    assert "\x1b" not in str(e.value) and "\u202e" not in str(e.value) and "x" * 60 not in str(e.value)


def test_personal_values_are_not_printed():
    people = pd.DataFrame({"system": ["crm"], "record_id": [1], "email": [3.5], "birth_date": ["in spring"]})
    with pytest.raises(c.ContractError) as e:
        c.validate("identities", people)
    assert "in spring" not in str(e.value) and "<personal, 9 characters>" in str(e.value)


def test_unknown_table_suggests():
    with pytest.raises(KitError, match="did you mean 'transactions'"):
        c.validate("transaction", basket_lines())


# Tables together


def test_violations_of_all_tables_come_together():
    tables = {"customers": pd.DataFrame({"customer_id": [1, 1]}), "transactions": basket_lines(amount=-1.0)}
    with pytest.raises(c.ContractError) as e:
        c.validate_all(tables)
    assert {(v.table, v.check) for v in e.value.violations} == {
        ("customers", "unique"),
        ("transactions", "at least 0"),
        ("transactions", "known in customers"),
    }


def test_few_broken_references_are_for_the_audit_many_are_a_violation():
    many = pd.concat([basket_lines()] * 100, ignore_index=True)
    many.loc[:3, "product_id"] = 999
    products = pd.DataFrame({"product_id": [101, 102, 103, 104]})
    c.validate_all({"products": products, "transactions": many})
    with pytest.raises(c.ContractError, match="4 of 500"):
        c.validate_all({"products": products, "transactions": many}, broken=0)


def test_references_of_another_type_say_so():
    customers = pd.DataFrame({"customer_id": list("1234")})
    with pytest.raises(c.ContractError, match="int64 here, str there"):
        c.validate_all({"customers": customers, "transactions": basket_lines()})


def test_missing_references_are_not_broken_ones():
    lines = basket_lines(customer_id=[1, 2, None, 3, 4])
    out = c.validate_all({"customers": pd.DataFrame({"customer_id": [1, 2, 3, 4]}), "transactions": lines})
    assert out["transactions"]["customer_id"].dtype == "Int64"


def test_speed_of_a_million_lines():
    """A wide guard against a per-row check; the measured time is a tenth of it."""
    import time

    n = 1_000_000
    lines = basket_lines().iloc[np.arange(n) % 5].reset_index(drop=True)
    c.validate("transactions", basket_lines())
    start = time.perf_counter()
    c.validate("transactions", lines, as_of="2018-01-01")
    assert time.perf_counter() - start < 5
