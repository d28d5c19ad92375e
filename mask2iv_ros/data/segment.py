"""Masks for clips that have none: found by text, propagated from a first frame, or read from files.

The recipe is the one that made Mask2IV's BridgeData V2 masks (arXiv 2510.03135): Grounding DINO boxes of the
first frame, SAM 2 propagation through the video, and rules that keep the actor that moves and the object that
it moves. The rules are plain numpy; the two models are loaded only when asked for, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import resize_labels
from mask2iv_ros.labels import (
    ACTOR,
    BACKGROUND,
    LABEL_NAMES,
    OBJECT,
    PART,
    check_labels,
    combine_masks,
    dilate,
    iou,
    overlay,
    rgb_to_labels,
)

#: The models of the paper, by their names on the Hugging Face Hub.
DETECTOR = 'IDEA-Research/grounding-dino-base'
SEGMENTER = 'facebook/sam2.1-hiera-large'

ACTOR_PROMPT = 'black robot gripper'
BOX_THRESHOLD = 0.25
TEXT_THRESHOLD = 0.3

ACTOR_IOU = 0.65  #: an actor moves: mean IoU below this
OBJECT_IOU = 0.75  #: an object that is handled moves: mean IoU up to this
END_IOU = 0.90  #: ... and ends elsewhere: IoU of first and last frame up to this
#: What deforms or slides rather than goes elsewhere, and the mean IoU up to which it counts as moved.
DEFORMING_IOU = {'cloth': 0.90, 'drawer': 0.90, 'drawer handle': OBJECT_IOU}
LARGEST_AREA = 0.5  #: a mask over more of the image counts as static


class MissingModel(RuntimeError):  # noqa: N818
    """The weights of a detector or segmenter are not on this machine; the message says how to get them."""


@dataclass(frozen=True)
class Detection:
    """A box that text found in an image: `box` (x0, y0, x1, y1) pixels, `score` in 0..1."""

    phrase: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Candidate:
    """What the selection rules look at: a detection and how its masks move through the clip.

    Attributes:
        mean_iou: see `mean_iou`.
        end_iou: IoU of first and last mask, 1 if both are empty.
        first, last: (H, W) bool.
    """

    phrase: str
    score: float
    mean_iou: float
    end_iou: float
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, detection: Detection, masks: np.ndarray) -> Candidate:
        """Measure (T, H, W) bool masks."""
        ends = _iou_or_one(masks[0], masks[-1])
        return cls(detection.phrase, detection.score, mean_iou(masks), ends, masks[0], masks[-1])


@dataclass(frozen=True)
class SegmentationResult:
    """Labels of a clip, or why there are none.

    Attributes:
        labels: (T, H, W) uint8 label ids; None where the clip is rejected.
        scores: of what was chosen by text, by '<label name>_box' (detector, 0..1) and '<label name>_mean_iou'
            (motion, 1 is static); the object's are means where several are kept.
        reasons: why the clip was rejected, if it was; then why each candidate was dropped.
    """

    labels: np.ndarray | None
    scores: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def object_prompts(task: str) -> tuple[str, ...]:
    """What to call the object of a task, as the paper does: 'objects', but cloths and drawers by their names.

    'Put the spoon on the cloth' is about a spoon, so only folding or moving names the cloth; and only a
    caption of up to four words with 'drawer' in it is about the drawer.
    """
    caption = task.lower()
    if re.search(r'\b(un)?fold(s|ed|ing)?\b|\bmove[sd]? (the )?cloth\b', caption):
        return ('cloth',)
    if 'drawer' in caption and len(caption.split()) <= 4:
        return ('drawer', 'drawer handle')
    return ('objects',)


def mean_iou(masks: np.ndarray) -> float:
    """How still (T, H, W) bool masks stand: mean IoU from one to the next of every (T // 10)th; 1 is static.

    A pair counts 1 if both masks are empty or the first covers over half of the image: a lost track or a
    table is nothing that moves. A single frame is static too.
    """
    sampled = masks[:: max(1, len(masks) // 10)]
    values = [1.0 if a.mean() > LARGEST_AREA else _iou_or_one(a, b) for a, b in pairwise(sampled)]
    return float(np.mean(values)) if values else 1.0


def choose_actor(candidates: Sequence[Candidate]) -> tuple[list[int], list[str]]:
    """The actor among candidates: it moves, and of several that do it has the highest score.

    Returns:
        Its index in a list (empty: none moves), and why each of the others was dropped.
    """
    still = [i for i, candidate in enumerate(candidates) if not candidate.mean_iou < ACTOR_IOU]
    moving = sorted(set(range(len(candidates))) - set(still), key=lambda i: -candidates[i].score)
    reasons = [
        f'{_name(candidates[i])}: does not move (mean IoU {candidates[i].mean_iou:.2f}, not < {ACTOR_IOU})'
        for i in still
    ]
    reasons += [f'{_name(candidates[i])}: another actor scores higher' for i in moving[1:]]
    return moving[:1], reasons


def choose_objects(
    candidates: Sequence[Candidate], actor_first: np.ndarray, actor_last: np.ndarray
) -> tuple[list[int], list[str]]:
    """The handled object among candidates: what moves most (lowest mean IoU), or all of a cloth or drawer.

    Args:
        actor_first, actor_last: (H, W) bool actor masks of the first and last frame. What touches the actor
            there is taken for a part of it. (The published script joins the two masks; here each stands for
            its own frame.)

    Returns:
        Indices (none: nobody was moved), and why each of the others was dropped.
    """
    near_first, near_last = dilate(actor_first, 3), dilate(actor_last, 3)
    kept, reasons = [], []
    for i, candidate in enumerate(candidates):
        limit = DEFORMING_IOU.get(candidate.phrase, OBJECT_IOU)
        if not candidate.first.any():
            problem = 'has no mask in the first frame'
        elif candidate.mean_iou > limit:
            problem = f'does not move (mean IoU {candidate.mean_iou:.2f} > {limit})'
        elif candidate.phrase in DEFORMING_IOU:
            problem = ''
        elif candidate.end_iou > END_IOU:
            problem = f'ends where it began (IoU {candidate.end_iou:.2f} > {END_IOU})'
        elif (candidate.first & near_first).any():
            problem = 'touches the actor in the first frame'
        elif (candidate.last & near_last).any():
            problem = 'touches the actor in the last frame'
        else:
            problem = ''
        if problem:
            reasons.append(f'{_name(candidate)}: {problem}')
        else:
            kept.append(i)
    if kept and not any(candidates[i].phrase in DEFORMING_IOU for i in kept):
        best = min(kept, key=lambda i: candidates[i].mean_iou)
        reasons += [f'{_name(candidates[i])}: another object moves more' for i in kept if i != best]
        kept = [best]
    return kept, reasons


def _name(candidate: Candidate) -> str:
    return f'{candidate.phrase} ({candidate.score:.2f})'


def _iou_or_one(a: np.ndarray, b: np.ndarray) -> float:
    value = iou(a, b)
    return 1.0 if np.isnan(value) else value


class Detector:
    """Grounding DINO: boxes of what a text names.

    Args:
        model: folder, or Hub name of a model that is in the local Hugging Face cache.
        device: 'cpu', 'cuda' or 'cuda:N'; 'auto' is CUDA if there is one.

    Raises:
        MissingModel: no complete weights there.
        ValueError: no such device.
    """

    def __init__(self, model: str | Path = DETECTOR, device: str = 'auto'):
        from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoProcessor

        from mask2iv_ros.pipelines.loading import choose_device

        self.name = str(model)
        self.device = choose_device(device)
        self.model, self.processor = _load(
            'detector',
            DETECTOR,
            AutoModelForZeroShotObjectDetection,
            GroundingDinoProcessor,
            model,
            self.device,
        )

    def detect(self, image: np.ndarray, phrases: Sequence[str]) -> list[Detection]:
        """Find what `phrases` name in an (H, W, 3) uint8 image, best first.

        A box is kept if its best token scores over 0.25, and named by the phrase whose last word scores
        highest, if over 0.3 (the paper's two thresholds; the second implies the first). The last word is the
        noun; the detector may not know a 'Franka', but it knows an arm. (The published script wants every
        word of a phrase over 0.3.)
        """
        import torch

        phrases = _phrases(phrases)
        # The model was trained on lower-case phrases that each end with a dot
        inputs = self.processor(
            images=Image.fromarray(image),
            text=''.join(f'{phrase}. ' for phrase in phrases),
            return_tensors='pt',
        ).to(self.device)
        ids = inputs.input_ids[0].cpu().numpy()
        nouns = np.flatnonzero(ids == self.processor.tokenizer.convert_tokens_to_ids('.')) - 1
        limit = self.model.config.max_text_len
        if not phrases or len(ids) > limit:
            raise ValueError(f'prompt: expected phrases of up to {limit} tokens in all, got {phrases}')
        with torch.inference_mode(), _autocast(self.device):
            outputs = self.model(**inputs)
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=BOX_THRESHOLD, text_threshold=TEXT_THRESHOLD, target_sizes=[image.shape[:2]]
        )
        scores = outputs.logits[0].sigmoid()
        kept = scores[scores.amax(dim=-1) > BOX_THRESHOLD].float().cpu().numpy()
        height, width = image.shape[:2]
        detections = []
        for box, score, tokens in zip(found['boxes'].tolist(), found['scores'].tolist(), kept, strict=True):
            best = tokens[nouns].argmax()
            if tokens[nouns[best]] > TEXT_THRESHOLD:
                corners = np.clip(box, 0, (width, height, width, height)).tolist()
                detections.append(Detection(phrases[best], score, tuple(corners)))
        return sorted(detections, key=lambda detection: -detection.score)


def _phrases(texts: Iterable[str]) -> list[str]:
    return [phrase.strip().lower() for text in texts for phrase in text.split('.') if phrase.strip()]


class VideoSegmenter:
    """SAM 2: follows boxes or masks of the first frame through a video.

    Args:
        model: folder, or Hub name of a model that is in the local Hugging Face cache.
        device: 'cpu', 'cuda' or 'cuda:N'; 'auto' is CUDA if there is one.

    Raises:
        MissingModel: no complete weights there.
        ValueError: no such device.
    """

    def __init__(self, model: str | Path = SEGMENTER, device: str = 'auto'):
        from transformers import Sam2VideoModel, Sam2VideoProcessor

        from mask2iv_ros.pipelines.loading import choose_device

        self.name = str(model)
        self.device = choose_device(device)
        self.model, self.processor = _load(
            'segmenter', SEGMENTER, Sam2VideoModel, Sam2VideoProcessor, model, self.device
        )

    def track(
        self, frames: np.ndarray, boxes: Sequence[Sequence[float]] = (), masks: Sequence[np.ndarray] = ()
    ) -> Iterator[np.ndarray]:
        """Masks of each frame, in order: first of the boxes, then of the masks.

        The memory this takes does not grow with the video: a frame is prepared when its turn comes, and what
        SAM 2 keeps of it is dropped once no later frame looks there. The masks stay those of a full session.

        Args:
            frames: (T, H, W, 3) uint8.
            boxes: (x0, y0, x1, y1) pixels of the first frame each.
            masks: (H, W) bool of the first frame each; they come back as they are.

        Yields:
            (N, H, W) bool.
        """
        import torch

        config = self.model.config
        horizon = max(config.num_maskmem, config.max_object_pointers_in_encoder)
        size = frames.shape[1:3]
        session = self.processor.init_video_session(inference_device=self.device)
        session.video_height, session.video_width = size
        session.processed_frames = _FramesOnDemand(frames, self.processor, self.device)
        ids = list(range(1, len(boxes) + len(masks) + 1))
        if len(boxes):
            self.processor.add_inputs_to_inference_session(
                session, 0, ids[: len(boxes)], input_boxes=[[list(map(float, box)) for box in boxes]]
            )
        if len(masks):
            self.processor.add_inputs_to_inference_session(
                session, 0, ids[len(boxes) :], input_masks=list(masks)
            )
        session.obj_with_new_inputs = ids  # each call above forgets what the one before it added
        for index in range(len(frames)):
            with torch.inference_mode(), _autocast(self.device):
                logits = self.model(inference_session=session, frame_idx=index).pred_masks
            for outputs in session.output_dict_per_obj.values():
                past = outputs['non_cond_frame_outputs']
                past.pop(index - horizon, None)
                for output in (outputs['cond_frame_outputs'].get(index), past.get(index)):
                    if output is not None:
                        output.pop('high_res_masks', None)  # 4 MB; was needed for this frame's memory alone
            (found,) = self.processor.post_process_masks([logits.float()], original_sizes=[size])
            found = found[:, 0].cpu().numpy()
            if index == 0 and len(masks):
                found[len(boxes) :] = masks  # SAM 2 gives them back at a quarter of its resolution
            yield found


class _FramesOnDemand:
    """The frames of a SAM 2 session, each scaled and normalised when it is asked for (13 MB a frame)."""

    def __init__(self, frames: np.ndarray, processor, device: str):
        self.frames, self.processor, self.device = frames, processor, device

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int):
        import torch

        video = torch.from_numpy(np.ascontiguousarray(self.frames[index])).permute(2, 0, 1)[None]
        prepared = self.processor.video_processor(
            videos=video, input_data_format='channels_first', device=self.device, return_tensors='pt'
        )
        return prepared.pixel_values_videos[0][0]


def _autocast(device: str) -> contextlib.AbstractContextManager:
    """bfloat16 on GPUs that compute in it; not float16, which does not mix with SAM 2's bfloat16 memory."""
    import torch

    if device.startswith('cuda') and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast('cuda', dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _load(role: str, default: str, model_class, processor_class, name: str | Path, device: str):
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(name).expanduser()
    place = folder if folder.is_dir() else str(name)
    try:
        processor = processor_class.from_pretrained(place, local_files_only=True)
        model, report = model_class.from_pretrained(
            place, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if report['missing_keys']:  # transformers would go on with random numbers
            raise ValueError(f'{len(report["missing_keys"])} weights are not in the file')
    except Exception as error:
        hub_name = (
            str(name) if re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)) and not folder.exists() else default
        )
        raise MissingModel(
            f'cannot load the {role} {name}: it is no complete model folder, and no model of that name is in '
            f'{HF_HUB_CACHE}; nothing is downloaded here. On a machine with network run '
            f'`hf download {hub_name} --local-dir FOLDER`, '
            f'then pass --{role} FOLDER. ({type(error).__name__}: {str(error).splitlines()[0]})'
        ) from error
    return model.to(device).eval(), processor


def read_mask_image(path: str | Path, size: tuple[int, int], label: int | None = None) -> np.ndarray:
    """(H, W) uint8 labels of one mask picture; see `read_mask_folder` for what it may hold."""
    return _to_labels([Path(path)], size, label)[0]


def read_mask_folder(
    folder: str | Path, length: int, size: tuple[int, int], label: int | None = None
) -> np.ndarray:
    """(T, H, W) uint8 labels of a folder with one PNG a frame, in the order of the numbers in their names.

    Args:
        length: frames of the clip.
        size: (H, W) of the clip; masks of another size but the same shape are scaled.
        label: what the foreground of binary masks is (0/1, 0/255, grey: over half). None: the pixels say it,
            as label ids 0..3 (also indices of a palette), as greys (255 object, 128 actor: what Mask2IV's
            script writes), or as colours (red object, green actor, blue part).

    Raises:
        ValueError: another number of files than frames, a file that is no such mask, or no foreground at all.
    """
    folder = Path(folder)
    files = sorted(folder.glob('*.png'), key=lambda path: [int(n) for n in re.findall(r'\d+', path.stem)])
    if len(files) != length:
        raise ValueError(f'{folder}: expected {length} PNG masks, one a frame, got {len(files)}')
    return _to_labels(files, size, label)


def read_mask_video(path: str | Path, length: int, size: tuple[int, int], label: int = ACTOR) -> np.ndarray:
    """(T, H, W) uint8 labels of a video of bright masks on black, such as a rendered robot.

    Foreground is where the brightest channel is over half. Lossy codecs ring around edges, but by less than
    that: a white mask comes back to within a pixel of its outline, a coloured one to within two, because
    video keeps colour at half the resolution.

    Raises:
        ValueError: no readable video, another number of frames than the clip, over a tenth of the pixels
            neither dark nor bright, or no foreground at all.
        FileNotFoundError: no such file.
    """
    labels = np.zeros((length, *size), np.uint8)
    count = unsure = 0
    for count, frame in enumerate(_video_frames(path), start=1):
        if count <= length:
            value = frame.max(axis=-1)
            unsure += ((value > 64) & (value < 192)).mean() / length
            labels[count - 1] = _fit(np.where(value > 127, label, 0).astype(np.uint8), size, path)
    if count != length:
        raise ValueError(f'{path}: expected {length} frames, as the clip has, got {count}')
    if unsure > 0.1:
        raise ValueError(
            f'{path}: {unsure:.0%} of the pixels are neither dark nor bright: expected a mask video'
        )
    return _not_empty(labels, path)


def _video_frames(path: str | Path) -> Iterator[np.ndarray]:
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, 'no such video', str(path))
    try:
        with av.open(str(path)) as video:
            for frame in video.decode(video=0):
                yield frame.to_ndarray(format='rgb24')
    except (av.FFmpegError, IndexError) as error:  # IndexError: sound alone
        raise ValueError(f'{path}: no readable video: {error}') from error


def _to_labels(files: list[Path], size: tuple[int, int], label: int | None) -> np.ndarray:
    images = [_read_png(path) for path in files]
    if label is not None:
        greys = [image if image.ndim == 2 else image.max(axis=-1) for image in images]
        # Over all files: in one alone a faint grey edge would look like label ids
        threshold = 127 if max(grey.max() for grey in greys) > PART else 0
        labels = [np.where(grey > threshold, label, 0).astype(np.uint8) for grey in greys]
    else:
        labels = [_pixels_to_labels(image, path) for image, path in zip(images, files, strict=True)]
    fitted = [_fit(image, size, path) for image, path in zip(labels, files, strict=True)]
    return _not_empty(np.stack(fitted), files[0] if len(files) == 1 else files[0].parent)


def _read_png(path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 pixels; a palette's indices rather than its colours."""
    with Image.open(path) as image:
        if image.mode.startswith(('I', 'F')):
            raise ValueError(f'{path}: expected 8 bits a channel, got mode {image.mode}')
        if image.mode in ('1', 'LA'):
            image = image.convert('L')
        elif image.mode not in ('L', 'P'):
            image = image.convert('RGB')
        pixels = np.array(image)
    grey = pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0] if grey else pixels


def _pixels_to_labels(pixels: np.ndarray, path: Path) -> np.ndarray:
    if pixels.ndim == 3:
        return rgb_to_labels(pixels)
    values = np.unique(pixels)
    if values[-1] <= PART:
        return pixels
    if not np.isin(values, (0, 127, 128, 255)).all():
        raise ValueError(
            f'{path}: expected label ids 0..{PART} or greys 0, 128 (actor), 255 (object), got values '
            f'{values[:8].tolist()}; say what the mask is of, and it is thresholded'
        )
    return np.select([pixels == 255, pixels > 0], [OBJECT, ACTOR]).astype(np.uint8)


def _fit(labels: np.ndarray, size: tuple[int, int], path: str | Path) -> np.ndarray:
    (height, width), (want_height, want_width) = labels.shape, size
    if abs(height * want_width - width * want_height) > 0.01 * height * want_width:
        raise ValueError(f'{path}: expected the shape of {want_width}x{want_height}, got {width}x{height}')
    return resize_labels(labels, tuple(size))


def _not_empty(labels: np.ndarray, path: str | Path) -> np.ndarray:
    if not labels.any():
        raise ValueError(f'{path}: no pixel of any mask is set')
    return labels


def segment_clip(
    clip: InteractionClip,
    segmenter: VideoSegmenter | None = None,
    detector: Detector | None = None,
    *,
    actor: str = ACTOR_PROMPT,
    objects: Sequence[str] | None = None,
    first: np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> SegmentationResult:
    """Labels of a clip: what is known stays, what the first frame shows is followed, the rest is detected.

    Args:
        segmenter: needed unless `known` has both object and actor.
        detector: needed unless `known` and `first` together have both object and actor.
        actor: text that names the actor.
        objects: texts that name the object; None: `object_prompts(clip.task)`.
        first: (H, W) uint8 label image of the first frame: its object, actor or part are followed from there.
        known: (T, H, W) uint8 labels, such as the actor from `read_mask_video`.

    Returns:
        Labels, or the reason why there are none: nothing found, no actor or no object that moves.

    Raises:
        ValueError: a label image of another size, or a model is needed and not given.
    """
    shape = clip.frames.shape[:3]
    if not shape[0]:
        raise ValueError('clip: expected at least one frame, got none')
    for name, labels, expected in (('first', first, shape[1:]), ('known', known, shape)):
        if labels is not None and check_labels(labels, name).shape != expected:
            raise ValueError(f'{name}: expected {expected}, as the clip has, got {labels.shape}')
    masks = {label: known == label for label in _labels_in(known)}
    drawn = {label: first == label for label in _labels_in(first) if label not in masks}
    missing = {OBJECT, ACTOR} - masks.keys() - drawn.keys()
    texts = {ACTOR: (actor,), OBJECT: object_prompts(clip.task) if objects is None else tuple(objects)}

    found = {label: [] for label in (ACTOR, OBJECT) if label in missing}  # the order of the paper's prompt
    if missing:
        _need(detector, 'detector', missing)
        actors = _phrases(texts[ACTOR])
        for detection in detector.detect(clip.frames[0], [text for label in found for text in texts[label]]):
            label = ACTOR if ACTOR in found and detection.phrase in actors else OBJECT
            found[label].append(detection)
    for label, detections in found.items():
        if not detections:
            prompt = '. '.join(texts[label])
            return SegmentationResult(None, {}, (f'no {LABEL_NAMES[label]}: nothing looks like "{prompt}"',))

    boxes = [detection.box for detections in found.values() for detection in detections]
    tracks = None
    if boxes or drawn:
        _need(segmenter, 'segmenter', missing | drawn.keys())
        tracks = _PackedMasks(segmenter.track(clip.frames, boxes, list(drawn.values())), shape[2])
    masks |= {label: tracks[len(boxes) + i] for i, label in enumerate(drawn)}

    scores, reasons, offset = {}, [], 0
    for label, detections in found.items():  # the actor first, because objects are judged by it
        candidates = [Candidate.of(d, tracks[offset + i]) for i, d in enumerate(detections)]
        if label == ACTOR:
            chosen, dropped = choose_actor(candidates)
        else:
            chosen, dropped = choose_objects(candidates, masks[ACTOR][0], masks[ACTOR][-1])
        reasons += dropped
        name = LABEL_NAMES[label]
        if not chosen:
            return SegmentationResult(None, scores, (f'no {name} that moves', *reasons))
        masks[label] = np.logical_or.reduce([tracks[offset + i] for i in chosen])
        scores[f'{name}_box'] = float(np.mean([candidates[i].score for i in chosen]))
        scores[f'{name}_mean_iou'] = float(np.mean([candidates[i].mean_iou for i in chosen]))
        offset += len(detections)
    labels = combine_masks(masks[OBJECT], masks[ACTOR], masks.get(PART))
    return SegmentationResult(labels, scores, tuple(reasons))


class _PackedMasks:
    """The tracks of a segmenter at one bit a pixel; `tracks[i]` is (T, H, W) bool."""

    def __init__(self, frames: Iterable[np.ndarray], width: int):
        self._bits = np.stack([np.packbits(masks, axis=-1) for masks in frames], axis=1)
        self._width = width

    def __getitem__(self, index: int) -> np.ndarray:
        return np.unpackbits(self._bits[index], axis=-1, count=self._width).astype(bool)


def _labels_in(labels: np.ndarray | None) -> list[int]:
    return [] if labels is None else [int(label) for label in np.unique(labels) if label != BACKGROUND]


def _need(model, role: str, labels: Iterable[int]) -> None:
    if model is None:
        wanted = ' and '.join(LABEL_NAMES[label] for label in sorted(labels))
        raise ValueError(
            f'{role}: expected one, because there are no masks of {wanted} in every frame; got None'
        )


def review_rows(
    results: Iterable[tuple[str, InteractionClip, SegmentationResult]], columns: int = 8, width: int = 1600
) -> dict[str, np.ndarray]:
    """Rows for `pictures.contact_sheet` to judge masks by: episodes with their masks over them.

    Rejected episodes are dark, framed red, and say why. A clip is let go once its row is drawn, so `results`
    may be a generator over many.

    Args:
        results: (unique title, clip, its result).
        columns, width: those of the contact sheet, frames and pixels.

    Returns:
        (columns, h, width // columns, 3) uint8 frames by title.
    """
    rows = {}
    for title, clip, result in results:
        picks = np.linspace(0, len(clip) - 1, columns).round().astype(int)
        frames = clip.frames[picks]
        if result.labels is None:
            frames = frames // 3
            title = f'{title}: REJECTED, {result.reasons[0]}'
        else:
            frames = overlay(frames, result.labels[picks])
            title = ', '.join([title, *(f'{name} {score:.2f}' for name, score in result.scores.items())])
        size = width // columns, max(1, round(frames.shape[1] * (width // columns) / frames.shape[2]))
        frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        if result.labels is None:
            edge = max(2, size[0] // 60)
            inside = np.zeros(frames.shape[1:3], bool)
            inside[edge:-edge, edge:-edge] = True
            frames[:, ~inside] = (255, 0, 0)
        rows[title] = frames
    return rows
