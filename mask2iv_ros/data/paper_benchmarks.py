"""The two benchmarks of Mask2IV (arXiv 2510.03135), made from HOI4D and from BridgeData V2.

`prepare_hoi4d` and `prepare_bridge` look at annotations and masks only and write `OUT/manifest.json`: each
rule with its value and where it comes from, how many clips it dropped, what was damaged, and the clips of
each split as source, frame numbers and caption. Pictures stay where they are; `BenchmarkReader` reads them
through the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data import bridge, hoi4d
from mask2iv_ros.data.episodes import BadEpisode, Episode, EpisodeReader, UnknownLayout
from mask2iv_ros.labels import ACTOR, BACKGROUND, OBJECT, object_mask

MANIFEST = 'manifest.json'
FORMAT = 1
LENGTH = 16  #: frames a clip

PAPER, RELEASED, OURS = 'paper', 'released code', 'this project'


class Rule(NamedTuple):
    """A step of a benchmark's making.

    Attributes:
        value: its number, names or words.
        origin: the paper, code that its authors released, or this project where neither tells.
        note: what is ours in it, or what the value means.
    """

    value: Any
    origin: str
    note: str = ''


HOI4D_RULES = {
    'event_frames': Rule('[start, end)', OURS, 'the frames whose time is in the event, at 15 a second'),
    'merge': Rule('Reachout, Grasp', RELEASED, 'a Reachout directly before a Grasp becomes part of it'),
    'dropped_events': Rule(
        ['rest', 'stop', 'reachout', 'carry', 'go', 'press', 'dump', 'cut', 'paper-cut'], RELEASED
    ),
    'uncaptioned_events': Rule('dropped', OURS, 'events that no caption names, such as Lookaround'),
    'dropped_objects': Rule(['StorageFurniture', 'Safe', 'Lamp', 'Stapler'], RELEASED),
    'min_frames': Rule(12, RELEASED, 'shorter events are dropped'),
    'extend_to': Rule(
        LENGTH,
        RELEASED,
        'events of 12 to 15 frames; ours: at their end, and at their start where the video ends',
    ),
    'frames': Rule(LENGTH, PAPER, 'spread evenly over the event: round(linspace(start, end, 16))'),
    'masks': Rule('2Dseg/shift_mask, else 2Dseg/mask', RELEASED, 'videos without are dropped'),
    'labels': Rule('by category', RELEASED, 'its clean-up of second objects and parts; both hands are actor'),
    'empty_frame': Rule('dropped', RELEASED, 'clips with a sampled frame in which nothing is labelled'),
    'hand_visible': Rule('in a sampled frame', RELEASED),
    'object_visible': Rule('in a sampled frame', RELEASED),
    'low_motion': Rule(
        0.05,
        PAPER,
        'this share with least motion is dropped; ours: motion is the mean number of pixels that change in '
        'the hand mask and in the object mask from one sampled frame to the next',
    ),
    'caption': Rule(
        'a hand picking up a mug',
        RELEASED,
        'two hands where the left hand is labelled in a sampled frame; the released code looks for it after '
        'it has painted both hands alike, and never finds it',
    ),
    'split': Rule(
        {'test': 0.1, 'val': 0.05},
        OURS,
        "by SHA-256 of category and instance, so no object is in two splits; the paper's is not published",
    ),
    'geometry': Rule('short side 384, crop 320 x 512', RELEASED, 'not done here; centre crop in tests'),
}

BRIDGE_RULES = {
    'instruction': Rule('required', RELEASED, 'of several the surest'),
    'min_confidence': Rule(0.4, RELEASED, 'trajectories without a confidence are dropped'),
    'max_images': Rule(50, RELEASED, 'longer trajectories are dropped'),
    'min_images': Rule(LENGTH, OURS, 'so that no frame comes twice'),
    'object': Rule(
        'required',
        RELEASED,
        'named in the instruction; ours: found by a regular expression alone, without a language model',
    ),
    'frames': Rule(LENGTH, PAPER, 'spread evenly over all of images0: round(linspace(0, last, 16))'),
    'masks': Rule(
        'masks/mask_<t>.png',
        RELEASED,
        'trajectories without are dropped; ours: robot and object are each in a sampled frame. The paper '
        'made its masks with GroundingDINO and SAM 2.1',
    ),
    'caption': Rule('a robot gripper <instruction>', RELEASED, 'lower case'),
    'split': Rule(
        {'test': 200, 'val': 50, 'seed': 42},
        RELEASED,
        'at random; ours: numpy default_rng over the clips in numeric order of their paths, and at most a '
        'tenth of them for test, a fortieth for val',
    ),
    'geometry': Rule(
        'short side 320, centre crop 320 x 512', RELEASED, 'not done here; 4:3 gets black sides'
    ),
}


def prepare_hoi4d(root: str | Path, out: str | Path) -> dict:
    """Make the HOI4D benchmark; returns the manifest that is written to `out`.

    Raises:
        FileNotFoundError, UnknownLayout: as `mask2iv_ros.data.hoi4d.find_sequences`.
    """
    root = Path(root)
    dropped, skipped, clips, motions, found = Counter(), [], [], [], 0
    for sequence in tqdm(hoi4d.find_sequences(root), desc='HOI4D', unit='video'):
        try:
            category, events = sequence.category, sequence.events()
        except BadEpisode as error:
            skipped.append({'source': sequence.name, 'error': str(error)})
            continue
        found += len(events)
        for event in events:
            try:
                clip, motion = _hoi4d_clip(sequence, category, event)
            except _Dropped as reason:
                dropped[reason.rule] += 1
            except (BadEpisode, OSError) as error:
                skipped.append({'source': f'{sequence.name} {event}', 'error': str(error)})
            else:
                clips.append(clip)
                motions.append(motion)
    dropped['low_motion'] = int(HOI4D_RULES['low_motion'].value * len(clips))
    moving = np.sort(np.argsort(motions, kind='stable')[dropped['low_motion'] :])
    splits = {'train': [], 'val': [], 'test': []}
    for index in moving:
        splits[_instance_split(clips[index]['source'])].append(clips[index])
    return _write(out, 'hoi4d', HOI4D_RULES, found, dropped, skipped, splits, {'root': str(root.absolute())})


def prepare_bridge(root: str | Path, out: str | Path, masks: str | Path | None = None) -> dict:
    """Make the BridgeData V2 benchmark; returns the manifest that is written to `out`.

    Args:
        masks: as `mask2iv_ros.data.bridge.BridgeReader`.

    Raises:
        FileNotFoundError, UnknownLayout: as `BridgeReader`.
    """
    reader = bridge.BridgeReader(root, masks)
    dropped, skipped, clips = Counter(), [], []
    for trajectory in tqdm(reader.trajectories, desc='BridgeData V2', unit='trajectory'):
        name = trajectory.folder.relative_to(reader.path).as_posix()
        try:
            clips.append({'source': name, **_bridge_clip(trajectory)})
        except _Dropped as reason:
            dropped[reason.rule] += 1
        except (BadEpisode, OSError) as error:
            skipped.append({'source': name, 'error': str(error)})
    shares = BRIDGE_RULES['split'].value
    order = np.random.default_rng(shares['seed']).permutation(len(clips))
    test = min(shares['test'], len(clips) // 10)
    val = min(shares['val'], len(clips) // 40)
    parts = {'train': order[test + val :], 'val': order[test : test + val], 'test': order[:test]}
    splits = {split: [clips[index] for index in sorted(part)] for split, part in parts.items()}
    places = {'root': str(reader.path.absolute()), 'masks': str(reader.masks.absolute())}
    return _write(out, 'bridge', BRIDGE_RULES, len(reader), dropped, skipped, splits, places)


class BenchmarkReader(EpisodeReader):
    """The clips of one split of a prepared benchmark: 16 frames each, with labels and the paper's caption.

    Args:
        path: folder with `manifest.json`.
        split: 'train', 'val' or 'test'.
        root, masks: where the dataset and its masks are now; None for where they were when it was prepared.

    Raises:
        UnknownLayout: no manifest that this version reads.
        ValueError: no such split.
        FileNotFoundError: the dataset is not at `root`.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        root: str | Path | None = None,
        masks: str | Path | None = None,
    ):
        self.path = Path(path)
        self.manifest = load_manifest(self.path)
        if split not in self.manifest['splits']:
            raise ValueError(f'{self.path}: no split {split!r}; there are {list(self.manifest["splits"])}')
        self.split = split
        self.clips = self.manifest['splits'][split]
        self.root = Path(self.manifest['root'] if root is None else root)
        if not self.root.is_dir():
            raise FileNotFoundError(
                f'{self.root}: the dataset of {self.path} is not there; say where with root'
            )
        self._bridge = self.manifest['benchmark'] == 'bridge'
        if self._bridge:
            moved = self.root if root is not None else Path(self.manifest['masks'])
            self.masks = moved if masks is None else Path(masks)
        self._fps, self._camera = (
            (bridge.FPS, bridge.MASK_CAMERA) if self._bridge else (hoi4d.FPS, hoi4d.CAMERA)
        )

    def __len__(self) -> int:
        return len(self.clips)

    def episode(self, index: int) -> Episode:
        clip = self.clips[index]
        first, last = clip['frames'][0], clip['frames'][-1]
        return Episode(
            name=f'{clip["source"]}/{first:05d}-{last:05d}',
            length=len(clip['frames']),
            fps=self._fps * (len(clip['frames']) - 1) / (last - first),
            task=clip['caption'],
            cameras=(self._camera,),
            masked=(self._camera,),
        )

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        source, all_frames = self.clips[index]['source'], np.array(self.clips[index]['frames'])
        numbers = all_frames[frames]
        if self._bridge:
            trajectory = bridge.Trajectory(self.root / source, self.masks / source / 'masks')
            pictures, labels = trajectory.read_images(camera, numbers), trajectory.read_labels(numbers)
        else:
            sequence = hoi4d.Sequence(source, hoi4d.part_folders(self.root))
            pictures, labels = sequence.read_frames(numbers), sequence.labels(sequence.read_masks(numbers))
        return InteractionClip(
            frames=pictures,
            labels=labels,
            task=episode.task,
            source={
                'benchmark': self.manifest['benchmark'],
                'split': self.split,
                'source': source,
                'frame_times': ((numbers - all_frames[0]) / self._fps).tolist(),
            },
        )


