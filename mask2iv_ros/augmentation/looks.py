"""New looks of a scene whose masks are known: repainted surfaces, other light, things that stand about.

A look is drawn from a random generator alone and described in JSON, so every camera of an episode gets the
same one, and it can be made again. All places and sizes are in shares of the picture's height, so a look is
the same at any resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import ClassVar

import cv2
import numpy as np
from scipy.cluster.vq import kmeans2

from mask2iv_ros import labels as lb

#: Counts changes of what a seed draws, so that no job goes on with other looks than it began with.
LOOKS_VERSION = 3
PATTERNS = ('plain', 'stripes', 'checks', 'dots', 'marble')
SHAPES = ('ball', 'box', 'cylinder')
#: Luminance of linear-light RGB is close enough to this of gamma-coded values (Rec. 601).
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
#: Of a turn of hues, between red, green and blue.
THIRDS = np.array([0, -1, 1]) / 3
#: Chance that a paint is a palette, and how many colours it has, at least and at most.
PALETTE_CHANCE, PALETTE_SIZES = 0.9, (16, 96)
#: Brightness of the colours of a palette: light on them burns out little, and what is black shows no shading.
BRIGHTNESS = 0.2, 1.0
#: Exponent of the saturation of a palette's places: most surfaces of rooms are pale, so most places are.
PALE = 2
#: Materials that a region is taken to be made of, at most, and pixels that they are found from.
MATERIALS, MATERIAL_PIXELS = 8, 2000
#: Weight of lightness beside hue and chroma in telling materials apart: shadows are no materials.
LIGHTNESS = 0.5
#: Keeps the quotient of two dark colours' luminances small.
DARK = 0.03
#: Places that are tried for a thing before it is left out.
TRIES = 200


@dataclass(frozen=True)
class Surface:
    """Paint of one region: one colour that keeps the shading that is there, or a palette.

    A palette gives each material of the region, told apart by its colour, a colour of its own, so that things
    that looked alike or stood out part in new ways, as they do in another room; what keeps shading keeps
    bright things bright.

    Attributes:
        colours: two RGB colours of luminance 1, those of the pattern's low and high places. Of a palette,
            only how bright the pattern is counts.
        brightness: factors of luminance at the low and at the high places.
        strength: 0 to 1, share of the paint; the rest is what was there.
        pattern: one of `PATTERNS`.
        period: of the pattern, in picture heights.
        angle: of the pattern, radians.
        seed: of the pattern 'marble'.
        palette: RGB colours of 0..1; () for none. A material takes the one whose place is nearest.
        places: of the palette's colours, among those that materials have, RGB of 0..1.
        relief: 0 to 1, how much of a material's texture and shading is left under a palette.
    """

    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    brightness: tuple[float, float] = (1.0, 1.0)
    strength: float = 1.0
    pattern: str = 'plain'
    period: float = 0.1
    angle: float = 0.0
    seed: int = 0
    palette: tuple[tuple[float, float, float], ...] = ()
    places: tuple[tuple[float, float, float], ...] = ()
    relief: float = 1.0

    def __post_init__(self):
        if self.pattern not in PATTERNS:
            raise ValueError(f'pattern: expected one of {PATTERNS}, got {self.pattern!r}')
        if len(self.palette) != len(self.places):
            raise ValueError(f'expected a place for each colour, got {len(self.palette)}, {len(self.places)}')

    @classmethod
    def draw(cls, rng: np.random.Generator, texture: float) -> Surface:
        """A paint, with a pattern by the chance `texture`."""
        colours = [_draw_colour(rng) for _ in range(2)]
        gain = float(np.exp(rng.uniform(np.log(0.6), np.log(1.5))))
        contrast = float(rng.uniform(0.15, 0.5))
        has_pattern = bool(rng.random() < texture)
        palette = _draw_colours(rng, PALETTE_SIZES[1], BRIGHTNESS)
        places = _draw_colours(rng, PALETTE_SIZES[1], (0.0, 1.0), PALE)
        relief, strength = float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.6, 1.0))
        size = int(rng.integers(*PALETTE_SIZES, endpoint=True)) if rng.random() < PALETTE_CHANCE else 0
        return cls(
            colours=(colours[0], colours[1] if rng.random() < 0.5 else colours[0]),
            brightness=(gain * (1 - contrast), gain * (1 + contrast)) if has_pattern else (gain, gain),
            strength=1.0 if size else strength,
            pattern=str(rng.choice(PATTERNS[1:])) if has_pattern else 'plain',
            period=float(rng.uniform(0.05, 0.3)),
            angle=float(rng.uniform(0, np.pi)),
            seed=int(rng.integers(2**31)),
            palette=tuple(map(tuple, palette[:size].tolist())),
            places=tuple(map(tuple, places[:size].tolist())),
            relief=relief,
        )

    def __call__(
        self, image: np.ndarray, materials: np.ndarray, anchor: tuple[float, float], height: int
    ) -> np.ndarray:
        """Paint all of an (H, W, 3) float32 image of 0..1, a part of a picture of that height.

        `materials` are (M, 3) RGB colours, see `find_materials`; the pattern begins at pixel `anchor` (x, y).
        """
        if self.palette:
            painted, (low, high) = self._from_palette(image, materials, height), np.float32(self.brightness)
        else:
            painted = (image @ LUMINANCE)[..., None]
            low, high = (
                np.array(c, np.float32) * b for c, b in zip(self.colours, self.brightness, strict=True)
            )
        if self.pattern != 'plain':
            share = self._pattern(image.shape[:2], anchor, height)[..., None]
            low = low + share * (high - low)
        painted = painted * low
        painted -= image
        painted *= np.float32(self.strength)
        painted += image
        return painted

    def _from_palette(self, image: np.ndarray, materials: np.ndarray, height: int) -> np.ndarray:
        image = cv2.medianBlur(image, 3)  # without the mixed pixels of edges
        made_of = _perceived(materials)
        which = cv2.medianBlur(_nearest(_perceived(image), made_of), 5)
        places = _perceived(np.array(self.places, np.float32))
        taken = ((made_of[:, None] - places) ** 2).sum(axis=-1).argmin(axis=1)
        colours = _soften(np.array(self.palette, np.float32)[taken].take(which, axis=0), height)
        # Materials of one new colour are one thing in light and shadow: they differ as before.
        bright = np.bincount(taken, materials @ LUMINANCE) / np.maximum(np.bincount(taken), 1)
        bright = _soften(bright[taken].astype(np.float32).take(which), height)
        shade = (image @ LUMINANCE + DARK) / (bright + DARK)
        colours *= _thrice(shade**self.relief)
        return colours

    def _pattern(self, size: tuple[int, int], anchor: tuple[float, float], height: int) -> np.ndarray:
        """(H, W) float32 of 0..1."""
        y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
        x, y = (x - anchor[0]) / (height * self.period), (y - anchor[1]) / (height * self.period)
        u = np.float32(2 * np.pi) * (x * np.cos(self.angle) + y * np.sin(self.angle)).astype(np.float32)
        v = np.float32(2 * np.pi) * (y * np.cos(self.angle) - x * np.sin(self.angle)).astype(np.float32)
        if self.pattern == 'stripes':
            value = np.sin(u)
        elif self.pattern == 'checks':
            value = np.sin(u / 2) * np.sin(v / 2) * 2
        elif self.pattern == 'dots':
            value = np.cos(u / 2) * np.cos(v / 2) * 2 - 1
        else:
            draw = np.random.default_rng(self.seed)
            waves = draw.normal(size=(8, 2)).astype(np.float32) * 0.5
            phases = draw.uniform(0, 2 * np.pi, 8)
            value = sum(np.sin(a * u + b * v + p) for (a, b), p in zip(waves, phases, strict=True)) / 2
        return np.clip(0.5 + 2 * value, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Light:
    """Light on all of the picture.

    Attributes:
        gains: factors of red, green and blue.
        gradient: by how much it changes over a picture height, as a share.
        angle: direction in which it grows, radians.
    """

    gains: tuple[float, float, float]
    gradient: float = 0.0
    angle: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        gain, warmth = np.exp(rng.uniform(np.log(0.65), np.log(1.35))), rng.uniform(-0.2, 0.2)
        return cls(
            gains=(float(gain * (1 + warmth)), float(gain), float(gain * (1 - warmth))),
            gradient=float(rng.uniform(0, 0.5)),
            angle=float(rng.uniform(0, 2 * np.pi)),
        )

    def factors(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """What a picture of this size is multiplied with, one after the other: (H, W, 3) float32 each."""
        y, x = np.mgrid[:height, :width].astype(np.float32)
        x, y = (x - width / 2) / height, (y - height / 2) / height
        slope = 1 + self.gradient * (x * np.float32(np.cos(self.angle)) + y * np.float32(np.sin(self.angle)))
        return _thrice(slope.clip(0.2)), np.broadcast_to(np.float32(self.gains), (height, width, 3)).copy()


@dataclass(frozen=True)
class Distractor:
    """A thing that stands on the background, clear of actor and object.

    Attributes:
        shape: one of `SHAPES`.
        colour: RGB of 0..1.
        size: its height and width in picture heights.
        seed: of the places that are tried for it; the first that is clear in a picture is taken.
    """

    shape: str
    colour: tuple[float, float, float]
    size: tuple[float, float]
    seed: int

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f'shape: expected one of {SHAPES}, got {self.shape!r}')

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Distractor:
        colour = np.array(_draw_colour(rng)) * rng.uniform(0.2, 0.7)
        height = float(rng.uniform(0.08, 0.2))
        shape = str(rng.choice(SHAPES))
        return cls(
            shape=shape,
            colour=tuple(float(c) for c in colour.clip(0, 1)),
            size=(height, height if shape == 'ball' else height * float(rng.uniform(0.5, 1.3))),
            seed=int(rng.integers(2**31)),
        )

    def place(self, taken: np.ndarray) -> Callable[[np.ndarray], None]:
        """Find it a place where the (H, W) bool `taken` is False, and take that.

        Returns:
            What draws it into an (H, W, 3) float32 image of 0..1. Where no place is clear, nothing is drawn.
        """
        height, width = taken.shape
        h, w = (max(3, round(side * height)) for side in self.size)
        counts = np.pad(np.cumsum(np.cumsum(taken, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
        places = np.random.default_rng(self.seed).random((TRIES, 2))
        for share_y, share_x in places:
            top = int((0.2 + 0.8 * share_y) * (height - h))
            left = int(share_x * (width - w))
            bottom, right = top + h, left + w
            if min(top, left) >= 0 and not (
                counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
            ):  # fmt: skip
                break
        else:
            return lambda image: None
        dark, light = self._shadow(taken, (left + w / 2, bottom - 0.06 * h), w)
        taken[top:bottom, left:right] = True
        box = slice(top, bottom), slice(left, right)
        shape, alpha = self._picture(h, w)

        def draw(image: np.ndarray) -> None:
            image[dark] *= light
            image[box] += alpha[..., None] * (shape - image[box])

        return draw

    def _shadow(self, taken: np.ndarray, foot: tuple[float, float], width: int) -> tuple[tuple, np.ndarray]:
        """The part of the picture where it dims, and by which (h, w, 1) factors."""
        y, x = np.mgrid[: taken.shape[0], : taken.shape[1]].astype(np.float32)
        away = ((x - foot[0]) / (0.6 * width)) ** 2 + ((y - foot[1]) / (0.2 * width)) ** 2
        light = 1 - 0.45 * np.exp(-(away**2)) * ~taken
        part = _box(light != 1)
        return part, light[part][..., None]

    def _picture(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) colours and (h, w) opacity, drawn at four times the size and shrunk."""
        y, x = np.mgrid[: 4 * height, : 4 * width].astype(np.float32)
        x, y = (x + 0.5) / (2 * width) - 1, (y + 0.5) / (2 * height) - 1  # -1..1
        if self.shape == 'ball':
            alpha = x**2 + y**2 <= 1
            z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
            shade = 0.35 + 0.75 * np.clip(-0.45 * x - 0.6 * y + 0.66 * z, 0, 1)
        elif self.shape == 'box':  # a front, a darker side, and a lighter top
            slant = np.float32(0.3)
            front = (x <= 1 - 2 * slant) & (y >= -1 + 2 * slant)
            top = (y < -1 + 2 * slant) & (x + y >= -2 + 2 * slant) & (x + y <= 0)
            side = (x > 1 - 2 * slant) & (x + y >= 0) & (x + y <= 2 - 2 * slant)
            alpha, shade = front | top | side, 0.85 * front + 1.1 * top + 0.55 * side
        else:
            lid = np.float32(0.22)
            top = x**2 + ((y + 1 - lid) / lid) ** 2 <= 1
            body = (
                (np.abs(x) <= 1) & (y >= -1 + lid) & (y <= 1 - lid + lid * np.sqrt(np.clip(1 - x**2, 0, 1)))
            )
            shade = np.where(top, 1.05, 0.4 + 0.6 * np.sqrt(np.clip(1 - (0.8 * x + 0.35) ** 2, 0, 1)))
            alpha = top | body
        colours = np.clip(shade[..., None] * np.array(self.colour, np.float32), 0, 1)
        shrink = partial(cv2.resize, dsize=(width, height), interpolation=cv2.INTER_AREA)
        alpha = alpha.astype(np.float32)
        covered = shrink(alpha)
        return shrink(colours * alpha[..., None]) / np.maximum(covered, 1e-6)[..., None], covered


