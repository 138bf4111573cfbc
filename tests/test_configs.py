"""Every experiment: what it imports, that it says how it is run, and that something runs it."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import ml_collections
import pytest

from launch import plan, sweep

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py")


def load(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_configs():
    assert {"align_soft_prompt", "guard_probe", "guard_judge"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_imports_ml_collections_alone(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." if node.level else (node.module or "").split(".")[0])
    assert imported == {"ml_collections"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_says_the_command_that_runs_it(path):
    module = load(path)
    task = module.get_config().task
    launcher = "sweep" if task == "sweep" else "plan" if task in plan.TASKS else "train"
    assert re.search(rf"python -m launch\.{launcher} --config=configs/{path.name}(:\w+)? --workdir=", module.__doc__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_says_cost_and_expected_numbers_in_at_most_thirty_lines(path):
    text = load(path).__doc__
    assert len(text.splitlines()) <= 30
    assert "Cost:" in text or "processor time" in text
    assert "xpected" in text
    heading = re.search(r'configs/RESULTS\.md,? under\s"([^"]+)"', text).group(1)
    assert f"\n## {heading}\n" in (ROOT / "configs" / "RESULTS.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_has_a_full_and_a_small_variant(path):
    get_config = load(path).get_config
    full, small = get_config(), get_config("runlocal")
    assert isinstance(full, ml_collections.ConfigDict)
    assert full.task in {*sweep.TASKS, "sweep"}
    assert small.task == full.task
    assert set(small) == set(full)
    assert small.to_dict() != full.to_dict()
    assert get_config().to_dict() == full.to_dict()
    json.dumps(full.to_dict())  # as it is kept in the work directory


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_that_a_config_names_exists_and_others_are_refused(path):
    module = load(path)
    for variant in re.findall(rf"{path.stem}\.py:(\w+)|`:(\w+)`", module.__doc__):
        module.get_config("".join(variant))
    with pytest.raises(ValueError, match=r"'cooking'.*runlocal"):
        module.get_config("cooking")
