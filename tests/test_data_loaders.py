"""Loaders: every table keeps its contract, nothing is repaired silently, a broken or hostile file gives one clear message.

No test here needs the network. Tests on real data run where the data are: fetched already, or in the mirror folder.
"""

import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import contracts, loaders
from mktai_kit.data.sources import CATALOGUE
from mktai_kit.settings import KitError, Settings


def complaint(call, *args, **options):
    with pytest.raises(KitError) as e:
        call(*args, **options)
    assert e.value.mend and e.value.where is not None
    return str(e.value)


@pytest.fixture
def empty(tmp_path):
    """Settings of a workspace with no data in it."""
    return Settings(root=tmp_path, data_dir=tmp_path / "raw", runs_dir=tmp_path / "runs", cache_dir=tmp_path / "cache")


# Asking for data


def test_every_data_set_has_a_loader():
    assert list(loaders.LOADERS) == list(CATALOGUE)


@pytest.mark.parametrize("call", [loaders.load, loaders.count_faults])
def test_unknown_name_is_answered_with_the_nearest(call):
    text = complaint(call, "complete_jorney")
    assert "did you mean 'complete_journey'" in text


def test_unknown_variant_and_table(empty):
    assert "did you mean 'local'" in complaint(loaders.load, "complete_journey", variant="locale", settings=empty)
    assert "did you mean 'transactions'" in complaint(loaders.load, "complete_journey", ["transaction"], settings=empty)


@pytest.mark.parametrize("call", [loaders.load, loaders.count_faults])
def test_before_fetch(empty, call):
    assert "mktai data fetch complete_journey" in complaint(call, "complete_journey", settings=empty)
    assert not empty.data_dir.exists()


def test_a_variant_with_files_of_its_own_before_fetch(empty):
    assert "mktai data fetch telco --variant full" in complaint(loaders.load, "telco", variant="full", settings=empty)


def test_no_loader(empty, monkeypatch):
    monkeypatch.delitem(loaders.LOADERS, "cdnow")
    assert "no loader" in complaint(loaders.load, "cdnow", settings=empty)


# Raw files that broke, and pickles


def place(folder, name, files):
    """Raw files with a manifest as `fetch` would leave it."""
    folder.mkdir()
    lines = {}
    for file in CATALOGUE[name].files:
        if file.name in files:
            (folder / file.name).write_bytes(files[file.name])
            lines[file.name] = {"sha256": file.sha256, "size": len(files[file.name])}
    (folder / "manifest.json").write_text(json.dumps({"data": name, "files": lines}))
    return folder


def as_parquet(**columns):
    pd.DataFrame(columns).to_parquet(out := io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"\0" * 100])
def test_corrupt_parquet(tmp_path, content):
    folder = place(tmp_path / "f", "online_retail_ii", {"online_retail_II_2009_2010.parquet": content})
    text = complaint(loaders.load, "online_retail_ii", folder=folder)
    assert "online_retail_II_2009_2010.parquet" in text and "--verify" in text


def test_parquet_without_a_column(tmp_path):
    folder = place(
        tmp_path / "f", "online_retail_ii", {"online_retail_II_2009_2010.parquet": as_parquet(Invoice=["1"])}
    )
    assert "cannot be read" in complaint(loaders.load, "online_retail_ii", folder=folder)


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"customer\n 1 notadate 1 2\n", b"customer\n 1 2 3 4 5 6\n"])
def test_corrupt_text_file(tmp_path, content):
    folder = place(tmp_path / "f", "cdnow", {"CDNOW_master.txt": content, "CDNOW_sample.txt": b" 1 1 19970101 1 1\n"})
    assert "CDNOW_master.txt" in complaint(loaders.load, "cdnow", folder=folder)


class Asks:
    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


