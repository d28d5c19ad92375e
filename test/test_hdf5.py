"""HDF5 demonstrations: each layout's traps, and damage that is named and stays where it is."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip('h5py')

import h5py

from mask2iv_ros.data.episodes import BadEpisode, UnknownLayout, read_clips
from mask2iv_ros.data.hdf5 import open_hdf5

SIZE = (32, 48)
INTRINSICS = [[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]
POSE = [[1.0, 0, 0, 0.5], [0, -1.0, 0, 0.25], [0, 0, -1.0, 1.0], [0, 0, 0, 1.0]]


def pictures(length, seed=0):
    """(T, H, W, 3) uint8: red left, blue below, the rest tells frame and seed; no flip leaves it the same."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    red, blue = np.where(x < 12, 220, 30), np.where(y > 15, 200, 20)
    return np.stack(
        [np.stack((red, np.full_like(x, 10 * t + seed), blue), -1) for t in range(length)]
    ).astype(np.uint8)


def values(length, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (length, width))


def write(path, datasets, attrs=()):
    """Write {path in the file: array} and {path in the file: {attribute: value}}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'a') as file:
        for name, data in datasets.items():
            file[name] = data
        for name, group_attrs in dict(attrs).items():
            file.require_group(name).attrs.update(group_attrs)
    return path


def write_robomimic(path, lengths, env_kwargs=None, **obs):
    """As robomimic's dataset_states_to_obs.py: `lengths` of each demo; `obs` more observations a demo."""
    env_args = {'env_name': 'Lift', 'type': 1, 'env_kwargs': {'control_freq': 25, **(env_kwargs or {})}}
    data, attrs = {}, {'data': {'total': sum(lengths.values()), 'env_args': json.dumps(env_args, indent=4)}}
    for demo, length in lengths.items():
        seed = int(demo[5:])
        here = f'data/{demo}/'
        data[here + 'actions'] = values(length, 7, seed)
        data[here + 'states'] = values(length, 32, seed)
        data[here + 'rewards'] = data[here + 'dones'] = np.zeros(length)
        data[here + 'obs/agentview_image'] = pictures(length, seed)
        data[here + 'obs/a_eye_in_hand_image'] = pictures(length, seed + 5)
        data[here + 'obs/robot0_gripper_qpos'] = values(length, 2, seed + 1)
        data[here + 'obs/robot0_eef_quat'] = values(length, 4, seed + 2)
        data[here + 'obs/robot0_eef_pos'] = values(length, 3, seed + 3)
        data[here + 'obs/datagen_info/eef_pose'] = np.zeros((length, 4, 4))  # a group, from MimicGen
        data |= {f'{here}obs/{name}': array for name, array in obs.items()}
        attrs[f'data/{demo}'] = {'num_samples': length, 'model_file': '<mujoco/>'}
    return write(path, data, attrs)


def write_libero(path, lengths, images=lambda frames: frames[:, ::-1], **data_attrs):
    """As LIBERO's create_dataset.py; `images` turns upright pictures into stored ones."""
    data, attrs = {}, {'data': {'tag': 'libero-v1', 'num_demos': len(lengths), **data_attrs}}
    for demo, length in lengths.items():
        seed = int(demo[5:])
        here = f'data/{demo}/'
        data[here + 'actions'] = values(length, 7, seed)
        data[here + 'states'] = values(length, 79, seed)
        data[here + 'robot_states'] = values(length, 9, seed)
        data[here + 'obs/agentview_rgb'] = images(pictures(length, seed))
        data[here + 'obs/eye_in_hand_rgb'] = images(pictures(length, seed + 5))
        data[here + 'obs/agentview_depth'] = values(length, 1, seed).astype(np.float32)
        data[here + 'obs/ee_states'] = values(length, 6, seed + 1)
        data[here + 'obs/gripper_states'] = values(length, 2, seed + 2)
        data[here + 'obs/joint_states'] = values(length, 7, seed)
        attrs[f'data/{demo}'] = {'num_samples': str(length)}
    return write(path, data, attrs)


