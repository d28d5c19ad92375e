"""Simulated demonstrations: Meta-World's scripted experts seen by cameras that know every mask.

Owns the recorder; what is recorded stands in `metaworld_tasks`. The object of a task is the part that the
expert moves (door panel, drawer, knob, hammer), not the furniture around it. A clip depends on task, seed,
camera and options alone: placement of object and goal, start of the hand, camera pose, wording and look are
drawn from the seed.
"""

from __future__ import annotations

import atexit
import ctypes.util
import hashlib
import json
import multiprocessing
import os
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.lerobot import VIDEO_KEY, LeRobotClipWriter, is_filled
from mask2iv_ros.data.lerobot_reader import LeRobotReader
from mask2iv_ros.data.metaworld_tasks import (
    FIXED_VIEWS,
    SIM8_TASKS,
    TASKS,
    VARIED_VIEW,
    VARIED_VIEWS,
    VIEWS,
    Task,
    View,
)
from mask2iv_ros.data.sampling import spread_frames
from mask2iv_ros.labels import OBJECT, close_holes, combine_masks
from mask2iv_ros.resources import end_with_parent

FPS = 15.0  #: nominal rate of spread frames; the true time of each frame is in `source['frame_times']`
MIN_LIGHT = 0.4  #: share of a light that strong variation leaves at least
STEPS_A_SECOND = 80  #: of Meta-World's control: 5 simulator steps of 2.5 ms each
SUPERSAMPLING = 2  #: RGB is rendered this many times larger and averaged; OSMesa's own MSAA is slower
MIN_VISIBLE = 60 / (240 * 320)  #: share of the first picture that the object of an episode covers at least
MIN_VISIBLE_FAR = 20 / (240 * 320)  #: the same for `FIXED_VIEWS`, which stand farther away
MAX_DEPTH = 10.0  #: metres; farther is sky and becomes 0

#: First seed of each split. Splits share no seed but one pair: `test_camera` is `test` seen from elsewhere.
FIRST_SEED = {'train': 0, 'test': 1_000_000, 'test_camera': 1_000_000, 'test_tasks': 2_000_000}
RETRY_STRIDE = 100_000  #: where a seed will not do, the one that many further takes its place ...
#: What a dataset was made with that does not say so.
UNTOLD = {'paraphrase': False, 'variation': False, 'stride': None, 'camera_jitter': 1.0, 'late_starts': False}
MAX_RETRIES = 9  #: ... at most so often, which stays inside the split

COMMIT_EVERY = 32  #: episodes; a killed run loses no more
OPEN_SCENES = 8  #: kept in memory a process, some 85 MB each; opening one takes 0.2 s

DEFAULT_CAMERA = next(iter(VIEWS))
ACTOR_GROUP = 5  #: MuJoCo geom group that no Meta-World model uses; lets the arm be left out of a picture
VARIED = ('mat_rgba', 'geom_rgba', 'mat_texid', 'light_diffuse', 'light_dir')  #: what `variation` changes

CORNER2_POSITION = (0.75, 0.075, 0.7)  #: metres; where LeRobot puts corner2, which else sees the table's legs
FREE_FOVY = 45.0  #: of free cameras, which fixed ones do not use

# How far a seed may move each value of a scene (degrees, metres).
ANGLE_JITTER, DISTANCE_JITTER, LOOKAT_JITTER, HAND_JITTER = 4.0, 0.04, 0.02, 0.03


def choose_gl_backend() -> str:
    """Set MUJOCO_GL if it is unset: EGL on a GPU, else OSMesa (faster than EGL on a CPU); its value."""
    has_gpu = Path('/dev/nvidiactl').exists() or Path('/dev/dri/renderD128').exists()
    default = 'osmesa' if not has_gpu and ctypes.util.find_library('OSMesa') else 'egl'
    return os.environ.setdefault('MUJOCO_GL', default)


choose_gl_backend()  # mujoco reads it once, when it is first imported


@cache
def _gl_context():
    """The one OpenGL context of this process: cheap scenes, and what they free is always their own."""
    import mujoco

    context = mujoco.GLContext(1, 1)  # MuJoCo draws into buffers of its own
    atexit.register(_close)  # only now: so it runs before mujoco's own clean-up, which makes freeing fail
    return context


