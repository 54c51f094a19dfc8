"""Writes a pre-trained model of a run as a folder ready for the Hugging Face Hub.

`make export RUN=runs/tiny MODEL=electra` calls it.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.base import files
from helpers.base.errors import UserError, run_main
from helpers.study import export


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of the run: runs/tiny")
    parser.add_argument("--model", default="", help="name in the registry; else every model")
    parser.add_argument("--out", default="", help="folder to write into; else <run>/export")
    options = parser.parse_args()
    run = files.resolve(options.run)
    out = files.resolve(options.out) if options.out else run / "export"
    done = sorted(path.parent.name for path in (run / "models").glob("*/manifest.json"))
    if not done:
        raise UserError(f"--run {options.run}: no finished model there")
    for model in [options.model] if options.model else done:
        print(os.path.relpath(export.export(run, model, out / model)))
    return 0


if __name__ == "__main__":
    run_main(main)
