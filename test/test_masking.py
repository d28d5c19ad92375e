"""`mask2iv segment`: a dataset gets masks, drawn, found or given, and a sheet to judge them by."""

import numpy as np
import pytest
from PIL import Image
from test_lerobot import make_clip, write
from test_segment import detector_folder, one_thread, segmenter_folder  # noqa: F401

from mask2iv_ros.cli import main
from mask2iv_ros.data.episodes import open_dataset


def clip_and_masks(seed):
    clip = make_clip(seed, length=5)
    labels = clip.labels
    labels[labels == 3] = 0
    clip.labels = None
    return clip, labels


@pytest.fixture
def data(tmp_path):
    clips, labels = zip(*(clip_and_masks(seed) for seed in range(2)), strict=True)
    write(tmp_path / 'data', *clips)
    return tmp_path / 'data', labels


def test_masks_from_files_need_no_model(tmp_path, data, capsys):
    path, labels = data
    for i, images in enumerate(labels):
        folder = tmp_path / 'masks' / f'episode_{i:06d}'
        folder.mkdir(parents=True)
        for t, image in enumerate(images):
            Image.fromarray(image).save(folder / f'{t}.png')
    command = ['segment', str(path), str(tmp_path / 'out'), '--masks', str(tmp_path / 'masks')]
    assert main(command) == 0
    for i, images in enumerate(labels):
        np.testing.assert_array_equal(open_dataset(tmp_path / 'out').read(i).labels, images)
    (sheet,) = (tmp_path / 'out_review').iterdir()
    assert Image.open(sheet).size[0] == 1600
    (tmp_path / 'masks/episode_000001/4.png').unlink()
    assert main([*command[:2], str(tmp_path / 'out2'), *command[3:], '--skip-bad']) == 0
    assert 'episode episode_000001: ' in capsys.readouterr().err
    assert len(open_dataset(tmp_path / 'out2')) == 1


def test_missing_models_are_named_before_anything_is_written(tmp_path, data, capsys):
    path, _ = data
    assert main(['segment', str(path), str(tmp_path / 'out'), '--device', 'cpu']) == 1
    told = capsys.readouterr().err
    assert 'hf download' in told
    assert not (tmp_path / 'out').exists()


def test_tiny_models_label_or_reject_every_episode(tmp_path, data, detector_folder, segmenter_folder, capsys):  # noqa: F811
    path, labels = data
    (tmp_path / 'first').mkdir()
    for i, images in enumerate(labels):
        Image.fromarray(images[0]).save(tmp_path / 'first' / f'episode_{i:06d}.png')
    models = ['--detector', str(detector_folder), '--segmenter', str(segmenter_folder), '--device', 'cpu']
    command = ['segment', str(path), str(tmp_path / 'out'), *models]
    assert main([*command, '--first-masks', str(tmp_path / 'first')]) == 0
    out = open_dataset(tmp_path / 'out')
    assert len(out) == 2
    for i, images in enumerate(labels):
        np.testing.assert_array_equal(out.read(i).labels[0], images[0])
    assert 'segmenter' in out.source(0)['masks']
    assert main(['segment', str(path), str(tmp_path / 'found'), *models]) == 0
    rejected = capsys.readouterr().out.count('rejected: ')
    found = len(open_dataset(tmp_path / 'found')) if (tmp_path / 'found').exists() else 0
    assert rejected + found == 2
