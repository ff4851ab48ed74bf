"""Layers that bring data in, to the shapes of their tops: what the file states of them, and no more.

An LMDB or HDF5 file knows sizes that the net does not state. The transformer checks some of them, so that three
``mean_value`` say that there are three channels (``data_transformer.cpp``, ``Transform``).
"""

from __future__ import annotations

from collections.abc import Mapping

from caffe2torch.net.layer_rules import Node, Settings, flag, integer, integers, nested, text
from caffe2torch.net.shape_arithmetic import MisfitError
from caffe2torch.recipe import Layer, Shape

__all__ = [
    "annotated",
    "dense",
    "dummy_data",
    "images",
    "input_",
    "is_input",
    "memory_data",
    "parameter",
    "unknown",
    "video",
]


_OWN_TOPS = frozenset({"ContinuationIndicator", "Parameter"})
"""Layers without bottoms that compute their tops, instead of bringing them in."""


def is_input(layer: Layer) -> bool:
    """Whether a layer brings its tops in from outside."""
    return not layer.bottoms and layer.type not in _OWN_TOPS


def images(node: Node) -> tuple[Shape | None, ...]:
    """A batch of images and one label each: Data, ImageData, WindowData and forks' layers like them."""
    batch = integer(node.settings, "batch_size", 0) or None
    image = (batch, _channels(node.settings), *_sides(node.settings))
    return image, (batch,)


def dense(node: Node) -> tuple[Shape | None, ...]:
    """Images labelled pixel by pixel (SegNet's DenseImageData, DeepLab's ImageSegData, HED's ImageLabelmapData)."""
    image, _ = images(node)
    assert image is not None
    return image, (image[0], 1, *image[2:])


def annotated(node: Node) -> tuple[Shape | None, ...]:
    """SSD's AnnotatedData: a label row for each box."""
    return images(node)[0], (1, 1, None, 8)


def video(node: Node) -> tuple[Shape | None, ...]:
    """yjxiong's VideoData: the frames of all segments as channels. C3D's, with image_data_param: time is an axis."""
    image, _ = images(node)
    assert image is not None
    if "is_color" in node.settings and "modality" not in node.settings:  # ImageDataParameter's, by its default
        return (*image[:1], 3, integer(node.settings, "new_length", 0) or None, *image[2:]), (image[0], 1, 1, 1, 1)
    frames = integer(node.settings, "new_length", 1) * integer(node.settings, "num_segments", 1)
    each = {"RGB": 3, "FLOW": 2}.get(text(node.settings, "modality"))
    channels = image[1] if each is None else each * frames
    return (image[0], channels, *image[2:]), (image[0], 1, 1, 1)


def _channels(settings: Settings) -> int | None:
    transform = nested(settings, "transform_param")
    means = transform.get("mean_value", ())
    if isinstance(means, tuple) and len(means) > 1:
        return len(means)
    if "is_color" in settings:
        return 3 if flag(settings, "is_color") else 1
    if flag(transform, "force_color"):
        return 3
    return 1 if flag(transform, "force_gray") else None


def _sides(settings: Settings) -> tuple[int | None, int | None]:
    """Height and width: of the crop, else of what SSD's transformer or the layer itself resizes to."""
    transform = nested(settings, "transform_param")
    if crop := integer(transform, "crop_size", 0) or integer(settings, "crop_size", 0):
        return crop, crop
    crop_h, crop_w = (integer(transform, f"crop_{side}", 0) for side in "hw")
    if crop_h and crop_w:
        return crop_h, crop_w
    if resize := nested(transform, "resize_param"):
        if text(resize, "resize_mode") in ("", "WARP", "FIT_LARGE_SIZE_AND_PAD"):
            return integer(resize, "height", 0) or None, integer(resize, "width", 0) or None
        return None, None
    return integer(settings, "new_height", 0) or None, integer(settings, "new_width", 0) or None


def memory_data(node: Node) -> tuple[Shape | None, ...]:
    """What the layer states."""
    batch, *sizes = (integer(node.settings, name, 0) or None for name in ("batch_size", "channels", "height", "width"))
    return (batch, *sizes), (batch,)


def input_(node: Node) -> tuple[Shape | None, ...]:
    """What the layer states, for each top or for all."""
    return _stated(_shapes(node.settings), len(node.top_names))


def dummy_data(node: Node) -> tuple[Shape | None, ...]:
    """What the layer states, as ``shape`` or as four lists."""
    old = [integers(node.settings, name) for name in ("num", "channels", "height", "width")]
    return _stated(_shapes(node.settings) or list(zip(*old, strict=False)), len(node.top_names))


def _shapes(settings: Settings) -> list[Shape]:
    blobs = settings.get("shape", ())
    return [integers(one, "dim") for one in blobs if isinstance(one, Mapping)] if isinstance(blobs, tuple) else []


def _stated(shapes: list[Shape], tops: int) -> tuple[Shape | None, ...]:
    """One shape for each top, or one for all."""
    if len(shapes) not in (0, 1, tops):
        raise MisfitError(f"{len(shapes)} shapes for {tops} tops", "give one shape for each top, or one for all")
    return tuple(shapes * tops if len(shapes) == 1 else shapes)


def parameter(node: Node) -> tuple[Shape | None, ...]:
    """The shape of the blob that it holds."""
    return (integers(nested(node.settings, "shape"), "dim"),)


def unknown(node: Node) -> tuple[Shape | None, ...]:
    """HDF5Data: its file alone knows how many axes each top has."""
    return (None,) * len(node.top_names)
