# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the job file without a YAML library.

Covers the YAML that a job file uses: block mappings and lists, flow mappings and lists, plain and quoted
scalars, comments. Anything else (anchors, tags, multi-line strings) is an error that names the line.
"""

import math
import re

#: Types of the values of a job file's keys; lists hold numbers
_KV_CACHE = {"block_size": int, "num_blocks": int, "memory_fraction": float, "dtype": str}
_LAYER = {
    "name": str,
    "num_heads": int,
    "num_kv_heads": int,
    "head_size": int,
    "scale": float,
    "attn_type": str,
    "sliding_window": int,
    "logits_soft_cap": float,
    "alibi_slopes": list,
    "sinks": list,
    "kv_cache_dtype": str,
    "k_scale": float,
    "v_scale": float,
    "output_scale": float,
    "kv_sharing_target_layer_name": str,
    "rope": dict,
    "return_lse": bool,
}
_ROPE = {"rotary_dim": int, "max_position": int, "base": float, "is_neox": bool, "rope_scaling": dict}
_ROPE_SCALING = {
    "rope_type": str,
    "factor": float,
    "original_max_position_embeddings": int,
    "low_freq_factor": float,
    "high_freq_factor": float,
    "beta_fast": float,
    "beta_slow": float,
    "truncate": bool,
    "attention_factor": float,
    "mscale": float,
    "mscale_all_dim": float,
}
#: Keys of `rope_scaling` that a rule reads; it needs the first two
SCALING_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    ),
}
_DTYPES = ("auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2")
_CHOICES = {
    "attn_type": ("decoder", "encoder", "encoder_only", "encoder_decoder"),
    "dtype": _DTYPES,
    "kv_cache_dtype": _DTYPES,
    "rope_type": tuple(SCALING_KEYS),
}
_WORDS = {
    int: "an integer",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    list: "a list of finite numbers",
    dict: "a mapping",
}
_HEAD_SIZES = (32, 64, 80, 96, 128, 160, 192, 224, 256)

_SCALAR_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_KEY = re.compile(r"([A-Za-z_][\w.\-]*)\s*:(?:\s+|$)")


def load_job(path):
    """Reads a job file into a dict with keys `kv_cache` (dict) and `layers` (list of dicts)."""
    try:
        with open(path, encoding="utf-8") as source:
            text = source.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got other bytes") from error
    return checked(parse(text, str(path)), path)


def checked(job, name="job.yaml"):
    """The job without keys whose value is null, with its defaults; raises ValueError if a key is wrong.

    What the sizes of tensors and blocks follow from is checked, and that keys are known and of their types.
    """
    if not isinstance(job, dict) or not isinstance(job.get("layers"), list) or not job["layers"]:
        raise ValueError(f"{name}: expected a mapping with a non-empty list 'layers'")
    for key in job.keys() - {"kv_cache", "layers"}:
        raise ValueError(f"{name}: unknown key '{key}', expected kv_cache or layers")
    kv_cache = _mapping(job.get("kv_cache") or {}, _KV_CACHE, f"{name}: kv_cache")
    if kv_cache.get("block_size", 16) % 16 or kv_cache.get("block_size", 16) < 1:
        size = kv_cache["block_size"]
        raise ValueError(f"{name}: kv_cache.block_size: expected a positive multiple of 16, got {size}")
    return {
        "kv_cache": kv_cache,
        "layers": [_layer(layer, f"{name}: layers[{i}]") for i, layer in enumerate(job["layers"])],
    }


def _layer(values, path):
    layer = _mapping(values, _LAYER, path)
    _require(layer, path, "name", "num_heads", "head_size")
    heads, kv_heads = layer["num_heads"], layer.setdefault("num_kv_heads", layer["num_heads"])
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{path}.num_kv_heads: expected a number that divides {heads}, got {kv_heads}")
    if layer["head_size"] not in _HEAD_SIZES:
        raise ValueError(f"{path}.head_size: expected one of {_HEAD_SIZES}, got {layer['head_size']}")
    if "rope" in layer:
        layer["rope"] = _rope(layer["rope"], layer["head_size"], f"{path}.rope")
    return layer


def _rope(values, head_size, path):
    rope = _mapping(values, _ROPE, path)
    _require(rope, path, "rotary_dim", "max_position")
    dim = rope["rotary_dim"]
    if dim % 2 or not 2 <= dim <= head_size:
        raise ValueError(f"{path}.rotary_dim: expected an even integer, 2 to {head_size}, got {dim}")
    if "rope_scaling" in rope:
        path = f"{path}.rope_scaling"
        scaling = rope["rope_scaling"] = _mapping(rope["rope_scaling"], _ROPE_SCALING, path)
        _require(scaling, path, "rope_type")
        rule = scaling["rope_type"]
        for key in scaling.keys() - {"rope_type", *SCALING_KEYS[rule]}:
            raise ValueError(f"{path}.{key}: expected no such key, because rope_type {rule} does not use it")
        _require(scaling, path, *SCALING_KEYS[rule][:2])
        if not {"mscale", "mscale_all_dim"}.isdisjoint(scaling):
            _require(scaling, path, "mscale", "mscale_all_dim")
    return rope


def _require(values, path, *keys):
    for key in keys:
        if key not in values:
            raise ValueError(f"{path}.{key}: missing")


def _mapping(values, types, path):
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping, got {values!r}")
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{path}.{key}: unknown key, expected one of {', '.join(types)}")
        numbers = value if types[key] is list and isinstance(value, list) else [value]
        wanted = (int, float) if types[key] in (float, list) else (types[key],)
        if value is not None and not all(type(v) in wanted and _is_finite(v) for v in numbers):
            raise ValueError(f"{path}.{key}: expected {_WORDS[types[key]]}, got {value!r}")
        if value is not None and value not in _CHOICES.get(key, [value]):
            raise ValueError(f"{path}.{key}: expected one of {', '.join(_CHOICES[key])}, got {value}")
    return {key: value for key, value in values.items() if value is not None}


def _is_finite(value):
    return not isinstance(value, float) or math.isfinite(value)


def parse(text, name="job.yaml"):
    """Parses the YAML subset into dicts, lists and scalars."""
    return _Parser(text, name).document()


def dump_job(job, comment=None):
    """Formats a job (dict as from `load_job`) as YAML text; `comment` becomes the first lines."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()] if comment else []
    if job.get("kv_cache"):
        lines.append(f"kv_cache: {_flow(job['kv_cache'])}")
    lines.append("layers:")
    for layer in job["layers"]:
        for i, (key, value) in enumerate(layer.items()):
            lines.append(f"  {'-' if i == 0 else ' '} {key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return str(value)


class _Parser:
    def __init__(self, text, name):
        self.name = name
        self.lines = []
        pending, depth = None, 0
        for number, raw in enumerate(text.splitlines(), 1):
            body = _strip_comment(raw).rstrip()
            if not body.strip() or body == "---":
                continue
            if "\t" in body[: len(body) - len(body.lstrip())]:
                raise self.error(number, "tabs are not allowed in indentation")
            if depth:
                pending[2] += " " + body.strip()
            else:
                pending = [number, len(body) - len(body.lstrip()), body.strip()]
                self.lines.append(pending)
            depth = _open_brackets(pending[2])
        if depth:
            raise self.error(pending[0], "a '[' or '{' is not closed")
        self.at = 0

    def error(self, number, text):
        return ValueError(f"{self.name}:{number}: {text}")

    def document(self):
        if not self.lines:
            return {}
        value = self.block(self.lines[0][1])
        if self.at < len(self.lines):
            raise self.error(self.lines[self.at][0], "unexpected indentation")
        return value

    def block(self, indent):
        text = self.lines[self.at][2]
        if text == "-" or text.startswith("- "):
            return self.sequence(indent)
        return self.mapping(indent)

    def sequence(self, indent):
        items = []
        while self.at < len(self.lines) and self.lines[self.at][1] == indent:
            line = self.lines[self.at]
            if not (line[2] == "-" or line[2].startswith("- ")):
                break
            rest = line[2][1:]
            item = rest.strip()
            if not item:
                self.at += 1
                items.append(self.nested(indent))
            elif _KEY.match(item):
                line[1], line[2] = indent + 1 + len(rest) - len(rest.lstrip()), item
                items.append(self.mapping(line[1]))
            elif item == "-" or item.startswith("- "):
                raise self.error(line[0], f"a list in a list is written in brackets, got '{line[2]}'")
            else:
                self.at += 1
                items.append(self.scalar_or_flow(item, line[0]))
        return items

    def mapping(self, indent):
        result = {}
        while self.at < len(self.lines) and self.lines[self.at][1] == indent:
            number, _, text = self.lines[self.at]
            if text.startswith("- "):
                break
            match = _KEY.match(text)
            if not match:
                raise self.error(number, f"expected 'key: value', got '{text}'")
            key, rest = match.group(1), text[match.end() :].strip()
            if key in result:
                raise self.error(number, f"duplicate key '{key}'")
            self.at += 1
            result[key] = self.scalar_or_flow(rest, number) if rest else self.nested(indent, key=True)
        return result

    def nested(self, indent, key=False):
        if self.at == len(self.lines):
            return None
        _, found, text = self.lines[self.at]
        if found > indent or (key and found == indent and text.startswith("-")):
            return self.block(found)
        return None

    def scalar_or_flow(self, text, number):
        value, rest = self.flow(text, number, top=True)
        if rest.strip():
            raise self.error(number, f"unexpected '{rest.strip()}'")
        return value

    def flow(self, text, number, top=False):
        if text.startswith("["):
            return self.flow_items(text[1:], number, "]")
        if text.startswith("{"):
            return self.flow_items(text[1:], number, "}")
        if text[:1] in ("'", '"'):
            end = text.find(text[0], 1)
            if end < 0:
                raise self.error(number, "a quote is not closed")
            if text[0] == '"' and "\\" in text[:end]:
                raise self.error(number, f"escapes are not part of a job file: {text[: end + 1]}")
            return text[1:end], text[end + 1 :]
        if text[:1] in ("&", "*", "!", "|", ">"):
            raise self.error(number, f"'{text[0]}' is not part of a job file")
        end = len(text) if top else next((i for i, c in enumerate(text) if c in ",]}"), len(text))
        return _scalar(text[:end].strip()), text[end:]

    def flow_items(self, text, number, close):
        result = [] if close == "]" else {}
        text = text.lstrip()
        while not text.startswith(close):
            if close == "}":
                match = _KEY.match(text)
                if not match:
                    raise self.error(number, f"expected 'key: value' in {{...}}, got '{text}'")
                key = match.group(1)
                if key in result:
                    raise self.error(number, f"duplicate key '{key}'")
                result[key], text = self.flow(text[match.end() :], number)
            else:
                value, text = self.flow(text, number)
                result.append(value)
            text = text.lstrip()
            if text.startswith(","):
                text = text[1:].lstrip()
            elif not text.startswith(close):
                raise self.error(number, f"expected ',' or '{close}', got '{text}'")
        return result, text[1:]


def _scalar(text):
    if text.lower() in _SCALAR_WORDS:
        return _SCALAR_WORDS[text.lower()]
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return text


def _unquoted(text):
    """Yields (index, character) of what is outside quotes; those within a word are none."""
    quote = None
    for i, c in enumerate(text):
        if quote:
            quote = None if c == quote else quote
        elif c in "'\"" and (i == 0 or text[i - 1] in " [{,"):
            quote = c
        else:
            yield i, c


def _strip_comment(line):
    for i, c in _unquoted(line):
        if c == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i]
    return line


def _open_brackets(text):
    return sum((c in "[{") - (c in "]}") for _, c in _unquoted(text))
