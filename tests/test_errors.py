"""The checks of settings and arguments: what is refused, and what the message says."""

import errno
import math
import os

import pytest

from edgesafe_jax import errors
from edgesafe_jax.errors import (
    ConfigError,
    Range,
    StorageError,
    check_counts,
    check_ranges,
    check_texts,
    lookup,
    storage_errors,
)


def test_lookup_lists_the_names_and_the_closest_one():
    table = {"soft_prompt": 1, "lora": 2}
    assert lookup(table, "lora", "config.adapter.name") == 2
    with pytest.raises(
        ConfigError, match=r"config.adapter.name='softprompt': expected one of lora, soft_prompt.*'soft"
    ):
        lookup(table, "softprompt", "config.adapter.name")
    with pytest.raises(ConfigError, match=r"None: expected one of lora, soft_prompt\.$"):
        lookup(table, None, "config.adapter.name")


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "text"),
    [
        (
            errors.POSITIVE_COUNT,
            (1, 2.0),
            (0, -1, 1.5, True, "3", math.nan, math.inf, None, 2**31, 10**400),
            r"at least 1, and less than 2\*\*31",
        ),
        (errors.COUNT, (0, 5), (-1, 0.5, 1e20), r"0 or more, and less than 2\*\*31"),
        (errors.COUNT_OR_ALL, (-1, 1), (0, -2), r"a positive number \(less than 2\*\*31\), or -1 for all"),
        (errors.POSITIVE, (1e-9,), (0, -1, math.inf, math.nan, 1e20), "above 0, and at most 1e9"),
        (errors.FRACTION, (0, 1), (-0.1, 1.1), "0 to 1"),
        (errors.PROBABILITY, (0.5,), (0, 1), r"inside \(0, 1\)"),
        (Range(high=3), (3, -9), (4,), "at most 3"),
        (Range(high=3, below=True), (2,), (3,), "below 3"),
        (Range(), (3,), (math.inf,), "a finite number"),
        (Range(0, 1, above=True), (1,), (0,), "0 to 1, 0 excluded"),
        (Range(0, above=True, also=(math.inf,)), (math.inf,), (0,), "above 0, or inf"),
    ],
)
def test_a_number_outside_its_range_is_named(allowed, good, bad, text):
    for value in good:
        check_ranges({"a": {"b": value}}, {"a.b": allowed})
    for value in bad:
        if value is not None:
            with pytest.raises(ConfigError, match=rf"config\.a\.b=.*: expected {text}\.$"):
                check_ranges({"a": {"b": value}}, {"a.b": allowed})


def test_members_of_a_sequence_are_checked_and_missing_settings_named():
    check_ranges({"layers": (1, 2), "none": None}, {"layers": errors.COUNT, "none": errors.COUNT})
    with pytest.raises(ConfigError, match=r"layers=.*: expected 0 or more"):
        check_ranges({"layers": (1, -2)}, {"layers": errors.COUNT})
    with pytest.raises(ConfigError, match=r"config.a.c is missing: expected above 0"):
        check_ranges({"a": {}}, {"a.c": errors.POSITIVE})


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None, math.nan])
def test_counts_must_be_whole_and_positive(value):
    check_counts(batch_size=8, max_tokens=1)
    with pytest.raises(ConfigError, match=r"batch_size=.*: expected at least 1"):
        check_counts(max_tokens=1, batch_size=value)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, r"the disk is full \(.* MiB free\)\. Make room and start the same command again"),
        (errno.EDQUOT, "the disk quota is used up .*Make room"),
        (errno.EROFS, "read-only. Give another path"),
        (errno.EACCES, "permission denied. Give another path"),
        (errno.EPERM, "permission denied. Give another path"),
        (errno.ENOTDIR, "a part of this path is a file"),
        (errno.EISDIR, "this is a folder, where a file is expected"),
    ],
)
def test_an_error_of_the_operating_system_names_path_and_way_out(tmp_path, number, text):
    named = OSError(number, os.strerror(number), str(tmp_path / "a"))
    for error, place in ((named, "a"), (OSError(number, os.strerror(number)), "b")):
        with (
            pytest.raises(StorageError, match=rf"cannot use .*/{place}: .*{text}"),
            storage_errors(tmp_path / "b"),
        ):
            raise error


def test_an_error_inside_a_storage_library_is_recognised(tmp_path):
    with pytest.raises(StorageError, match="the disk is full"), storage_errors(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: No space left on device]")
    with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED: Out of memory"), storage_errors(tmp_path):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
    with pytest.raises(ConfigError), storage_errors(tmp_path):
        raise ConfigError("a: Permission denied")


def test_texts_are_a_list_of_strings():
    assert check_texts("prompts", iter(["a", "b"])) == ["a", "b"]
    assert check_texts("prompts", []) == []
    with pytest.raises(ConfigError, match=r"prompts='how do I bake.*…' is one string: expected a list of strings"):
        check_texts("prompts", "how do I bake bread " * 10)
    with pytest.raises(ConfigError, match=r"prompts\[1\] is a int: expected a string"):
        check_texts("prompts", ["a", 3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"prompts is a int"):
        check_texts("prompts", 3)  # type: ignore[arg-type]