class Scene:
    """One Meta-World environment with its expert and buffers to draw in; reusable for any number of seeds."""

    def __init__(self, task: str, height: int, width: int):
        if task not in TASKS:
            raise ValueError(f'unknown task {task!r}; known: {", ".join(TASKS)}')
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        from metaworld.policies import ENV_POLICY_MAP

        self.task = TASKS[task]
        name = self.task.env or task
        self.env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f'{name}-v3-goal-observable']()
        self.env._freeze_rand_vec = False  # Meta-World's own switches: draw a placement at every reset ...
        self.env.seeded_rand_vec = True  # ... from env.seed(), not from the global NumPy generator
        self.hand_start = self.env.hand_init_pos.copy()
        self.expert = ENV_POLICY_MAP[f'{name}-v3']()
        self.model, self.data = self.env.model, self.env.data
        if self.task.placements:
            self._place_within(*np.array(self.task.placements))
        self.model.vis.quality.shadowsize = 1024
        self.model.vis.quality.offsamples = 0
        self.model.mat_reflectance[:] = 0
        self.size = height, width
        offscreen = self.model.vis.global_
        offscreen.offheight, offscreen.offwidth = height * SUPERSAMPLING, width * SUPERSAMPLING
        self.gl = _gl_context()
        self.gl.make_current()
        self.context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_50)
        self.context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # else far depths have few bits
        self.picture = mujoco.MjvScene(self.model, 10_000)
        self.is_object = self.geoms_below(self.task.bodies)
        self.model.geom_size[self.is_object] *= self.task.scale
        self.is_actor = self.geoms_below(('right_arm_base_link',))
        visible = self.model.geom_group < 3  # MuJoCo's default; the rest are collision shapes
        self.model.geom_group[self.is_actor & visible] = ACTOR_GROUP
        self.options, self.without_actor = mujoco.MjvOption(), mujoco.MjvOption()
        for options in (self.options, self.without_actor):
            options.sitegroup[:] = 0  # coloured balls at goals and finger tips: no camera would see them
        self.options.geomgroup[ACTOR_GROUP] = 1
        self.visible_object = np.flatnonzero(self.is_object & visible)
        self.look = {name: getattr(self.model, name).copy() for name in VARIED}

    def __del__(self):
        if hasattr(self, 'context'):
            self.gl.make_current()  # OpenGL names are freed in whichever context is current
            self.context.free()

    def _place_within(self, low: np.ndarray, high: np.ndarray):
        """Draw placements (6,) of object and goal from these ranges; no goal is told outside them."""
        from gymnasium.spaces import Box

        self.env._random_reset_space = Box(low, high, dtype=np.float64)
        self.env.goal_space = Box(low[3:], high[3:], dtype=np.float64)
        vars(self.env).pop('sawyer_observation_space', None)  # was made of the goal space before

    def geoms_below(self, bodies: tuple[str, ...]) -> np.ndarray:
        """(ngeom,) bool: the geom belongs to one of the named bodies or to a body below one."""
        below = np.zeros(self.model.nbody, dtype=bool)
        below[[self.model.body(name).id for name in bodies]] = True
        for body, parent in enumerate(self.model.body_parentid):  # parents come before children
            below[body] |= below[parent]
        return below[self.model.geom_bodyid]

    def reset(self, seed: int, hand_offset: np.ndarray) -> np.ndarray:
        """Put object, goal and hand where the seed says; what Meta-World observes."""
        self.env.seed(seed)
        self.env.hand_init_pos = self.hand_start + hand_offset
        return self.env.reset()[0]

    def drive(self, action: np.ndarray, steps: int) -> tuple[np.ndarray, bool]:
        """Execute one recorded action (4,) over `steps` simulator steps, straight and evenly.

        Returns:
            The hand's state (4,) and whether the task was solved on the way.
        """
        env, solved = self.env, False
        for left in range(steps, 0, -1):
            velocity = (action[:3] - self.data.mocap_pos[0]) / (left * env.action_scale)
            command = np.clip(np.append(velocity, action[3]), -1, 1).astype(np.float32)
            observation, *_, info = env.step(command)
            solved |= info['success'] > 0
        return observation[:4], bool(solved)

    def run_expert(
        self, seed: int, hand_offset: np.ndarray
    ) -> tuple[list, np.ndarray, np.ndarray, int | None]:
        """Play one episode: the saved simulator states, hand states (N, 4), commands (N, 4), success step."""
        env, data = self.env, self.data
        observation = self.reset(seed, hand_offset)
        states, hands, commands, success = [], [], [], None
        for step in range(self.task.max_steps):
            states.append([x.copy() for x in (data.qpos, data.qvel, data.mocap_pos, data.mocap_quat)])
            hands.append(observation[:4])
            action = np.clip(self.expert.get_action(observation.copy()), -1, 1).astype(np.float32)
            observation, *_, info = env.step(action)
            commands.append(np.append(data.mocap_pos[0], action[3]))
            if success is None and info['success'] > 0:
                success = step
            if success is not None and step >= success + self.task.steps_after:
                break
        return states, np.float32(hands), np.float32(commands), success

    def restore(self, state: list):
        import mujoco

        d = self.data
        d.qpos[:], d.qvel[:], d.mocap_pos[:], d.mocap_quat[:] = state
        mujoco.mj_forward(self.model, d)

    def vary(self, rng: np.random.Generator | None, strength: float = 1.0, actor: bool = True):
        """Change light, colours and the textures of table and floor; None: as Meta-World made them.

        `strength` scales all changes; above 1, table and floor take any texture of the scene, not only each
        other's, and surfaces turn to colours of their own, at 3 completely. Without `actor` the arm keeps
        its colours.
        """
        model = self.model
        for name, values in self.look.items():
            getattr(model, name)[:] = values
        if rng is None:
            return
        # A geom of MuJoCo's default grey takes its material's colour; of any other, its own.
        own = (self.look['geom_rgba'] != np.float32((0.5, 0.5, 0.5, 1))).any(axis=1)
        for colours, varied in ((model.mat_rgba, slice(None)), (model.geom_rgba, own)):
            tints = 1 + strength * (rng.uniform(0.7, 1.15, (len(colours), 3)) - 1)
            changed = np.clip(colours[:, :3] * tints, 0, 1)
            if strength > 1:
                own_share = min(1.0, (strength - 1) / 2)
                changed += own_share * (rng.uniform(0, 1, changed.shape) - changed)
            colours[varied, :3] = changed[varied]
        if not actor:
            materials = np.setdiff1d(model.geom_matid[self.is_actor], model.geom_matid[~self.is_actor])
            model.geom_rgba[self.is_actor] = self.look['geom_rgba'][self.is_actor]
            materials = materials[materials >= 0]  # -1: no material
            model.mat_rgba[materials] = self.look['mat_rgba'][materials]
        model.light_diffuse[:] *= np.maximum(
            MIN_LIGHT, 1 + strength * (rng.uniform(0.6, 1.4, (model.nlight, 1)) - 1)
        )
        model.light_dir[:] += rng.normal(0, 0.2 * strength, (model.nlight, 3))
        textures = [self.look['mat_texid'][model.mat(name).id] for name in ('table_wood', 'basic_floor')]
        if strength > 1:
            textures = [row for row in self.look['mat_texid'] if (row >= 0).any()]
        for name in ('table_wood', 'basic_floor'):
            model.mat_texid[model.mat(name).id] = textures[rng.integers(len(textures))]

    def touching(self) -> bool:
        """Whether the simulator finds actor and object in contact in the present state."""
        first, second = self.data.contact.geom1, self.data.contact.geom2
        touching = (
            self.is_actor[first] & self.is_object[second] | self.is_object[first] & self.is_actor[second]
        )
        return bool((touching & (self.data.contact.dist <= 0)).any())

    def object_centre(self) -> np.ndarray:
        """(3,) float64 metres, world: centre of the box around the object, along the object's own axes."""
        model, data = self.model, self.data
        corners = np.stack(np.meshgrid(*[(-1, 1)] * 3), axis=-1).reshape(-1, 3)
        points = []
        for geom in self.visible_object:
            box = model.geom_aabb[geom]
            points.append(
                (box[:3] + corners * box[3:]) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
            )
        axes = data.xmat[model.geom_bodyid[self.visible_object[0]]].reshape(3, 3)
        inside = np.concatenate(points) @ axes
        return axes @ ((inside.min(axis=0) + inside.max(axis=0)) / 2)

    def render(self, camera, fovy: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """RGB (H, W, 3) uint8, labels (H, W) uint8 and depth (H, W) float32 metres of the present state."""
        return self.render_colour(camera, fovy), *self.render_labels(camera, fovy)

    def render_colour(self, camera, fovy: float) -> np.ndarray:
        """RGB (H, W, 3) uint8 of the present state, without masks or depth."""
        height, width = self.size
        s = SUPERSAMPLING
        self._point(camera, fovy, self.options)
        colour = np.empty((height * s, width * s, 3), dtype=np.uint8)
        self._draw(colour, None)
        colour = colour.reshape(height, s, width, s, 3).mean((1, 3)).round()
        return colour.astype(np.uint8)[::-1]

    def render_labels(self, camera, fovy: float) -> tuple[np.ndarray, np.ndarray]:
        """Labels (H, W) uint8 and depth (H, W) float32 metres of the present state, without drawing RGB."""
        self._point(camera, fovy, self.options)
        geoms, depth = self._draw_geoms()
        labels = combine_masks(
            close_holes(np.append(self.is_object, False)[geoms]),
            close_holes(np.append(self.is_actor, False)[geoms]),
        )
        near, far = (getattr(self.model.vis.map, end) * self.model.stat.extent for end in ('znear', 'zfar'))
        depth = near * far / (near + depth.astype(np.float64) * (far - near))
        depth = np.where(depth < MAX_DEPTH, depth, 0).astype(np.float32)
        return labels[::-1], depth[::-1]

    def render_goal(self, camera, fovy: float) -> np.ndarray:
        """(H, W) uint8: where the object is in the present state, as if the actor were not there.

        Where the rest of the scene hides it completely, its silhouette.
        """
        groups = self.model.geom_group.copy()
        self._point(camera, fovy, self.without_actor)
        seen = np.append(self.is_object, False)[self._draw_geoms()[0]]
        if not seen.any():
            self.model.geom_group[~self.is_object] = ACTOR_GROUP
            self._point(camera, fovy, self.without_actor)
            seen = np.append(self.is_object, False)[self._draw_geoms()[0]]
            self.model.geom_group[:] = groups
        return combine_masks(close_holes(seen))[::-1]

    def _point(self, camera, fovy: float, options):
        import mujoco

        self.model.vis.global_.fovy = fovy
        mujoco.mjv_updateScene(
            self.model, self.data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self.picture
        )

    def _draw(self, colour: np.ndarray, depth: np.ndarray | None):
        """Draw the picture into the arrays, last row first."""
        import mujoco

        self.gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)  # not another scene's
        area = mujoco.MjrRect(0, 0, colour.shape[1], colour.shape[0])
        mujoco.mjr_render(area, self.picture, self.context)
        mujoco.mjr_readPixels(colour, depth, area, self.context)

    def _draw_geoms(self) -> tuple[np.ndarray, np.ndarray]:
        """Geom ids (H, W), -1 for sky and others, and OpenGL depths (H, W) float32; last row first."""
        import mujoco

        codes, depth = np.empty((*self.size, 3), np.uint8), np.empty(self.size, np.float32)
        flags = self.picture.flags
        before = flags.copy()
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        self._draw(codes, depth)
        flags[:] = before
        geoms = np.full(self.picture.ngeom + 1, -1)
        for drawn in self.picture.geoms[: self.picture.ngeom]:
            if drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geoms[drawn.segid + 1] = drawn.objid
        return geoms[codes @ np.array((1, 1 << 8, 1 << 16))], depth


