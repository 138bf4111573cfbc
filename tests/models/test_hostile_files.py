"""Model files that are made to do harm: loops, lengths and sizes without end are one error each, soon."""

import json
import struct
import time

import pytest
import tokenizers

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models import templates
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.directories import read_directory
from edgesafe_jax.models.families import LoadingError
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.gguf_header import check_gguf
from edgesafe_jax.models.templates import TokenizerError, render_template
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.models.tokenizer_files import tokenizer_from_directory
from tests.models.test_loading import CONFIG, hf_settings, hf_tensors, write_directory, write_gguf
from tests.tiny import make_tiny_tokenizer, random_params

DOUBLED = "{% set ns = namespace(x=BEGIN) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}", "more than 0.2 seconds"),
        (DOUBLED.replace("BEGIN", "[1]").replace("STEP", "[ns.x, ns.x]"), "more than 0.2 seconds|memory"),
        (DOUBLED.replace("BEGIN", "'ab'").replace("STEP", "ns.x ~ ns.x"), "memory|seconds"),
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{{ 'a'.center(10**11) }}{{ '%99999999999d' % 1 }}", "memory"),
        ("{% for x in range(99999) %}{{ 'a' * 99999 }}{% endfor %}", "characters"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 10 ** (10 ** 9) }}", "seconds|digits|memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{" + "(" * 5000 + ")" * 5000 + "}}", "rendered"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_templates_are_bounded(monkeypatch, template, message):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    with pytest.raises(TokenizerError, match=message):
        render_template(template, {"messages": []})
    assert render_template("{{ messages[0] }}", {"messages": ["after it"]}) == "after it"


def test_a_template_is_given_plain_data():
    with pytest.raises(TokenizerError, match="no plain data"):
        render_template("{{ x }}", {"x": object()})


def test_a_template_keeps_characters_and_order():
    text = 'é😀\ud800\u2028"\n'
    found = render_template("{{ messages|tojson }}{{ messages[0]['b'] }}", {"messages": [{"b": text, "a": None}]})
    assert found == json.dumps([{"b": text, "a": None}], ensure_ascii=False) + text


def metadata(name, kind, value):
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def header(*fields, tensors=b"", num_tensors=0, num_fields=None):
    count = len(fields) if num_fields is None else num_fields
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, count) + b"".join(fields) + tensors + bytes(64)


