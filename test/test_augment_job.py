"""Promises of `mask2iv augment`: a dataset that merges with its source, whatever happens on the way."""

import copy
import errno
import functools
import hashlib
import importlib.util
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip('lerobot')

from check_lerobot_output import lerobot, train_act
from dataset_fixtures import write_trajectory
from lerobot.configs import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets import LeRobotDataset, delete_episodes, merge_datasets, split_dataset
from lerobot.datasets.feature_utils import features_equal_for_merge

from mask2iv_ros.augmentation import executors, output
from mask2iv_ros.augmentation.executors import shares
from mask2iv_ros.augmentation.gates import Gates
from mask2iv_ros.augmentation.job import augment, plan
from mask2iv_ros.augmentation.looks import Looks
from mask2iv_ros.augmentation.method import build_method, uses_gpu
from mask2iv_ros.augmentation.output import SIDECAR, grouped_split, last_groups, safe_eval_split
from mask2iv_ros.augmentation.same_motion import SameMotion
from mask2iv_ros.augmentation.worker import Job, draw_seed, failed, part_name
from mask2iv_ros.cli import build_parser, main
from mask2iv_ros.data.episodes import BadEpisode, open_dataset
from mask2iv_ros.data.lerobot import IncompatibleDataset, encode_masks
from mask2iv_ros.data.transfer import copy_episodes
from mask2iv_ros.models.inverse_dynamics import InverseDynamics, InverseDynamicsModel
from mask2iv_ros.models.segmenter import Segmenter
from tiny_model import build_tiny_model, build_tiny_pipeline

AXES = ['height', 'width', 'channels']
FEATURES = {
    'observation.images.top': {'dtype': 'video', 'shape': (48, 64, 3), 'names': AXES},
    'observation.images.wrist': {'dtype': 'video', 'shape': (48, 64, 3), 'names': AXES},
    'observation.state': {'dtype': 'float32', 'shape': (3,), 'names': ['x', 'y', 'z']},
    'action': {'dtype': 'float32', 'shape': (2,), 'names': {'motors': ['left', 'right']}},
    'next.done': {'dtype': 'bool', 'shape': (1,), 'names': None},
    'annotation.masks.top': {'dtype': 'string', 'shape': (1,), 'names': None},
}


def write_source(root: Path, episodes: int = 4, others: dict | None = None, **encoders) -> Path:
    """A dataset of another recorder: H.264, names, columns of its own; 9 frames or more an episode.

    `others` are features that differ from `FEATURES`; depth is 0.5 m and more, by 0.01 m a frame.
    """
    encoders = {'rgb_encoder': RGBEncoderConfig(vcodec='h264'), **encoders}
    options = {'streaming_encoding': True, 'encoder_queue_maxsize': 0, **encoders}
    features = {**FEATURES, **(others or {})}
    dataset = LeRobotDataset.create(
        root.name, fps=10, features=copy.deepcopy(features), root=root, robot_type='so100', **options
    )
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        for t in range(9 + episode):
            labels = np.zeros((48, 64), np.uint8)
            labels[10:20, 10:22] = 1
            labels[24:44, 10 + t : 20 + t] = 2
            row = {
                'observation.images.top': np.full((48, 64, 3), 90 + 10 * episode, np.uint8),
                'observation.images.wrist': np.full((48, 64, 3), 30 + 10 * episode, np.uint8),
                'observation.state': rng.normal(size=3),
                'action': rng.normal(size=2),
                'next.done': np.array([t == 8 + episode]),
                'annotation.masks.top': encode_masks(labels),
            }
            for key in {'observation.images.top_depth', 'observation.images.tof'} & set(features):
                is_depth = features[key]['shape'][2] == 1
                value = np.float32(0.5 + 0.01 * t) if is_depth else np.uint8(60 + 10 * episode)
                row[key] = np.full(features[key]['shape'], value)
            for key in ('observation.state', 'action'):
                row[key] = row[key].astype(features[key]['dtype']).reshape(features[key]['shape'])
            dataset.add_frame({**row, 'task': f'task {episode % 2}'})
        dataset.save_episode()
    dataset.finalize()
    return root


def build_tiny():
    """Method of the tiny model, and no measure."""
    pipeline = build_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return SameMotion(pipeline, Looks()), None


@dataclass
class Tint:
    """A method without a model; some source episodes (told by their length) end otherwise."""

    error: Exception | None = None
    length: int = 0
    batch_size: int = 8
    calls: int = 0
    mode = 'same_motion'

    def __call__(self, views, seed):
        self.calls += 1
        if self.error is not None and len(next(iter(views.values()))) == self.length:
            raise self.error
        rng = np.random.default_rng(seed)
        factor = rng.uniform(0.2, 0.9)
        return {
            name: replace(
                clip,
                frames=(clip.frames * factor).astype(np.uint8),
                source={**clip.source, 'augmentation': {'factor': factor}},
            )
            for name, clip in views.items()
        }


def read(root) -> LeRobotDataset:
    return LeRobotDataset(Path(root).name, root=root, video_backend='pyav')


def table(root):
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(root).glob('data/**/*.parquet')))


def hashes(root):
    files = sorted(path for path in Path(root).rglob('*') if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_equal_runs(first, second):
    """What two runs of a job must agree in, episode by episode.

    Frames agree but for what x264 does: of equal frames it makes a video of 15,078 or of 15,080 bytes from
    run to run, also with one thread.
    """
    readers = [open_dataset(root) for root in (first, second)]
    accounts = [json.loads((Path(root) / SIDECAR).read_text())['episodes'] for root in (first, second)]
    assert accounts[0] == accounts[1]
    assert [len(reader) for reader in readers] == [len(accounts[0])] * 2
    for index in range(len(accounts[0])):
        rows = []
        for reader in readers:
            columns = [key for key in reader.meta.features if 'images' not in key]
            rows.append(reader.rows(index, columns).to_pydict())
        assert rows[0] == rows[1]
        for name in readers[0].video_keys:
            one, other = (reader.read(index, camera=name).frames.astype(float) for reader in readers)
            assert np.abs(one - other).mean() < 0.5, (index, name)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp('source') / 'source')


def job_of(source, **more) -> Job:
    return Job(str(source), **{'other_cameras': 'keep', **more})


@pytest.fixture(scope='module')
def made(source, tmp_path_factory):
    """The output of the real pipeline, all kinds of episodes in it; and the source's hashes before."""
    before, out = hashes(source), tmp_path_factory.mktemp('made') / 'out'
    job = job_of(source, variants=2, include_source=True, hold_out=0.5, seed=3, method={'weights': 'abc'})
    report = augment(job, out, build_tiny)
    assert report.complete
    return SimpleNamespace(out=out, before=before, job=job, report=report)


def records(out):
    return json.loads((out / SIDECAR).read_text())['episodes']


def test_a_source_that_was_changed_is_another_one(source, tmp_path):
    copied = shutil.copytree(source, tmp_path / 'source')
    augment(job_of(copied), tmp_path / 'out', lambda: (Tint(), None))
    next(copied.glob('data/**/*.parquet')).touch()
    with pytest.raises(ValueError, match=r'differs in source_content\.files: '):
        augment(job_of(copied), tmp_path / 'out', lambda: (Tint(), None))


def test_the_source_is_never_written_to(source, made):
    assert hashes(source) == made.before


def test_nothing_but_the_dataset_is_left(made):
    assert [path.name for path in made.out.parent.iterdir()] == ['out']


