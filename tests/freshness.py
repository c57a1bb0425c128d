"""What is generated agrees with its source: mktai_kit/ with the notebooks, README.md with nbs/index.ipynb.

`python tests/freshness.py` says what is stale and exits 1; with `--write` it clears stored outputs, fills the tables of the index
and writes README.md anew. The export itself runs in a copy.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from mktai_kit.pipeline.run import execute

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "nbs" / "index.ipynb"
PARTS = ["data", "world", "methods", "trust", "decide", "pipeline"]


def sources(folder: Path) -> dict[str, str]:
    """Text of every Python file below `folder`, by relative path."""
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.py"))}


def stale_modules() -> list[str]:
    """Modules that a fresh export would write otherwise, add or leave out."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
        for name in ("nbs", "mktai_kit"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        for module in (copy / "mktai_kit").rglob("*.py"):
            if module.name != "__init__.py":
                module.unlink()
        nbdev_export = Path(sys.executable).parent / "nbdev-export"
        subprocess.run([str(nbdev_export)], cwd=copy, check=True, capture_output=True)
        ours, fresh = sources(ROOT / "mktai_kit"), sources(copy / "mktai_kit")
    return sorted(name for name in ours.keys() | fresh.keys() if ours.get(name) != fresh.get(name))


def unclean_notebooks() -> list[str]:
    """Notebooks with stored outputs or run counts."""
    out = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        if any(c.outputs or c.execution_count for c in cells):
            out.append(path.relative_to(ROOT).as_posix())
    return out


def clear_outputs() -> None:
    """Drop what running left in the notebooks (nbdev-clean keeps outputs, and with --clear_all it would drop the tags along with them)."""
    for name in unclean_notebooks():
        notebook = nbformat.read(ROOT / name, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, ROOT / name)


def row(path: Path) -> str:
    """Title (linked), subtitle and minutes of a notebook, as a row of a Markdown table."""
    prose = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    title, subtitle = re.match(r"# (.+)\n\n> (.+)", prose[0]).groups()
    minutes = re.search(r"\*\*Time\.\*\* (.+?)\.", "\n".join(prose)).group(1)
    return f"| [{title}]({path.relative_to(INDEX.parent).as_posix()}) | {subtitle} | {minutes} |"


def course_map():
    """nbs/index.ipynb with its two tables as the notebooks give them."""
    index, nbs = nbformat.read(INDEX, as_version=4), INDEX.parent
    cases = sorted(nbs.glob("cases/*.ipynb"))
    parts = [p for part in PARTS for p in sorted(nbs.glob(f"{part}/*.ipynb"))]
    lessons = [*sorted(nbs.glob("0*.ipynb")), *parts, *sorted(nbs.glob("9*.ipynb"))]
    for cell in index.cells:
        if cell.id in ("cases-table", "course-table"):
            head, rule = cell.source.splitlines()[:2]
            cell.source = "\n".join([head, rule, *map(row, cases if cell.id == "cases-table" else lessons)])
    return index


def render(cell) -> str:
    """One executed cell as Markdown: prose as it is, code fenced, outputs as text."""
    if cell.cell_type == "markdown":
        return cell.source
    parts = [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def readme() -> str:
    """README.md as the executed nbs/index.ipynb gives it."""
    with tempfile.TemporaryDirectory() as folder:
        done = execute(INDEX, Path(folder) / "index.ipynb", progress=False)
        cells = nbformat.read(done, as_version=4).cells
    text = "\n\n".join(map(render, cells))
    text = re.sub(r"\]\((?![a-z]+:|#)", "](nbs/", text).replace("](nbs/../", "](")  # links as seen from the top
    head = "<!-- Written from nbs/index.ipynb by `make export`; edit that notebook. -->\n\n"
    return head + text + "\n"


def main() -> int:
    if "--write" in sys.argv[1:]:
        clear_outputs()
        nbformat.write(course_map(), INDEX)
    fresh = readme()
    if "--write" in sys.argv[1:]:
        (ROOT / "README.md").write_text(fresh, encoding="utf-8")
    stale = stale_modules() + unclean_notebooks()
    if nbformat.read(INDEX, as_version=4) != course_map():
        stale.append("nbs/index.ipynb (its tables)")
    if (ROOT / "README.md").read_text(encoding="utf-8") != fresh:
        stale.append("README.md")
    for name in stale:
        print(f"stale: {name}. Mend: make export, then commit.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
