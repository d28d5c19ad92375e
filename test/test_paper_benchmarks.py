"""The paper's benchmarks: what each rule drops, which frames a clip has, and the same clips each time."""

import functools
import json
import os
import shutil

import numpy as np
import pytest
from dataset_fixtures import (
    hand_and_object,
    number_of,
    trajectory_mask,
    write_picture,
    write_sequence,
    write_trajectory,
)

from mask2iv_ros.data.episodes import UnknownLayout
from mask2iv_ros.data.paper_benchmarks import (
    BRIDGE_RULES,
    HOI4D_RULES,
    BenchmarkReader,
    load_manifest,
    object_noun,
    prepare_bridge,
    prepare_hoi4d,
)
from mask2iv_ros.labels import ACTOR, OBJECT


def clips_of(manifest):
    return [clip for split in manifest['splits'].values() for clip in split]


def sequence_name(category=2, instance=1, task=1):
    return f'ZY20210800001/H1/C{category}/N{instance:02d}/S52/s02/T{task}'


def prepared(tmp_path, *events, name=None, **options):
    """The clips and the drop counts of one sequence with these (name, first frame, end frame) events."""
    seconds = [(event, first / 15, end / 15) for event, first, end in events]
    write_sequence(tmp_path / 'data', name or sequence_name(), events=seconds, **options)
    manifest = prepare_hoi4d(tmp_path / 'data', tmp_path / 'out')
    return clips_of(manifest), {rule: count for rule, count in manifest['dropped'].items() if count}


def test_a_clip_is_16_frames_spread_over_its_event(tmp_path):
    clips, _ = prepared(tmp_path, ('Pickup', 20, 60))
    assert clips == [
        {
            'source': sequence_name(),
            'event': 'Pickup',
            'object': 'Mug',
            'frames': np.round(np.linspace(20, 59, 16)).astype(int).tolist(),
            'caption': 'a hand picking up a mug',
        }
    ]


@pytest.mark.parametrize(
    ('first', 'end', 'frames'),
    [
        (30, 41, None),
        (30, 42, range(30, 46)),
        (30, 45, range(30, 46)),
        (30, 46, range(30, 46)),
        (286, 300, range(284, 300)),
    ],
)
def test_events_below_12_frames_are_dropped_and_below_16_extended(tmp_path, first, end, frames):
    clips, dropped = prepared(tmp_path, ('open', first, end))
    assert [clip['frames'] for clip in clips] == ([] if frames is None else [list(frames)])
    assert dropped == ({'min_frames': 1} if frames is None else {})


def test_a_reachout_is_part_of_the_grasp_after_it_and_nothing_alone(tmp_path):
    clips, dropped = prepared(tmp_path, ('Reachout', 0, 40), ('Grasp', 40, 60), ('Reachout', 60, 90))
    assert [(clip['frames'][0], clip['frames'][-1]) for clip in clips] == [(0, 59)]
    assert dropped == {'dropped_events': 1}


def test_actions_and_objects_of_the_paper_s_list_are_dropped(tmp_path):
    names = ['rest', 'Stop', 'carry', 'go', 'Press', 'dump', 'cut', 'paper-cut', 'Lookaround', 'Pickup']
    clips, dropped = prepared(tmp_path, *((name, 30 * i, 30 * i + 30) for i, name in enumerate(names)))
    assert [clip['event'] for clip in clips] == ['Pickup']
    assert dropped == {'dropped_events': 8, 'uncaptioned_events': 1}
    for category in (4, 6, 17, 18):
        clips, dropped = prepared(
            tmp_path / str(category), ('open', 0, 30), name=sequence_name(category), frames=[]
        )
        assert (clips, dropped) == ([], {'dropped_objects': 1})


def drawn(hand=True, thing=True, left=False):
    def draw(t):
        indices = hand_and_object(t)
        indices[(indices == 2) & (not hand)] = 0
        indices[(indices == 1) & (not thing)] = 0
        indices[-2:, :5] = 6 if left else 0
        return indices

    return draw


@pytest.mark.parametrize(
    ('indices', 'rule'),
    [
        (None, 'masks'),
        (lambda t: drawn()(t) * (t != 45), 'empty_frame'),
        (drawn(hand=False), 'hand_visible'),
        (drawn(thing=False), 'object_visible'),
        (lambda t: np.where(drawn()(t) == 1, 3, drawn()(t)), 'object_visible'),  # water: not the mug
    ],
)
def test_clips_whose_masks_show_no_interaction_are_dropped(tmp_path, indices, rule):
    clips, dropped = prepared(tmp_path, ('Pickup', 30, 46), indices=indices)
    assert (clips, dropped) == ([], {rule: 1})