@pytest.mark.parametrize('place', ['out.parts', 'out.parts/source'])
def test_a_source_where_parts_would_be_is_refused(source, tmp_path, place):
    copied = shutil.copytree(source, tmp_path / place)
    before = hashes(copied)
    with pytest.raises(ValueError, match='expected a folder apart from the source, got one that overlaps'):
        augment(job_of(copied), tmp_path / 'out', lambda: pytest.fail('made'))
    assert hashes(copied) == before


def test_a_folder_of_parts_that_no_job_made_is_left_alone(source, made, tmp_path):
    notes = tmp_path / 'out.parts/.notes/mine.txt'
    notes.parent.mkdir(parents=True)
    notes.write_text('mine')
    (tmp_path / 'out.parts/job.json').write_text('[]')
    with pytest.raises(ValueError, match=r'expected nothing there, or what .* found \.notes, job\.json'):
        augment(job_of(source), tmp_path / 'out', lambda: pytest.fail('made'))
    shutil.copytree(made.out, tmp_path / 'out')
    assert augment(made.job, tmp_path / 'out', lambda: pytest.fail('made')).complete
    assert notes.read_text() == 'mine'


def test_variants_follow_their_source_and_held_out_episodes_come_last(made):
    order = [(record['source_episode'], record['variant']) for record in records(made.out)]
    assert order == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
    assert made.report.counts == {'generated': 4, 'recorded': 4, 'rejected': 0, 'failed': 0, 'frames': 80}


def test_lerobot_merges_it_with_its_source(source, made, tmp_path):
    ours, theirs = read(made.out), read(source)
    assert features_equal_for_merge(ours.meta.features, theirs.meta.features)
    assert (ours.meta.fps, ours.meta.robot_type) == (10, 'so100')
    merge_datasets([theirs, ours], 'merged', tmp_path / 'merged')
    merged = read(tmp_path / 'merged')
    assert len(merged) == len(ours) + len(theirs)
    np.testing.assert_allclose(merged[len(theirs) + 3]['action'], ours[3]['action'])
    assert merged.meta.episodes['split_group'][3:6] == [None, 'source/0', 'source/0']


def test_same_motion_takes_all_other_columns_as_they_are(source, made):
    theirs, ours = table(source), table(made.out)
    for index, record in enumerate(records(made.out)):
        want = theirs.filter(pa.compute.equal(theirs['episode_index'], record['source_episode']))
        have = ours.filter(pa.compute.equal(ours['episode_index'], index))
        for key in ('observation.state', 'action', 'next.done', 'annotation.masks.top', 'task_index'):
            assert have[key].to_pylist() == want[key].to_pylist(), key


def test_generated_pictures_are_new_and_the_other_camera_is_as_recorded(source, made):
    theirs, ours = open_dataset(source), open_dataset(made.out)
    for index, record in enumerate(records(made.out)):
        for camera in ('top', 'wrist'):
            have = ours.read(index, camera=camera).frames.astype(int)
            want = theirs.read(record['source_episode'], camera=camera).frames
            is_new = camera == 'top' and record['variant'] > 0
            assert (np.abs(have - want).mean() > 5) == is_new, (record, camera)


def test_each_episode_says_how_it_was_made(made):
    episodes = read(made.out).meta.episodes
    for index, record in enumerate(records(made.out)):
        assert episodes['augmentation/source_episode'][index] == record['source_episode']
        assert episodes['augmentation/variant'][index] == record['variant']
        stored = json.loads(episodes['augmentation/record'][index])
        assert {'episode_index': index, **stored} == record
        assert record['mode'] == ('same_motion' if record['variant'] else 'recorded')
        if record['variant']:
            assert record['weights'] == 'abc'
            assert record['seed'] == draw_seed(3, record['source_episode'], record['variant'])
    assert len({record.get('seed') for record in records(made.out)}) == 5  # one for each generated, and none


def test_no_private_path_is_told(source, tmp_path):
    home = tmp_path / 'home'
    copied = shutil.copytree(source, home / 'demos')
    (path,) = copied.glob('data/**/*.parquet')
    rows = pq.read_table(path)
    texts = ['torn' if row['episode_index'] == 1 else row['annotation.masks.top'] for row in rows.to_pylist()]
    at = rows.schema.get_field_index('annotation.masks.top')
    pq.write_table(rows.set_column(at, 'annotation.masks.top', pa.array(texts)), path)
    job = job_of(copied)
    assert augment(job, tmp_path / 'out', lambda: (Tint(), None)).complete
    account = json.loads((tmp_path / 'out' / SIDECAR).read_text())
    assert account['identity']['source'] == 'demos'
    assert 'demos/data/chunk-000/file-000.parquet: episode 1' in account['failed'][0]
    for file in (SIDECAR, 'README.md', 'meta/info.json'):
        assert str(tmp_path) not in (tmp_path / 'out' / file).read_text()
    episodes = pa.concat_tables(
        pq.read_table(path) for path in tmp_path.glob('out/meta/episodes/**/*.parquet')
    )
    assert str(tmp_path) not in repr(episodes.select(['augmentation/record', 'split_group']).to_pylist())
    account['identity']['source'] = str(copied)  # as earlier versions did
    (tmp_path / 'out' / SIDECAR).write_text(json.dumps(account))
    assert augment(job, tmp_path / 'out', lambda: pytest.fail('made again')).complete


def test_provenance_in_the_source_column_survives_what_drops_episode_columns(tmp_path):
    write_trajectory(tmp_path / 'bridge', images=9, masks=True)
    write_trajectory(tmp_path / 'bridge', 'traj1', images=9, masks=True)
    augment(Job(str(tmp_path / 'bridge')), tmp_path / 'out', lambda: (Tint(), None))
    delete_episodes(read(tmp_path / 'out'), [0], output_dir=tmp_path / 'less')
    made = open_dataset(tmp_path / 'less').source(0)['augmentation']
    assert (made['source_dataset'], made['source_episode'], made['variant']) == ('bridge', 1, 1)
    assert 0.2 < made['draws']['images0']['factor'] < 0.9


def test_each_frame_tells_the_seed_and_the_look_is_drawn_of_it_again(tmp_path):
    write_trajectory(tmp_path / 'bridge', images=9, masks=True)
    method = SameMotion(None, Looks(), keep='everything')
    augment(Job(str(tmp_path / 'bridge')), tmp_path / 'out', lambda: (method, None))
    told = open_dataset(tmp_path / 'out').source(0)['augmentation']
    assert told['draws'] == {'images0': {'kept': 'everything'}}
    look = Looks().draw(np.random.default_rng(told['seed'])).describe()
    (record,) = records(tmp_path / 'out')
    assert record['draws']['images0']['look'] == json.loads(json.dumps(look))


def test_depth_is_coded_as_in_the_source(tmp_path):
    depth = {'dtype': 'video', 'shape': (48, 64, 1), 'names': AXES, 'info': {'is_depth_map': True}}
    encoder = DepthEncoderConfig(depth_min=0.2, depth_max=2.0, use_log=False)
    source = write_source(
        tmp_path / 'source', 2, {'observation.images.top_depth': depth}, depth_encoder=encoder
    )
    augment(job_of(source), tmp_path / 'out', lambda: (Tint(), None))
    theirs, ours = open_dataset(source), open_dataset(tmp_path / 'out')
    assert features_equal_for_merge(ours.meta.features, theirs.meta.features)
    np.testing.assert_allclose(ours.read(0).depth[3], 0.53, atol=1e-3)
    np.testing.assert_array_equal(ours.read(0).depth, theirs.read(0).depth)


