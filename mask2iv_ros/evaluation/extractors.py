"""Metrics that look through a trained network, and what stands in where its weights are not there.

A published name (LPIPS, FVD, CLIP) is only ever given to a number from the published weights. They are read
from files; nothing here downloads. What is missing is left out, with a line that says where to put it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

LPIPS_FILE = (
    'alexnet-owt-7be5be79.pth'  #: torchvision's AlexNet; LPIPS's own linear layers are in torchmetrics
)
I3D_FILE = 'i3d_torchscript.pt'  #: the TorchScript I3D of StyleGAN-V (arXiv 2112.14683), Kinetics-400


class RandomFeatures:
    """(64,) features of a video: a 3-D convolutional network with fixed random weights, averaged.

    A stand-in for I3D under a name of its own, `frechet_random3d`. It tells videos with other colours,
    textures and motion apart (a still from a moving clip, a blurred from a sharp one), and knows nothing of
    what things are or whether a motion makes sense. Its numbers compare rows of one table, never with FVD.
    """

    name = 'frechet_random3d'
    channels = 3, 16, 32, 64
    size = 64, 96  #: every video is resized to it, (height, width)

    def __init__(self, device: torch.device):
        rng = np.random.default_rng(0)  # NumPy's stream is the same in every version of torch
        self.weights = [
            torch.from_numpy(
                rng.normal(0, np.sqrt(2 / (inputs * 27)), (outputs, inputs, 3, 3, 3)).astype(np.float32)
            ).to(device)
            for inputs, outputs in zip(self.channels, self.channels[1:], strict=False)
        ]
        self.device = device

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Features of a (T, H, W, 3) uint8 video."""
        pixels = F.interpolate(_pixels(frames, self.device), self.size, mode='area')
        hidden = pixels.transpose(0, 1)[None] * 2 - 1
        for weight in self.weights:
            hidden = F.conv3d(hidden, weight, stride=(1, 2, 2), padding=1).relu()
        return 10 * hidden.mean(dim=(2, 3, 4))[0].cpu().numpy()  # distances of a handy size


class I3DFeatures:
    """(400,) I3D features of a video, whose Fréchet distance is FVD as StyleGAN-V and Mask2IV compute it.

    Args:
        path: `I3D_FILE`.
    """

    name = 'fvd'

    def __init__(self, path: Path, device: torch.device):
        self.network = torch.jit.load(str(path), map_location=device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Features of a (T, H, W, 3) uint8 video: short side to 224 pixels, then the middle."""
        height, width = frames.shape[1:3]
        scale = 224 / min(height, width)
        size = max(224, round(height * scale)), max(224, round(width * scale))
        pixels = F.interpolate(_pixels(frames, self.device), size, mode='bilinear', align_corners=False)
        top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
        pixels = pixels[..., top : top + 224, left : left + 224].transpose(0, 1)[None] * 2 - 1
        return self.network(pixels, rescale=False, resize=False, return_features=True)[0].cpu().numpy()


class LPIPS:
    """LPIPS v0.1 with AlexNet (arXiv 1801.03924) through torchmetrics.

    Args:
        path: `LPIPS_FILE`.
    """

    name = 'lpips'

    def __init__(self, path: Path, device: torch.device):
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        cache = torch.hub.get_dir()
        with tempfile.TemporaryDirectory() as folder:  # torchvision takes weights from torch's cache alone
            (Path(folder) / 'checkpoints').mkdir()
            (Path(folder) / 'checkpoints' / LPIPS_FILE).symlink_to(path.resolve())
            torch.hub.set_dir(folder)
            try:
                self.metric = LearnedPerceptualImagePatchSimilarity('alex', normalize=True).to(device)
            finally:
                torch.hub.set_dir(cache)
        self.device = device

    def __call__(self, predicted: np.ndarray, truth: np.ndarray, task: str) -> dict[str, float]:
        """Mean over frames 1.. of (T, H, W, 3) uint8 videos."""
        self.metric.reset()
        self.metric.update(_pixels(predicted[1:], self.device), _pixels(truth[1:], self.device))
        return {'lpips': self.metric.compute().item()}


class CLIPSimilarity:
    """Cosines of CLIP embeddings (arXiv 2103.00020).

    Args:
        model: name in the Hugging Face cache, or folder.
    """

    step = 3  #: frames apart that `clip_consistency` compares, as in the code that Mask2IV's authors released

    def __init__(self, model: str, device: torch.device):
        from transformers import CLIPModel, CLIPProcessor

        self.name = f'clip ({Path(model).name})'
        self.model = CLIPModel.from_pretrained(model, local_files_only=True).to(device).eval()
        self.processor = CLIPProcessor.from_pretrained(model, local_files_only=True)
        self.device = device

    @torch.no_grad()
    def __call__(self, predicted: np.ndarray, truth: np.ndarray, task: str) -> dict[str, float]:
        """Means over frames 1.. of (T, H, W, 3) uint8 videos.

        `clip_truth`: with the true frame; `clip_consistency`: with the predicted frame `step` later;
        `clip_text`: with the task, if there is one.
        """
        count = len(predicted) - 1
        inputs = self.processor(
            text=[task],
            images=[*predicted[1:], *truth[1:]],
            return_tensors='pt',
            padding=True,
            truncation=True,
        )
        output = self.model(**inputs.to(self.device))
        ours, true = output.image_embeds[:count], output.image_embeds[count:]
        scores = {
            'clip_truth': (ours * true).sum(dim=-1).mean().item(),
            'clip_consistency': (ours[self.step :] * ours[: -self.step]).sum(dim=-1).mean().item(),
        }
        if task:
            scores['clip_text'] = (ours @ output.text_embeds[0]).mean().item()
        return scores


class Extractors:
    """Every learned metric that can be computed here.

    Args:
        weights: folder with `LPIPS_FILE` and `I3D_FILE`; None for torch's own cache of weights.
        clip_model: see `CLIPSimilarity`.

    Attributes:
        scores: callables (predicted, truth, task) -> {metric: value}.
        features: callables video -> (D,) array with a `name`, whose Fréchet distance is a metric.
        left_out: {metric: why, and what to do about it}.
    """

    def __init__(self, weights: Path | None, clip_model: str, device: torch.device):
        folder = Path(torch.hub.get_dir()) / 'checkpoints' if weights is None else weights
        self.features: list = [RandomFeatures(device)]
        self.scores: list = []
        self.left_out = {
            'ViCLIP': 'not supported: its weights come without a form that transformers or TorchScript load',
            'EgoVLP': 'not supported, for the same reason',
        }
        place = "of --weights, by default hub/checkpoints of torch's cache"
        if (folder / I3D_FILE).is_file():
            self.features.append(I3DFeatures(folder / I3D_FILE, device))
        else:
            self.left_out['FVD'] = f'needs {I3D_FILE}, the I3D of StyleGAN-V, in the folder {place}'
        if (folder / LPIPS_FILE).is_file():
            self.scores.append(LPIPS(folder / LPIPS_FILE, device))
        else:
            self.left_out['LPIPS'] = f'needs {LPIPS_FILE}, AlexNet of torchvision, in the folder {place}'
        try:
            self.scores.append(CLIPSimilarity(clip_model, device))
        except OSError:  # what transformers raises for a model that is not there
            self.left_out['CLIP'] = f'needs {clip_model} in the Hugging Face cache, or a folder with a copy'

    @property
    def names(self) -> list[str]:
        """What is computed, to tell two evaluations apart."""
        return [extractor.name for extractor in (*self.features, *self.scores)]


def _pixels(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).movedim(-1, 1).float() / 255
