"""Meta-World as a robot that can be commanded: camera, joints, commands, and a scripted planner.

Owns the border between the simulator and whoever executes plans. `ExecutionScene.observe` gives only what a
real robot has: images of one calibrated camera, masks of the target object and of the arm in the current
image, and the hand's own position and opening. `expert_plan` looks into the simulator on purpose: it is the
perfect planner that bounds what execution can reach.
"""

from __future__ import annotations

import copy

import numpy as np

from mask2iv_ros.data.metaworld import FREE_FOVY, Scene, fixed_camera
from mask2iv_ros.data.metaworld_tasks import FIXED_VIEWS, TASKS
from mask2iv_ros.data.sampling import spread_frames
from mask2iv_ros.labels import ACTOR
from mask2iv_ros.planning.execution import Observation

PUBLISHED_CAMERAS = tuple(FIXED_VIEWS.values())  #: Meta-World's own fixed cameras
FIRST_SEED = 4_000_000  #: of execution; no split of the recorded data has seeds so high
#: Where Meta-World's episodes start, metres: the arm's elbow depends on it.
START_POSITIONS = ((0.0, 0.6, 0.2), (0.0, 0.4, 0.2), (-0.5, 0.6, 0.2), (0.25, 0.5, 0.2))


class ExecutionScene:
    """One task seen by one of Meta-World's fixed cameras; reusable for any number of seeds.

    Pictures are 4:3, as simulated clips and 640x480 cameras are: a model of clips of another shape knows the
    arm at another size in its frame, and draws it too near to the camera or too far from it.
    """

    def __init__(self, task: str, camera: str, height: int = 240, width: int = 320):
        if camera not in PUBLISHED_CAMERAS:
            raise ValueError(f'unknown camera {camera!r}; known: {", ".join(PUBLISHED_CAMERAS)}')
        self.scene = Scene(task, height, width)
        self.task, self.text, self.dt = task, TASKS[task].text, float(self.scene.env.dt)
        self.view, self.camera = fixed_camera(self.scene, camera)
        self.success, self.steps = False, 0

    def reset(self, seed: int):
        env = self.scene.env
        env.seed(seed)
        env.hand_init_pos = self.scene.hand_start.copy()
        self._felt, _ = env.reset()
        self.success, self.steps = False, 0

    @property
    def hand(self) -> np.ndarray:
        """(3,) metres, world."""
        return self._felt[:3].copy()

    @property
    def opening(self) -> float:
        """0 closed to 1 open."""
        return float(self._felt[3])

    @property
    def goal_pixel(self) -> np.ndarray:
        """(2,) where the camera sees the place that the task asks for, whether or not anything shows it."""
        return self.camera.project(self.scene.env._target_pos)

    def observe(self, colour: bool = False) -> Observation:
        """What a robot knows now; the picture only if asked for, since drawing it takes longest."""
        frame = None
        if colour:
            frame, labels, depth = self.scene.render(self.view, FREE_FOVY)
        else:
            labels, depth = self.scene.render_labels(self.view, FREE_FOVY)
        return Observation(labels, depth, self.camera, self.hand, self.opening, frame)

    def step(self, velocity: np.ndarray, grip: float):
        """Move the hand by a command (3,) in [-1, 1] (1 is 1 cm) with a gripper effort in [-1, 1]."""
        action = np.clip(np.append(velocity, grip), -1, 1).astype(np.float32)
        self.scene.env.curr_path_length = 0  # Meta-World refuses more than 500 steps
        self._felt, _, _, _, info = self.scene.env.step(action)
        self.steps += 1
        self.success |= info['success'] > 0

    def expert_plan(self, num_frames: int = 16) -> np.ndarray:
        """(T, H, W) labels of the scripted expert's way from the current state, which is left as it was.

        Frames are spread evenly from now to `steps_after` steps after success, as in recorded clips.
        """
        saved = self._save()
        states, _success = self._run_expert()
        plan = []
        for index in spread_frames(len(states), num_frames):
            self.scene.restore(states[index])
            plan.append(self.scene.render_labels(self.view, FREE_FOVY)[0])
        self._restore(saved)
        return np.stack(plan)

    def expert_end(self) -> tuple[bool, np.ndarray]:
        """Whether the expert solves the task from here, and where it leaves the object: (3,) metres."""
        saved = self._save()
        _states, success = self._run_expert()
        end = self.scene.object_centre()
        self._restore(saved)
        return success, end

    def _run_expert(self) -> tuple[list, bool]:
        scene, states, success, felt = self.scene, [], None, self._felt.copy()
        task = TASKS[self.task]
        scene.env.curr_path_length = 0
        for step in range(task.max_steps):
            states.append([x.copy() for x in self._simulated()])
            action = np.clip(scene.expert.get_action(felt.copy()), -1, 1).astype(np.float32)
            felt, _, _, _, info = scene.env.step(action)
            if success is None and info['success'] > 0:
                success = step
            if success is not None and step >= success + task.steps_after:
                break
        return states, success is not None

    def move_about(self, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) bool of the arm and positions (N, 3) of the hand, on ways through the workspace.

        The arm has more joints than the hand has degrees of freedom, so how it looks also depends on how it
        got there: as in episodes, every way starts at a reset.
        """
        rng, start = np.random.default_rng(seed), self.scene.hand_start
        masks, hands = [], []
        low, high = (-0.4, 0.38, 0.05), (0.4, 0.9, 0.42)
        for way in range(count):  # far fewer ways give enough poses
            self.scene.hand_start = np.array(START_POSITIONS[way % len(START_POSITIONS)])
            self.reset(FIRST_SEED - 1 - way)
            for _ in range(2):
                target, grip = rng.uniform(low, high), rng.choice((-1.0, 1.0))
                for step in range(70):
                    self.step(20 * (target - self.hand), grip)
                    if step % 7 == 6:
                        masks.append(self.scene.render_labels(self.view, FREE_FOVY)[0] == ACTOR)
                        hands.append(self.hand)
                    if np.linalg.norm(target - self.hand) < 0.02:
                        break
            if len(masks) >= count:
                break
        self.scene.hand_start = start
        return np.array(masks), np.array(hands)

    def _simulated(self):
        d = self.scene.data
        return d.qpos, d.qvel, d.mocap_pos, d.mocap_quat

    def _save(self):
        import mujoco

        model, data = self.scene.model, self.scene.data
        what = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, what))
        mujoco.mj_getState(model, data, state, what)
        plain = (np.ndarray, int, float, bool, str, list, tuple, type(None))
        kept = {k: copy.deepcopy(v) for k, v in vars(self.scene.env).items() if isinstance(v, plain)}
        return state, kept, model.site_pos.copy(), self._felt.copy()

    def _restore(self, saved):
        import mujoco

        model, data = self.scene.model, self.scene.data
        state, kept, sites, self._felt = saved
        model.site_pos[:] = sites
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
        vars(self.scene.env).update(kept)
