import ast
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "edgesafe_jax"

# The rooms of the package, lowest layer first. A room may import from lower layers, and from the
# rooms of its own layer that the next table names.
LAYERS = (
    {"typing", "errors"},
    {"losses", "metrics", "assets", "corpora"},
    {"models", "adapters", "dynamics", "planning"},
    {"processes", "parallel", "training", "reporting"},
    {"guards", "safety", "offline_rl"},
    {"benchmarks", "exporting", "fields", "sweeps"},
)
SAME_LAYER = {
    "corpora": {"assets"},
    "adapters": {"models"},
    "parallel": {"processes"},
    "training": {"parallel"},
    "safety": {"guards"},
    "benchmarks": {"exporting"},
}
NEVER_IN_THE_PACKAGE = {"torch", "tensorflow", "ml_collections", "launch", "configs", "tests"}
HEAVY = ("transformers", "matplotlib", "torch", "tensorflow", "tensorboardX", "brax", "mujoco")


def allowed_rooms(room):
    layer = next(i for i, rooms in enumerate(LAYERS) if room in rooms)
    lower = set().union(*LAYERS[:layer])
    return lower | SAME_LAYER.get(room, set()) | {room}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source, module, is_package):
    """Dotted names that a source imports anywhere in it, function bodies included."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            name = function.id if isinstance(function, ast.Name) else name
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                names.append(str(first.value))
    return names


def violations(source, module, is_package=False):
    """What is wrong with the imports of one module of the package, as sentences."""
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else None  # None: the front door, which may import all rooms.
    if room is not None and not any(room in rooms for rooms in LAYERS):
        return [f"{module}: the room {room!r} has no layer; add it to LAYERS"]
    found = []
    for name in imported_names(source, module, is_package):
        top, *rest = name.split(".")
        if top in NEVER_IN_THE_PACKAGE:
            found.append(f"{module} imports {name}, which the package never does")
        if top != PACKAGE or not rest or room is None or rest[0] == "__version__":
            continue
        target = rest[0]
        if not any(target in rooms for rooms in LAYERS):
            found.append(f"{module} imports {name}, which is not a room of the package")
        elif target not in allowed_rooms(room):
            found.append(f"{module} imports {name}: {room} may import {sorted(allowed_rooms(room))}")
    return found


def package_files():
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_imports_point_down():
    files = package_files()
    assert len(files) > 5
    found = []
    for path in files:
        found += violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_configs_import_ml_collections_alone():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        for name in imported_names(path.read_text(), module_name(path), False):
            assert name.split(".")[0] in {"ml_collections", "configs"}, f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edgesafe_jax.losses.gated", "from edgesafe_jax.models import decoder"),
        ("edgesafe_jax.losses.gated", "import edgesafe_jax.training.loop as loop"),
        ("edgesafe_jax.losses.gated", "from ..models.decoder import Decoder"),
        ("edgesafe_jax.losses.gated", "from .. import guards"),
        ("edgesafe_jax.losses.fused", "from edgesafe_jax import metrics"),
        ("edgesafe_jax.models.decoder", "def f():\n    from edgesafe_jax import adapters"),
        ("edgesafe_jax.models.decoder", "import importlib\nimportlib.import_module('torch')"),
        ("edgesafe_jax.models.decoder", "if True:\n    import torch.nn"),
        ("edgesafe_jax.planning.cem", "from edgesafe_jax.dynamics import ensemble"),
        ("edgesafe_jax.guards.probe", "from edgesafe_jax.safety import system"),
        ("edgesafe_jax.assets", "from edgesafe_jax.losses import forward_kl"),
        ("edgesafe_jax.training.loop", "from ml_collections import config_dict"),
        ("edgesafe_jax.training.loop", "import launch.train"),
        ("edgesafe_jax.typing", "from edgesafe_jax.losses import forward_kl"),
        ("edgesafe_jax.training.loop", "from edgesafe_jax import safety"),
        ("edgesafe_jax.errors", "from edgesafe_jax import metrics"),
        ("edgesafe_jax.unheard_of", ""),
        ("edgesafe_jax.training.loop", "from edgesafe_jax.unheard_of import f"),
    ],
)
def test_wrong_way_imports_are_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edgesafe_jax.losses.gated", "from edgesafe_jax.typing import Array"),
        ("edgesafe_jax.losses.gated", "from ._reduction import masked_mean"),
        ("edgesafe_jax.adapters.soft_prompt", "from edgesafe_jax.models.decoder import Decoder"),
        ("edgesafe_jax.safety.system", "from edgesafe_jax import adapters, guards, losses"),
        ("edgesafe_jax.safety.training", "import jax\nfrom edgesafe_jax import training, parallel"),
        ("edgesafe_jax", "from edgesafe_jax import losses, training"),
    ],
)
def test_right_way_imports_pass(module, source):
    assert violations(source, module, is_package=module == PACKAGE) == []


def test_import_is_light_and_has_no_side_effects():
    result = run_python(
        f"""
        import os, sys, threading
        import jax
        before = dict(os.environ), dict(jax.config.values), threading.active_count()
        import {PACKAGE}
        assert dict(os.environ) == before[0], "os.environ changed"
        assert dict(jax.config.values) == before[1], "jax config changed"
        assert threading.active_count() == before[2], "a thread was started"
        heavy = sorted(set({HEAVY!r}) & set(sys.modules))
        assert not heavy, f"imported {{heavy}}"
        """
    )
    assert result.returncode == 0, result.stderr


def test_no_module_touches_a_device_or_the_jax_config_at_import():
    # With a platform that does not exist, whatever initialises the backend raises.
    modules = [module_name(path) for path in package_files() if path.name != "__main__.py"]
    result = run_python(
        f"""
        import importlib, os
        os.environ["JAX_PLATFORMS"] = "no_such_platform"
        import jax
        before = dict(jax.config.values), os.environ.get("XLA_FLAGS")
        for module in {modules!r}:
            importlib.import_module(module)
            after = dict(jax.config.values), os.environ.get("XLA_FLAGS")
            assert after == before, f"{{module}} changed the jax config or XLA_FLAGS"
        try:
            jax.devices()
        except RuntimeError:
            pass
        else:
            raise AssertionError("this check checks nothing: the platform exists")
        """
    )
    assert result.returncode == 0, result.stderr
