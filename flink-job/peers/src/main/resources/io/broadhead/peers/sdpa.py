# SPDX-License-Identifier: Apache-2.0
"""Writes sdpa.pt, the TorchScript module that PyTorchPeer calls: python sdpa.py sdpa.pt."""

import sys

import torch


class Attention(torch.nn.Module):
    """Scaled dot product attention; causal where there are as many queries as keys and no mask."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ):
        """Attends with query [batch, heads, tokens, head_size]; keys may have fewer heads."""
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.size(2) == key.size(2),
            enable_gqa=query.size(1) != key.size(1),
        )


torch.jit.script(Attention()).save(sys.argv[1])
