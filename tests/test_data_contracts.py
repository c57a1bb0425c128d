"""Contracts: bad tables and bad mapping files each get one clear message; good ones pass unchanged."""

import datetime as dt
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
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
    needed = "customers products sessions events orders order_lines accounts usage tickets invoices stores transactions "
    needed += "campaigns exposures offers consent identities promotions"
    assert set(needed.split()) <= set(c.TABLES)


def test_import_is_light():
    code = "import sys, mktai_kit.data.contracts; print([m for m in ('pandera', 'yaml', 'matplotlib') if m in sys.modules])"
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
    pd.testing.assert_frame_equal(c.validate("transactions", once, strict=True), once)


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
    out, bad = c._coerce(series, family)
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
    out, bad = c._coerce(series, family)
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
    "future": (lambda: basket_lines(timestamp=["2017-01-01"] * 4 + ["2017-12-02"]), ("timestamp", "not after 2017-12-01")),
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
    assert list(found("events", events)) == [("", "rule 'has at least one of customer_id, visitor_id, account_id' broken")]
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


def test_strict_converts_nothing_and_refuses_unnamed_columns():
    got = found("customers", pd.DataFrame({"customer_id": [1.0, 2.0], "hair": ["a", "b"]}), strict=True)
    assert set(got) == {("customer_id", "rule 'holds whole numbers or text, not mixed' broken"), ("'hair'", "column is not in the contract")}


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


# Mapping files