def test_a_depth_camera_may_have_any_name(tmp_path):
    depth = {'dtype': 'video', 'shape': (48, 64, 1), 'names': AXES, 'info': {'is_depth_map': True}}
    source = write_source(tmp_path / 'source', 2, {'observation.images.tof': depth})
    augment(job_of(source, other_cameras='drop'), tmp_path / 'out', lambda: (Tint(), None))
    theirs, ours = open_dataset(source), open_dataset(tmp_path / 'out')
    key = 'observation.images.tof'
    assert ours.meta.features[key]['info']['is_depth_map']
    frames = np.arange(9)
    np.testing.assert_allclose(ours.depth(0, key, frames)[3], 0.53, atol=5e-3)
    np.testing.assert_array_equal(ours.depth(0, key, frames), theirs.depth(0, key, frames))


def test_a_colour_camera_may_be_called_depth(tmp_path):
    colour = {'observation.images.top_depth': FEATURES['observation.images.wrist']}
    source = write_source(tmp_path / 'source', 2, colour)
    augment(job_of(source), tmp_path / 'out', lambda: (Tint(), None))
    frames = open_dataset(tmp_path / 'out').read(1, camera='top_depth').frames
    assert np.abs(frames.astype(int) - 70).mean() < 5


def changed_info(source: Path, to: Path, change) -> Path:
    """A copy of a dataset whose features in meta/info.json `change` edits."""
    info = shutil.copytree(source, to) / 'meta/info.json'
    content = json.loads(info.read_text())
    change(content['features'])
    info.write_text(json.dumps(content))
    return to


def test_a_source_of_old_stays_one(source, tmp_path):
    def age(features):
        for camera in ('top', 'wrist'):
            feature = features[f'observation.images.{camera}']
            feature['video_info'] = feature.pop('info')

    old = changed_info(source, tmp_path / 'old', age)
    augment(job_of(old), tmp_path / 'out', lambda: (Tint(), None))
    theirs, ours = read(old), read(tmp_path / 'out')
    assert features_equal_for_merge(ours.meta.features, theirs.meta.features)
    merge_datasets([theirs, ours], 'merged', tmp_path / 'merged')
    assert len(read(tmp_path / 'merged')) == len(theirs) + len(ours)


@pytest.mark.parametrize(
    ('cameras', 'name', 'value', 'told', 'calls'),
    [
        (['wrist'], 'video.codec', 'hevc', 'coded differently', 0),
        (['top', 'wrist'], 'video.codec', 'vp9', 'cannot be written: Invalid vcodec', 0),
        (['top'], 'video.height', 50, 'video.height of the source is 50, the encoder here makes 48', 1),
    ],
)
def test_videos_that_cannot_be_written_as_in_the_source_end_the_job_at_once(
    source, tmp_path, cameras, name, value, told, calls
):
    def change(features):
        for camera in cameras:
            features[f'observation.images.{camera}']['info'][name] = value

    method = Tint()
    job = job_of(changed_info(source, tmp_path / 'other', change))
    with pytest.raises(IncompatibleDataset, match=told):
        augment(job, tmp_path / 'out', lambda: (method, None))
    assert method.calls == calls


@pytest.mark.parametrize(
    ('drop', 'told'),
    [
        ('timestamp', 'timestamp cannot be dropped: every LeRobot dataset has it'),
        ('reward*', r'has no reward\*; it has observation.images.top'),
        ('*', 'observation.images.top, observation.images.wrist cannot be dropped: it is generated'),
    ],
)
def test_what_cannot_be_dropped_is_told(source, tmp_path, drop, told):
    with pytest.raises(ValueError, match=told):
        augment(job_of(source, drop=(drop,)), tmp_path / 'out', lambda: pytest.fail('made'))


def test_columns_that_lerobot_cannot_join_are_told_before_anything_is_made(tmp_path):
    others = {'observation.state': {'dtype': 'float32', 'shape': (1, 3), 'names': None}}
    source = write_source(tmp_path / 'source', 2, others)
    with pytest.raises(ValueError, match=r'columns of several dimensions, such as observation\.state; drop'):
        augment(job_of(source), tmp_path / 'out', lambda: pytest.fail('made'))


def test_another_kind_of_source_gives_what_import_would_write(tmp_path):
    write_trajectory(tmp_path / 'bridge', images=9, masks=True)
    augment(Job(str(tmp_path / 'bridge')), tmp_path / 'out', lambda: (Tint(), None))
    copy_episodes(open_dataset(tmp_path / 'bridge'), tmp_path / 'imported')
    ours, imported = read(tmp_path / 'out'), read(tmp_path / 'imported')
    assert features_equal_for_merge(ours.meta.features, imported.meta.features)
    np.testing.assert_array_equal(ours.hf_dataset['action'], imported.hf_dataset['action'])


def test_features_are_dropped_from_another_kind_of_source_too(tmp_path):
    write_trajectory(tmp_path / 'bridge', images=9, masks=True)
    augment(Job(str(tmp_path / 'bridge'), drop=('annotation.*',)), tmp_path / 'out', lambda: (Tint(), None))
    features = read(tmp_path / 'out').meta.features
    assert not any(key.startswith('annotation') for key in features)
    assert {'action', 'observation.images.images0', 'timestamp'} <= set(features)


def test_a_damaged_first_episode_does_not_end_the_job(tmp_path):
    for number in range(2):
        folder = write_trajectory(tmp_path / 'bridge', f'traj{number}', images=9, masks=True)
        if not number:
            (folder / 'obs_dict.pkl').write_bytes(b'')
    report = augment(Job(str(tmp_path / 'bridge')), tmp_path / 'out', lambda: (Tint(), None))
    assert report.complete
    assert (report.counts['generated'], report.counts['failed']) == (1, 1)
    assert 'traj0' in report.failed[0]


def test_new_motion_of_a_source_with_a_damaged_first_episode_and_types_of_its_own(tmp_path):
    others = {
        'observation.state': {'dtype': 'float64', 'shape': (3,), 'names': None},
        'action': {'dtype': 'int64', 'shape': (2,), 'names': None},
    }
    source = write_source(tmp_path / 'source', 2, others)
    (path,) = source.glob('data/**/*.parquet')
    rows = pq.read_table(path)
    texts = ['torn' if not row['episode_index'] else row['annotation.masks.top'] for row in rows.to_pylist()]
    at = rows.schema.get_field_index('annotation.masks.top')
    pq.write_table(rows.set_column(at, 'annotation.masks.top', pa.array(texts)), path)

    class Half(Tint):
        def __call__(self, views, seed):
            made = super().__call__(views, seed)
            return {
                name: replace(clip, actions=np.float32([[0.6, -0.6]] * 10)) for name, clip in made.items()
            }

    job = job_of(source, mode='new_motion', other_cameras='drop', drop=('next.*',))
    report = augment(job, tmp_path / 'out', lambda: (Half(), None))
    assert report.counts['generated'] == report.counts['failed'] == 1
    assert 'not a mask code' in report.failed[0]
    theirs, ours = open_dataset(source), open_dataset(tmp_path / 'out')
    assert (ours.read(0).actions == [1, -1]).all()
    np.testing.assert_allclose(ours.read(0).states, theirs.read(1, camera='wrist').states, rtol=1e-6)
    types = [table(tmp_path / 'out').schema.field(key).type.value_type for key in others]
    assert types == ['double', 'int64']


