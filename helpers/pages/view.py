"""What a page shows: one run's records beside the published figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from helpers.base import files, text
from helpers.base.errors import UserError
from helpers.score import statistics
from helpers.train import records as records_of

MEASURED = "results/measured"  # runs that are kept in the repository
VARIABLE = "SMALL_BENCH_RUN"
"""The environment variable that names the run a book is built for; set by the build."""
NOTE = "book/_note.html"
KEEP = "small-bench keep --profile ... makes one"
ASIDE = {
    *("profile", "runs", "data", "threads", "finetune_job", "world_words", "world_seed"),
    *("checkpoints", "checkpoint_steps", "checkpoint_minutes"),
    *("model", "tokenizer_kind"),
}
"""Parameters that say how a run is carried out, and nothing of its scores."""


@dataclass(frozen=True, eq=False)
class View:
    """One run as the pages and tables read it."""

    run: Path  # its folder
    records: pd.DataFrame  # one row per fine-tuning, of the models and tasks asked for
    published: dict[str, Any]  # results/published.json
    models: tuple[str, ...]  # rows asked for, in order; some may have no record
    tasks: tuple[str, ...]  # columns asked for, in order
    facts: dict[str, Any]  # ``run.json``: what else there is to say of the run
    floors: pd.DataFrame  # records of `records.FLOORS`; empty where there are none

    @cached_property
    def embedded(self) -> bool:
        """Whether the scores are on the embedded world, not on GLUE."""
        return bool((self.records["source"] == "embedded").all())

    def of(self, model: str | None = None, task: str | None = None) -> pd.DataFrame:
        """The records of a model or a floor, of a task by all models, or of a model's task."""
        found = self.floors if model in records_of.FLOORS else self.records
        found = found if model is None else found[found["model"] == model]
        return found if task is None else found[found["task"] == task]

    @cached_property
    def corpora(self) -> set[str]:
        """The hashes of the corpora that its models read."""
        return {hashes["corpus"] for hashes in self.records["hashes"]} - {""}

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the data folder says of itself (`corpus.Description`); empty where it does not."""
        made = files.find_manifest(self.run / "data" / "corpus") or {}
        return self.facts.get("description") or made.get("description") or {}

    @cached_property
    def held_out(self) -> dict[str, dict[str, float]]:
        """By model, what held-out documents say at the end of its pre-training."""
        if "held_out" in self.facts:
            return self.facts["held_out"]
        made = {name: files.find_manifest(self.run / "models" / name) for name in self.models}
        return {name: found["held_out"] for name, found in made.items() if found}

    @cached_property
    def logs(self) -> dict[str, pd.DataFrame]:
        """By model, the log of its pre-training, of those that have one."""
        places = {name: self.run / "models" / name / "log.csv" for name in self.models}
        found = {name: pd.read_csv(path) for name, path in places.items() if path.is_file()}
        return {name: log for name, log in found.items() if len(log)}

    @cached_property
    def rows(self) -> list[str]:
        """The models, then the floors that have a record."""
        return [*self.models, *(name for name in records_of.FLOORS if len(self.of(name)))]

    def over_seeds(self, model: str, tasks: Sequence[str]) -> statistics.Summary:
        """The mean of tasks over the seeds of a model or a floor."""
        return statistics.mean_of_tasks(self.of(model), model, tasks)

    def is_below_floor(self, model: str, tasks: Sequence[str]) -> bool:
        """Whether a model's mean of tasks, over seeds, is not above the bag of words."""
        floor = self.over_seeds(records_of.FLOORS[0], tasks)
        known = bool(floor.n) and model not in records_of.FLOORS
        return known and self.over_seeds(model, tasks).mean <= floor.mean

    @cached_property
    def present(self) -> list[str]:
        """The tasks that have a record, in the order asked for."""
        return [task for task in self.tasks if not self.of(task=task).empty]

    @cached_property
    def whole(self) -> list[str]:
        """The tasks whose records are all on GLUE's own splits, whole."""
        return [task for task in self.present if self.of(task=task)["complete"].all()]

    @property
    def headline(self) -> list[str]:
        """The tasks whose mean is a model's one number: the whole ones, else all that are here."""
        return self.whole or self.present

    def mark(self, tasks: Sequence[str]) -> str:
        """The sign of tasks, and of a mean over them, that are not all GLUE's own, whole."""
        here = set(tasks) & set(self.present)
        return "" if self.embedded or here <= set(self.whole) else " †"


