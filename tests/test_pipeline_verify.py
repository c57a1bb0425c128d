"""Verification: locks compared, stale inputs told from irreproducible outputs, a tiny pipeline run again for real."""

import subprocess
import sys

import pytest
import yaml

from mktai_kit.pipeline.verify import VerifyReport, compare_locks, copy_workspace, lock_hashes, verify
from mktai_kit.settings import KitError

DVC = [sys.executable, "-m", "dvc"]
LOCK = {
    "schema": "2.0",
    "stages": {
        "case@toy-smoke": {
            "cmd": "x",
            "deps": [{"path": "code.py", "hash": "md5", "md5": "a"}],
            "params": {"params.yaml": {"toy.seed": 7}},
            "outs": [{"path": "out.json", "hash": "md5", "md5": "b"}],
        }
    },
}


def changed(kind, key, value):
    stage = {k: v for k, v in LOCK["stages"]["case@toy-smoke"].items()}
    stage[kind] = [{**stage[kind][0], key: value}]
    return {"stages": {"case@toy-smoke": stage}}


def test_identical_locks():
    report = VerifyReport(compare_locks(LOCK, LOCK))
    assert report.identical and "All are identical" in report.to_text()
    assert set(lock_hashes(LOCK)["kind"]) == {"input", "output", "parameter"}


def test_other_output_is_irreproducible():
    report = VerifyReport(compare_locks(LOCK, changed("outs", "md5", "c")))
    assert not report.identical and "not reproducible" in report.to_text() and "out.json" in report.to_text()


def test_other_input_means_a_stale_lock():
    report = VerifyReport(compare_locks(LOCK, changed("deps", "md5", "c")))
    assert not report.identical and "run `dvc repro`" in report.to_text() and "code.py" in report.to_text()


def test_a_missing_and_an_added_output_are_named():
    table = compare_locks(LOCK, changed("outs", "path", "other.json"))
    assert set(table.loc[~table["same"], "path"]) == {"out.json", "other.json"}


def test_other_stages_of_the_lock_are_left_out():
    more = {"stages": {**LOCK["stages"], "case@toy-demo": LOCK["stages"]["case@toy-smoke"]}}
    assert compare_locks(more, LOCK)["stage"].unique().tolist() == ["case@toy-smoke"]


def test_nothing_compared_is_not_identical():
    assert not VerifyReport(compare_locks({}, {})).identical


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    root = tmp_path / "toy"
    root.mkdir()
    (root / "settings.ini").write_text("[mktai]\n")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as set by git hooks
        monkeypatch.delenv(name, raising=False)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run([*DVC, "init", "-q"], cwd=root, check=True)
    return root


def test_bad_places_speak(tmp_path, workspace):
    with pytest.raises(KitError, match="dvc.lock: the file is missing"):
        verify("smoke", start=workspace)
    (workspace / "dvc.lock").write_text("{")
    with pytest.raises(KitError, match="not valid YAML"):
        verify("smoke", start=workspace)
    (workspace / "dvc.lock").write_text("stages: {}\n")
    with pytest.raises(KitError, match="no run of the profile"):
        verify("smoke", start=workspace)
    (tmp_path / "bare").mkdir()
    (tmp_path / "target").mkdir()
    with pytest.raises(KitError, match="not a git checkout"):
        copy_workspace(tmp_path / "bare", tmp_path / "target")


def write_pipeline(root, body):
    (root / "make.py").write_text(body)
    stage = {"cmd": f'"{sys.executable}" make.py', "deps": ["make.py"], "outs": ["out"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"make": {"foreach": {"toy-smoke": 1}, "do": stage}}}))


SAME = "from pathlib import Path\nPath('out').mkdir(exist_ok=True)\nPath('out/a.txt').write_text('one')\nPath('out/b.txt').write_text('two')\n"


@pytest.mark.slow
def test_a_reproducible_pipeline_and_one_that_is_not(workspace):
    write_pipeline(workspace, SAME)
    subprocess.run([*DVC, "repro", "-q"], cwd=workspace, check=True)
    assert verify("smoke", start=workspace).identical

    write_pipeline(workspace, SAME.replace("'two'", "__import__('secrets').token_hex()"))
    subprocess.run([*DVC, "repro", "-q"], cwd=workspace, check=True)
    report = verify("smoke", start=workspace)
    assert not report.identical and list(report.details) == ["out/b.txt"] and "not reproducible" in report.to_text()

    write_pipeline(workspace, SAME)
    report = verify("smoke", start=workspace)
    assert not report.identical and "run `dvc repro`" in report.to_text()

    write_pipeline(workspace, "raise SystemExit(3)\n")
    with pytest.raises(KitError, match="a stage failed"):
        verify("smoke", start=workspace)
