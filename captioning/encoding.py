"""Encode images in the background while the server works on the ones before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from ..llm.errors import UnusableImage
from .images import encode_image
from .job import ImageSource
from .options import StageOptions


class EncodedAhead:
    """The images of each request, encoded up to `parallel` requests ahead of the one sent.

    A context manager: leaving it drops the images that were not taken.
    """

    def __init__(self, groups: Sequence[Sequence[ImageSource]], settings: StageOptions) -> None:
        self._groups = groups
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="image-refinery-encode")
        self._pending: dict[int, Future[list[str]]] = {}
        self._lock = Lock()
        self._next = 0

    def __enter__(self) -> EncodedAhead:
        self._fill(self._settings.parallel - 1)  # while the model loads
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def take(self, number: int) -> list[str]:
        """Return the base64 images of a request.

        Raises:
            UnusableImage: an image cannot be read.
        """
        self._fill(number + self._settings.parallel)
        return self._pending.pop(number).result()

    def _fill(self, last: int) -> None:
        with self._lock:
            while self._next <= min(last, len(self._groups) - 1):
                images = self._groups[self._next]
                self._pending[self._next] = self._thread.submit(encode_all, images, self._settings)
                self._next += 1


def encode_all(images: Sequence[ImageSource], settings: StageOptions) -> list[str]:
    """Return images as base64 of PNG or JPEG files.

    Raises:
        UnusableImage: an image cannot be read.
    """
    return [_encode(image, settings) for image in images]


def _encode(image: ImageSource, settings: StageOptions) -> str:
    try:
        encoded = encode_image(
            image(), max_side=settings.max_image_side, lossless=settings.lossless
        )
    except (OSError, ValueError) as error:
        raise UnusableImage(f"The image cannot be sent ({error}).") from error
    return encoded.base64
