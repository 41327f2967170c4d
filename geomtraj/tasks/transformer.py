"""Transformer encoders, with padding masked: as a classifier, and with a decoder that attends to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.tasks.gpt import MLP, CausalSelfAttention
from geomtraj.tasks.subwords import PAD


class Attention(nn.Module):
    """Multi-head attention to all tokens of a sequence, be it another one or the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        # A bias of the keys would cancel in the softmax: its gradient and curvature are zero.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """Attended values (B, T, width) for x (B, T, width), memory (B, S, width) and where it is text, seen (B, S)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(memory), self.value(memory))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention to the whole sequence and feed-forward layer, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """The residual stream after this block, shape (B, T, width) as the input."""
        y = self.norm1(x)
        x = x + self.attention(y, y, seen)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder's output, feed-forward layer; normalised and added as above."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross = Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """The residual stream after this block, shape (B, T, width) as the input."""
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm2(x), memory, seen)
        return x + self.mlp(self.norm3(x))


class Embedding(nn.Module):
    """The sum of token and learned position embeddings."""

    def __init__(self, vocabulary: int, context: int, width: int):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embedded tokens, shape (B, T, width), for tokens (B, T)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.token(tokens) + self.position(positions)


class Encoder(nn.Module):
    """Embedding and encoder blocks, without dropout.

    Args:
        vocabulary: Number of tokens.
        context: Longest sequence.
        layers: Number of blocks.
        width: Length of the residual stream; a multiple of `heads`.
        heads: Attention heads a block.
    """

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int):
        super().__init__()
        self.embedding = Embedding(vocabulary, context, width)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Encoded positions (B, T, width) for tokens (B, T), which are text where seen (B, T)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)


class Classifier(nn.Module):
    """An encoder whose mean over the tokens of a text feeds a linear layer; options as the encoder's."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int, classes: int):
        super().__init__()
        self.encoder = Encoder(vocabulary, context, layers, width, heads)
        self.head = nn.Linear(width, classes)
        initialise(self, layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape (B, classes), for tokens (B, T) padded at the end."""
        seen = tokens != PAD
        x = self.encoder(tokens, seen)
        weights = seen.to(x.dtype)[:, :, None]
        return self.head((x * weights).sum(dim=1) / weights.sum(dim=1))


class EncoderDecoder(nn.Module):
    """An encoder of the source and a decoder of the target that attends to it.

    Args:
        source_vocabulary: Number of tokens of the source.
        target_vocabulary: Number of tokens of the target.
        context: Longest sequence on either side.
        layers: Blocks of the encoder, and of the decoder.
        width: Length of the residual stream; a multiple of `heads`.
        heads: Attention heads a block.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), with norms before each part and learned positions.
    """

    def __init__(
        self, source_vocabulary: int, target_vocabulary: int, context: int, layers: int, width: int, heads: int
    ):
        super().__init__()
        self.encoder = Encoder(source_vocabulary, context, layers, width, heads)
        self.embedding = Embedding(target_vocabulary, context, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, target_vocabulary, bias=False)
        initialise(self, layers)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the token after each of target (B, T), shape (B, T, vocabulary); both sides padded at the end."""
        seen = source != PAD
        memory = self.encoder(source, seen)
        # Padding stands at the end, where causal attention does not look; its own logits carry no weight.
        x = self.embedding(target)
        for block in self.blocks:
            x = block(x, memory, seen)
        return self.head(self.norm(x))


def initialise(model: nn.Module, layers: int) -> None:
    """Draw weights from Normal(0, 0.02), smaller at the end of residual branches so that their sum keeps its variance.

    Biases are zero, norms the identity.

    Source: GPT-2 (Radford et al. 2019), section 2.3.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            branch = name.endswith(("attention.out.weight", "cross.out.weight", "mlp.down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if branch else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