def write_aloha(path, length, compress=False, encode=None, **root_attrs):
    """As record_episodes.py of ALOHA; `encode` turns an RGB picture into bytes (None: as it does)."""
    cameras = ['cam_high', 'cam_low', 'cam_left_wrist', 'cam_right_wrist']
    number = int(path.stem.split('_')[-1])
    data = {
        'action': values(length, 14, number).astype(np.float32),
        'observations/qpos': values(length, 14, number + 1).astype(np.float32),
        'observations/qvel': values(length, 14).astype(np.float32),
        'observations/effort': values(length, 14).astype(np.float32),
    }
    for i, camera in enumerate(cameras):
        frames = pictures(length, number + i)
        if compress:
            encoded = [(encode or encode_as_act)(frame) for frame in frames]
            padded = np.zeros((length, max(map(len, encoded)) + 50), np.uint8)
            for row, code in zip(padded, encoded, strict=True):
                row[: len(code)] = code
            frames = padded
        data[f'observations/images/{camera}'] = frames
    if compress:
        data['compress_len'] = np.zeros((len(cameras), length), np.float32)  # never to be relied on
    return write(path, data, {'/': {'sim': False, 'compress': compress, **root_attrs}})


def encode_as_act(frame):
    """An RGB picture straight into OpenCV, which takes it for BGR."""
    return cv2.imencode('.jpg', frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()


def encode_properly(frame):
    return encode_as_act(frame[..., ::-1])


@pytest.fixture
def robomimic(tmp_path):
    return write_robomimic(tmp_path / 'image.hdf5', {'demo_0': 4, 'demo_10': 3, 'demo_2': 5})


def test_robomimic_demos_come_in_numeric_order_with_what_the_file_tells(robomimic):
    reader = open_hdf5(robomimic)
    assert len(reader) == 3
    assert [reader.episode(i).name for i in range(3)] == ['demo_0', 'demo_2', 'demo_10']
    episode = reader.episode(1)
    assert (episode.length, episode.fps, episode.task) == (5, 25.0, '')
    assert episode.cameras == ('agentview_image', 'a_eye_in_hand_image')
    clip = reader.read(1)
    np.testing.assert_array_equal(clip.frames, pictures(5, 2))
    np.testing.assert_array_equal(clip.actions, values(5, 7, 2).astype(np.float32))
    states = np.hstack([values(5, 3, 5), values(5, 4, 4), values(5, 2, 3)])
    np.testing.assert_array_equal(clip.states, states.astype(np.float32))
    assert clip.actions.dtype == clip.states.dtype == np.float32
    assert clip.labels is clip.depth is clip.camera is None
    assert clip.source['layout'] == 'robomimic'
    assert clip.source['environment'] == 'Lift'
    assert clip.source['gripper'] == '-1 opens, +1 closes'
    assert clip.source['state_keys'] == [
        'obs/robot0_eef_pos',
        'obs/robot0_eef_quat',
        'obs/robot0_gripper_qpos',
    ]
    json.dumps(clip.source)


def test_frames_come_in_the_order_asked_also_twice_and_from_any_camera(robomimic):
    reader = open_hdf5(robomimic)
    for frames in ([3, 0, 3, 1], [0, 2, 4], [4, 2, 0], [1, 1]):
        clip = reader.read(1, frames, 'a_eye_in_hand_image')
        np.testing.assert_array_equal(clip.frames, pictures(5, 7)[frames])
        np.testing.assert_array_equal(clip.actions, values(5, 7, 2).astype(np.float32)[frames])
        assert clip.source['frames'] == frames


def test_a_split_names_the_episodes(robomimic):
    with h5py.File(robomimic, 'a') as file:
        file['mask/train'] = np.array(['demo_10', 'demo_2'], dtype='S')
        file['mask/valid'] = ['demo_0', 'demo_7']  # variable-length strings
    train = open_hdf5(robomimic, split='train')
    assert [train.episode(i).name for i in range(len(train))] == ['demo_2', 'demo_10']
    skipped = []
    assert [
        clip.source['episode'] for clip in read_clips(open_hdf5(robomimic, 'valid'), skipped=skipped)
    ] == ['demo_0']
    assert 'demo_7' in str(skipped[0])
    with pytest.raises(ValueError, match=r"no split 'test'; there are \['train', 'valid'\]"):
        open_hdf5(robomimic, split='test')


def test_robomimic_task_is_the_episodes_own_or_the_environments(tmp_path):
    path = write_robomimic(tmp_path / 'a.hdf5', {'demo_0': 2, 'demo_1': 2}, {'env_lang': 'lift the cube'})
    with h5py.File(path, 'a') as file:
        file['data/demo_1'].attrs['ep_meta'] = json.dumps({'lang': 'Open the fridge drawer.'})
    reader = open_hdf5(path)
    assert [reader.episode(i).task for i in range(2)] == ['lift the cube', 'Open the fridge drawer.']


def test_depth_and_calibration_are_taken_where_the_file_tells_what_they_mean(tmp_path):
    depth = np.full((2, *SIZE, 1), 0.75, np.float32)
    depth[0, 0, 0] = np.inf
    more = {'agentview_depth': depth, 'robot0_agentview_left_image': pictures(2, 9)}
    path = write_robomimic(tmp_path / 'depth.hdf5', {'demo_0': 2, 'demo_1': 2}, **more)
    views = ('agentview', 'a_eye_in_hand', 'robot0_agentview_left')
    with h5py.File(path, 'a') as file:
        file['data/demo_0'].attrs['camera_info'] = json.dumps(
            {view: {'intrinsics': INTRINSICS, 'extrinsics': POSE} for view in views}, indent=4
        )
    reader = open_hdf5(path)
    assert set(reader.episode(0).cameras) == {f'{view}_image' for view in views}
    clip = reader.read(0, [1, 0])
    assert clip.depth.dtype == np.float32
    assert (clip.depth[1, 0, 0], clip.depth[1, 0, 1], clip.depth[0, 0, 0]) == (0, 0.75, 0.75)
    np.testing.assert_array_equal(clip.camera.intrinsics, INTRINSICS)
    np.testing.assert_array_equal(clip.camera.cam_to_world, POSE)
    for moving in ('a_eye_in_hand_image', 'robot0_agentview_left_image'):
        assert reader.read(0, camera=moving).camera.cam_to_world is None
    unknown_unit = reader.read(1)
    assert unknown_unit.depth is unknown_unit.camera is None


LIBERO_IMAGES = {
    'opengl': lambda frames: frames[:, ::-1],
    'opencv': lambda frames: frames,
    'rotated': lambda frames: frames[:, :, ::-1],
}


@pytest.mark.parametrize(
    ('stored', 'attrs', 'told'),
    [
        ('opengl', {'macros_image_convention': 'opengl'}, None),
        ('opengl', {'macros_image_convention': np.bytes_('opengl')}, None),
        ('opencv', {'macros_image_convention': 'opencv'}, None),
        ('opengl', {}, None),  # rendered again by OpenVLA's script, which writes no attributes
        ('rotated', {}, 'rotated'),
        ('opencv', {'macros_image_convention': 'opengl'}, 'upright'),
    ],
)
def test_libero_images_stand_upright_and_are_not_mirrored(tmp_path, stored, attrs, told):
    path = write_libero(
        tmp_path / 'turn_on_the_stove_demo.hdf5', {'demo_0': 3}, LIBERO_IMAGES[stored], **attrs
    )
    for camera, seed in (('agentview_rgb', 0), ('eye_in_hand_rgb', 5)):
        clip = open_hdf5(path, orientation=told).read(0, camera=camera)
        np.testing.assert_array_equal(clip.frames, pictures(3, seed))
        assert clip.frames.flags.c_contiguous


def test_libero_says_what_it_did_and_what_its_values_mean(tmp_path):
    env_args = json.dumps({'type': 1, 'env_name': 'Libero_Kitchen', 'env_kwargs': {'control_freq': 20}})
    path = write_libero(
        tmp_path / 'a_demo.hdf5', {'demo_0': 3}, macros_image_convention='opengl', env_args=env_args
    )
    clip = open_hdf5(path).read(0)
    assert clip.fps == 20
    assert clip.depth is None  # there is one, but in OpenGL's own unit
    np.testing.assert_array_equal(clip.actions, values(3, 7).astype(np.float32))  # no gripper sign turned
    states = np.hstack([values(3, 6, 1), values(3, 2, 2)])
    np.testing.assert_array_equal(clip.states, states.astype(np.float32))
    source = clip.source
    assert (source['layout'], source['stored_orientation']) == ('libero', 'opengl')
    assert source['gripper'] == '-1 opens, +1 closes'
    with h5py.File(path, 'a') as file:
        del file['data/demo_0/robot_states']
    assert open_hdf5(path).read(0).source['layout'] == 'libero'  # by its attributes


@pytest.mark.parametrize(
    ('problem_info', 'name', 'task'),
    [
        ({'language_instruction': 'turn on the stove'}, 'x_demo', 'turn on the stove'),
        ({'language_instruction': '"turn on the stove"'}, 'x_demo', 'turn on the stove'),
        ({'language_instruction': ['turn', 'on', 'the', 'stove']}, 'x_demo', 'turn on the stove'),
        ({'language_instruction': list('turn on it')}, 'x_demo', 'turn on it'),
        ({'language_instruction': ''}, 'turn_on_the_stove_demo', 'turn on the stove'),
        ({'problem_name': 'x'}, 'KITCHEN_SCENE10_close_the_top_drawer_demo', 'close the top drawer'),
        ({}, 'LIVING_ROOM_SCENE2_pick_up_the_milk_demo', 'pick up the milk'),
        ({}, 'my_file', ''),
    ],
)
def test_libero_task_is_read_from_the_file_or_its_name(tmp_path, problem_info, name, task):
    path = write_libero(tmp_path / f'{name}.hdf5', {'demo_0': 2}, problem_info=json.dumps(problem_info))
    assert open_hdf5(path).episode(0).task == task


def test_a_folder_of_task_files_is_one_dataset(tmp_path):
    for name, demos in (('b_demo', {'demo_10': 2, 'demo_9': 3}), ('a_demo', {'demo_0': 4})):
        write_libero(tmp_path / f'libero/libero_goal/{name}.hdf5', demos)
    (tmp_path / 'libero/libero_goal/._a_demo.hdf5').write_bytes(b'Mac OS X')
    reader = open_hdf5(tmp_path / 'libero')
    episodes = [reader.episode(i) for i in range(len(reader))]
    assert [episode.name for episode in episodes] == [
        'libero_goal/a_demo/demo_0', 'libero_goal/b_demo/demo_9', 'libero_goal/b_demo/demo_10'
    ]  # fmt: skip
    assert [episode.task for episode in episodes] == ['a', 'b', 'b']
    assert reader.read(1).source['dataset'] == 'libero'
    np.testing.assert_array_equal(reader.read(1).frames, pictures(3, 9))


def test_aloha_episodes_come_in_numeric_order(tmp_path):
    for number in (0, 2, 10):
        write_aloha(tmp_path / f'episode_{number}.hdf5', 3, sim=True)
    reader = open_hdf5(tmp_path)
    episodes = [reader.episode(i) for i in range(len(reader))]
    assert [episode.name for episode in episodes] == ['episode_0', 'episode_2', 'episode_10']
    assert episodes[0].cameras == ('cam_high', 'cam_low', 'cam_left_wrist', 'cam_right_wrist')
    assert (episodes[0].fps, episodes[0].task) == (50, '')
    clip = reader.read(1, camera='cam_low')
    np.testing.assert_array_equal(clip.frames, pictures(3, 3))
    np.testing.assert_array_equal(clip.actions, values(3, 14, 2).astype(np.float32))
    np.testing.assert_array_equal(clip.states, values(3, 14, 3).astype(np.float32))
    assert clip.source['sim'] is True
    assert open_hdf5(tmp_path / 'episode_10.hdf5').episode(0).name == 'episode_10'


@pytest.mark.parametrize(('encode', 'standard'), [(encode_as_act, False), (encode_properly, True)])
def test_jpeg_images_of_aloha_are_rgb(tmp_path, encode, standard):
    path = write_aloha(tmp_path / 'episode_0.hdf5', 4, compress=True, encode=encode)
    reader = open_hdf5(path, standard_jpeg=standard)
    assert reader.episode(0).length == 4
    clip = reader.read(0, [2, 0], 'cam_left_wrist')
    expected = pictures(4, 2)[[2, 0]]
    assert np.abs(clip.frames[:, 2:14, 15:30].astype(int) - expected[:, 2:14, 15:30]).max() < 12
    assert np.abs(clip.frames[:, 2:14, 2:8].astype(int) - expected[:, 2:14, 2:8]).max() < 12
    assert clip.source['sim'] is False
    with pytest.raises(ValueError, match='standard_jpeg is for ALOHA/ACT files'):
        open_hdf5(write_libero(tmp_path / 'wipe_demo.hdf5', {'demo_0': 2}), standard_jpeg=True)


def test_jpeg_rows_may_have_their_own_lengths(tmp_path):
    path = write_aloha(tmp_path / 'episode_0.hdf5', 3)
    with h5py.File(path, 'a') as file:
        del file['observations/images/cam_high']
        rows = file.create_dataset('observations/images/cam_high', (3,), h5py.vlen_dtype(np.uint8))
        for i, frame in enumerate(pictures(3)):
            rows[i] = encode_as_act(frame)
        depth = file.create_dataset('observations/images/cam_high_depth', (3,), h5py.vlen_dtype(np.uint8))
        depth[:] = [cv2.imencode('.png', np.zeros(SIZE, np.uint16))[1].ravel()] * 3
    reader = open_hdf5(path)
    assert 'cam_high_depth' not in reader.episode(0).cameras
    assert np.abs(reader.read(0).frames[:, 2:14, 2:8].astype(int) - pictures(3)[:, 2:14, 2:8]).max() < 12


def test_a_jpeg_that_ends_early_is_no_picture(tmp_path):
    noise = encode_as_act(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    path = write_aloha(tmp_path / 'episode_0.hdf5', 3, compress=True, encode=lambda frame: noise)
    with h5py.File(path, 'a') as file:
        file['observations/images/cam_high'][1, len(noise) * 9 // 10 :] = 0
    reader = open_hdf5(path)
    assert len(reader.read(0, [0, 2])) == 2
    with pytest.raises(BadEpisode, match=r'episode_0\.hdf5.*cam_high.*frame 1 is no complete JPEG'):
        reader.read(0)


def test_a_mobile_base_adds_to_the_actions_and_language_is_read_where_it_is(tmp_path):
    path = write_aloha(tmp_path / 'episode_0.hdf5', 3)
    base = values(3, 2, 7)
    write(path, {'base_action': base, 'language_raw': ['fold the shirt']})
    clip = open_hdf5(path).read(0)
    assert clip.actions.shape == (3, 16)
    np.testing.assert_array_equal(clip.actions[:, 14:], base.astype(np.float32))
    assert clip.task == 'fold the shirt'
    scalar = write_aloha(tmp_path / 'episode_1.hdf5', 3)
    write(scalar, {'language_raw': 'open the door'})
    assert open_hdf5(scalar).episode(0).task == 'open the door'


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


@pytest.mark.parametrize('writer', [write_aloha, lambda path, n: write_libero(path, {'demo_0': n})])
def test_a_damaged_file_does_not_block_the_others(tmp_path, writer):
    for number in range(4):
        writer(tmp_path / f'episode_{number}.hdf5', 2)
    truncate(tmp_path / 'episode_0.hdf5')
    (tmp_path / 'episode_2.hdf5').write_bytes(b'')
    write(tmp_path / 'episode_4.hdf5', {'features': np.zeros(3)})
    reader, skipped = open_hdf5(tmp_path), []
    clips = list(read_clips(reader, skipped=skipped))
    assert [clip.source['episode'].split('/')[0] for clip in clips] == ['episode_1', 'episode_3']
    assert ['episode_0' in str(skipped[0]), 'episode_2' in str(skipped[1])] == [True, True]
    assert len(skipped) == len(reader) - 2 == 3
    with pytest.raises(BadEpisode, match=r'episode_0\.hdf5.*damaged or incomplete.*truncated'):
        open_hdf5(tmp_path / 'episode_0.hdf5')


def test_only_the_frames_asked_are_read_and_a_damaged_one_is_named(tmp_path):
    path = write_robomimic(tmp_path / 'a.hdf5', {'demo_0': 6})
    with h5py.File(path, 'a') as file:
        name = 'data/demo_0/obs/agentview_image'
        del file[name]
        file.create_dataset(name, data=pictures(6), chunks=(1, *SIZE, 3), compression='gzip')
        chunk = file[name].id.get_chunk_info(3)
    with open(path, 'r+b') as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b'\0' * chunk.size)
    reader = open_hdf5(path)
    for frames in ([0, 1, 2], [5, 1], [5, 0, 1], [1]):
        np.testing.assert_array_equal(reader.read(0, frames).frames, pictures(6)[frames])
    with pytest.raises(BadEpisode, match=r'a\.hdf5: data/demo_0: .*agentview_image: frame 3 is damaged'):
        reader.read(0)


def test_wrong_contents_are_named(robomimic, tmp_path):
    with h5py.File(robomimic, 'a') as file:
        demo = file['data/demo_0']
        del demo['obs/agentview_image']
        demo['obs/agentview_image'] = pictures(3)
        file['data/demo_2/actions'][3, 1] = np.nan
        del file['data/demo_10/actions']
        file.create_group('data/demo_11')
        file['data/demo_11/actions'] = values(2, 7)
        file['data/demo_11/states'] = values(2, 32)
        file['data/demo_12/obs/agentview_image'] = pictures(1)[:0]
        file['data/demo_12/actions'] = values(0, 7)
    reader = open_hdf5(robomimic)
    expected = [
        r'demo_0: .*actions 4.*/data/demo_0/obs/agentview_image 3',
        'demo_2: frame 3: actions are not finite',
        "demo_10: .*'actions' doesn't exist",
        r'demo_11: no images .*dataset_states_to_obs.* found actions \(2, 7\), states \(2, 32\)',
        'demo_12: expected equally many rows, at least one',
    ]
    for index, message in enumerate(expected):
        with pytest.raises(BadEpisode, match=message):
            reader.read(index)
    with h5py.File(robomimic, 'a') as file:
        file['data'].attrs['env_args'] = 'null'
    with pytest.raises(BadEpisode, match=r"env_args of /data: expected a JSON object, got 'null'"):
        reader.episode(1)
    odd = write_libero(tmp_path / 'odd_demo.hdf5', {'demo_0': 2}, macros_image_convention='vulkan')
    with pytest.raises(BadEpisode, match='macros_image_convention: expected opengl or opencv'):
        open_hdf5(odd).read(0)


def test_an_unknown_layout_shows_what_is_there_and_what_is_known(tmp_path):
    path = write(tmp_path / 'maniskill.h5', {'traj_0/actions': values(2, 7), 'traj_0/obs/rgb': pictures(2)})
    with pytest.raises(UnknownLayout, match=r'traj_0/ \(actions, obs\).*robomimic.*LIBERO.*ALOHA'):
        open_hdf5(path)
    with pytest.raises(UnknownLayout, match='traj_0'):
        open_hdf5(tmp_path)
    other = write(tmp_path / 'other/table.hdf5', {'data': values(2, 2), 'observations': values(2, 2)})
    with pytest.raises(UnknownLayout, match=r'data \(2, 2\), observations \(2, 2\)'):
        open_hdf5(other)


def test_wrong_requests_are_named(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty/video.mp4').touch()
    with pytest.raises(FileNotFoundError, match='no such file or folder'):
        open_hdf5(tmp_path / 'nothing')
    with pytest.raises(UnknownLayout, match=r'expected \.hdf5 or \.h5 files, found video\.mp4'):
        open_hdf5(tmp_path / 'empty')
    (tmp_path / 'text.hdf5').write_text('no HDF5')
    with pytest.raises(BadEpisode, match='or no HDF5 file'):
        open_hdf5(tmp_path / 'text.hdf5')
    path = write_aloha(tmp_path / 'episode_0.hdf5', 2)
    with pytest.raises(ValueError, match=r"orientation: expected one of .*got 'sideways'"):
        open_hdf5(path, orientation='sideways')
    with pytest.raises(ValueError, match="split 'train': ALOHA/ACT files have no splits"):
        open_hdf5(path, split='train')


def test_h5py_is_not_needed_before_a_file_is_opened():
    code = 'import sys, mask2iv_ros.data.hdf5; sys.exit("h5py" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
