"""What is generated agrees with its source: mktai_kit/ with the notebooks, README.md with nbs/index.ipynb.

`python tests/freshness.py` says what is stale and exits 1; with `--write` it writes README.md anew. Nothing else is touched: the export runs in a copy.
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


def sources(folder: Path) -> dict[str, str]:
    """Text of every Python file below `folder`, by relative path."""
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.py"))}


def stale_modules() -> list[str]:
    """Modules that a fresh export would write otherwise, add or leave out."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
        for name in ("nbs", "mktai_kit"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
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


def render(cell) -> str:
    """One executed cell as Markdown: prose as it is, code fenced, outputs as Markdown where they offer it, else as text."""
    if cell.cell_type == "markdown":
        return cell.source
    parts = [] if "output-only" in cell.metadata.get("tags", []) else [f"```python\n{cell.source}\n```"]
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/markdown" in data:
            parts.append(data["text/markdown"].strip())
        else:
            text = output.get("text") or data.get("text/plain", "")
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def readme() -> str:
    """README.md as the executed nbs/index.ipynb gives it."""
    with tempfile.TemporaryDirectory() as folder:
        done = execute(ROOT / "nbs" / "index.ipynb", Path(folder) / "index.ipynb", progress=False)
        cells = nbformat.read(done, as_version=4).cells
    kept = [c for c in cells if "hide" not in c.metadata.get("tags", [])]
    text = "\n\n".join(filter(None, map(render, kept)))
    text = re.sub(r"\]\((?![a-z]+:|#)", "](nbs/", text).replace("](nbs/../", "](")  # links as seen from the top
    head = "<!-- Written from nbs/index.ipynb by `make export`; edit that notebook. -->\n\n"
    return head + text + "\n"


def main() -> int:
    fresh = readme()
    if "--write" in sys.argv[1:]:
        (ROOT / "README.md").write_text(fresh, encoding="utf-8")
    stale = stale_modules() + unclean_notebooks()
    if (ROOT / "README.md").read_text(encoding="utf-8") != fresh:
        stale.append("README.md")
    for name in stale:
        print(f"stale: {name}. Mend: make export, then commit.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