def mapping(tmp_path, text):
    (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
    return c.read_mapping(tmp_path / "m.yaml")


BAD_MAPPINGS = {
    "tables: [": "not valid YAML",
    "": "sections must be given",
    "tables: {}": "is empty",
    "tables: {transaction: {columns: {a: b}}}": "did you mean 'transactions'",
    "tables: {stores: {columns: {stor_id: b}}}": "did you mean 'store_id'",
    "tables: {stores: {colums: {store_id: b}}}": "did you mean 'columns'",
    "tables: {stores: {columns: {}}}": "no columns are mapped",
    "tables: {stores: }": "must be given",
    "tables: {stores: {columns: {store_id: b}, read: {seperator: x}}}": "read option 'seperator'",
    "tables: {stores: {columns: {store_id: {konstant: b}}}}": "did you mean 'constant'",
    "tables: {stores: {columns: {store_id: {from: b, constant: 1}}}}": "either",
    "tables: {stores: {columns: {store_id: {from: b, unit: cents}}}}": "does not fit",
    "tables: {stores: {columns: {size: {from: b, unit: feet}}}}": "unknown unit",
    "tables: {stores: {columns: {size: {from: b, unit: .nan}}}}": "unknown unit",
    "tables: {stores: {columns: {store_id: a, store_id: b}}}": "given twice",
    "tables: {stores: {columns: {store_id: !!python/object/apply:os.getcwd []}}}": "not valid YAML",
}


@pytest.mark.parametrize("text", BAD_MAPPINGS)
def test_bad_mapping_files(tmp_path, text):
    with pytest.raises(KitError, match=BAD_MAPPINGS[text]):
        mapping(tmp_path, text)


def test_mapping_file_missing_binary_or_folder(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for path in ("none.yaml", "b.yaml", "."):
        with pytest.raises(KitError):
            c.read_mapping(tmp_path / path)


STORES = "tables: {stores: {file: FILE, columns: {store_id: id, name: nombre}}}"


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("x.parquet", b"PAR1 broken", "not a readable Parquet"),
        ("x.csv", b"", "cannot be read as CSV"),
        ("x.csv", "id,nombre\n1,Peña\n".encode("latin-1"), "not in UTF-8"),
        ("x.csv", b"id,nombre\n1,a,b,c\n2\n3,4,5,6,7,8\n", "cannot be read as CSV"),
        ("x.csv", b"id,name\n1,a\n", "no column 'nombre'"),
        ("y.csv", b"id,nombre\n1,a\n", "there are: y.csv"),
    ],
)
def test_bad_source_files(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    m = mapping(tmp_path, STORES.replace("FILE", "x.csv" if file == "y.csv" else file))
    with pytest.raises(KitError, match=message):
        c.apply_mapping(m, tmp_path)


def test_source_must_be_there(tmp_path):
    m = mapping(tmp_path, STORES.replace("FILE", "x.csv"))
    with pytest.raises(KitError, match="no such folder"):
        c.apply_mapping(m, tmp_path / "nowhere")
    with pytest.raises(KitError, match="no frame is called"):
        c.apply_mapping(m, {"y": pd.DataFrame()})
    with pytest.raises(KitError, match="not a DataFrame"):
        c.apply_mapping(m, {"x": [1]})


def one_column(tmp_path, column, spec, values, table="orders"):
    m = mapping(tmp_path, f"tables: {{{table}: {{columns: {{{column}: {spec}}}}}}}")
    return c.apply_mapping(m, {table: pd.DataFrame({"x": values})}, validated=False)[table][column]


@pytest.mark.parametrize(
    "column, spec, values, expected",
    [
        ("amount", "{from: x, unit: cents}", [1999, 5], [19.99, 0.05]),
        ("amount", "{from: x, unit: 0.5}", ["3", "4"], [1.5, 2.0]),
        ("amount", "{constant: 2}", ["a", "b"], [2.0, 2.0]),
        ("timestamp", "{from: x, dayfirst: true}", ["01/02/2017", "13/02/2017"], ["2017-02-01", "2017-02-13"]),
        ("timestamp", "{from: x, format: epoch}", [0, 86400], ["1970-01-01", "1970-01-02"]),
        ("timestamp", "{from: x, format: epoch_ms}", ["0", "86400000"], ["1970-01-01", "1970-01-02"]),
        ("timestamp", '{from: x, format: "%Y%m%d"}', [19970101, 19970102], ["1997-01-01", "1997-01-02"]),
        ("timestamp", "{from: x, timezone: Europe/Madrid}", ["2017-01-01T23:00Z", "2017-07-01T22:00Z"], ["2017-01-02", "2017-07-02"]),
        ("status", "{from: x, values: {1: paid, '*': other}}", [1.0, 2.0], ["paid", "other"]),
        ("status", "{from: x, values: {no: new, si: old}}", ["no", "si"], ["new", "old"]),
    ],
)
def test_mapped_values(tmp_path, column, spec, values, expected):
    got = one_column(tmp_path, column, spec, values)
    want = pd.to_datetime(expected) if column == "timestamp" else expected
    assert got.tolist() == list(want)


@pytest.mark.parametrize(
    "column, spec, values, message",
    [
        ("amount", "{from: x, unit: cents}", ["1", "many"], "1 values are not numbers: 'many'"),
        ("timestamp", '{from: x, format: "%d/%m/%Y"}', ["13/01/2017", "2017-01-13"], "1 of 2 dates do not fit"),
        ("timestamp", "{from: x, dayfirst: true}", ["13/01/2017", "2017-01-13"], "1 of 2 dates do not fit"),
        ("timestamp", "{from: x, timezone: Mars/Base}", ["2017-01-13"], "say the format"),
        ("status", "{from: x, values: {a: b}}", ["a", "c"], "1 values are not listed"),
    ],
)
def test_values_that_cannot_be_mapped(tmp_path, column, spec, values, message):
    with pytest.raises(KitError, match=message):
        one_column(tmp_path, column, spec, values)


def test_dates_drop_the_time_of_day_when_mapped(tmp_path):
    got = one_column(tmp_path, "signup_date", "x", pd.to_datetime(["2017-01-01 10:00"]), table="customers")
    assert got.tolist() == [pd.Timestamp("2017-01-01")]


def test_files_with_commas_patterns_and_leading_zeros(tmp_path):
    (tmp_path / "s_1.csv").write_text("id;nombre;m2;zona\n007;Uno;1.234,5;norte\n")
    (tmp_path / "s_2.csv").write_text("id;nombre;m2;zona\n12;-;900;sur\n12;-;900;sur\n")
    text = 'tables: {stores: {file: "s_*.csv", read: {sep: ";", decimal: ",", thousands: ".", missing: ["-"]},'
    m = mapping(tmp_path, text + " columns: {store_id: id, name: nombre, size: m2}, keep: true, distinct: true}}")
    stores = c.apply_mapping(m, tmp_path)["stores"]
    assert stores["store_id"].tolist() == ["007", "12"] and stores["size"].tolist() == [1234.5, 900.0]
    assert stores["name"].isna().tolist() == [False, True] and stores["zona"].tolist() == ["norte", "sur"]


def test_ids_agree_between_a_csv_and_a_parquet(tmp_path):
    (tmp_path / "customers.csv").write_text("id\n1\n2\n")
    pd.DataFrame({"o": [1], "id": [2], "t": pd.to_datetime(["2017-01-01"]), "a": [1.0]}).to_parquet(tmp_path / "orders.parquet")
    text = "tables: {customers: {columns: {customer_id: id}},"
    text += " orders: {columns: {order_id: o, customer_id: id, timestamp: t, amount: a}}}"
    out = c.apply_mapping(mapping(tmp_path, text), tmp_path)
    assert out["customers"]["customer_id"].dtype == out["orders"]["customer_id"].dtype == "int64"
    (tmp_path / "customers.csv").write_text("id\n02\n2\n")
    out = c.apply_mapping(mapping(tmp_path, text), tmp_path)
    assert out["orders"]["customer_id"].tolist() == ["2"]


def test_apply_checks_unless_told_not_to(tmp_path):
    m = mapping(tmp_path, "tables: {stores: {columns: {store_id: x}}}")
    with pytest.raises(c.ContractError):
        c.apply_mapping(m, {"stores": pd.DataFrame({"x": [1, 1]})})
    assert len(c.apply_mapping(m, {"stores": pd.DataFrame({"x": [1, 1]})}, validated=False)["stores"]) == 2


def test_templates_of_all_tables_can_be_read_back(tmp_path):
    m = mapping(tmp_path, c.mapping_template(c.TABLES))
    assert set(m.tables) == set(c.TABLES)
    assert set(m.tables["stores"]["columns"]) == {"store_id"}
    with pytest.raises(KitError, match="did you mean 'stores'"):
        c.mapping_template(["store"])


def test_speed_of_a_million_lines():
    """A wide guard against a per-row check; the measured time is a tenth of it."""
    import time

    n = 1_000_000
    lines = basket_lines().iloc[np.arange(n) % 5].reset_index(drop=True)
    c.validate("transactions", basket_lines())
    start = time.perf_counter()
    c.validate("transactions", lines, as_of="2018-01-01")
    assert time.perf_counter() - start < 5


def test_paths_in_errors_are_the_users(tmp_path):
    with pytest.raises(KitError) as e:
        c.read_mapping(tmp_path / "none.yaml")
    assert e.value.where == Path(tmp_path / "none.yaml")
