"""`mask2iv evaluate`: models on the clips of datasets, one JSON line a clip, then tables and pictures.

Protocol of Mask2IV (arXiv 2510.03135): `num_frames` frames spread over the episode, masks that stage 1
predicted fed to stage 2. Everything is scored at one resolution, frames 1.., because frame 0 is given.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ConfigMixin
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader, Subset, open_dataset, split_episodes
from mask2iv_ros.data.sampling import spread_frames
from mask2iv_ros.evaluation import metrics, texts
from mask2iv_ros.evaluation.extractors import Extractors
from mask2iv_ros.evaluation.journal import drop_cut_off_line, read_lines
from mask2iv_ros.evaluation.report import ORACLE, REAL, STILL_MASKS, STILL_VIDEO, write_report
from mask2iv_ros.framing import Framing
from mask2iv_ros.pictures import contact_sheet, write_picture
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline

#: Splits that `mask2iv simulate` makes to test on, each reported on its own.
SPLITS = ('test', 'test_camera', 'test_tasks')
MAX_SHEETS = 60  #: contact sheets a split, for datasets in which every clip is a task of its own

#: Control modes: whether stage 1 gets the text, the goal mask, and the actor's first mask.
CONTROLS = {
    'text': (True, False, True),
    'goal': (False, True, True),
    'text+goal': (True, True, True),
    'text without actor': (True, False, False),
}


@dataclass(frozen=True)
class Settings:
    """What an evaluation is made with.

    Attributes:
        size: (height, width) at which everything is scored; a model of another size is resampled.
        seed: of the first sample of each clip; sample i has seed + i.
        samples: predictions a clip and row; scores are their mean.
        trajectory_only: leave out stage 2 and all scores of videos.
        text_clips: of so many clips a split, other texts are tried.
        camera: of the episodes; None for each one's first.
        controls: of `CONTROLS`, those that the models know. A model of one stage (no masks) has a row `text`
            of video scores, whatever this says.
        short_side: the paper's crop, see `Framing.with_short_side`. None: the whole picture is fitted into
            `size`.
    """

    size: tuple[int, int]
    seed: int = 0
    samples: int = 1
    trajectory_only: bool = False
    text_clips: int = 32
    camera: str | None = None
    short_side: int | None = None
    controls: tuple[str, ...] = tuple(CONTROLS)

    def __post_init__(self):
        if unknown := set(self.controls) - set(CONTROLS):
            raise ValueError(f'controls: expected some of {tuple(CONTROLS)}, got {sorted(unknown)}')

    def framing(self, source: tuple[int, int]) -> Framing:
        """From pictures of `source` (height, width) to those that are scored."""
        return Framing.with_short_side(source, self.size, self.short_side)


def _open(path: Path, **options) -> EpisodeReader:
    reader = open_dataset(path, **options)
    reader.with_depth = False  # nothing here looks at it
    return reader


def open_splits(data: Path, splits: list[str] | None = None) -> dict[str, EpisodeReader]:
    """Readers of the splits of `data` by name.

    `data` is a folder of datasets, of which `splits` (None: those of `SPLITS` that are there) are taken; or
    a benchmark that `mask2iv prepare` made, whose `test` is the default; or one dataset, of which `test` (the
    default) are the episodes that training leaves out, and `all` is the whole.
    """
    if (data / 'manifest.json').is_file():
        return {split: _open(data, split=split) for split in splits or ('test',)}
    found = [split for split in SPLITS if (data / split).is_dir()]
    if not found and not any((data / split).is_dir() for split in splits or ()):
        reader = _open(data)
        parts = {'test': Subset(reader, split_episodes(reader)[1]), 'all': reader}
        if unknown := set(splits or ()) - set(parts):
            raise ValueError(f'{data}: no split {", ".join(sorted(unknown))}; it has test and all')
        return {split: parts[split] for split in splits or ('test',)}
    return {split: _open(data / split) for split in splits or found}


class Evaluation:
    """Evaluates models on clips and keeps every result in `out`; an evaluation that was stopped goes on.

    Args:
        models: pipelines by the name they have in the tables; all of one `num_frames`.
        out: folder. A split gets `<split>.clips.jsonl` (scores a clip), `<split>.json`, `.md`, `.png`, and
            `sheets/<split>_<task>.jpg`.

    Raises:
        ValueError: no model, models with different numbers of frames, or fewer than one sample.
    """

    def __init__(
        self, models: dict[str, Mask2IVPipeline], out: Path, settings: Settings, extractors: Extractors
    ):
        counts = {name: pipeline.config.num_frames for name, pipeline in models.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f'models: expected one or more of one num_frames, got {counts}')
        if settings.samples < 1:
            raise ValueError(f'samples: expected at least 1, got {settings.samples}')
        self.models, self.out, self.settings, self.extractors = models, out, settings, extractors
        self.num_frames = next(iter(counts.values()))
        for pipeline in models.values():
            pipeline.set_progress_bar_config(disable=True)
        self.header = {
            **asdict(settings),
            'num_frames': self.num_frames,
            'models': {name: describe_model(pipeline) for name, pipeline in models.items()},
            'learned_metrics': extractors.names,
        }

    def run(self, reader: EpisodeReader, split: str, clips: int = 0) -> dict:
        """Evaluate the first `clips` clips (0: all) of a split and write its report, which is returned.

        Raises:
            ValueError: the split has no clip, its clips have no masks, or `out` has results of other
                settings or models.
        """
        count = min(clips or len(reader), len(reader))
        if not count:
            raise ValueError(f'{reader.path}: there is no episode to evaluate')
        place = str(reader.path.resolve())  # of which no report needs to know more than the name
        facts = {'data': Path(place).name, 'data_id': hashlib.sha256(place.encode()).hexdigest()[:8]}
        header = json.loads(json.dumps({**self.header, **facts, 'episodes': len(reader)}))
        journal = self.out / f'{split}.clips.jsonl'
        results = self._resume(journal, header)
        scored = next((i for i, result in enumerate(results) if 'digest' in result), None)
        if scored is not None and self._fit(self._read(reader, scored))[2] != results[scored]['digest']:
            raise ValueError(f'{journal} was made with other data; choose another folder or delete that file')
        seen = {result['task'] for result in results if 'rows' in result}
        with (
            journal.open('a') as file,
            tqdm(total=count, initial=min(len(results), count), desc=split, unit='clip') as bar,
        ):
            for index in range(len(results), count):
                start = time.monotonic()
                try:
                    clip = self._read(reader, index)
                except BadEpisode as error:
                    result, rows = {'skipped': str(error)}, {}
                else:
                    result, rows = self.evaluate_clip(clip, index)
                if rows and (task := result['task']) not in seen and len(seen) < MAX_SHEETS:
                    seen.add(task)
                    path = self.out / 'sheets' / f'{split}_{re.sub(r"[^\w-]+", "-", task)[:80]}.jpg'
                    path.parent.mkdir(exist_ok=True)
                    write_picture(path, contact_sheet(rows, width=1280))
                result['seconds'] = round(time.monotonic() - start, 2)
                file.write(json.dumps(result) + '\n')
                file.flush()
                results.append(result)
                bar.update()
        return write_report(self.out, split, header, results[:count], self.extractors.left_out)

    def _resume(self, journal: Path, header: dict) -> list[dict]:
        """Results of the clips that are done; a line that a kill cut off is dropped."""
        self.out.mkdir(parents=True, exist_ok=True)
        drop_cut_off_line(journal)
        lines = read_lines(journal)
        if not lines:
            journal.write_text(json.dumps(header) + '\n')
        elif lines[0] != header:
            other = [key for key in header if lines[0].get(key) != header[key]]
            raise ValueError(
                f'{journal} was made with other {", ".join(other)}; choose another folder or delete that file'
            )
        return lines[1:]

    def _read(self, reader: EpisodeReader, index: int) -> InteractionClip:
        frames = spread_frames(reader.episode(index).length, self.num_frames)
        clip = reader.read(index, frames, self.settings.camera)
        if clip.labels is None:
            raise ValueError(f'{reader.path}: evaluation needs masks; `mask2iv segment` draws them')
        return clip

    def _fit(self, clip: InteractionClip) -> tuple[np.ndarray, np.ndarray, str]:
        """Frames and labels of a clip at the size of the scores, and their sha256."""
        framing = self.settings.framing(clip.frames.shape[1:3])
        frames, labels = framing.fit_frames(clip.frames), framing.fit_labels(clip.labels)
        return frames, labels, hashlib.sha256(frames.tobytes() + labels.tobytes()).hexdigest()

    def evaluate_clip(self, clip: InteractionClip, index: int) -> tuple[dict, dict[str, np.ndarray]]:
        """Scores of one clip and named (T, H, W, 3) videos for its contact sheet."""
        settings = self.settings
        frames, labels, digest = self._fit(clip)
        scene = str(clip.source.get('task') or clip.task)
        result: dict = {
            'index': index,
            'task': scene,
            'text': clip.task,
            'digest': digest,
        }
        if not (labels[0] == lb.OBJECT).any():
            return {**result, 'skipped': f'clip {index}: no object in the first frame'}, {}
        scorer = ClipScorer(frames, labels, clip.task, self.extractors)
        scorer.add_masks(STILL_MASKS, np.repeat(labels[:1], len(labels), axis=0)[None])
        shown = [
            (-1, f'{clip.task or scene}: real video', frames),
            (-1, 'real masks', lb.labels_to_rgb(labels)),
        ]
        if not settings.trajectory_only:
            scorer.add_real_video()
            scorer.add_videos(STILL_VIDEO, np.repeat(frames[:1], len(frames), axis=0)[None])
        for name, pipeline in self.models.items():
            predictor = Predictor(pipeline, clip, settings)
            prefix = f'{name} ' if len(self.models) > 1 else ''
            if pipeline.is_one_stage:
                if clip.task and not settings.trajectory_only:
                    videos = predictor.videos(np.repeat(predictor.labels[None], settings.samples, axis=0))
                    scorer.add_videos(f'{prefix}text', videos)
                    shown.append((1, f'{name}: video from text', videos[0]))
                continue
            for rank, (row, (text, goal, actor)) in enumerate(CONTROLS.items()):
                if row not in settings.controls or not predictor.can(text, goal, actor):
                    continue
                trajectories = predictor.trajectories(
                    clip.task if text else '', goal, actor, count=settings.samples
                )
                scorer.add_masks(prefix + row, predictor.scored_labels(trajectories))
                masks = lb.labels_to_rgb(predictor.scored_labels(trajectories[:1])[0])
                shown.append((2 * rank, f'{name}: masks from {row}', masks))
                if not settings.trajectory_only:
                    videos = predictor.videos(trajectories)
                    scorer.add_videos(f'{prefix}{row} masks', videos)
                    shown.append((2 * rank + 1, f'{name}: video from {row}', videos[0]))
            if not settings.trajectory_only:
                oracle = np.repeat(predictor.labels[None], settings.samples, axis=0)
                videos = predictor.videos(oracle)
                scorer.add_videos(prefix + ORACLE, videos)
                shown.append((2 * len(CONTROLS), f'{name}: video from real masks', videos[0]))
            if index < settings.text_clips and clip.task and 'text' in settings.controls:
                result.setdefault('texts', {})[name] = self._other_texts(predictor, clip.task, scene, index)
        shown.sort(key=lambda entry: entry[0])  # what all models make of one control mode together
        pictures = {title: video for _, title, video in shown}
        return {**result, 'rows': scorer.rows, 'features': scorer.features}, pictures

    def _other_texts(self, predictor: Predictor, text: str, scene: str, index: int) -> dict[str, dict]:
        """What stage 1 makes of other texts; `same` is IoU with its prediction for the clip's own."""
        seed = self.settings.seed
        rng = np.random.default_rng((seed, index))
        asked = {
            'own text': text,
            'own text, other seed': text,
            'paraphrase': texts.paraphrase(text, scene, rng),
            'misspelt': texts.misspell(text, rng),
            'object not there': texts.absent_object(scene, rng),
            'no text': '',
        }
        own = None
        results = {}
        for kind, other in asked.items():
            if other is None:
                continue
            first_seed = seed + self.settings.samples if kind == 'own text, other seed' else seed
            predicted = predictor.scored_labels(predictor.trajectories(other, seed=first_seed))[0]
            own = predicted if own is None else own
            scores = {
                'object_iou': metrics.mask_iou(predicted, predictor.truth, lb.OBJECT),
                'actor_iou': metrics.mask_iou(predicted, predictor.truth, lb.ACTOR),
                'object_same': metrics.mask_iou(predicted, own, lb.OBJECT),
                'actor_same': metrics.mask_iou(predicted, own, lb.ACTOR),
            }
            results[kind] = {'text': other, **finite(scores)}
        return results