@lru_cache(OPEN_SCENES)
def _scene(task: str, height: int, width: int) -> Scene:
    return Scene(task, height, width)


def _close():
    _scene.cache_clear()
    _gl_context.cache_clear()


def _draw_camera(rng: np.random.Generator, task: Task, view: View, jitter: float):
    import mujoco

    camera = mujoco.MjvCamera()
    angles = rng.uniform(-1, 1, 2) * ANGLE_JITTER * jitter
    camera.azimuth, camera.elevation = np.array((view.azimuth, view.elevation)) + angles
    camera.distance = task.distance * view.distance + rng.uniform(-1, 1) * DISTANCE_JITTER * jitter
    camera.lookat[:] = np.array(task.lookat) + rng.uniform(-1, 1, 3) * LOOKAT_JITTER * jitter
    return camera


def draw_scene(
    task: str, seed: int, variation: bool = False, camera_jitter: float = 1.0
) -> tuple[np.ndarray, dict]:
    """What a seed draws beside placements: offset (3,) of the hand in metres, and MuJoCo's cameras.

    The cameras, one for each of `VIEWS`, are moved `camera_jitter` times as far as usual, and twice as far
    with `variation`.
    """
    jitter = camera_jitter * (2 if variation else 1)
    # Not default_rng(seed): that is Meta-World's stream for placements.
    rng = np.random.default_rng((seed, 1))
    hand_offset = rng.uniform(-1, 1, 3) * HAND_JITTER
    poses = {}
    for number, (name, view) in enumerate(VIEWS.items()):
        stream = np.random.default_rng((seed, 1, number)) if number else rng
        poses[name] = _draw_camera(stream, TASKS[task], view, jitter)
    return hand_offset, poses


