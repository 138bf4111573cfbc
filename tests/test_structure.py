"""The limits that keep the code readable: thin launchers, short functions and files, few parameters."""

import ast
from pathlib import Path

import pytest

from edgesafe_jax import fields
from launch import config_module, config_names

ROOT = Path(__file__).resolve().parent.parent
LAUNCH_LINES, LAUNCH_FILE_LINES, FILE_LINES, FUNCTION_LINES, NUM_PARAMETERS = 2000, 250, 600, 80, 10
LIBRARY = sorted((ROOT / "edgesafe_jax").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree):
    """Numbers of the lines that docstrings take."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node) is not None:
            found |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def long_functions(source, limit=FUNCTION_LINES):
    """Functions with more lines of code than allowed; docstrings, comments and blank lines do not count."""
    tree, lines = ast.parse(source), source.splitlines()
    skipped = docstring_lines(tree) | {
        number for number, line in enumerate(lines, 1) if not line.strip() or line.strip().startswith("#")
    }
    return [
        f"{node.name}: {count} lines"
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
        and (count := len(set(range(node.lineno, node.end_lineno + 1)) - skipped)) > limit
    ]


def wide_functions(source, limit=NUM_PARAMETERS):
    """Public functions with more parameters than allowed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            if count > limit:
                found.append(f"{node.name}: {count} parameters")
    return found


def test_launchers_are_thin():
    sizes = {path.name: len(path.read_text().splitlines()) for path in LAUNCH}
    assert sum(sizes.values()) <= LAUNCH_LINES, sizes
    assert not {name: size for name, size in sizes.items() if size > LAUNCH_FILE_LINES}


@pytest.mark.parametrize("path", [*LIBRARY, *LAUNCH, *CONFIGS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES or "This file is long" in (ast.get_docstring(ast.parse(source)) or "")
    assert not long_functions(source)
    assert not wide_functions(source)


def test_the_limits_are_noticed():
    body = "\n".join(f"    x = {n}" for n in range(3))
    source = f'def f(a, b):\n    """Doc.\n\n    More.\n    """\n    # comment\n\n{body}\n'
    assert long_functions(source, 3) == ["f: 4 lines"]
    assert not long_functions(source, 4)
    assert wide_functions(source, 1) == ["f: 2 parameters"]
    assert not wide_functions("def _f(a, b): ...\nclass A:\n    def g(self, a): ...", 1)


@pytest.mark.parametrize("name", config_names())
def test_every_field_of_a_config_is_declared(name):
    module = config_module(name)
    variants = [*getattr(module, "VARIANTS", getattr(module, "STUDIES", {})), "runlocal"]
    for config in (module.get_config(), *map(module.get_config, variants)):
        fields.check_fields(config.to_dict())  # a new field is a line of edgesafe_jax/fields