class Predictor:
    """One model on one clip: conditions at the model's size, predictions at the size of the scores."""

    def __init__(self, pipeline: Mask2IVPipeline, clip: InteractionClip, settings: Settings):
        self.pipeline, self.seed = pipeline, settings.seed
        self.scored = settings.framing(clip.frames.shape[1:3])
        self.framing = Framing(self.scored.source, tuple(pipeline.config.sample_size), self.scored.crop)
        self.frame = self.framing.fit_frames(clip.frames[0])
        self.labels = self.framing.fit_labels(clip.labels)
        self.goal = self.framing.fit_labels(clip.goal_labels)
        self.truth = self.scored.fit_labels(clip.labels)
        self.task = clip.task

    def can(self, text: bool, goal: bool, actor: bool) -> bool:
        """Whether the clip has what a control mode needs; without an actor to leave out, it is none."""
        return (
            (not text or bool(self.task))
            and (not goal or bool((self.goal == lb.OBJECT).any()))
            and (actor or bool((self.labels[0] == lb.ACTOR).any()))
        )

    def trajectories(
        self, text: str, goal: bool = False, actor: bool = True, count: int = 1, seed: int | None = None
    ) -> np.ndarray:
        """(count, T, h, w) uint8 label images that stage 1 predicts, at the model's size."""
        first = self.labels[0] if actor else lb.without_actor(self.labels[0])
        return self.pipeline.trajectory(
            np.repeat(self.frame[None], count, axis=0),
            np.repeat(first[None].astype(np.uint8), count, axis=0),
            text,
            np.repeat(self.goal[None], count, axis=0) if goal else None,
            generator=self._generators(count, self.seed if seed is None else seed),
        ).labels

    def videos(self, trajectories: np.ndarray) -> np.ndarray:
        """(N, T, H, W, 3) uint8 videos that stage 2 makes of (N, T, h, w) labels of the model's size.

        A model of one stage takes their number alone, and the clip's text.
        """
        count = len(trajectories)
        frames = self.pipeline.video(
            np.repeat(self.frame[None], count, axis=0),
            trajectories,
            self.task,
            generator=self._generators(count, self.seed),
        ).frames
        if self.framing == self.scored:
            return frames
        return self.scored.fit_frames(self.framing.restore_frames(frames))

    def scored_labels(self, labels: np.ndarray) -> np.ndarray:
        """(N, T, h, w) label images of the model's size at the size of the scores."""
        if self.framing == self.scored:
            return labels
        return self.scored.fit_labels(self.framing.restore_labels(labels))

    @staticmethod
    def _generators(count: int, seed: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed + i) for i in range(count)]


