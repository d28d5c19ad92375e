"""From an InteractionRequest and the newest messages of the input topics to a checked `GenerationRequest`.

Every refusal that does not depend on the model happens here, before the request waits for it, and says what
came and what was expected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.image_messages import read_colour, read_depth, read_distortion, read_intrinsics, read_mask
from mask2iv_ros.msg import InteractionRequest
from mask2iv_ros.planning.assess import Geometry
from mask2iv_ros.planning.path import DEPTH_RANGE, object_depth
from mask2iv_ros.planning.request import GenerationRequest, InvalidRequest, check_request
from mask2iv_ros.ros.perception_buffer import PerceptionBuffer

#: Input topics of the node and their types.
INPUTS = {
    'image': Image,
    'object_mask': Image,
    'actor_mask': Image,
    'depth': Image,
    'camera_info': CameraInfo,
}
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Limits:
    """The node's parameters that a request is held against; see `mask2iv_ros.ros.parameters`."""

    num_samples: int
    max_samples: int
    seed: int
    num_inference_steps: int
    max_image_pixels: int
    max_stamp_difference: float
    max_age: float
    rectified: bool


@dataclass
class Observation:
    """What a request observes.

    Attributes:
        request: ready for `generate_plans`.
        header: stamp and frame of the camera image.
        geometry: depth, float32 and 0 where invalid, and calibration; None if they do not fit the image.
        no_path: why there can be no 3-D path, '' if there can.
        no_actor: why an actor mask that was received once is not used, '' if it is or there is none.
        buffer_time: seconds spent on choosing and reading messages.
    """

    request: GenerationRequest
    header: Header
    geometry: Geometry | None
    no_path: str
    no_actor: str
    buffer_time: float


def read_request(
    message: InteractionRequest,
    buffer: PerceptionBuffer,
    limits: Limits,
    now: int,
    source: Callable[[str], str],
) -> Observation:
    """Complete `message` from `buffer`, check everything and convert it.

    Args:
        now: the node's time, nanoseconds.
        source: what to tell a user about where an input comes from: its topic and how many publish on it.

    Raises:
        InvalidRequest, ImageError: with the `code` of the refusal.
    """
    start = time.perf_counter()
    numbers = _read_numbers(message, limits)
    messages, no_actor = _choose_messages(message, buffer, limits, now, source)
    image = messages['image']
    pixels = image.width * image.height
    if not pixels:
        raise InvalidRequest('SIZE_MISMATCH', f'image: {image.width} x {image.height} pixels, expected some')
    if pixels > limits.max_image_pixels:
        raise InvalidRequest(
            'IMAGE_TOO_LARGE',
            f'image: {image.width} x {image.height} = {pixels} pixels, expected at most '
            f"{limits.max_image_pixels} (the node's parameter max_image_pixels)",
        )
    for name in ('object_mask', 'actor_mask', 'goal_mask'):  # before reading masks of any size
        mask = messages.get(name)
        if mask is not None and (mask.width, mask.height) != (image.width, image.height):
            raise InvalidRequest(
                'SIZE_MISMATCH',
                f'{name}: {mask.width} x {mask.height} pixels, expected those of the image, '
                f'{image.width} x {image.height}',
            )
    masks = {
        name: read_mask(messages[name], name)
        for name in ('object_mask', 'actor_mask', 'goal_mask')
        if name in messages
    }
    request = GenerationRequest(
        frame=read_colour(image),
        task=message.task,
        goal_pixel=(message.goal_pixel[0].x, message.goal_pixel[0].y) if message.goal_pixel else None,
        trajectory_only=message.trajectory_only,
        **masks,
        **numbers,
    )
    check_request(request)
    geometry = _read_geometry(messages, request.object_mask, limits.rectified)
    return Observation(request, image.header, *geometry, no_actor, time.perf_counter() - start)


