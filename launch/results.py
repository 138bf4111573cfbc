r"""Writes the page of measured results and README's table from the files of configs/results, or adds a run to them.

    python -m launch.results                             writes configs/RESULTS.md and the table in README.md
    python -m launch.results --check                     exits with status 1 if they disagree with the files
    python -m launch.results --add WORKDIR [--name NAME] makes configs/results/NAME.json of a finished run or benchmark
    python -m launch.results --picture                   draws configs/results/overview.png

Call `--add` on the machine and at the commit of the run. A file that exists keeps its title, notes and headlines.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from edgesafe_jax.reporting import results
from edgesafe_jax.reporting.overview import overview_picture
from edgesafe_jax.training import workdir as workdirs
from . import config_module, config_names, errors, plan, startup

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"alignment": "safety", "offline_rl": "offline_rl", "dynamics_equivariance": "dynamics"}
"""From task to part of the page; other tasks of `launch.train` are guards', those of `launch.plan` are planning's."""


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_bool("check", False, "Compare page and table with the files and write nothing.")
    flags.DEFINE_string("add", None, "Work directory of a finished run to make a results file of.")
    flags.DEFINE_string("name", None, "Name of the results file for --add; default that of the run's config.")
    flags.DEFINE_bool("picture", False, "Draw the picture of README.")


def _arguments(config: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the file of configs/ that a run's config came from, and the arguments that give the same run."""
    known = {}
    for stem in config_names():
        module = config_module(stem)
        if module.get_config().task == config.get("task"):
            known[f"{stem}.py"] = module.get_config().to_dict()
            for variant in re.findall(r"`:(\w+)`", module.__doc__ or ""):
                known[f"{stem}.py:{variant}"] = module.get_config(variant).to_dict()
    if not known:
        raise errors.ConfigError(f"config.task={config.get('task')!r}: expected the task of a file of configs/.")
    name, changes = workdirs.nearest_config(config, known)
    shown = [f"--config.{key}={tuple(value) if isinstance(value, list) else value}" for key, value in changes.items()]
    return name.partition(".py")[0], shlex.join([f"--config=configs/{name}", *shown])


def _add(workdir: str, name: str | None, folder: Path) -> Path:
    if benches := sorted(Path(workdir).glob("bench_*.json")):
        measured = results.benchmark_fields(benches[0], ROOT)
        path = folder / f"{name or benches[0].stem}.json"
        new = {"title": f"{path.stem}: a run of launch.bench", "room": "performance", "notes": measured.pop("notes")}
        return _write(path, new, measured)
    config, summary = workdirs.read_config(workdir), workdirs.read_summary(workdir)
    stem, arguments = _arguments(config)
    path = folder / f"{name or stem}.json"
    launcher, room = ("plan", "planning") if config["task"] in plan.TASKS else ("train", "guards")
    command = f"python -m launch.{launcher} {arguments} --workdir=DIR"
    measured = results.environment(ROOT) | {"command": command, "numbers": results.numbers_from_summary(summary)}
    new = {"title": f"{path.stem}: a run of configs/{stem}.py", "room": ROOMS.get(config["task"], room)}
    return _write(path, new, measured)


def _write(path: Path, new: Mapping[str, Any], measured: Mapping[str, Any]) -> Path:
    """A file that exists keeps what `new` has."""
    old = results.read_result(path) if path.exists() else None
    results.write_result(path, dataclasses.replace(old, **measured) if old else results.Result(**new, **measured))
    return path


def main(argv: list[str]) -> None:
    """Writes, checks, adds or draws."""
    startup.configure()
    with errors.reported():
        given = flags.FLAGS
        folder, readme = ROOT / "configs" / "results", ROOT / "README.md"
        if given.name is not None and not (given.add and re.fullmatch(r"[\w-]+", given.name)):
            raise errors.ConfigError(f"--name={given.name}: expected letters, digits, _ and -, beside --add=WORKDIR.")
        if given.add:
            print(f"wrote {_add(given.add, given.name, folder)}")
        found = results.read_results(folder)
        if given.picture:
            (folder / "overview.png").write_bytes(overview_picture(found))
        text = results.insert_table(readme.read_text(encoding="utf-8"), results.headline_table(found), str(readme))
        wanted = {folder.parent / "RESULTS.md": results.results_page(found), readme: text}
        stale = [path for path, new in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != new]
        for path in stale:
            print(f"{path} disagrees with {folder}" if given.check else f"wrote {path}")
            if not given.check:
                workdirs.write_text(path, wanted[path])
        if stale and given.check:
            sys.exit(1)


if __name__ == "__main__":
    errors.start(define_flags, main)
