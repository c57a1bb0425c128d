"""The ground: settings are strict, errors speak, files are written whole or not at all."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mktai_kit import settings
from mktai_kit.settings import KitError


def workspace(tmp_path, text="[mktai]\nseed = 3\n"):
    (tmp_path / "settings.ini").write_text(text)
    return tmp_path


def test_defaults_file_and_environment_in_that_order(tmp_path):
    root = workspace(tmp_path)
    assert settings.load(root, env={}).seed == 3
    assert settings.load(root, env={"MKTAI_SEED": "5"}).seed == 5
    assert settings.load(root, env={}).threads == 1


def test_paths_start_at_the_workspace(tmp_path):
    root = workspace(tmp_path, "[mktai]\ndata_dir = here\n")
    (root / "nbs").mkdir()
    s = settings.load(root / "nbs", env={})
    assert s.root == root and s.data_dir == root / "here"


def test_without_a_workspace_the_user_cache_is_used(tmp_path):
    s = settings.load(tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert s.data_dir == tmp_path / "cache" / "mktai-kit" / "data"


def test_a_settings_file_of_another_tool_is_passed_over(tmp_path):
    (tmp_path / "settings.ini").write_text("[other]\nkey = value\n")
    assert settings.find_root(tmp_path) != tmp_path


@pytest.mark.parametrize(
    "text, word",
    [
        ("[mktai]\nsede = 3\n", "sede"),
        ("[mktai]\nseed = seven\n", "seed"),
        ("[mktai]\nthreads = 0\n", "threads"),
        ("[mktai]\nprofile = huge\n", "profile"),
        ("[mktai]\nlanguage = xx\n", "language"),
        ("[mktai]\nno equals sign\n", "cannot be read"),
        ("[mktai]\nseed = 1\nseed = 2\n", "cannot be read"),
    ],
)
def test_malformed_settings(tmp_path, text, word):
    with pytest.raises(KitError, match=word) as e:
        settings.load(workspace(tmp_path, text), env={})
    assert "settings.ini" in str(e.value) and "Mend" in str(e.value)


def test_a_bad_variable_is_named(tmp_path):
    with pytest.raises(KitError, match="MKTAI_THREADS"):
        settings.load(workspace(tmp_path), env={"MKTAI_THREADS": "many"})


def test_a_missing_extra_is_named():
    with pytest.raises(KitError, match=r"mktai-kit\[pipeline\]"):
        settings.require("no_such_module_at_all", "pipeline")


def test_atomic_file_keeps_the_old_one_when_interrupted(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), settings.atomic(target) as out:
        out.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_atomic_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("1")
    with settings.atomic(target, folder=True) as out:
        (out / "new").write_text("2")
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["run"]


def test_full_disk_is_one_clear_message(tmp_path):
    target = tmp_path / "a.txt"
    with pytest.raises(KitError, match="nothing was changed"), settings.atomic(target):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KitError, match="cannot write here"), settings.atomic(tmp_path / "file" / "below"):
        pass


def test_atomic_from_many_threads(tmp_path):
    def write(k):
        with settings.atomic(tmp_path / "same.txt") as out:
            out.write_text(str(k) * 1000)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set((tmp_path / "same.txt").read_text())) == 1 and os.listdir(tmp_path) == ["same.txt"]


def test_expect_fail_fails_when_nothing_is_raised():
    with pytest.raises(AssertionError, match="nothing was raised"), settings.expect_fail():
        pass
    with pytest.raises(AssertionError, match="does not hold"), settings.expect_fail(KitError, "budget"):
        raise KitError("another message")


def test_translation_comes_from_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("MKTAI_LANGUAGE", "es")
    assert settings.gettext("a string that no catalogue has") == "a string that no catalogue has"


def test_import_needs_nothing_installed():
    code = "import mktai_kit.settings as s; print(s.load(env={}).threads)"
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0 and out.stdout.strip() == "1", out.stderr


def test_the_nearest_name_or_all_of_them():
    assert settings.nearest("SEDE", ["Seed", "share"]) == "Seed" and settings.nearest(3, ["seed", 3]) == "3"
    assert settings.suggest("stor", ["store", "storey"]) == "did you mean 'store'?"
    assert (
        settings.suggest("zzz", ["a", "b"]) == "use one of a, b." and settings.suggest("a", []) == "there is none yet."
    )
    assert settings.suggest("zzz", range(30)).endswith("18, 19 or one of 10 more.")


def test_what_people_see(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings.from_here("a/b") == settings.from_here(tmp_path / "a" / "b") == "a/b"
    assert settings.from_here(tmp_path.parent) == str(tmp_path.parent) and settings.from_here(tmp_path) == "."
    assert settings.printable("a\x1b[31m\r\n\u202eñ") == "a\ufffd[31m\ufffd\n\ufffdñ" and settings.printable(3) == "3"


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: 1\na: 2", "line 2: the key 'a' is given twice"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c' is given twice"),
        ("a:\n  b: [1}", "line 2"),
        ("a: [", "line 1"),
        ("- 1", "no `name: value` lines"),
        ("", "no `name: value` lines"),
        ("a: \x07", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: !!timestamp soon", "not valid YAML"),
        ("{[1]: 2}", "not valid YAML"),
        ("[" * 100_000, "not valid YAML"),
    ],
)
def test_malformed_yaml(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(KitError, match=said) as e:
        settings.read_yaml(tmp_path / "p.yaml")
    assert "p.yaml" in str(e.value) and e.value.mend


def test_yaml_values_are_plain(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "a: no\nb: 2024-01-31\nc: true\nd: 1.5\ne: null\nf: &x {g: on}\nh: {<<: *x, g: off}\n"
    )
    told = {"a": "no", "b": "2024-01-31", "c": True, "d": 1.5, "e": None, "f": {"g": "on"}, "h": {"g": "off"}}
    assert settings.read_yaml(tmp_path / "p.yaml") == told


@pytest.mark.parametrize("read", [settings.read_yaml, settings.read_json])
def test_files_missing_or_not_text(tmp_path, read):
    with pytest.raises(KitError, match="the file is missing") as e:
        read(tmp_path / "none", mend="look elsewhere.")
    assert e.value.mend == "look elsewhere."
    with pytest.raises(KitError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "p").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KitError, match="not text in UTF-8"):
        read(tmp_path / "p")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "not valid JSON"),
        (b'{"a": ', "not valid JSON, line 1"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"[1]", "holds a list"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_no_run_wrote(tmp_path, raw, match):
    (tmp_path / "metrics.json").write_bytes(raw)
    with pytest.raises(KitError, match=match) as e:
        settings.read_json(tmp_path / "metrics.json")
    assert "metrics.json" in str(e.value) and e.value.mend
