# SPDX-License-Identifier: Apache-2.0
"""PyTorch and ONNX Runtime on contiguous keys and values: no gathering of blocks is counted against them.

Neither takes rows that differ in one call, so that there is a call for each kind of rows.
"""

import contextlib
import time

import numpy as np


class TorchPeer:
    """torch.nn.functional.scaled_dot_product_attention, held to its flash kernel.

    In a decode step it is `enable_gqa`, or the query heads of a KV head as query tokens, whichever is faster.
    """

    name = "torch"

    def __init__(self, cell, steps):
        """Takes the memory of `steps` as it is."""
        import torch

        self._torch, self._stack = torch, contextlib.ExitStack()
        torch.set_num_threads(cell.threads)
        self._stack.enter_context(torch.no_grad())
        backend = torch.nn.attention.SDPBackend.FLASH_ATTENTION
        self._stack.enter_context(torch.nn.attention.sdpa_kernel(backend))
        self._dtype, self._heads = cell.dtype, cell.heads
        self._steps = [[self._call(part) for part in parts] for parts in steps]
        self._turn, self.folds = 0, False
        if cell.decodes:
            times = [(self._time(fold=True), self._time(fold=False)) for _ in range(3)]
            self.folds = min(folded for folded, _ in times) < min(plain for _, plain in times)

    @staticmethod
    def refusal(cell):
        """Why it cannot do `cell`, or None."""
        return None

    def describe(self):
        """Library, version and what is called."""
        way = "GQA folded into the query" if self.folds else "enable_gqa"
        return f"torch {self._torch.__version__}, scaled_dot_product_attention (flash), {way}"

    def _tensor(self, array):
        if self._dtype == "bfloat16":
            return self._torch.from_numpy(array.view(np.int16)).view(self._torch.bfloat16)
        return self._torch.from_numpy(array)

    def _call(self, part):
        """The arguments of a call: query [batch, num_heads, tokens, head_size], key, value, mask."""
        tokens, context = part.query.shape[1], part.key.shape[2]
        query = self._tensor(np.ascontiguousarray(part.query.transpose(0, 2, 1, 3)))
        key, value = self._tensor(part.key), self._tensor(part.value)
        mask = None
        if 1 < tokens < context:
            # is_causal would align the first query with the first key.
            seen = self._torch.ones(tokens, context, dtype=self._torch.bool).tril(context - tokens)
            mask = self._torch.zeros(tokens, context).masked_fill(~seen, -self._torch.inf).to(query.dtype)
        return query, key, value, mask

    def _attend(self, call, fold):
        query, key, value, mask = call
        batch, heads, tokens, size = query.shape
        attention = self._torch.nn.functional.scaled_dot_product_attention
        if tokens == 1 and fold:
            folded = query.view(batch, key.shape[1], heads // key.shape[1], size)
            return attention(folded, key, value).view(query.shape)
        causal = mask is None and tokens > 1
        return attention(
            query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=heads != key.shape[1]
        )

    def _time(self, fold):
        """Seconds of the first call of a step."""
        start = time.perf_counter()
        self._attend(self._steps[0][0], fold)
        return time.perf_counter() - start

    def run(self):
        """Does the next step."""
        self._turn += 1
        return [self._attend(call, self.folds) for call in self._steps[self._turn % len(self._steps)]]

    def output(self, copy):
        """Does step `copy`; answers its output in float32, [tokens of all rows, num_heads, head_size]."""
        shape = (-1, self._heads.num_heads, self._heads.head_size)
        outputs = [self._attend(call, self.folds) for call in self._steps[copy]]
        return np.concatenate([out.transpose(1, 2).float().numpy().reshape(shape) for out in outputs])

    def close(self):
        """Gives the memory back."""
        self._steps = []
        self._stack.close()


class OnnxRuntimePeer:
    """com.microsoft.GroupQueryAttention; past and present are one buffer, and it writes to its end."""

    name = "onnxruntime"

    def __init__(self, cell, steps):
        """Takes the memory of the keys and values of `steps` as it is."""
        import onnxruntime

        self._onnxruntime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = cell.threads, 1
        self._heads, self._turn = cell.heads, 0
        self._session = onnxruntime.InferenceSession(
            self._model(cell), options, providers=["CPUExecutionProvider"]
        )
        self._steps = [[self._bind(part) for part in parts] for parts in steps]

    @staticmethod
    def refusal(cell):
        """Why it cannot do `cell`, or None."""
        return "it has no bfloat16 on CPUs" if cell.dtype == "bfloat16" else None

    def describe(self):
        """Library, version and what is called."""
        return (
            f"onnxruntime {self._onnxruntime.__version__}, GroupQueryAttention, past and present share memory"
        )

    @staticmethod
    def _model(cell):
        import onnx
        from onnx import helper

        element = onnx.TensorProto.FLOAT16 if cell.dtype == "float16" else onnx.TensorProto.FLOAT
        tensors = ["query", "key", "value", "past_key", "past_value"]
        counts = ["seqlens_k", "total_sequence_length"]
        outputs = ["output", "present_key", "present_value"]
        node = helper.make_node(
            "GroupQueryAttention",
            tensors + counts,
            outputs,
            domain="com.microsoft",
            num_heads=cell.heads.num_heads,
            kv_num_heads=cell.heads.num_kv_heads,
        )
        graph = helper.make_graph(
            [node],
            "attention",
            [helper.make_tensor_value_info(name, element, None) for name in tensors]
            + [helper.make_tensor_value_info(name, onnx.TensorProto.INT32, None) for name in counts],
            [helper.make_tensor_value_info(name, element, None) for name in outputs],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()

    def _bind(self, part):
        value_of = self._onnxruntime.OrtValue.ortvalue_from_numpy
        batch, tokens, _, _ = part.query.shape
        context = part.key.shape[2]

        def fresh(array):
            """The new tokens of keys or values, [batch, tokens, num_kv_heads * head_size]."""
            new = array[:, :, -tokens:].transpose(0, 2, 1, 3)
            return np.ascontiguousarray(new).reshape(batch, tokens, -1)

        query = part.query.reshape(batch, tokens, -1)
        past_key, past_value = value_of(part.key), value_of(part.value)
        binding = self._session.io_binding()
        inputs = {
            "query": value_of(query),
            "key": value_of(fresh(part.key)),
            "value": value_of(fresh(part.value)),
            "past_key": past_key,
            "past_value": past_value,
            "seqlens_k": value_of(np.full(batch, context - 1, np.int32)),
            "total_sequence_length": value_of(np.array(context, np.int32)),
        }
        output = np.zeros_like(query)
        outputs = {"output": value_of(output), "present_key": past_key, "present_value": past_value}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding, output

    def run(self):
        """Does the next step."""
        self._turn += 1
        for binding, _ in self._steps[self._turn % len(self._steps)]:
            self._session.run_with_iobinding(binding)

    def output(self, copy):
        """Does step `copy`; answers its output in float32, [tokens of all rows, num_heads, head_size]."""
        for binding, _ in self._steps[copy]:
            self._session.run_with_iobinding(binding)
        shape = (-1, self._heads.num_heads, self._heads.head_size)
        return np.concatenate([output.astype(np.float32).reshape(shape) for _, output in self._steps[copy]])

    def close(self):
        """Gives the memory back."""
        self._steps = []


PEERS = (TorchPeer, OnnxRuntimePeer)


def tolerance(dtype):
    """The largest difference that roundings in `dtype` explain."""
    return {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}[dtype]


def check(name, ours, theirs, dtype):
    """Refuses to compare times of results that differ: both are [tokens, num_heads, head_size]."""
    worst = float(np.abs(ours - theirs).max())
    if not worst <= tolerance(dtype):
        raise ValueError(f"{name}: its result differs from ours by {worst:.3g}")
