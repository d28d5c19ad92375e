"""How far from the truth are lifted paths? Writes JSON, a Markdown table and a picture of some paths.

    python benchmarks/path_accuracy.py [--tasks ...] [--episodes 2] [--cameras front corner3]

Simulated test clips give true masks, depth of frame 0, calibration, and where the object really is. Paths
are lifted from the true masks, and from masks damaged somewhat as predictions are (every later frame's object
dilated, eroded or left, by a random draw); each also as the node makes them, with the motion measured on
masks of the model's size and brought back to the image's pixels. Errors of a path are given to two truths:
`point`, the surface point that was lifted in frame 0 carried along by the object, which is what a path
promises; and `centre`, the centre of the box around the object, which also holds how far the surface is from
it. Two-dimensional errors are to the centre of the object's mask as seen with the arm left out. Contact is
the simulator's; its pixel and its point are the means of the contact points. Rotation is to the object's turn
about the viewing ray, or about the normal of the support plane: the twist of its rotation since frame 0 about
that axis. Milliseconds are of processor time, one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.data.metaworld import record_episode
from mask2iv_ros.data.metaworld_tasks import VIEWS
from mask2iv_ros.framing import Framing
from mask2iv_ros.planning.motion import between_neighbours, mask_motion, restore_motion
from mask2iv_ros.planning.path import DEPTH_MODELS, lift_path

TASKS = (
    'assembly', 'basketball', 'button-press', 'dial-turn', 'door-close', 'door-open', 'drawer-open',
    'faucet-close', 'faucet-open', 'hammer', 'handle-press', 'shelf-place',
)  # fmt: skip
TURNING = ('dial-turn', 'door-close', 'door-open', 'faucet-close', 'faucet-open')
FIRST_EPISODE = 10  # of the test split: 'auto' was made on episodes 0 and 1, cameras front and corner
FRAMES = 16
MODEL_SIZE = (128, 160)
SETS = (
    'true masks',
    'damaged masks',
    'true masks as the node sees them',
    'damaged masks as the node sees them',
)
ROWS = (*DEPTH_MODELS, 'auto', 'auto with up')
DRAWN = ('door-open', 'basketball', 'faucet-close', 'drawer-open')


class Truth:
    """What the simulator knows in each frame: filled by `record_episode` through `look`."""

    def __init__(self, cameras):
        self.cameras, self.frames = cameras, []

    def look(self, scene, poses):
        contact = scene.data.contact
        first, second = contact.geom1, contact.geom2
        between = (
            scene.is_actor[first] & scene.is_object[second] | scene.is_object[first] & scene.is_actor[second]
        )
        body = scene.model.geom_bodyid[scene.visible_object[0]]
        self.frames.append({
            'centre': scene.object_centre(),
            'rotation': scene.data.xmat[body].reshape(3, 3).copy(),
            'contacts': contact.pos[between & (contact.dist <= 0)].copy(),
            'whole': {name: scene.render_goal(poses[name], VIEWS[name].fovy) > 0 for name in self.cameras},
        })  # fmt: skip

    def taken(self, key):
        return [frame[key] for frame in self.frames[-FRAMES:]]  # before them: seeds that would not do

    def pixels(self, camera: str) -> np.ndarray:
        """(T, 2) centre of the object's mask with the arm left out."""
        return np.array([lb.centroid(frame[camera]) or (np.nan, np.nan) for frame in self.taken('whole')])


def to_camera(camera, points) -> np.ndarray:
    return (np.asarray(points) - camera.cam_to_world[:3, 3]) @ camera.cam_to_world[:3, :3]


