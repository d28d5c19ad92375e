"""Inverse dynamics: from what a camera saw to what the robot was told, and where it was.

A small network sees two frames that are `chunk` apart, with their masks, and tells the actions between them
and the states from the first to the second. An episode's pairs overlap, and their answers are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip

#: What the network may look at: frames and masks, or one of them alone.
INPUTS = ('both', 'masks', 'frames')
#: Labels that have a channel each, after the three of the colours.
CHANNELS = (lb.OBJECT, lb.ACTOR, lb.PART)
#: Frames that are encoded at a time.
BATCH = 64


class InverseDynamicsModel(ModelMixin, ConfigMixin):
    """Convolutions over each frame, one encoder a camera, and an MLP over two frames of all cameras.

    Config:
        cameras: names, in the order of the input.
        image_size: (height, width) of the dataset's pictures; what differs is refused.
        fps: frames a second of the dataset.
        chunk: frames from the first to the second of a pair, k.
        sample_size: (height, width) to which pictures are reduced, multiples of 8; masks become shares of a
            pixel, so that places finer than a pixel are kept.
        action_mean, action_std, action_min, action_max: (A,) numbers of the dataset, in its own units.
        state_mean, state_std: (S,) numbers, S = 0 where the dataset has no states.
    """

    @register_to_config
    def __init__(
        self,
        cameras: tuple[str, ...] = ('front',),
        image_size: tuple[int, int] = (240, 320),
        fps: float = 15.0,
        chunk: int = 4,
        sample_size: tuple[int, int] = (48, 64),
        block_out_channels: tuple[int, int, int] = (16, 32, 64),
        hidden_size: int = 256,
        norm_num_groups: int = 8,
        action_mean: tuple[float, ...] = (0.0,),
        action_std: tuple[float, ...] = (1.0,),
        action_min: tuple[float, ...] = (-1.0,),
        action_max: tuple[float, ...] = (1.0,),
        state_mean: tuple[float, ...] = (),
        state_std: tuple[float, ...] = (),
    ):
        super().__init__()
        self.encoders = nn.ModuleList(
            _Encoder(3 + len(CHANNELS), block_out_channels, norm_num_groups, sample_size, hidden_size)
            for _ in cameras
        )
        outputs = chunk * len(action_mean) + (chunk + 1) * len(state_mean)
        self.head = nn.Sequential(
            nn.Linear(3 * len(cameras) * hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, outputs),
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions (B, k, A) and states (B, k + 1, S), in standard deviations from the mean.

        Args:
            first, second: (B, cameras, 6, h, w) float of the two frames: RGB in [-1, 1], then the shares of
                object, actor and part in [0, 1].
        """
        return self.decode(*self.encode(torch.cat([first, second])).chunk(2))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """What is seen in each of the frames (B, cameras, 6, h, w): (B, cameras * hidden_size)."""
        return torch.cat([encoder(frames[:, i]) for i, encoder in enumerate(self.encoders)], dim=1)

    def decode(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` of frames that `encode` has seen."""
        actions, states = len(self.config.action_mean), len(self.config.state_mean)
        chunk = self.config.chunk
        out = self.head(torch.cat([first, second, second - first], dim=1))
        return (
            out[:, : chunk * actions].unflatten(1, (chunk, actions)),
            out[:, chunk * actions :].unflatten(1, (chunk + 1, states)),
        )


class _Encoder(nn.Module):
    """Convolutions without pooling at the end, since where things are is what is asked for: all places of few
    channels, and the mean place of each of many (spatial soft argmax, arXiv 1504.00702)."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], groups: int, size: tuple[int, int], out: int
    ):
        super().__init__()
        layers = []
        for number, out_channels in enumerate(channels):
            kernel = 3 if number else 5
            layers.append(nn.Conv2d(in_channels, out_channels, kernel, stride=2, padding=kernel // 2))
            if number:
                layers.append(_Residual(out_channels, groups))
            layers += [nn.GroupNorm(groups, out_channels), nn.SiLU()]
            in_channels = out_channels
        self.convolutions = nn.Sequential(*layers)
        self.places = nn.Conv2d(in_channels, 32, 1)
        self.maps = nn.Conv2d(in_channels, 16, 1)
        height, width = (side // 2 ** len(channels) for side in size)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing='ij')
        self.register_buffer('grid', torch.stack([x, y], dim=-1).flatten(0, 1), persistent=False)
        self.out = nn.Linear(2 * 32 + 16 * height * width, out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.convolutions(images)
        places = self.places(hidden).flatten(2).softmax(dim=-1) @ self.grid.to(hidden.dtype)
        return self.out(torch.cat([places.flatten(1), F.silu(self.maps(hidden)).flatten(1)], dim=1))


class _Residual(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.conv2(F.silu(self.conv1(F.silu(self.norm(hidden)))))


def reduce_clip(clip: InteractionClip, size: tuple[int, int]) -> np.ndarray:
    """(T, 6, h, w) uint8: frames and, in 0..255, the shares of the masks, at `size` (height, width).

    Channels of masks are 0 where the clip has none.
    """
    reduced = np.zeros((len(clip), 3 + len(CHANNELS), *size), np.uint8)
    for t, frame in enumerate(clip.frames):
        reduced[t, :3] = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        if clip.labels is None:
            continue
        for channel, label in enumerate(CHANNELS, start=3):
            mask = (clip.labels[t] == label).astype(np.uint8) * 255
            reduced[t, channel] = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA)
    return reduced


def to_input(reduced: torch.Tensor, inputs: str = 'both') -> torch.Tensor:
    """(..., 6, h, w) uint8 of `reduce_clip` as the network sees it; what `inputs` leaves out is 0."""
    values = reduced.float() / 255
    colours, masks = values[..., :3, :, :] * 2 - 1, values[..., 3:, :, :]
    if inputs == 'masks':
        colours = torch.zeros_like(colours)
    elif inputs == 'frames':
        masks = torch.zeros_like(masks)
    return torch.cat([colours, masks], dim=-3)


class InverseDynamics:
    """A trained `InverseDynamicsModel` for whole episodes of its dataset, and generated ones like them."""

    def __init__(self, model: InverseDynamicsModel):
        self.model = model.eval()

    @classmethod
    def load(cls, folder: str | Path, device: str = 'cpu') -> InverseDynamics:
        """What `mask2iv train inverse-dynamics` left in `folder`.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = Path(folder)
        if not (folder / 'config.json').is_file():
            raise FileNotFoundError(
                f'{folder}: expected a model of inverse dynamics (config.json), which `mask2iv train '
                'inverse-dynamics` makes'
            )
        return cls(InverseDynamicsModel.from_pretrained(folder).to(device))

    @property
    def cameras(self) -> tuple[str, ...]:
        """What it looks through; an episode may have more."""
        return tuple(self.model.config.cameras)

    @property
    def action_std(self) -> np.ndarray:
        """(A,) float64, the standard deviation of each action in the dataset; 0 where it never changes."""
        config = self.model.config
        changes = np.array(config.action_max) > np.array(config.action_min)
        return np.where(changes, config.action_std, 0.0)

    def check(self, views: Mapping[str, InteractionClip], inputs: str = 'both') -> None:
        """Raise ValueError for an episode that is not like those of the dataset it was trained on.

        Rates are compared as whole frames a second: LeRobot stores no others, so a copy has lost the rest.
        """
        config = self.model.config
        if inputs not in INPUTS:
            raise ValueError(f'inputs: expected one of {INPUTS}, got {inputs!r}')
        if missing := [camera for camera in self.cameras if camera not in views]:
            raise ValueError(
                f'inverse dynamics: expected cameras {self.cameras}, got {tuple(views)}: no {missing[0]!r}'
            )
        lengths = {camera: len(views[camera]) for camera in self.cameras}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'inverse dynamics: expected views of one length, got {lengths}')
        for camera in self.cameras:
            clip = views[camera]
            found = {'image size': (clip.frames.shape[1:3], tuple(config.image_size))}
            found['frames a second'] = (round(clip.fps), round(config.fps))
            for name, mean in (('actions', config.action_mean), ('states', config.state_mean)):
                if (values := getattr(clip, name)) is not None:
                    found[f'numbers in {name}'] = (values.shape[1], len(mean))
            for name, (came, expected) in found.items():
                if came != expected:
                    raise ValueError(
                        f'inverse dynamics: {camera}: expected {name} {expected}, as in the dataset it was '
                        f'trained on, got {came}'
                    )
            if clip.labels is None and inputs != 'frames':
                raise ValueError(f"inverse dynamics: {camera}: expected masks, or inputs 'frames'; got none")

    def actions(
        self, views: Mapping[str, InteractionClip], inputs: str = 'both'
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Actions (T, A) float32 and states (T, S) float32 or None of an episode, in the dataset's units.

        Frames and masks alone are looked at, never the actions and states that the clips carry. Actions stay
        inside what the dataset has. The last frame, after which nothing is seen, repeats the action before.

        Args:
            views: whole clips by camera.
            inputs: one of `INPUTS`. Where the masks were asked for, and what counts is what the frames show,
                'frames' does not believe them.

        Raises:
            ValueError: see `check`.
        """
        self.check(views, inputs)
        reduced = [
            reduce_clip(views[camera], tuple(self.model.config.sample_size)) for camera in self.cameras
        ]
        return self.from_reduced(np.stack(reduced, axis=1), inputs)

    @torch.no_grad()
    def from_reduced(self, reduced: np.ndarray, inputs: str = 'both') -> tuple[np.ndarray, np.ndarray | None]:
        """`actions` of (T, cameras, 6, h, w) uint8 that `reduce_clip` made."""
        config = self.model.config
        length, chunk = len(reduced), config.chunk
        starts = np.arange(max(1, length - chunk))
        actions = np.zeros((starts[-1] + chunk, len(config.action_mean)))
        states = np.zeros((starts[-1] + chunk + 1, len(config.state_mean)))
        seen = []
        for some in range(0, length, BATCH):
            frames = torch.from_numpy(reduced[some : some + BATCH]).to(self.model.device)
            seen.append(self.model.encode(to_input(frames, inputs)))
        seen = torch.cat(seen)
        told = self.model.decode(seen[starts], seen[np.minimum(starts + chunk, length - 1)])
        told_actions, told_states = (numbers.double().cpu().numpy() for numbers in told)
        for row, start in enumerate(starts):
            actions[start : start + chunk] += told_actions[row]
            states[start : start + chunk + 1] += told_states[row]
        actions = actions / _times_told(starts, chunk)[:, None] * config.action_std + config.action_mean
        states = states / _times_told(starts, chunk + 1)[:, None] * config.state_std + config.state_mean
        actions = np.clip(actions, config.action_min, config.action_max)
        actions = actions[: max(1, length - 1)]
        actions = np.concatenate((actions, actions[-1:]))[:length]
        return actions.astype(np.float32), states[:length].astype(np.float32) if states.shape[1] else None


def _times_told(starts: np.ndarray, chunk: int) -> np.ndarray:
    """How many of the chunks that begin at `starts` cover each frame."""
    times = np.zeros(starts[-1] + chunk)
    for start in starts:
        times[start : start + chunk] += 1
    return times
