"""Edge cases of trust.audit: strict JSON, hashes that see what counts and nothing else, cards, records and the decision log."""

import datetime
import decimal
import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mktai_kit.settings import KitError
from mktai_kit.trust.audit import (
    PACKAGES,
    ModelCard,
    RunRecord,
    diff_records,
    hash_frame,
    hash_path,
    log_decision,
    model_card,
    run_record,
    to_json,
    verify_log,
    versions,
)

ODD = [
    "<script>alert(1)</script>",
    "=1+1",
    "ñandú 日本",
    "a\nb",
    "| pipe | `code` |",
    "$x$",
    "[link](http://evil.example)",
]


# strict JSON


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_json_has_no_nan(bad):
    with pytest.raises(KitError, match=r"metrics\.a\[1\]\.b"):
        to_json({"a": [1, {"b": bad}]}, where="metrics")


@pytest.mark.parametrize(
    "bad", [{1, 2}, object(), b"x", {1: "a"}, pd.DataFrame(), pd.Series([1]), pd.NaT, lambda: 1, 1j]
)
def test_json_refuses_what_has_no_form(bad):
    with pytest.raises(KitError, match="value.x"):
        to_json({"x": bad})


def test_json_is_canonical():
    a = to_json({"b": np.int64(1), "a": (True, None, np.float64(0.5), np.bool_(False)), "d": datetime.date(2024, 1, 2)})
    b = to_json({"a": [True, None, 0.5, False], "d": "2024-01-02", "b": 1})
    assert a == b and a.endswith("}\n")
    assert json.loads(to_json(ODD)) == ODD
    assert json.loads(to_json({"x": np.arange(3)})) == {"x": [0, 1, 2]}
    to_json({"lone": "\ud800"}).encode()


def test_json_keeps_this_machine_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    monkeypatch.chdir(tmp_path)
    for leak in (tmp_path / "x.csv", str(tmp_path / "x.csv"), f"see {tmp_path}/x", str(tmp_path / "someone" / "y")):
        with pytest.raises(KitError, match="machine"):
            to_json({"path": leak})
    fine = ["/checkout", "data/x.csv", Path("data/x.csv"), f"{tmp_path}ish"]
    assert json.loads(to_json(fine))[2] == "data/x.csv"


# hashes of files


def test_hash_path(tmp_path):
    a, b = tmp_path / "a", tmp_path / "elsewhere" / "b"
    for folder in (a, b):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "ñ.csv").write_bytes(b"1")
        (folder / "z").write_bytes(b"2")
    assert hash_path(a) == hash_path(b) and hash_path(a / "z") == hash_path(str(b / "z"))
    same = hash_path(a)
    (b / "z").rename(b / "y")
    assert hash_path(b) != same
    (b / "y").rename(b / "z")
    (b / "z").write_bytes(b"3")
    assert hash_path(b) != same
    # a file's content cannot pass for another file's name
    (a / "z").unlink()
    assert hash_path(a) != same


def test_hash_path_errors(tmp_path):
    with pytest.raises(KitError, match="no such file"):
        hash_path(tmp_path / "missing.csv")
    with pytest.raises(KitError, match="holds no file"):
        hash_path(tmp_path)
    (tmp_path / "locked").write_text("x")
    (tmp_path / "locked").chmod(0)
    if not os.access(tmp_path / "locked", os.R_OK):
        with pytest.raises(KitError, match="cannot be read"):
            hash_path(tmp_path / "locked")


# hashes of tables

