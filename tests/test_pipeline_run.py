"""The strict runner: what it refuses, what it leaves behind, and the environment it gives."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mktai_kit.pipeline import run
from mktai_kit.pipeline.normalise import read_notebook
from mktai_kit.pipeline.run import (
    Parameter,
    RunError,
    check_parameters,
    convert,
    execute,
    kernel_env,
    parameters_of,
    read_profile,
    run_case,
)
from mktai_kit.settings import KitError, load

FIXTURES = Path(__file__).parent / "fixtures"
OK, FAILS = FIXTURES / "ok.ipynb", FIXTURES / "fails.ipynb"


def notebook(path, source, **metadata):
    """A notebook of one parameters cell."""
    cell = {
        "cell_type": "code",
        "id": "p",
        "metadata": {"tags": ["parameters"]},
        "outputs": [],
        "execution_count": None,
        "source": source,
    }
    path.write_text(json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace of its own around the fixtures `ok` and `writes_partial`."""
    (tmp_path / "settings.ini").write_text("[mktai]\nruns_dir = runs\n")
    (tmp_path / "params.yaml").write_text("ok:\n  common: {seed: 5}\n  smoke: {}\n  demo: {share: 1}\n")
    cases = tmp_path / "nbs" / "cases"
    cases.mkdir(parents=True)
    for name in ("ok", "writes_partial", "slow"):
        (cases / f"{name}.ipynb").write_bytes((FIXTURES / f"{name}.ipynb").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- parameters


def test_parameters_have_type_default_and_help():
    found = parameters_of(OK)
    assert list(found) == ["seed", "share", "name", "groups", "limit", "out_dir", "profile"]
    assert found["seed"] == Parameter("seed", "int", 7, "any whole number")
    assert found["limit"].type == "int | None" and found["groups"].type == "list[str]"


@pytest.mark.parametrize(
    "name, said",
    [
        ("no_parameters", "0 cells are tagged"),
        ("two_parameter_cells", "2 cells are tagged"),
        ("bad_defaults", "line 2 gives folder a default that is not a literal"),
        ("not_json", "not a notebook"),
        ("not_a_notebook", "not a notebook"),
        ("no_such", "cannot be read"),
    ],
)
def test_notebooks_without_proper_parameters(name, said):
    with pytest.raises(KitError, match=said) as e:
        parameters_of(FIXTURES / f"{name}.ipynb")
    assert name in str(e.value) and e.value.mend


@pytest.mark.parametrize(
    "source, said",
    [
        ("seed = ", "line 1: invalid syntax"),
        ("import os", "line 1 is not `name = value`"),
        ("a = b = 1", "is not `name = value`"),
        ("a, b = 1, 2", "is not `name = value`"),
        ("x: int", "is not `name = value`"),
        ("x: int = 'a'", "'a' is not int"),
        ("x: Path = 'a'", "type Path, which is not one of"),
        ("x = {1, 2}", "the type set"),
        ("x = 1\nx = 2", "line 2 assigns x a second time"),
        ("%matplotlib inline\nx = 1", "line 1: invalid syntax"),
        ("x = (", "line"),
    ],
)
def test_parameter_cells_that_cannot_be_read(tmp_path, source, said):
    with pytest.raises(KitError, match=said.replace("|", r"\|")):
        parameters_of(notebook(tmp_path / "x.ipynb", source))


def test_parameter_cells_that_can_be_read(tmp_path):
    source = '"""All there is."""\n# prose\na = -1.5\nb = [\n    1,\n    2.5,\n]  # both\nc = None\nd: list[str] = []  # texts\ne = {"k": 1}\nf = True'
    found = parameters_of(notebook(tmp_path / "x.ipynb", source))
    assert {k: (p.type, p.help) for k, p in found.items()} == {
        "a": ("float", ""), "b": ("list[float]", "both"), "c": ("any", ""), "d": ("list[str]", "texts"), "e": ("dict", ""), "f": ("bool", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    "value, kind, result",
    [
        ("7", "int", 7), (" -7 ", "int", -7), (np.int64(7), "int", 7), (7, "float", 7.0), ("1e-3", "float", 0.001), ("No", "bool", False),
        (True, "bool", True), ("none", "int | None", None), ("3", "int | None", 3), ("none", "str", "none"), (None, "str | None", None),
        ("a, b", "list[str]", ["a", "b"]), ("[1, 2]", "list[int]", [1, 2]), ((1, 2), "list[float]", [1.0, 2.0]), ("", "list", []),
        ("{'a': 1}", "dict", {"a": 1}), ("=1+1", "str", "=1+1"), (datetime.date(2024, 1, 31), "str", "2024-01-31"), ("x y", "any", "x y"), ("[1]", "any", [1]),
    ],
)  # fmt: skip
def test_conversions(value, kind, result):
    converted = convert(value, kind)
    assert converted == result and type(converted) is type(result)


@pytest.mark.parametrize(
    "value, kind",
    [
        ("3.0", "int"), (3.0, "int"), (True, "int"), ("", "int"), ("nan", "float"), ("inf", "float"), (float("nan"), "float"), (True, "float"),
        ("maybe", "bool"), (1, "bool"), (7, "str"), (None, "str"), ("a,b", "list[int]"), (7, "list"), ("[1", "list"), ("[1]", "dict"), (None, "int"), ("1e999", "float"),
    ],
)  # fmt: skip
def test_refused_conversions(value, kind):
    with pytest.raises(ValueError):
        convert(value, kind)


def test_all_wrong_parameters_are_told_together():
    with pytest.raises(KitError) as e:
        check_parameters(OK, {"sed": 1, "share": "much", "nonsense": 2, "seed": 3})
    assert "did you mean 'seed'" in str(e.value) and "share = 'much'" in str(e.value) and "'nonsense'" in str(e.value)
    assert "limit: int | None = None" in e.value.mend


# ---- profiles


def test_profile_overrides_what_is_common(tmp_path):
    (tmp_path / "p.yaml").write_text("shop:\n  common: {a: 1, b: 1}\n  demo: {b: 2}\n  smoke:\n")
    assert read_profile("shop", "demo", tmp_path / "p.yaml") == {"a": 1, "b": 2}
    assert read_profile("shop", "smoke", tmp_path / "p.yaml") == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    "text, said",
    [
        ("shop: {smoke: {}}", "no profile 'demo'"),
        ("other: {demo: {}}", "no section 'shop'"),
        ("shop: [1]", "no profile 'demo'"),
        ("shop: {demo: 3}", "not a mapping"),
        ("shop: {demo: {a: 1, a: 2}}", "given twice"),
        ("shop: {demo: {a: 1}}\nshop: {demo: {a: 2}}", "given twice"),
        ("shop:\n  demo: {a: [1}", "line 2"),
        ("- 1", "no `name: value` lines"),
        ("", "no `name: value` lines"),
    ],
)
def test_malformed_params(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(KitError, match=said) as e:
        read_profile("shop", "demo", tmp_path / "p.yaml")
    assert "p.yaml" in str(e.value)


# ---- the kernel's environment


def test_environment_is_quiet_and_holds_numpy_and_blas_to_avx2():
    env = kernel_env(env=dict(os.environ, PYTHONHASHSEED="3", NPY_ENABLE_CPU_FEATURES="AVX2"))
    assert "NPY_ENABLE_CPU_FEATURES" not in env and env["PYTHONHASHSEED"] == "0"
    code = (
        "import numpy, scipy.linalg, threadpoolctl as t; from numpy._core import _multiarray_umath as m;"
        "print(any(m.__cpu_features__[f] for f in m.__cpu_dispatch__ if f.startswith(('AVX512', 'X86_V4'))), {i['architecture'] for i in t.threadpool_info() if i['internal_api'] == 'openblas'}, {i['num_threads'] for i in t.threadpool_info()})"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert not out.stderr
    if "OPENBLAS_CORETYPE" in env:
        assert out.stdout.split() == ["False", "{'Haswell'}", "{1}"]


def test_environment_without_avx2(monkeypatch):
    from numpy._core import _multiarray_umath

    monkeypatch.setitem(_multiarray_umath.__cpu_features__, "AVX2", False)
    assert "OPENBLAS_CORETYPE" not in kernel_env(env={}) and "NPY_DISABLE_CPU_FEATURES" not in kernel_env(env={})


def test_settings_threads_reach_the_kernel(tmp_path):
    (tmp_path / "settings.ini").write_text("[mktai]\nthreads = 2\n")
    assert kernel_env(load(tmp_path))["OPENBLAS_NUM_THREADS"] == "2"


# ---- execute


def test_a_failing_cell_is_shown_and_the_earlier_output_stays(tmp_path, capsys):
    out = tmp_path / "out.ipynb"
    out.write_text("earlier")
    with pytest.raises(RunError) as e:
        execute(FAILS, out)
    said = str(e.value)
    assert "fails.ipynb: cell [3] below 'Conversion' failed with ZeroDivisionError: division by zero" in said
    assert ">    3 | rate(orders, visits)" in said and "return orders / visits" in said
    assert "out.failed.ipynb" in e.value.mend and "\x1b" not in said
    assert out.read_text() == "earlier" and sorted(p.name for p in tmp_path.iterdir()) == [
        "out.failed.ipynb",
        "out.ipynb",
    ]
    partial = json.dumps(read_notebook(tmp_path / "out.failed.ipynb"))
    assert "so far so good" in partial and "ZeroDivisionError" in partial
    assert capsys.readouterr().err.splitlines()[-1].startswith("[out] ")


@pytest.mark.parametrize(
    "name, said", [("dies", "the kernel died in a cell below 'Memory'"), ("exits", "failed with SystemExit: 0")]
)
def test_a_kernel_that_ends_is_one_error(tmp_path, name, said):
    with pytest.raises(RunError, match=said.replace("(", r"\(")):
        execute(FIXTURES / f"{name}.ipynb", tmp_path / "out.ipynb", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out.failed.ipynb"]


def test_a_cell_may_take_too_long(tmp_path):
    with pytest.raises(RunError, match="ran longer than 0.5 s"):
        execute(
            FIXTURES / "slow.ipynb",
            tmp_path / "out.ipynb",
            {"out_dir": str(tmp_path / "run")},
            timeout=0.5,
            progress=False,
        )


def test_the_kernel_is_always_python(tmp_path):
    done = read_notebook(execute(FIXTURES / "needs_kernel.ipynb", tmp_path / "out.ipynb", progress=False))
    assert done["metadata"]["kernelspec"]["name"] == "python3"
    assert "".join(done["cells"][1]["outputs"][0]["text"]) == "python all the same\n"


def test_a_kernel_that_is_not_there(tmp_path):
    with pytest.raises(KitError, match="no Jupyter kernel 'ir'"):
        execute(OK, tmp_path / "out.ipynb", kernel_name="ir")
    assert not list(tmp_path.iterdir())


def test_a_kernel_of_another_python(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/opt/other/bin/python", "-m", "x"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(KitError, match="belongs to another Python"):
        execute(OK, tmp_path / "out.ipynb")


def test_a_kernel_that_does_not_start(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["python", "-c", "raise SystemExit(1)"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(RunError, match="did not start"):
        execute(OK, tmp_path / "out.ipynb", progress=False)


def test_wrong_parameters_start_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_papermill", lambda *a: pytest.fail("it ran"))
    with pytest.raises(KitError, match="unknown parameter"):
        execute(OK, tmp_path / "out.ipynb", {"sed": 1})
    with pytest.raises(KitError, match="0 cells are tagged"):
        execute(FIXTURES / "no_parameters.ipynb", tmp_path / "out.ipynb", {"seed": 1})
    with pytest.raises(KitError, match="2 cells are tagged"):
        execute(FIXTURES / "two_parameter_cells.ipynb", tmp_path / "out.ipynb")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_papermill", lambda *a: pytest.fail("it ran"))
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match="cannot write here"):
        execute(OK, tmp_path / "file" / "out.ipynb")
    with pytest.raises(KitError, match="cannot write here"):
        run_case(OK, out=tmp_path / "file" / "run")
    with pytest.raises(KitError, match="cannot write here"):
        run_case(OK, out=tmp_path / "file")


def test_a_read_only_folder(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run.tempfile, "mkdtemp", refuse)
    with pytest.raises(KitError, match="Permission denied"):
        execute(OK, tmp_path / "out.ipynb")
    with pytest.raises(KitError, match="Permission denied"):
        run_case(OK, out=tmp_path / "run")


@pytest.mark.slow
def test_plain_papermill_runs_the_same_notebook(tmp_path):
    import papermill

    papermill.execute_notebook(
        str(OK), str(tmp_path / "out.ipynb"), parameters={"out_dir": str(tmp_path / "run")}, progress_bar=False
    )
    assert (tmp_path / "run" / "metrics.json").is_file()


# ---- a run of a case


def test_a_case_run_fills_its_folder(workspace):
    folder = run_case("ok", {"limit": "3"}, profile="demo", progress=False)
    assert folder == workspace / "runs" / "ok-demo"
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "notebook.ipynb", "summary.json"]
    assert json.loads((folder / "metrics.json").read_text()) == {"seed": 5, "share": 0.333333}
    printed = next(c for c in read_notebook(folder / "notebook.ipynb")["cells"] if c["id"] == "work")["outputs"][0][
        "text"
    ]
    assert "".join(printed) == f"5 1.0 shop ['a', 'b'] 3 demo\n1 UTC {workspace.name}\n"
    assert "out_dir = '[run]'" in (folder / "notebook.ipynb").read_text()


def test_earlier_results_come_back_when_a_run_fails(workspace):
    folder = workspace / "runs" / "writes_partial-smoke"
    (folder / "plots").mkdir(parents=True)
    for name in ("metrics.json", "report.html", "plots/a.csv", "mine.txt"):
        (folder / name).write_text("earlier")
    with pytest.raises(RunError, match="the second half is missing"):
        run_case("writes_partial", progress=False)
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    assert found == ["metrics.json", "mine.txt", "notebook.failed.ipynb", "plots", "plots/a.csv", "report.html"]
    assert (folder / "metrics.json").read_text() == "earlier"


def test_earlier_results_go_when_a_run_succeeds(workspace, monkeypatch):
    def fake(notebook, output, *args, **kwargs):
        output.write_text("new")

    monkeypatch.setattr(run, "execute", fake)
    folder = workspace / "out"
    folder.mkdir()
    for name in ("metrics.json", "report.html", "gates.json", "mine.txt"):
        (folder / name).write_text("earlier")
    run_case("ok", out=folder)
    assert sorted(p.name for p in folder.iterdir()) == ["mine.txt", "notebook.ipynb"]


@pytest.mark.parametrize(
    "call, said",
    [
        ({"case": "okk"}, "did you mean 'ok'"),
        ({"case": "ok", "profile": "full"}, "no profile 'full'"),
        ({"case": "slow", "profile": "demo"}, "no section 'slow'"),
        ({"case": "ok", "given": {"out_dir": "x"}}, "use --out"),
        ({"case": "ok", "given": {"profile": "demo"}}, "use --profile"),
        ({"case": "ok", "given": {"seed": "x", "nme": "y"}}, "'nme'"),
        ({"case": "nbs/none.ipynb"}, "cannot be read"),
    ],
)
def test_case_runs_that_are_refused(workspace, call, said):
    with pytest.raises(KitError, match=said):
        run_case(**call)
    assert not (workspace / "runs").exists()