def test_statistics_are_those_of_all_frames(made):
    dataset = read(made.out)
    for key in ('action', 'observation.state', 'timestamp', 'index'):
        values = np.array(dataset.hf_dataset.with_format(None)[key][:]).reshape(len(dataset), -1)
        stats = dataset.meta.stats[key]
        for name, want in {
            'min': values.min(0),
            'max': values.max(0),
            'mean': values.mean(0),
            'std': values.std(0),
            'q01': np.quantile(values, 0.01, 0),
            'q90': np.quantile(values, 0.9, 0),
            'count': [len(dataset)],
        }.items():
            np.testing.assert_allclose(stats[name], want, rtol=1e-6, err_msg=f'{key} {name}')
    frames = open_dataset(made.out)
    pixels = np.concatenate([frames.read(i, camera='wrist').frames.reshape(-1, 3) for i in range(8)]) / 255
    stats = dataset.meta.stats['observation.images.wrist']
    np.testing.assert_allclose(np.ravel(stats['mean']), pixels.mean(0), atol=0.01)
    np.testing.assert_allclose(np.ravel(stats['std']), pixels.std(0), atol=0.01)
    np.testing.assert_allclose(np.ravel(stats['q50']), np.quantile(pixels, 0.5, 0), atol=0.02)


def assert_own_statistics(out):
    dataset, ours = read(out), table(out)
    episodes = pa.concat_tables(pq.read_table(path) for path in out.glob('meta/episodes/**/*.parquet'))
    frames = open_dataset(out)
    for index in range(dataset.meta.total_episodes):
        rows = ours.filter(pa.compute.equal(ours['episode_index'], index))
        for key in ('action', 'index', 'episode_index', 'task_index'):
            have = np.ravel(episodes[f'stats/{key}/mean'][index].as_py())
            values = np.array(rows[key].to_pylist(), float).reshape(len(rows), -1)
            np.testing.assert_allclose(have, values.mean(axis=0), rtol=1e-5, err_msg=key)
        pixels = frames.read(index, camera='top').frames.mean(axis=(0, 1, 2)) / 255
        have = np.ravel(episodes['stats/observation.images.top/mean'][index].as_py())
        np.testing.assert_allclose(have, pixels, atol=0.02)


def test_each_episode_has_its_own_statistics(made):
    assert_own_statistics(made.out)


def test_parts_that_are_joined_in_rounds_keep_their_statistics(source, tmp_path, monkeypatch):
    monkeypatch.setattr(output, 'JOINED_AT_ONCE', 2)
    assert augment(job_of(source, variants=2), tmp_path / 'out', lambda: (Tint(), None)).complete
    assert_own_statistics(tmp_path / 'out')


def test_a_frame_weighs_as_much_as_one_of_the_source_when_statistics_are_merged(source, made):
    for key in ('observation.images.top', 'action'):
        per_frame = [
            float(np.ravel(data.meta.stats[key]['count'])[0]) / len(data)
            for data in (read(source), read(made.out))
        ]
        assert per_frame[0] == pytest.approx(per_frame[1])


def test_a_grouped_split_never_parts_a_demonstration_from_its_variants(made, tmp_path):
    sides = grouped_split(made.out, 0.5)
    assert sides == {'train': [0, 1, 2, 3, 4, 5], 'val': [6, 7]}
    halves = split_dataset(read(made.out), sides, output_dir=tmp_path)
    assert {name: half.meta.total_episodes for name, half in halves.items()} == {'train': 6, 'val': 2}
    assert grouped_split(made.out, 0.1) == sides  # rounded up to one group of each task


def test_variants_of_variants_are_of_the_first_demonstrations_group(source, made, tmp_path):
    job = job_of(made.out, drop=('next.*',))
    assert augment(job, tmp_path / 'again', lambda: (Tint(), None)).complete
    groups = ['source/0'] * 3 + ['source/1'] * 3 + ['source/2', 'source/3']
    assert [record['split_group'] for record in records(tmp_path / 'again')] == groups
    order, held_out, _ = plan(open_dataset(made.out), replace(job, hold_out=0.5))
    assert held_out == {6, 7}
    assert {episode for episode, _ in order} == set(range(6))
    merge_datasets([read(source), read(made.out)], 'merged', tmp_path / 'merged')
    merged = open_dataset(tmp_path / 'merged')
    assert [merged.split_group(index) for index in (3, 4)] == ['', 'source/0']
    with pytest.raises(ValueError, match='--hold-out: nobody knows which demonstration episode 0 shows'):
        plan(merged, replace(job, hold_out=0.5))


def test_the_group_is_known_where_lerobot_dropped_its_column(tmp_path):
    write_trajectory(tmp_path / 'bridge', images=9, masks=True)
    job = Job(str(tmp_path / 'bridge'), variants=2)
    augment(job, tmp_path / 'out', lambda: (Tint(), None))
    delete_episodes(read(tmp_path / 'out'), [0], output_dir=tmp_path / 'less')
    assert open_dataset(tmp_path / 'less').split_group(0) == 'bridge/0'


def test_a_split_leaves_something_to_train_on(made):
    assert grouped_split(made.out, 0.99)['train'] == [0, 1, 2, 3, 4, 5]
    assert last_groups(['a', 'a', 'b'], ['1', '2', '3'], 0.9) == {'2'}
    for fraction in (0, 1, -0.1, float('nan')):
        with pytest.raises(ValueError, match='fraction: expected a number between 0 and 1'):
            grouped_split(made.out, fraction)


def test_a_split_of_episodes_without_group_is_refused(source):
    with pytest.raises(ValueError, match='no split_group; augment with --include-source'):
        grouped_split(source, 0.5)


@pytest.fixture(scope='module')
def repeated(source, tmp_path_factory):
    """The output with each recorded episode thrice, and one camera and one column less."""
    out = tmp_path_factory.mktemp('repeated') / 'out'
    job = job_of(source, variants=2, include_source=3, other_cameras='drop', drop=('next.*',))
    assert augment(job, out, lambda: (Tint(), None)).complete
    return SimpleNamespace(out=out, job=job)


def test_recorded_episodes_are_there_as_often_as_asked_for(source, repeated):
    order = [(record['source_episode'], record['variant']) for record in records(repeated.out)]
    assert order == [(episode, variant) for episode in range(4) for variant in (0, 0, 0, 1, 2)]
    account = json.loads((repeated.out / SIDECAR).read_text())
    assert account['counts'] == {
        'generated': 8, 'recorded': 12, 'rejected': 0, 'failed': 0, 'frames': 5 * 42
    }  # fmt: skip
    assert 'Each recorded episode is there 3 times.' in (repeated.out / 'README.md').read_text()
    theirs, ours, dataset = open_dataset(source), open_dataset(repeated.out), read(repeated.out)
    assert dataset.meta.episodes['split_group'] == [f'source/{i}' for i in range(4) for _ in range(5)]
    for index in (5, 6, 7):
        assert dataset.meta.episodes['augmentation/mode'][index] == 'recorded'
        have, want = ours.read(index), theirs.read(1, camera='top')
        np.testing.assert_array_equal(have.actions, want.actions)
        assert np.abs(have.frames.astype(int) - want.frames).mean() < 2
    assert_own_statistics(repeated.out)
    actions = np.array(dataset.hf_dataset.with_format(None)['action'][:])
    np.testing.assert_allclose(dataset.meta.stats['action']['mean'], actions.mean(0), rtol=1e-5)


def test_a_split_keeps_repeated_episodes_together(repeated, tmp_path):
    sides = grouped_split(repeated.out, 0.5)
    assert sides == {'train': list(range(10)), 'val': list(range(10, 20))}
    halves = split_dataset(read(repeated.out), sides, output_dir=tmp_path)
    assert [halves[side].meta.total_episodes for side in ('train', 'val')] == [10, 10]
    pixels = [open_dataset(root).read(i).frames for root, i in ((repeated.out, 12), (tmp_path / 'val', 2))]
    np.testing.assert_array_equal(*pixels)