TEXT = ["b", None, "a", "b", "ñ日"]
SAME = [
    [pd.Series(TEXT, dtype=object), pd.Series(TEXT, dtype="str"), pd.Series(TEXT, dtype="category"),
     pd.Series(TEXT, dtype="string"), pd.Series(TEXT, dtype="string[pyarrow]"),
     pd.Series(pd.Categorical(TEXT, categories=["zz", "ñ日", "b", "a"]))],
    [pd.Series([1, 2, 3], dtype=t) for t in ("int8", "int64", "uint16", "Int32", "int64[pyarrow]", object, "category")],
    [pd.Series([1, None, 3], dtype=t) for t in ("Int64", "Int8", "int64[pyarrow]", "UInt64")],
    [pd.Series([1.5, None, -0.0], dtype=t) for t in ("float64", "float32", "Float64", "double[pyarrow]")]
    + [pd.Series([1.5, np.nan, 0.0])],
    [pd.Series([True, False, None], dtype=t) for t in ("boolean", object, "bool[pyarrow]")],
    [pd.Series(pd.to_datetime(["2024-01-01 10:00", None])).astype(f"datetime64[{u}]") for u in ("s", "ms", "us", "ns")]
    + [pd.Series(pd.to_datetime(["2024-01-01 10:00", None])).astype("timestamp[ms][pyarrow]")],
    [pd.Series(pd.to_datetime(["2024-01-01 10:00"])).dt.tz_localize("UTC"),
     pd.Series(pd.to_datetime(["2024-01-01 11:00"])).dt.tz_localize("Europe/Madrid")],
    [pd.Series(pd.to_timedelta(["1D", None])).astype(f"timedelta64[{u}]") for u in ("s", "ns")],
    [pd.Series([None, None], dtype=t) for t in (object, "str", "float64", "Int64", "boolean", "datetime64[us]", "category")],
    [pd.Series([datetime.date(2024, 1, 1), None]), pd.Series([datetime.date(2024, 1, 1), None], dtype="date32[pyarrow]")],
    [pd.Series([decimal.Decimal("1.50")]), pd.Series([decimal.Decimal("1.50")], dtype="object")],
]  # fmt: skip


@pytest.mark.parametrize("same", SAME)
def test_storage_does_not_count(same):
    assert len({hash_frame(s.to_frame("x")) for s in same}) == 1
    assert len({hash_frame(s.to_frame("x"), ordered=False) for s in same}) == 1


def test_what_counts():
    base = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})
    different = [
        base,
        base.rename(columns={"a": "A"}),
        base[["b", "a"]],
        base.iloc[::-1],
        base.head(2),
        base.assign(a=base.a.astype(float)),
        base.assign(a=base.a.astype(str)),
        base.assign(a=[1, 2, 4]),
        base.assign(b=["x", "y", "None"]),
        base.assign(b=["x", "y", ""]),
        base.assign(b=["x", None, "y"]),
        base.assign(b=["xy", "", None]),
        base.assign(c=1),
        base[["a"]],
        base.iloc[:0],
        base[[]],
        pd.DataFrame({"a": pd.to_datetime(["2024-01-01"])}),
        pd.DataFrame({"a": pd.to_datetime(["2024-01-01"]).tz_localize("UTC")}),
        pd.DataFrame({"a": pd.to_datetime(["2024-01-01"]) + pd.Timedelta(1, "ns")}),
        pd.DataFrame({"a": [datetime.date(2024, 1, 1)]}),
        pd.DataFrame({"a": ["2024-01-01"]}),
        pd.DataFrame({"a": [True]}),
        pd.DataFrame({"a": [1]}),
        pd.DataFrame({"a": [math.inf]}),
        pd.DataFrame({"a": [-math.inf]}),
        pd.DataFrame({"a": [2**60]}),
        pd.DataFrame({"a": [2**60 + 1]}),
    ]
    assert len({hash_frame(f) for f in different}) == len(different)
    assert hash_frame(base.set_index(pd.Index(["p", "q", "r"]))) == hash_frame(base)


def test_unordered():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.integers(0, 3, 200), "b": rng.choice(["x", "y", None], 200), "c": rng.normal(size=200).round(1)}
    )
    frame.loc[::7, "c"] = np.nan
    shuffled = frame.sample(frac=1, random_state=1)
    assert hash_frame(frame) != hash_frame(shuffled)
    assert hash_frame(frame, ordered=False) == hash_frame(shuffled, ordered=False)
    # swapping values between rows is seen: rows stay together
    swapped = frame.assign(a=frame.a.to_numpy()[::-1])
    assert hash_frame(frame, ordered=False) != hash_frame(swapped, ordered=False)
    assert hash_frame(frame.head(0), ordered=False) == hash_frame(frame.head(0))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"m": [1, "a"]}), "column 'm'"),
        (pd.DataFrame({"m": [[1], [2]]}), "column 'm'"),
        (pd.DataFrame({"m": [b"x"]}), "column 'm'"),
        (pd.DataFrame({"m": [1j]}), "column 'm'"),
        (pd.DataFrame({"m": pd.period_range("2024", periods=2, freq="D")}), "column 'm'"),
        (pd.DataFrame({"m": np.array([2**64 - 1], dtype="uint64")}), "64 bits"),
        (pd.DataFrame({"m": [-(2**70)]}, dtype=object), "64 bits"),
        (pd.DataFrame({0: [1]}), "text"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "differ"),
        (pd.Series([1]), "no table"),
        (None, "no table"),
    ],
)
def test_bad_frames(frame, message):
    with pytest.raises(KitError, match=message):
        hash_frame(frame)


