# SPDX-License-Identifier: Apache-2.0
"""Runs sequences through a recorded model, and puts their attention calls together into step batches.

Each sequence runs by itself with its own cache, in prompt chunks and decode steps; the steps of several
sequences are then put together into batches with shuffled block tables, as a scheduler would send them.
"""

import numpy as np
import pyarrow as pa

from broadhead_samples.produce import BlockAllocator, StepBatchBuilder, tensor_list
from broadhead_samples.trace.adapters import ADAPTERS

BLOCK_SIZE = 16


def run_sequence(recorder, inputs, tokens, chunk, decode):
    """Runs one sequence: prompt in chunks, then `decode` single tokens. Returns the calls of each turn.

    `inputs` are the encoder's keyword inputs, or None for a decoder-only model; `tokens` [n] are the
    decoder's (the prompt and then one for each decode step), or None for an encoder-only model.
    """
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    model, turns, done = recorder.model, [], 0
    recorder.past, recorder.calls = 0, []
    if tokens is None:
        model(**inputs)
        return [recorder.calls]
    config = model.config.get_text_config(decoder=True)
    cache, given = DynamicCache(config=config), {}
    if inputs is not None:
        cache = EncoderDecoderCache(cache, DynamicCache())
        given["encoder_outputs"] = model.get_encoder()(**inputs)
    prompt = len(tokens) - decode
    while done < len(tokens):
        n = min(chunk, prompt - done) if done < prompt else 1
        recorder.past = done
        name = "input_ids" if inputs is None else "decoder_input_ids"
        piece = torch.from_numpy(np.asarray(tokens[done : done + n], np.int64))[None]
        model(**{name: piece}, past_key_values=cache, use_cache=True, **given)
        turns.append(recorder.calls)
        recorder.calls = []
        done += n
    return turns


def to_numpy(tensor):
    """A torch tensor as NumPy, bfloat16 as its bits (uint16); same shape."""
    import torch

    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def assemble(runs, dtype, block_size=BLOCK_SIZE, seed=0):
    """Puts the turns of several sequences together into steps; each starts two steps after the one before.

    Returns (job, step batches, expectation batches).
    """
    layers, batches, expected, pools = {}, [], [], {}
    if not any(turn for turns in runs for turn in turns):
        raise ValueError(
            "no attention call was recorded: the model neither calls transformers' attention interface "
            f"nor has one of {', '.join(ADAPTERS)}"
        )
    steps = max(2 * s + len(turns) for s, turns in enumerate(runs))
    need = sum(-(-max(c.length for turn in turns for c in turn) // block_size) for turns in runs)
    num_blocks = need + need // 4 + 1
    for step in range(steps):
        rows = {}
        for s, turns in enumerate(runs):
            for call in turns[step - 2 * s] if 0 <= step - 2 * s < len(turns) else []:
                layers[call.layer.name] = call.layer.entry
                rows.setdefault(call.layer.name, []).append((s, call))
        reserved = {}
        for name, calls in rows.items():
            spec = layers[name]
            kind = spec.get("attn_type", "decoder")
            builder = StepBatchBuilder(dtype, name)
            for s, call in calls:
                columns = {"step": step}
                if kind in ("decoder", "encoder_decoder"):
                    pool = pools.setdefault(kind, BlockAllocator(num_blocks, block_size, seed))
                    if (kind, s) not in reserved:
                        reserved[kind, s] = pool.append(s, 0 if call.key is None else len(call.key))
                    columns |= {"slot_mapping": reserved[kind, s], "block_table": pool.table(s)}
                if "rope" in spec:
                    columns["position"] = np.arange(call.start, call.start + len(call.query))
                tensors = {"query": call.query, "key": call.key, "value": call.value}
                arrays = {n: None if t is None else to_numpy(t) for n, t in tensors.items()}
                builder.add(s, **arrays, seq_len=call.length, **columns)
            sizes = spec["num_heads"], spec["num_kv_heads"], spec["head_size"]
            batches.append(builder.build(*sizes))
            outputs = [to_numpy(call.output) for _, call in calls]
            field, column = tensor_list(outputs, (sizes[0], sizes[2]), dtype, "expected")
            ids, names = pa.array([s for s, _ in calls], pa.int64()), pa.array([name] * len(calls), pa.utf8())
            schema = pa.schema([("sequence_id", pa.int64()), ("layer", pa.utf8()), field])
            expected.append(pa.RecordBatch.from_arrays([ids, names, column], schema=schema))
    kv_cache = {"block_size": block_size, "num_blocks": num_blocks, "dtype": "auto"}
    return {"kv_cache": kv_cache, "layers": list(layers.values())}, batches, expected
