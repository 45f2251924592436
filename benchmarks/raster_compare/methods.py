"""The rasterizers that are compared. Each prepares a case, or says why it cannot run.

A prepared case is run by one call, which returns when all images of the case are finished on its device;
what was rendered is fetched outside the clock.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import EngineError
from ...runtime.rasterizer import Rasterizer, RenderBuffers, Splats
from ..raster_cuda import upload

Float32 = NDArray[np.float32]
BACKGROUND = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Case:
    """One point of the sweeps: a made-up scene and how it is rendered.

    Attributes:
        gaussians: of two key frames. height, width: pixels. sigma_px: standard deviation in pixels.
        threads: of the CPU. times: images per call, all of the same Gaussians.
    """

    gaussians: int
    height: int
    width: int
    sigma_px: float
    threads: int
    times: int

    @property
    def pairs(self) -> int:
        """Pairs of a Gaussian and a pixel in one image, near or far."""
        return self.gaussians * self.height * self.width


class Image(NamedTuple):
    """float32: rgb [H, W, 3] over grey, accumulated depth [H, W], alpha [H, W]."""

    rgb: Float32
    depth: Float32
    alpha: Float32


class Prepared(Protocol):
    """A case with everything allocated."""

    def run(self) -> None:
        """Render all images of the case and wait for them."""

    def image(self) -> Image:
        """The last image of the last `run`, on the host."""


class Method(Protocol):
    """One rasterizer.

    Attributes:
        name, title: for JSON and for people. on_cpu: whether the number of threads matters.
        tolerance: largest difference from the dense renderer, in pixels where no decision hangs on rounding.
    """

    name: str
    title: str
    on_cpu: bool
    tolerance: float

    def prepare(self, case: Case, scene: Splats) -> Prepared:
        """Raises EngineError where it cannot run; the message is the reason."""


class Cpp:
    """Ours on the CPU; a call renders the images of a case one after the other."""

    name, title, on_cpu, tolerance = "cpp", "ours, C++", True, 1e-4

    def prepare(self, case: Case, scene: Splats) -> Prepared:
        rasterizer = Rasterizer(case.height, case.width, threads=case.threads)
        return _OnCpp(rasterizer, scene, case.times)


class _OnCpp:
    def __init__(self, rasterizer: Rasterizer, scene: Splats, times: int) -> None:
        self._rasterizer, self._scene, self._times = rasterizer, scene, times
        self._buffers = RenderBuffers.allocate(rasterizer.height, rasterizer.width)

    def run(self) -> None:
        for _ in range(self._times):
            self._rasterizer.render(self._scene, background=BACKGROUND, out=self._buffers)

    def image(self) -> Image:
        return Image(self._buffers.rgb, self._buffers.depth, self._buffers.alpha)


class Cuda:
    """Ours on a GPU; all images of a case in one launch. Timed by the host's clock, like the others."""

    name, title, on_cpu, tolerance = "cuda", "ours, CUDA", False, 1e-4

    def __init__(self, device: Any = None) -> None:
        """`device`: a `runtime.cuda.device.Device`; None opens the first GPU."""
        self._device = device

    def prepare(self, case: Case, scene: Splats) -> Prepared:
        if self._device is None:
            from ...runtime.cuda.cupy_device import CupyDevice

            self._device = CupyDevice()
        return _OnCuda(self._device, case, scene)


class _OnCuda:
    def __init__(self, device: Any, case: Case, scene: Splats) -> None:
        from ...runtime.cuda.rasterizer import CudaRasterizer

        self._device = device
        self._splats = upload(device, scene)
        self._rasterizer = CudaRasterizer(
            device,
            case.height,
            case.width,
            case.gaussians,
            times=case.times,
            outputs=("rgb", "depth", "alpha"),
        )
        self._images: Any = None

    def run(self) -> None:
        self._images = self._rasterizer.render(self._splats)
        self._device.synchronize()

    def image(self) -> Image:
        return Image(
            *(self._fetch(part) for part in (self._images.rgb, self._images.depth, self._images.alpha))
        )

    def _fetch(self, array: Any) -> Float32:
        host = self._device.pinned(array.shape, np.float32)
        self._device.copy(host, array)
        self._device.synchronize()
        return np.array(host[-1])