def test_hash_frame_leaves_the_frame_alone():
    frame = pd.DataFrame({"a": [1.0, -0.0, np.nan], "b": ["x", None, "y"]})
    copy = frame.copy(deep=True)
    hash_frame(frame)
    pd.testing.assert_frame_equal(frame, copy)


def test_known_hash():
    """The definition must not drift: this value is part of committed records."""
    frame = pd.DataFrame(
        {"id": [1, 2], "city": ["Lugo", None], "spent": [0.5, 2.0], "on": pd.to_datetime(["2024-01-01", "2024-02-01"])}
    )
    assert hash_frame(frame) == "f4d66b377690ae112fdc63eccad9a58d7f661bd7adbaecc2f44ba814b28cd47e"


# the run record


def made(**change):
    values = dict(parameters={"k": 1}, data={"t": pd.DataFrame({"a": [1]})}, seed=7)
    return run_record(**{**values, **change})


@pytest.mark.slow
def test_record_is_byte_identical_between_processes(tmp_path):
    code = (
        "import sys, pandas as pd\n"
        "from mktai_kit.trust.audit import run_record\n"
        "run_record({'b': 1, 'a': 'ñ'}, {'t': pd.DataFrame({'x': ['p', None]}, index=[int(sys.argv[2]), 9])}, 7).write(sys.argv[1])\n"
    )
    written = []
    for i in (1, 2):
        folder = tmp_path / f"home{i}"
        folder.mkdir()
        env = {**os.environ, "HOME": str(folder), "PYTHONHASHSEED": str(i), "TZ": ["UTC", "Asia/Tokyo"][i - 1]}
        subprocess.run([sys.executable, "-c", code, "record.json", str(i)], cwd=folder, env=env, check=True)
        written.append((folder / "record.json").read_bytes())
    assert written[0] == written[1] and str(tmp_path).encode() not in written[0]


def test_versions():
    v = versions()
    assert set(v) == {"mktai-kit", *PACKAGES}
    assert v["xgboost"] and v["pandas"] == pd.__version__
    assert versions(["no-such-package"])["no-such-package"] is None


def test_record_round_trip(tmp_path):
    (tmp_path / "f.csv").write_text("x")
    r = made(
        data={"file": tmp_path / "f.csv", "folder": str(tmp_path), "table": pd.DataFrame({"ñ": ODD})},
        gates={"a": "pass", "b": {"state": "fail", "value": np.float64(0.2), "reason": ODD[0]}, "c": "not enough data"},
        decided_by="Ana Núñez", open_decisions="Who is called?", commit="0123abc",
    )  # fmt: skip
    assert r.data["file"] == {"kind": "file", "sha256": hash_path(tmp_path / "f.csv"), "bytes": 1}
    assert (
        r.data["folder"]["files"] == 1
        and r.data["table"]["rows"] == len(ODD)
        and r.open_decisions == ["Who is called?"]
    )
    path = r.write(tmp_path / "out" / "record.json")
    assert RunRecord.from_dict(json.loads(path.read_text(encoding="utf-8"))) == r
    assert diff_records(r, path).empty and diff_records(str(path), r.to_dict()).empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"commit": "main"}, "commit"),
        ({"decided_by": "  "}, "decided_by"),
        ({"gates": {"g": "ok"}}, r"gates\.g"),
        ({"gates": {"g": {"value": 1}}}, r"gates\.g"),
        ({"gates": {"g": {"state": "pass", "value": math.nan}}}, r"gates\.g\.value"),
        ({"gates": {"g": True}}, r"gates\.g"),
        ({"parameters": {"x": math.inf}}, r"parameters\.x"),
        ({"parameters": {"x": object()}}, r"parameters\.x"),
        ({"parameters": {1: 2}}, "parameters"),
        ({"data": {"d": "no/such/file.csv"}}, "no such file"),
        ({"data": {"d": 5}}, r"data\.d"),
        ({"data": {"d": pd.DataFrame({"m": [1, "a"]})}}, "column 'm'"),
        ({"open_decisions": [1]}, "open_decisions"),
    ],
)
def test_bad_records(change, message):
    with pytest.raises(KitError, match=message):
        made(**change)


