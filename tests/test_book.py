import re
import shutil
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from makers import (
    HARDWARE,
    MODELS,
    ROOT,
    TASKS,
    assert_stands_alone,
    command,
    executed_notebook,
    make_record,
    make_view,
    write_record,
)

from helpers.base import files
from helpers.base.errors import UserError
from helpers.pages import build, comparisons, view

STAGES = ["01_data", "02_tokenizer", "03_pretrain", "04_finetune", "05_analysis", "06_audit"]
NASTY = "<script>alert(1)</script> | *x* `y` [z](http://a) $q$ {{ r }}"
SUFFIX = {"02_tokenizer": "-wordpiece", "03_pretrain": "-deberta", "04_finetune": "-deberta"}


def toc_files(entry):
    """Every file a table of contents names."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            if key in ("file", "root"):
                yield value
            else:
                yield from toc_files(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from toc_files(value)


TOC = list(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def make_tables_and_notebooks(run):
    make_view(run)
    record = make_record("bert", "cola", 1, note=NASTY, hardware=HARDWARE | {"name": NASTY})
    write_record(run / "records", record)
    shown = view.open_run(run, MODELS, TASKS)
    view.save_facts(shown)
    files.write_json(
        run / comparisons.FILE, {"tasks": TASKS, "models": MODELS, "pairs": [], "without": {}}
    )
    paths = [run / "notebooks" / f"{stage}{SUFFIX.get(stage, '')}.ipynb" for stage in STAGES]
    for stage, path in zip(STAGES, paths, strict=True):
        executed_notebook(path, stage)
    return paths


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = command("-m", "helpers.pages.build", folder, *make_tables_and_notebooks(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(run):
    """Every built page by its place."""
    html = run / "book" / "html"
    return {
        path.relative_to(html).as_posix(): BeautifulSoup(path.read_bytes(), "html.parser")
        for path in html.rglob("*.html")
    }


# --- without a build


def test_a_missing_run_and_a_missing_or_doubled_stage_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none: no such run; `make book` makes runs/tiny"):
        build.build(tmp_path / "none", [])
    view.save_facts(make_view(tmp_path, models=["bert"], tasks=["cola"]))
    paths = [tmp_path / f"{stage}.ipynb" for stage in (*STAGES, "03_pretrain-bert")]
    for path in paths:
        executed_notebook(path, path.stem)
    with pytest.raises(UserError, match=r"no executed notebook .* the page notebooks/06_audit"):
        build.build(tmp_path, paths[:5])
    with pytest.raises(UserError, match=r"03_pretrain-bert\.ipynb: a second notebook for"):
        build.build(tmp_path, paths)


def test_pages_are_computed_again_where_a_record_or_a_fact_has_changed(tmp_path):
    shown = make_view(tmp_path, models=["bert"], tasks=["cola"])
    found = [build.inputs(tmp_path)]
    view.save_facts(shown)
    found.append(build.inputs(tmp_path))
    assert build.inputs(tmp_path) == found[-1]
    write_record(tmp_path / "records", make_record("bert", "cola", 0, score=1.0))
    found.append(build.inputs(tmp_path))
    assert len(set(found)) == 3


@pytest.mark.slow
def test_a_cell_that_fails_is_one_line(tmp_path, monkeypatch):
    """In a book of one page."""
    shown = make_view(tmp_path / "run", models=["bert"], tasks=["cola"])
    view.save_facts(shown)
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("*.md"))
    shutil.copy(ROOT / "_config.yml", tmp_path)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    head = re.match(r"---\n.*?---\n", (ROOT / "book" / "cost.md").read_text(), re.DOTALL)[0]
    (tmp_path / "book" / "index.md").write_text(
        f"{head}# A page\n\n```{{code-cell}} python\n1 / 0\n```\n"
    )
    monkeypatch.setattr(build, "ROOT", tmp_path)
    with pytest.raises(UserError) as error:
        build.build(tmp_path / "run", [])
    assert str(error.value) == "book/index.md: ZeroDivisionError: division by zero"


# --- one build


@pytest.mark.slow
def test_every_page_is_built_and_leads_to_files_alone(run, pages):
    assert {f"{entry}.html" for entry in TOC} <= set(pages)
    assert_stands_alone(run / "book" / "html")


@pytest.mark.slow
def test_equations_are_mathml(pages):
    counts = {"objectives": 4, "disentangled": 3, "glue": 3, "cost": 2}
    for name, count in counts.items():
        page = pages[f"book/{name}.html"]
        assert len(page.find_all("math", display="block")) == count
        assert len(page.select(".math-block .eqno")) == count
        drawn = "".join(tag.get_text() for tag in page.find_all("math"))
        assert not re.search(r"\\\w+", drawn)
    assert pages["book/objectives.html"].find("a", href="#equation-eq-mlm")
    assert pages["notebooks/01_data.html"].find("math")


@pytest.mark.slow
def test_launch_and_download_buttons_point_at_notebooks(run, pages):
    base = CONFIG["repository"]["url"].replace("https://github.com", "/github")
    start = f"https://colab.research.google.com{base}/blob/{CONFIG['repository']['branch']}/"
    for place, page in pages.items():
        found = [a["href"] for a in page.find_all("a", href=re.compile("^https://colab"))]
        if not place.startswith("notebooks/"):
            assert found == [], place
            continue
        target = place.replace(".html", ".ipynb")
        assert set(found) == {start + target}
        assert Path(target).stem in STAGES
        saved = page.find("a", class_="btn-download-source-button")["href"]
        assert (run / "book" / "html" / "notebooks" / saved).resolve().is_file()


@pytest.mark.slow
def test_text_from_records_is_text_on_the_pages(pages):
    page = pages["book/results.html"].article
    assert NASTY in " ".join(page.get_text().split())
    assert not page.select("script, td em, td math, caption em, a[href^='http://a']")


@pytest.mark.slow
def test_figures_lead_to_their_records(run, pages):
    page = pages["book/results.html"]
    targets = {tag["id"] for tag in page.find_all(id=re.compile("^records-"))}
    links = page.find_all("a", href=re.compile(r"results\.html#records-"))
    assert len(links) > len(MODELS) * len(TASKS)
    assert {link["href"].split("#")[1] for link in links} <= targets
    for link in page.find_all("a", string="JSON"):
        assert (run / "book" / "html" / "book" / link["href"]).resolve().is_file()


@pytest.mark.slow
def test_no_path_of_this_machine_is_in_the_book(run):
    for folder in ("source", "html"):
        for path in (run / "book" / folder).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert str(ROOT).encode() not in data, path
                assert str(run).encode() not in data, path


def test_the_readme_shows_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", text):
        assert (ROOT / target).exists(), target