class ClipScorer:
    """Collects {row: {metric: value}} of one clip; rows have N samples, whose mean counts."""

    def __init__(self, frames: np.ndarray, labels: np.ndarray, task: str, extractors: Extractors):
        self.frames, self.labels, self.task, self.extractors = frames, labels, task, extractors
        self.rows: dict[str, dict[str, float]] = {}
        self.features: dict[str, dict[str, list[float]]] = {}

    def add_masks(self, row: str, trajectories: np.ndarray) -> None:
        """Score (N, T, H, W) label images; of several samples also the best, and how alike they are."""
        scores = [metrics.mask_scores(labels, self.labels) for labels in trajectories]
        means = _means(scores)
        if len(scores) > 1:
            means['object_iou_best_sample'] = max(score['object_iou'] for score in scores)
            means['object_iou_between_samples'] = _mean(
                [
                    metrics.mask_iou(a, b, lb.OBJECT)
                    for i, a in enumerate(trajectories)
                    for b in trajectories[:i]
                ]
            )
        self.rows[row] = finite(means)

    def add_videos(self, row: str, videos: np.ndarray) -> None:
        """Score (N, T, H, W, 3) videos; features are those of the first sample."""
        scores = []
        for video in videos:
            score = metrics.video_scores(video, self.frames)
            for extractor in self.extractors.scores:
                score |= extractor(video, self.frames, self.task)
            scores.append(score)
        self.rows[row] = finite(_means(scores))
        self.features[row] = self._features(videos[0])

    def add_real_video(self) -> None:
        """What the truth itself has: flicker, and the features that others are compared with."""
        self.rows[REAL] = finite({'flicker': metrics.flicker(self.frames, self.frames)})
        self.features[REAL] = self._features(self.frames)

    def _features(self, video: np.ndarray) -> dict[str, list[float]]:
        return {f.name: [float(f'{x:.6g}') for x in f(video)] for f in self.extractors.features}


def finite(scores: dict[str, float]) -> dict[str, float]:
    """The scores that a clip has; JSON knows neither nan nor inf."""
    return {name: round(float(value), 6) for name, value in scores.items() if np.isfinite(value)}


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: _mean([score[name] for score in scores]) for name in scores[0]}


def _mean(values: list[float]) -> float:
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else float('nan')


def describe_model(pipeline: Mask2IVPipeline) -> dict:
    """Name, sampling, device and a fingerprint of configuration and weights."""
    config = pipeline.config
    facts = {key: value for key, value in config.items() if not key.startswith('_')}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for part, component in sorted(pipeline.components.items()):
        if isinstance(component, torch.nn.Module):
            for name, tensor in sorted(component.state_dict().items()):
                digest.update(f'{part} {name} {tensor.double().sum().item():.6g}'.encode())
        elif isinstance(component, ConfigMixin):
            settings = {key: value for key, value in component.config.items() if not key.startswith('_')}
            digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return {
        'name': config.name,
        'sample_size': list(config.sample_size),
        'num_inference_steps': config.num_inference_steps,
        'eta': config.eta,
        'device': str(pipeline.device),
        'dtype': str(pipeline.dtype),
        'weights': digest.hexdigest()[:16],
    }