def test_a_hand_in_one_frame_is_enough(tmp_path):
    clips, dropped = prepared(tmp_path, ('Pickup', 30, 46), indices=lambda t: drawn(hand=t == 33)(t))
    assert (len(clips), dropped) == (1, {})


def test_two_hands_are_said_where_the_left_one_shows(tmp_path):
    clips, _ = prepared(
        tmp_path, ('Pickup', 30, 46), ('putdown', 46, 62), indices=lambda t: drawn(left=t == 50)(t)
    )
    assert [clip['caption'] for clip in clips] == ['a hand picking up a mug', 'two hands putting down a mug']


def test_the_twentieth_part_with_least_motion_of_hand_and_object_is_dropped(tmp_path):
    def draw(t, task):
        event, moving, still = t // 16, hand_and_object(t), hand_and_object(0)
        if task == 0 or event not in (1, 2, 3):
            return moving
        hand = still if event in (2, 3) else moving
        thing = still if event in (1, 3) else moving
        return np.where(hand == 2, 2, np.where(thing == 1, 1, 0))

    events = [('Pickup', 16 * i / 15, (16 * i + 16) / 15) for i in range(10)]
    for task in (0, 1):
        name = sequence_name(task=task)
        write_sequence(tmp_path / 'data', name, events=events, indices=functools.partial(draw, task=task))
    manifest = prepare_hoi4d(tmp_path / 'data', tmp_path / 'out')
    assert manifest['dropped']['low_motion'] == int(0.05 * 20) == 1
    kept = [(int(clip['source'][-1]), clip['frames'][0] // 16) for clip in clips_of(manifest)]
    assert kept == [(task, event) for task in (0, 1) for event in range(10) if (task, event) != (1, 3)]


def test_no_object_is_in_two_splits_and_splits_are_stable(tmp_path):
    def split_of(root):
        manifest = prepare_hoi4d(root, tmp_path / 'out')
        return {clip['source']: split for split, clips in manifest['splits'].items() for clip in clips}

    data = tmp_path / 'data'
    first = data / sequence_name(2, 0, 1)
    write_sequence(data, sequence_name(2, 0, 1), events=[('Pickup', 0, 16 / 15)])
    names = [sequence_name(2, instance, task) for instance in range(30) for task in (1, 2)]
    for name in names[1:]:
        shutil.copytree(first, data / name, copy_function=os.link)
    splits = split_of(data)
    assert len(splits) == 57  # all move alike, so the first of them are the 5 % with least motion
    assert set(splits.values()) == {'train', 'val', 'test'}
    assert len({(name.split('/')[3], split) for name, split in splits.items()}) == 29
    shutil.rmtree(data / names[40])
    fewer = split_of(data)
    assert len(fewer) == 57
    assert all(splits.get(name, split) == split for name, split in fewer.items())


def test_damaged_videos_are_listed_and_the_others_kept(tmp_path):
    for task in (1, 2, 3):
        write_sequence(tmp_path / 'data', sequence_name(task=task), events=[('Pickup', 0, 2)])
    (tmp_path / 'data' / sequence_name(task=1) / 'action/color.json').write_text('{')
    (tmp_path / 'data' / sequence_name(task=2) / '2Dseg/shift_mask/00000.png').unlink()
    manifest = prepare_hoi4d(tmp_path / 'data', tmp_path / 'out')
    assert [clip['source'] for clip in clips_of(manifest)] == [sequence_name(task=3)]
    assert [entry['source'][: len(sequence_name())] for entry in manifest['skipped']] == [
        sequence_name(task=1),
        sequence_name(task=2),
    ]
    assert '00000.png: missing' in manifest['skipped'][1]['error']


def test_manifests_tell_each_rule_and_account_for_each_event(tmp_path):
    write_sequence(tmp_path / 'hoi4d', events=[('rest', 0, 2), ('Pickup', 2, 4), ('Grasp', 4, 4.2)])
    write_trajectory(tmp_path / 'bridge', masks=True)
    write_trajectory(tmp_path / 'bridge', 'traj1', images=3, masks=True)
    for prepare, name, rules in (
        (prepare_hoi4d, 'hoi4d', HOI4D_RULES),
        (prepare_bridge, 'bridge', BRIDGE_RULES),
    ):
        returned = prepare(tmp_path / name, tmp_path / 'out' / name)
        text = (tmp_path / 'out' / name / 'manifest.json').read_text()
        manifest = json.loads(text)
        assert manifest == returned == load_manifest(tmp_path / 'out' / name)
        assert set(manifest['rules']) == set(rules)
        assert all(
            rule['from'] in ('paper', 'released code', 'this project') for rule in manifest['rules'].values()
        )
        assert set(manifest['dropped']) <= set(rules)
        assert manifest['found'] == sum(manifest['dropped'].values()) + sum(manifest['kept'].values()) > 0
        prepare(tmp_path / name, tmp_path / 'out' / name)
        assert (tmp_path / 'out' / name / 'manifest.json').read_text() == text


# --- BridgeData V2


def bridge_prepared(tmp_path, **options):
    write_trajectory(tmp_path / 'data', **options)
    manifest = prepare_bridge(tmp_path / 'data', tmp_path / 'out')
    return clips_of(manifest), {rule: count for rule, count in manifest['dropped'].items() if count}


def test_a_bridge_clip_is_16_frames_of_all_images(tmp_path):
    clips, _ = bridge_prepared(tmp_path, images=40, masks=True)
    assert clips == [
        {
            'source': 'toykitchen1/put_pot/00/2022-01-01_00-00-00/raw/traj_group0/traj0',
            'object': 'silver pot',
            'confidence': 0.9,
            'frames': np.round(np.linspace(0, 39, 16)).astype(int).tolist(),
            'caption': 'a robot gripper put the silver pot on the stove',
        }
    ]


@pytest.mark.parametrize(
    ('options', 'rule'),
    [
        ({'images': 50}, None),
        ({'images': 51}, 'max_images'),
        ({'images': 16}, None),
        ({'images': 15}, 'min_images'),
        ({'lang': None}, 'instruction'),
        ({'lang': 'put the pot down\nconfidence: 0.4'}, None),
        ({'lang': 'put the pot down\nconfidence: 0.39'}, 'min_confidence'),
        ({'lang': 'put the pot down'}, 'min_confidence'),
        ({'lang': 'kitchen\nconfidence: 1'}, 'object'),
        ({'masks': False}, 'masks'),
    ],
)
def test_each_rule_for_bridge_drops_what_it_says(tmp_path, options, rule):
    clips, dropped = bridge_prepared(tmp_path, **{'masks': True, **options})
    assert (len(clips), dropped) == ((0, {rule: 1}) if rule else (1, {}))


@pytest.mark.parametrize('grey', [128, 255])
def test_bridge_masks_without_robot_or_object_are_dropped(tmp_path, grey):
    folder = write_trajectory(tmp_path / 'data', masks=True)
    for t in range(20):
        mask = trajectory_mask(t)
        write_picture(folder / f'masks/mask_{t}.png', np.where(mask == grey, 0, mask).astype(np.uint8))
    assert prepare_bridge(tmp_path / 'data', tmp_path / 'out')['dropped'] == {'masks': 1}


def test_bridge_masks_may_lie_elsewhere_and_damage_is_listed(tmp_path):
    for name in ('traj0', 'traj1'):
        write_trajectory(tmp_path / 'data', name, masks=True)
    shutil.copytree(tmp_path / 'data', tmp_path / 'masks')
    for path in (tmp_path / 'data').rglob('masks'):
        shutil.rmtree(path)
    next((tmp_path / 'data').rglob('traj1/images0/im_3.jpg')).unlink()
    manifest = prepare_bridge(tmp_path / 'data', tmp_path / 'out', masks=tmp_path / 'masks')
    assert [clip['source'][-5:] for clip in clips_of(manifest)] == ['traj0']
    assert 'im_3.jpg is missing' in manifest['skipped'][0]['error']
    clip = BenchmarkReader(tmp_path / 'out', 'train').read(0, [0])
    np.testing.assert_array_equal(clip.labels[0] == ACTOR, trajectory_mask(0) == 128)


def test_the_bridge_split_is_random_with_at_most_a_tenth_for_test(tmp_path):
    first = write_trajectory(tmp_path / 'data', images=16, masks=True)
    for number in range(1, 80):
        shutil.copytree(first, first.with_name(f'traj{number}'), copy_function=os.link)
    manifest = prepare_bridge(tmp_path / 'data', tmp_path / 'out')
    assert manifest['kept'] == {'train': 70, 'val': 2, 'test': 8}
    numbers = [int(clip['source'].rsplit('traj')[-1]) for clip in manifest['splits']['test']]
    assert numbers == sorted(numbers) != list(range(8))
    assert len({clip['source'] for clip in clips_of(manifest)}) == 80


@pytest.mark.parametrize(
    ('instruction', 'thing'),
    [
        ('Put the silver pot on the stove', 'silver pot'),
        ('pick up the blue cup and place it on the plate', 'blue cup'),
        ('move spoon to the left of the pot', 'spoon'),
        ('Moved the orange cloth slightly down', 'orange cloth'),
        ('fold the cloth from right to left', 'cloth'),
        ('take off the lid', 'lid'),
        ('The robot opens a microwave', 'microwave'),
        ('put it into the drawer, then close the drawer.', 'drawer'),
        ('sweep into pile', None),
        ('end effector reset', None),
    ],
)
def test_the_object_is_what_the_first_verb_acts_on(instruction, thing):
    assert object_noun(instruction) == thing


# --- reading a prepared benchmark


def test_a_prepared_hoi4d_clip_has_its_frames_labels_and_caption(tmp_path):
    write_sequence(tmp_path / 'data', events=[('Pickup', 2, 4)], video=True, archives=True)
    manifest = prepare_hoi4d(tmp_path / 'data', tmp_path / 'out')
    split = next(split for split, clips in manifest['splits'].items() if clips)
    reader = BenchmarkReader(tmp_path / 'out', split)
    assert [len(BenchmarkReader(tmp_path / 'out', other)) for other in ('train', 'val', 'test')].count(0) == 2
    clip = reader.read(0)
    frames = manifest['splits'][split][0]['frames']
    assert [number_of(frame) for frame in clip.frames] == frames
    for labels, t in zip(clip.labels, frames, strict=True):
        np.testing.assert_array_equal(labels == OBJECT, hand_and_object(t) == 1)
    assert clip.task == 'a hand picking up a mug'
    assert clip.fps == pytest.approx(15 * 15 / 29)
    assert clip.source['frame_times'] == pytest.approx([(frame - 30) / 15 for frame in frames])
    part = reader.read(0, [15, 0])
    assert [number_of(frame) for frame in part.frames] == [frames[15], frames[0]]
    assert part.source['frame_times'] == pytest.approx([29 / 15, 0])


def test_a_prepared_bridge_clip_needs_no_pickle(tmp_path):
    folder = write_trajectory(tmp_path / 'data', images=31, masks=True)
    (folder / 'policy_out.pkl').write_bytes(b'damaged')
    prepare_bridge(tmp_path / 'data', tmp_path / 'out')
    clip = BenchmarkReader(tmp_path / 'out', 'train').read(0)
    assert [number_of(frame) for frame in clip.frames] == list(range(0, 31, 2))
    np.testing.assert_array_equal(clip.labels[-1] == OBJECT, trajectory_mask(30) == 255)
    assert (clip.fps, clip.task) == (2.5, 'a robot gripper put the silver pot on the stove')


def test_a_benchmark_can_move_and_says_what_is_missing(tmp_path):
    write_trajectory(tmp_path / 'data', masks=True)
    prepare_bridge(tmp_path / 'data', tmp_path / 'out')
    (tmp_path / 'data').rename(tmp_path / 'moved')
    with pytest.raises(FileNotFoundError, match='say where with root'):
        BenchmarkReader(tmp_path / 'out', 'train')
    assert BenchmarkReader(tmp_path / 'out', 'train', root=tmp_path / 'moved').read(0).labels.any()
    with pytest.raises(ValueError, match=r"no split 'dev'; there are .*train"):
        BenchmarkReader(tmp_path / 'out', 'dev')
    with pytest.raises(UnknownLayout, match='prepare'):
        BenchmarkReader(tmp_path / 'moved', 'train')
    (tmp_path / 'out/manifest.json').write_text('{"format": 0}')
    with pytest.raises(UnknownLayout, match='prepare it again'):
        BenchmarkReader(tmp_path / 'out', 'train')