def _read_numbers(message: InteractionRequest, limits: Limits) -> dict[str, int]:
    num_samples = message.num_samples or limits.num_samples
    seed = message.seed or limits.seed
    for name, value, high in (
        ('num_samples', num_samples, limits.max_samples),
        ('seed of the last plan', seed + num_samples - 1, MAX_SEED),
    ):
        if value > high:
            raise InvalidRequest('INVALID_PARAMETER', f'{name}: {value}, expected at most {high}')
    return {
        'num_samples': num_samples,
        'num_inference_steps': message.num_inference_steps or limits.num_inference_steps,
        'seed': seed,
    }


#: Seconds behind the image after which an actor mask counts as silent where `max_age` does not say it.
SILENT = 2.0


def _choose_messages(
    message: InteractionRequest,
    buffer: PerceptionBuffer,
    limits: Limits,
    now: int,
    source: Callable[[str], str],
) -> tuple[dict[str, Image | CameraInfo], str]:
    """The request's own images, completed from the topics with those that are closest in stamp.

    The request's own image is completed only with what must be there (the object mask) or fits its stamp and
    size. Its own object mask without an image goes with the image of its stamp. An actor mask is not asked
    for any more once its topic has been silent for longer than `max_age` (or `SILENT`, where that is 0).

    Returns:
        The messages, and why the actor mask of the topic is not among them.
    """
    own = {
        name: getattr(message, name)
        for name in ('image', 'object_mask', 'actor_mask', 'goal_mask')
        if len(getattr(message, name).data)
    }
    for name in ('image', 'object_mask', 'actor_mask', 'goal_mask'):
        given = getattr(message, name)
        if name not in own and (given.width or given.height or given.encoding):
            raise InvalidRequest(
                'SIZE_MISMATCH',
                f'{name}: {given.width} x {given.height} pixels of encoding {given.encoding!r}, but no data',
            )
    for name, code in (('image', 'NO_IMAGE'), ('object_mask', 'NO_OBJECT_MASK')):
        if name not in own and buffer.newest(name) is None:
            raise InvalidRequest(code, f'no {name} in the request and none received yet on {source(name)}')

    missing = [name for name in ('object_mask', 'actor_mask') if name not in own]
    oldest = now - round(limits.max_age * 1e9) if limits.max_age else 0
    no_actor = ''
    actor = buffer.newest('actor_mask')
    if 'image' not in own and 'actor_mask' in missing and actor:
        silence = (buffer.newest('image').stamp - actor.stamp) / 1e9
        if silence > (limits.max_age or SILENT):
            missing.remove('actor_mask')
            no_actor = f'the newest on {source("actor_mask")} is {silence:.1f} s older than the image'
    # Of which time the caller's own images are, nanoseconds; 0: they do not say.
    reference = next((_stamp(own[name]) for name in ('image', 'object_mask') if name in own), 0)
    of_own_time = 'image' in own or reference > 0
    if 'image' in own:
        chosen = {name: buffer.closest(name, reference) for name in missing if buffer.newest(name)}
        if not reference:  # it cannot be matched, so the caller takes the newest mask for what it shows
            chosen = {name: buffer.newest(name) for name in missing if name == 'object_mask'}
    elif reference:
        missing.insert(0, 'image')
        chosen = {name: buffer.closest(name, reference) for name in missing if buffer.newest(name)}
    else:
        tolerance = round(limits.max_stamp_difference * 1e9)
        chosen, _ = buffer.matching('image', missing, tolerance, oldest)
        with_depth, spread = buffer.matching('image', [*missing, 'depth'], tolerance, oldest)
        older = chosen['image'].stamp - with_depth['image'].stamp
        if spread <= tolerance and older <= tolerance:  # rather a little older than without its depth
            chosen = with_depth
    if 'image' in chosen and chosen['image'].stamp < oldest:
        raise InvalidRequest(
            'STALE_INPUT',
            f'image: the {"one of the object_mask" if reference else "newest"} on {source("image")} is '
            f'{(now - chosen["image"].stamp) / 1e9:.3f} s old, '
            f"expected at most {limits.max_age} s (the node's parameter max_age)",
        )

    if 'image' in chosen and not reference:
        reference = chosen['image'].stamp

    def difference(found) -> float:
        return abs(found.stamp - reference) / 1e9

    for name in missing if reference else ():
        if name in chosen and difference(chosen[name]) > limits.max_stamp_difference:
            if name == 'actor_mask' and of_own_time:
                del chosen[name]
                no_actor = f'none on {source(name)} is of the time of the image'
                continue
            kept = name if 'image' in own else 'image'
            raise InvalidRequest(
                'STALE_INPUT',
                f'{name}: the closest stamp on {source(name)} is {difference(chosen[name]):.3f} s from the '
                f"{'object_mask' if name == 'image' else 'image'}'s, expected at most "
                f"{limits.max_stamp_difference} s (the node's parameter max_stamp_difference); the last "
                f'{buffer.span(kept):.1f} s of {kept} are kept (buffer_size)',
            )
    if 'image' in chosen:
        reference = chosen['image'].stamp
    # Depth and calibration are extras: without a fitting one the plan only lacks its 3-D path.
    depth = buffer.closest('depth', reference)
    if depth and difference(depth) <= limits.max_stamp_difference:
        chosen['depth'] = depth
    if calibration := buffer.newest('camera_info'):  # often latched, once
        chosen['camera_info'] = calibration
    messages = own | {name: deserialize_message(found.data, INPUTS[name]) for name, found in chosen.items()}
    for name in missing if 'image' in own else ():  # the topics may be those of another camera
        if name in messages and _other_frame(messages[name], own['image']):
            if name == 'object_mask':
                raise InvalidRequest(
                    'NO_OBJECT_MASK',
                    f'no object_mask in the request, and that of {source(name)} is of frame '
                    f'{messages[name].header.frame_id!r}, the image of {own["image"].header.frame_id!r}',
                )
            del messages[name]
            no_actor = f'that of {source(name)} is of another frame than the image'
    if 'image' in own and 'actor_mask' in missing and 'actor_mask' in messages:
        sizes = [(found.width, found.height) for found in (messages['actor_mask'], own['image'])]
        if sizes[0] != sizes[1]:
            del messages['actor_mask']
            no_actor = f'that of {source("actor_mask")} is of another size than the image'
    return messages, no_actor


