"""Every notebook runs from top to bottom in its smoke profile, in a kernel of its own, and leaves the sources as they were."""

from pathlib import Path

import pytest
import yaml

from mktai_kit.data import sources
from mktai_kit.pipeline.run import execute, parameters_of

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture(scope="module", autouse=True)
def real_data():
    """What the pipeline would have fetched; nothing happens where it is there already."""
    for name in yaml.safe_load((ROOT / "params.yaml").read_text())["sources"]:
        sources.fetch(name, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_runs(path, tmp_path):
    before = path.read_bytes()
    # A case writes its outputs where it is told to; its defaults are the smoke profile.
    given = (
        {"out_dir": str(tmp_path / "run")} if path.parent.name == "cases" and "out_dir" in parameters_of(path) else None
    )
    done = execute(path, tmp_path / path.name, parameters=given, progress=False)
    assert done.is_file() and path.read_bytes() == before