def dotted(name):
    """A pickle that asks for `DataFrame.<name>` by one dotted name."""
    return b"\x80\x04\x8c\x11pandas.core.frame\x8c" + bytes([len(name)]) + name.encode() + b"\x93."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Asks(os.system, "touch hacked")),
        pickle.dumps(Asks(eval, "open('hacked', 'w')"), protocol=0),
        pickle.dumps(Asks(pd.read_pickle, "other.pkl")),
        pickle.dumps(Asks(getattr, pd.DataFrame, "to_csv")),
        pickle.dumps([pd.DataFrame({"a": [1]}, columns=pd.Index(["a"], dtype=object)), Asks(subprocess.Popen, "true")]),
        lzma.compress(pickle.dumps(Asks(os.system, "touch hacked"))),
        dotted("DataFrame.to_csv"),
        b"cos\nsystem\n(S'touch hacked'\ntR.",
    ],
)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("p.pkl").write_bytes(content)
    assert "no plain frame needs; refused" in complaint(loaders.read_pickled_frame, "p.pkl")
    assert os.listdir() == ["p.pkl"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        pickle.dumps(slice(1)),
        pickle.dumps({"a": 1}),
        lzma.compress(b"x" * 99)[:40],
        pickle.dumps(7)[:-1],
    ],
)
def test_pickles_that_hold_no_frame(tmp_path, content):
    (tmp_path / "p.pkl").write_bytes(content)
    complaint(loaders.read_pickled_frame, tmp_path / "p.pkl")


# Loaders, on small files of the real form


def check_tables(name, tables, on_request=()):
    """Each table keeps its contract without any conversion, they fit together, and the catalogue describes their columns."""
    for table, frame in tables.items():
        pd.testing.assert_frame_equal(contracts.validate(table, frame), frame)
        if name != "open_bandit":
            assert list(frame) == list(CATALOGUE[name].tables[table].columns), table
        assert isinstance(frame.index, pd.RangeIndex)
    contracts.validate_all(tables, broken=0)


def journey(folder):
    day = pd.to_datetime(["2017-01-02 04:30:00", "2017-07-01 12:00:00"]).as_unit("ns")
    return place(
        folder,
        "complete_journey",
        {
            "transactions.parquet": as_parquet(
                household_id=[2, 1], store_id=[9, 8], basket_id=[5, 6], product_id=[11, 99], quantity=[1, 0], sales_value=[1.5, 0.0],
                retail_disc=[0.0, 0.1], coupon_disc=[0.0, 1.0], coupon_match_disc=[0.0, 0.0], week=[1, 26], transaction_timestamp=day,
            ),
            "demographics.parquet": as_parquet(
                household_id=[2], age=["65+"], income=["35-49K"], home_ownership=["Homeowner"], marital_status=["Married"], household_size=["2"],
                household_comp=["2 Adults No Kids"], kids_count=["0"],
            ),
            "products.parquet": as_parquet(
                product_id=[11], manufacturer_id=[3], department=["DELI"], brand=["Private"], product_category=["HAM"], product_type=["SMOKED"],
                package_size=["1 LB"],
            ),
            "campaign_descriptions.parquet": as_parquet(campaign_id=[1], campaign_type=["Type A"], start_date=day.normalize()[:1], end_date=day.normalize()[1:]),
            "campaigns.parquet": as_parquet(campaign_id=[1], household_id=[1]),
            "coupons.parquet": as_parquet(coupon_upc=[7, 7], product_id=[12, 12], campaign_id=[1, 1]),
            "coupon_redemptions.parquet": as_parquet(household_id=[1], coupon_upc=[7], campaign_id=[1], redemption_date=day.normalize()[1:]),
            "promotions.parquet": as_parquet(product_id=[11], store_id=[9], display_location=["0"], mailer_location=["A"], week=[1]),
        },
    )  # fmt: skip


def test_complete_journey(tmp_path):
    folder = journey(tmp_path / "f")
    t = loaders.load("complete_journey", folder=folder)
    check_tables("complete_journey", t)
    assert "promotions" not in t
    assert t["customers"]["customer_id"].tolist() == [1, 2] and t["customers"]["age_band"].isna().tolist() == [
        True,
        False,
    ]
    assert t["products"]["product_id"].tolist() == [11, 12, 99] and t["products"]["department"].isna().tolist() == [
        False,
        True,
        True,
    ]
    assert len(t["offers"]) == 1 and t["events"]["event_type"].tolist() == ["coupon_redemption"]
    check_tables("complete_journey", loaders.load("complete_journey", "promotions", folder=folder))


def test_complete_journey_on_the_shops_clock(tmp_path):
    folder = journey(tmp_path / "f")
    local = loaders.load("complete_journey", ["transactions"], "local", folder=folder)["transactions"]["timestamp"]
    assert local.astype("str").tolist() == ["2017-01-01 23:30:00", "2017-07-01 08:00:00"]


