"""The book without a grid: of an unfinished run, or of a run that was kept in the repository.

Kept in ``results/measured/<profile>`` are records, predictions, tables, loss logs and one executed
notebook a stage, as JSON that no formatter takes for a source. `small-bench verify` goes back from
there to every figure. Nothing here trains anything.
"""

import os
import shutil
from pathlib import Path

from helpers.base import config, files
from helpers.base.config import Profile
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.pages import build, comparisons
from helpers.pages import tables as tables_of
from helpers.pages import view as page_view
from helpers.study import grid, jobs, notebook
from helpers.train import records

ROOT = Path(__file__).resolve().parents[2]
RUNS = "runs"  # where `site` builds, in a folder of its own


def report(profile: Profile) -> int:
    """Builds the book from what is finished, marks what is missing.

    It is built in ``runs/reports/<profile>``: the run's own tables and pages stay as they are.
    """
    if not jobs.finished_cells(profile):
        raise UserError(
            f"{os.path.relpath(profile.folder)}: no fine-tuning is finished, so there is nothing "
            "to report; small-bench status says how far each job has come"
        )
    found = jobs.survey(profile)
    missing = jobs.missing(found)
    runs = Path(profile.runs) / "reports"
    view = files.resolve(runs) / profile.profile
    with files.lock(view):
        places = [
            "data",
            "tokenizer",
            *(f"records/{model}/{task}" for model, task in _cells(profile)),
        ]
        shutil.rmtree(view / "records", ignore_errors=True)  # links to what is finished
        _link(profile.folder, view, [*places, *_logs(profile.folder)])
        grid.write_run(view, profile, missing=missing)
        given = profile.stage(config.Analysis) | {"runs": str(runs)}
        if build.build(view, [*_shown(found).values(), *_analyse(view, given)], partial=True):
            return 1
        if missing:
            states = ", ".join(f"{name} ({state})" for name, state in missing.items())
            print(f"not finished: {states}")
        grid.print_result(view)
    return 0


def _cells(profile: Profile) -> list[tuple[str, str]]:
    """The cells whose fine-tunings are finished, then those of the floors that are there."""
    floors = [(name, task) for name in records.FLOORS for task in profile.tasks]
    there = [cell for cell in floors if records.folder(profile.folder, *cell).is_dir()]
    return [*jobs.finished_cells(profile), *there]


def _logs(folder: Path) -> list[str]:
    """What a page reads of a run's models: logs, manifests and, where there are any, encoders."""
    names = ("log.csv", "manifest.json", "encoder")
    found = [path for name in names for path in folder.glob(f"models/*/{name}")]
    return [str(path.relative_to(folder)) for path in sorted(found)]


def _link(folder: Path, view: Path, places: list[str]) -> None:
    """Gives `view` these files and folders of a run."""
    for place in places:
        link = view / place
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath((folder / place).resolve(), link.parent.resolve()))


def _analyse(view: Path, parameters: dict[str, object]) -> list[Path]:
    """Executes the two notebooks that need no training: the tables and the audit."""
    places = [notebook.executed(view, stage) for stage in jobs.AFTER]
    for place, given in zip(places, (parameters, {}), strict=True):
        notebook.execute(ROOT / "notebooks" / place.name, place, given)
    return places


def _shown(found: dict[jobs.Job, jobs.State]) -> dict[str, Path]:
    """One executed notebook of each stage that has one: of the shown model where there is."""
    done = [
        job
        for job, state in found.items()
        if job.stage not in jobs.AFTER and state.state == "done"
        if job.notebook.exists() and not notebook.failure(job.notebook)
    ]
    return {stage: job.notebook for stage, job in jobs.shown(found, done).items()}


def keep(profile: Profile, remark: str) -> int:
    """Copies what is small of a finished run to ``results/measured/<profile>``, with a `remark`."""
    found = _finished(profile)
    kept = ROOT / page_view.MEASURED / profile.profile
    with files.building(kept) as target:
        count = _keep(profile, found, target, remark)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"kept {count} records in {os.path.relpath(kept)}, {size / 1e6:.1f} MB in all")
    return 0