def test_held_out_episodes_are_there_once(source, repeated, tmp_path):
    job = replace(repeated.job, hold_out=0.5)
    augment(job, tmp_path / 'out', lambda: (Tint(), None))
    assert [record['source_episode'] for record in records(tmp_path / 'out')][-3:] == [1, 2, 3]
    account = json.loads((tmp_path / 'out' / SIDECAR).read_text())
    assert account['safe_eval_split'] == 0.1666  # one of six of each task
    assert '3 times, held-out ones once.' in (tmp_path / 'out/README.md').read_text()


def test_another_number_of_repetitions_is_another_job(source, repeated):
    with pytest.raises(ValueError, match='differs in include_source: 3 there, 2 now'):
        augment(replace(repeated.job, include_source=2), repeated.out, lambda: pytest.fail('made'))
    with pytest.raises(ValueError, match='include_source: expected at least 0, got -1'):
        replace(repeated.job, include_source=-1)


@pytest.mark.parametrize(
    ('options', 'times'), [([], 0), (['--include-source'], 1), (['--include-source', '20'], 20)]
)
def test_the_source_is_included_once_or_so_many_times(options, times):
    assert build_parser().parse_args(['augment', 'source', 'out', *options]).include_source == times


def test_lerobot_train_trains_and_evaluates_on_it(made, tmp_path):
    told = train_act(made.out, tmp_path / 'run', 0.25, steps=2, batch_size=2)
    assert '6 train, 2 eval' in told
    assert np.isfinite(float(re.search(r'step:2 .* loss:([\d.naif]+)', told)[1]))
    assert np.isfinite(float(re.search(r'eval_loss=([\d.naif]+)', told)[1]))


def test_lerobot_edit_dataset_splits_it_as_the_card_says(made, tmp_path, capsys):
    card = (made.out / 'README.md').read_text()
    (code,) = re.findall(r'python -c "(.*)"', card)
    exec(code.replace('FOLDER', str(made.out)).replace('0.1', '0.5'))
    splits = capsys.readouterr().out.strip()
    (options,) = re.findall(r'lerobot-edit-dataset (.*)"{...}"', card)
    folders = ['--repo_id=out', f'--root={made.out}', f'--new_root={tmp_path}']
    lerobot('edit_dataset', *folders, *f'{options}{splits}'.split(' ', 1))
    pixels = [open_dataset(root).read(0, camera='top').frames for root in (made.out, tmp_path / 'train')]
    np.testing.assert_array_equal(*pixels)
    assert [len(open_dataset(tmp_path / side)) for side in ('train', 'val')] == [6, 2]


def test_lerobots_own_eval_split_sees_held_out_episodes_alone(made):
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.datasets.factory import make_train_eval_datasets
    from lerobot.policies.act.configuration_act import ACTConfig

    fraction = json.loads((made.out / SIDECAR).read_text())['safe_eval_split']
    assert fraction == 0.25
    assert f'Up to {fraction}' in (made.out / 'README.md').read_text()
    data = DatasetConfig(repo_id='out', root=str(made.out), eval_split=fraction, video_backend='pyav')
    policy = ACTConfig(device='cpu', push_to_hub=False)
    train, held = make_train_eval_datasets(TrainPipelineConfig(dataset=data, policy=policy))
    assert sorted(held.episodes) == [6, 7]
    assert sorted(train.episodes) == [0, 1, 2, 3, 4, 5]


def test_no_eval_split_is_safe_without_held_out_episodes():
    assert safe_eval_split(['a', 'a', 'b'], [False, True, False]) == 0
    assert safe_eval_split(['a'] * 49, [False] * 46 + [True] * 3) == 0.0612
    for total in range(1, 120):  # 100 * 0.07 is more than 7
        for held in range(1, total):
            split = safe_eval_split(['a'] * total, [False] * (total - held) + [True] * held)
            assert math.ceil(total * split) <= held < total * (split + 2.1e-4)


def test_a_finished_job_is_done(made, source):
    before = hashes(made.out)
    report = augment(made.job, made.out, lambda: pytest.fail('made again'))
    assert (report.complete, report.counts) == (True, made.report.counts)
    assert hashes(made.out) == before


def test_another_command_on_the_same_folder_is_refused_with_what_differs(made, source, tmp_path):
    with pytest.raises(ValueError, match='another command, which differs in seed: 3 there, 4 now'):
        augment(replace(made.job, seed=4), made.out, build_tiny)
    with pytest.raises(ValueError, match='is there already, and no output'):
        augment(made.job, source.parent, build_tiny)
    with pytest.raises(ValueError, match='in the source, which is never written'):
        augment(made.job, source / 'new', build_tiny)


def test_a_command_that_made_nothing_does_not_bind_the_next(source, tmp_path):
    def missing():
        raise FileNotFoundError('no such model')

    with pytest.raises(FileNotFoundError):
        augment(job_of(source, seed=1), tmp_path / 'out', missing)
    assert augment(job_of(source, seed=2), tmp_path / 'out', lambda: (Tint(), None)).complete


def test_a_source_without_actions_is_made_and_told_of(source, tmp_path, capsys):
    augment(job_of(source, drop=('action',)), tmp_path / 'out', lambda: (Tint(), None))
    assert 'will have no actions' in capsys.readouterr().err
    assert 'There are no\n  actions; all other' in (tmp_path / 'out/README.md').read_text()


@pytest.mark.parametrize('error', [BadEpisode('torn'), ZeroDivisionError('torn')])
def test_a_poisoned_episode_is_reported_and_the_others_are_made(source, tmp_path, error):
    report = augment(job_of(source), tmp_path / 'out', lambda: (Tint(error, length=10), None))
    assert report.complete
    assert report.counts['generated'] == 3
    assert report.counts['failed'] == 1
    (reason,) = report.failed
    assert part_name(1, 1) in reason
    assert 'torn' in reason
    assert [record['source_episode'] for record in records(tmp_path / 'out')] == [0, 2, 3]


def test_what_the_machine_failed_in_is_made_by_the_same_command(source, tmp_path):
    full = OSError(errno.ENOSPC, 'No space left on device')
    report = augment(job_of(source), tmp_path / 'out', lambda: (Tint(full, length=10), None))
    assert not report.complete
    assert not (tmp_path / 'out').exists()
    again = Tint()
    assert augment(job_of(source), tmp_path / 'out', lambda: (again, None)).complete
    assert again.calls == 1
    assert [record['source_episode'] for record in records(tmp_path / 'out')] == [0, 1, 2, 3]


def test_a_full_disk_stops_the_job_soon(source, tmp_path):
    class Full(Tint):
        def __call__(self, views, seed):
            self.calls += 1
            raise OSError(errno.ENOSPC, 'No space left on device')

    method = Full()
    report = augment(job_of(source), tmp_path / 'out', lambda: (method, None))
    assert (report.complete, method.calls) == (False, 3)


@pytest.mark.parametrize('cause', [OSError(errno.ENOSPC, 'full'), OSError('Not enough disk space.')])
def test_what_a_full_disk_makes_look_damaged_is_not_given_up(source, tmp_path, cause):
    torn = BadEpisode('damaged')
    torn.__cause__ = cause
    report = augment(job_of(source), tmp_path / 'out', lambda: (Tint(torn, length=10), None))
    assert not report.complete
    assert 'No space left on device: damaged' in report.failed[0]


