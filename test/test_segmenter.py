"""Promises of the network that reads masks off generated frames."""

import json

import numpy as np
import pytest
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import Episode, EpisodeReader
from mask2iv_ros.models.segmenter import Segmenter
from mask2iv_ros.training.arrays import ClipArrays
from mask2iv_ros.training.segmenter import SegmenterOptions, draw_sample, train_segmenter
from mask2iv_ros.training.trainer import Schedule

SIZE = (48, 64)


class Squares(EpisodeReader):
    """Episodes in which a green actor moves towards a red object on grey noise."""

    def __init__(self, path, masked=True):
        self.path, self.masked = path, masked

    def __len__(self):
        return 5

    def episode(self, index):
        return Episode(str(index), 6, 15.0, '', ('front',), ('front',) * self.masked)

    def _read(self, index, episode, frames, camera):
        rng = np.random.default_rng(index)
        y, x = rng.integers(4, 28, 2)
        pictures, labels = (
            rng.integers(90, 110, (6, *SIZE, 3)).astype(np.uint8),
            np.zeros((6, *SIZE), np.uint8),
        )
        for t in range(6):
            labels[t, y : y + 14, x + 14 : x + 28] = lb.OBJECT
            labels[t, 4 * t : 4 * t + 20, 2:12] = lb.ACTOR
        pictures[labels == lb.OBJECT] = 200, 30, 30
        pictures[labels == lb.ACTOR] = 30, 200, 30
        return InteractionClip(pictures[frames], labels[frames])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    (folder / 'data').mkdir()
    schedule = Schedule(steps=40, learning_rate=4e-3, warmup_steps=5, ema_decay=None, mixed_precision='no')
    options = SegmenterOptions(batch_size=4, num_frames=6, recoloured=0.3)
    report = train_segmenter(Squares(folder / 'data'), folder / 'out', schedule, options, SIZE)
    return folder / 'out', report


def test_a_trained_segmenter_reads_held_out_frames(trained):
    folder, report = trained
    assert report == json.loads((folder / 'report.json').read_text())
    assert (report['train_episodes'], report['held_out_episodes']) == (4, 1)
    assert report['iou']['real']['actor'] > 0.6
    assert report['iou']['real']['object'] > 0.6
    assert set(report['iou']['recoloured']) == {'object', 'actor'}
    assert (folder / 'held_out.png').is_file()


def test_it_loads_as_it_was_saved_and_sees_what_is_gone(trained):
    segmenter = Segmenter.from_pretrained(trained[0] / 'segmenter')
    clip = Squares(trained[0]).read(0)
    seen = segmenter.read(clip.frames, clip.labels[0])
    assert seen.dtype == np.uint8
    assert np.array_equal(seen[0], clip.labels[0])
    assert lb.iou(seen[4] == lb.ACTOR, clip.labels[4] == lb.ACTOR) > 0.6
    assert np.array_equal(segmenter.read(clip.frames[[0, 4]], clip.labels[0])[1], seen[4])
    frozen = segmenter.read(clip.frames[[0] * 6], clip.labels[0])
    assert lb.iou(frozen[5] == lb.ACTOR, clip.labels[5] == lb.ACTOR) < 0.2


def test_it_has_less_than_a_million_weights_at_the_default_size():
    assert 5e5 < sum(p.numel() for p in Segmenter().parameters()) < 1e6


def test_outlines_are_as_fine_as_pixels():
    network = Segmenter(sample_size=SIZE, block_out_channels=(16, 16), norm_num_groups=4)
    pixels = torch.zeros(2, 3, *SIZE)
    assert network(pixels, pixels, torch.zeros(2, *SIZE, dtype=torch.long)).shape == (2, 4, *SIZE)


def test_what_was_removed_is_not_in_the_truth(trained):
    arrays = ClipArrays.load(trained[0] / 'train')
    options = SegmenterOptions(removed=1.0, recoloured=0.0, blurred=0.0)
    kinds = set()
    for seed in range(20):
        frame, _, reference_labels, labels = draw_sample(arrays, options, np.random.default_rng(seed))
        kinds |= {tuple(np.unique(labels))}
        assert {1, 2} <= set(np.unique(reference_labels))
        for label, colour in ((lb.OBJECT, 0), (lb.ACTOR, 1)):
            if not (labels == label).any():  # nor in the picture
                assert (frame[..., colour].astype(int) - frame[..., 2] > 120).mean() < 0.01
    assert kinds == {(0, 1), (0, 2)}


def test_wrong_input_is_refused(tmp_path):
    network = Segmenter(sample_size=SIZE, block_out_channels=(16, 16), norm_num_groups=4)
    with pytest.raises(ValueError, match=r'frames: expected \(T, 48, 64, 3\) uint8'):
        network.read(np.zeros((2, 64, 64, 3), np.uint8), np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match=r'labels: expected \(48, 64\)'):
        network.read(np.zeros((2, *SIZE, 3), np.uint8), np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match='no camera has masks to train on'):
        train_segmenter(Squares(tmp_path, masked=False), tmp_path / 'out', size=SIZE)
