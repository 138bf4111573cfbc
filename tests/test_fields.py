"""Every field of every config has a declaration, and what it does not allow is refused before anything is written."""

import copy
import math

import pytest

from edgesafe_jax import fields
from edgesafe_jax.errors import ConfigError, Range
from edgesafe_jax.fields.alignment import AdapterOption
from edgesafe_jax.fields.declared import AnyOf, Each, Free, Table, check_declared, check_value, leaves
from launch import config_module, config_names, sweep

NUMBERS = (math.inf, -math.inf, math.nan, -1, -1.5, 0, 1e20, 10**20, 10**400, "", "many", None)
UNBOUNDED = {"clip_norm": math.inf}
"""Fields for which a number that is not finite means something."""


def runlocal(name):
    return config_module(name).get_config("runlocal").to_dict()


def changed(config, name, value):
    config = copy.deepcopy(config)
    *folders, last = name.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    place[last] = value
    return config


def run(config, workdir):
    if config["task"] == "sweep":
        sweep.read_sweep(config)
    else:
        sweep.TASKS[config["task"]](config, workdir)


def allowed(field, value):
    try:
        check_value("field", field, value)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", config_names())
def test_values_out_of_range_are_refused_before_anything_is_written(name, tmp_path):
    config = runlocal(name)
    declared = fields.fields_of(config["task"])
    num_refused = 0
    for field, value in leaves(config, declared):
        free = isinstance(declared[field], Free) or field == "task"
        for wrong in (*NUMBERS, (), (math.nan,), {}, [[]], True):
            if free or allowed(declared[field], wrong):
                continue
            num_refused += 1
            with pytest.raises(ConfigError) as caught:
                run(changed(config, field, wrong), tmp_path / "run")
            assert f"config.{field}" in str(caught.value), (field, wrong)
        if isinstance(value, int | float) and not isinstance(value, bool) and not free:
            for wrong in (math.inf, math.nan, 1e20, 10**400, "", ()):
                assert not allowed(declared[field], wrong) or UNBOUNDED.get(field) == wrong, (field, wrong)
    assert num_refused > len(declared)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", config_names())
def test_freedoms_name_who_checks_instead(name):
    task = runlocal(name)["task"]
    for field, declared in fields.fields_of(task).items():
        while isinstance(declared, Each | Table):
            declared = declared.of
        if isinstance(declared, Free):
            assert field in ("objective_options", "changes", "axes", "levels", "factors")
            assert len(declared.checked_by) > 10


def test_options_of_every_objective_and_adapter_are_checked():
    config = runlocal("align_soft_prompt")
    for objective, options in config["objective_options"].items():
        for option, value in options.items():
            if isinstance(value, str):
                continue
            for wrong in (math.nan, math.inf, -2, 1e20):
                with pytest.raises(ConfigError, match=rf"objective_options\.{objective}\.{option}"):
                    run(changed(config, f"objective_options.{objective}.{option}", wrong), "never")
    for field, declared in fields.fields_of("alignment").items():
        if isinstance(declared, AdapterOption) and isinstance(declared.option.allowed, Range):
            assert not allowed(declared, math.inf)
            assert not allowed(declared, 1e20), field


@pytest.mark.parametrize("name", config_names())
def test_missing_and_unknown_fields_are_named(name):
    config = runlocal(name)
    with pytest.raises(ConfigError, match=r"config\.sede=0: there is no such field|config\.sede='0'"):
        fields.check_fields({**config, "sede": 0})
    field = next(key for key in config if key != "task")
    with pytest.raises(ConfigError, match=rf"config\.{field}.* is missing"):
        fields.check_fields({key: value for key, value in config.items() if key != field})


def test_a_part_of_a_config_and_an_unknown_task():
    config = runlocal("align_soft_prompt")
    fields.check_fields(changed(config, "num_steps", -1), below="evaluation")
    with pytest.raises(ConfigError, match=r"config\.evaluation\.attacks\.gcg=-2"):
        fields.check_fields(changed(config, "evaluation.attacks.gcg", -2), below="evaluation")
    with pytest.raises(ConfigError, match=r"config\.task='alinment'.*Did you mean 'alignment'"):
        fields.check_fields({**config, "task": "alinment"})


def test_one_of_several_declarations():
    depth = AnyOf((Range(0, 1, above=True), Range(1, 30, integer=True)), "a fraction or a layer")
    check_declared({"layers": (0.5, 1, 30)}, {"layers": Each(depth, least=1)})
    for wrong in ((), (0,), (1.5,), (31,), ("a",), 3, "ab"):
        with pytest.raises(ConfigError, match=r"config\.layers"):
            check_declared({"layers": wrong}, {"layers": Each(depth, least=1)})