def load_records(folder: Path) -> pd.DataFrame:
    """Reads every record below ``<run>/records`` that its manifests vouch for.

    One row per fine-tuning, sorted by model, task and seed. Columns are the fields of
    `records.Record`, those of its parts with a dot (``pretrain.tokens``); scores are metric x 100,
    times in seconds.
    """
    cells = sorted(path.parent for path in folder.glob("*/*/manifest.json"))
    models, tasks = ({cell.parts[place] for cell in cells} for place in (-2, -1))
    found = records_of.read_all(folder.parent, sorted(models), sorted(tasks))
    if not found:
        raise UserError(f"{folder}: no record; run notebooks/04_finetune.ipynb first")
    for record in found:
        for part in ("pretrain", "finetune"):
            record |= {f"{part}.{key}": value for key, value in record.pop(part).items()}
    return pd.DataFrame(found).sort_values(["model", "task", "seed"], ignore_index=True)


def select(records: pd.DataFrame, models: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """The records of the models and tasks asked for, of one profile and data source."""
    chosen = records[records["model"].isin(list(models)) & records["task"].isin(list(tasks))]
    if chosen.empty:
        raise UserError(f"no record of models {', '.join(models)} on tasks {', '.join(tasks)}")
    for field in ("profile", "source"):
        found = list(dict.fromkeys(chosen[field]))
        if len(found) > 1:
            raise UserError(f"records mix {field} {' and '.join(found)}: show one at a time")
    return chosen.reset_index(drop=True)


def open_run(run: Path, models: Sequence[str] = (), tasks: Sequence[str] = ()) -> View:
    """Reads a run; without `models` and `tasks`, those that its ``run.json`` names."""
    asked = {"models": list(models), "tasks": list(tasks)} if models and tasks else {}
    there = (run / files.RUN).exists() or not asked
    facts = files.read_json(run / files.RUN) if there else {}
    parameters = facts.get("parameters", {}) | asked
    every = load_records(run / "records")
    names = tuple(parameters["models"]), tuple(parameters["tasks"])
    records = select(every, *names)
    floors = every[every["model"].isin(records_of.FLOORS)].reset_index(drop=True)
    facts["parameters"] = parameters
    published = files.read_json(files.find("results/published.json"))
    return View(run, records, published, *names, facts, floors)


def save_facts(view: View) -> None:
    """Writes ``run.json``, where the run has none or one of other models and tasks."""
    place = view.run / files.RUN
    if not place.exists() or files.read_json(place) != view.facts:
        files.write_json(place, view.facts)


def current() -> View:
    """The run that the book is built for; by default the kept run whose models read most tokens."""
    wanted = os.environ.get(VARIABLE)
    return open_run(Path(wanted) if wanted else kept_run())


def budgets(run: View) -> list[View]:
    """The run, then those that are kept and differ from it in the budget of pre-training alone."""
    aside = ASIDE | {"pretrain_steps", "models", "tasks", "seeds"}
    ours, found = run.facts["parameters"], [run]
    if "pretrain_steps" not in ours:  # notebooks alone: nothing says how they were made
        return found
    for path in sorted(files.find(MEASURED).glob("*/run.json")):
        theirs = files.read_json(path)["parameters"]
        same = all(ours[key] == theirs[key] for key in (ours.keys() & theirs.keys()) - aside)
        if same and theirs.get("pretrain_steps") != ours.get("pretrain_steps"):
            other = open_run(path.parent)
            found += [other] if other.corpora & run.corpora else []
    return found


def note(view: View, executed: bool = True, foot: bool = False) -> text.Html:
    """What a reader must know of a run before its figures, by ``book/_note.html``; may be empty.

    At the `foot` of a page it is where the figures come from.
    """
    template = jinja2.Environment(autoescape=True).from_string(
        files.find(NOTE).read_text(encoding="utf-8")
    )
    tokens = text.quantity(view.facts.get("tokens", 0))
    state = {"embedded": view.embedded, "executed": executed, "foot": foot}
    shown = template.render(view.facts, tokens=tokens, **state)
    return text.Html(Markup(" ".join(shown.split())))


def inline(**values: Any) -> None:  # noqa: ANN401
    """Gives values to a page's sentences: ``{glue:text}`name:.2f``` prints a number.

    A table, a figure or an `Html` stands where ``{glue}`` names it, in any box of the page.
    """
    from myst_nb import glue as paste

    for name, value in values.items():
        paste(name, float(value) if hasattr(value, "__float__") else value, display=False)


def kept_runs() -> list[Path]:
    """The runs in ``results/measured``."""
    kept = sorted(path.parent for path in files.find(MEASURED).glob("[!.]*/run.json"))
    if not kept:
        raise UserError(f"results/measured: no run is kept; {KEEP}")
    return kept


def kept_run(wanted: str = "") -> Path:
    """The run named, of those in ``results/measured``, or the last that read most tokens."""
    kept = kept_runs()
    if wanted:
        kept = [path for path in kept if path.resolve() == files.resolve(wanted).resolve()]
        if not kept:
            raise UserError(f"run = {wanted!r}: no run is kept there; {KEEP}")
    facts = {path: files.read_json(path / files.RUN) for path in kept}
    return max(kept, key=lambda path: (facts[path]["tokens"], facts[path].get("finished", "")))