def _finished(profile: Profile) -> dict[jobs.Job, jobs.State]:
    """The jobs of a study, all of them done."""
    found = jobs.survey(profile)
    if missing := jobs.missing(found):
        names = ", ".join(f"{name} ({state})" for name, state in missing.items())
        raise UserError(f"{profile.profile}: only a finished run is kept; missing: {names}")
    return found


def _keep(profile: Profile, found: dict[jobs.Job, jobs.State], target: Path, remark: str) -> int:
    """Writes what is kept of a run; the number of its records."""
    for model, task in _cells(profile):
        source, cell = (records.folder(run, model, task) for run in (profile.folder, target))
        cell.mkdir(parents=True)
        for name in (files.MANIFEST, *files.read_manifest(source / files.MANIFEST)["files"]):
            shutil.copyfile(source / name, cell / name)
    for model in profile.models:
        log = Path("models", model, "log.csv")
        files.write_text(target / log, (profile.folder / log).read_text(encoding="utf-8"))
    frame = page_view.load_records(target / "records")
    whole = page_view.open_run(profile.folder, profile.models, profile.tasks)
    tables_of.write(whole, target)
    if (heads := profile.folder / tables_of.HEADS).exists():
        shutil.copyfile(heads, target / tables_of.HEADS)
    if not (shown := _shown(found)):
        raise UserError(f"{profile.profile}: has no executed notebook to keep")
    for stage, place in shown.items():
        text = build.clean(place).decode()
        for path in filter(os.path.isabs, (profile.data, profile.runs, profile.checkpoints)):
            text = text.replace(path, Path(path).name)
        files.write_text(target / "notebooks" / f"{stage}.json", text)
    # What a reader must know of it; paths of the machine it ran on are no part of that.
    about = profile.model_dump(exclude={"runs", "data", "checkpoints", "model", "tokenizer_kind"})
    hardware = {one["name"] for part in tables_of.PARTS for one in frame[part]}
    codes = [code for part in ("code", "pretrain_code") for code in frame[part] if code["commit"]]
    changed = {code["commit"] for code in codes if not code["clean"]}
    commits = {code["commit"] + " and changes" * (code["commit"] in changed) for code in codes}
    ran = [job.notebook for job in found if job.stage not in jobs.AFTER]
    data = files.read_json(profile.folder / "data" / "corpus" / files.MANIFEST)
    amount = f"{data['documents']:,} documents, {data['bytes'] / 1e9:.2g} GB"
    files.write_json(
        target / files.RUN,
        {
            "finished": max(notebook.papermill_facts(one).get("end_time") or "" for one in ran),
            "hardware": sorted(hardware),
            "commits": sorted(commits),
            "corpus": f"{data['name']}, {amount}",
            "description": data.get("description", {}),
            "labels": {
                task: glue.digest_dev(glue.load_dev(profile.folder, task)) for task in whole.present
            },
            "held_out": whole.held_out,
            "remark": remark,
            "tokens": int(frame["pretrain.tokens"].max()),
            "parameters": about,
        },
    )
    return len(frame)


def site(run: str) -> int:
    """Builds the published book from a kept run: the one named, or that of most tokens."""
    kept = page_view.kept_run(run)
    shown = files.read_json(kept / files.RUN)["parameters"]
    given = {"profile": "site", "runs": RUNS, "models": shown["models"], "tasks": shown["tasks"]}
    view = files.resolve(RUNS) / "site"
    if (view / "records").is_dir() and not (view / "records").is_symlink():
        raise UserError(f"{view}: holds a run of its own, a profile named site; rename that")
    with files.lock(view):
        tables = (comparisons.FILE, tables_of.HEADS)
        _link(kept, view, ["records", files.RUN, *tables, *_logs(kept)])
        stages = sorted((kept / "notebooks").glob("*.json"))
        if build.build(view, [*stages, *_analyse(view, given)], partial=True):
            return 1
    grid.print_result(view)
    return 0