def test_cdnow(tmp_path):
    master = b" customer_id  date number_of_cds  dollar_value\r\n 00001 19970101  1   11.77\r\n 00004 19970112  2   0.00\r\n 00004 19970112  2   0.00\r\n"
    folder = place(
        tmp_path / "f", "cdnow", {"CDNOW_master.txt": master, "CDNOW_sample.txt": b" 00004 0001 19970112  2   0.00\r\n"}
    )
    t = loaders.load("cdnow", folder=folder)
    check_tables("cdnow", t)
    assert t["customers"]["in_sample"].tolist() == [False, True] and t["orders"]["order_id"].tolist() == [1, 2, 3]
    sample = loaders.load("cdnow", variant="sample", folder=folder)
    check_tables("cdnow", sample)
    assert sample["orders"]["order_id"].tolist() == [2, 3]


SERVICES = ["No phone service", "DSL", "Yes", "No", "No", "No", "No", "Yes", "Month-to-month"]


def test_telco_variants_agree(tmp_path):
    head = "customerID,gender,SeniorCitizen,Partner,Dependents,tenure,PhoneService,MultipleLines,InternetService,OnlineSecurity,OnlineBackup,"
    head += "DeviceProtection,TechSupport,StreamingTV,StreamingMovies,Contract,PaperlessBilling,PaymentMethod,MonthlyCharges,TotalCharges,Churn\n"
    row = "{},{},0,Yes,No,{},No," + ",".join(SERVICES) + ",Yes,Mailed check,29.85,{},{}\n"
    csv = head + row.format("7590-A", "Female", 1, "29.85", "Yes") + row.format("7590-B", "Male", 0, " ", "No")
    full = loaders.load(
        "telco", variant="full", folder=place(tmp_path / "a", "telco", {"Telco-Customer-Churn.csv": csv.encode()})
    )
    names = [loaders._snake(c) for c in head.strip().replace("StreamingTV", "StreamingTv").split(",")[7:16]]
    columns = {
        "rownames": [1, 2], "churn": ["Yes", "No"], "female": [1, 0], "senior_citizen": [0, 0], "partner": [1, 1], "dependents": [0, 0],
        "tenure": [1, 0], "phone_service": [0, 0], **{n: [v, v] for n, v in zip(names, SERVICES, strict=True)}, "paperless_billing": [1, 1],
        "payment_method": ["Mailed check"] * 2, "monthly_charges": [29.85] * 2, "total_charges": [29.85, np.nan],
    }  # fmt: skip
    frame = pd.DataFrame({k: pd.Series(v, dtype=object if isinstance(v[0], str) else None) for k, v in columns.items()})
    frame.columns = frame.columns.astype(object)
    packed = lzma.compress(pickle.dumps(frame))
    model = loaders.load("telco", folder=place(tmp_path / "b", "telco", {"wa_churn.pkl.compress": packed}))
    check_tables("telco", full)
    check_tables("telco", model)
    without = [t["accounts"].drop(columns="account_id") for t in (full, model)]
    pd.testing.assert_frame_equal(*without)
    assert full["accounts"]["total_amount"].isna().tolist() == [False, True] and full["accounts"][
        "churned"
    ].tolist() == [True, False]


def test_online_shoppers(tmp_path):
    head = "Administrative,Administrative_Duration,Informational,Informational_Duration,ProductRelated,ProductRelated_Duration,BounceRates,"
    head += "ExitRates,PageValues,SpecialDay,Month,OperatingSystems,Browser,Region,TrafficType,VisitorType,Weekend,Revenue\n"
    row = "0,0,0,0,1,64.5,0.2,0.2,0,0,Feb,1,1,9,1,Returning_Visitor,FALSE,TRUE\n"
    folder = place(tmp_path / "f", "online_shoppers", {"online_shoppers_intention.csv": (head + row * 2).encode()})
    t = loaders.load("online_shoppers", folder=folder)
    check_tables("online_shoppers", t)
    assert t["sessions"]["converted"].all() and t["sessions"]["session_id"].tolist() == [1, 2]