def load_manifest(path: str | Path) -> dict:
    """Manifest of a prepared benchmark.

    Raises:
        UnknownLayout: there is none, or of another format.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise UnknownLayout(f'{path}: no {MANIFEST}; make it with prepare_hoi4d or prepare_bridge')
    manifest = json.loads(file.read_text(encoding='utf-8'))
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        raise UnknownLayout(f'{file}: not a benchmark manifest of format {FORMAT}; prepare it again')
    return manifest


def object_noun(instruction: str) -> str | None:
    """What an instruction acts on: 'silver pot' of 'Put the silver pot on the stove'; None if unclear.

    The words between the first verb of manipulation and the next preposition, without article.
    """
    for found in _ACTED_ON.finditer(instruction.lower()):
        words = found['object'].split()
        while words and words[-1] in _DIRECTIONS:
            words.pop()
        if words and words[0] not in _PRONOUNS:
            return ' '.join(words)
    return None


_VERBS = (
    'pick|plac|put|mov|tak|grab|grasp|lift|rais|lower|open|clos|fold|unfold|push|pull|slid|turn|flip|rotat|twist|'
    'wip|sweep|swip|stack|unstack|pour|remov|bring|drop|set|get|relocat|transfer|insert|lay|hold|carr|topple|knock|'
    'tilt|stir|cover|uncover|spread|hang|roll|shift|drag|press|zip|unzip|switch|straighten|clean|reach|scoop|cut'
)
_STOPS = (
    'on|onto|in|into|inside|to|toward|towards|from|at|with|over|under|near|next|off|out|of|by|beside|between|'
    'behind|above|below|around|through|across|against|along|so|and|then|which|that|is|are|using|where'
)
_ACTED_ON = re.compile(
    rf'\b(?:{_VERBS})[a-z]*\s+(?:(?:up|down|out|away|over|off|on)\s+)?(?:(?:the|a|an|some|this|that|its)\s+)*'
    rf"(?P<object>(?!(?:{_STOPS})\b)[a-z][\w'-]*(?:\s+(?!(?:{_STOPS})\b)[\w'-]+)*)"
)
_DIRECTIONS = {'up', 'down', 'left', 'right', 'away', 'back', 'forward', 'backward', 'backwards', 'slightly'}
_PRONOUNS = {'it', 'them', 'something', 'everything', 'things'}


class _Dropped(Exception):  # noqa: N818
    """A clip does not pass the rule of this name."""

    def __init__(self, rule: str):
        super().__init__(rule)
        self.rule = rule


def _hoi4d_clip(sequence: hoi4d.Sequence, category: str, event: hoi4d.Event) -> tuple[dict, float]:
    rule = {name: rule.value for name, rule in HOI4D_RULES.items()}
    if event.name.lower() in rule['dropped_events']:
        raise _Dropped('dropped_events')
    if not hoi4d.caption(event.name, category):
        raise _Dropped('uncaptioned_events')
    if category in rule['dropped_objects']:
        raise _Dropped('dropped_objects')
    start, end = event.start, event.end
    if end - start + 1 < rule['min_frames']:
        raise _Dropped('min_frames')
    end = min(max(end, start + rule['extend_to'] - 1), hoi4d.FRAMES - 1)
    start = min(start, end - rule['extend_to'] + 1)
    if sequence.mask_folder is None:
        raise _Dropped('masks')
    frames = np.round(np.linspace(start, end, LENGTH)).astype(int)
    masks = sequence.read_masks(frames)
    if not masks.any(axis=(1, 2)).all():
        raise _Dropped('empty_frame')
    labels = sequence.labels(masks)
    if not (labels == ACTOR).any():
        raise _Dropped('hand_visible')
    if not object_mask(labels).any():
        raise _Dropped('object_visible')
    clip = {
        'source': sequence.name,
        'event': event.name,
        'object': category,
        'frames': frames.tolist(),
        'caption': hoi4d.caption(event.name, category, sequence.shows_left_hand(masks)),
    }
    return clip, _motion(labels)


def _motion(labels: np.ndarray) -> float:
    """Mean number of pixels that change in the actor's and in the object's mask between frames."""
    changed = 0.0
    for before, after in pairwise(labels):
        changed += np.count_nonzero((before == ACTOR) != (after == ACTOR))
        shown = [(image != ACTOR) & (image != BACKGROUND) for image in (before, after)]
        changed += np.count_nonzero(shown[0] != shown[1])
    return changed / (len(labels) - 1)


def _instance_split(source: str) -> str:
    shares = HOI4D_RULES['split'].value
    _, _, category, instance, *_ = source.split('/')
    point = int(hashlib.sha256(f'{category}/{instance}'.encode()).hexdigest()[:8], 16) / 16**8
    if point < shares['test']:
        return 'test'
    return 'val' if point < shares['test'] + shares['val'] else 'train'


def _bridge_clip(trajectory: bridge.Trajectory) -> dict:
    rule = {name: rule.value for name, rule in BRIDGE_RULES.items()}
    text, confidence = trajectory.instruction()
    if not text:
        raise _Dropped('instruction')
    if confidence is None or confidence < rule['min_confidence']:
        raise _Dropped('min_confidence')
    cameras = trajectory.cameras()
    images = cameras.get(bridge.MASK_CAMERA)
    if images is None:
        raise BadEpisode(f'{trajectory.folder}: no {bridge.MASK_CAMERA}')
    if images > rule['max_images']:
        raise _Dropped('max_images')
    if images < rule['min_images']:
        raise _Dropped('min_images')
    thing = object_noun(text)
    if thing is None:
        raise _Dropped('object')
    if not trajectory.has_masks():
        raise _Dropped('masks')
    frames = np.round(np.linspace(0, images - 1, LENGTH)).astype(int)
    labels = trajectory.read_labels(frames)
    if not (labels == ACTOR).any() or not (labels == OBJECT).any():
        raise _Dropped('masks')
    return {
        'object': thing,
        'confidence': confidence,
        'frames': frames.tolist(),
        'caption': f'a robot gripper {text.lower()}',
    }


def _write(
    out: str | Path,
    benchmark: str,
    rules: dict,
    found: int,
    dropped: Counter,
    skipped: list[dict],
    splits: dict[str, list[dict]],
    places: dict[str, str],
) -> dict:
    manifest = {
        'format': FORMAT,
        'benchmark': benchmark,
        'paper': 'arXiv 2510.03135',
        **places,
        'rules': {
            name: {'value': rule.value, 'from': rule.origin, 'note': rule.note}
            for name, rule in rules.items()
        },
        'found': found,
        'dropped': {name: dropped[name] for name in rules if name in dropped},
        'kept': {name: len(clips) for name, clips in splits.items()},
        'skipped': skipped,
        'splits': splits,
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    half = out / f'.{MANIFEST}'
    half.write_text(json.dumps(manifest, indent=1), encoding='utf-8')
    os.replace(half, out / MANIFEST)
    return manifest
