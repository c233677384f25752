"""What people read first: links that lead somewhere, commands that exist, cells that run."""

import json
import re
from pathlib import Path

import pytest

from tclip.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs/borrow_the_op.ipynb"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    absent = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert absent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    text = page.read_text()
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    named = re.findall(r"(?m)^tclip ([a-z_]+)", shell) + re.findall(r"-m launch\.([a-z_]+)", text)
    assert set(named) <= set(COMMANDS)
    files = re.findall(r"configs/(\w+)\.py", text)
    recipes = [name for name in files if not (ROOT / "configs" / f"{name}.py").is_file()]
    assert recipes == []


def test_the_notebook_runs(capsys):
    namespace: dict = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), namespace)
    first, last = map(float, re.search(r"loss (\S+) -> (\S+)", capsys.readouterr().out).groups())
    assert last < first / 2