def fixed_camera(scene: Scene, name: str) -> tuple[object, Camera]:
    """MuJoCo's camera and the calibration of one of Meta-World's own cameras, upright. Keeps the state."""
    import mujoco

    model, data = scene.model, scene.data
    number = model.camera(name).id
    if name == 'corner2':
        model.cam_pos[number] = CORNER2_POSITION
    mujoco.mj_forward(model, data)
    if data.cam_xmat[number].reshape(3, 3)[2, 1] < 0:  # the picture would be upside down
        turned = np.empty(4)
        mujoco.mju_mulQuat(turned, model.cam_quat[number], np.array((0.0, 0.0, 0.0, 1.0)))
        model.cam_quat[number] = turned
        mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
    height, width = scene.size
    focal = 0.5 * height / np.tan(np.radians(model.cam_fovy[number]) / 2)
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[number].reshape(3, 3) * (1, -1, -1)  # OpenGL's axes to optical ones
    pose[:3, 3] = data.cam_xpos[number]
    intrinsics = np.array(((focal, 0, (width - 1) / 2), (0, focal, (height - 1) / 2), (0, 0, 1.0)))
    return camera, Camera(intrinsics, pose)


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


def record_clips(
    task: str,
    seed: int,
    cameras: Sequence[str] = (DEFAULT_CAMERA,),
    height: int = 240,
    width: int = 320,
    num_frames: int = 16,
    paraphrase: bool = False,
    variation: bool = False,
    stride: int | None = None,
    camera_jitter: float = 1.0,
    late_starts: bool = False,
    on_frame: Callable[[Scene, dict], None] | None = None,
) -> dict[str, InteractionClip]:
    """Play the expert of `task` once on the scene of `seed` and film it with every camera.

    The frames are spread evenly from the first state to some steps after success, or with `stride` stand at
    a true rate. `states` (T, 4) are the hand position (metres, world) and the gripper opening; `actions`
    (T, 4) are the hand position commanded at the end of the way to the next frame (metres, world) and the
    gripper effort in [-1, 1]; with `stride` `Scene.drive` executes them. `contact` is the
    simulator's, between any parts of arm and object. `goal` is the object in the last frame without the arm,
    and `goal_point` the centre of the box around it.
    `source` tells whether the expert solved the task ('success') and the simulated seconds ('frame_times').

    Args:
        cameras: names in `VIEWS` and `FIXED_VIEWS`, or `VARIED_VIEW`; what one sees does not depend on the
            others.
        paraphrase: draw one of the task's texts; otherwise the first.
        variation: draw light, colours, and textures of table and floor; double the range of camera poses.
        stride: simulator steps (12.5 ms) between frames, of which there are as many as the episode lasts;
            4 gives 20 frames a second. None: `num_frames` frames spread over the episode.
        camera_jitter: how far a seed moves the cameras; 0 for cameras that always stand where `VIEWS` says.
        late_starts: half of the seeds begin somewhere in the first 70 % of the way; not with `stride`.
        on_frame: called with the scene in the state of each frame and a dict of the cameras' MuJoCo poses, to
            measure what no camera sees.

    Returns:
        A clip a camera, in the order asked for.

    Raises:
        ValueError: unknown `task` or camera, or `stride` gives no whole rate.
    """
    _check_cameras(cameras)
    scene = _scene(task, height, width)
    fps = FPS if stride is None else frame_rate(stride)
    hand_offset, poses = draw_scene(task, seed, variation, camera_jitter)
    scene.vary(np.random.default_rng((seed, 2)) if variation else None)
    texts = TASKS[task].texts
    text = texts[np.random.default_rng((seed, 3)).integers(len(texts))] if paraphrase else texts[0]

    states, hands, commands, success = scene.run_expert(seed, hand_offset)
    if stride is None:
        begin = _late_start(seed, len(states)) if late_starts else 0
        kept = begin + spread_frames(len(states) - begin, num_frames)
        ends = np.append(kept[1:] - 1, kept[-1])
    else:
        kept = np.arange(0, len(states), stride)
        ends = np.minimum(kept + stride, len(states)) - 1
    views = {}  # MuJoCo's camera, its field of view, and calibration
    for name in cameras:
        place = camera_place(name, seed)
        if place in FIXED_VIEWS:
            fixed, calibration = fixed_camera(scene, FIXED_VIEWS[place])
            views[name] = fixed, FREE_FOVY, calibration
        else:
            fovy = VIEWS[place].fovy
            views[name] = poses[place], fovy, camera_calibration(poses[place], fovy, height, width)
    pictures = {name: [] for name in cameras}
    contact = []
    for index in kept:
        scene.restore(states[index])
        contact.append(scene.touching())
        if on_frame is not None:
            on_frame(scene, poses)
        for name in cameras:
            pictures[name].append(scene.render(*views[name][:2]))
    clips = {}
    for name in cameras:
        frames, labels, depth = (np.stack(view) for view in zip(*pictures[name], strict=True))
        clips[name] = InteractionClip(
            frames=frames,
            labels=labels,
            task=text,
            fps=fps,
            goal=scene.render_goal(*views[name][:2]),
            goal_point=scene.object_centre(),
            contact=np.array(contact),
            actions=commands[ends],
            states=hands[kept],
            depth=depth,
            camera=views[name][2],
            source={
                'dataset': 'metaworld',
                'task': task,
                'seed': seed,
                'paraphrase': paraphrase,
                'variation': variation,
                'stride': stride,
                'camera_jitter': camera_jitter,
                'late_starts': late_starts,
                'success': success is not None,
                'frame_times': [round(float(i) * scene.env.dt, 6) for i in kept],
            },
        )
    return clips