def test_diff_names_what_differs():
    a = made(parameters={"k": 1, "nested": {"x": 1, "y": []}, "only_a": None}, gates={"g": "pass"})
    b = made(
        parameters={"k": 1.0, "nested": {"x": 2, "y": []}},
        seed=8,
        gates={"g": "fail"},
        data={"u": pd.DataFrame({"a": [1]})},
    )
    d = diff_records(a, b)
    assert list(d.part.unique()) == ["parameters", "data", "seed", "gates"]
    named = d.set_index(["part", "name"])
    assert named.loc[("parameters", "nested.x"), "a"] == 1 and named.loc[("parameters", "only_a"), "b"] == "(absent)"
    assert named.loc[("parameters", "k"), "b"] == 1.0  # 1 and 1.0 are not the same bytes
    assert ("data", "t.sha256") in named.index and ("data", "u.sha256") in named.index
    assert diff_records(a, a).shape == (0, 4)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"seed": 1}', "\xff"])
def test_diff_of_bad_files(tmp_path, text):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(KitError, match="record"):
        diff_records(made(), path)


# the model card


def sections(**change):
    values = dict(
        name="n", owner="o", model="m", purpose="p", not_for="x", population="pop", groups=["g"], target="t",
        metrics={"auc": 0.5}, decision="d", data="src", fairness={"not assessed": "no groups known"}, harms="h", limits=["l"],
    )  # fmt: skip
    return {**values, **change}


@pytest.mark.parametrize("name", sorted(sections()))
@pytest.mark.parametrize("empty", [None, "", "  ", "TODO", "tbd.", "N/A", [], {}, ["fine", ""], {"a": None}, 3])
def test_empty_sections_are_refused(name, empty):
    with pytest.raises(KitError, match=name):
        model_card(**sections(**{name: empty}))


def test_all_faults_at_once():
    with pytest.raises(KitError, match="purpose, harms, limits"):
        model_card(**sections(purpose="", limits=[], harms="todo"))


def test_card_metrics():
    class Estimate:  # as in methods.metrics
        def to_dict(self):
            return {"value": np.float64(0.84312), "low": 0.8, "high": 0.9, "n": 1234, "unit": "", "note": ""}

    little = {"value": None, "low": None, "high": None, "n": 12, "note": "not enough data: 12 rows"}
    card = model_card(
        **sections(metrics={"auc": Estimate(), "groups": {"young": little, "k": [1, {"a": 2}], "none": None, "e": {}}})
    )
    text = card.to_markdown()
    assert r"auc: 0.8431 \[0.8, 0.9\] (n = 1,234)" in text and "young: not enough data: 12 rows (n = 12)" in text
    for bad in (math.nan, math.inf):
        with pytest.raises(KitError, match=r"metrics\.auc"):
            model_card(**sections(metrics={"auc": bad}))
    for odd in ({"value": "x", "low": 1, "high": 2, "n": 3}, {"value": 1, "low": None, "high": None, "n": None}):
        model_card(**sections(metrics={"m": odd})).to_markdown()


def test_card_round_trip(tmp_path):
    card = model_card(**sections(name=ODD[2], limits=ODD))
    path = card.write(tmp_path / "card.json")
    assert ModelCard.from_dict(json.loads(path.read_text(encoding="utf-8"))) == card
    assert card.write(tmp_path / "card.md").read_text(encoding="utf-8") == card.to_markdown()
    with pytest.raises(KitError, match=r"\.json or \.md"):
        card.write(tmp_path / "card.txt")
    values = card.to_dict()
    with pytest.raises(KitError, match="missing .*'owner'"):
        ModelCard.from_dict({k: v for k, v in values.items() if k != "owner"})
    with pytest.raises(KitError, match="unknown .*'extra'"):
        ModelCard.from_dict({**values, "extra": 1})
    with pytest.raises(KitError, match="limits"):
        ModelCard.from_dict({**values, "limits": []})
    with pytest.raises(KitError):
        ModelCard.from_dict("no dict")


MARKUP = [*ODD, "# head", "- item", "+ item", "1. one", "2) two", "> quote", "***", "---", "===", "`" * 3, "![i](x)", "&lt;b&gt;",
          "<b>x</b>", "{raw}`html`", "~~gone~~", "a\\", "https://evil.example", "www.evil.example", ":::{note}", "    code"]  # fmt: skip


