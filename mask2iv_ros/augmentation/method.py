"""What the command `mask2iv augment` loads in each worker: method, gates, and what is told of them."""

from __future__ import annotations

import argparse

import numpy as np

from mask2iv_ros.augmentation.job import Measure, Method
from mask2iv_ros.augmentation.same_motion import SameMotion


def build_method(args: argparse.Namespace) -> tuple[Method, Measure | None]:
    """The method that the command line asks for, and what measures its episodes for the gates."""
    from mask2iv_ros.pipelines.loading import load_pipeline

    if args.mode != 'same-motion':
        raise ValueError(f'mode {args.mode!r}: expected same-motion')
    pipeline = load_pipeline(args.model, args.device)
    pipeline.set_progress_bar_config(disable=True)
    if args.steps:
        pipeline.register_to_config(num_inference_steps=args.steps)
    return SameMotion(pipeline, tint), None


def method_facts(args: argparse.Namespace) -> dict:
    """What the provenance of an episode says of the method; JSON-serialisable."""
    from mask2iv_ros.weights import default_model_path, hash_weights

    model = args.model or default_model_path()
    return {'model': args.model or 'mask2iv-sim', 'weights': hash_weights(model), 'steps': args.steps or None}


def tint(frame: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give object and background each another tint."""
    edited = frame.astype(np.float32)
    for mask in (labels == 0, labels == 1):
        edited[mask] *= rng.uniform(0.4, 1.3, 3)
    return edited.clip(0, 255).astype(np.uint8)
