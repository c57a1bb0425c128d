"""Fixtures that several test modules share."""

import contextlib
import json
import signal

import nbformat
import pytest

from mktai_kit.data.sources import CATALOGUE, fetch, fetched
from mktai_kit.settings import KitError, load

# A shell that starts the tests in the background lets them, and all that they start, ignore an interrupt; tests send some.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def real():
    """A function that gives the folder of a real data set that is fetched or in the mirror, or skips: it never goes to the network."""

    def folder(name, variant=None):
        settings, files = load(), CATALOGUE[name].files_of(variant)
        with contextlib.suppress(KitError):
            return fetched(name, variant, settings)
        if settings.mirror is not None and all(
            f.origin == "address" and (settings.mirror / f.name).is_file() for f in files
        ):
            return fetch(name, settings=settings, variant=variant, progress=False)
        pytest.skip(f"{name} is neither fetched nor in the mirror (MKTAI_MIRROR)")

    return folder


@pytest.fixture(scope="session")
def told():
    """A function that gives the metrics and the summary of a run, and all that its notebook said."""

    def read(folder):
        cells = nbformat.read(folder / "notebook.ipynb", as_version=4).cells
        outputs = (o for c in cells for o in c.get("outputs", []) if o.get("data") is not None)
        said = "\n".join(o["data"].get("text/markdown", "") for o in outputs)
        return (*(json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "summary")), said)

    return read
