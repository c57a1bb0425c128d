"""Mapping files: bad ones each get one clear message; good ones turn any export into canonical tables."""

import subprocess
import sys

import pandas as pd
import pytest

from mktai_kit.data.contracts import TABLES, ContractError
from mktai_kit.data.mapping import apply_mapping, mapping_template, read_mapping
from mktai_kit.settings import KitError


def test_import_is_light():
    code = (
        "import sys, mktai_kit.data.mapping; print([m for m in ('pandera', 'yaml', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def mapping(tmp_path, text):
    (tmp_path / "m.yaml").write_text(text, encoding="utf-8")
    return read_mapping(tmp_path / "m.yaml")


BAD_MAPPINGS = {
    "tables: [": "not valid YAML",
    "": "no `name: value` lines",
    "- 1": "no `name: value` lines",
    "tables: 3": "tables must be given",
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
    "tables: {customers: {columns: {signup_date: {from: b, dayfirst: yes}}}}": "'dayfirst' must be true or false, not 'yes'",
    "tables: {stores: {columns: {store_id: b}, distinct: yes}}": "'distinct' must be true or false",
    "tables: {stores: {columns: {store_id: b}, keep: vip}}": "'keep' must be true or a list",
    "tables: {stores: {columns: {store_id: b}, read: {missing: NA}}}": "'missing' must be a list",
    "tables: {stores: {columns: {store_id: {constant: [1, 2]}}}}": "'constant' must be a single value",
    "tables: {stores: {columns: {size: {from: b, unit: [1]}}}}": "'unit' must be a single value",
    "tables: {stores: {columns: {size: {from: b, unit: true}}}}": "unknown unit",
    "tables: {stores: {columns: {store_id: }}}": "'from' must be a single value",
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
            read_mapping(tmp_path / path)


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
        apply_mapping(m, tmp_path)


def test_source_must_be_there(tmp_path):
    m = mapping(tmp_path, STORES.replace("FILE", "x.csv"))
    with pytest.raises(KitError, match="no such folder"):
        apply_mapping(m, tmp_path / "nowhere")
    with pytest.raises(KitError, match="no frame is called"):
        apply_mapping(m, {"y": pd.DataFrame()})
    with pytest.raises(KitError, match="not a DataFrame"):
        apply_mapping(m, {"x": [1]})


def test_a_column_given_twice_is_not_chosen_from(tmp_path):
    m = mapping(tmp_path, "tables: {stores: {columns: {store_id: id}}}")
    with pytest.raises(KitError, match="2 columns 'id'"):
        apply_mapping(m, {"stores": pd.DataFrame([[1, 2]], columns=["id", "id"])})


def one_column(tmp_path, column, spec, values, table="orders"):
    m = mapping(tmp_path, f"tables: {{{table}: {{columns: {{{column}: {spec}}}}}}}")
    return apply_mapping(m, {table: pd.DataFrame({"x": values})}, validated=False)[table][column]


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
        (
            "timestamp",
            "{from: x, timezone: Europe/Madrid}",
            ["2017-01-01T23:00Z", "2017-07-01T22:00Z"],
            ["2017-01-02", "2017-07-02"],
        ),
        ("status", "{from: x, values: {1: paid, '*': other}}", [1.0, 2.0], ["paid", "other"]),
        ("status", "{from: x, values: {1.5: paid, '*': other}}", [1.5, 2.5], ["paid", "other"]),
        ("status", "{from: x, values: {true: paid, false: open}}", [True, False], ["paid", "open"]),
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
        ("amount", "{from: x, unit: cents}", ["1", "many"], "not numbers in 1 of 2 rows: 'many'"),
        ("timestamp", '{from: x, format: "%d/%m/%Y"}', ["13/01/2017", "2017-01-13"], "1 of 2 dates do not fit"),
        ("timestamp", "{from: x, dayfirst: true}", ["13/01/2017", "2017-01-13"], "1 of 2 dates do not fit"),
        ("timestamp", "{from: x, timezone: Mars/Base}", ["2017-01-13"], "say the format"),
        ("status", "{from: x, values: {a: b}}", ["a", "c"], "1 value is not listed"),
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
    stores = apply_mapping(m, tmp_path)["stores"]
    assert stores["store_id"].tolist() == ["007", "12"] and stores["size"].tolist() == [1234.5, 900.0]
    assert stores["name"].isna().tolist() == [False, True] and stores["zona"].tolist() == ["norte", "sur"]


def test_ids_agree_between_a_csv_and_a_parquet(tmp_path):
    (tmp_path / "customers.csv").write_text("id\n1\n2\n")
    pd.DataFrame({"o": [1], "id": [2], "t": pd.to_datetime(["2017-01-01"]), "a": [1.0]}).to_parquet(
        tmp_path / "orders.parquet"
    )
    text = "tables: {customers: {columns: {customer_id: id}},"
    text += " orders: {columns: {order_id: o, customer_id: id, timestamp: t, amount: a}}}"
    out = apply_mapping(mapping(tmp_path, text), tmp_path)
    assert out["customers"]["customer_id"].dtype == out["orders"]["customer_id"].dtype == "int64"
    (tmp_path / "customers.csv").write_text("id\n02\n2\n")
    out = apply_mapping(mapping(tmp_path, text), tmp_path)
    assert out["orders"]["customer_id"].tolist() == ["2"]


def test_apply_checks_unless_told_not_to(tmp_path):
    m = mapping(tmp_path, "tables: {stores: {columns: {store_id: x}}}")
    with pytest.raises(ContractError):
        apply_mapping(m, {"stores": pd.DataFrame({"x": [1, 1]})})
    assert len(apply_mapping(m, {"stores": pd.DataFrame({"x": [1, 1]})}, validated=False)["stores"]) == 2


def test_templates_of_all_tables_can_be_read_back(tmp_path):
    m = mapping(tmp_path, mapping_template(TABLES))
    assert set(m.tables) == set(TABLES)
    assert set(m.tables["stores"]["columns"]) == {"store_id"}
    with pytest.raises(KitError, match="did you mean 'stores'"):
        mapping_template(["store"])


def test_paths_in_errors_are_the_users(tmp_path):
    with pytest.raises(KitError) as e:
        read_mapping(tmp_path / "none.yaml")
    assert e.value.where == tmp_path / "none.yaml"


def test_rows_stay_rows_where_index_labels_come_twice(tmp_path):
    given = mapping(
        tmp_path,
        "tables: {orders: {columns: {order_id: id, customer_id: who, timestamp: at, amount: vip_amount}, keep: [vip]}}",
    )
    own = pd.DataFrame(
        {"id": [1, 2, 3], "who": [7, 8, 9], "at": pd.Timestamp("2017-03-01"), "vip": ["a", "b", "c"], "vip_amount": 1.0}
    )
    twice = apply_mapping(given, {"orders": own.set_index(pd.Index([0, 0, 1]))})["orders"]
    assert twice.equals(apply_mapping(given, {"orders": own})["orders"]) and twice["vip"].tolist() == ["a", "b", "c"]
