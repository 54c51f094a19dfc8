"""Packs a study for a GPU machine without a network, and the script that runs it there.

    scripts/offline.py --profile minutes --data data --to parcel --wheels 3.12
    bash parcel/start.sh /tmp/study out --minutes 9        # on the other machine

Data and tokenizers are made here, so that no minute of the GPU goes by for them. The parcel holds
the code of HEAD, the tasks, the tokenizers and the packed corpus, a third smaller, and, with
`--wheels`, what papermill and the metrics need beside torch, transformers, pandas and scikit-learn.
There, `start.sh` unpacks it, runs scripts/one_gpu.py and copies records, logs and notebooks to its
second argument every 15 seconds, so that a call that is cut loses little. Run again in the same
folder it goes on.
"""

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import relay
import yaml

from helpers import config, files
from helpers.config import Profile

ROOT = relay.ROOT
LEFT = ("data/corpus/*.parquet", "tokenizer/*/tokens.bin")  # of a run; the second goes by itself
TAKEN = ("data/**/*", "tokenizer/**/*", "notebooks/0[12]_*.ipynb")
# Tokens are pairs of bytes; xz then looks for its contexts in pairs.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]
WHEELS = (
    *("papermill", "nbclient", "nbformat", "jupyter-client", "jupyter-core", "ipykernel"),
    *("ipython", "traitlets", "tornado", "pyzmq", "comm", "matplotlib-inline", "prompt-toolkit"),
    *("wcwidth", "pexpect", "ptyprocess", "stack-data", "asttokens", "executing", "pure-eval"),
    *("ipython-pygments-lexers", "nest-asyncio2", "jsonschema", "jsonschema-specifications"),
    *("referencing", "rpds-py", "fastjsonschema", "platformdirs", "tenacity", "entrypoints"),
    *("parso", "datasets", "evaluate", "dill", "multiprocess", "pydantic", "pydantic-core"),
    *("annotated-types", "typing-inspection", "tzdata"),
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17")

START = """\
# Usage: bash start.sh <folder to work in> <folder for records> [options of scripts/one_gpu.py]
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" "$2" && work=$(cd "$1" && pwd) && out=$(cd "$2" && pwd) && shift 2
if [ ! -f "$work/unpacked" ]; then
  tar xf "$here/code.tar" -C "$work"
  mkdir -p "$work/code/runs" && tar xJf "$here/run.tar.xz" -C "$work/code/runs"
  for packed in "$here"/tokens-*.xz; do
    kind=$(basename "$packed" .xz) && kind=${kind#tokens-}
    xz -dc "$packed" > "$work/code/runs/@NAME@/tokenizer/$kind/tokens.bin"
  done
  if [ -f "$here/site.tar.xz" ]; then tar xJf "$here/site.tar.xz" -C "$work"; fi
  touch "$work/unpacked"
fi
if [ -d "$work/site" ]; then
  export PYTHONPATH="$work/site" JUPYTER_PATH="$work/site/share/jupyter"
fi
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
run="$work/code/runs/@NAME@"
keep() {
  (cd "$run" && find . ! -name '.*' \\( -path './models/*/manifest.json' \\
    -o -path './models/*/log.csv' \\
    -o -path '*notebooks/*.ipynb' -o -path '*records/*/seed-*' \\) -type f -print0 |
    tar czf "$out/records.$1" --null -T - && mv "$out/records.$1" "$out/records.tgz")
}
(while sleep 15; do keep part || true; done) &
keeper=$!
trap 'kill $keeper 2>/dev/null || true' EXIT
cd "$work/code"
status=0
"${PYTHON:-python3}" scripts/one_gpu.py --profile "$run/profile.yaml" --made "$@" || status=$?
kill $keeper && wait $keeper 2>/dev/null || true
keep last || true
exit $status
"""


def make(profile: Profile) -> None:
    """Runs data and tokenizer stages.

    Raises:
        UserError: When one fails; its own line stands above.
    """
    for job in relay.order(profile):
        executed = profile.folder / "notebooks" / f"{job.name}.ipynb"
        if job.stage <= "02_tokenizer" and relay.execute(job, executed):
            raise config.UserError(f"{job.name}: failed; what it said stands above")


def pack(profile: Profile, out: Path) -> None:
    """Writes code, run and tokens to `out`.

    Args:
        profile: The study; its data and tokenizers are made.
        out: The parcel.
    """
    with tempfile.TemporaryDirectory() as name:
        code = Path(name) / "code"
        subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{ROOT}", str(code)], check=True)
        with files.replacing(out / "code.tar") as made, tarfile.open(made, "w") as archive:
            archive.add(code, "code")
        own = Path(name) / profile.profile
        left = {path for pattern in LEFT for path in profile.folder.glob(pattern)}
        for part in TAKEN:
            for path in sorted(profile.folder.glob(part)):
                if path.is_file() and path not in left:
                    target = own / path.relative_to(profile.folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
        # There data is not looked at again, but a study asks which tasks there are.
        there = {"runs": "runs"}
        if profile.source == "folder":
            there["data"] = f"runs/{profile.profile}/data"
        files.write_text(own / "profile.yaml", yaml.safe_dump(profile.model_dump() | there))
        _compress(own, out / "run.tar.xz")
    for path in sorted(profile.folder.glob(LEFT[1])):
        with files.replacing(out / f"tokens-{path.parent.name}.xz") as made:
            made.write_bytes(lzma.compress(path.read_bytes(), filters=FILTERS))
    files.write_text(out / "start.sh", START.replace("@NAME@", profile.profile))


def wheels(out: Path, python: str) -> None:
    """Downloads what `WHEELS` names, in the versions that are installed here, and packs it.

    Args:
        out: The parcel.
        python: Version of the other machine's Python, such as ``3.12``; Linux on x86-64.

    Raises:
        UserError: When pip finds no such wheel.
    """
    from importlib.metadata import version

    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={python}", "--implementation=cp"]
    command += [f"--platform={name}_x86_64" for name in PLATFORMS]
    command += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    with tempfile.TemporaryDirectory() as name:
        wanted = [f"{package}=={version(package)}" for package in WHEELS]
        done = subprocess.run([*command, f"--dest={name}", *wanted], check=False)
        if done.returncode:
            raise config.UserError(f"--wheels {python}: pip found not all; its lines stand above")
        site = Path(name) / "site"
        for wheel in sorted(Path(name).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        kernel = {"argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
        kernel |= {"display_name": "Python 3", "language": "python"}
        files.write_json(site / "share" / "jupyter" / "kernels" / "python3" / "kernel.json", kernel)
        _compress(site, out / "site.tar.xz")


def _compress(folder: Path, out: Path) -> None:
    with files.replacing(out) as made, tarfile.open(made, "w:xz", preset=6) as archive:
        archive.add(folder, folder.name)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="minutes", help="name in profiles/, or a .yaml file")
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/")
    parser.add_argument("--steps", type=int, help="of pre-training: the budget of each model")
    parser.add_argument("--to", type=Path, required=True, help="folder for the parcel")
    parser.add_argument("--wheels", default="", help="Python of the other machine, such as 3.12")
    options = parser.parse_args()
    if options.wheels and not re.fullmatch(r"3\.\d+", options.wheels):
        raise config.UserError(f"--wheels {options.wheels}: must be a version such as 3.12")
    profile = config.load_profile(
        options.profile, data=options.data, pretrain_steps=options.steps, threads=1
    )
    options.to.mkdir(parents=True, exist_ok=True)
    with files.holding(profile.folder):
        make(profile)
        pack(profile, options.to)
    if options.wheels:
        wheels(options.to, options.wheels)
    size = sum(path.stat().st_size for path in options.to.iterdir())
    print(f"{options.to}: {size / 2**20:.1f} MiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    config.run_main(main)
