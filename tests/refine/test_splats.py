"""Splats without a model: files, cameras, rendering, and colors from images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_refinery.refine.errors import SplatError
from image_refinery.refine.splats import (
    Camera,
    Splat,
    even_sphere,
    fit_colors,
    frame,
    orbit_camera,
    rasterizer,
    read_ply,
    ring,
    solver,
    view_weights,
    write_ply,
)
from image_refinery.refine.splats.colors import to_linear, to_srgb
from torch import Tensor

Draw = Callable[..., Splat]


def random_splat(count: int, bands: int = 1) -> Splat:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Splat(
        positions=0.5 * normal(count, 3),
        scales=(normal(count, 3) - 2).exp(),
        rotations=normal(count, 4),
        opacities=normal(count).sigmoid(),
        sh=normal(count, bands, 3),
    )


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_a_file_holds_all_that_a_splat_has(tmp_path: Path, bands: int) -> None:
    splat = random_splat(50, bands)
    write_ply(splat, tmp_path / "a.ply")
    same = read_ply(tmp_path / "a.ply")
    for name in Splat.__dataclass_fields__:
        torch.testing.assert_close(getattr(same, name), getattr(splat, name), rtol=1e-5, atol=1e-6)
    assert torch.equal(same.sh, splat.sh)


def test_values_that_the_layout_cannot_hold_are_brought_into_range(tmp_path: Path) -> None:
    splat = random_splat(2)
    splat = replace(splat, opacities=torch.tensor([0.0, 1.0]), scales=torch.zeros(2, 3))
    write_ply(splat, tmp_path / "a.ply")
    assert read_ply(tmp_path / "a.ply").opacities.tolist() == pytest.approx([0, 1], abs=1e-5)


def test_a_file_of_another_order_and_type_is_read(tmp_path: Path) -> None:
    names = ["f_dc_2", "opacity", "x", "y", "z", "f_dc_0", "f_dc_1", "extra"]
    names += [*(f"rot_{i}" for i in range(4)), *(f"scale_{i}" for i in range(3))]
    rows = np.zeros(1, [(name, "<f8") for name in names])
    rows["y"], rows["f_dc_1"], rows["scale_2"], rows["rot_0"] = 2, 3, math.log(0.5), 1
    header = "ply\r\nformat binary_little_endian 1.0\r\ncomment a\r\nelement vertex 1\r\n"
    header += "".join(f"property double {name}\r\n" for name in names) + "end_header\r\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + rows.tobytes())
    splat = read_ply(str(tmp_path / "a.ply"))
    assert splat.positions.tolist() == [[0, 2, 0]]
    assert splat.sh.tolist() == [[[0, 3, 0]]]
    assert splat.scales[0].tolist() == pytest.approx([1, 1, 0.5])
    assert splat.opacities.tolist() == [0.5]


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_ply(random_splat(3), path)
        path.write_bytes(change(path.read_bytes()))

    return write


def with_nan(path: Path) -> None:
    splat = random_splat(3)
    splat.positions[1, 1] = math.nan
    write_ply(splat, path)


def mesh(path: Path) -> None:
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\n"
    header += "property float y\nproperty float z\nelement face 1\n"
    header += "property list uchar int vertex_indices\nend_header\n"
    path.write_bytes(header.encode() + bytes(12 + 13))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, r"cannot be read \(No such file or directory\): check the path"),
        (damaged(lambda data: data[:-1]), "is truncated: copy or download"),
        (damaged(lambda data: data[:90]), "has a damaged header: copy"),
        (damaged(lambda data: data.replace(b"vertex 3", b"vertex x")), "has a damaged header"),
        (damaged(lambda data: data.replace(b"float x", b"half x")), "has a damaged header"),
        (damaged(lambda data: data.replace(b"vertex 3", b"vertex 0")), "has no Gaussians: check"),
        (damaged(lambda data: data.replace(b"binary_little_endian", b"ascii")), "is ascii, but"),
        (damaged(lambda data: data.replace(b"f_dc_1", b"f_dc_9")), r"point cloud \(it has no f_dc"),
        (damaged(lambda data: data.replace(b"ply", b"glTF", 1)), "is not a .ply file: convert"),
        (damaged(lambda data: data.replace(b" nx", b" f_rest_0")), "Its 1 values f_rest"),
        (with_nan, "positions contain NaN or infinity: export it again"),
        (mesh, r"not a Gaussian splat but a mesh or a point cloud \(it has no f_dc_0\)"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(
    tmp_path: Path, write: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "a.ply"
    write(path)
    with pytest.raises(SplatError, match=words) as caught:
        read_ply(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).count(". ") == 0


HEADERS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(b"ply", b"format binary_little_endian 1.0", b"end_header", b"element vertex 3"),
                *(b"element vertex -1", b"element vertex 99999999999999999999", b"element face 2"),
                *(b"property list uchar int vertex_indices", b"property double opacity"),
            ]
        ),
        st.builds(b"property float %b".__mod__, st.sampled_from([b"x", b"f_rest_0", b"f_rest_8"])),
        st.binary(max_size=40),
    ),
    max_size=12,
)
CHANGES = st.lists(st.tuples(st.integers(0, 900), st.binary(max_size=6)), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(changes=CHANGES, lines=HEADERS, at=st.integers(0, 20))
def test_no_file_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, bytes]],
    lines: list[bytes],
    at: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.ply"
    write_ply(random_splat(3, 4), path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    for place, data in changes:
        changed[place : place + len(data)] = data
    parts = whole.split(b"\n")
    mixed = b"\n".join([*parts[:at], *lines, *parts[at:]])
    for data in (bytes(changed), mixed, b"ply\n" + b"\n".join(lines)):
        path.write_bytes(data)
        with contextlib.suppress(SplatError):
            assert len(read_ply(path)) > 0


def test_parts_of_other_lengths_are_refused() -> None:
    with pytest.raises(SplatError, match=r"opacities must have the shape \(5,\), not \(5, 1\)"):
        replace(random_splat(5), opacities=torch.ones(5, 1))


def test_cameras_look_at_the_center_from_one_distance(draw_splat: Draw) -> None:
    around = frame(draw_splat(500))
    cameras = [*ring(around, 4, 20.0, 64), *even_sphere(around, 12, 64)]
    offsets = torch.stack([around.center - camera.position for camera in cameras])
    distances = offsets.norm(dim=1)
    torch.testing.assert_close(distances, distances[:1].expand_as(distances))
    forwards = torch.stack([camera.axes[2] for camera in cameras])
    torch.testing.assert_close(offsets / distances[:, None], forwards)
    axes = torch.stack([camera.axes for camera in cameras])
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).double().expand_as(axes))
    assert (axes[:, 1, 1] > 0).all(), "down is down in the image"
    assert (torch.linalg.det(axes) > 0).all(), "nothing is mirrored"
    heights = forwards[4:, 1]
    assert heights.diff().std() < 1e-6, "equal areas have equally many"


def test_the_frame_ignores_a_stray_gaussian(draw_splat: Draw) -> None:
    splat = draw_splat(1000)
    around = frame(splat)
    splat.positions[7] = torch.tensor([900.0, 0, 0])
    assert frame(splat).radius == pytest.approx(around.radius, rel=0.02)


def test_the_frame_moves_with_the_splat(draw_splat: Draw) -> None:
    splat = draw_splat(1000)
    around = frame(splat)
    moved = frame(replace(splat, positions=splat.positions + 10))
    assert moved.radius == pytest.approx(around.radius, rel=1e-3)
    torch.testing.assert_close(moved.center, around.center + 10, rtol=0, atol=1e-3)


def reference(splat: Splat, camera: Camera) -> Tensor:
    """The weights (H, W, N) from the definition, in float64, with no bound on anything."""
    axes = camera.axes
    centers = (splat.positions.double() - camera.position) @ axes.mT
    covariances = axes @ splat.covariances() @ axes.mT
    thickness = covariances.diagonal(dim1=1, dim2=2).mean(dim=1) * 1e-3
    inverse = torch.linalg.inv(covariances + thickness[:, None, None] * torch.eye(3).double())
    rows, columns = torch.meshgrid(
        torch.arange(camera.height), torch.arange(camera.width), indexing="ij"
    )
    x = (columns - camera.width / 2) / camera.focal_px
    y = (rows - camera.height / 2) / camera.focal_px
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1).double()
    order = centers[:, 2].argsort()
    light = torch.ones(camera.height, camera.width).double()
    weights = torch.zeros(camera.height, camera.width, len(splat)).double()
    for one in order.tolist():
        s, m = inverse[one], centers[one]
        along = (rays @ (s @ m)).square() / ((rays @ s) * rays).sum(dim=-1)
        alpha = (splat.opacities[one] * torch.exp(-(m @ s @ m - along) / 2)).clamp_max(0.999)
        weights[..., one] = light * alpha
        light = light * (1 - alpha)
    return weights


@pytest.mark.parametrize("band", [10**9, 500])
def test_the_weights_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, band: int
) -> None:
    monkeypatch.setattr(rasterizer, "_MAX_BAND_PAIRS", band)
    splat = random_splat(40)
    camera = replace(orbit_camera(frame(splat), 20.0, 35.0, 48), width=56)
    weights = view_weights(splat, camera)
    dense = weights.render(torch.eye(40))
    wanted = reference(splat, camera)
    assert wanted.max() > 0.5
    # Each Gaussian ends at alpha 1/512, so each weight behind it may be off by as much.
    assert (dense - wanted).abs().max() < 3 / 512
    assert (dense - wanted).abs().sum(dim=-1).mean() < 4 / 512


def test_what_reaches_behind_the_camera_is_left_out(draw_splat: Draw) -> None:
    splat = draw_splat(300)
    camera = orbit_camera(frame(splat), 0.0, 0.0, 32)
    inside = replace(camera, position=torch.zeros(3).double())
    weights = view_weights(splat, inside)
    assert torch.isfinite(weights.rows.values).all()
    assert 0.5 < weights.coverage.mean() <= 1.0001
    away = replace(camera, position=torch.tensor([0.0, 0, 100]).double())
    assert view_weights(splat, away).coverage.max() == 0


def test_gather_is_the_transpose_of_render(draw_splat: Draw) -> None:
    splat = draw_splat(2000)
    weights = view_weights(splat, orbit_camera(frame(splat), 10.0, 20.0, 64))
    x, y = torch.rand(2000, 3), torch.rand(64, 64, 3)
    left = (weights.render(x).double() * y).sum()
    right = (x.double() * weights.gather(y)).sum()
    assert float(left / right) == pytest.approx(1, abs=1e-4)


def test_a_cancel_ends_the_rendering(draw_splat: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterizer, "_MAX_BAND_PAIRS", 1000)
    splat = draw_splat(1000)
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        view_weights(splat, orbit_camera(frame(splat), 0.0, 0.0, 64), check)
    assert len(calls) == 3


def test_the_curve_of_srgb_and_its_inverse() -> None:
    values = torch.linspace(0, 1, 101)
    torch.testing.assert_close(to_srgb(to_linear(values)), values)
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "views", "size"),
    [(4000, 6, 96), pytest.param(65536, 16, 384, marks=pytest.mark.slow)],
)
def test_consistent_images_are_reached_on_views_that_were_not_given(
    draw_splat: Draw, count: int, views: int, size: int
) -> None:
    from drawn_splats import image_of, psnr

    clean = draw_splat(count)
    around = frame(clean)
    pale = clean.with_changed_colors(0.55 * (0.5 - clean.colors))
    given = [view_weights(clean, one) for one in even_sphere(around, views, size)]
    held_out = [view_weights(clean, one) for one in ring(around, 3, 10.0, size)]
    targets = [image_of(clean, view) for view in given]
    solved = fit_colors(pale, [lambda view=view: view for view in given], targets)
    before, after = psnr(pale, clean, held_out), psnr(solved, clean, held_out)
    assert 15 < before < 19
    assert after >= 35
    assert torch.equal(solved.positions, pale.positions)


def test_what_no_view_shows_keeps_its_color_and_harmonics(draw_splat: Draw) -> None:
    clean = draw_splat(500)
    splat = replace(clean, sh=torch.cat([clean.sh + 3, torch.rand(500, 3, 3)], dim=1))
    camera = orbit_camera(frame(splat), 0.0, 0.0, 48)
    view = view_weights(splat, replace(camera, position=torch.zeros(3).double()))
    target = torch.cat([torch.rand(48, 48, 3), torch.ones(48, 48, 1)], dim=-1)
    solved = fit_colors(splat, [lambda: view], [target])
    hidden = view.gather(torch.ones(48, 48, 1))[:, 0] == 0
    assert 250 < hidden.sum() < 499
    assert torch.equal(solved.sh[hidden], splat.sh[hidden])
    assert torch.equal(solved.sh[:, 1:], splat.sh[:, 1:])
    assert not torch.equal(solved.sh[:, 0], splat.sh[:, 0])


def test_what_the_views_agree_on_is_kept_and_what_they_dispute_is_not(draw_splat: Draw) -> None:
    splat = draw_splat(2000)
    views = [view_weights(splat, one) for one in even_sphere(frame(splat), 6, 64)]
    getters = [lambda view=view: view for view in views]
    sees = torch.stack([view.gather(torch.ones(64, 64, 1))[:, 0] > 0.5 for view in views])
    by_many = sees.sum(0) >= 3

    def targets(colors: list[Tensor]) -> list[Tensor]:
        images = [view.render(to_linear(one)) for view, one in zip(views, colors, strict=True)]
        return [
            torch.cat([to_srgb(image / view.coverage.clamp_min(1e-4)), view.coverage], -1)
            for image, view in zip(images, views, strict=True)
        ]

    same = (splat.colors + 0.1).clamp(0, 1)
    random = torch.Generator().manual_seed(0)
    disputed = [
        (splat.colors + 0.1 * torch.randn(splat.colors.shape, generator=random)).clamp(0, 1)
        for _ in views
    ]
    agreed, disagreed, alone = (
        solver.agreement(splat, some, given)
        for some, given in (
            (getters, targets([same] * 6)),
            (getters, targets(disputed)),
            (getters[:1], targets(disputed)[:1]),
        )
    )
    assert agreed.shape == (2000, 1)
    assert agreed[by_many].mean() > 0.8 > 0.3 > disagreed[by_many].mean()
    assert alone[sees[0]].min() > 0.999, "one view agrees with itself"
    assert all(one.min() >= 0 and one.max() <= 1 for one in (agreed, disagreed, alone))
