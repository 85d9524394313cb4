"""The documentation is executed: its Python runs, its commands parse, no command is missing."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest

import leuko
from leuko.cli import app
from leuko.data.synthetic import write_demo_set
from running_service import Service

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "compare", "train", "predict", "export", "audit", "clean", "pretrain", "demo", "fetch",
    "report", "doctor",
    "differential",
    "evaluate",
    "adapt",
    "serve",
)  # fmt: skip


ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    running = Service(tmp_path_factory.mktemp("service"), None)
    running.wait_until_ready()
    yield running
    running.stop()


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    counts = {"NEUTROPHIL": 6, "EOSINOPHIL": 4, "LYMPHOCYTE": 4, "MONOCYTE": 4, "BASOPHIL": 3}
    write_demo_set(tmp_path / "blood-cells", seed=2, counts=counts, pairs=0)
    if "second-laboratory/" in page.read_text("utf-8"):
        write_demo_set(tmp_path / "second-laboratory", seed=5, counts=counts, pairs=0)
    # Only the length of the training, the size of the pictures and the leak meter, which has tests
    # of its own, differ from what the page shows.
    from leuko import study

    quick = partial(study.compare, folds=2, epochs=1, views=1, size=64, leak_meter=False)
    monkeypatch.setattr(leuko, "compare", quick, raising=False)
    for code in blocks(page, "python"):
        if ADDRESS in code:
            service = request.getfixturevalue("service")
            code = code.replace(ADDRESS, service.url)
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page: Path):
    for block in blocks(page, ""):
        for line in block.splitlines():
            found = re.search(r"uv run leuko ([^#]*)", line)
            if found:
                app.parse_args(shlex.split(found[1]), exit_on_error=False, print_error=False)


def test_every_command_is_documented_and_every_documented_one_exists():
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert set(re.findall(r"^\| `leuko (\w+)", text, re.M)) == set(COMMANDS)
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


def test_every_file_that_is_linked_exists():
    for page in (*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_the_test_command_of_the_readme_is_what_ci_runs():
    command = re.search(r"## Tests\n\n```\n(.*)\n```", (ROOT / "README.md").read_text("utf-8"))
    assert command is not None
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == command[1]
