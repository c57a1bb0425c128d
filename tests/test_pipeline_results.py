"""What a case writes: figures that JSON can hold, spreadsheets that do nothing, the same bytes twice."""

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from mktai_kit.pipeline.results import Results, plain, read_summary, rounded, spreadsheet_safe
from mktai_kit.settings import KitError


def test_metrics_are_rounded_and_strict(tmp_path):
    class Estimate:
        def to_dict(self):
            return {"value": np.float32(0.25), "low": None, "n": np.int64(3)}

    results = Results(tmp_path / "run")
    results.metrics({"a": Estimate(), "b": {1: 1e-17, "c": -0.0, "d": np.array([0.1 + 0.2])}, "ok": np.bool_(True)})
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert json.loads(text) == {
        "a": {"value": 0.25, "low": None, "n": 3},
        "b": {"1": 0.0, "c": 0.0, "d": [0.3]},
        "ok": True,
    }
    assert "-0.0" not in text and text.endswith("}\n")


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), np.float64("nan"), pd.NaT, pd.NA, {1, 2}, object(), 1j, np.datetime64("NaT")]
)
def test_values_that_json_cannot_hold(tmp_path, bad):
    with pytest.raises(KitError, match=r"metrics\.x\[1\]\.y"):
        Results(tmp_path / "run").metrics({"x": [0, {"y": bad}]})
    assert not (tmp_path / "run").exists()


def test_dates_are_dates():
    values = [
        datetime.date(2024, 1, 31),
        pd.Timestamp("2024-01-31"),
        np.datetime64("2024-01-31"),
        pd.Timestamp("2024-01-31 12:00"),
    ]
    assert plain(values) == ["2024-01-31"] * 3 + ["2024-01-31T12:00:00"]


def summary(**changed):
    told = dict(title="t", question="q", findings=["a", "b", "c"], decision="d", limits=["l"], audience="all")
    return {**told, **changed}


def test_summary_keeps_its_form(tmp_path):
    written = json.loads(Results(tmp_path).summary(**summary()).read_text())
    assert list(written) == ["title", "question", "findings", "decision", "limits", "audience"]
    changes = [{"findings": ["a", "b"]}, {"findings": list("abcdefgh")}, {"findings": "abc"}, {"findings": ["a", "b", "c\nd"]},
               {"findings": ["a", "b", "c" * 301]}, {"findings": ["a", "b", 3]}, {"limits": []}, {"title": " "}, {"decision": None}]  # fmt: skip
    for changed in changes:
        with pytest.raises(KitError, match="summary"):
            Results(tmp_path).summary(**summary(**changed))
        (tmp_path / "summary.json").write_text(json.dumps(summary(**changed)))
        with pytest.raises(KitError, match="summary.json"):
            read_summary(tmp_path / "summary.json")


def test_empty_out_dir_is_a_temporary_folder():
    assert Results("").folder.is_dir() and Results(None).folder.is_dir() and Results().folder != Results().folder


def test_plots_have_plain_names_and_no_index(tmp_path):
    results = Results(tmp_path)
    path = results.plot("lift-at_k", pd.DataFrame({"lift": [1 / 3, np.nan]}, index=pd.Index([1, 2], name="k")))
    assert path.read_bytes() == b"k,lift\n1,0.333333\n2,\n"
    with pytest.raises(KitError, match="plain file name"):
        results.plot("../x", pd.DataFrame())
    with pytest.raises(KitError, match=r"1 infinite values in 2 rows"):
        results.plot("x", pd.DataFrame({"a": [1.0, np.inf]}))


def test_rounding_keeps_whole_numbers():
    frame = pd.DataFrame(
        {
            "id": [12345678.0, np.nan],
            "x": [12345678.5, 1.0],
            "tiny": [1e-17, 0.1],
            "n": pd.array([1, None], dtype="Int64"),
            "f": pd.array([0.12345678, None], dtype="Float64"),
        }
    )
    out = rounded(frame)
    assert (
        out["id"].tolist()[0] == 12345678
        and out["x"].tolist() == [12345700.0, 1.0]
        and out["tiny"].tolist() == [0.0, 0.1]
    )
    assert out["f"].tolist()[0] == 0.123457 and out["n"].dtype == "Int64"
    noisy = rounded(pd.DataFrame({"a": [1234567.0000000002, 3.0]}))
    assert noisy["a"].tolist() == [1234567.0, 3.0]


def test_formulas_are_made_harmless_in_text_only(tmp_path):
    frame = pd.DataFrame(
        {
            "=head": ["=1", "+1", "-1", "@a", "\tb", "\rc", "＝d", "a=b", None],
            "cat": pd.Categorical(["=x"] * 9),
            "n": range(-4, 5),
            "when": pd.Timestamp("2024-01-31"),
            "mixed": ["=1", -1, *[None] * 7],
        }
    )
    safe = spreadsheet_safe(frame)
    assert safe["'=head"].tolist()[:8] == ["'=1", "'+1", "'-1", "'@a", "'\tb", "'\rc", "'＝d", "a=b"] and safe[
        "n"
    ].tolist() == list(range(-4, 5))
    assert safe["cat"].tolist() == ["'=x"] * 9 and safe["mixed"].tolist()[:2] == ["'=1", -1]
    path = Results(tmp_path).actions(frame.drop(columns="mixed"))
    assert path.read_bytes().count(b"\n") == 10
    read = pd.read_csv(path)
    assert read["n"].dtype == "int64" and read["'=head"].tolist()[5] == "'\rc"
    assert pd.read_parquet(tmp_path / "actions.parquet")["=head"].tolist()[0] == "=1"


def test_actions_are_the_same_bytes_twice(tmp_path):
    frame = pd.DataFrame(
        {"customer_id": [1, 2], "name": ["a", None], "p": [0.1 + 0.2, np.nan], "seg": pd.Categorical(["x", "y"])},
        index=[5, 9],
    )
    for name in ("a", "b"):
        frame.attrs = {"run": name}
        Results(tmp_path / name).actions(frame)
    for file in ("actions.csv", "actions.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert b"pandas" not in (tmp_path / "a" / "actions.parquet").read_bytes()


def test_model_files(tmp_path):
    xgboost = pytest.importorskip("xgboost")
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2
    model = xgboost.XGBClassifier(n_estimators=2, max_depth=2, n_jobs=1).fit(x, y)
    results = Results(tmp_path)
    results.model({"buys": model, "spends": model.get_booster()}, {"mean": [1 / 3]})
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["buys.ubj", "preprocessing.json", "spends.ubj"]
    again = xgboost.Booster(model_file=tmp_path / "model" / "buys.ubj")
    assert np.array_equal(again.predict(xgboost.DMatrix(x)), model.predict_proba(x)[:, 1])
    with pytest.raises(KitError, match="not an xgboost model"):
        results.model({"buys": object()})
    assert (tmp_path / "model" / "buys.ubj").is_file()


def test_record_is_not_rounded(tmp_path):
    assert json.loads(Results(tmp_path).record({"alpha": 0.123456789}).read_text()) == {"alpha": 0.123456789}
    assert json.loads(Results(tmp_path).card({"auc": 0.123456789}).read_text()) == {"auc": 0.123457}
