"""The diffusers pipelines of Mask2IV, and how a saved one is opened."""

from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.loading import ModelError, load_pipeline
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline

__all__ = [
    'InteractionVideoPipeline',
    'Mask2IVPipeline',
    'MaskTrajectoryPipeline',
    'ModelError',
    'load_pipeline',
]
