"""Training of the small network that reads masks off generated frames, on a dataset's own frames."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation.looks import LOOKS_VERSION, Looks
from mask2iv_ros.data.episodes import EpisodeReader, files_id, split_episodes
from mask2iv_ros.models.segmenter import Segmenter
from mask2iv_ros.training.arrays import ClipArrays, cached_arrays
from mask2iv_ros.training.trainer import Checked, Schedule, Trainer

#: Loss weight of a pixel by its label: background, object, actor, part.
LABEL_WEIGHTS = (1.0, 3.0, 1.5, 3.0)


@dataclass
class SegmenterOptions(Checked):
    """Options of the training.

    Attributes:
        batch_size: pairs of frames a batch.
        num_frames: frames of an episode and camera that are trained on, spread evenly.
        recoloured: share of samples in a look drawn from `Looks`.
        removed: share of samples from which object or actor is taken, so that what is gone is not reported.
        blurred: share of samples that are made less sharp and noisier, as generated frames are.
    """

    batch_size: int = 12
    num_frames: int = 12
    recoloured: float = 0.7
    removed: float = 0.15
    blurred: float = 0.6

    MINIMA = {'batch_size': 1, 'num_frames': 2}  # noqa: RUF012

    def __post_init__(self):
        self.check()


def train_segmenter(
    reader: EpisodeReader,
    folder: Path,
    schedule: Schedule | None = None,
    options: SegmenterOptions | None = None,
    size: tuple[int, int] = (128, 160),
    seed: int = 0,
    max_minutes: float | None = None,
) -> dict | None:
    """Train a `Segmenter` on the frames and masks of a dataset.

    Every tenth demonstration is held out (of one, none). A stopped training goes on where it was.

    Args:
        folder: gets `segmenter/`, to load with `Segmenter.from_pretrained`, and `report.json`.
        schedule: of the optimiser; 600 steps if left out, some minutes on one core.
        size: (height, width) that frames are read at, multiples of 16.
        max_minutes: stop then, resumable.

    Returns:
        The report: mean IoU by label of held-out frames, as they are ('real') and in drawn looks
        ('recoloured'), with the numbers of episodes; None if there was not enough time.

    Raises:
        ValueError: no camera of the dataset has masks.
    """
    options = options or SegmenterOptions()
    schedule = schedule or Schedule(steps=600, learning_rate=2e-3, warmup_steps=30, ema_decay=0.98)
    training, held_out = split_episodes(reader)
    arrays = _arrays(reader, training or held_out, folder / 'train', size, options)
    tests = _arrays(reader, held_out, folder / 'test', size, options)
    torch.manual_seed(seed)
    objective = {'options': asdict(options), 'looks_version': LOOKS_VERSION}
    del objective['options']['batch_size']  # may change
    trainer = Trainer(
        Segmenter(sample_size=size), folder, schedule, seed, f'frames {arrays.digest}', objective
    )
    weights = torch.tensor(LABEL_WEIGHTS, device=trainer.device)

    def loss_at(generator: torch.Generator) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        samples = [draw_sample(arrays, options, rng) for _ in range(options.batch_size)]
        *frames, reference_labels, labels = (np.stack(part) for part in zip(*samples, strict=True))
        pixels = [_to_pixels(part, trainer.device) for part in frames]
        painted, truth = (
            torch.from_numpy(part).long().to(trainer.device) for part in (reference_labels, labels)
        )
        logits = trainer.model(*pixels, painted).float()
        loss = F.cross_entropy(logits, truth, weight=weights)
        return {'loss': loss, 'accuracy': (logits.argmax(1) == truth).float().mean()}

    done = trainer.run(loss_at, max_minutes)
    state = trainer.final_state()
    if not done:
        return None
    segmenter = Segmenter(sample_size=size).eval()
    segmenter.load_state_dict(state)
    segmenter.save_pretrained(folder / 'segmenter')
    report = {
        'train_episodes': len(reader) - len(held_out),
        'held_out_episodes': len(held_out),
        'steps': schedule.steps,
        'seconds': round(trainer.seconds, 1),
        'iou': evaluate_segmenter(segmenter, tests, folder / 'held_out.png'),
    }
    (folder / 'report.json').write_text(json.dumps(report, indent=1) + '\n')
    return report


def evaluate_segmenter(
    segmenter: Segmenter, clips: ClipArrays, sheet: Path | None = None
) -> dict[str, dict[str, float]]:
    """Mean IoU by label over frames 1.. of clips, 'real' and 'recoloured', each clip in one drawn look.

    Args:
        sheet: where to draw the last frame of some clips: real, mask, recoloured, mask.
    """
    scores, rows = {}, []
    for name in ('real', 'recoloured'):
        found = {label: [] for label in (lb.OBJECT, lb.ACTOR, lb.PART)}
        for i in range(len(clips)):
            frames, truth = np.array(clips.frames[i]), np.array(clips.labels[i])
            if name == 'recoloured':
                frames = Looks().draw(np.random.default_rng(i)).all_frames(frames, truth)
            seen = segmenter.read(frames, truth[0])
            for label, values in found.items():
                values += [lb.iou(s == label, t == label) for s, t in zip(seen[1:], truth[1:], strict=True)]
            if i % max(1, len(clips) // 8) == 0:
                rows.append(np.concatenate([frames[-1], lb.overlay(frames[-1], seen[-1])], axis=1))
        scores[name] = {
            lb.LABEL_NAMES[label]: round(float(np.nanmean(values)), 4)
            for label, values in found.items()
            if not np.isnan(values).all()
        }
    if sheet is not None:
        half = len(rows) // 2
        pairs = [np.concatenate(pair, axis=1) for pair in zip(rows[:half], rows[half:], strict=True)]
        Image.fromarray(np.concatenate(pairs)).save(sheet)
    return scores


def draw_sample(
    arrays: ClipArrays, options: SegmenterOptions, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A frame, a reference frame ((H, W, 3) uint8), the reference's labels, the frame's ((H, W) uint8)."""
    clip = int(rng.integers(len(arrays)))
    times = np.arange(arrays.frames.shape[1])
    start = 0 if rng.random() < 0.5 else int(rng.choice(times))
    now = int(rng.choice(times[times != start]))
    frames, labels = (np.array(part[clip][[now, start]]) for part in (arrays.frames, arrays.labels))
    if rng.random() < options.removed:
        frames[0], labels[0] = _remove(arrays, clip, frames[0], labels[0], rng)
    if rng.random() < options.recoloured:
        frames = Looks(distractors=2).draw(rng).all_frames(frames, labels)
    if rng.random() < options.blurred:
        frames[0] = _blur(frames[0], rng)
    return frames[0], frames[1], labels[1], labels[0]


