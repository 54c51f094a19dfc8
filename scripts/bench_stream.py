"""Memory: the data and tokenizer stages on a corpus of repeated shards, as large as one likes.

Each size runs in a process of its own, whose peak of resident memory the kernel tells at its end.
A corpus twice as long must not take more. Rows go to runs/stream.json.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import config, corpus, files, tokenizer, training


def repeat(shards: list[Path], count: int, folder: Path) -> None:
    """A source folder whose corpus is `shards`, `count` times over (links, no copies)."""
    (folder / "corpus").mkdir(parents=True)
    for number in range(count):
        for shard in shards:
            (folder / "corpus" / f"{number:05d}-{shard.name}").symlink_to(shard.resolve())


def stages(source: Path, runs: Path) -> dict[str, float]:
    """Runs both stages on a source folder: megabytes of text and seconds of each stage."""
    profile = config.load_profile(
        "paper", runs=str(runs), data=str(source), source="folder", profile="stream"
    )
    began = time.perf_counter()
    manifest = corpus.run(config.Data(**profile.stage(config.Data)))
    middle = time.perf_counter()
    tokenizer.run(config.Tokenizer(**profile.stage(config.Tokenizer)))
    return {
        "megabytes": manifest["bytes"] / 1e6,
        "data_seconds": middle - began,
        "tokenizer_seconds": time.perf_counter() - middle,
    }


def measure(shards: list[Path], count: int, limit: float) -> dict[str, float | int]:
    """Both stages in a child process; its figures and its peak of resident memory in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repeat(shards, count, folder / "source")
        child = os.fork()
        if child == 0:
            # A hard limit on what a process may allocate beyond what its libraries map.
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)
            found = stages(folder / "source", folder / "runs")
            (folder / "found.json").write_text(json.dumps(found))
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        if status:
            raise config.UserError(f"{count} repeats: the stages failed under {limit} GiB")
        found = json.loads((folder / "found.json").read_text())
    return found | {"repeats": count, "peak_bytes": usage.ru_maxrss * 1024}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with corpus/*.parquet")
    parser.add_argument("--repeats", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--limit", type=float, default=2.0, help="GiB a process may allocate")
    parser.add_argument("--out", type=Path, default=Path("runs/stream.json"))
    options = parser.parse_args()
    training.begin(os.cpu_count())
    shards = corpus.parquet_files(config.resolve(options.data) / "corpus")
    rows = []
    for count in options.repeats:
        rows.append(measure(shards, count, options.limit))
        row = rows[-1]
        speed = row["megabytes"] / row["tokenizer_seconds"]
        print(
            f"{row['megabytes']:>9,.0f} MB of text: data {row['data_seconds']:,.0f} s, tokenizer "
            f"{row['tokenizer_seconds']:,.0f} s ({speed:.1f} MB/s with training), peak "
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
            flush=True,
        )
    found = {"hardware": training.hardware(os.cpu_count()), "limit": options.limit, "rows": rows}
    files.write_text(config.resolve(options.out), json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    config.run_main(main)
