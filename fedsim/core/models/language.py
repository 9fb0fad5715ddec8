"""Language models: a letter's tokens in, its likelihood out.

A letter is a record whose features are token ids (B, T), stored as float32 like those of any record: a first
token that begins every letter, then the text, then padding, the last id of the vocabulary. A language model
gives each letter two logits (B, 2), of p and 1 − p, where

    p = exp(−ℓ),   ℓ = −1/|z| Σ_t log p(z_t | z_<t)   (nats a token, padding left out).

The cross-entropy with label 0, which everything here trains and measures, is then ℓ itself, and its gradient
that of ℓ. So parties, DP-SGD, strategies and attacks need no word of text; exp of the loss is the perplexity.

Both models are written from linear layers, embeddings and layer norms alone, so that Opacus finds the
gradient of each letter; their output layer shares no weights with the embedding (Li et al. 2022 tie them).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.models.shapes import HEADS

State = list[tuple[Tensor, Tensor]]
"""What a model keeps of the tokens it has read, one pair a layer."""

HEAD_WIDTH = HEADS
LEAST = 1e-6
"""Nats a token below which a letter's likelihood is taken as this: log(1 − p) has no end."""

BLOCK = 256
"""Letters at a time where no gradient is asked for: each takes T × vocabulary numbers."""


class LanguageModel(nn.Module, ABC):
    """Tokens (B, T) → logits (B, 2) of the letter's likelihood; see the module.

    vocabulary: V, number of token ids; the last one is padding
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, width)
        self.output = nn.Linear(width, vocabulary, bias=False)

    @abstractmethod
    def hidden(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return what is known after each token, (B, T, width), and the state; ids: (B, T) int64."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 2) of letters (B, T), ids in any dtype."""
        if not torch.is_grad_enabled() and len(x) > BLOCK:
            return torch.cat([self(part) for part in x.split(BLOCK)])
        ids = x.long()
        nats, present = self._nats(ids)
        mean = nats.sum(1) / present.sum(1).clamp(min=1)  # (B,)
        mean = mean.clamp(min=LEAST)
        return torch.stack([-mean, torch.log(-torch.expm1(-mean))], dim=1)

    def _nats(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return −log p of every token after the first, (B, T − 1), 0 of padding, and which are none."""
        read = ids[:, :-1].contiguous()  # as ghost clipping asks of an embedding's input
        logits = self.output(self.hidden(read)[0])  # (B, T − 1, V)
        target = ids[:, 1:]
        nats = functional.cross_entropy(
            logits.transpose(1, 2), target, ignore_index=self.vocabulary - 1, reduction="none"
        )
        return nats, target != self.vocabulary - 1

    def next(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return log p of the token that follows ids (B, S) int64, (B, V), and the state."""
        hidden, state = self.hidden(ids, state)
        return self.output(hidden[:, -1]).log_softmax(1), state


class Gpt(LanguageModel):
    """A decoder of transformer blocks with learnt positions, layer norms first (Radford et al. 2019).

    width: of every block, a multiple of `HEAD_WIDTH`; length: T, the longest letter in tokens
    """

    def __init__(self, vocabulary: int, width: int, blocks: int, length: int) -> None:
        super().__init__(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)

    def hidden(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See `LanguageModel.hidden`; of a block it holds keys and values (B, heads, S, HEAD_WIDTH)."""
        start = state[0][0].shape[2] if state else 0
        # Repeated for each letter: Opacus takes the first dimension for the batch.
        places = torch.arange(start, start + ids.shape[1], device=ids.device).repeat(len(ids), 1)
        x = self.embedding(ids) + self.position(places)
        kept = []
        for number, block in enumerate(self.blocks):
            x, pair = block(x, state[number] if state else None)
            kept.append(pair)
        return self.norm(x), kept


class _Block(nn.Module):
    """Causal self-attention, then a feed-forward network four times as wide, each added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen, self.activation, self.narrow = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, width = x.shape
        parts = self.query_key_value(self.norm1(x)).reshape(batch, length, 3, self.heads, HEAD_WIDTH)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, S, HEAD_WIDTH)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        scores = query @ key.transpose(2, 3) / HEAD_WIDTH**0.5  # (B, heads, S, S + past)
        unseen = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device)
        scores = scores.masked_fill(unseen.triu(1 + key.shape[2] - length), -torch.inf)
        mixed = (scores.softmax(3) @ value).transpose(1, 2).reshape(batch, length, width)
        x = x + self.project(mixed)
        return x + self.narrow(self.activation(self.widen(self.norm2(x)))), (key, value)


class Lstm(LanguageModel):
    """Layers of long short-term memory (Hochreiter & Schmidhuber 1997), the forget gate open at first.

    widths: of the layers; the embedding is as wide as the first, the output layer reads the last
    """

    def __init__(self, vocabulary: int, widths: list[int]) -> None:
        super().__init__(vocabulary, widths[0])
        self.output = nn.Linear(widths[-1], vocabulary, bias=False)
        inward = [
            nn.Linear(below, 4 * width) for below, width in zip([widths[0], *widths], widths, strict=False)
        ]
        self.inward = nn.ModuleList(inward)
        self.onward = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for width in widths)
        with torch.no_grad():
            for layer, width in zip(inward, widths, strict=True):
                layer.bias[width : 2 * width] += 1

    def hidden(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See `LanguageModel.hidden`; the state holds h and c, (B, width) each, of a layer."""
        x = self.embedding(ids)
        kept = []
        for number, (inward, onward) in enumerate(zip(self.inward, self.onward, strict=True)):
            width = onward.in_features
            h, c = state[number] if state else (x.new_zeros(len(ids), width), x.new_zeros(len(ids), width))
            outputs = []
            for gates in inward(x).unbind(1):  # (B, 4 · width) a token
                i, f, o, g = (gates + onward(h)).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            x = torch.stack(outputs, 1)
            kept.append((h, c))
        return x, kept


def token_nats(model: LanguageModel, letters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of each token after the first, −log p, and mean and deviation of log p over the vocabulary.

    letters: (B, T) ids. All (B, T − 1) float32, NaN where there is padding. The moments are those under the
    model's own prediction, Σ_v p_v log p_v and its standard deviation (Zhang et al. 2025, Min-K%++, eq. 3).
    """
    parts = []
    for ids in letters.long().split(BLOCK // 4):
        logs = model.output(model.hidden(ids[:, :-1])[0]).log_softmax(2)  # (B, T − 1, V)
        mean = (logs.exp() * logs).sum(2)
        deviation = ((logs.exp() * logs.square()).sum(2) - mean.square()).clamp(min=0).sqrt()
        nats = -logs.gather(2, ids[:, 1:, None])[:, :, 0]
        padding = ids[:, 1:] == model.vocabulary - 1
        parts.append(torch.stack([nats, mean, deviation]).masked_fill(padding, torch.nan))
    nats, mean, deviation = torch.cat(parts, 1)
    return nats, mean, deviation


@torch.no_grad()
def token_accuracy(model: LanguageModel, letters: Tensor) -> float:
    """Return the share of tokens after the first that the model finds the likeliest; letters: (B, T) ids."""
    right = tokens = 0
    for ids in letters.long().split(BLOCK):
        present = ids[:, 1:] != model.vocabulary - 1
        likeliest = model.output(model.hidden(ids[:, :-1])[0]).argmax(2)
        right += int(((likeliest == ids[:, 1:]) & present).sum())
        tokens += int(present.sum())
    return right / max(tokens, 1)