def test_online_retail(tmp_path):
    lines = [  # invoice, code, description, quantity, price, customer
        ("1", "85123a ", " HEART ", 2, 2.5, 7.0),
        ("1", "85123A", "HEART", 1, 2.5, 7.0),
        ("1", "POST", "POSTAGE", 1, 18.0, 7.0),
        ("2", "22222", "CUP", 1, 1.0, None),  # a guest
        ("3", "22222", "damaged", -5, 0.0, None),  # written off
        ("4", "22222", "found", 5, 0.0, None),  # stock correction
        ("5", "22222", "CUP", 1, 0.0, 8.0),  # a gift
        ("C6", "22222", "CUP", -1, 1.0, 8.0),  # a return
        ("C7", "M", "Manual", 1, 9.0, None),  # a cancellation of positive quantity
        ("A8", "B", "Adjust bad debt", 1, -99.0, None),
    ]
    invoice, code, text, quantity, price, customer = zip(*lines, strict=True)
    raw = as_parquet(
        Invoice=invoice, StockCode=code, Description=text, Quantity=quantity, Price=price, Country=["Spain"] * len(lines),
        **{"Customer ID": customer, "InvoiceDate": ["2009-12-01 07:45:00"] * len(lines)},
    )  # fmt: skip
    t = loaders.load(
        "online_retail_ii",
        folder=place(tmp_path / "f", "online_retail_ii", {"online_retail_II_2009_2010.parquet": raw}),
    )
    check_tables("online_retail_ii", t)
    orders = t["orders"].set_index("order_id")
    assert orders["amount"].to_dict() == {"1": 25.5, "2": 1.0, "5": 0.0} and orders["customer_id"].isna().to_dict() == {
        "1": False,
        "2": True,
        "5": False,
    }
    assert t["order_lines"]["line"].tolist() == [1, 2, 3, 1, 1]
    assert t["returns"][["quantity", "amount", "cancellation_id"]].values.tolist() == [[1, 1.0, "C6"]]
    products = t["products"].set_index("product_id")
    assert products["name"]["22222"] == "CUP" and products["name"]["85123A"] == "HEART"
    assert products["is_product"].to_dict() == {"22222": True, "85123A": True, "B": False, "M": False, "POST": False}


def test_open_bandit(tmp_path):
    log = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0\n"
    log += "0,2019-11-24 00:00:17.004101+00:00,1,3,1,0.5,aa,0.0\n1,2019-11-24 00:00:18+00:00,0,1,0,0.5,bb,1.0\n"
    items = ",item_id,item_feature_0,item_feature_1\n0,0,-0.5,aa\n1,1,0.5,bb\n"
    source = CATALOGUE["open_bandit"]
    files = {f.name: (log if "log" in f.name else items).encode() for f in source.files}
    folder = place(tmp_path / "f", "open_bandit", files)
    t = loaders.load("open_bandit", variant="bts-men", folder=folder)
    check_tables("open_bandit", t)
    seen = t["exposures"]
    assert (
        seen["clicked"].tolist() == [True, False]
        and seen["reward"].tolist() == [1.0, 0.0]
        and seen["campaign_id"].tolist() == ["men"] * 2
    )
    assert seen["creative_id"].isin(t["products"]["product_id"]).all() and seen["timestamp"][0] == pd.Timestamp(
        "2019-11-24 00:00:17.004101"
    )


def test_import_is_light():
    code = "import sys, mktai_kit.data.loaders; print([m for m in ('duckdb', 'pandera', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# The real data, where they are


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CATALOGUE))
def test_real_data_are_as_the_catalogue_says(name, real):
    source, folder = CATALOGUE[name], real(name)
    tables = loaders.load(name, folder=folder)
    assert {t: len(f) for t, f in tables.items()} == {t: s.rows for t, s in source.tables.items() if not s.on_request}
    check_tables(name, tables)
    counted = loaders.count_faults(name, folder=folder)
    assert len(counted) and counted["listed"].tolist() == counted["found"].tolist()


@pytest.mark.slow
def test_real_telco_variants_agree(real):
    frames = [loaders.load("telco", variant=v, folder=real("telco", v))["accounts"] for v in ("modeldata", "full")]
    pd.testing.assert_frame_equal(*(f.drop(columns="account_id") for f in frames))


@pytest.mark.slow
def test_real_complete_journey_loads_fast(real):
    folder = real("complete_journey")
    loaders.load("complete_journey", folder=folder)
    start = time.process_time()
    loaders.load("complete_journey", folder=folder)
    assert time.process_time() - start < 4
