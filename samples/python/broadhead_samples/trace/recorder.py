# SPDX-License-Identifier: Apache-2.0
"""Attention calls of a model, recorded while its own attention code keeps running.

What a call is given (query, key and value, mask, window, soft cap, sinks, ALiBi, scaling) and what it
returns are recorded. A model that calls transformers' attention interface is recorded by an attention
function registered under the name `broadhead_trace`, which calls the model's eager attention (in float32,
rounded once to the dtype); the others by `adapters`. The mask of every call is compared with the mask that
the recorded layer options mean, so that a model whose masks the step format cannot express is refused rather
than recorded wrongly.
"""

import inspect
import sys

import numpy as np

from broadhead_samples.jobfile import SCALING_KEYS
from broadhead_samples.rope import rotate
from broadhead_samples.trace.adapters import ADAPTERS

INTERFACE = "broadhead_trace"


class Layer:
    """What the tracer learned about one attention layer: its name and what its calls mean."""

    def __init__(self, name):
        self.name, self._entry, self._window, self._unhidden = name, None, None, 0

    def describe(self, entry):
        """Takes the job file entry that a call means; every call of a layer must mean the same."""
        if self._entry is not None and self._entry != entry:
            raise ValueError(f"{self.name}: options changed between calls: {self._entry} then {entry}")
        self._entry = entry

    def see_two_sided_window(self, window, length):
        """Takes the window of an encoder's call, or None if its mask hid nothing of `length` keys.

        A window at least as long as the sequence hides nothing, so both can come from one layer.
        """
        if window is None:
            self._unhidden = max(self._unhidden, length)
        elif self._window in (None, window):
            self._window = window
        else:
            raise ValueError(f"{self.name}: window {self._window} in one call, {window} in another")
        if self._window is not None and self._unhidden > self._window:
            raise ValueError(f"{self.name}: window {self._window}, but {self._unhidden} keys were seen")

    @property
    def entry(self):
        """The layer's entry in the job file."""
        return self._entry if self._window is None else self._entry | {"sliding_window": self._window}


class Call:
    """One sequence's attention call.

    query and output are [n, num_heads, head_size] torch tensors, key and value [n_k, num_kv_heads, head_size]
    or None; `length` is the row's seq_len, `start` the position of the first query token.
    """

    def __init__(self, layer, query, key, value, length, start, output):
        self.layer, self.query, self.key, self.value = layer, query, key, value
        self.length, self.start, self.output = length, start, output


