"""An evaluation described by a plain mapping."""

import pytest

from configs import align_soft_prompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.safety import requested

CONFIG = align_soft_prompt.get_config("runlocal").to_dict()


def test_fields_are_changed_in_a_copy():
    found = requested.changed(CONFIG, ["split=final", "attacks.gcg=8", "strongreject=-1", "judges=refused,teacher"])
    assert CONFIG["evaluation"]["split"] == "selection"
    assert CONFIG["evaluation"]["attacks"]["gcg"] == 0
    settings = requested.evaluation_settings(found)
    assert settings.attacks["gcg"] == 8
    assert requested.data_split(found).half == "final"
    assert found["evaluation"]["strongreject"] == -1
    assert found["evaluation"]["judges"] == ("refused", "teacher")
    assert requested.changed(CONFIG, ["files=xstest=a.csv"])["evaluation"]["files"] == "xstest=a.csv"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("split", "expected NAME=VALUE"),
        ("splitt=final", "Did you mean 'split'"),
        ("attacks.gc=3", "Did you mean 'gcg'"),
        ("attacks=3", "has the fields .*prefill"),
        ("plain=many", "expected a whole number"),
    ],
)
def test_a_field_that_cannot_be_meant_is_an_error(field, message):
    with pytest.raises(ConfigError, match=message):
        requested.changed(CONFIG, [field])


def test_minus_one_is_all():
    assert requested.count(-1) is None
    assert requested.count(3) == 3
