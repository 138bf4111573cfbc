"""README: its length, its snippets and the commands in it, in the results and in the configs' docstrings."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from edgesafe_jax.reporting import results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
RESULTS = results.read_results(ROOT / "configs" / "results")
# What makes a snippet small enough for a test.
SMALLER = {
    "num_steps=150": "num_steps=2",
    "(200, ": "(100, ",
    "arange(200)": "arange(100)",
    "2000": "1000",
    "fit_world_model(0, data, ": "fit_world_model(0, data, dynamics.WorldModelSettings(ensemble="
    "dynamics.EnsembleSettings(num_members=2, num_elites=2, hidden=(16,), num_epochs=6, batch_size=50)), ",
}


def commands():
    """Every `python -m launch...` of README, of the results and of the configs' docstrings, with where it is from."""
    texts = {"README.md": README} | {f"{name}.json": result.command for name, result in RESULTS.items()}
    texts |= {path.name: ast.get_docstring(ast.parse(path.read_text())) for path in (ROOT / "configs").glob("*.py")}
    for source, text in texts.items():
        joined = re.sub(r"\n {4,}(?=--)", " ", text)  # a command that goes on in the next line
        for line in dict.fromkeys(re.findall(r"python -m launch\.[^\n`]*", joined)):
            yield pytest.param(line, id=f"{source}: {line[:80]}")


def test_readme_has_at_most_1200_words():
    assert len(README.split()) <= 1200


def test_readme_shows_the_picture_and_points_to_all_results():
    picture = ROOT / re.search(r"!\[[^]]*\]\(([^)]+)\)", README).group(1)
    assert picture.stat().st_size < 300_000
    assert "](configs/RESULTS.md)" in README
    assert len(SNIPPETS) == 4  # one for each method


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_names_and_arguments_of_a_snippet_exist(snippet):
    tree = ast.parse(snippet)
    known = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = getattr(module, alias.name)

    def value_of(node):
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute) and inspect.ismodule(owner := value_of(node.value)):
            return getattr(owner, node.attr)
        return None

    checked = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            value_of(node)
        function = value_of(node.func) if isinstance(node, ast.Call) else None
        if function is not None and (getattr(function, "__module__", None) or "").startswith("edgesafe_jax"):
            given = {keyword.arg: None for keyword in node.keywords}
            bind = inspect.signature(function).bind_partial if None in given else inspect.signature(function).bind
            given.pop(None, None)  # keywords that come from a mapping
            bind(*node.args, **given)
            checked += 1
    assert checked


@pytest.mark.parametrize("name", [pytest.param("planning", marks=pytest.mark.assets), "dynamics"])
def test_a_snippet_runs(name, capsys):
    (snippet,) = [each for each in SNIPPETS if f"from edgesafe_jax import {name}\n" in each]
    for text, smaller in SMALLER.items():
        snippet = snippet.replace(text, smaller)
    exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "nan" not in printed
    if name == "dynamics":
        assert ast.literal_eval(printed)["rejected"] < 0.1  # a shift is a symmetry of this world


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_names_a_launcher_flags_and_config_fields_that_exist(command):
    module, *arguments = shlex.split(command.partition("[")[0].partition("  #")[0].removeprefix("python -m "))
    launcher = importlib.import_module(module)
    before = set(flags.FLAGS)
    launcher.define_flags()
    known = set(flags.FLAGS) - before
    for name in known:
        delattr(flags.FLAGS, name)
    config = None
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            continue
        if name == "config":
            file, _, variant = value.partition(":")
            stem = Path(file).stem
            assert (ROOT / file).is_file()
            config = importlib.import_module(f"configs.{stem}").get_config(variant)
        elif name.startswith("config."):
            field = config
            for part in name.split(".")[1:]:
                assert part in field, f"no field {name}"
                field = field[part]
        else:
            assert name in known | {"config"}, f"no flag --{name}"
