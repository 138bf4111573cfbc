"""What an installed package holds: one name at the top level, and the command `edgesafe`."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from launch import get_config

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed():
    found = {".".join(file.relative_to(ROOT).parent.parts) for file in (ROOT / "edgesafe_jax").rglob("__init__.py")}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == found | {"edgesafe_jax.configs", "edgesafe_jax.launch"}
    assert listed == sorted(listed)


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.stem)
def test_launchers_find_each_other_and_the_configs_under_either_name(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            assert name.split(".")[0] not in ("launch", "configs"), f"{name}: expected `from . import ...`"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The unpacked wheel, and an empty folder beside it that holds a user's own folder `configs`."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns("__pycache__", "results")
    for name in ("edgesafe_jax", "configs", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    (folder / "user" / "configs").mkdir(parents=True)
    return folder


def edgesafe(folder, *arguments):
    script = "import sys; sys.argv[0] = 'edgesafe'; from edgesafe_jax.launch.cli import run; run()"
    environment = os.environ | {"PYTHONPATH": str(folder / "site"), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-P", "-c", script, *arguments],
        cwd=folder / "user",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_wheel_takes_one_name_and_its_command_runs_a_config_elsewhere(installed):
    top = {path.name for path in (installed / "site").iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"edgesafe_jax"}
    entry_points = next((installed / "site").glob("*.dist-info/entry_points.txt")).read_text()
    assert "edgesafe = edgesafe_jax.launch.cli:run" in entry_points
    assert (installed / "site" / "edgesafe_jax" / "py.typed").exists()
    ran = edgesafe(
        installed,
        "plan",
        "--config=plan_icem:runlocal",
        "--workdir=run",
        "--config.num_steps=2",
        "--config.horizon=3",
    )
    assert ran.returncode == 0, ran.stderr
    assert (installed / "user" / "run" / "report.html").exists()


def test_the_command_lists_launchers_and_refuses_others(monkeypatch, capsys):
    from launch import cli

    monkeypatch.setattr(sys, "argv", ["edgesafe", "--help"])
    cli.run()
    usage = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in usage
        assert (ROOT / "launch" / f"{name}.py").exists()
    monkeypatch.setattr(sys, "argv", ["edgesafe", "trian"])
    with pytest.raises(SystemExit) as caught:
        cli.run()
    assert caught.value.code == 2
    assert "Did you mean 'train'" in capsys.readouterr().err


def test_scripts_of_clusters_are_whole():
    for name in ("slurm.sbatch", "tpu_pod.sh"):
        subprocess.run(["bash", "-n", ROOT / "launch" / name], check=True)
    jobs = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    [job] = jobs["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert set(env) == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}
    assert int(env["JAX_NUM_PROCESSES"]) == spec["parallelism"] == spec["completions"]
    assert env["JAX_COORDINATOR_ADDRESS"].startswith(f"{jobs['metadata']['name']}-{job['name']}-0-0.")
    name, _, variant = container["command"][2].removeprefix("--config=").partition(":")
    assert get_config(name, variant).task == "alignment"
