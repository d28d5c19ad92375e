"""Both stages as one pipeline: a first frame and its masks in, mask trajectories and video out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

from mask2iv_ros.pipelines.components import check_options
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline


@dataclass
class Mask2IVPipelineOutput(BaseOutput):
    """`labels`: (B, T, H, W) uint8 label images; `frames`: (B, T, H, W, 3) uint8 RGB or latents.

    What was not generated is None.
    """

    labels: np.ndarray | None
    frames: np.ndarray | torch.Tensor | None


class Mask2IVPipeline(DiffusionPipeline):
    """Mask trajectories (stage 1), then the video that follows them (stage 2); Mask2IV, arXiv 2510.03135.

    The stages share VAE, text encoder, image encoder and scheduler; each has its UNet and image projector.

    Config:
        name: the model's name, as plans report it.
        sample_size: (height, width) the model was trained at, in pixels.
        num_frames, num_inference_steps, eta, fps: defaults of both stages.
        trajectory_residual_scale, video_residual_scale, trajectory_goal_guidance: see the stages'
            `residual_scale` and `goal_guidance`.
        video_masks: 'both', 'actor' or 'none', see `InteractionVideoPipeline`. With 'none' the model is of
            one stage: it needs no `trajectory_unet`, and makes a video and no masks.
    """

    model_cpu_offload_seq = (
        'text_encoder->image_encoder->trajectory_image_projector->trajectory_unet'
        '->video_image_projector->video_controlnet->video_unet->vae'
    )
    _optional_components = [  # noqa: RUF012
        'tokenizer',
        'image_encoder',
        'feature_extractor',
        'trajectory_unet',
        'trajectory_image_projector',
        'video_image_projector',
        'video_controlnet',
    ]
    _callback_tensor_inputs = ['latents', 'pred_original_sample']  # noqa: RUF012 - what both stages have

    def __init__(
        self,
        vae,
        trajectory_unet,
        video_unet,
        scheduler,
        text_encoder,
        tokenizer=None,
        image_encoder=None,
        feature_extractor=None,
        trajectory_image_projector=None,
        video_image_projector=None,
        video_controlnet=None,
        name: str = 'mask2iv',
        sample_size: tuple[int, int] | list[int] = (320, 512),  # a list comes from JSON
        num_frames: int = 16,
        num_inference_steps: int = 50,
        eta: float = 1.0,
        fps: float = 15.0,
        trajectory_residual_scale: float | None = None,
        video_residual_scale: float | None = None,
        video_masks: str = 'both',
        trajectory_goal_guidance: float = 1.0,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            trajectory_unet=trajectory_unet,
            video_unet=video_unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            trajectory_image_projector=trajectory_image_projector,
            video_image_projector=video_image_projector,
            video_controlnet=video_controlnet,
        )
        self.register_to_config(
            name=name,
            sample_size=tuple(sample_size),
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            eta=eta,
            fps=fps,
            trajectory_residual_scale=trajectory_residual_scale,
            video_residual_scale=video_residual_scale,
            video_masks=video_masks,
            trajectory_goal_guidance=trajectory_goal_guidance,
        )

    @property
    def trajectory(self) -> MaskTrajectoryPipeline:
        """Stage 1 over this pipeline's components. Raises ValueError for a model of one stage."""
        if self.is_one_stage:
            raise ValueError(f'{self.config.name} makes videos in one stage and no masks: it has no stage 1')
        return self._stage(MaskTrajectoryPipeline, goal_guidance=self.config.trajectory_goal_guidance)

    @property
    def video(self) -> InteractionVideoPipeline:
        """Stage 2 over this pipeline's components."""
        return self._stage(
            InteractionVideoPipeline, controlnet=self.video_controlnet, masks=self.config.video_masks
        )

    @property
    def is_one_stage(self) -> bool:
        """Whether videos are made from image and text alone."""
        return self.config.video_masks == 'none'

    def _stage(self, stage_class, **more):
        stage = stage_class(
            vae=self.vae,
            unet=getattr(self, f'{stage_class.stage}_unet'),
            scheduler=self.scheduler,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            image_encoder=self.image_encoder,
            feature_extractor=self.feature_extractor,
            image_projector=getattr(self, f'{stage_class.stage}_image_projector'),
            num_frames=self.config.num_frames,
            num_inference_steps=self.config.num_inference_steps,
            eta=self.config.eta,
            fps=self.config.fps,
            residual_scale=self.config[f'{stage_class.stage}_residual_scale'],
            **more,
        )
        config = getattr(self, '_progress_bar_config', {})
        stage.set_progress_bar_config(**{'desc': stage_class.stage, **config})
        return stage

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        task: str | list[str] = '',
        goal: np.ndarray | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        trajectory_only: bool = False,
        output_type: str = 'np',
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ('latents',),
    ):
        """Generate; arguments as in `MaskTrajectoryPipeline`.

        The callback gets the pipeline of the running stage, whose `stage` is 'trajectory' or 'video'.
        With `trajectory_only`, stage 2 is left out and `frames` is None. `output_type` is that of `frames`;
        `labels`, which stage 2 starts from, are always label images. A model of one stage reads image and
        task alone, and its `labels` are None.
        """
        check_options(self, output_type, callback_on_step_end_tensor_inputs)
        sampling = {
            'fps': fps,
            'num_inference_steps': num_inference_steps,
            'eta': eta,
            'generator': generator,
            'callback_on_step_end': callback_on_step_end,
            'callback_on_step_end_tensor_inputs': callback_on_step_end_tensor_inputs,
        }
        trajectories = frames = None
        if trajectory_only or not self.is_one_stage:
            trajectories = self.trajectory(
                image, labels, task, goal, guidance_scale=guidance_scale, **sampling
            ).labels
        if not trajectory_only:
            frames = self.video(image, trajectories, task, output_type=output_type, **sampling).frames
        self.maybe_free_model_hooks()
        if not return_dict:
            return trajectories, frames
        return Mask2IVPipelineOutput(labels=trajectories, frames=frames)
