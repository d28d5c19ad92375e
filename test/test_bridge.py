"""BridgeData V2: every image in its place with its action, label and instruction, and no pickle that runs."""

import contextlib
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from dataset_fixtures import (
    number_of,
    trajectory_mask,
    write_picture,
    write_trajectory,
    write_trajectory_masks,
)

from mask2iv_ros.data.bridge import BridgeReader
from mask2iv_ros.data.episodes import BadEpisode, UnknownLayout, read_clips
from mask2iv_ros.data.pickles import MAX_BYTES, RefusedPickle, read_pickle
from mask2iv_ros.labels import ACTOR, BACKGROUND, OBJECT


def test_images_are_in_numeric_order_and_rgb(tmp_path):
    write_trajectory(tmp_path, images=13)
    clip = BridgeReader(tmp_path).read(0)
    assert [number_of(frame) for frame in clip.frames] == list(range(12))
    red, green, blue = clip.frames[0, 16:].mean(axis=(0, 1))
    assert blue > 150 > green > 50 > red
    assert clip.fps == 5


@pytest.mark.parametrize('above', ['.', 'bridge_data_v2', 'raw/rss'])
def test_trajectories_are_found_at_any_depth(tmp_path, above):
    folder = write_trajectory(tmp_path / above, images=3)
    for root in (tmp_path, *[f for f in folder.parents if tmp_path in f.parents], folder):
        reader = BridgeReader(root)
        assert [(folder / '').samefile(root / reader.episode(i).name) for i in range(len(reader))] == [True]


def test_trajectories_are_in_numeric_order_without_lmdb(tmp_path):
    for name in ('traj10', 'traj2'):
        write_trajectory(tmp_path, name, images=3)
    write_trajectory(tmp_path, 'traj1', dated='toykitchen1/put_pot/00/lmdb_2022-01-01_00-00-00', images=3)
    reader = BridgeReader(tmp_path)
    assert [reader.episode(i).name[-6:].strip('/') for i in range(len(reader))] == ['traj2', 'traj10']


