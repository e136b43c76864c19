# SPDX-License-Identifier: Apache-2.0
"""BLOOM, MPT and GPT-J compute attention themselves: hooks on their modules record it."""

import inspect
import sys


def _adapt_bloom(recorder, module):
    """BLOOM: fused projection in, `dense` out, ALiBi slopes from the modelling file's own table."""
    import torch

    table = sys.modules[type(module).__module__].build_alibi_tensor
    slopes = table(torch.ones(1, 2), module.num_heads, torch.float32)[:, 0, 1].tolist()
    options = {"sliding_window": None, "alibi_slopes": slopes}
    scale = module.inv_norm_factor
    _adapt_by_projections(
        recorder, module, module.query_key_value, module.dense, module._reshape, options, scale, "layer_past"
    )


def _adapt_mpt(recorder, module):
    """MPT: `Wqkv` in, `out_proj` out, ALiBi slopes from the modelling file's own table."""
    table = sys.modules[type(module).__module__].build_mpt_alibi_tensor
    bias = table(module.n_heads, 2)
    options = {"sliding_window": None, "alibi_slopes": (bias[:, 0, 1] - bias[:, 0, 0]).tolist()}

    def split(fused):
        if module.clip_qkv:
            fused = fused.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        return [x.unflatten(2, (module.n_heads, -1)).transpose(1, 2) for x in fused.chunk(3, dim=2)]

    _adapt_by_projections(
        recorder,
        module,
        module.Wqkv,
        module.out_proj,
        split,
        options,
        module.softmax_scale,
        "past_key_values",
    )


def _adapt_by_projections(recorder, module, project_in, project_out, split, options, scale, cache_name):
    """Records a module from its input projection (`split` makes q, k, v of it) to its output projection."""
    state = {}

    def at_entry(_, args, kwargs):
        state.update(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    def after_projection(_, args, fused):
        state["qkv"] = split(fused)

    def before_output(_, args):
        query, key, value = state["qkv"]
        cache = state.get(cache_name)
        if cache is not None:
            key, value = cache.layers[module.layer_idx].keys, cache.layers[module.layer_idx].values
        mask = state.get("attention_mask")
        if mask is not None and not mask.is_floating_point():
            mask = ~mask.bool()
        output = args[0].unflatten(2, (query.shape[1], -1))
        recorder.record(module, query, key, value, output, mask, scale, options)

    recorder.undo_later(module.register_forward_pre_hook(at_entry, with_kwargs=True).remove)
    recorder.undo_later(project_in.register_forward_hook(after_projection).remove)
    recorder.undo_later(project_out.register_forward_pre_hook(before_output).remove)


def _adapt_gptj(recorder, module):
    """GPT-J: `_attn` gets query and key after RoPE; the projections' outputs are query and key before it."""
    raw, original = {}, module._attn

    def keep(name):
        def hook(_, args, output):
            raw[name] = output[0].unflatten(1, (module.num_attention_heads, -1))

        return hook

    def watched(query, key, value, attention_mask=None):
        output, weights = original(query, key, value, attention_mask)
        rotation = None
        if recorder.rope:
            rotation = (raw["query"], raw["key"], {"rotary_dim": module.rotary_dim or module.head_dim})
            rotation[2].update(max_position=module.max_positions, base=10000.0, is_neox=False)
        scale, options = 1.0 / module.scale_attn, {"sliding_window": None}
        out = output.transpose(1, 2)
        recorder.record(module, query, key, value, out, attention_mask, scale, options, rotation)
        return output, weights

    module._attn = watched
    recorder.undo_later(lambda: delattr(module, "_attn"))
    recorder.undo_later(module.q_proj.register_forward_hook(keep("query")).remove)
    recorder.undo_later(module.k_proj.register_forward_hook(keep("key")).remove)


#: Attention modules that do not call transformers' attention interface
ADAPTERS = {"BloomAttention": _adapt_bloom, "MptAttention": _adapt_mpt, "GPTJAttention": _adapt_gptj}