def run_on_a_growing_disk(source, disk, out):
    """For a process of its own, which may mount `disk`: the job, tried anew whenever the disk is larger."""
    stamps, told = {}, []
    for size in range(300, 6000, 300):
        subprocess.run(['mount', '-o', f'remount,size={size}k', disk], check=True)
        try:
            report = augment(job_of(source), f'{disk}/out', lambda: (Tint(), None))
        except OSError as error:
            told.append(str(error))
        else:
            if report.complete:
                break
            told += report.failed
        assert not Path(disk, 'out').exists()
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
        stamps = {path: path.stat().st_mtime_ns for path in Path(disk).glob('out.parts/episode_*/**/*.*')}
    shutil.copytree(f'{disk}/out', out)
    assert all('no space left on device' in reason.lower() for reason in told), told
    assert any('to join them' in reason for reason in told)


def test_a_really_full_disk_costs_nothing_that_is_finished(source, tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=100k tmpfs {disk}'
    alone = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c']
    if not shutil.which('unshare') or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip('no disk can be mounted here')
    paths = [str(path) for path in (source, disk, tmp_path / 'out')]
    code = f'from test_augment_job import run_on_a_growing_disk; run_on_a_growing_disk(*{paths})'
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [*alone, f'{mount} && "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert augment(job_of(source), tmp_path / 'whole', lambda: (Tint(), None)).complete
    assert_equal_runs(tmp_path / 'out', tmp_path / 'whole')


def test_an_episode_that_alone_takes_too_much_memory_does_not_hold_up_the_others(source, tmp_path):
    report = augment(job_of(source), tmp_path / 'out', lambda: (Tint(MemoryError(), length=10), None))
    assert report.complete
    assert (report.counts['generated'], report.counts['failed']) == (3, 1)
    (reason,) = report.failed
    assert f'{part_name(1, 1)}: out of memory, twice' in reason
    assert 'others could be made, so it is left out' in reason


@pytest.mark.parametrize(
    ('error', 'cause'),
    [
        (torch.AcceleratorError('CUDA error: an illegal memory access was encountered'), 'device'),
        (RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED'), 'device'),
        (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate'), 'memory'),
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), 'memory'),
        (OSError(errno.ENOMEM, 'Cannot allocate memory'), 'memory'),
        (OSError(errno.EIO, 'Input/output error'), 'system'),
        (RuntimeError('shapes do not fit'), 'episode'),
        (ValueError('no CUDA'), 'episode'),
    ],
)
def test_errors_of_the_machine_are_none_of_the_episode(error, cause):
    outcome = failed(error, 0, 1)
    assert (outcome.cause, outcome.passing) == (cause, cause != 'episode')


def test_after_an_error_of_the_gpu_the_job_stops_and_can_be_continued(source, tmp_path):
    class Broken(Tint):
        def __call__(self, views, seed):
            made = super().__call__(views, seed)
            if self.calls > 2:
                raise torch.AcceleratorError('CUDA error: unspecified launch failure')
            return made

    method = Broken()
    job = job_of(source, variants=2)
    report = augment(job, tmp_path / 'out', lambda: (method, None))
    assert (report.complete, method.calls, report.counts['generated']) == (False, 5, 2)
    again = Tint()
    assert augment(job, tmp_path / 'out', lambda: (again, None)).complete
    assert again.calls == 6


def test_measuring_is_tried_again_where_memory_runs_out(source, tmp_path):
    calls = []

    def measure(views, made, others):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return {'mean': 1.0}

    report = augment(job_of(source), tmp_path / 'out', lambda: (Tint(), measure), Darkest())
    assert (report.complete, report.counts['generated'], len(calls)) == (True, 4, 5)


def test_out_of_memory_is_tried_with_half_the_batch_and_then_named(source, tmp_path):
    class Hungry(Tint):
        def __call__(self, views, seed):
            if self.batch_size > self.length:
                raise MemoryError
            return super().__call__(views, seed)

    assert augment(job_of(source), tmp_path / 'some', lambda: (Hungry(length=4), None)).complete
    report = augment(job_of(source), tmp_path / 'none', lambda: (Hungry(length=-1), None))
    assert not report.complete
    assert 'out of memory, twice, with an episode of 1 x (9, 48, 64, 3) pixels' in report.failed[0]


@dataclass(frozen=True)
class Darkest:
    """A gate: the mean of the frames."""

    mean: float = 0.0

    def failures(self, values):
        return ['mean'] if values['mean'] < self.mean else []


def test_rejected_episodes_are_counted_by_gate_and_not_made_again(source, tmp_path):
    seen = []

    def measure(views, made, others):
        seen.append(float(made['top'].frames.mean()))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return {'mean': seen[-1]}

    gate = Darkest(60)
    job = job_of(source, variants=2)
    with pytest.raises(KeyboardInterrupt):
        augment(job, tmp_path / 'out', lambda: (Tint(), measure), gate)
    report = augment(job, tmp_path / 'out', lambda: (Tint(), measure), gate)
    assert len(seen) == 9  # one of eight twice
    dark = sum(value < 60 for value in seen[:5] + seen[6:])
    assert 0 < dark < 8
    assert report.counts['rejected'] == report.dropped_by_gate['mean'] == dark
    assert all(record['gates']['mean'] >= 60 for record in records(tmp_path / 'out'))
    assert f'| mean | 60 | {dark} |' in (tmp_path / 'out/README.md').read_text()


def test_gates_see_what_was_kept_of_the_earlier_variants(source, tmp_path):
    seen = []

    def measure(views, made, others):
        seen.append([other['top'].frames.mean().round() for other in others])
        return {'mean': float('nan') if len(others) else float(made['top'].frames.mean())}

    augment(job_of(source, variants=3), tmp_path / 'out', lambda: (Tint(), measure))
    assert [len(others) for others in seen[:3]] == [0, 1, 2]
    assert seen[2][:1] == seen[1]
    assert [record['gates']['mean'] for record in records(tmp_path / 'out')][1:3] == [None, None]


def test_of_earlier_variants_gates_keep_what_they_compare_with(source, tmp_path):
    class Small:
        def __call__(self, views, made, others):
            assert all(other == {'top': 7} for other in others)
            return {'others': float(len(others))}

        def reduced(self, views):
            return dict.fromkeys(views, 7)

    augment(job_of(source, variants=3), tmp_path / 'out', lambda: (Tint(), Small()))
    assert [record['gates']['others'] for record in records(tmp_path / 'out')][:3] == [0, 1, 2]


def test_nothing_kept_is_an_error_that_says_why(source, tmp_path):
    with pytest.raises(RuntimeError, match=r"no episode was kept; dropped by gate: \{'mean': 4\}"):
        augment(
            job_of(source), tmp_path / 'out', lambda: (Tint(), lambda *_, others: {'mean': 0.0}), Darkest(9)
        )


def test_thresholds_without_anything_measured_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match='expected something that measures'):
        augment(job_of(source), tmp_path / 'out', lambda: (Tint(), None), Darkest())


@pytest.fixture
def segmenter(tmp_path):
    """Folder of a real segmenter, untrained."""
    torch.manual_seed(0)
    network = Segmenter((48, 64), block_out_channels=(8, 8), norm_num_groups=2)
    network.save_pretrained(tmp_path / 'segmenter')
    return tmp_path / 'segmenter'


def test_the_command_measures_and_knows_what_measures_wherever_it_lies(source, segmenter, tmp_path, capsys):
    command = ['augment', str(source), str(tmp_path / 'out'), '--other-cameras', 'drop', '--variants', '2']
    command += ['--device', 'cpu', '--drop', 'annotation.*', '--gates', 'near_duplicate=3']
    gates = ('actor_iou', 'actor_centroid', 'object_permanence', 'look_drift', 'sharpness')
    command += [f'{gate}=off' for gate in gates]
    assert main([*command, '--segmenter', str(segmenter)]) == 0
    assert not any('annotation' in key for key in read(tmp_path / 'out').meta.features)
    for record in records(tmp_path / 'out'):
        measured = {gate for gate, value in record['gates'].items() if value is not None}
        assert measured == {*gates, 'near_duplicate'}
        assert record['gates']['actor_iou'] < 0.7  # it was never trained
        assert record['segmenter']['name'] == 'segmenter'
    assert max(record['variant'] for record in records(tmp_path / 'out')) == 2
    assert str(tmp_path) not in (tmp_path / 'out/README.md').read_text().replace(str(source), '')
    shutil.move(segmenter, tmp_path / 'moved')
    assert main([*command, '--segmenter', str(tmp_path / 'moved')]) == 0  # is done
    Segmenter((48, 64), block_out_channels=(8, 8), norm_num_groups=2).save_pretrained(segmenter)
    capsys.readouterr()
    assert main([*command, '--segmenter', str(segmenter)]) == 1
    assert 'differs in method.segmenter.weights' in capsys.readouterr().err


def test_inverse_dynamics_of_other_cameras_is_refused_before_anything_is_made(source, segmenter, tmp_path):
    network = InverseDynamicsModel(('front',), (48, 64), 10.0)
    gates = Gates(Segmenter.from_pretrained(segmenter), InverseDynamics(network))
    method = Tint()
    with pytest.raises(ValueError, match=r"expected cameras \('front',\), got \('top',\)"):
        augment(job_of(source), tmp_path / 'out', lambda: (method, gates))
    assert method.calls == 0


@pytest.mark.parametrize(
    ('gate', 'told'),
    [
        ('cycle_error=1', 'cycle_error: needs --inverse-dynamics'),
        ('seam_jump=2', 'seam_jump: only what a model'),
    ],
)
def test_a_gate_of_what_is_not_measured_is_refused(source, segmenter, tmp_path, capsys, gate, told):
    command = ['augment', str(source), str(tmp_path / 'out'), '--segmenter', str(segmenter), '--gates', gate]
    assert main(command) == 1
    assert told in capsys.readouterr().err


def test_another_contract_at_the_same_path_is_another_source(tmp_path):
    pytest.importorskip('rosbags')
    from test_rosbag import CONTRACT, messages, write_recording

    write_recording(tmp_path / 'bags/one', messages())
    contract = tmp_path / 'contract.yaml'
    for fps in (10, 5):
        contract.write_text(json.dumps({**CONTRACT, 'fps': fps}))
        job = Job(str(tmp_path / 'bags'), options={'contract': str(contract)})
        if fps == 10:
            assert augment(job, tmp_path / 'out', lambda: (Tint(), None)).complete
            continue
        with pytest.raises(ValueError, match=r'differs in options\.contract: '):
            augment(job, tmp_path / 'out', lambda: (Tint(), None))


def test_cameras_that_are_not_generated_need_a_word(source, tmp_path):
    with pytest.raises(ValueError, match='wrist would not be generated; say --other-cameras keep'):
        augment(Job(str(source)), tmp_path / 'out', build_tiny)
    augment(job_of(source, other_cameras='drop'), tmp_path / 'out', lambda: (Tint(), None))
    assert 'observation.images.wrist' not in read(tmp_path / 'out').meta.features
    with pytest.raises(ValueError, match='would show another motion'):
        job_of(source, mode='new_motion')


def test_new_motion_does_not_invent_columns(source, tmp_path):
    job = job_of(source, mode='new_motion', other_cameras='drop')
    with pytest.raises(ValueError, match=r'what next.done would be in a generated episode is unknown'):
        augment(job, tmp_path / 'out', lambda: (Tint(), None))
    augment(replace(job, drop=('next.*',)), tmp_path / 'out', lambda: (Tint(), None))
    features = set(FEATURES) - {'next.done', 'observation.images.wrist'}
    assert {key for key in read(tmp_path / 'out').meta.features if '.' in key or key == 'action'} == features


def run_job(source, out):
    """For a process of its own: the job of `made`."""
    job = job_of(source, variants=2, include_source=True, hold_out=0.5, seed=3, method={'weights': 'abc'})
    augment(job, out, build_tiny)


def test_a_killed_job_goes_on_and_ends_as_if_nothing_had_been(source, made, tmp_path):
    code = f'from test_augment_job import run_job; run_job({str(source)!r}, {str(tmp_path / "out")!r})'
    process = start_python(code)
    parts = tmp_path / 'out.parts'
    while len(finished := list(parts.glob('episode_*'))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stamps = {path: path.stat().st_mtime_ns for path in finished}
    assert not (tmp_path / 'out').exists()
    job = made.job
    report = augment(job, tmp_path / 'out', functools.partial(_touching_nothing, stamps))
    assert report.complete
    assert_equal_runs(tmp_path / 'out', made.out)


def _touching_nothing(stamps):
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    return build_tiny()


@dataclass
class Poisoned(Tint):
    """Takes its process with it at some source episode, each time; tells which processes generate."""

    log: Path = Path()

    def __call__(self, views, seed):
        with open(self.log, 'a') as log:
            log.write(f'{os.getpid()}\n')
        if len(next(iter(views.values()))) == self.length:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(views, seed)


def poisoned(log, length):
    return Poisoned(log=Path(log), length=length), None


def run_poisoned(source, out, log, length):
    """For a process of its own."""
    augment(job_of(source), out, functools.partial(poisoned, log, length))


def start_python(code: str) -> subprocess.Popen:
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL, env=environment)


def test_an_episode_that_kills_its_process_is_left_out(source, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, 'RETRIES', 1)
    log, out = tmp_path / 'log', tmp_path / 'out'
    paths = [str(path) for path in (source, out, log)]
    process = start_python(f'from test_augment_job import run_poisoned; run_poisoned(*{paths}, 9)')
    assert process.wait(300) == -signal.SIGKILL
    assert log.read_text() == f'{process.pid}\n'
    report = augment(job_of(source), out, functools.partial(poisoned, log, 9))
    assert report.complete
    (reason,) = report.failed
    assert reason == (
        f'{part_name(0, 1)}: its worker died 2 times: exit status -9; others could be made, so it is left out'
    )
    first, second, *others = (int(pid) for pid in log.read_text().split()[1:])
    assert len({os.getpid(), process.pid, first, second, *others}) == 5
    augment(job_of(source), tmp_path / 'here', lambda: (Tint(BadEpisode('torn'), length=9), None))
    assert_equal_runs(out, tmp_path / 'here')


@pytest.mark.parametrize('made_by_the_killed', [1, 0])
def test_only_a_killed_run_that_finished_nothing_makes_the_next_one_cautious(
    source, tmp_path, monkeypatch, made_by_the_killed
):
    monkeypatch.setattr(executors, 'RETRIES', 0)
    with pytest.raises(KeyboardInterrupt):
        augment(job_of(source), tmp_path / 'out', lambda: (Tint(KeyboardInterrupt(), length=12), None))
    running = tmp_path / 'out.parts' / executors.RUNNING
    assert not running.exists()
    running.write_text(str(3 - made_by_the_killed))
    if made_by_the_killed:
        assert augment(job_of(source), tmp_path / 'out', lambda: (Tint(), None)).complete
    else:  # also if no other episode is left to be made
        report = augment(job_of(source), tmp_path / 'out', functools.partial(poisoned, tmp_path / 'log', 12))
        assert (report.complete, report.counts['generated'], report.counts['failed']) == (True, 3, 1)


class Waiting(Tint):
    """Tells its process, and never ends."""

    def __call__(self, views, seed):
        Path(os.environ['WAITING']).write_text(f'{os.getpid()}\n')
        time.sleep(600)


def build_waiting():
    return Waiting(), None


def is_running(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1].split()[0] != 'Z'
    except OSError:
        return False


def test_a_child_ends_with_a_killed_job(source, tmp_path, monkeypatch):
    monkeypatch.setenv('WAITING', str(tmp_path / 'pid'))
    (tmp_path / 'out.parts').mkdir()
    (tmp_path / 'out.parts/job.json').write_text('{"source_content": null}')
    (tmp_path / 'out.parts' / executors.RUNNING).write_text('0')
    code = (
        'from test_augment_job import augment, build_waiting, job_of; '
        f'augment(job_of({str(source)!r}), {str(tmp_path / "out")!r}, build_waiting)'
    )
    process, text = start_python(code), ''
    while not text.endswith('\n'):
        assert process.poll() is None
        time.sleep(0.02)
        text = (tmp_path / 'pid').read_text() if (tmp_path / 'pid').exists() else ''
    assert is_running(int(text))
    assert int(text) != process.pid
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while is_running(int(text)):
        assert time.monotonic() < end
        time.sleep(0.02)


@dataclass
class Dying(Tint):
    """Takes its process with it, once."""

    flag: Path = Path()

    def __call__(self, views, seed):
        if not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(views, seed)


def run_on_ray(source, out, flag):
    """For a process of its own: Ray changes how tensors are pickled in the one that it is started from."""
    method = Dying(flag=Path(flag))
    assert augment(job_of(source), out, lambda: (method, None), executor='ray', workers=1).complete


@pytest.mark.parametrize(
    ('gpus', 'workers', 'gpu', 'count', 'share'),
    [
        (2, None, True, 2, 1),
        (1, 4, True, 4, 0.25),
        (0, None, True, 8, 0),
        (2, None, False, 8, 0),
        (2, 3, False, 3, 0),
        (2, 3, True, 3, 0.5),  # two thirds of one would leave the third worker without
        (16, None, True, 8, 1),
    ],
)
def test_on_ray_workers_ask_for_a_gpu_only_if_they_have_work_for_one(gpus, workers, gpu, count, share):
    assert shares({'CPU': 8.0, 'GPU': float(gpus)}, workers, gpu) == (count, share)


def test_more_workers_than_cpus_are_refused_for_ray_would_wait_for_ever():
    with pytest.raises(ValueError, match='expected at most 2, one for each CPU of the cluster, got 4'):
        shares({'CPU': 2.0}, 4, gpu=False)


@pytest.mark.parametrize(
    ('options', 'wanted'),
    [
        ([], False),
        (['--segmenter', 'folder'], True),
        (['--segmenter', 'folder', '--device', 'cpu'], False),
        (['--keep', 'background'], True),
        (['--mode', 'new-motion'], True),
    ],
)
def test_repainting_alone_is_no_work_for_a_gpu(options, wanted):
    assert uses_gpu(build_parser().parse_args(['augment', 'source', 'out', *options])) == wanted


@pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='Ray is not installed')
def test_ray_makes_the_same_although_a_worker_dies(source, tmp_path):
    augment(job_of(source), tmp_path / 'local', lambda: (Tint(), None))
    paths = [str(path) for path in (source, tmp_path / 'ray', tmp_path / 'flag')]
    code = f'from test_augment_job import run_on_ray; run_on_ray(*{paths})'
    # Ray's own niceness is 15, which on a busy machine is never.
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'RAY_worker_niceness': '0'}
    subprocess.run([sys.executable, '-c', code], env=environment, check=True, timeout=300)
    assert (tmp_path / 'flag').exists()
    assert_equal_runs(tmp_path / 'ray', tmp_path / 'local')


