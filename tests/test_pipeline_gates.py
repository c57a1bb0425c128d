"""Edge cases of pipeline.gates."""

import json
import os

import pytest

from mktai_kit.pipeline.gates import (
    FAIL,
    OPEN,
    PASS,
    Gate,
    check_run,
    evaluate,
    in_words,
    leaves,
    parse_gate,
    read_gates,
    run_identity,
)
from mktai_kit.settings import KitError

LIFT = {"value": 2.4, "low": 1.9, "high": 2.9, "n": 1234}
NONE = {"value": None, "low": None, "high": None, "n": 12, "note": "not enough data: 12 buyers, 50 needed"}
METRICS = {
    "model": {"lift": LIFT, "brier": 0.08},
    "fair": {"verdict": "pass", "gap": NONE},
    "ok": True,
    "curve": [1, 2],
}


def one(metrics, **spec):
    return evaluate(metrics, [parse_gate("g", spec)]).rows[0]


@pytest.mark.parametrize(
    ("spec", "state"),
    [
        ({"metric": "model.brier", "max": 0.08}, PASS),  # the ends belong to the band
        ({"metric": "model.brier", "min": 0.08, "max": 0.08}, PASS),
        ({"metric": "model.brier", "max": 0.0799}, FAIL),
        ({"metric": "model.brier", "min": 0}, PASS),
        ({"metric": "model.lift", "min": 2}, PASS),  # an estimate as a whole counts by its value
        ({"metric": "model.lift.low", "min": 2}, FAIL),
        ({"metric": "model.lift.high", "max": 3}, PASS),
        ({"metric": "model.lift.n", "min": 1000}, PASS),
        ({"metric": "fair.verdict", "equals": "pass"}, PASS),
        ({"metric": "fair.verdict", "equals": "fail"}, FAIL),
        ({"metric": "ok", "equals": True}, PASS),
        ({"metric": "ok", "equals": False}, FAIL),
        ({"metric": "model.brier", "equals": 0.08}, PASS),
        ({"metric": "fair.gap", "max": 0.1}, OPEN),
        ({"metric": "fair.gap.value", "max": 0.1}, OPEN),
        ({"metric": "fair.gap.high", "max": 0.1}, OPEN),
    ],
)
def test_states(spec, state):
    assert one(METRICS, **spec).state == state


@pytest.mark.parametrize("verdict", [None, "not enough data", "not enough data: 3 rows"])
def test_not_enough_data_is_neither_pass_nor_fail(verdict):
    row = one({"v": verdict}, metric="v", equals="pass")
    assert (row.state, row.allowed) == (OPEN, False)
    assert one({"v": verdict}, metric="v", equals="pass", if_not_enough="allow").allowed


def test_a_gate_may_ask_for_not_enough_data():
    assert one({"v": OPEN}, metric="v", equals=OPEN).state == PASS


def test_reasons_say_what_and_why():
    assert (
        one(METRICS, metric="model.lift.low", min=2).reason
        == "The low end of the interval is 1.9; at least 2 is asked for."
    )
    assert one(METRICS, metric="fair.gap", max=0.1).reason == "Not enough data: 12 buyers, 50 needed."
    assert one({"v": OPEN}, metric="v", equals="pass").reason == "There was not enough data to tell."
    assert one(METRICS, metric="fair.gap.high", max=0.1).measured.startswith("not enough data: 12 buyers")


def test_a_miss_by_a_hair_shows_its_digits():
    assert "0.29999999" in one({"v": 0.29999999}, metric="v", min=0.3).reason
    assert "0.30000001" in one({"v": 0.30000001}, metric="v", min=0.1, max=0.3).reason


def test_overall_state_and_leave_to_go_on():
    gates = [Gate("a", "model.brier", max=1), Gate("b", "fair.gap", max=1, if_not_enough="allow")]
    report = evaluate(METRICS, gates)
    assert (report.state, report.passed) == (OPEN, True)
    report.enforce()
    report = evaluate(METRICS, [*gates, Gate("c", "fair.gap", max=1)])
    assert (report.state, report.passed) == (OPEN, False)
    report = evaluate(METRICS, [*gates, Gate("c", "model.brier", min=1)])
    assert (report.state, report.passed) == (FAIL, False)
    with pytest.raises(KitError, match="1 of 3 gates stop this run. c: The figure is 0.08"):
        report.enforce("runs/x")


def test_unknown_paths_are_errors_with_a_suggestion():
    with pytest.raises(KitError, match="did you mean 'model.brier'"):
        one(METRICS, metric="model.birer", max=1)
    with pytest.raises(KitError, match="group of figures.*model.lift, model.lift.value"):
        one(METRICS, metric="model", max=1)


