"""A control vector inside llama.cpp: its logits are JAX's with the steering vectors.

The bindings do not offer control vectors, so that the C functions of their library are called, and the file is read as
llama.cpp reads it: the float32 tensor `direction.N` belongs to layer N, from 1 on, and other layers have zeros.
"""

import ctypes

import gguf
import numpy as np
import pytest

from edgesafe_jax.exporting import EXPORTERS
from tests.exporting.conftest import logits

TOKENS = [3, 17, 40, 9, 22, 5]


class Opaque(ctypes.Structure):
    """Options that are passed on as they come, in more room than they take."""

    _fields_ = (("room", ctypes.c_uint64 * 128),)


@pytest.fixture(scope="module")
def library():
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    found = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, opaque = ctypes.c_void_p, Opaque
    for name, result, arguments in (
        ("llama_model_default_params", opaque, ()),
        ("llama_context_default_params", opaque, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, opaque)),
        ("llama_init_from_model", pointer, (pointer, opaque)),
        ("llama_batch_get_one", opaque, (pointer, ctypes.c_int32)),
        ("llama_decode", ctypes.c_int32, (pointer, opaque)),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (pointer, ctypes.c_int32)),
        ("llama_set_adapter_cvec", ctypes.c_int32, (pointer, pointer, ctypes.c_size_t, *[ctypes.c_int32] * 3)),
        ("llama_free", None, (pointer,)),
        ("llama_model_free", None, (pointer,)),
    ):
        getattr(found, name).restype, getattr(found, name).argtypes = result, list(arguments)
    return found


def runtime_logits(library, path, control=None):
    """Logits of the last token, with control vectors `[L - 1, D]` of the layers from 1 on."""
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(log, None)
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    context = library.llama_init_from_model(model, library.llama_context_default_params())
    library.llama_set_n_threads(ctypes.c_void_p(context), 1, 1)
    if control is not None:
        data = np.ascontiguousarray(control, np.float32)
        given = (data.ctypes.data, data.size, data.shape[1], 1, len(data))
        assert library.llama_set_adapter_cvec(context, *given) == 0
    tokens = (ctypes.c_int32 * len(TOKENS))(*TOKENS)
    assert library.llama_decode(context, library.llama_batch_get_one(tokens, len(TOKENS))) == 0
    row = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), shape=(272,)).copy()
    library.llama_free(context)
    library.llama_model_free(model)
    library.llama_log_set(None, None)
    return row


def test_logits_are_those_of_the_steering_vectors(library, plain_model, steering, tmp_path):
    path = EXPORTERS["control_vector"](steering, plain_model, tmp_path / "out")
    assert plain_model.config.vocab_size == 272
    plain = runtime_logits(library, plain_model.name)
    directions = np.zeros((plain_model.config.num_layers - 1, plain_model.config.embed_dim), np.float32)
    for tensor in gguf.GGUFReader(str(path / "adapter.gguf")).tensors:
        kind, layer = tensor.name.split(".")
        assert (kind, tensor.tensor_type.name, tensor.data.ndim) == ("direction", "F32", 1)
        directions[int(layer) - 1] = tensor.data
    found = runtime_logits(library, plain_model.name, directions)
    # Keys and values are float16 there.
    np.testing.assert_allclose(plain, logits(plain_model, TOKENS)[-1], atol=0.02)
    expected = logits(plain_model, TOKENS, steering)[-1]
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.abs(expected - plain).max() > 1
