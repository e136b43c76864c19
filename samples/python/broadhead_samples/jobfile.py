# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the job file without a YAML library.

Covers the YAML that a job file uses: block mappings and lists, flow mappings and lists, plain and quoted
scalars, comments. Anything else (anchors, tags, multi-line strings) is an error that names the line.
"""

import re

_SCALAR_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_KEY = re.compile(r"([A-Za-z_][\w.\-]*)\s*:(?:\s+|$)")


def load_job(path):
    """Reads a job file into a dict with keys `kv_cache` (dict) and `layers` (list of dicts)."""
    with open(path, encoding="utf-8") as source:
        job = parse(source.read(), str(path))
    if not isinstance(job, dict) or not isinstance(job.get("layers"), list) or not job["layers"]:
        raise ValueError(f"{path}: expected a mapping with a non-empty list 'layers'")
    job.setdefault("kv_cache", {})
    for layer in job["layers"]:
        layer.setdefault("num_kv_heads", layer["num_heads"])
    return job


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
        text = text.lstrip()
        if text.startswith("["):
            return self.flow_items(text[1:], number, "]")
        if text.startswith("{"):
            return self.flow_items(text[1:], number, "}")
        if text[:1] in ("'", '"'):
            end = text.find(text[0], 1)
            if end < 0:
                raise self.error(number, "a quote is not closed")
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
                value, text = self.flow(text[match.end() :], number)
                result[match.group(1)] = value
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


def _strip_comment(line):
    quote = None
    for i, c in enumerate(line):
        if quote:
            quote = None if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i]
    return line


def _open_brackets(text):
    quote, depth = None, 0
    for c in text:
        if quote:
            quote = None if c == quote else quote
        elif c in "'\"":
            quote = c
        else:
            depth += (c in "[{") - (c in "]}")
    return depth