@dataclass(frozen=True)
class Look:
    """What is changed of how a scene looks; None or () where nothing is."""

    object: Surface | None = None
    background: Surface | None = None
    light: Light | None = None
    distractors: tuple[Distractor, ...] = ()

    def describe(self) -> dict:
        """JSON-able; `from_description` makes the same look of it."""
        return asdict(self)

    @classmethod
    def from_description(cls, description: Mapping) -> Look:
        """The look that `describe` described, also after JSON."""
        parts = {f.name: description.get(f.name) for f in fields(cls)}
        made = {
            name: kind(**{k: _tuples(v) for k, v in parts[name].items()}) if parts[name] else None
            for name, kind in (('object', Surface), ('background', Surface), ('light', Light))
        }
        things = [
            Distractor(**{k: _tuples(v) for k, v in thing.items()}) for thing in parts['distractors'] or ()
        ]
        return cls(**made, distractors=tuple(things))

    def for_moving_camera(self) -> Look:
        """Without what has a place in the picture: things that stand about, patterns of the background."""
        background = self.background and replace(self.background, pattern='plain')
        return replace(self, background=background, distractors=())

    def __call__(
        self, frame: np.ndarray, labels: np.ndarray, occupied: np.ndarray | None = None
    ) -> np.ndarray:
        """Edit one picture.

        Args:
            frame: (H, W, 3) uint8 RGB.
            labels: (H, W) uint8 label ids.
            occupied: (H, W) bool, where no distractor may stand, such as wherever actor and object come in
                the episode; None for where they are now.

        Returns:
            (H, W, 3) uint8.
        """
        return self.all_frames(frame[None], labels[None], occupied)[0]

    def all_frames(
        self,
        frames: np.ndarray,
        labels: np.ndarray,
        occupied: np.ndarray | None = None,
        materials: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """The same edit on every frame of a (T, H, W, 3) uint8 clip of a static camera, by its labels.

        What no model draws: exact for paint and light, as far as the masks are. A pattern goes along with the
        object, but does not turn with it. Distractors stand where neither actor nor object ever comes, or as
        `occupied` says; see `__call__`.

        Args:
            materials: as `scene_materials` finds them, for cameras that see one scene; None for this clip's.
        """
        lb.check_labels(labels)
        if labels.shape != frames.shape[:3]:
            raise ValueError(f'labels: expected {frames.shape[:3]}, got {labels.shape}')
        height, width = labels.shape[1:]
        paints = self.background or self.object
        if paints and materials is None:
            materials = scene_materials([(frames, labels)])
        things = []
        if self.distractors:
            if occupied is None:
                occupied = (labels != lb.BACKGROUND).any(axis=0)
            taken = lb.dilate(occupied, max(3, round(0.02 * height) * 2 + 1))
            things = [distractor.place(taken) for distractor in self.distractors]
        factors = self.light.factors(height, width) if self.light else ()
        edited = np.empty_like(frames)
        for t, (frame, seen) in enumerate(zip(frames, labels, strict=True)):
            image = frame.astype(np.float32) / 255
            if paints:
                image = self._paint(image, seen, materials)
            for draw in things:
                draw(image)
            for factor in factors:
                image *= factor
            np.clip(image, 0, 1, out=image)
            image *= 255
            image += 0.5
            edited[t] = image
        return edited

    def _paint(
        self, image: np.ndarray, labels: np.ndarray, materials: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Layers of background, object and actor, of which each has pixels of its own alone, put together.

        Pixels on an outline mix the colours of two regions. Left there, they draw around whatever is painted
        a line in its old colour, in every look the same.
        """
        height = len(image)
        painted = np.zeros_like(image)
        for name, region, surface in (
            ('background', labels == lb.BACKGROUND, self.background),
            ('object', lb.object_mask(labels), self.object),
            ('actor', labels == lb.ACTOR, None),
        ):
            if not region.any():
                continue
            rows, columns = box = _box(region)
            x = y = 0.0
            if name == 'object':  # its pattern goes along with it
                x, y = (columns.start + columns.stop - 1) / 2, (rows.start + rows.stop - 1) / 2
            rows, columns = part = _grown(box, 2 * round(4 * _softness(height)) + 8)  # the rest has no effect
            inside = region[part]
            layer = _spread_inside(image[part].copy(), inside, height)
            if surface is not None:
                layer = surface(layer, materials[name], (x - columns.start, y - rows.start), height)
            layer *= _thrice(_soften(inside.astype(np.float32), height))
            painted[part] += layer
        return painted


@dataclass(frozen=True)
class Looks:
    """Draws looks.

    Attributes:
        object, background, light: chance of each to be changed. Where the dice leave all as it was, the
            background is changed.
        texture: chance that a paint has a pattern.
        distractors: at most so many.
    """

    object: float = 0.9
    background: float = 0.9
    light: float = 0.8
    texture: float = 0.15
    distractors: int = 2

    CHANCES: ClassVar = ('object', 'background', 'light', 'texture')

    def __post_init__(self):
        for name in self.CHANCES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}: expected a chance of 0 to 1, got {getattr(self, name)}')
        if self.distractors < 0:
            raise ValueError(f'distractors: expected a number of at least 0, got {self.distractors}')

    def draw(self, rng: np.random.Generator) -> Look:
        """A look. Draws the same number of times whatever comes out, so one chance does not shift others."""
        dice = rng.random(3)
        object_paint, background_paint = Surface.draw(rng, self.texture), Surface.draw(rng, self.texture)
        light = Light.draw(rng)
        things = tuple(Distractor.draw(rng) for _ in range(self.distractors))
        things = things[: int(rng.integers(0, self.distractors + 1))]
        look = Look(
            object=object_paint if dice[0] < self.object else None,
            background=background_paint if dice[1] < self.background else None,
            light=light if dice[2] < self.light else None,
            distractors=things,
        )
        return look if look != Look() else Look(background=background_paint)

    def __call__(self, frame: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a look and edit one picture with it."""
        return self.draw(rng)(frame, labels)


@dataclass(frozen=True, eq=False)
class Pictures:
    """First frames that are given: (H, W, 3) uint8 RGB by camera, of the episode's size, masks unchanged."""

    pictures: Mapping[str, np.ndarray]
    names: Mapping[str, str]

    def draw(self, rng: np.random.Generator) -> Pictures:
        return self

    def describe(self) -> dict:
        """JSON-able: the names of the pictures by camera."""
        return {'pictures': dict(self.names)}

    def __call__(self, frame: np.ndarray, camera: str) -> np.ndarray:
        """The camera's picture, in place of the frame.

        Raises:
            ValueError: there is none, or it has another size.
        """
        picture = self.pictures.get(camera)
        if picture is None:
            raise ValueError(f'{camera}: no picture; there are {sorted(self.pictures)}')
        if picture.shape != frame.shape or picture.dtype != np.uint8:
            raise ValueError(
                f'{camera}: picture: expected {frame.shape} uint8, got {picture.shape} {picture.dtype}'
            )
        return picture


def scene_materials(views: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """What background and object are made of, by the first frame of each camera that shows them.

    Args:
        views: (T, H, W, 3) uint8 frames and (T, H, W) uint8 labels of each camera.

    Returns:
        (M, 3) RGB colours of 0..1 each; what cameras see alike is one material.
    """
    found = {}
    for name, has in (('background', lambda labels: labels == lb.BACKGROUND), ('object', lb.object_mask)):
        seen = []
        for frames, labels in views:
            regions = has(labels)
            first = regions.any(axis=(1, 2)).argmax()
            pixels = frames[first][regions[first]]
            seen.append(pixels[:: max(1, len(pixels) * len(views) // MATERIAL_PIXELS)])
        found[name] = find_materials(np.concatenate(seen))
    return found


def find_materials(pixels: np.ndarray) -> np.ndarray:
    """(M, 3) float32 RGB of 0..1: the colours, at most `MATERIALS`, about which (N, 3) uint8 pixels lie.

    From dark to light, so that what mixes two materials is numbered between them, as a median filter wants.
    """
    pixels = pixels[:: max(1, len(pixels) // MATERIAL_PIXELS)].astype(np.float32) / 255
    different = np.unique(pixels, axis=0)
    if len(different) <= MATERIALS:
        return different[np.argsort(different @ LUMINANCE)]
    _, which = kmeans2(_perceived(pixels), MATERIALS, minit='++', missing='warn', rng=0)
    found = np.array([pixels[which == k].mean(axis=0) for k in np.unique(which)])
    return found[np.argsort(found @ LUMINANCE)]


def _perceived(colours: np.ndarray) -> np.ndarray:
    """CIELAB of (H, W, 3) or (N, 3) float32 RGB of 0..1, with lightness counting less."""
    lab = cv2.cvtColor(colours.reshape(-1, *colours.shape[-2:]), cv2.COLOR_RGB2LAB)
    lab[..., 0] *= LIGHTNESS
    return lab.reshape(colours.shape)


def _nearest(there: np.ndarray, materials: np.ndarray) -> np.ndarray:
    """(H, W) uint8, which of (M, 3) materials is nearest to each of (H, W, 3) colours."""
    away = (materials**2).sum(axis=1)[:, None] - materials @ (2 * there.reshape(-1, 3)).T
    least, which = away[0].copy(), np.zeros(away.shape[1], np.uint8)
    for number, distance in enumerate(away[1:], start=1):
        which[distance < least] = number
        np.minimum(least, distance, out=least)
    return which.reshape(there.shape[:2])


def _draw_colours(
    rng: np.random.Generator, count: int, brightness: tuple[float, float], exponent: float = 1.0
) -> np.ndarray:
    """(count, 3) RGB of 0..1: any hue and saturation, few strong ones if `exponent` is large."""
    hue, saturation, bright = rng.uniform(0, 1, (3, count, 1))
    low, high = brightness
    return (low + (high - low) * bright) * _tint(hue, saturation**exponent)


def _draw_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """An RGB colour of luminance 1: any hue, pale or strong."""
    hue, saturation = rng.uniform(), rng.uniform(0.15, 0.9)
    colour = _tint(hue, saturation)
    return tuple(float(c) for c in colour / (colour @ LUMINANCE))


def _tint(hue: np.ndarray | float, saturation: np.ndarray | float) -> np.ndarray:
    """RGB of 0..1, as bright as can be; `hue` in turns."""
    return 1 - saturation * (0.5 - 0.5 * np.cos(2 * np.pi * (hue + THIRDS)))


def _softness(height: int) -> float:
    """Standard deviation of a camera's blur in pixels of a picture of that height."""
    return 0.003 * height + 0.3


def _soften(image: np.ndarray, height: int) -> np.ndarray:
    """A float32 part of a picture of that height with edges as soft as a camera's."""
    return cv2.GaussianBlur(image, (0, 0), _softness(height))


def _spread_inside(image: np.ndarray, region: np.ndarray, height: int) -> np.ndarray:
    """The image where it is inside the region, clear of its outline; elsewhere the nearest pixel of these."""
    inside = ~lb.dilate(~region, 2 * max(1, round(0.006 * height)) + 1)
    inside = inside if inside.any() else region
    outside = ~inside
    if outside.any():
        part = _grown(_box(outside), 1)
        image[part] = _with_nearest(image[part], outside[part])
    return image


def _with_nearest(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The image with the nearest other pixel wherever the (H, W) bool `hole` is True."""
    _, nearest = cv2.distanceTransformWithLabels(
        hole.astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.empty((nearest.max() + 1, 3), np.float32)
    colours[nearest[~hole]] = image[~hole]
    return colours.take(nearest, axis=0)


def _thrice(plane: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W): NumPy multiplies equal shapes four times as fast as broadcast ones."""
    return cv2.merge([plane] * 3)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of an (H, W) mask that has pixels."""
    sides = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    return slice(sides[0][0], sides[0][-1] + 1), slice(sides[1][0], sides[1][-1] + 1)


def _grown(box: tuple[slice, slice], margin: int) -> tuple[slice, slice]:
    """A box with a margin of pixels, as far as there are any."""
    rows, columns = (slice(max(0, side.start - margin), side.stop + margin) for side in box)
    return rows, columns


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
