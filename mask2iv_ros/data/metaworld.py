"""Simulated demonstrations: Meta-World's scripted experts seen by a camera that knows every mask.

Owns the task table, the camera pose and the recorder. The object of a task is the part that the expert moves
(door panel, drawer, knob, hammer), not the furniture around it, so the table names its bodies. A clip depends
on (task, seed) alone: object and goal placement, start of the hand and camera pose are drawn from the seed.
"""

from __future__ import annotations

import atexit
import ctypes.util
import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.lerobot import LeRobotClipWriter, read_sources
from mask2iv_ros.labels import close_holes, combine_masks


@dataclass(frozen=True)
class Task:
    """One row of the task table.

    `text` is what a person would say; `bodies` are the MuJoCo bodies (with all below them) that the task
    moves; the camera looks at `lookat` (metres, world) from `distance` metres.
    """

    text: str
    bodies: tuple[str, ...]
    lookat: tuple[float, float, float]
    distance: float


#: The key is Meta-World's environment name without its version.
TASKS = {
    'door-open': Task('open the door', ('door_link',), (-0.05, 0.68, 0.13), 0.95),
    'door-close': Task('close the door', ('door_link',), (-0.08, 0.68, 0.13), 0.95),
    'drawer-open': Task('open the drawer', ('drawer_link',), (0.0, 0.67, 0.12), 0.8),
    'button-press-topdown': Task('press the button', ('button',), (0.0, 0.67, 0.2), 0.82),
    'faucet-open': Task('open the faucet', ('faucet_link2',), (0.0, 0.63, 0.12), 0.72),
    'faucet-close': Task('close the faucet', ('faucet_link2',), (0.0, 0.63, 0.12), 0.72),
    'hammer': Task('hammer the nail', ('hammerbody',), (0.0, 0.6, 0.09), 0.88),
    'assembly': Task('put the ring on the peg', ('RoundNut',), (0.0, 0.66, 0.12), 0.8),
}

FPS = 15.0  #: nominal rate of a clip; the true time of each frame is in `source['frame_times']`
MAX_STEPS = 150  #: an expert that takes longer has lost its way; half of them need fewer than 80
STEPS_AFTER_SUCCESS = 10
SUPERSAMPLING = 2  #: RGB is rendered this many times larger and averaged; OSMesa's own MSAA is slower
MAX_DEPTH = 10.0  #: metres; farther is sky and becomes 0

#: First seed of each split; splits share no seed.
FIRST_SEED = {'train': 0, 'test': 1_000_000}
RETRY_STRIDE = 100_000  #: where the expert fails, the seed that many further takes its place ...
MAX_RETRIES = 9  #: ... at most so often, which stays inside the split

COMMIT_EVERY = 32  #: episodes; a killed run loses no more

# Direction of the camera (degrees), and how far a seed may move each value of a scene (degrees, metres).
AZIMUTH, ELEVATION = 130.0, -28.0
ANGLE_JITTER, DISTANCE_JITTER, LOOKAT_JITTER, HAND_JITTER = 4.0, 0.04, 0.02, 0.03


def choose_gl_backend() -> str:
    """Set MUJOCO_GL if it is unset: EGL on a GPU, else OSMesa (faster than EGL on a CPU); its value."""
    has_gpu = Path('/dev/nvidiactl').exists() or Path('/dev/dri/renderD128').exists()
    default = 'osmesa' if not has_gpu and ctypes.util.find_library('OSMesa') else 'egl'
    return os.environ.setdefault('MUJOCO_GL', default)


choose_gl_backend()  # mujoco reads it once, when it is first imported