class Dense:
    """Every Gaussian at every pixel in float32 torch operations on the CPU.

    Args:
        most_pairs: cases with more pairs of a Gaussian and a pixel in all images are refused: they take
            minutes.
    """

    name, title, on_cpu, tolerance = "dense", "dense torch", True, 1e-3

    def __init__(self, most_pairs: float) -> None:
        self._most = most_pairs

    def prepare(self, case: Case, scene: Splats) -> Prepared:
        if case.pairs * case.times > self._most:
            raise EngineError(
                f"Gaussians times pixels times images are more than --dense-pairs {self._most:.0e}."
            )
        return _OnDense(case, scene)


class _OnDense:
    def __init__(self, case: Case, scene: Splats) -> None:
        import torch

        self._case = case
        self._inputs = dense_inputs(scene, torch.float32)
        self._result: Any = None

    def run(self) -> None:
        import torch

        from ...training import dense_renderer

        torch.set_num_threads(self._case.threads)
        with torch.no_grad():
            for _ in range(self._case.times):
                self._result = dense_renderer.render(
                    *self._inputs, self._case.height, self._case.width, margin=None
                )

    def image(self) -> Image:
        return Image(*(self._result[part].numpy() for part in range(3)))


def dense_inputs(scene: Splats, dtype: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """A scene as `training.dense_renderer.render` takes it: xz, depth, scale, opacity, rgb, background."""
    import torch

    def tensor(array: Float32) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

    return (
        tensor(scene.means[:, [0, 2]]),
        tensor(scene.means[:, 1]),
        tensor(scene.scales[:, [0, 2]]),
        tensor(scene.opacity),
        tensor(scene.rgb),
        tensor(np.array(BACKGROUND, np.float32)),
    )


class Gsplat:
    """The orthographic camera of gsplat (its own CUDA kernels, called from torch).

    It limits a Gaussian to other rectangles and clamps alpha at another value, so that its images differ from
    the published model's by what is in the tails.
    """

    name, title, on_cpu, tolerance = "gsplat", "gsplat, orthographic", False, 3e-2

    def prepare(self, case: Case, scene: Splats) -> Prepared:
        if importlib.util.find_spec("gsplat") is None:
            raise EngineError(
                "gsplat is not installed.", "pip install gsplat, next to a CUDA build of torch."
            )
        import torch

        if not torch.cuda.is_available():
            raise EngineError(f"gsplat needs CUDA, and torch {torch.__version__} sees no device.")
        return OnGsplat(case, scene, "cuda")


class OnGsplat:
    """A case for `gsplat.rasterization`: pixel centres at +0.5, focal lengths in pixels per world unit."""

    def __init__(self, case: Case, scene: Splats, device: str) -> None:
        import torch

        def on_device(values: Any) -> Any:
            return torch.as_tensor(np.ascontiguousarray(values, np.float32), device=device)

        self._device, self._case = device, case
        count = len(scene.opacity)
        self._gaussians = [
            on_device(part)
            for part in (
                scene.means,
                np.tile([1.0, 0.0, 0.0, 0.0], (count, 1)),
                scene.scales,
                scene.opacity,
                scene.rgb,
            )
        ]
        # x right, y down, z depth, as `View.canonical`.
        view = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float32)
        fx, fy = case.width / 2, case.height / 2
        intrinsics = np.array([[fx, 0, fx], [0, fy, fy], [0, 0, 1]], np.float32)
        self._views = on_device(np.tile(view, (case.times, 1, 1)))
        self._intrinsics = on_device(np.tile(intrinsics, (case.times, 1, 1)))
        self._background = on_device(np.tile(BACKGROUND, (case.times, 1)))
        self._result: Any = None

    def run(self) -> None:
        import gsplat
        import torch

        with torch.no_grad():
            self._result = gsplat.rasterization(
                *self._gaussians,
                self._views,
                self._intrinsics,
                self._case.width,
                self._case.height,
                near_plane=0.0,
                eps2d=0.3,
                packed=False,
                backgrounds=self._background,
                render_mode="RGB+D",
                camera_model="ortho",
            )
            if self._device == "cuda":
                torch.cuda.synchronize()

    def image(self) -> Image:
        colours, alphas = (part[-1].cpu().numpy() for part in self._result[:2])
        return Image(colours[..., :3], colours[..., 3], alphas[..., 0])


def all_methods(dense_pairs: float) -> Sequence[Method]:
    """Every method, in the order of tables and pictures."""
    return (Cpp(), Cuda(), Dense(dense_pairs), Gsplat())
