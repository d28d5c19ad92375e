"""`mask2iv segment`: a dataset gets masks, drawn, found or given, and a sheet to judge them by."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset, merge_datasets
from PIL import Image
from test_lerobot import make_clip, write
from test_segment import detector_folder, one_thread, segmenter_folder  # noqa: F401

from mask2iv_ros.cli import main
from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.masking import DatasetSegmenter


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
    (sheet,) = (tmp_path / 'out_review').glob('*.jpg')
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
    capsys.readouterr()
    assert main(['segment', str(path), str(tmp_path / 'found'), *models]) == 0
    told = capsys.readouterr().out
    found = len(open_dataset(tmp_path / 'found')) if (tmp_path / 'found').exists() else 0
    assert told.count('rejected: ') + found == 2
    assert main(['segment', str(path), str(tmp_path / 'found'), *models]) == 0
    assert capsys.readouterr().out == told


AXES = ['height', 'width', 'channels']
FEATURES = {
    'observation.images.top': {'dtype': 'video', 'shape': (64, 96, 3), 'names': AXES},
    'observation.images.wrist': {'dtype': 'video', 'shape': (48, 64, 3), 'names': AXES},
    'observation.images.wrist_depth': {
        'dtype': 'video', 'shape': (48, 64, 1), 'names': AXES, 'info': {'is_depth_map': True}
    },
    'observation.state': {'dtype': 'float32', 'shape': (3,), 'names': ['x', 'y', 'z']},
    'action': {'dtype': 'float32', 'shape': (2,), 'names': {'motors': ['left', 'right']}},
    'next.done': {'dtype': 'bool', 'shape': (1,), 'names': None},
}  # fmt: skip


def open_lerobot(root):
    return LeRobotDataset(root.name, root=root, video_backend='pyav')


def record(root, episodes, features=FEATURES):
    """What another program recorded: H.264, two cameras, depth, names, columns of its own."""
    options = {'rgb_encoder': RGBEncoderConfig(vcodec='h264'), 'streaming_encoding': True}
    if root.exists():
        dataset = LeRobotDataset.resume(root.name, root=root, **options)
    else:
        dataset = LeRobotDataset.create(
            root.name, fps=10, features=features, root=root, robot_type='so100', **options
        )
    rng = np.random.default_rng(0)
    for episode in episodes:
        for t in range(5 + episode):
            frame = {'task': f'task {episode}', 'next.done': np.array([t == 4 + episode])}
            for key, feature in features.items():
                if feature['dtype'] == 'float32':
                    frame[key] = rng.normal(size=feature['shape']).astype(np.float32)
                elif key.endswith('depth') and 'info' in feature:
                    frame[key] = np.full(feature['shape'], 500 + 100 * episode + t, np.uint16)
                elif feature['dtype'] == 'video':
                    frame[key] = np.full(feature['shape'], 20 + 40 * episode + 5 * t, np.uint8)
                    frame[key][10:20, 10 + 4 * t : 20 + 4 * t] = (200, 30, 30)
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return root


def write_masks(folder, lengths, size=(64, 96)):
    """Mask images of the episodes 0, 1, ..., one a frame."""
    for episode, length in enumerate(lengths):
        (folder / f'episode_{episode:06d}').mkdir(parents=True)
        for t in range(length):
            image = np.zeros(size, np.uint8)
            image[10:20, 10 + 4 * t : 20 + 4 * t] = 1
            image[30:60, 50:60] = 2
            Image.fromarray(image).save(folder / f'episode_{episode:06d}/{t}.png')
    return folder


def hashes(root):
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(root, pattern='data/**/*.parquet'):
    return pa.concat_tables(pq.read_table(path) for path in sorted(root.glob(pattern)))


def assert_same_items(copy, original, pairs):
    """Items of two datasets, by (index, index), agree in all that the original has but their numbers."""
    for new, old in pairs:
        ours, theirs = copy[new], original[old]
        for key, value in theirs.items():
            if key not in ('index', 'episode_index'):
                np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_a_lerobot_dataset_is_copied_whole_and_what_augment_makes_of_it_merges_with_it(
    tmp_path,
    detector_folder,  # noqa: F811
    segmenter_folder,  # noqa: F811
):
    source = record(tmp_path / 'source', range(2))
    info = json.loads((source / 'meta/info.json').read_text())
    info['features']['timestamp']['fps'] = 10  # as older versions of LeRobot wrote it
    (source / 'meta/info.json').write_text(json.dumps(info))
    (source / 'README.md').write_text('mine')
    before = hashes(source)
    (source / '.cache').mkdir()
    (source / '.cache/of_the_hub').write_text('not of the copy')
    for path in write_masks(tmp_path / 'masks', (1, 1)).iterdir():
        (tmp_path / 'first').mkdir(exist_ok=True)
        (path / '0.png').rename(tmp_path / 'first' / f'{path.name}.png')
    models = ['--detector', str(detector_folder), '--segmenter', str(segmenter_folder), '--device', 'cpu']
    command = ['segment', str(source), str(tmp_path / 'masked'), *models]
    assert main([*command, '--first-masks', str(tmp_path / 'first')]) == 0

    after = hashes(tmp_path / 'masked')
    assert hashes(source).items() >= before.items()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {'meta/info.json', 'data/chunk-000/file-000.parquet'}
    assert set(after) - set(before) == {'meta/mask2iv_segmentation.json'}
    assert not list(tmp_path.glob('.*'))
    original, copy = open_lerobot(source), open_lerobot(tmp_path / 'masked')
    assert (copy.meta.robot_type, copy.meta.fps) == ('so100', 10)
    added = {'annotation.masks.top', 'annotation.source'}
    assert {key: copy.meta.features[key] for key in set(copy.meta.features) - added} == original.meta.features
    assert table(tmp_path / 'masked').drop_columns(list(added)) == table(source)
    assert_same_items(copy, original, [(i, i) for i in range(len(original))])
    reader = open_dataset(tmp_path / 'masked')
    assert reader.episode(0).cameras == ('top', 'wrist')
    assert reader.episode(0).masked == ('top',)
    assert reader.read(1).labels.shape == (6, 64, 96)
    assert set(np.unique(reader.read(1).labels[0])) == {0, 1, 2}
    assert 'segmenter' in reader.source(1)['masks']

    command = ['augment', str(tmp_path / 'masked'), str(tmp_path / 'more'), '--drop', 'annotation.*']
    assert main([*command, '--other-cameras', 'keep', '--ungated', '--variants', '1', '--device', 'cpu']) == 0
    made = open_lerobot(tmp_path / 'more')
    merge_datasets([original, made], 'merged', tmp_path / 'merged')
    merged = open_lerobot(tmp_path / 'merged')
    assert len(merged) == 2 * len(original)
    np.testing.assert_array_equal(merged[len(original) + 7]['action'], original[7]['action'])


def test_left_out_episodes_leave_a_dataset_that_lerobot_reads_and_merges(tmp_path, capsys):
    source = record(tmp_path / 'source', range(3))
    record(source, [3])  # goes into files of its own
    masks = write_masks(tmp_path / 'masks', (4, 6, 7, 8))  # the first lacks one
    command = ['segment', str(source), str(tmp_path / 'masked'), '--masks', str(masks)]
    assert main(command) == 1
    assert 'episode episode_000000: ' in capsys.readouterr().err
    assert not (tmp_path / 'masked').exists()
    assert main([*command, '--skip-bad']) == 0
    assert 'skipped: episode episode_000000: ' in capsys.readouterr().err
    original, copy = open_lerobot(source), open_lerobot(tmp_path / 'masked')
    assert (copy.meta.total_episodes, copy.meta.total_frames, len(copy)) == (3, 21, 21)
    assert json.loads((tmp_path / 'masked/meta/info.json').read_text())['splits'] == {'train': '0:3'}
    assert_same_items(copy, original, [(i, 5 + i) for i in range(21)])
    rows = table(tmp_path / 'masked')
    np.testing.assert_array_equal(rows['index'], np.arange(21))
    np.testing.assert_array_equal(rows['episode_index'], np.repeat([0, 1, 2], [6, 7, 8]))
    episodes = table(tmp_path / 'masked', 'meta/episodes/**/*.parquet')
    assert episodes['dataset_from_index'].to_pylist() == [0, 6, 13]
    assert episodes['stats/index/max'].to_pylist() == [[5], [12], [20]]
    stats = copy.meta.stats
    assert (stats['index']['max'], stats['episode_index']['max'], stats['action']['count']) == (20, 2, 21)
    actions = np.array(rows['action'].to_pylist())
    np.testing.assert_allclose(stats['action']['mean'], actions.mean(axis=0), rtol=1e-5)
    merge_datasets([copy, copy], 'twice', tmp_path / 'twice')
    assert_same_items(open_lerobot(tmp_path / 'twice'), copy, [(21 + i, i) for i in (0, 12, 20)])
    assert open_dataset(tmp_path / 'masked').source(2)['copied_from']['index'] == 3


def test_no_episode_is_segmented_twice_and_no_other_dataset_replaced(tmp_path, monkeypatch, capsys):
    grid = {'dtype': 'float32', 'shape': (2, 3), 'names': None}  # LeRobot itself does not merge such columns
    source = record(tmp_path / 'source', range(2), FEATURES | {'observation.grid': grid})
    masks = write_masks(tmp_path / 'masks', (5, 6, 7))
    command = ['segment', str(source), str(tmp_path / 'masked'), '--masks', str(masks)]
    segmented, real = [], DatasetSegmenter.__call__

    def stopped(self, name, clip):
        segmented.append(int(name[-1]))
        if segmented == [0, 1]:
            raise KeyboardInterrupt
        return real(self, name, clip)

    monkeypatch.setattr(DatasetSegmenter, '__call__', stopped)
    assert main(command) == 130
    assert not (tmp_path / 'masked').exists()
    assert main(command) == 0
    assert segmented == [0, 1, 1]
    before = hashes(tmp_path / 'masked')
    shutil.rmtree(tmp_path / 'masked_review/masks')
    assert main(command) == 0  # there is nothing to do
    assert (segmented, hashes(tmp_path / 'masked')) == ([0, 1, 1], before)
    assert '2 episodes with masks' in capsys.readouterr().out
    (tmp_path / 'masked').rename(tmp_path / '.masked.old')  # as a kill leaves it, at the worst moment
    (tmp_path / '.masked.new').mkdir()
    assert main(command) == 0
    assert (segmented, hashes(tmp_path / 'masked')) == ([0, 1, 1], before)
    assert not list(tmp_path.glob('.*'))
    assert sorted(path.name for path in (tmp_path / 'masked_review').glob('*.jpg')) == [
        '000000_to_000000.jpg',
        '000001_to_000001.jpg',
    ]

    assert main([*command, '--actor', 'hand']) == 1
    assert "made with other options, {'actor': 'black robot gripper'}, not" in capsys.readouterr().err
    assert main([command[0], str(tmp_path / 'masked'), str(source), *command[3:]]) == 1
    assert 'found something else' in capsys.readouterr().err
    assert main([*command[:2], str(source / 'masked'), *command[3:]]) == 1
    assert 'is in the source' in capsys.readouterr().err
    assert hashes(tmp_path / 'masked') == before

    segmented[:] = [1]
    main([*command[:2], str(tmp_path / 'other'), *command[3:]])
    record(source, [2], FEATURES | {'observation.grid': grid})
    (masks / 'episode_000001/0.png').write_bytes((masks / 'episode_000001/1.png').read_bytes())
    assert main([*command[:2], str(tmp_path / 'other'), *command[3:]]) == 0
    assert segmented == [1, 0, 1, 1, 2]  # what is new, and what its mask files changed
    reader = open_dataset(tmp_path / 'other')
    assert len(reader) == 3
    labels = reader.read(1).labels
    np.testing.assert_array_equal(labels[0], labels[1])
    assert_same_items(open_lerobot(tmp_path / 'other'), open_lerobot(source), [(i, i) for i in range(18)])


def test_a_second_camera_is_segmented_beside_the_first(tmp_path):
    source = record(tmp_path / 'source', [0])
    for camera, out, size in (('top', 'one', (64, 96)), ('wrist', 'two', (48, 64))):
        masks = write_masks(tmp_path / camera, [5], size)
        command = ['segment', str(source), str(tmp_path / out), '--camera', camera, '--masks', str(masks)]
        assert main(command) == 0
        source = tmp_path / out
    reader = open_dataset(tmp_path / 'two')
    assert reader.episode(0).masked == ('top', 'wrist')
    for camera, size in (('top', (64, 96)), ('wrist', (48, 64))):
        labels = reader.read(0, camera=camera).labels
        assert (labels.shape, set(np.unique(labels))) == ((5, *size), {0, 1, 2})


def test_a_colour_camera_may_be_called_depth(tmp_path):
    features = {key: FEATURES[key] for key in ('observation.images.wrist', 'action', 'next.done')}
    features['observation.images.wrist_depth'] = FEATURES['observation.images.wrist']
    reader = open_dataset(record(tmp_path / 'source', [0], features))
    assert reader.episode(0).cameras == ('wrist', 'wrist_depth')
    for camera in ('wrist', 'wrist_depth'):
        clip = reader.read(0, camera=camera)
        assert (clip.frames.shape, clip.depth) == ((5, 48, 64, 3), None)