def tensor(sizes, kind=0, start=0):
    return struct.pack("<Q1sI", 1, b"t", len(sizes)) + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, start)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (header(metadata("x", 9, struct.pack("<IQ", 4, 2**60))), "array 'x' of 1,152,921,504,606,846,976"),
        (header(metadata("x", 9, struct.pack("<IQ", 8, 2**60))), "more than fit"),
        (header(metadata("x", 9, struct.pack("<IQ", 9, 2**40))), "more than fit"),
        (header(metadata("x", 8, struct.pack("<Q", 2**63))), "more than are left"),
        (header(metadata("x", 77, b"")), "unknown type 77"),
        (header(num_fields=2**62), "announces"),
        (header(num_fields=90_000), "more than fit"),
        (header(num_tensors=2**50), "more than fit"),
        (header(tensors=tensor([2**40, 2**40]), num_tensors=1), "more than the file holds"),
        (header(tensors=tensor([4], kind=999), num_tensors=1), "unknown type 999"),
        (header(tensors=tensor([1] * 9), num_tensors=1), "9 dimensions"),
        (header(metadata("x", 9, struct.pack("<IQ", 9, 1) * 9)), "array of arrays"),
        (b"GGUF", "unpack"),
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(99), "it begins with"),
    ],
)
def test_what_a_gguf_header_announces_must_fit_into_the_file(tmp_path, contents, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(contents)
    begun = time.monotonic()
    with pytest.raises(LoadingError, match=message):
        read_gguf(path)
    assert time.monotonic() - begun < 5


@pytest.fixture(scope="module")
def tensors():
    return hf_tensors(CONFIG, random_params(CONFIG))


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("add_block_count", 4_000_000_000, r"block_count=4000000000: expected 1 to"),
        ("add_block_count", 4000, "announces 4000 layers"),
        ("add_head_count", 0, r"head_count=0: expected 1 to"),
        ("add_head_count_kv", 0, "num_kv_heads=0"),
        ("add_embedding_length", 2**31, "embedding_length=2147483648"),
        ("add_rope_freq_base", float("nan"), "rope_base=nan"),
        ("add_context_length", 0, "context_length=0"),
        ("add_eos_token_id", 4_000_000_000, "IndexError"),
        ("add_token_types", [3], "zip"),
        ("add_token_merges", ["a", "b c d e"], "makes no sense"),
    ],
)
def test_metadata_that_no_model_has(tmp_path, monkeypatch, tensors, method, value, message):
    import gguf

    plain = getattr(gguf.GGUFWriter, method)
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda self, _: plain(self, value))
    path = write_gguf(tmp_path / "model.gguf", CONFIG, tensors)
    check_gguf(path)
    with pytest.raises((LoadingError, TokenizerError), match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: expected 1 to 4096"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": -1}, "num_key_value_heads=-1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"hidden_size": 2**62}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size=many"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "big"}}, "config.json"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 1e308}}, "config.json"),
        ({"rope_scaling": [1, 2]}, "config.json"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 1}},
            "config",
        ),
        ({"layer_types": ["full_attention"] * 7}, "config.json"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0"),
        ({"eos_token_id": {"a": 1}}, "makes no sense|config.json"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"attention_bias": [[1]], "mlp_bias": "yes"}, "Biases|config.json"),
    ],
)
def test_settings_that_no_model_has(tmp_path, tensors, changes, message):
    path = write_directory(tmp_path / "model", CONFIG, tensors)
    (path / "config.json").write_text(json.dumps(hf_settings(CONFIG, **changes)))
    begun = time.monotonic()
    with pytest.raises(EdgesafeError, match=message):
        read_directory(path)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_deep_json_is_one_error(tmp_path, tensors, name):
    path = write_directory(tmp_path / "model", CONFIG, tensors)
    (path / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(EdgesafeError, match=name.replace(".", r"\.")):
        read_directory(path)


def with_pattern(pattern):
    about = json.loads(make_tiny_tokenizer().to_json())
    about["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return json.dumps(about)


def test_a_regular_expression_bomb_is_one_error(tmp_path, tensors):
    tokenizer = ChatTokenizer(
        tokenizers.Tokenizer.from_str(with_pattern("(a+)+$")), chat_template="", eos_ids=[2], pad_id=0
    )
    assert tokenizer.encode("he")
    with pytest.raises(TokenizerError, match=r"tokenizer fails on a text.*retry-limit"):
        tokenizer.encode("a" * 500 + "b")
    with pytest.raises(TokenizerError, match="tokenizer fails on a text"):
        tokenizer.encode("a" * 500 + "b", control=True)
    path = write_directory(tmp_path / "model", CONFIG, tensors)
    (path / "tokenizer.json").write_text(with_pattern("(a"))
    with pytest.raises(TokenizerError, match="tokenizer"):
        tokenizer_from_directory(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_kv_heads": 0}, "num_kv_heads=0"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"rope_divisors": (float("nan"),) * (CONFIG.head_dim // 2)}, "rope_divisors"),
        ({"rope_divisors": (0.0,) * (CONFIG.head_dim // 2)}, "rope_divisors"),
        ({"norm_eps": float("inf")}, "norm_eps"),
    ],
)
def test_a_decoder_has_sizes_of_a_decoder(changes, message):
    import dataclasses

    with pytest.raises(EdgesafeError, match=message):
        dataclasses.replace(CONFIG, **changes)
    assert isinstance(CONFIG, DecoderConfig)
