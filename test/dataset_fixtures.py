"""Small folders in the layouts of BridgeData V2 and HOI4D. Picture t tells t."""

import functools
import json
import pickle
from pathlib import Path

import av
import cv2
import numpy as np

SIZE = (32, 32)
DATED = 'toykitchen1/put_pot/00/2022-01-01_00-00-00'


def picture(t, camera=0):
    """(32, 32, 3) uint8 RGB: t in black and white squares above, a colour that tells the camera below."""
    bits = (t >> np.arange(16) & 1).reshape(2, 8)
    rgb = np.full((*SIZE, 3), (20, 90, 200 - 60 * camera), np.uint8)
    rgb[:16] = (np.kron(bits, np.ones((8, 4))) * 255)[..., None]
    return rgb


def number_of(frame):
    """The t of a picture that went through a lossy codec."""
    bits = frame[:16].reshape(2, 8, 8, 4, 3).mean(axis=(1, 3, 4)) > 127
    return int((bits.reshape(-1) << np.arange(16)).sum())


def write_picture(path, rgb):
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
    path.write_bytes(_encode(path.suffix, rgb.shape, rgb.dtype.str, rgb.tobytes()))


@functools.cache
def _encode(suffix, shape, dtype, data):
    rgb = np.frombuffer(data, dtype).reshape(shape)
    return cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]) if rgb.ndim == 3 else rgb)[1].tobytes()


# --- BridgeData V2


def write_trajectory(
    root,
    name='traj0',
    dated=DATED,
    images=20,
    cameras=1,
    lang='Put the silver pot on the stove\nconfidence: 0.9\n',
    arrays=False,
    masks=False,
    protocol=4,
):
    """A trajectory as the robot's raw saver writes one; action t is t seven times, state t is 100 + t."""
    folder = Path(root) / dated / 'raw/traj_group0' / name
    for camera in range(cameras):
        for t in range(images):
            write_picture(folder / f'images{camera}/im_{t}.jpg', picture(t, camera))
    actions = [np.full(7, t, np.float64) for t in range(images - 1)]
    policy = actions if arrays else [{'actions': a, 'policy_type': 'VRTeleop'} for a in actions]
    (folder / 'policy_out.pkl').write_bytes(pickle.dumps(policy, protocol))
    states = np.repeat(100.0 + np.arange(images)[:, None], 7, axis=1)
    observations = {
        'full_state': states,
        'env_done': np.zeros(images, bool),
        'time_stamp': list(range(images)),
    }
    (folder / 'obs_dict.pkl').write_bytes(pickle.dumps(observations, protocol))
    if lang is not None:
        (folder / 'lang.txt').write_text(lang)
    if masks:
        write_trajectory_masks(folder / 'masks', images)
    return folder


def trajectory_mask(t, size=SIZE):
    """Grey picture: object (255) at rest at the left, robot (128) moving down from the top right."""
    grey = np.zeros(size, np.uint8)
    grey[10:20, 2:12] = 255
    grey[: 4 + t % 16, 20:26] = 128
    return grey


def write_trajectory_masks(folder, images):
    for t in range(images):
        write_picture(Path(folder) / f'mask_{t}.png', trajectory_mask(t))


# --- HOI4D

MUG = 'ZY20210800001/H1/C2/N01/S52/s02/T1'


def voc_colours(indices):
    """(H, W) mask indices as (H, W, 3) uint8 colours of the PASCAL VOC palette."""
    indices = np.asarray(indices, np.uint8)
    return np.stack([(indices >> bit & 1) * np.uint8(128) for bit in range(3)], axis=-1)


def hand_and_object(t, size=SIZE):
    """(H, W) mask indices: object (1) that moves right with t, right hand (2) that moves down with it."""
    indices = np.zeros(size, np.uint8)
    column = 2 + t % 8
    indices[12:20, column : column + 8] = 1
    indices[: 4 + t % 8, 20:28] = 2
    return indices


def write_events(folder, events, form='events', duration=20.0):
    """`events`: (name, start, end) in seconds of a clock on which the video takes `duration`, if it says."""
    if form == 'events':
        content = {'events': [{'id': i, 'event': n, 'startTime': s, 'endTime': e}
                              for i, (n, s, e) in enumerate(events)]}  # fmt: skip
        content['info'] = {} if duration is None else {'duration': duration}
    else:
        marks = [
            {'id': i, 'event': n, 'hdTimeStart': s, 'hdTimeEnd': e} for i, (n, s, e) in enumerate(events)
        ]
        content = {'markResult': {'marks': marks}, 'info': {} if duration is None else {'Duration': duration}}
    path = Path(folder) / 'action/color.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_sequence(
    root,
    name=MUG,
    events=(('rest', 0, 2), ('Pickup', 2, 4)),
    indices=hand_and_object,
    mask_folder='shift_mask',
    frames=None,
    video=False,
    archives=False,
    **clock,
):
    """A sequence.

    `indices(t)` draws its masks, None writes none; `frames` that have one, None: those of the events and 4 on
    either side. `archives`: as the archives unpack.
    """
    if frames is None:
        ends = [round(15 * time) for _, *times in events for time in times]
        frames = range(max(min(ends) - 4, 0), min(max(ends) + 4, 300))
    release, annotations = (Path(root) / 'HOI4D_release' / name, Path(root) / 'HOI4D_annotations' / name) if (
        archives
    ) else (Path(root) / name,) * 2  # fmt: skip
    release.mkdir(parents=True, exist_ok=True)
    write_events(annotations, events, **clock)
    if indices is not None:
        for t in frames:
            write_picture(annotations / f'2Dseg/{mask_folder}/{t:05d}.png', voc_colours(indices(t)))
    if video:
        write_video(release / 'align_rgb/image.mp4', (picture(t) for t in range(300)))
    return annotations


def write_video(path, pictures, rate=15):
    """H.264 with B frames and a key frame each 24, as ffmpeg makes by default but for the distance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            'libx264', rate=rate, options={'bf': '3', 'g': '24', 'preset': 'veryfast'}
        )
        stream.height, stream.width = SIZE
        stream.pix_fmt = 'yuv420p'
        for rgb in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format='rgb24')))
        container.mux(stream.encode())


def write_depth_video(path, depths, rate=15):
    """Lossless 16 bit FFV1 in AVI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('ffv1', rate=rate)
        stream.height, stream.width = SIZE
        stream.pix_fmt = 'gray16le'
        for depth in depths:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(depth, format='gray16le')))
        container.mux(stream.encode())
