"""Find the colors with which a splat looks like given images.

A view's image is A c, linear in the colors c, so each pass moves every color by the weighted mean
of the differences in the pixels that it shows in: c += r sum A'(t - A c) / (sum A'1 + damping).
This is the simultaneous iterative reconstruction of tomography (SIRT, Gilbert 1972). Few passes
keep what the views agree on and average out what they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .colors import to_linear, to_srgb
from .rasterizer import ViewWeights
from .splat import Splat

RELAXATION = 1.2
"""Below 2 it converges, since no row of A adds up to more than 1. On a fine texture (16,384
Gaussians, 16 views) views that were not given come to 32.5 dB after two passes and 37.3 after four;
with 1 to 30.5 and 35.9, with 1.4 to 30.4 and 37.5, with 1.6 to 26.3 and 31.7.
"""
DAMPING = 0.1
"""In pixels: a Gaussian that all views together show in less area keeps most of its color."""

DOUBT = 2.0
"""What the tiny refiner does to 12,000 Gaussians, 16 views of 192 px, in views that were not given
(docs/adr/0019-splats.md): clean colors lose 2.0 dB with 0, 1.2 with 1, 0.8 with 2, 0.4 with 4, and
colors with noise win 3.8, 3.6, 3.4 and 3.0.
"""


def fit_colors(
    splat: Splat,
    views: Sequence[Callable[[], ViewWeights]],
    targets: Sequence[Tensor],
    passes: int = 4,
    on_view: Callable[[int], None] = lambda done: None,
) -> Splat:
    """Return the splat with colors that come closer to images; nothing else changes.

    Args:
        splat: The splat.
        views: Give the weights of each view, kept or computed again.
        targets: What each view should show: (H, W, 4) on any device, sRGB 0 to 1 and a last channel
            with how much a pixel counts, 0 to 1. The colors are those of the splat alone, without
            any background. Where the splat is transparent, they are not multiplied by its coverage.
        passes: How often all views are compared.
        on_view: Called after each view with how many are done, of passes x views.
    """
    before = to_linear(splat.colors.clamp(0, 1))
    light = before.clone()
    areas = light.new_zeros(len(light), 1)
    done = 0
    for number in range(passes):
        change = torch.zeros_like(light)
        for view, target in zip(views, targets, strict=True):
            weights, target = view(), target.to(light.device, light.dtype)
            change += _change(weights, light, target)
            if number == 0:  # the same in each pass
                areas += weights.gather(target[..., 3:])
            done += 1
            on_view(done)
        light = (light + RELAXATION * change / (areas + DAMPING)).clamp_(0, 1)
    # As a difference, so that a color that no view changes stays bit for bit, also above 1.
    return splat.with_changed_colors(to_srgb(light) - to_srgb(before))


def agreement(
    splat: Splat,
    views: Sequence[Callable[[], ViewWeights]],
    targets: Sequence[Tensor],
    on_view: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return how far the views agree on each Gaussian's change: (N, 1), 0 to 1.

    A view alone would change a Gaussian by d = g / a, where a is its area in the view. If m is the
    mean of these changes by area, and s its standard error, 1 - DOUBT s^2 / m^2 of m is kept, or
    nothing: shrinkage as of James and Stein (1961). One view alone agrees with itself.

    Args:
        splat, views, targets: See `fit_colors`.
        on_view: Called after each view.
    """
    light = to_linear(splat.colors.clamp(0, 1))
    g, gg, ag = (torch.zeros_like(light) for _ in range(3))
    a, aa = (light.new_zeros(len(light), 1) for _ in range(2))
    for view, target in zip(views, targets, strict=True):
        weights, target = view(), target.to(light.device, light.dtype)
        area, change = weights.gather(target[..., 3:]), _change(weights, light, target)
        g, gg, ag = g + change, gg + change.square(), ag + area * change
        a, aa = a + area, aa + area.square()
        on_view()
    mean = g / a.clamp_min(1e-6)
    spread = gg - 2 * mean * ag + mean.square() * aa  # the sum of a^2 (d - m)^2
    error = (spread / (a.square() - aa).clamp_min(aa / 4).clamp_min(1e-12)).sum(-1, keepdim=True)
    return (1 - DOUBT * error / mean.square().sum(-1, keepdim=True).clamp_min(1e-12)).clamp(0, 1)


def _change(weights: ViewWeights, light: Tensor, target: Tensor) -> Tensor:
    """Return what a view's target adds to each Gaussian, times its area there: (N, 3)."""
    wanted = to_linear(target[..., :3]) * weights.coverage
    return weights.gather((wanted - weights.render(light)) * target[..., 3:])
