"""Recomputes every score of a run from its predictions and every table from its records.

`make verify` calls it; `--schema` prints the JSON Schema of a record instead.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.base.errors import run_main
from helpers.pages import verify
from helpers.study import cli
from helpers.train import loop, records


def main() -> int:
    """Command line; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_options(parser)
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of a record")
    options = parser.parse_args()
    if options.schema:
        print(json.dumps(records.Record.model_json_schema(by_alias=True), indent=2))
        return 0
    loop.begin(1)
    profile, _ = cli.load(options)
    wrong = verify.verify_profile(profile)
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    if wrong:
        print(f"error: {len(wrong)} differences", file=sys.stderr)
        return 1
    count = sum(len(found) for found in records.vouched(profile.folder).values())
    print(f"{count} records hold; every score and every table follows from them")
    return 0


if __name__ == "__main__":
    run_main(main)