def _stamp(image: Image) -> int:
    return image.header.stamp.sec * 1_000_000_000 + image.header.stamp.nanosec


def _other_frame(message: Image | CameraInfo, image: Image) -> bool:
    """Whether both say of which frame they are, and it is not one."""
    frames = {found.header.frame_id.lstrip('/') for found in (message, image)} - {''}
    return len(frames) > 1


def _read_geometry(messages: dict, object_mask: np.ndarray, rectified: bool) -> tuple[Geometry | None, str]:
    """Depth and calibration that fit the image, or why there are none."""
    image = messages['image']
    for name in ('depth', 'camera_info'):
        found = messages.get(name)
        if found is None:
            return None, f'no {name} with a stamp close to the image'
        if (found.width, found.height) != (image.width, image.height):
            sizes = f'{found.width} x {found.height} pixels, the image {image.width} x {image.height}'
            return None, f'{name} is {sizes}'
        if _other_frame(found, image):
            frames = f'of frame {found.header.frame_id!r}, the image of {image.header.frame_id!r}'
            return None, f'{name} is {frames}: align it to the image'
    calibration = messages['camera_info']
    intrinsics = read_intrinsics(calibration, rectified)
    if intrinsics is None:
        return None, f'camera_info is not calibrated ({"P" if rectified else "K"} is empty)'
    try:
        distortion = None if rectified else read_distortion(calibration)
        depth = read_depth(messages['depth'])
    except ValueError as error:  # ImageError is one
        return None, str(error)
    if object_depth(depth, object_mask) is None:
        low, high = DEPTH_RANGE
        return None, f'depth has no value between {low} and {high} m in object_mask'
    return Geometry(depth, intrinsics, distortion), ''
