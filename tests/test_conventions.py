"""The habits of the house, held: notebooks, names, layers, and what must not be in any file."""

import ast
import importlib
import inspect
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
import yaml
from numpydoc.docscrape import FunctionDoc

from mktai_kit.pipeline.run import parameters_of

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["data", "world", "methods", "trust", "decide", "pipeline"]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
INDEX = ROOT / "nbs" / "index.ipynb"
CASES = [p for p in NOTEBOOKS if p.parent.name == "cases"]
LIBRARY = [p for p in NOTEBOOKS if p not in CASES and p != INDEX]
MODULES = sorted(p for p in (ROOT / "mktai_kit").rglob("*.py") if not p.name.startswith("_"))

by_name = {"ids": lambda p: p.relative_to(ROOT).as_posix()}


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def directive(cell, name):
    return re.search(rf"^#\| ?{name}\b *(.*)$", cell.source, re.M) if cell.cell_type == "code" else None


def exported(notebook):
    return [c for c in notebook.cells if directive(c, "export")]


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_dollars_are_money(path):
    r"""Two dollars in a paragraph make JupyterLab set what is between them as mathematics: money is written \\$5."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)
            for paragraph in prose.split("\n\n"):
                money = re.findall(r"(?<!\\\\)\$\d[\d,.]*+(?! *[-+*/=^_\\])", paragraph)
                assert len(money) < 2, f"{cell.id}: {money}"


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_every_notebook(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec"}, "only the kernelspec is kept in notebook metadata"
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n\n> .+", first.source), (
        "H1 and a one-line > subtitle first"
    )
    ids = [c.id for c in notebook.cells]
    assert len(ids) == len(set(ids)), "cell ids are unique"
    for cell in notebook.cells:
        assert cell.source.strip(), f"empty cell {cell.id}"
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, "outputs are not committed"
            assert len(cell.source.splitlines()) <= 60, f"cell {cell.id} is too long to read"


@pytest.mark.parametrize("path", [*LIBRARY, *CASES], **by_name)
def test_lessons_open_and_close(path):
    notebook = read(path)
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for word in ("**Objectives.**", "**Prerequisites.**", "**Time.**", "## Recap"):
        assert word in prose, f"{word} is missing"
    assert re.search(r"^## Exercises?$", prose, re.M), "one to three exercises at the end"
    assert 1 <= sum("solution" in tags(c) for c in notebook.cells) <= 3
    n_code = sum(c.cell_type == "code" for c in notebook.cells)
    assert sum(c.cell_type == "markdown" for c in notebook.cells) >= n_code / 3, "more code than a reader can follow"
    hidden = sum(bool(directive(c, "hide")) for c in notebook.cells)
    assert hidden <= 0.15 * n_code, "too many hidden cells"


@pytest.mark.parametrize("path", LIBRARY, **by_name)
def test_library_notebook(path):
    notebook = read(path)
    assert not any("parameters" in tags(c) for c in notebook.cells), "parameters belong to cases"
    module = re.sub(r"^\d+[a-z]?_", "", path.stem)
    part = path.parent.name
    expected = module if part == "nbs" else f"{part}.{module}"
    found = [m.group(1).strip() for c in notebook.cells if (m := directive(c, "default_exp"))]
    assert found == [expected], "one notebook, one module, same name"


@pytest.mark.parametrize("path", CASES, **by_name)
def test_case_notebook(path):
    notebook = read(path)
    assert sum("parameters" in tags(c) for c in notebook.cells) == 1
    assert not exported(notebook) and not any(directive(c, "default_exp") for c in notebook.cells), (
        "cases export nothing"
    )
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code" and "parameters" not in tags(c))
    assert "class " not in re.sub(r"[\"'#].*", "", code), "cases only call"
    prose = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert "Who can be harmed" in prose and "decision" in prose.lower()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            long = [line for line in cell.source.splitlines() if len(line) > 130]
            assert not long, f"{cell.id}: {long[0][:60]}"


@pytest.mark.parametrize("path", CASES, **by_name)
def test_smoke_profile_is_the_default(path):
    given = {name: p.default for name, p in parameters_of(path).items()}
    section = yaml.safe_load((ROOT / "params.yaml").read_text())[path.stem]
    smoke = {**section.get("common", {}), **section["smoke"]}
    assert smoke == {k: given.get(k) for k in smoke}, "params.yaml's smoke profile and the parameters cell disagree"
    for profile in ("demo", "full"):
        assert set(section[profile]) <= set(given), f"{profile} names unknown parameters"


@pytest.mark.parametrize("path", LIBRARY, **by_name)
def test_exported_functions_are_short(path):
    for cell in exported(read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                doc = 0
                if ast.get_docstring(node, clean=False) is not None:
                    doc = node.body[0].end_lineno - node.body[0].lineno + 1
                body = node.end_lineno - node.body[0].lineno + 1 - doc
                assert body <= 40, f"{node.name} has {body} lines"


@pytest.mark.parametrize("path", LIBRARY, **by_name)
def test_every_exported_name_has_a_lesson(path):
    notebook = read(path)
    module = importlib.import_module(
        "mktai_kit." + next(m.group(1).strip() for c in notebook.cells if (m := directive(c, "default_exp")))
    )
    lessons = [c.source for c in notebook.cells if c.cell_type == "code" and not directive(c, "export")]
    used = {n.id for s in lessons for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Name)}
    used |= {n.attr for s in lessons for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Attribute)}
    # A type that a public function returns is met through that function; a constant through what reads it.
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isfunction(thing):
            assert name in used, f"{name} is exported without a lesson"


@pytest.mark.parametrize("path", MODULES, **by_name)
def test_docstrings(path):
    module = importlib.import_module(dotted(path))
    assert inspect.getdoc(module), "the module needs its one-line summary"
    for name in module.__all__:
        thing = getattr(module, name)
        if not inspect.isfunction(thing) and not inspect.isclass(thing):
            continue
        doc = inspect.getdoc(thing)
        assert doc and len(doc.split()) >= 5, f"{name} needs a docstring"
        if inspect.isfunction(thing):
            described = {n.strip().lstrip("*") for p in FunctionDoc(thing)["Parameters"] for n in p.name.split(",")}
            missing = set(inspect.signature(thing).parameters) - {"ax"} - described
            assert not missing, f"{name} does not describe {sorted(missing)}"
            returns_something = inspect.signature(thing).return_annotation not in (None, "None")
            assert (
                not described or not returns_something or FunctionDoc(thing)["Returns"] or FunctionDoc(thing)["Yields"]
            ), name


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name in PARTS], **by_name)
def test_a_part_imports_only_parts_below_it(path):
    floor = PARTS.index(path.parent.name)
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = dotted(path).split(".")[: -node.level] if node.level else []
            full = ".".join(filter(None, [*base, node.module]))
            names = [full, *(f"{full}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            bits = name.split(".")
            assert bits[0] not in ("nbdev", "fastcore"), "the library does not need nbdev"
            if bits[0] == "mktai_kit" and len(bits) > 1:
                assert bits[1] != "cli"
                assert bits[1] not in PARTS or PARTS.index(bits[1]) <= floor, f"{name} is above {path.parent.name}"


def test_the_ground_imports_no_part():
    tree = ast.parse((ROOT / "mktai_kit" / "settings.py").read_text())
    assert not [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").startswith("mktai_kit"))
    ]


def test_import_is_light():
    code = "import sys, time; t = time.perf_counter(); import mktai_kit, mktai_kit.cli; print(time.perf_counter() - t); print(*sorted(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert float(out[0]) < 1
    heavy = {
        "numpy",
        "pandas",
        "sklearn",
        "xgboost",
        "shap",
        "matplotlib",
        "duckdb",
        "ibis",
        "dvc",
        "papermill",
        "IPython",
    }
    assert not heavy & set(out[1].split())


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [ROOT / n for n in listed.stdout.splitlines() if (ROOT / n).is_file()]


def test_no_file_names_a_registry_or_a_machine():
    # Spelt in pieces, so that this file does not name them either.
    banned = re.compile(
        "|".join(
            [
                "py" + r"pi\.org",
                "python" + r"hosted\.org",
                "registry" + r"\.npmjs",
                "deb" + r"\.debian",
                "/ro" + "ot/",
                "/wo" + "rk/",
            ]
        )
    )
    for path in tracked():
        if path.suffix in (".parquet", ".png"):
            continue
        found = banned.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)} names {found.group()!r}"


def test_lock_is_pinned_by_hash():
    lines = (ROOT / "requirements" / "lock.txt").read_text().replace("\\\n", " ").splitlines()
    for line in filter(None, lines):
        assert re.match(r"[a-z0-9][\w.\[\]-]*==\S+ ", line) and "--hash=sha256:" in line, line[:80]
    assert not any(line.startswith("nvidia") for line in lines)


def test_every_run_is_complete():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, run in params["runs"].items():
        assert name == f"{run['case']}-{run['profile']}"
        assert (ROOT / "nbs" / "cases" / f"{run['case']}.ipynb").is_file()
        assert run["source"] in [*params["sources"], *(f"world-{w}" for w in params["worlds"])]
        assert run["case"] in params["gates"], "every case has gates"
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    assert {f"world@{name}" for name in params["worlds"]} <= set(lock)
    for name in params["runs"]:
        assert {f"case@{name}", f"report@{name}", f"gate@{name}"} <= set(lock)


def test_nothing_shared_knows_a_case_by_name():
    words = re.compile("|".join(rf"\b{p.stem}\b" for p in CASES))
    shared = [p for p in (ROOT / "mktai_kit" / "pipeline").iterdir() if p.suffix in (".py", ".html", ".css")]
    for path in [*shared, ROOT / "mktai_kit" / "cli.py"]:
        code = path.read_text()
        if path.suffix == ".py":
            code = "\n".join(
                t.string for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type != tokenize.COMMENT
            )
            code = re.sub(r'"""(?s:.*?)"""', "", code)
        assert not words.search(code), f"{path.name} knows a case by name"