def test_the_command_makes_a_dataset_and_its_exit_status_tells_failures(source, tmp_path, capsys):
    model = build_tiny_model(tmp_path / 'model')
    command = ['augment', str(source), str(tmp_path / 'out'), '--model', str(model), '--variants', '1']
    command += ['--keep', 'background']
    assert main([*command, '--device', 'cpu', '--other-cameras', 'keep']) == 1  # nothing measures
    command.append('--ungated')
    assert main([*command, '--other-cameras', 'keep', '--device', 'cpu', '--license', 'mit']) == 0
    assert 'episodes 4 generated, 0 recorded, 0 rejected, 0 failed' in capsys.readouterr().out
    assert (tmp_path / 'out/README.md').read_text().startswith('---\nlicense: mit\n')
    assert records(tmp_path / 'out')[0]['weights']
    assert main([*command, '--device', 'cpu']) == 1  # without the other cameras' word
    assert 'differs in' in capsys.readouterr().err


def test_repainting_is_the_default_and_needs_no_model(source, tmp_path, capsys):
    command = [
        'augment',
        str(source),
        str(tmp_path / 'out'),
        '--variants',
        '1',
        '--ungated',
        '--device',
        'cpu',
    ]
    command += ['--other-cameras', 'keep']
    for option, value in (('--model', str(tmp_path / 'none')), ('--steps', '3')):
        assert main([*command, option, value]) == 1
        assert f'{option}: no model draws; say --keep background' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert main(command) == 0
    record = records(tmp_path / 'out')[0]
    assert (record['keep'], record['model'], record['weights']) == ('everything', None, None)
    assert record['looks']['object'] == Looks().object
    card = (tmp_path / 'out/README.md').read_text()
    assert 'each recorded frame is repainted by its masks, no model draws. Actions' in card
    assert 'None' not in card


