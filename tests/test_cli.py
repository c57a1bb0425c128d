"""The command line: exit codes, messages, interrupts, and how light it is."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from mktai_kit import __version__, cli
from mktai_kit.cli import main
from mktai_kit.pipeline import run
from mktai_kit.settings import KitError

FIXTURES = Path(__file__).parent / "fixtures"
MKTAI = [sys.executable, "-c", "import sys; from mktai_kit.cli import main; sys.exit(main())"]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[mktai]\nruns_dir = runs\n")
    cases = tmp_path / "nbs" / "cases"
    cases.mkdir(parents=True)
    for name in ("ok", "fails", "slow"):
        (cases / f"{name}.ipynb").write_bytes((FIXTURES / f"{name}.ipynb").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fake(monkeypatch, name, **attributes):
    """A stand-in for a module of the library that the command imports."""
    package, _, last = name.rpartition(".")
    module = types.SimpleNamespace(**attributes)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules[package], last, module, raising=False)


# ---- words


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["data", "fetch", "--help"], ["score", "--help"], ["--version"]]
)
def test_help_and_version(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out == f"mktai {__version__}\n" if "--version" in words else "usage: mktai" in out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data"],
        ["fly"],
        ["run"],
        ["run", "ok", "--profile", "huge"],
        ["data", "fetch"],
        ["report"],
        ["run", "ok", "--timeout", "soon"],
        ["score", "ok", "--data", "d"],
        ["score", "ok", "--data", "d", "--model", "r", "--as-of", "2025-09-01", "--capacity", "few"],
    ],
)
def test_words_that_do_not_fit(words, capsys):
    assert main(words) == 2
    assert "usage: mktai" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["run", "okk"], "did you mean 'ok'"),
        (["run", "none.ipynb"], "none.ipynb: the notebook cannot be read"),
        (["run", "ok", "-p", "seed"], "not name=value"),
        (["run", "ok", "-p", "=3"], "not name=value"),
        (["run", "ok", "-p", "seed=1", "-p", "seed=2"], "given twice"),
        (["run", "ok", "-p", "sed=1"], "did you mean 'seed'"),
        (["run", "ok", "-p", "seed=one"], "not of type int"),
        (["run", "ok", "-p", "out_dir=x"], "use --out"),
        (["run", "ok", "--profile", "demo"], "params.yaml"),
        (["found", "nowhere"], "run the case again"),
        (["score", "ok", "--data", "d", "--model", "r", "--as-of", "monday"], "not a day"),
        (["data", "show", "nonsense"], "no data set 'nonsense'"),
        (["data", "fetch", "cdnow", "telco", "--dest", "x"], "one data set at a time"),
    ],
)
def test_wrong_input_is_code_2_and_one_message(workspace, capsys, words, said):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mktai: error: ") and said in err and "Mend:" in err and "Traceback" not in err
    assert not (workspace / "runs").exists()


@pytest.mark.parametrize("text", ["[mktai]\ncolour = red\n", "[mktai]\nthreads = many\n"])
def test_malformed_settings(workspace, capsys, text):
    (workspace / "settings.ini").write_text(text)
    assert main(["run", "ok"]) == 2
    assert "settings.ini" in capsys.readouterr().err


def test_malformed_params(workspace, capsys):
    (workspace / "params.yaml").write_text("ok:\n  smoke: {seed: [1}\n")
    assert main(["run", "ok"]) == 2
    assert "params.yaml: the file is not valid YAML, line 2" in capsys.readouterr().err


# ---- handlers, over stand-ins


def test_run_passes_what_was_asked(workspace, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(run, "run_case", lambda *a: calls.append(a) or workspace / "runs" / "ok-demo")
    assert (
        main(
            [
                "run",
                "ok",
                "-p",
                "seed=3",
                "-p",
                "name=a=b",
                "--profile",
                "demo",
                "--out",
                "x",
                "--timeout",
                "9",
                "--quiet",
            ]
        )
        == 0
    )
    assert calls == [("ok", {"seed": "3", "name": "a=b"}, "demo", Path("x"), 9.0, False)]
    assert capsys.readouterr().out == "run: runs/ok-demo\n"


def test_report_gate_and_verify(workspace, monkeypatch, capsys):
    state = types.SimpleNamespace(passed=False, identical=False, to_text=lambda: "the reason")
    fake(monkeypatch, "mktai_kit.pipeline.gates", check_run=lambda folder, params: state)
    fake(monkeypatch, "mktai_kit.pipeline.verify", verify=lambda profile: calls.append(profile) or state)
    fake(monkeypatch, "mktai_kit.pipeline.report", render=lambda folder: Path(folder) / "report.html")
    calls = []
    assert main(["gate", "r"]) == 1 and main(["verify"]) == 1 and main(["report", "r"]) == 0
    state.passed = state.identical = True
    assert main(["gate", "r"]) == 0 and main(["verify", "--profile", "demo"]) == 0
    assert calls == ["smoke", "demo"]
    assert capsys.readouterr().out.split("\n")[:3] == ["the reason", "the reason", "report: r/report.html"]


def test_data(workspace, monkeypatch, capsys):
    from mktai_kit.data import sources

    calls = []
    monkeypatch.setattr(sources, "fetch", lambda name, **how: calls.append((name, how)) or workspace / "data" / name)
    assert main(["data", "fetch", "cdnow", "telco", "--verify"]) == 0
    assert [c[0] for c in calls] == ["cdnow", "telco"] and calls[0][1] == {
        "dest": None,
        "variant": None,
        "verify": True,
    }
    assert main(["data", "list"]) == 0 and main(["data", "show", "cdnow"]) == 0
    out = capsys.readouterr().out
    assert "cdnow: data/cdnow\n" in out and "complete_journey" in out and "Licence" in out


def test_found_is_five_lines_and_cannot_steer_the_terminal(workspace, capsys):
    folder = workspace / "r"
    folder.mkdir()
    told = {"title": "T\x1b[31m", "question": "q", "decision": "d", "limits": ["l"]}
    (folder / "summary.json").write_text(json.dumps({**told, "findings": [f"{i} th" for i in range(7)]}))
    assert main(["found", "r"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[1] == "  report: not written yet (mktai report r)"
        and lines[2] == "  gates: not judged yet (mktai gate r)"
        and lines[3:] == [f"  - {i} th" for i in range(5)]
        and "\x1b" not in lines[0]
    )
    (folder / "report.html").write_text("")
    (folder / "gates.json").write_text('{"state": "fail"}')
    assert main(["found", str(folder)]) == 0
    assert "  report: r/report.html\n  gates: fail\n" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"title": 1, "findings": 3}'])
def test_found_on_a_damaged_summary(workspace, capsys, text):
    (workspace / "summary.json").write_text(text)
    assert main(["found", "."]) == 2
    err = capsys.readouterr().err
    assert "summary.json: the" in err and "Mend:" in err


# ---- what is raised


def raising(monkeypatch, error):
    def call(*_):
        raise error

    monkeypatch.setattr(run, "run_case", call)


def test_errors_and_codes(monkeypatch, capsys):
    for error, code in (
        (KitError("x"), 2),
        (run.RunError("x", "y", "z"), 1),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "f"), 2),
    ):
        raising(monkeypatch, error)
        assert main(["run", "ok"]) == code
        assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_the_kit_keeps_its_traceback(monkeypatch):
    raising(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["run", "ok"])
    raising(monkeypatch, KitError("x"))
    with pytest.raises(KitError):
        main(["--traceback", "run", "ok"])


def test_sigterm_is_an_interrupt(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "run_case", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert main(["run", "ok"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


# ---- as a process


def test_a_failed_run_is_code_1(workspace):
    done = subprocess.run([*MKTAI, "run", "fails"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert (
        "mktai: error: nbs/cases/fails.ipynb: cell [3] below 'Conversion' failed with ZeroDivisionError" in done.stderr
    )
    assert ">    3 | rate(orders, visits)" in done.stderr and "runs/fails-smoke/notebook.failed.ipynb" in done.stderr
    assert "Traceback (most" not in done.stderr and "WARNING" not in done.stderr
    assert [p.name for p in (workspace / "runs" / "fails-smoke").iterdir()] == ["notebook.failed.ipynb"]


def kernels():
    """Process ids of running kernels."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ipykernel_launcher" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            pass
    return found


