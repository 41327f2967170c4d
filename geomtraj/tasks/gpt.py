"""A small GPT: pre-norm decoder blocks with learned positions, written plainly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and those before it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attended values, shape (B, T, width) as the input."""
        batch, positions, width = x.shape
        split = self.qkv(x).reshape(batch, positions, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, positions, width))


class MLP(nn.Module):
    """The feed-forward layer, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transformed positions, shape as the input."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and feed-forward layer, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after this block, shape as the input."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder-only transformer for next-token prediction, without dropout.

    Args:
        vocabulary: Number of tokens.
        context: Longest sequence.
        layers: Number of blocks.
        width: Length of the residual stream; a multiple of `heads`.
        heads: Attention heads a block.
        tied: Whether the output layer is the embedding's transpose.
    """

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int, tied: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        # Normal(0, 0.02), and residual branches scaled down so that their sum keeps its variance (GPT-2).
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                branch = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if branch else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, shape (B, T, vocabulary), for tokens (B, T)."""
        # Every layer sees the example axis first, the position embedding too.
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.embedding(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
