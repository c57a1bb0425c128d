"""The strict runner: what it refuses, what it leaves behind, and that two runs give the same bytes."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mktai_kit.pipeline import run
from mktai_kit.pipeline.run import (
    Parameter,
    Results,
    RunError,
    check_parameters,
    convert,
    execute,
    kernel_env,
    normalise,
    parameters_of,
    plain,
    read_notebook,
    read_params,
    read_profile,
    rounded,
    run_case,
    spreadsheet_safe,
    write_notebook,
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
        ("- 1", "no section"),
        ("", "no section"),
    ],
)
def test_malformed_params(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(KitError, match=said) as e:
        read_profile("shop", "demo", tmp_path / "p.yaml")
    assert "p.yaml" in str(e.value)


def test_params_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(KitError, match="cannot be read"):
        read_params(tmp_path / "none.yaml")
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KitError):
        read_params(tmp_path / "p.yaml")


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


# ---- normalise


def output_of(kind, value):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "x", "execution_count": 1}
    out = {"output_type": "display_data", "data": {kind: value}, "metadata": {}}
    cell["outputs"] = (
        [{"output_type": "stream", "name": kind, "text": value}] if kind in ("stdout", "stderr") else [out]
    )
    return {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def cleaned(kind, value, root="/srv/shop"):
    outputs = normalise(output_of(kind, value), root)["cells"][0]["outputs"]
    return None if not outputs else outputs[0]["text"] if "text" in outputs[0] else outputs[0]["data"].get(kind)


@pytest.mark.parametrize(
    "kind, value, result",
    [
        ("stdout", "<A at 0x7f0011223344>\n", "<A at 0x0>\n"),
        ("stdout", "at 0x7f is a byte\n", "at 0x7f is a byte\n"),
        (
            "stdout",
            "/srv/shop/data/x.csv and /srv/shop2/x and my/srv/shop\n",
            "[workspace]/data/x.csv and /srv/shop2/x and my/srv/shop\n",
        ),
        ("stdout", "in /srv/shop.\n", "in [workspace].\n"),
        ("stdout", "a   \nb\t\n", "a\nb\n"),
        ("stdout", " 1%\r 50%\r100%\n", "100%\n"),
        ("stdout", "windows\r\n", "windows\n"),
        ("stdout", " 10%|#  | 1/10 [00:00<00:01, 9it/s]\n", " 10%|#  | 1/10 [00:00<00:01, 9it/s]\n"),
        ("stderr", " 10%|#  | 1/10 [00:00<00:01, 9it/s]\r100%|###| 10/10 [00:01<00:00, 9it/s]\n", None),
        ("stderr", "123it [00:12, 99.3it/s]\n", None),
        ("stderr", "UserWarning: 5% of rows | left\n", "UserWarning: 5% of rows | left\n"),
        ("text/plain", "x  \ny", "x\ny"),
        ("application/json", {"path": "/srv/shop/a", "n": [1]}, {"path": "[workspace]/a", "n": [1]}),
        ("application/vnd.jupyter.widget-view+json", {"model_id": "1"}, None),
        ("image/png", "bm90IGEgcG5n", "bm90IGEgcG5n"),
    ],
)
def test_what_is_cleaned(kind, value, result):
    assert cleaned(kind, value) == result


def test_ids_are_numbered_but_data_that_look_like_ids_stay():
    html = '<style>#T_9f3ab_row0 {}</style><table id="T_9f3ab"><td id="T_9f3ab_row0">T_12345</td></table>'
    assert cleaned("text/html", html) == html.replace("9f3ab", "00000")
    first = "<div id='1b4e28ba-2fa1-41d2-883f-0016d3cca427'></div>"
    customer = "<td>1b4e28ba-2fa1-41d2-883f-0016d3cca428</td>"
    assert cleaned("text/html", first + customer) == "<div id='00000000-0000-4000-8000-000000000000'></div>" + customer


def test_own_folders_are_named(tmp_path):
    here = f"{Path.home()}/a {sys.prefix}/lib {sys.base_prefix}/lib /nowhere/else\n"
    assert cleaned("stdout", here) == "[home]/a [python]/lib [python]/lib /nowhere/else\n"
    assert cleaned("stderr", f"{os.path.realpath('/tmp')}/ipykernel_12/345.py:3: UserWarning\n") in (
        "[cell]:3: UserWarning\n",
    )
    assert cleaned("stdout", f"{tmp_path}/x\n", tmp_path) == "[workspace]/x\n"


def test_stdout_comes_before_stderr_between_displays():
    nb = output_of("stdout", "1\n")
    stream = lambda name, text: {"output_type": "stream", "name": name, "text": text}
    show = {"output_type": "display_data", "data": {"text/plain": "shown"}, "metadata": {}}
    nb["cells"][0]["outputs"] = [
        stream("stderr", "e"),
        stream("stdout", "1"),
        stream("stderr", "f"),
        stream("stdout", "2"),
        show,
        stream("stdout", "3"),
    ]
    found = [o.get("text", "shown") for o in normalise(nb)["cells"][0]["outputs"]]
    assert found == ["12", "ef", "shown", "3"]


def test_older_notebooks_get_stable_ids(tmp_path):
    nb = json.loads(OK.read_text())
    for cell in nb["cells"]:
        del cell["id"]
        cell["source"] = "".join(cell["source"])
    (tmp_path / "old.ipynb").write_text(json.dumps({**nb, "nbformat_minor": 4}))
    assert [c["id"] for c in read_notebook(tmp_path / "old.ipynb")["cells"]][:2] == ["cell-0", "cell-1"]


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same notebook run twice, under different names, folders and environments."""
    folder = tmp_path_factory.mktemp("twice")
    first = execute(FIXTURES / "prints_ids.ipynb", folder / "a" / "first.ipynb", {"words": ["x", "y"]}, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/Bogota")
        patch.setenv("PYTHONHASHSEED", "5")
        second = execute(FIXTURES / "prints_ids.ipynb", folder / "b" / "second.ipynb", {"words": "x,y"}, progress=False)
    return first, second


def test_same_notebook_same_bytes(twice):
    assert twice[0].read_bytes() == twice[1].read_bytes()


def test_normalising_again_changes_nothing(twice, tmp_path):
    nb = read_notebook(twice[0])
    again = normalise(nb)
    assert again == normalise(again)
    assert write_notebook(again, tmp_path / "again.ipynb").read_bytes() == twice[0].read_bytes()


def test_nothing_of_this_machine_is_in_the_output(twice):
    text = "\n".join(json.dumps(c.get("outputs")) for c in read_notebook(twice[0])["cells"])
    for word in (
        str(Path.home()),
        sys.prefix,
        str(Path.cwd()),
        "papermill",
        "0x7",
        "it/s",
        "tEXt",
        "ipykernel_",
        "2.4.",
    ):
        assert word not in text, word
    cells = {c["id"]: c for c in read_notebook(twice[0])["cells"]}
    assert cells["injected-parameters"]["source"] == "# Parameters\nwords = ['x', 'y']"
    assert not any("papermill" in c["metadata"] for c in cells.values())
    styled = "".join(cells["styled"]["outputs"][0]["data"]["text/html"])
    assert "T_12345" in styled and "T_abcde" in styled and 'id="T_00000"' in styled
    printed = ["".join(o["text"]) for o in cells["printed"]["outputs"]]
    assert (
        printed[0].startswith("one two\n<object object at 0x0> [temp]/* [workspace]")
        and "[cell]" in printed[1]
        and "ready" in printed[1]
    )


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


def test_the_place_of_a_run_does_not_show(tmp_path):
    for out in ("runs/ok-demo", "/srv/elsewhere/ok"):
        here = out if out.startswith("/") else f"/srv/shop/{out}"
        nb = output_of("stdout", f"{out}/plots {here}/plots {out}2 '{out}' /srv/shop/data\n")
        text = normalise(nb, "/srv/shop", out)["cells"][0]["outputs"][0]["text"]
        assert text == f"[run]/plots [run]/plots {out.replace('/srv/shop', '[workspace]')}2 '[run]' [workspace]/data\n"
    assert (
        normalise(output_of("stdout", "r r/x /srv/shop/r/x\n"), "/srv/shop", "r")["cells"][0]["outputs"][0]["text"]
        == "r r/x [run]/x\n"
    )


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


# ---- results


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


def test_settings_threads_reach_the_kernel(tmp_path):
    (tmp_path / "settings.ini").write_text("[mktai]\nthreads = 2\n")
    assert kernel_env(load(tmp_path))["OPENBLAS_NUM_THREADS"] == "2"