@pytest.mark.parametrize("value", MARKUP)
def test_values_stay_text(value):
    """A reader that allows everything shows each value as text, with no element of its own."""
    markdown_it = pytest.importorskip("markdown_it")
    card = model_card(
        **sections(name=value, owner=value, limits=[value], metrics={value: {"value": value}, "x": value})
    )
    tokens = (
        markdown_it.MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse(card.to_markdown())
    )
    kinds = {t.type for t in tokens} | {c.type for t in tokens for c in t.children or []}
    ours = {"heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "bullet_list_open", "bullet_list_close",
            "list_item_open", "list_item_close", "text", "strong_open", "strong_close", "text_special"}  # fmt: skip
    assert kinds <= ours
    shown = ["".join(c.content for c in t.children) for t in tokens if t.type == "inline"]
    expected = " ".join(value.split())
    assert shown[0] == f"Model card: {expected}" and shown.count(expected) == 2 and f"x: {expected}" in shown
    assert sum(t.type == "heading_open" for t in tokens) == 9


# the decision log


def entry(path, **change):
    return log_decision(path, **{**dict(who="Ana", what="Go.", why="It pays.", when="2024-01-01"), **change})


def test_log(tmp_path):
    log = tmp_path / "deep" / "log.jsonl"
    entry(log, what="\u2028 odd\nline " + "".join(ODD))
    entry(log, when=datetime.date(2024, 1, 1))
    head = entry(log, when="2024-02-01")
    table = verify_log(log, head)
    assert list(table.n) == [1, 2, 3] and table["hash"].iloc[-1] == head and "\nline" in table.what[0]
    again = tmp_path / "again.jsonl"
    entry(again)
    first = again.read_bytes()
    again.unlink()
    entry(again)
    assert again.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"who": ""}, "who"),
        ({"what": None}, "what"),
        ({"why": "n/a"}, "why"),
        ({"who": 5}, "who"),
        ({"when": "yesterday"}, "no date"),
        ({"when": None}, "no date"),
        ({"when": "2024-02-30"}, "no date"),
        ({"when": "2023-12-31"}, "before the last entry"),
    ],
)
def test_bad_entries_change_nothing(tmp_path, change, message):
    log = tmp_path / "log.jsonl"
    entry(log)
    before = log.read_bytes()
    with pytest.raises(KitError, match=message):
        entry(log, **change)
    assert log.read_bytes() == before


def test_each_kind_of_tampering_is_seen(tmp_path):
    log = tmp_path / "log.jsonl"
    for i in range(4):
        head = entry(log, what=f"step {i}")
    good = log.read_bytes()
    lines = good.splitlines(keepends=True)
    attacks = {
        "edited": good.replace(b"step 1", b"step 9"),
        "removed": b"".join(lines[:1] + lines[2:]),
        "swapped": b"".join([lines[0], lines[2], lines[1], lines[3]]),
        "inserted": b"".join([*lines[:2], lines[1], *lines[2:]]),
        "first gone": b"".join(lines[1:]),
        "cut mid-line": good[:-10],
        "no last newline": good[:-1],
        "blank line": b"".join([*lines[:2], b"\n", *lines[2:]]),
        "not JSON": b"".join([*lines[:2], b"hello\n", *lines[2:]]),
        "not UTF-8": b"".join([*lines[:2], b"\xff\n", *lines[2:]]),
        "other keys": b"".join([*lines[:3], lines[3].replace(b'"why"', b'"reason"')]),
        "a number": b"5\n",
    }
    for name, raw in attacks.items():
        log.write_bytes(raw)
        with pytest.raises(KitError, match="line"):
            verify_log(log)
        with pytest.raises(KitError):
            entry(log, what=name)
        assert log.read_bytes() == raw
    for raw in (b"".join(lines[:3]), good.replace(b"step 3", b"step 7"), b""):  # the chain holds; only the head tells
        log.write_bytes(raw)
        verify_log(log)
        with pytest.raises(KitError, match="does not end"):
            verify_log(log, head)


def test_log_places(tmp_path):
    with pytest.raises(KitError, match="no readable log"):
        verify_log(tmp_path / "missing.jsonl")
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file" / "log.jsonl"):
        with pytest.raises(KitError, match="cannot be written"):
            entry(place)


def _many(path):
    for _i in range(10):
        entry(path)


@pytest.mark.slow
def test_two_at_once(tmp_path):
    log = tmp_path / "log.jsonl"
    workers = [multiprocessing.get_context("spawn").Process(target=_many, args=(log,)) for _w in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(verify_log(log)) == 20


def test_import_is_light():
    code = "import sys, mktai_kit.trust.audit; print([m for m in ('shap', 'xgboost', 'sklearn', 'matplotlib', 'duckdb') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