@pytest.mark.parametrize(
    ("metrics", "spec", "match"),
    [
        ({"v": float("nan")}, {"min": 1}, "v is nan"),
        ({"v": float("inf")}, {"min": 1}, "v is inf"),
        ({"v": "high"}, {"min": 1}, "cannot be compared"),
        ({"v": 1}, {"equals": "pass"}, "cannot be compared"),
        ({"v": True}, {"min": 0}, "cannot be compared"),
        ({"v": True}, {"equals": 1}, "cannot be compared"),
        ({"v": 1}, {"equals": True}, "cannot be compared"),
        ({"v": [1, 2]}, {"min": 1}, "v is a list"),
    ],
)
def test_figures_that_cannot_be_compared(metrics, spec, match):
    with pytest.raises(KitError, match=match):
        one(metrics, metric="v", **spec)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (None, "a gate is a mapping"),
        (3, "a gate is a mapping"),
        ({}, "names no metric"),
        ({"min": 1}, "names no metric"),
        ({"metric": 3, "min": 1}, "names no metric"),
        ({"metric": "v"}, "either min and/or max"),
        ({"metric": "v", "min": 1, "equals": 1}, "either min and/or max"),
        ({"metric": "v", "min": 2, "max": 1}, "above max"),
        ({"metric": "v", "min": float("nan")}, "not a number"),
        ({"metric": "v", "max": float("inf")}, "not a number"),
        ({"metric": "v", "min": "1e-3"}, "not a number"),  # YAML 1.1 reads 1e-3 as a text
        ({"metric": "v", "min": True}, "not a number"),
        ({"metric": "v", "equals": [1]}, "neither a text nor a number"),
        ({"metric": "v", "equals": float("nan")}, "not a number"),
        ({"metric": "v", "min": 1, "minimum": 1}, "unknown key 'minimum'.*did you mean 'min'"),
        ({"metric": "v", "min": 1, 3: 1}, "unknown key 3"),
        ({"metric": "v", "min": 1, "why": 3}, "`why` is not a text"),
        ({"metric": "v", "min": 1, "if_not_enough": "ignore"}, "use fail or allow"),
    ],
)
def test_malformed_gates(spec, match):
    with pytest.raises(KitError, match=match):
        parse_gate("g", spec, "params.yaml")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("seed: 1", "no section `gates`"),
        ("", "no `name: value` lines"),
        ("gates: 3", "no section `gates`"),
        ("gates: {shop: ", "line 1"),
        ("gates: {shop: {}}", "no gates are set"),
        ("gates: {shop: null}", "no gates are set"),
        ("gates: {shp: {a: {metric: v, min: 1}}}", "did you mean 'shp'"),
        ("gates:\n  shop:\n    a: {metric: v, min: 1}\n    a: {metric: v, min: 0}", "'a' is given twice"),
        ("gates: {shop: {a: 3}}", "mapping is expected|a gate is a mapping"),
        ("gates: {shop: {a: {metric: v, min: 1}, profiles: {tiny: {a: {min: 0}}}}}", "unknown profile 'tiny'"),
        ("gates: {shop: {a: {metric: v, min: 1}, profiles: {smoke: null}}}", "mapping is expected"),
        ("gates: {shop: {a: {metric: v, min: 1}, profiles: {smoke: {a: 0}}}}", "mapping is expected"),
        ("gates: {shop: {a: {metric: v, min: 1}, profiles: {full: {b: {if_not_enough: allow}}}}}", "names no metric"),
        ("gates: {shop: {a: {metric: v, min: 1}, profiles: {full: {a: {equals: 1}}}}}", "either min and/or max"),
    ],
)
def test_malformed_params(tmp_path, text, match):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(KitError, match=match) as e:
        read_gates(tmp_path / "params.yaml", "shop", "smoke")
    assert "params.yaml" in str(e.value) and e.value.mend


def test_params_missing_or_not_text(tmp_path):
    with pytest.raises(KitError, match="params.yaml: the file is missing"):
        read_gates(tmp_path / "params.yaml", "shop", "smoke")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KitError, match="params.yaml: "):
        read_gates(tmp_path / "params.yaml", "shop", "smoke")
    (tmp_path / "ok.yaml").write_text("gates: {shop: {a: {metric: v, min: 1}}}")
    with pytest.raises(KitError, match="unknown profile 'tiny'"):
        read_gates(tmp_path / "ok.yaml", "shop", "tiny")