def test_a_folder_without_trajectories_is_refused(tmp_path):
    with pytest.raises(UnknownLayout, match='traj_group'):
        BridgeReader(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        BridgeReader(tmp_path / 'nowhere')


def test_cameras_are_those_with_as_many_images_as_the_first(tmp_path):
    folder = write_trajectory(tmp_path, images=5, cameras=12)
    (folder / 'images3/im_4.jpg').unlink()
    (folder / 'depth_images0').mkdir()
    (folder / 'images12').mkdir()
    reader = BridgeReader(tmp_path)
    assert reader.episode(0).cameras == tuple(f'images{i}' for i in range(12) if i != 3)
    blue = [reader.read(0, [1], camera).frames[0, 16:, :, 2].mean() for camera in ('images0', 'images2')]
    assert blue == pytest.approx([200, 80], abs=4)


@pytest.mark.parametrize('arrays', [False, True])
def test_each_frame_has_the_action_taken_after_it(tmp_path, arrays):
    write_trajectory(tmp_path, images=6, arrays=arrays)
    clip = BridgeReader(tmp_path).read(0)
    assert clip.actions[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert clip.states[:, 6].tolist() == [100, 101, 102, 103, 104]
    assert clip.actions.shape == clip.states.shape == (5, 7)
    assert clip.actions.dtype == np.float32
    part = BridgeReader(tmp_path).read(0, [4, 2])
    assert (part.actions[:, 0].tolist(), part.states[:, 0].tolist()) == ([4, 2], [104, 102])
    assert [number_of(frame) for frame in part.frames] == [4, 2]


def test_recordings_before_23_july_2021_lag_one_step(tmp_path):
    for dated, first in (('task/2021-07-22_23-59-59', 1), ('task/2021-07-23_00-00-00', 0)):
        write_trajectory(tmp_path / str(first), dated=dated, images=6, masks=True)
        clip = BridgeReader(tmp_path / str(first)).read(0)
        assert [number_of(frame) for frame in clip.frames] == list(range(first, 5))
        assert clip.states[:, 0].tolist() == [100 + t for t in range(first, 5)]
        assert clip.actions[:, 0].tolist() == [t - first for t in range(first, 5)]
        np.testing.assert_array_equal(clip.labels[0] == ACTOR, trajectory_mask(first) == 128)


def test_without_actions_all_images_are_kept(tmp_path):
    folder = write_trajectory(tmp_path, images=6)
    (folder / 'policy_out.pkl').unlink()
    clip = BridgeReader(tmp_path).read(0)
    assert len(clip) == 6
    assert clip.actions is None
    assert clip.states is None


@pytest.mark.parametrize(
    ('actions', 'message'),
    [
        ([np.zeros(7)] * 7, r'\(7, 7\).*\(5, N\)'),
        ([{'new': 1}] * 5, 'shape'),
        ([['x'] * 7] * 5, 'not rows'),
        ([], 'shape'),
        (3, 'shape'),
    ],
)
def test_actions_that_do_not_fit_are_a_bad_episode(tmp_path, actions, message):
    folder = write_trajectory(tmp_path, images=6)
    (folder / 'policy_out.pkl').write_bytes(pickle.dumps(actions))
    with pytest.raises(BadEpisode, match=message) as error:
        BridgeReader(tmp_path).read(0)
    assert 'policy_out.pkl' in str(error.value)


def test_damage_is_named_and_does_not_stop_the_others(tmp_path):
    for name in ('traj0', 'traj1', 'traj2', 'traj3', 'traj4'):
        folder = write_trajectory(tmp_path, name, images=5)
        if name == 'traj0':
            (folder / 'images0/im_2.jpg').unlink()
        if name == 'traj1':
            (folder / 'images0/im_2.jpg').write_bytes(b'')
        if name == 'traj2':
            for path in (folder / 'images0').iterdir():
                path.unlink()
        if name == 'traj3':
            (folder / 'obs_dict.pkl').write_bytes(pickle.dumps([1]))
    skipped = []
    clips = list(read_clips(BridgeReader(tmp_path), skipped=skipped))
    assert [clip.source['episode'][-5:] for clip in clips] == ['traj4']
    found = [str(error) for error in skipped]
    assert 'im_2.jpg is missing' in found[0]
    assert 'im_2.jpg: damaged' in found[1]
    assert 'no images' in found[2]
    assert 'full_state' in found[3]


@pytest.mark.parametrize(
    ('lang', 'task', 'confidence'),
    [
        ('Put the pot there\nconfidence: 0.25\n', 'Put the pot there', 0.25),
        ('first\nconfidence: 0.2\n\nsecond\nconfidence: 1\nthird\nconfidence: 1.0\n', 'second', 1.0),
        ('one\ntwo\nconfidence: 0.5\nthree\n', 'one', 0.5),
        ('confidence: ?\nno number\n', 'no number', None),
        (None, '', None),
        ('', '', None),
    ],
)
def test_the_surest_instruction_is_the_task(tmp_path, lang, task, confidence):
    write_trajectory(tmp_path, images=3, lang=lang)
    reader = BridgeReader(tmp_path)
    assert reader.episode(0).task == task
    assert reader.read(0).source.get('confidence') == confidence


def test_masks_lie_beside_the_images_or_under_a_folder_of_their_own(tmp_path):
    folder = write_trajectory(tmp_path / 'data', images=4, cameras=2)
    assert BridgeReader(tmp_path / 'data').episode(0).masked == ()
    assert BridgeReader(tmp_path / 'data').read(0).labels is None
    write_trajectory_masks(tmp_path / 'masks' / folder.relative_to(tmp_path / 'data') / 'masks', 4)
    reader = BridgeReader(tmp_path / 'data', tmp_path / 'masks')
    assert reader.episode(0).masked == ('images0',)
    labels = reader.read(0, [2]).labels[0]
    grey = trajectory_mask(2)
    for value, label in ((0, BACKGROUND), (128, ACTOR), (255, OBJECT)):
        np.testing.assert_array_equal(labels == label, grey == value)
    assert reader.read(0, camera='images1').labels is None


def test_bad_masks_are_named(tmp_path):
    folder = write_trajectory(tmp_path, images=4, masks=True)
    write_picture(folder / 'masks/mask_1.png', np.full((32, 32), 127, np.uint8))
    (folder / 'masks/mask_2.png').unlink()
    reader = BridgeReader(tmp_path)
    with pytest.raises(BadEpisode, match=r'mask_1.png: grey values \[127\]'):
        reader.read(0, [1])
    with pytest.raises(BadEpisode, match=r'mask_2\.png: missing'):
        reader.read(0, [2])
    assert reader.read(0, [0]).labels is not None


def test_a_trajectory_with_a_program_in_its_pickle_is_a_bad_episode(tmp_path):
    folder = write_trajectory(tmp_path, images=4)
    (folder / 'policy_out.pkl').write_bytes(pickle.dumps(Call(os.mkdir, str(tmp_path / 'ran'))))
    with pytest.raises(BadEpisode, match=r'posix\.mkdir'):
        BridgeReader(tmp_path).read(0)
    assert not (tmp_path / 'ran').exists()


# --- pickles


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def unpickle(tmp_path, data):
    path = tmp_path / 'data.pkl'
    path.write_bytes(data)
    return read_pickle(path)


PLAIN = {
    'numbers': [1, -(2**70), 1.5, True, None],
    'texts': ('a', b'bytes', b'', 'ü'),
    'tuple': ((), (1,), [[2]]),
    'arrays': [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype='>i2'),
        np.zeros((2, 0), np.uint8),
        np.array(7, np.int64),
        np.array([True, False]),
        np.float64(2.5),
        np.int32(-3),
        np.array([1 + 2j]),
    ],
}


@pytest.mark.parametrize('numpy_1', [False, True])
@pytest.mark.parametrize('protocol', range(6))
def test_plain_data_is_read_as_pickle_itself_does(tmp_path, protocol, numpy_1):
    data = pickle.dumps(PLAIN, protocol)
    if numpy_1 and protocol < 4:  # from protocol 4 on, names have their length in front
        assert b'numpy._core' in data
        data = data.replace(b'numpy._core', b'numpy.core')
    read = unpickle(tmp_path, data)
    arrays = read.pop('arrays')
    assert read == {key: value for key, value in PLAIN.items() if key != 'arrays'}
    for one, other in zip(arrays, PLAIN['arrays'], strict=True):
        np.testing.assert_array_equal(one, other)
        assert (np.shape(one), one.dtype) == (np.shape(other), other.dtype.newbyteorder('='))
    arrays[0][0] = 1  # writable


def test_pickles_of_python_2_are_read(tmp_path):
    data = (
        b"(lp0\n(dp1\nS'actions'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntS'b'\n"
        b"tRp5\n(I1\n(I2\ntcnumpy\ndtype\np6\n(S'f4'\nI0\nI1\ntRp7\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntbsa."
    )
    assert unpickle(tmp_path, data)[0]['actions'].tolist() == [1.0, -2.0]


def test_arrays_of_objects_become_lists_of_plain_data(tmp_path):
    array = np.empty(2, object)
    array[:] = [{'a': np.arange(2)}, 'text']
    read = unpickle(tmp_path, pickle.dumps(array))
    assert read[0]['a'].tolist() == [0, 1]
    assert read[1] == 'text'


@pytest.mark.parametrize(
    'call',
    [
        Call(os.mkdir, '{ran}'),
        Call(eval, "__import__('os').mkdir('{ran}')"),
        Call(getattr, 'x', 'upper'),
        Call(np.load, '{ran}'),
        Call(np.ndarray, (10,)),
        Call(np.empty, (10,)),
        Call(__import__, 'os'),
    ],
)
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_everything_else_is_refused_by_name_and_does_not_run(tmp_path, call, protocol):
    ran = tmp_path / 'ran'
    call = Call(call.function, *(a.format(ran=ran) if isinstance(a, str) else a for a in call.arguments))
    inside = [np.zeros(3), {'actions': call}]
    with pytest.raises(RefusedPickle, match=r'data\.pkl') as error:
        unpickle(tmp_path, pickle.dumps(inside, protocol))
    assert call.function is np.ndarray or call.function.__name__ in str(error.value)
    assert not ran.exists()


def array_pickle(
    dtype=b"S'f8'\n", state=b"(I3\nS'<'\nNNNI-1\nI-1\nI0\nt", shape=b'(I2\nt', data=b"S'12345678'\n"
):
    """Protocol 0 array with any dtype state, shape and data."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
        + shape + b'cnumpy\ndtype\n(' + dtype + b'I0\nI1\ntR' + state + b'bI00\n' + data + b'tb.'
    )  # fmt: skip


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (array_pickle(), r'\(2,\) float64 with 8 bytes'),
        (array_pickle(shape=b'(I1000000000000\nt'), '8 bytes'),
        (array_pickle(shape=b'(I-1\nt'), '8 bytes'),
        # bytes that would be taken for pointers to objects
        (array_pickle(dtype=b"S'O8'\n", shape=b'(I1\nt'), 'objects'),
        (array_pickle(state=b"(I3\nS'|'\nN(S'a'\nt(dI8\nI1\nI0\nt", shape=b'(I1\nt'), 'structured'),
        (array_pickle(dtype=b"S'V8'\n", shape=b'(I1\nt'), "'V8'"),
        (array_pickle(dtype=b"S'f8,O'\n", shape=b'(I1\nt'), 'f8,O'),
        (b'\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00', 'damaged pickle'),
        (b'', 'damaged pickle'),
        (b'not a pickle', 'damaged pickle'),
        # attributes of what the pickle may name stay as they are
        (b"cnumpy\ndtype\n(N(dS'__call__'\nNstb.", 'damaged pickle'),
        (b'cnumpy\ndtype\n.', 'where data was expected'),
        (b'(dcnumpy\ndtype\nNs.', 'as key'),
    ],
)
def test_forged_and_damaged_pickles_are_refused(tmp_path, data, reason):
    with pytest.raises(RefusedPickle, match=reason):
        unpickle(tmp_path, data)
    np.testing.assert_array_equal(unpickle(tmp_path, pickle.dumps(np.arange(3))), [0, 1, 2])


def test_small_pickles_cannot_grow_without_end(tmp_path):
    itself = []
    itself.append(itself)
    read = unpickle(tmp_path, pickle.dumps(itself))
    assert read[0] is read
    for kind in (list, tuple):
        laughs = kind(['ha'])
        for _ in range(60):
            laughs = kind([laughs, laughs])
        read = unpickle(tmp_path, pickle.dumps(laughs))
        assert read[0] is read[1]
    with pytest.raises(RefusedPickle, match='Recursion'):
        unpickle(tmp_path, b']' * 5000 + b'a' * 4999 + b'.')
    tracemalloc.start()
    unpickle(tmp_path, b']r' + struct.pack('<I', 1 << 26) + b'.')  # a memo index
    for opcode in (b'\x8e', b'\x96', b'\x8d'):  # the length of bytes, a bytearray, a text
        with contextlib.suppress(RefusedPickle):
            unpickle(tmp_path, b'\x80\x05' + opcode + struct.pack('<Q', 1 << 30) + b'abc.')
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    with open(tmp_path / 'large.pkl', 'wb') as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RefusedPickle, match='accepted'):
        read_pickle(tmp_path / 'large.pkl')