def damage(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    damaged = labels.copy()
    for image in damaged[1:]:
        actor, seen = image == lb.ACTOR, image == lb.OBJECT
        change = (lb.dilate, lb.erode, None)[rng.integers(3)]
        changed = change(seen, 3) if change else seen
        image[:] = lb.combine_masks(changed if changed.any() else seen, actor)
    return damaged


def twists(camera, rotations, ray) -> np.ndarray:
    """Turn (T,) about a ray of the camera since frame 0, radians, x towards y (swing-twist decomposition)."""
    ray = ray / np.linalg.norm(ray)
    angles = []
    for rotation in rotations:
        inside = camera.cam_to_world[:3, :3].T @ rotation @ rotations[0].T @ camera.cam_to_world[:3, :3]
        vector = cv2.Rodrigues(inside)[0][:, 0]
        half = np.linalg.norm(vector) / 2
        axis = vector / max(2 * half, 1e-12)
        angles.append(2 * np.arctan2(np.sin(half) * (axis @ ray), np.cos(half)))
    return np.unwrap(angles)


def seen_by_node(labels: np.ndarray) -> tuple[np.ndarray, Framing]:
    """Labels in the model's frame, and what brings them back."""
    framing = Framing(labels.shape[1:], MODEL_SIZE)
    return framing.fit_labels(labels), framing


def measure(clip, truth: Truth, camera_name: str, labels: np.ndarray, node: bool, scores: dict) -> dict:
    """Add the errors of one clip to `scores`; its paths. `node`: as the node measures motion."""
    camera, task = clip.camera, clip.source['task']
    seen, framing = seen_by_node(labels) if node else (labels, None)
    start = time.process_time()
    motion = mask_motion(seen)
    if node:
        motion = restore_motion(motion, framing)
    scores['time']['motion'].append(time.process_time() - start)
    if node:
        labels = np.concatenate((labels[:1], framing.restore_labels(seen[1:])))
    whole = truth.pixels(camera_name)
    covered = np.array([(lb.dilate(i == lb.OBJECT, 3) & (i == lb.ACTOR)).any() for i in clip.labels])
    for name, position in (('centroid', between_neighbours(motion.centroid)), ('position', motion.position)):
        error = np.linalg.norm(position - whole, axis=1)
        scores['2-D'][name].append(error[covered])
        scores['2-D never covered'][name].append(error[~covered])

    centres = to_camera(camera, truth.taken('centre'))
    turns = [camera.cam_to_world[:3, :3].T @ rotation for rotation in truth.taken('rotation')]
    paths = {}
    for row in ROWS:
        up = camera.cam_to_world[:3, :3].T @ (0, 0, 1.0) if row == 'auto with up' else None
        model = row.split(' ')[0]
        start = time.process_time()
        path = lift_path(labels, clip.depth[0], camera.intrinsics, None, model, up, motion)
        scores['time'][f'path, {row}'].append(time.process_time() - start)
        points = np.array([
            turn @ turns[0].T @ (path.points[0] - centres[0]) + centre
            for turn, centre in zip(turns, centres, strict=True)
        ])  # fmt: skip
        errors = np.linalg.norm(path.points - points, axis=1), np.linalg.norm(path.points - centres, axis=1)
        scores['3-D'][row].append(errors)
        scores[f'3-D {task}'][row].append(errors)
        scores['chosen'][f'{task}, {row}'].append(path.depth_model)
        paths[row] = path

    if clip.contact.any():
        frame = int(clip.contact.argmax())
        pixel = camera.project(truth.taken('contacts')[frame]).mean(axis=0)
        size = lb.paper_kernel(7, labels.shape[1])
        first = lb.contact_frame(labels, size)
        if first >= 0:
            at = lb.centroid(lb.contact_band(labels[first], size))
            scores['contact']['first touch in the image'].append((first - frame, np.linalg.norm(at - pixel)))
        if motion.contact_frame >= 0:
            off = np.linalg.norm(motion.contact_pixel - pixel)
            scores['contact']['touch that moves'].append((motion.contact_frame - frame, off))
            point = to_camera(camera, truth.taken('contacts')[frame]).mean(axis=0)
            scores['contact point']['auto'].append(np.linalg.norm(paths['auto'].contact - point))
    if task in TURNING:
        true = twists(camera, truth.taken('rotation'), centres[0])
        add_rotation(scores['rotation in the image'][task], motion.rotation, true, motion.rigidity)
        path = paths['auto with up']
        if path.normal is not None:
            true = twists(camera, truth.taken('rotation'), path.normal)
            add_rotation(scores['rotation in the support plane'][task], path.rotation, true, motion.rigidity)
    return paths


def add_rotation(found: list, measured, true, rigidity):
    seen = np.isfinite(measured) & np.isfinite(rigidity)
    seen[0] = False
    if seen.any():
        found.append((np.abs(measured - true)[seen], np.abs(true)[seen], rigidity[seen]))


def draw(clip, motion_path, plain, truth_pixels) -> np.ndarray:
    """Frame 0 with plain centroids (yellow), our positions (red) and the truth (white), twice as large."""
    picture = cv2.resize(lb.overlay(clip.frames[0], clip.labels[0], 0.3), None, fx=2, fy=2)
    for points, colour in (
        (truth_pixels, (255, 255, 255)),
        (plain, (255, 220, 0)),
        (motion_path, (255, 0, 60)),
    ):
        line = np.round(points[np.isfinite(points).all(axis=1)] * 2 + 0.5).astype(np.int32)
        cv2.polylines(picture, [line], False, colour, 2, cv2.LINE_AA)
        for point in line:
            cv2.circle(picture, tuple(map(int, point)), 3, colour, -1, cv2.LINE_AA)
    cv2.putText(picture, clip.source['task'], (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2)
    return picture


def summary(scores: dict) -> dict:
    mm = 1000

    def path_row(errors) -> dict:
        point, centre = (np.stack(kind) for kind in zip(*errors, strict=True))
        return {
            'point mean': point.mean() * mm,
            'point final': point[:, -1].mean() * mm,
            'below 20 mm': (point < 0.02).mean(),
            'below 50 mm': (point < 0.05).mean(),
            'centre frame 0': centre[:, 0].mean() * mm,
            'centre middle': centre[:, FRAMES // 2].mean() * mm,
            'centre final': centre[:, -1].mean() * mm,
        }

    def pixels(errors) -> dict:
        known = np.concatenate(errors)
        known = known[np.isfinite(known)]
        return {'mean': known.mean(), 'median': np.median(known), '90 %': np.percentile(known, 90)}

    result = {
        key: {row: pixels(found) for row, found in scores[key].items()}
        for key in ('2-D', '2-D never covered')
    }
    for key in scores:
        if key.startswith('3-D'):
            result[key] = {row: path_row(found) for row, found in scores[key].items()}
    result['chosen'] = {
        row: {model: found.count(model) for model in dict.fromkeys(found)}
        for row, found in scores['chosen'].items()
        if 'auto' in row
    }
    result['contact'] = {
        row: {
            'mean frames off': np.abs(frames := np.array([f for f, _ in found])).mean(),
            'bias frames': frames.mean(),
            'within 1 frame': (np.abs(frames) <= 1).mean(),
            'median pixels off': np.median([p for _, p in found]),
        }
        for row, found in scores['contact'].items()
    }
    result['contact point'] = {
        row: {'median mm': np.median(found) * mm, 'below 50 mm': (np.array(found) < 0.05).mean()}
        for row, found in scores['contact point'].items()
    }
    result['time'] = {
        row: {'median ms': np.median(found) * 1000, '90 % ms': np.percentile(found, 90) * 1000}
        for row, found in scores['time'].items()
    }
    for key in [key for key in scores if key.startswith('rotation')]:
        result[key] = {
            task: {
                'error degrees': np.degrees(np.concatenate([f[0] for f in found]).mean()),
                'turned degrees': np.degrees(np.concatenate([f[1] for f in found]).mean()),
                'rigidity': np.concatenate([f[2] for f in found]).mean(),
                'frames': sum(len(f[0]) for f in found),
            }
            for task, found in scores[key].items()
            if found
        }
    return json.loads(json.dumps(result, default=float))


def table(title: str, rows: dict) -> list[str]:
    columns = list(next(iter(rows.values())))
    lines = ['', title, '', '| | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for name, values in rows.items():
        cells = [f'{values[c]:.2f}' if abs(values[c]) < 10 else f'{values[c]:.0f}' for c in columns]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tasks', nargs='+', default=list(TASKS))
    parser.add_argument('--episodes', type=int, default=2)
    parser.add_argument('--cameras', nargs='+', default=['front', 'corner3'])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'path_accuracy')
    args = parser.parse_args()
    scores = {masks: defaultdict(lambda: defaultdict(list)) for masks in SETS}
    cv2.setNumThreads(1)
    pictures, rng = [], np.random.default_rng(0)
    cases = [(task, FIRST_EPISODE + i) for task in args.tasks for i in range(args.episodes)]
    for task, index in tqdm(cases, unit='episode'):
        truth = Truth(args.cameras)
        clips = record_episode(
            task, 'test', index, cameras=args.cameras, num_frames=FRAMES, on_frame=truth.look
        )
        for name, clip in clips.items():
            masks = {'true masks': clip.labels, 'damaged masks': damage(clip.labels, rng)}
            for kind, labels in masks.items():
                measure(clip, truth, name, labels, False, scores[kind])
                measure(clip, truth, name, labels, True, scores[f'{kind} as the node sees them'])
            if task in DRAWN and index == FIRST_EPISODE and name == args.cameras[0]:
                motion = mask_motion(clip.labels)
                pictures.append(draw(clip, motion.position, motion.centroid, truth.pixels(name)))
    result = {masks: summary(found) for masks, found in scores.items()}
    result['settings'] = {'tasks': args.tasks, 'episodes': args.episodes, 'cameras': args.cameras,
                          'first episode': FIRST_EPISODE, 'frames': FRAMES}  # fmt: skip
    lines = [
        f'{len(cases)} simulated test episodes, cameras {", ".join(args.cameras)}; see `path_accuracy.py`.'
    ]
    for masks in scores:
        found = result[masks]
        lines += ['', f'## {masks.capitalize()}']
        lines += table('Error of the path in mm, by depth model:', found['3-D'])
        lines += table(
            "Position error in pixels where the arm touches or covers the object's mask:", found['2-D']
        )
        lines += table('Contact frame and pixel:', found['contact'])
        lines += table('Contact point in 3-D:', found['contact point'])
        lines += table('Time of one plan:', found['time'])
        for key, about in (
            ('rotation in the image', 'viewing ray, from the image alone'),
            ('rotation in the support plane', 'normal of the support plane, from masks projected onto it'),
        ):
            if found.get(key):
                lines += table(f'Rotation about the {about}:', found[key])
        means = {task: {row: found[f'3-D {task}'][row]['point mean'] for row in ROWS} for task in args.tasks}
        lines += table('Mean error of the point in mm, by task:', means)
    args.out.with_suffix('.md').write_text('\n'.join(lines) + '\n')
    args.out.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    if pictures:
        picture = np.concatenate(pictures, axis=1) if len(pictures) < 4 else np.concatenate(
            [np.concatenate(pictures[i : i + 2], axis=1) for i in (0, 2)], axis=0
        )  # fmt: skip
        cv2.imwrite(str(args.out.with_suffix('.jpg')), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