def test_profiles_change_single_keys_and_add_gates(tmp_path):
    text = "gates: {shop: {a: {metric: v, min: 1, why: w}, profiles: {smoke: {a: {min: 0}, b: {metric: u, max: 1}}}}}"
    (tmp_path / "params.yaml").write_text(text)
    assert read_gates(tmp_path / "params.yaml", "shop", "smoke") == [
        Gate("a", "v", min=0, why="w"),
        Gate("b", "u", max=1),
    ]
    assert read_gates(tmp_path / "params.yaml", "shop", "full") == [Gate("a", "v", min=1, why="w")]


def test_text_is_aligned_and_steers_no_terminal():
    metrics = {"v": "\x1b[31mred\nline", "u": 1}
    text = evaluate(metrics, [Gate("a", "v", equals="pass"), Gate("long name", "u", min=0)], "shop", "smoke").to_text()
    assert (
        "\x1b" not in text
        and text
        == evaluate(metrics, [Gate("a", "v", equals="pass"), Gate("long name", "u", min=0)], "shop", "smoke").to_text()
    )
    rows = [line for line in text.splitlines() if line.startswith(("  pass", "  fail"))]
    assert len(rows) == 2 and rows[0].index("a  ") == rows[1].index("long name")
    assert all(len(line) < 200 for line in text.splitlines())


def test_no_gate_is_no_pass():
    with pytest.raises(KitError, match="no gate to judge by"):
        evaluate(METRICS, [])


def test_leaves_and_words():
    assert leaves({"a.b": 1, "c": {"d": None}}) == {"a.b": 1, "c.d": None}
    assert in_words(LIFT) == "2.40 [1.90, 2.90] (n = 1,234)"
    assert in_words(True) == "True" and in_words(123456.7) == "123,457"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "settings.ini").write_text("[mktai]\n")
    (tmp_path / "params.yaml").write_text("gates: {shop-b2b: {a: {metric: model.lift.low, min: 1.2, why: because}}}")
    run = tmp_path / "data" / "runs" / "shop-b2b-smoke"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps(METRICS))
    return run


def test_check_run_finds_its_params_and_writes_the_same_bytes(run):
    report = check_run(run)
    first = (run / "gates.json").read_bytes()
    assert report.passed and json.loads(first) == report.to_dict() and first.endswith(b"\n")
    assert check_run(str(run)) == report and (run / "gates.json").read_bytes() == first
    assert str(run.parent) not in first.decode()
    assert json.loads(first)["case"] == "shop-b2b" and json.loads(first)["gates"][0]["why"] == "because"


def test_check_run_writes_a_failure_too(run):
    (run / "metrics.json").write_text(json.dumps({"model": {"lift": LIFT | {"low": 1.0}}}))
    assert not check_run(run).passed
    assert json.loads((run / "gates.json").read_text())["state"] == FAIL


def test_check_run_errors_name_the_file_and_leave_the_old_judgement(run):
    check_run(run)
    before = (run / "gates.json").read_bytes()
    (run / "metrics.json").write_text('{"model": {"lft": 1}}')
    with pytest.raises(KitError, match="metrics.json: gate 'a'"):
        check_run(run)
    (run / "metrics.json").write_text('{"model": {"lift": {"value": NaN}}}')
    with pytest.raises(KitError, match="metrics.json.*NaN"):
        check_run(run)
    assert (run / "gates.json").read_bytes() == before and sorted(os.listdir(run)) == ["gates.json", "metrics.json"]


def test_a_place_that_cannot_be_written(run):
    (run / "gates.json").mkdir()
    with pytest.raises(KitError, match="gates.json"):
        check_run(run)
    assert sorted(os.listdir(run)) == ["gates.json", "metrics.json"]


def test_identity_from_files_before_the_name(run, tmp_path):
    assert run_identity(run) == ("shop-b2b", "smoke")
    (run / "summary.json").write_text('{"case": "shop", "profile": "full"}')
    assert run_identity(run) == ("shop", "full")
    (run / "record.json").write_text('{"case": "store", "profile": "demo"}')
    assert run_identity(run) == ("store", "demo")
    (tmp_path / "odd").mkdir()
    with pytest.raises(KitError, match="which case and profile"):
        run_identity(tmp_path / "odd")
    with pytest.raises(KitError, match="no such run folder"):
        run_identity(tmp_path / "none")


def test_a_lone_surrogate_does_not_break_the_file(run):
    (run / "metrics.json").write_text(
        '{"model": {"lift": {"value": null, "low": null, "high": null, "n": 1, "note": "\\ud800"}}}'
    )
    assert check_run(run).state == OPEN
    assert json.loads((run / "gates.json").read_text())["state"] == OPEN
