"""How long a year of clicks takes: `python tests/bench_clicks.py [FOLDER]` (a part of `make bench`).

The floor is a plain scan: count, minimum and maximum of every column of the same files (sessions, events, orders, products) in DuckDB, in
the same run, with the same memory and threads. On a busy machine, seconds of processors are fairer than those on the wall. Peak memory is
that of the process (resident, as the system counts it).
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb

from mktai_kit.data.clicks import open_shop
from mktai_kit.data.session_features import funnel_counts, left_carts, shop_sessions, unfolding
from mktai_kit.settings import load
from mktai_kit.world import ecommerce

TABLES = ("sessions", "events", "orders", "products")


def scan(folder: Path, memory: str, threads: int) -> None:
    """Look once at every value."""
    with duckdb.connect(config={"memory_limit": memory, "threads": threads}) as con:
        for table in TABLES:
            files = f"read_parquet('{folder / table / '*.parquet'}')"
            columns = [row[0] for row in con.sql(f"DESCRIBE FROM {files}").fetchall()]
            con.execute(f"SELECT count(*), {', '.join(f'min({c}), max({c})' for c in columns)} FROM {files}").fetchall()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a world that is there (default: one is made)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the world to make")
    parser.add_argument("--memory", default="8GB")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    settings = replace(load(), memory=args.memory, threads=args.threads)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    floor: list[float] = []

    def timed(name: str, step) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        took = [time.perf_counter() - wall, time.process_time() - cpu]
        floor.extend([] if floor else took)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:12} {took[0]:7.1f} {took[0] / floor[0]:6.1f} {took[1]:11.1f} {took[1] / floor[1]:6.1f} {peak:9.2f}", flush=True)  # fmt: skip

    with tempfile.TemporaryDirectory(dir=settings.cache_dir) as place:
        folder = args.folder or ecommerce.make(Path(place) / "world", args.scale, workers=args.threads)
        out = {name: Path(place) / f"{name}.parquet" for name in ("sessions", "unfolding", "carts")}
        print(f"{args.memory}, {args.threads} threads\nstep         seconds  ratio  processors  ratio  peak GiB")
        timed("plain scan", lambda: scan(folder, args.memory, args.threads))
        with open_shop(folder, settings) as shop:
            for table in ("visits", "clicks", "sums", "bills", "past"):
                timed(table, partial(shop.need, table))
            timed("sessions", lambda: shop_sessions(shop, out=out["sessions"]))
            timed("funnel", lambda: funnel_counts(shop))
            timed("unfolding", lambda: unfolding(shop, out=out["unfolding"]))
            timed("left carts", lambda: left_carts(shop, out=out["carts"]))
        rows = {name: duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall()[0][0] for name, path in out.items()}
        print(", ".join(f"{n}: {r:,} rows, {out[n].stat().st_size / 1e9:.2f} GB" for n, r in rows.items()))


if __name__ == "__main__":
    main()
