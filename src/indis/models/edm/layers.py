r"""The layers of EDM's networks (Karras et al., 2022, App. F.4), with published parameter names.

Weights of convolutions and norms may be of half precision. Embeddings of the noise level, of the
class and of augmentations are computed in the dtype of the level, since a level in half precision
would merge neighbouring times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PERIOD = 10_000


class Linear(nn.Linear):
    """A linear layer in the dtype of its input, whatever that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, out)`` of ``(batch, in)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a norm of at most 32 groups, each of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, at frequencies that fall geometrically from 1 (Vaswani et al., 2017).

    Args:
        channels: size of the embedding, even.
        endpoint: whether the last frequency is 1/10000, as in DDPM++, or the one before it, as in
            ADM.
    """

    def __init__(self, channels: int, *, endpoint: bool = False) -> None:
        super().__init__()
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, level: Tensor) -> Tensor:
        """Return ``(batch, channels)`` of noise levels ``(batch,)``."""
        # In float32 whatever the level's dtype: the published networks know these frequencies.
        exponent = torch.arange(self.count, dtype=torch.float32, device=level.device)
        exponent = exponent / (self.count - self.endpoint)
        angle = level.outer(((1 / MAX_PERIOD) ** exponent).to(level.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, at random frequencies that are part of the weights (NCSN++).

    Args:
        channels: size of the embedding, even.
    """

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, level: Tensor) -> Tensor:
        """Return ``(batch, channels)`` of noise levels ``(batch,)``."""
        angle = level.outer((2 * math.pi * self.freqs).to(level.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Conv(nn.Module):
    """A convolution of stride one, after or before a change of resolution by a factor of two.

    Args:
        cin: number of input channels.
        cout: number of output channels.
        kernel: width of the kernel, odd; 0 changes the resolution and nothing else.
        resample: "up", "down" or None.
        taps: the filter of the resampling, along each axis.
        resample_last: whether the resampling follows the convolution, which then pads for both.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        *,
        resample: str | None = None,
        taps: Sequence[float] = (1, 1),
        resample_last: bool = False,
    ) -> None:
        super().__init__()
        self.cout, self.resample, self.resample_last = cout, resample, resample_last
        self.weight = nn.Parameter(torch.empty(cout, cin, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(cout)) if kernel else None
        if self.weight is not None:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch's convolutions
        line = torch.tensor(taps, dtype=torch.float32)
        square = line.outer(line)[None, None] / line.sum().square()
        self.register_buffer("resample_filter", square if resample else None)
        self.pad, self.filter_pad = kernel // 2, (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, cout, ...)`` of pictures ``(batch, cin, height, width)``."""
        if self.resample_last:
            x = self._convolved(x, self.pad + self.filter_pad)
            return self._resampled(x, padding=0)
        x = self._resampled(x, padding=self.filter_pad)
        return x if self.weight is None else self._convolved(x, self.pad)

    def _convolved(self, x: Tensor, padding: int) -> Tensor:
        assert self.weight is not None
        return F.conv2d(x, self.weight, self.bias, padding=padding)

    def _resampled(self, x: Tensor, padding: int) -> Tensor:
        if self.resample_filter is None:
            return x
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.resample == "up":
            return F.conv_transpose2d(x, 4 * taps, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=channels)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Return self-attention over the positions of a picture.

    Args:
        qkv: ``(batch, 3 channels, height, width)``: heads outermost, then channels of a head, then
            query, key and value side by side.
        heads: number of heads.

    Returns:
        ``(batch, channels, height, width)``.
    """
    batch, triple, *size = qkv.shape
    parts = qkv.reshape(batch, heads, triple // (3 * heads), 3, -1)
    if qkv.dtype == torch.float64:
        # As published, weights are of single precision even here.
        q, k, v = (part.flatten(0, 1) for part in parts.unbind(3))
        logits = torch.einsum("ncq,nck->nqk", q.float(), (k / math.sqrt(k.shape[1])).float())
        answer = torch.einsum("nqk,nck->ncq", logits.softmax(2).to(v.dtype), v)
    else:
        q, k, v = parts.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        answer = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
    return answer.reshape(batch, triple // 3, *size)


class Block(nn.Module):
    """A residual block with the noise level's embedding, and attention after it if asked for.

    Args:
        cin: number of input channels.
        cout: number of output channels.
        emb: size of the embedding.
        resample: "up", "down" or None.
        heads: number of attention heads; 0 for no attention.
        taps: filter of the resampling.
        dropout: probability in training.
        skip_scale: factor of every sum of a branch and its shortcut.
        eps: of the norms.
        project: whether a resampled shortcut has weights even if channels stay.
        adaptive_scale: whether the embedding scales and shifts (ADM) or only shifts (DDPM++).
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        emb: int,
        *,
        resample: str | None = None,
        heads: int = 0,
        taps: Sequence[float] = (1, 1),
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        project: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.cin, self.cout, self.heads = cin, cout, heads
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        self.norm0 = group_norm(cin, eps)
        self.conv0 = Conv(cin, cout, 3, resample=resample, taps=taps)
        self.affine = Linear(emb, 2 * cout if adaptive_scale else cout)
        self.norm1 = group_norm(cout, eps)
        self.conv1 = Conv(cout, cout, 3)
        self.skip = None
        if resample or cin != cout:
            kernel = 1 if project or cin != cout else 0
            self.skip = Conv(cin, cout, kernel, resample=resample, taps=taps)
        if heads:
            self.norm2 = group_norm(cout, eps)
            self.qkv = Conv(cout, 3 * cout, 1)
            self.proj = Conv(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return ``(batch, cout, ...)``.

        Args:
            x: ``(batch, cin, height, width)``.
            emb: ``(batch, emb)``.
        """
        h = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + params))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.heads:
            x = (self.proj(attend(self.qkv(self.norm2(x)), self.heads)) + x) * self.skip_scale
        return x
