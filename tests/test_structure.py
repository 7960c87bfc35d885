"""The rules of the tree in CONTRIBUTING.md: which way data flows, what is shipped, what needs no torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spi_diffusers"
#: From top to bottom, as CONTRIBUTING.md lists them: nothing imports what stands below it.
TREE = re.findall(r"^  (\w+)(?:/|\.py) ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
#: Imports against the flow, each inside a function, with the reason.
ALLOWED = {("pipelines/hub_policy.py", "hub"): "push_to_hub is diffusers' name for what hub/ does"}


def imported(file: Path, *, anywhere: bool) -> set[str]:
    """Modules of this package that a file imports; without `anywhere` only those at its top."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / (inner.replace(".", "/") + ".py")).exists()
                is_package = (ROOT / inner.replace(".", "/")).is_dir()
                names.add(inner if is_module or is_package else node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("spi_diffusers.")}


def test_the_tree_is_the_one_that_contributing_shows():
    there = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert set(TREE) == there - {"__main__"}


def test_data_flows_from_top_to_bottom():
    against = set()
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE)
        here = place.parts[0].removesuffix(".py")
        if here in ("__init__", "__main__"):
            continue
        for name in imported(file, anywhere=True):
            there = (*name.split("."), "")[1]
            if there in TREE and TREE.index(there) > TREE.index(here):
                against.add((place.as_posix(), there))
    assert against == set(ALLOWED)


def test_modules_import_each_other_in_no_circle():
    files = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    imports = {name.removesuffix(".__init__"): imported(file, anywhere=False) for file, name in files.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in sorted(imports.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in imports:
        visit(name, ())


def test_shipped_files_need_nothing_of_this_package(tmp_path):
    from spi_diffusers.pipelines.saving import pipeline_code

    shipped = ["noise_model", "critics", "normalizer", "evaluation_critic", "student"]
    models = PACKAGE / "models"
    (tmp_path / "pipeline.py").write_bytes(pipeline_code())
    for file in [tmp_path / "pipeline.py", *(models / f"{name}.py" for name in shipped)]:
        text = file.read_text(encoding="utf-8")
        assert imported(file, anywhere=True) == set(), file
        assert not re.search(r"^\s*from \.", text, re.M), file


@pytest.mark.parametrize(
    "statement",
    [
        "import spi_diffusers",
        "import spi_diffusers.cli",
        "from spi_diffusers.config.layers import make_train_config as m; m({'task': 'ballcircle'})",
        "from spi_diffusers.data.tasks import TASKS",
        "from spi_diffusers.evaluation.results import read_results",
        "from spi_diffusers.evaluation.summary import summarize_seeds",
        "from spi_diffusers.pipelines import SafeController",
        "import spi_diffusers.runtime",
    ],
)
def test_neither_torch_nor_diffusers_is_imported(statement):
    code = f"import sys; {statement}; print(*({{'torch', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