def test_what_the_command_builds_can_be_sent_to_another_process(source, segmenter):
    args = build_parser().parse_args(['augment', str(source), 'out', '--segmenter', str(segmenter)])
    method, gates = pickle.loads(pickle.dumps(functools.partial(build_method, args)))()
    assert (method.mode, gates.segmenter.training) == ('same_motion', False)


def test_new_motions_refuse_what_changes_looks(source, tmp_path, capsys):
    command = ['augment', str(source), str(tmp_path / 'out'), '--ungated', '--mode', 'new-motion']
    assert main([*command, '--keep', 'background', '--change', 'light']) == 1
    assert '--keep, --change: new motions have no new looks' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (['--ungated', '--goal-shift', '0.5'], '--goal-shift: the motion stays as recorded'),
        (['--ungated', '--gates', 'sharpness=1'], '--gates: nothing is measured without --segmenter'),
        (['--ungated', '--inverse-dynamics', 'x'], '--inverse-dynamics: nothing is measured'),
        (['--segmenter', 'none'], '--segmenter: expected a folder with config.json'),
        (['--segmenter', 'none', '--ungated'], '--ungated: with --segmenter, what fails a gate is left out'),
        (['--ungated', '--variants', '0'], 'variants: expected at least 1, got 0'),
        (['--ungated', '--seed', '-1'], 'seed: expected at least 0, got -1'),
        (['--ungated', '--include-source', '-1'], 'include_source: expected at least 0, got -1'),
        (
            ['--ungated', '--mode', 'new-motion', '--texts', 'push', '--goal-shift', '0.5'],
            '--goal-shift: new texts have no goal that could be moved',
        ),
        (['--ungated', '--workers', '2'], '--workers: one process does it all'),
        (['--ungated', '--executor', 'ray', '--workers', '0'], '--workers: expected at least 1, got 0'),
        (['--ungated', '--pictures', 'top=a.png', '--change', 'light'], '--change: given first frames'),
        (['--ungated', '--pictures', 'top=a.png', '--keep', 'everything'], '--keep: given first frames'),
        (
            ['--ungated', '--mode', 'new-motion', '--inverse-dynamics', 'x', '--goal-shift', 'nan'],
            '--goal-shift: expected a number, got nan',
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    source, tmp_path, capsys, options, told
):
    assert main(['augment', str(source), str(tmp_path / 'out'), *options]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
