"""How fast worlds are made: `python tests/bench.py [COMPANY ...] [--scales 0.1 1]` (`make bench`).

The floor is what no simulator can beat: writing the same finished Arrow tables to Parquet, in one process, in the same
run on the same machine. Memory is that of the whole process tree (proportional set size, sampled).
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from mktai_kit.settings import load
from mktai_kit.world.engine import COMPANIES, read_manifest, write_parquet


def tree_memory(process: psutil.Process) -> float:
    """GiB of a process and its children; pages that they share count once."""
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try:
            total += p.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total / 2**30


def made(company: str, scale: float, workers: int, out: Path) -> tuple[float, float]:
    """Seconds and peak GiB of `mktai world make`, as a user calls it."""
    words = [
        Path(sys.executable).with_name("mktai"),
        "world",
        "make",
        company,
        "--scale",
        str(scale),
        "--out",
        str(out),
    ]
    start = time.perf_counter()
    process = subprocess.Popen([*words, "--workers", str(workers), "--quiet"], stdout=subprocess.DEVNULL)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        whole = psutil.Process(process.pid)
        while not done.wait(0.25):
            try:
                peak[0] = max(peak[0], tree_memory(whole))
            except psutil.Error:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    took = time.perf_counter() - start
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"mktai world make {company} ended with {code}")
    return took, peak[0]


def floor(folder: Path) -> float:
    """Seconds to write the finished tables again, one after the other; reading them is not counted."""
    took = 0.0
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        for path in sorted(folder.rglob("*.parquet")):
            arrow = pq.ParquetFile(path).read()
            start = time.perf_counter()
            write_parquet(arrow, Path(place) / "part")
            took += time.perf_counter() - start
    return took


def bench(company: str, scale: float, workers: int, repeat: int, place: Path) -> float:
    """Print one line; seconds (median)."""
    out, times, floors, peaks = place / company, [], [], []
    for _ in range(repeat):
        shutil.rmtree(out, ignore_errors=True)
        took, peak = made(company, scale, workers, out)
        times.append(took)
        peaks.append(peak)
        floors.append(floor(out))
    tables = read_manifest(out)
    rows = sum(t["rows"] for part in ("tables", "truth") for t in tables[part].values())
    size = sum(t["bytes"] for part in ("tables", "truth") for t in tables[part].values()) / 1e9
    took, least = statistics.median(times), statistics.median(floors)
    print(f"{company:10} {scale:6g} {rows / 1e6:9.2f} {size:7.2f} {took:8.1f} {least:8.1f} {took / least:6.2f} {max(peaks):6.2f}", flush=True)  # fmt: skip
    shutil.rmtree(out)
    return took


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("companies", nargs="*", metavar="COMPANY", help=f"default: {', '.join(COMPANIES)}")
    parser.add_argument("--scales", nargs="+", type=float, default=[0.1, 1.0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--place", type=Path, help="folder for the worlds (several GB at scale 1; default: the cache)")
    args = parser.parse_args()
    place = args.place or load().cache_dir
    place.mkdir(parents=True, exist_ok=True)
    print("company     scale  rows (M)     GB  seconds    floor  ratio    GiB")
    with tempfile.TemporaryDirectory(dir=place) as inside:
        for company in args.companies or COMPANIES:
            took = [bench(company, scale, args.workers, args.repeat, Path(inside)) for scale in args.scales]
            if len(took) > 1:
                sizes = args.scales[-1] / args.scales[0]
                print(f"{company:10} {args.scales[-1]:g} over {args.scales[0]:g}: {took[-1] / took[0]:.1f} times the time for {sizes:g} times the size", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
