"""The leaderboard from a command line: checks its entries, or makes one from a run.

`make check-leaderboard` calls `check.py check`, `make submission` calls `check.py
submit`. The check is the same here and in continuous integration.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.base import config, files
from helpers.base.errors import UserError, run_main
from helpers.leaderboard import check as checker
from helpers.leaderboard import submit as submitter
from helpers.score import paper, predictions

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "published.json"


def check(options: argparse.Namespace) -> int:
    """Prints a line per entry and per remark; 1 where an entry does not hold."""
    labels = predictions.read_labels(files.resolve(options.data) if options.data else None)
    entries = checker.check(options.folder, paper.load(PUBLISHED), labels)
    for entry in entries:
        if entry.error:
            print(f"error: {entry.error}")
            continue
        print("; ".join([f"{entry.name}: {entry.level}", *entry.undone]))
        for remark in entry.remarks:
            print(f"  remark: {options.folder / entry.name}: {remark}")
    wrong = sum(bool(entry.error) for entry in entries)
    print(f"{len(entries)} entries, {wrong} refused")
    return 1 if wrong else 0


def submit(options: argparse.Namespace) -> int:
    """Writes an entry and says what to do next."""
    for name in ("run", "model"):
        if not getattr(options, name):
            raise UserError(f"{name} = '': must be given")
    about: dict[str, Any] = config.read_yaml(Path(options.about)) if options.about else {}
    given = {name: getattr(options, name) for name in ("title", "link", "authors", "licence")}
    about |= {name: value for name, value in given.items() if value}
    submitter.submit(
        Path(options.run),
        options.model,
        options.out,
        about,
        paper.load(PUBLISHED),
        options.selection,
    )
    print(f"{options.out}: written and checked; recompute it with make check-leaderboard DATA=...")
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("check", help="check every entry")
    one.add_argument("--data", default="", help="folder with glue/<task>/<split>.parquet")
    one.add_argument("--folder", type=Path, default=Path("leaderboard"))
    two = actions.add_parser("submit", help="make an entry from finished records")
    two.add_argument("--run", default="", help="runs/<profile>")
    two.add_argument("--model", default="", help="registry name")
    two.add_argument("--out", type=Path, required=True, help="leaderboard/<name>")
    two.add_argument("--about", default="", help="YAML file with what the run cannot know")
    two.add_argument("--title", default="", help="the model's name as shown")
    two.add_argument("--link", default="", help="https:// address of the model or its code")
    two.add_argument("--authors", nargs="*", help="one argument each")
    two.add_argument("--licence", default="", help="of the weights")
    two.add_argument("--selection", default="median", choices=("median", "best"))
    options = parser.parse_args()
    return {"check": check, "submit": submit}[options.action](options)


if __name__ == "__main__":
    run_main(main)