class Scene:
    """One Meta-World environment with its expert and renderers; reusable for any number of seeds."""

    def __init__(self, task: str, height: int, width: int):
        if task not in TASKS:
            raise ValueError(f'unknown task {task!r}; known: {", ".join(TASKS)}')
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        from metaworld.policies import ENV_POLICY_MAP

        self.env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f'{task}-v3-goal-observable']()
        self.env._freeze_rand_vec = False  # Meta-World's own switches: draw a placement at every reset ...
        self.env.seeded_rand_vec = True  # ... from env.seed(), not from the global NumPy generator
        self.hand_start = self.env.hand_init_pos.copy()
        self.expert = ENV_POLICY_MAP[f'{task}-v3']()
        self.model, self.data = self.env.model, self.env.data
        self.model.vis.quality.shadowsize = 1024
        self.model.vis.quality.offsamples = 0
        self.model.mat_reflectance[:] = 0
        self.size = height, width
        size = height * SUPERSAMPLING, width * SUPERSAMPLING
        self.model.vis.global_.offheight, self.model.vis.global_.offwidth = size
        self.colour_renderer = mujoco.Renderer(self.model, *size)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self.options = mujoco.MjvOption()
        self.options.sitegroup[:] = 0  # coloured balls at goals and finger tips: no camera would see them
        self.is_object = self.geoms_below(TASKS[task].bodies)
        self.is_actor = self.geoms_below(('right_arm_base_link',))

    def geoms_below(self, bodies: tuple[str, ...]) -> np.ndarray:
        """(ngeom,) bool: the geom belongs to one of the named bodies or to a body below one."""
        below = np.zeros(self.model.nbody, dtype=bool)
        below[[self.model.body(name).id for name in bodies]] = True
        for body, parent in enumerate(self.model.body_parentid):  # parents come before children
            below[body] |= below[parent]
        return below[self.model.geom_bodyid]

    def run_expert(
        self, seed: int, hand_offset: np.ndarray
    ) -> tuple[list, np.ndarray, np.ndarray, int | None]:
        """Play one episode: the saved simulator states, hand states (N, 4), commands (N, 4), success step."""
        env, data = self.env, self.data
        env.seed(seed)
        env.hand_init_pos = self.hand_start + hand_offset
        observation, _ = env.reset()
        states, hands, commands, success = [], [], [], None
        for step in range(MAX_STEPS):
            states.append([x.copy() for x in (data.qpos, data.qvel, data.mocap_pos, data.mocap_quat)])
            hands.append(observation[:4])
            action = np.clip(self.expert.get_action(observation.copy()), -1, 1).astype(np.float32)
            observation, *_, info = env.step(action)
            commands.append(np.append(data.mocap_pos[0], action[3]))
            if success is None and info['success'] > 0:
                success = step
            if success is not None and step >= success + STEPS_AFTER_SUCCESS:
                break
        return states, np.float32(hands), np.float32(commands), success

    def restore(self, state: list):
        import mujoco

        d = self.data
        d.qpos[:], d.qvel[:], d.mocap_pos[:], d.mocap_quat[:] = state
        mujoco.mj_forward(self.model, d)

    def render(self, camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """RGB (H, W, 3) uint8, labels (H, W) uint8 and depth (H, W) float32 metres of the present state."""
        import mujoco

        self.colour_renderer.update_scene(self.data, camera, self.options)
        height, width = self.size
        s = SUPERSAMPLING
        colour = self.colour_renderer.render().reshape(height, s, width, s, 3).mean((1, 3)).round()

        self.renderer.update_scene(self.data, camera, self.options)
        self.renderer.enable_segmentation_rendering()
        geom, kind = np.moveaxis(self.renderer.render(), -1, 0)
        self.renderer.disable_segmentation_rendering()
        geom = np.where(kind == mujoco.mjtObj.mjOBJ_GEOM, geom, -1)  # -1: sky and sites
        labels = combine_masks(
            close_holes(np.append(self.is_object, False)[geom]),
            close_holes(np.append(self.is_actor, False)[geom]),
        )

        self.renderer.enable_depth_rendering()
        depth = self.renderer.render()
        self.renderer.disable_depth_rendering()
        return colour.astype(np.uint8), labels, np.where(depth < MAX_DEPTH, depth, 0).astype(np.float32)


# Kept to the end, at some 250 MB a task: mujoco.Renderer.close() frees its OpenGL names in whichever context
# is current, so closing one renderer corrupts the others of the process.
@cache
def _scene(task: str, height: int, width: int) -> Scene:
    scene = Scene(task, height, width)
    atexit.register(_scene.cache_clear)  # before mujoco's own clean-up, after which closing prints errors
    return scene


def _draw_camera(rng: np.random.Generator, task: Task):
    import mujoco

    camera = mujoco.MjvCamera()
    camera.azimuth, camera.elevation = np.array((AZIMUTH, ELEVATION)) + rng.uniform(-1, 1, 2) * ANGLE_JITTER
    camera.distance = task.distance + rng.uniform(-1, 1) * DISTANCE_JITTER
    camera.lookat[:] = np.array(task.lookat) + rng.uniform(-1, 1, 3) * LOOKAT_JITTER
    return camera


def camera_calibration(camera, fovy: float, height: int, width: int) -> Camera:
    """`Camera` of a free MuJoCo camera; pixel centres are at whole numbers. `fovy` in degrees."""
    focal = 0.5 * height / np.tan(np.radians(fovy) / 2)
    azimuth, elevation = np.radians((camera.azimuth, camera.elevation))
    forward = np.array(
        (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    )
    right = np.array((np.sin(azimuth), -np.cos(azimuth), 0.0))
    cam_to_world = np.eye(4)
    cam_to_world[:3, :3] = np.stack((right, np.cross(forward, right), forward), axis=1)
    cam_to_world[:3, 3] = camera.lookat - camera.distance * forward
    intrinsics = np.array(((focal, 0, (width - 1) / 2), (0, focal, (height - 1) / 2), (0, 0, 1.0)))
    return Camera(intrinsics, cam_to_world)


def record_clip(
    task: str, seed: int, height: int = 240, width: int = 320, num_frames: int = 16
) -> InteractionClip:
    """Play the expert of `task` on the scene of `seed` and film it.

    The frames are spread evenly from the first state to some steps after success. `states` (T, 4) are the
    hand position (metres, world) and the gripper opening; `actions` (T, 4) are the hand position commanded at
    the end of the way to the next frame (metres, world) and the gripper effort in [-1, 1].
    `source` tells whether the expert solved the task ('success') and the simulated seconds ('frame_times').

    Raises:
        ValueError: `task` is not in `TASKS`.
    """
    scene = _scene(task, height, width)
    rng = np.random.default_rng(
        (seed, 1)
    )  # not default_rng(seed): that is Meta-World's stream for placements
    hand_offset = rng.uniform(-1, 1, 3) * HAND_JITTER
    camera = _draw_camera(rng, TASKS[task])
    states, hands, commands, success = scene.run_expert(seed, hand_offset)
    kept = np.linspace(0, len(states) - 1, num_frames).round().astype(int)
    views = []
    for index in kept:
        scene.restore(states[index])
        views.append(scene.render(camera))
    frames, labels, depth = (np.stack(view) for view in zip(*views, strict=True))
    return InteractionClip(
        frames=frames,
        labels=labels,
        task=TASKS[task].text,
        fps=FPS,
        actions=commands[np.append(kept[1:] - 1, kept[-1])],
        states=hands[kept],
        depth=depth,
        camera=camera_calibration(camera, scene.model.vis.global_.fovy, height, width),
        source={
            'dataset': 'metaworld',
            'task': task,
            'seed': seed,
            'success': success is not None,
            'frame_times': [round(float(i) * scene.env.dt, 6) for i in kept],
        },
    )


def record_episode(
    task: str, split: str, index: int, height: int = 240, width: int = 320, num_frames: int = 16
) -> InteractionClip:
    """`record_clip` of episode `index` of a split, with the first of its seeds that the expert solves.

    `source['sha256']` is the hash of the recorded pixels (`clip_hash`).

    Raises:
        RuntimeError: the expert fails on every seed tried.
    """
    for attempt in range(MAX_RETRIES + 1):
        seed = FIRST_SEED[split] + index + attempt * RETRY_STRIDE
        clip = record_clip(task, seed, height, width, num_frames)
        if clip.source['success']:
            clip.source['sha256'] = clip_hash(clip)
            return clip
    raise RuntimeError(f'{task}: the expert failed on all {MAX_RETRIES + 1} seeds of {split} episode {index}')


def clip_hash(clip: InteractionClip) -> str:
    """SHA-256 of labels and frames before any encoding."""
    digest = hashlib.sha256(clip.labels.tobytes())
    digest.update(clip.frames.tobytes())
    return digest.hexdigest()


def simulate(
    out: str | Path,
    split: str = 'train',
    tasks: Sequence[str] = tuple(TASKS),
    episodes: int = 120,
    workers: int = 2,
    height: int = 240,
    width: int = 320,
    num_frames: int = 16,
) -> dict:
    """Make (or continue) the LeRobot dataset `out/<split>` of `episodes` episodes of each task.

    Episodes are ordered by index, then by task, whatever the number of worker processes, so a larger dataset
    begins with the smaller one. A killed run is continued by the same call.

    Returns:
        The manifest, also written to `out/<split>.json`: settings, task, seed and hash of every episode, and
        `sha256` over all of them. RGB depends on the OpenGL driver, so hashes are for one kind of machine.

    Raises:
        ValueError: unknown task or split, or `out/<split>` holds other episodes.
    """
    if split not in FIRST_SEED:
        raise ValueError(f'unknown split {split!r}; known: {", ".join(FIRST_SEED)}')
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f'unknown task {task!r}; known: {", ".join(TASKS)}')
    if not 1 <= episodes <= RETRY_STRIDE:
        raise ValueError(f'episodes: expected 1 to {RETRY_STRIDE} a task, got {episodes}')
    root = Path(out) / split
    plan = [(task, index) for index in range(episodes) for task in tasks]
    with LeRobotClipWriter(root, robot_type='sawyer') as writer:
        done = read_sources(root) if root.exists() else []
        for source, (task, index) in zip(done, plan, strict=False):
            if (source['task'], source['seed'] % RETRY_STRIDE) != (task, index):
                raise ValueError(
                    f'{root} holds {source["task"]} seed {source["seed"]} where {task} {index} belongs'
                )
        todo = deque(plan[len(done) :])
        recording = deque()
        context = multiprocessing.get_context('spawn')  # a forked OpenGL context does not work
        with (
            ProcessPoolExecutor(workers, context, _one_thread) as pool,
            tqdm(total=len(plan), initial=len(plan) - len(todo), desc=str(root), unit='clip') as bar,
        ):
            while todo or recording:
                while todo and len(recording) < 2 * workers:  # rendered clips wait in memory: not too many
                    task, index = todo.popleft()
                    recording.append(
                        pool.submit(record_episode, task, split, index, height, width, num_frames)
                    )
                clip = recording.popleft().result()
                done.append(clip.source)
                writer.add(clip)
                if len(done) % COMMIT_EVERY == 0:
                    writer.commit()
                bar.update()
    return _write_manifest(root.with_suffix('.json'), done, height, width, num_frames)


def _one_thread():
    os.environ.setdefault('LP_NUM_THREADS', '1')  # one process a core: software OpenGL needs no threads


def _write_manifest(path: Path, sources: list[dict], height: int, width: int, num_frames: int) -> dict:
    rows = [{key: source[key] for key in ('task', 'seed', 'sha256')} for source in sources]
    counts = {
        task: sum(row['task'] == task for row in rows) for task in sorted({row['task'] for row in rows})
    }
    manifest = {
        'height': height,
        'width': width,
        'num_frames': num_frames,
        'counts': counts,
        'sha256': hashlib.sha256(''.join(row['sha256'] for row in rows).encode()).hexdigest(),
        'episodes': rows,
    }
    path.write_text(json.dumps(manifest, indent=1) + '\n')
    return manifest
