"""Runs token rows through llama.cpp with and without a control vector: `python _llamacpp.py MODEL VECTOR ROWS OUT`.

A script of its own. It needs numpy and llama-cpp-python and nothing of this package, so that it runs under another Python. The
vector's file is read by ggml's own reader and laid out by the rules of llama.cpp's loader (common/common.cpp,
`common_control_vector_load_one`, which is no part of the library): direction.N, N ≥ 1, at row N − 1.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

F32 = 0  # ggml's number of the type


class _Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def main(model_path: str, vector_path: str, rows_path: str, out_path: str) -> None:
    """Run all passes and write their logits."""
    llama: Any = importlib.import_module("llama_cpp.llama_cpp")
    with np.load(rows_path, allow_pickle=False) as given:
        rows = [given[name].tolist() for name in sorted(given.files, key=int)]
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp refuses the model {model_path}")
    width, blocks = llama.llama_model_n_embd(model), llama.llama_model_n_layer(model)
    vector = read_vector(llama, vector_path, width)
    context = _context(llama, model, sum(map(len, rows)) + 8, len(rows))
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def alone(step: int | None = None) -> list[Any]:
        return [_logits(llama, context, [row], vocabulary, step)[0] for row in rows]

    passes = {"bare": alone()}
    pointer = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if llama.llama_set_adapter_cvec(context, pointer, vector.size, width, 1, blocks):
        raise SystemExit(f"llama.cpp refuses the control vector {vector_path}")
    passes |= {"steered": alone(), "together": _logits(llama, context, rows, vocabulary), "steps": alone(step=1)}
    llama.llama_set_adapter_cvec(context, None, 0, width, 0, 0)
    passes["after"] = alone()
    np.savez(out_path, **{f"{name}.{n}": x for name, found in passes.items() for n, x in enumerate(found)})


def read_vector(llama: Any, path: str, width: int) -> Any:
    """The file as one array of rows for blocks 1, 2, …"""
    lib: Any = llama._lib  # ggml's symbols are found through the library that depends on it
    lib.gguf_init_from_file.argtypes, lib.gguf_init_from_file.restype = [ctypes.c_char_p, _Params], ctypes.c_void_p
    for name, kind in (("gguf_get_tensor_name", ctypes.c_char_p), ("gguf_get_tensor_type", ctypes.c_int),
                       ("gguf_get_tensor_offset", ctypes.c_size_t), ("gguf_get_tensor_size", ctypes.c_size_t)):  # fmt: skip
        getattr(lib, name).argtypes, getattr(lib, name).restype = [ctypes.c_void_p, ctypes.c_int64], kind
    for name, kind in (("gguf_get_n_tensors", ctypes.c_int64), ("gguf_get_data_offset", ctypes.c_size_t)):
        getattr(lib, name).argtypes, getattr(lib, name).restype = [ctypes.c_void_p], kind
    held = lib.gguf_init_from_file(path.encode(), _Params(True, None))
    if not held:
        raise SystemExit(f"llama.cpp can't read {path}")
    begin, made = lib.gguf_get_data_offset(held), np.zeros(0, dtype=np.float32)
    for i in range(lib.gguf_get_n_tensors(held)):
        name = lib.gguf_get_tensor_name(held, i).decode()
        head, _, n = name.partition(".")
        size = lib.gguf_get_tensor_size(held, i)
        if (
            head != "direction"
            or not n.isdigit()
            or int(n) < 1
            or lib.gguf_get_tensor_type(held, i) != F32
            or size != 4 * width
        ):
            raise SystemExit(
                f"llama.cpp's loader refuses the whole file for {name} ({size} bytes; the model's width is {width})"
            )
        row = np.fromfile(path, dtype=np.float32, count=width, offset=begin + lib.gguf_get_tensor_offset(held, i))
        made = np.pad(made, (0, max(0, int(n) * width - made.size)))
        made[(int(n) - 1) * width : int(n) * width] += row
    return np.ascontiguousarray(made, dtype=np.float32)


def _context(llama: Any, model: Any, tokens: int, rows: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = (
        max(tokens, 64) * rows,
        max(tokens, 64),
        max(tokens, 64),
        rows,
    )
    params.type_k = params.type_v = F32
    params.n_threads = params.n_threads_batch = 1
    if hasattr(params, "flash_attn_type"):
        params.flash_attn_type = 0
    else:
        params.flash_attn = False
    if hasattr(params, "kv_unified"):
        params.kv_unified = True
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp can't make a context for the model")
    return context


def _logits(
    llama: Any, context: Any, rows: Sequence[Sequence[int]], vocabulary: int, step: int | None = None
) -> list[Any]:
    """The logits of each row, read at once or in steps of so many tokens, from an empty cache."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    found = [np.zeros((len(row), vocabulary), dtype=np.float32) for row in rows]
    stride = step or max(map(len, rows))
    for begin in range(0, max(map(len, rows)), stride):
        todo = [(n, t) for n, row in enumerate(rows) for t in range(begin, min(begin + stride, len(row)))]
        batch = llama.llama_batch_init(len(todo), 0, 1)
        for k, (n, t) in enumerate(todo):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = rows[n][t], t, 1, 1
            batch.seq_id[k][0] = n
        batch.n_tokens = len(todo)
        if llama.llama_decode(context, batch):
            raise SystemExit("llama.cpp can't decode the rows")
        for k, (n, t) in enumerate(todo):
            found[n][t] = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, k), shape=(vocabulary,))
        llama.llama_batch_free(batch)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