def _remove(arrays: ClipArrays, clip: int, frame: np.ndarray, labels: np.ndarray, rng: np.random.Generator):
    """Take object or actor away: what is behind it comes from another frame, or is painted in."""
    gone = labels == lb.ACTOR if rng.random() < 0.4 else (labels == lb.OBJECT) | (labels == lb.PART)
    frame, labels = frame.copy(), labels.copy()
    hidden = lb.dilate(gone, 5)
    for t in (0, -1):
        free = hidden & ~lb.dilate(arrays.labels[clip, t] != lb.BACKGROUND, 3)
        frame[free] = arrays.frames[clip, t][free]
        hidden &= ~free
    if hidden.any():
        frame = cv2.inpaint(frame, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    labels[gone] = lb.BACKGROUND
    return frame, labels


def _blur(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = rng.uniform(0.35, 1.0)
    small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    noisy = cv2.resize(small, (width, height)) + rng.normal(0, rng.uniform(0, 6), frame.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _to_pixels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(images).to(device).movedim(-1, 1).float() / 127.5 - 1


def _arrays(
    reader: EpisodeReader,
    episodes: list[int],
    folder: Path,
    size: tuple[int, int],
    options: SegmenterOptions,
) -> ClipArrays:
    """Frames of the episodes, all cameras that have masks, decoded once into `folder`."""
    reader.with_depth = False
    views = [(i, camera) for i in episodes for camera in reader.episode(i).masked]
    if not views:
        raise ValueError(f'{reader.path}: no camera has masks to train on; `mask2iv segment` makes some')
    files = files_id(reader.path, (folder.parent,))
    stamp = json.dumps([str(reader.path.resolve()), files, views, list(size), options.num_frames])
    return cached_arrays(reader, views, folder, stamp, size, options.num_frames)