def camera_place(camera: str, seed: int) -> str:
    """The name in `VIEWS` or `FIXED_VIEWS` of the place where a camera stands in the scene of `seed`."""
    if camera != VARIED_VIEW:
        return camera
    return VARIED_VIEWS[np.random.default_rng((seed, 5)).integers(len(VARIED_VIEWS))]


def _check_cameras(cameras: Sequence[str]) -> None:
    known = (*VIEWS, *FIXED_VIEWS, VARIED_VIEW)
    for camera in cameras:
        if camera not in known:
            raise ValueError(f'unknown camera {camera!r}; known: {", ".join(known)}')


def _late_start(seed: int, length: int) -> int:
    rng = np.random.default_rng((seed, 4))
    return int(rng.uniform(0, 0.7) * length) if rng.random() < 0.5 else 0


def frame_rate(stride: int) -> float:
    """Frames a second if one is kept every `stride` simulator steps; ValueError if that is not whole."""
    if stride < 1 or STEPS_A_SECOND % stride:
        fits = ', '.join(str(n) for n in range(1, STEPS_A_SECOND + 1) if STEPS_A_SECOND % n == 0)
        raise ValueError(f'stride: expected one of {fits}, for whole frames a second; got {stride}')
    return float(STEPS_A_SECOND // stride)


def replay(clip: InteractionClip, actions: np.ndarray | None = None) -> bool:
    """Whether actions (T, 4), by default the clip's own, solve its task from the placement of its seed.

    Raises:
        ValueError: the clip was not recorded with a `stride`.
    """
    source = clip.source
    if source.get('stride') is None:
        raise ValueError('expected a clip recorded with a stride: spread frames have no executable actions')
    scene = _scene(source['task'], *clip.frames.shape[1:3])
    scene.reset(source['seed'], draw_scene(source['task'], source['seed'])[0])
    actions = clip.actions if actions is None else actions
    return any(scene.drive(action, source['stride'])[1] for action in actions)


def record_clip(
    task: str, seed: int, height: int = 240, width: int = 320, num_frames: int = 16, **options
) -> InteractionClip:
    """The default camera's clip of `record_clips`, which takes the same `options`."""
    (clip,) = record_clips(task, seed, height=height, width=width, num_frames=num_frames, **options).values()
    return clip


def record_episode(task: str, split: str, index: int, **options) -> dict[str, InteractionClip]:
    """`record_clips` of episode `index` of a split, with the first of its seeds that will do.

    That is where the expert solves the task and each camera sees the object in the first frame.
    `source['sha256']` is the hash of the recorded pixels of all cameras (`clip_hash`).

    Raises:
        RuntimeError: none of the seeds tried will do.
    """
    for attempt in range(MAX_RETRIES + 1):
        seed = FIRST_SEED[split] + index + attempt * RETRY_STRIDE
        clips = record_clips(task, seed, **options)
        if all(_usable(clip, name) for name, clip in clips.items()):
            sha256 = clip_hash(*clips.values())
            for clip in clips.values():
                clip.source['sha256'] = sha256
            return clips
    raise RuntimeError(
        f'{task}: on all {MAX_RETRIES + 1} seeds of {split} episode {index} the expert failed or the object '
        'was hidden at first'
    )


def _usable(clip: InteractionClip, camera: str) -> bool:
    is_far = camera_place(camera, clip.source['seed']) in FIXED_VIEWS
    least = MIN_VISIBLE_FAR if is_far else MIN_VISIBLE
    return clip.source['success'] and (clip.labels[0] == OBJECT).mean() >= least


def clip_hash(*clips: InteractionClip) -> str:
    """SHA-256 of labels and frames before any encoding, one clip after the other."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.labels.tobytes())
        digest.update(clip.frames.tobytes())
    return digest.hexdigest()


def simulate(
    out: str | Path,
    split: str = 'train',
    tasks: Sequence[str] = SIM8_TASKS,
    episodes: int = 120,
    workers: int = 2,
    height: int = 240,
    width: int = 320,
    num_frames: int = 16,
    cameras: Sequence[str] = (DEFAULT_CAMERA,),
    paraphrase: bool = False,
    variation: bool = False,
    depth: bool = False,
    stride: int | None = None,
    camera_jitter: float = 1.0,
    late_starts: bool = False,
) -> dict:
    """Make (or continue) the LeRobot dataset `out/<split>` of `episodes` episodes of each task.

    Episodes are ordered by index, then by task, whatever the number of worker processes, so a larger dataset
    begins with the smaller one. A killed run is continued by the same call. `cameras`, `paraphrase`,
    `variation`, `stride`, `camera_jitter`, `late_starts` as in `record_clips`; `depth` stores depth too. The
    defaults make the data that trained the first mask2iv-sim; `SIZES` in `metaworld_tasks` has what to ask
    for to make the benchmark.

    Returns:
        The manifest, also written to `out/<split>.json`: settings, task, seed and hash of every episode, and
        `sha256` over all of them. RGB depends on the OpenGL driver, so hashes are for one kind of machine.

    Raises:
        ValueError: unknown task, camera or split, or `out/<split>` holds others or was made otherwise.
    """
    if split not in FIRST_SEED:
        raise ValueError(f'unknown split {split!r}; known: {", ".join(FIRST_SEED)}')
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f'unknown task {task!r}; known: {", ".join(TASKS)}')
    _check_cameras(cameras)
    if not 1 <= episodes <= RETRY_STRIDE:
        raise ValueError(f'episodes: expected 1 to {RETRY_STRIDE} a task, got {episodes}')
    root = Path(out) / split
    plan = [(task, index) for index in range(episodes) for task in tasks]
    options = {'cameras': tuple(cameras), 'height': height, 'width': width, 'num_frames': num_frames}
    drawn = {'paraphrase': paraphrase, 'variation': variation}
    drawn |= {'stride': stride, 'camera_jitter': camera_jitter, 'late_starts': late_starts}
    options |= drawn
    with LeRobotClipWriter(root, depth=depth, robot_type='sawyer') as writer:
        done = _sources(root, cameras, (height, width), depth) if is_filled(root) else []
        for source, (task, index) in zip(done, plan, strict=False):
            if (source['task'], source['seed'] % RETRY_STRIDE) != (task, index):
                raise ValueError(
                    f'{root} holds {source["task"]} seed {source["seed"]} where {task} {index} belongs'
                )
            for name, wanted in drawn.items():
                there = source.get(name, UNTOLD[name])
                if there != wanted:
                    raise ValueError(f'{root} was made with {name} {there}, asked for {wanted}')
        todo = deque(plan[len(done) :])
        recording = deque()
        context = multiprocessing.get_context('spawn')  # a forked OpenGL context does not work
        with (
            ProcessPoolExecutor(workers, context, _begin_worker) as pool,
            tqdm(total=len(plan), initial=len(plan) - len(todo), desc=str(root), unit='clip') as bar,
        ):
            while todo or recording:
                while todo and len(recording) < 2 * workers:  # rendered clips wait in memory: not too many
                    task, index = todo.popleft()
                    recording.append(pool.submit(record_episode, task, split, index, **options))
                clips = recording.popleft().result()
                done.append(clips[cameras[0]].source)
                writer.add(clips)
                if len(done) % COMMIT_EVERY == 0:
                    writer.commit()
                bar.update()
    return _write_manifest(root.with_suffix('.json'), done, {**options, 'depth': depth})


def _sources(root: Path, cameras: Sequence[str], size: tuple[int, int], depth: bool) -> list[dict]:
    """Provenance of the episodes that are there; ValueError if they were filmed otherwise."""
    reader = LeRobotReader(root)
    shapes = {VIDEO_KEY.format(camera): (*size, 3) for camera in cameras}
    features = reader.meta.features
    there = {key: tuple(features[key]['shape']) for key in reader.meta.camera_keys
             if key not in reader.meta.depth_keys}  # fmt: skip
    if there != shapes or bool(reader.meta.depth_keys) != depth:
        raise ValueError(
            f'{root} has cameras {there} and depth {bool(reader.meta.depth_keys)}, asked for {shapes} and '
            f'depth {depth}'
        )
    return [reader.source(index) for index in range(len(reader))]


def _begin_worker():
    # Experts ask for more than full speed and are clipped, which is what Meta-World's own scripts do.
    warnings.filterwarnings('ignore', 'Constant.s. may be too high')
    os.environ.setdefault('LP_NUM_THREADS', '1')  # one process a core: software OpenGL needs no threads
    end_with_parent()


def _write_manifest(path: Path, sources: list[dict], options: dict) -> dict:
    rows = [{key: source[key] for key in ('task', 'seed', 'sha256')} for source in sources]
    counts = {
        task: sum(row['task'] == task for row in rows) for task in sorted({row['task'] for row in rows})
    }
    manifest = {
        **options,
        'cameras': list(options['cameras']),
        'counts': counts,
        'sha256': hashlib.sha256(''.join(row['sha256'] for row in rows).encode()).hexdigest(),
        'episodes': rows,
    }
    path.write_text(json.dumps(manifest, indent=1) + '\n')
    return manifest