def is_child_of_the_run(pid, folder):
    try:
        return os.path.realpath(f"/proc/{pid}/cwd") == os.path.realpath(folder)
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(workspace, how):
    folder = workspace / "runs" / "slow-smoke"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("earlier")
    process = subprocess.Popen([*MKTAI, "run", "slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    written = folder / "metrics.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (written.is_file() and "half" in written.read_text()):
        time.sleep(0.1)
    assert any(is_child_of_the_run(pid, workspace) for pid in kernels())
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "mktai: interrupted" in err and "Traceback" not in err, err
    assert [p.name for p in folder.iterdir()] == ["metrics.json"] and (folder / "metrics.json").read_text() == "earlier"
    assert not any(is_child_of_the_run(pid, workspace) for pid in kernels())


@pytest.mark.slow
def test_values_from_data_from_run_to_report(workspace, capsys):
    assert main(["run", str(FIXTURES / "html_values.ipynb"), "--out", "r", "--quiet"]) == 0
    assert main(["report", "r"]) == 0 and main(["found", "r"]) == 0
    page = (workspace / "r" / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert [line.split(",")[0] for line in (workspace / "r" / "actions.csv").read_text().splitlines()[2:5]] == [
        '"\'=1+1"',
        '"\'-2"',
        '"\'@x"',
    ]
    assert capsys.readouterr().out.splitlines()[:2] == ["run: r", "report: r/report.html"]


def test_a_reader_that_stops_is_no_error():
    code = "import sys; from mktai_kit.cli import main; sys.exit(main(['data', 'show', 'complete_journey']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141 and err == b""


def test_the_door_is_light():
    code = "import time; t = time.perf_counter(); import mktai_kit.cli as c; c.main(['--version']); import sys; print(time.perf_counter() - t, *sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[2]) < 1 and not {"numpy", "pandas", "papermill", "yaml"} & set(out)
    assert cli.__all__ == ["PROFILES", "main"]
