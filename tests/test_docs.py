"""Readers of the repository alone can follow every link, and decision records have one form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = ROOT / "docs" / "adr"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web" / "docs").glob("*.md")]
)
GALLERY = ROOT / "docs" / "images" / "gallery"
WAYS = ("classic", "Nodes-2.0")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken: list[str] = []
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_decision_records_are_numbered_and_listed_without_a_gap() -> None:
    index = (DECISIONS / "README.md").read_text("utf-8")
    records = sorted(DECISIONS.glob("0*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    assert re.findall(r"^\| \[\d+\]\((\S+)\)", index, flags=re.MULTILINE) == [
        record.name for record in records
    ]
    for number, record in enumerate(records, 1):
        text = record.read_text("utf-8")
        assert re.match(rf"# {number}\. .+\n\n- Status: .+\n- Version: .+\n", text), record.name
        headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
        assert [name for name in headings if name != "Alternatives"] == [
            "Context",
            "Decision",
            "Consequences",
        ], record.name


def test_code_names_decision_records_that_exist() -> None:
    names = {record.name[:4] for record in DECISIONS.glob("0*.md")}
    for file in ROOT.rglob("*.py"):
        if not any(part.startswith(".") for part in file.relative_to(ROOT).parts):
            named = set(re.findall(r"docs/adr/(\d{4})", file.read_text("utf-8")))
            assert named <= names, file


def test_every_page_is_on_the_map_or_on_the_list_of_its_folder() -> None:
    docs = ROOT / "docs"
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in docs.rglob("README.md")
        for link in LINK.findall(page.read_text("utf-8"))
    }
    left_out = set(docs.rglob("*.md")) - linked - {docs / "README.md"}
    assert {page.relative_to(ROOT).as_posix() for page in left_out} == set()


def test_the_gallery_shows_each_template_and_node_in_both_renderers() -> None:
    shown = LINK.findall((ROOT / "docs" / "gallery.md").read_text("utf-8"))
    templates = [
        file.stem.replace(" ", "-").replace(",", "")
        for file in (ROOT / "example_workflows").glob("*.json")
    ]
    nodes = [file.stem for file in (ROOT / "web" / "docs").glob("*.md")]
    wanted = [
        *(f"images/gallery/{name}-{way}.webp" for name in templates for way in WAYS),
        *(f"images/gallery/{name}.webp" for name in nodes),
        *(f"../web/docs/images/{name}.png" for name in nodes),
        "nodes.md",
    ]
    assert sorted(shown) == sorted(wanted)
    kept = {f"images/gallery/{file.name}" for file in GALLERY.iterdir()}
    assert kept <= set(shown), "pictures that no page shows"


def test_pages_and_forms_name_this_repository_only() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^Repository = "(.+)"$', project, flags=re.MULTILINE)
    assert found is not None
    forms = sorted((ROOT / ".github").rglob("*.yml"))
    for page in [*PAGES, *forms]:
        text = page.read_text("utf-8")
        ours = re.findall(r"https://github\.com/[\w-]+/image-refinery\S*", text)
        assert [url for url in ours if not url.startswith(found[1])] == [], page


@pytest.mark.parametrize("form", ["bug_report", "feature_request"])
def test_forms_for_issues_are_of_github_s_shape(form: str) -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text("utf-8")
    page = yaml.safe_load(text)
    assert page["name"] and page["description"]
    for field in page["body"]:
        assert field["type"] in ("markdown", "textarea", "input")
        assert field["attributes"].get("label") or field["type"] == "markdown"