class Recorder:
    """Attaches to a model and turns its attention calls into `calls`; one sequence at a time.

    Use as a context manager. Set `past` to the sequence's tokens in the cache before each forward pass.
    """

    def __init__(self, model, rope=False):
        """With `rope`, query and key are recorded before RoPE and the layers get a `rope` option."""
        self.model, self.rope = model, rope
        self.calls, self.past = [], 0
        self._names = {module: name for name, module in model.named_modules()}
        self._layers, self._cross, self._undo, self._rotation = {}, set(), [], None

    def __enter__(self):
        import transformers
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

        transformers.AttentionInterface.register(INTERFACE, self._interface)
        ALL_MASK_ATTENTION_FUNCTIONS.register(INTERFACE, eager_mask)
        adapted = False
        for module in self.model.modules():
            adapter = ADAPTERS.get(type(module).__name__)
            if adapter:
                adapter(self, module)
                adapted = True
            if {"key_value_states", "encoder_hidden_states"} & set(
                inspect.signature(module.forward).parameters
            ):
                self.undo_later(module.register_forward_pre_hook(self._note_cross, with_kwargs=True).remove)
        if not adapted:
            self.model.set_attn_implementation(INTERFACE)
            if self.rope:
                self._watch_rotation()
        return self

    def __exit__(self, *_):
        for undo in reversed(self._undo):
            undo()

    def undo_later(self, action):
        """Runs `action` when the recorder leaves the model."""
        self._undo.append(action)

    def _note_cross(self, module, args, kwargs):
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        states = given.get("key_value_states", given.get("encoder_hidden_states"))
        (self._cross.discard if states is None else self._cross.add)(module)

    def _watch_rotation(self):
        """Remembers what the modelling file's apply_rotary_pos_emb was given last."""
        source = sys.modules[type(self.model).__module__]
        original = getattr(source, "apply_rotary_pos_emb", None)
        if original is None:
            raise ValueError(f"--rope: {source.__name__} has no apply_rotary_pos_emb")

        def watched(query, key, cos, *args, **kwargs):
            self._rotation = (query, key, cos.shape[-1])
            return original(query, key, cos, *args, **kwargs)

        source.apply_rotary_pos_emb = watched
        self.undo_later(lambda: setattr(source, "apply_rotary_pos_emb", original))

    def _interface(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        """The registered attention function; query [1, h, n, d], key and value [1, h_kv, m, d]."""
        source = sys.modules[type(module).__module__]
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        mask = attention_mask
        wide = [
            x.float() if x is not None and x.is_floating_point() else x for x in (query, key, value, mask)
        ]
        output, weights = source.eager_attention_forward(
            module, *wide, scaling=scaling, dropout=0.0, **kwargs
        )
        output = output.to(query.dtype)
        sinks = kwargs.get("s_aux", getattr(module, "sinks", None))
        options = {
            "sliding_window": kwargs.get("sliding_window", getattr(module, "sliding_window", None)),
            "logits_soft_cap": kwargs.get("softcap"),
            "sinks": None if sinks is None else [float(x) for x in sinks.detach().float().reshape(-1)],
        }
        rotation, self._rotation = self._rotation, None
        if rotation:
            raw = [x[0].transpose(0, 1) for x in rotation[:2]]
            rope = self._explain_rotation(module, raw[0], query[0].transpose(0, 1), rotation[2])
            rotation = (*raw, rope)
        self.record(module, query, key, value, output, attention_mask, scaling, options, rotation)
        return output, weights

    def _explain_rotation(self, module, raw, rotated, width):
        """The rope option that turns `raw` into `rotated`, both [n, h, d]; `width` is cos's last size."""
        config = self.model.config.get_text_config()
        parameters = getattr(config, "rope_parameters", None) or {}
        parameters = parameters.get(getattr(module, "layer_type", None), parameters)
        rule = parameters.get("rope_type", "default")
        rope = {"rotary_dim": width, "max_position": int(config.max_position_embeddings)}
        rope |= {"base": float(parameters.get("rope_theta", 10000.0)), "is_neox": True}
        if SCALING_KEYS.get(rule):
            used = {key: parameters[key] for key in SCALING_KEYS[rule] if parameters.get(key) is not None}
            rope["rope_scaling"] = {"rope_type": rule, **used}
        raw, rotated = raw.detach().double().numpy(), rotated.detach().double().numpy()
        position = self.past + np.arange(len(raw))
        for rope["is_neox"] in (True, False):
            for rope["rotary_dim"] in (width, 2 * width):
                fits = rope["rotary_dim"] <= raw.shape[2]
                if fits and np.allclose(rotate(raw, position, rope), rotated, 0.02, 0.02):
                    return rope
        raise ValueError(f"{self._names[module]}: no RoPE of the step format does what the model did")

    def record(self, module, query, key, value, output, mask, scaling, options, rotation=None):
        """Adds a call: query [1, h, n, d], key and value [1, h_kv, m, d] with the past, output [1, n, h, d].

        `mask` is None, or [1, h or 1, n, >= m], boolean (True: visible) or additive; `options` are job file
        keys; `rotation` is None or (query, key, rope option) with the tensors [n, heads, d] before RoPE.
        """
        layer = self._layers.setdefault(module, Layer(self._names[module]))
        heads, n, head_size = query.shape[1:]
        m = key.shape[2]
        if query.shape[0] != 1 or value.shape[-1] != head_size:
            raise ValueError(f"{layer.name}: cannot record {query.shape} queries with {value.shape} values")
        kind = self._kind(module, mask, n, m)
        window, options = options["sliding_window"], {**options}
        if kind != "decoder":
            window, options["sliding_window"] = self._encoder_window(mask, n, m), None
            layer.see_two_sided_window(window, m)
        self._check_mask(layer, kind, mask, n, m, window)
        sizes = {
            "num_heads": heads,
            "num_kv_heads": key.shape[1],
            "head_size": head_size,
            "scale": float(scaling),
        }
        spec = {"name": layer.name, **sizes}
        if kind != "decoder":
            spec["attn_type"] = kind
        spec |= {name: option for name, option in options.items() if option}
        query, key, value = (x[0].transpose(0, 1).detach() for x in (query, key, value))
        length, start, new = (self.past + n, self.past, n) if kind == "decoder" else (m, 0, m)
        if kind == "encoder_decoder" and self.past:
            key = value = None
        else:
            key, value = key[m - new :], value[m - new :]
        if rotation:
            query, key, spec["rope"] = rotation[0].detach(), rotation[1].detach(), rotation[2]
        layer.describe(spec)
        self.calls.append(
            Call(layer, query, key, value, length, start, output.detach().reshape(n, heads, -1))
        )

    def _kind(self, module, mask, n, m):
        if module in self._cross:
            return "encoder_decoder"
        causal = getattr(module, "is_causal", True)
        if n > 1 and mask is not None:
            causal = not _visible(mask)[..., : n - 1, m - 1].any()
        if causal or self.past:
            return "decoder"
        return "encoder" if self.model.config.is_encoder_decoder else "encoder_only"

    def _encoder_window(self, mask, n, m):
        """The window that a two-sided mask means, or None if it hides nothing."""
        if mask is None or _visible(mask)[..., :m].all():
            return None
        seen = _visible(mask)[..., :m].reshape(-1, n, m)[0]
        return int(np.abs(np.subtract.outer(np.arange(n), np.arange(m)))[seen].max()) + 1

    def _check_mask(self, layer, kind, mask, n, m, window):
        """Refuses a call whose mask is not what the recorded options mean."""
        if mask is None:
            return
        seen = _visible(mask)[..., :m].reshape(-1, n, m)
        at = self.past + np.arange(n)[:, None] if kind == "decoder" else np.arange(n)[:, None]
        keys = np.arange(m)[None] + (self.past + n - m if kind == "decoder" else 0)
        want = keys <= at if kind == "decoder" else np.ones((n, m), bool)
        if window:
            want = want & (np.abs(at - keys) < window)
        if (seen != want[None]).any():
            raise ValueError(f"{layer.name}: its mask is not that of attn_type {kind} with window {window}")


def _visible(mask):
    """Which keys a mask lets through, bool of its shape."""
    import torch

    mask = mask.detach()
    if mask.dtype == torch.bool:
        return mask.numpy()
    mask = mask.float().numpy()
    if ((mask > -1e4) & (mask != 0)).any():
        raise ValueError("an attention mask carries a bias that the step format does not express")
    return mask == 0
