"""Promises of reading rosbag2 recordings: nothing from the future, nothing stale, masks of the very image."""

import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

rosbag2 = pytest.importorskip('rosbags.rosbag2')
from rosbags.typesys import Stores, get_typestore  # noqa: E402

from mask2iv_ros.cli import main  # noqa: E402
from mask2iv_ros.data.episodes import BadEpisode, open_dataset  # noqa: E402
from mask2iv_ros.data.rosbag import Contract  # noqa: E402

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
START = 1_700_000_000_000_000_000
HEIGHT, WIDTH = 36, 48
CONTRACT = {
    'fps': 10,
    'task': '/task',
    'cameras': {
        'front': {
            'image': '/image',
            'object_mask': '/object',
            'actor_mask': '/actor',
            'depth': '/depth',
            'camera_info': '/info',
        }
    },
    'states': ['/joints:position'],
    'actions': ['/command:data', '/gripper:point.x'],
}


def header(at: float):
    stamp = START + round(at * 1e9)
    time = TYPES['builtin_interfaces/msg/Time'](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return TYPES['std_msgs/msg/Header'](stamp=time, frame_id='camera')


def image(pixels: np.ndarray, encoding: str, at: float):
    return TYPES['sensor_msgs/msg/Image'](
        header=header(at),
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=0,
        step=pixels.nbytes // HEIGHT,
        data=np.ascontiguousarray(pixels).view(np.uint8).ravel(),
    )


def compressed(pixels: np.ndarray, kind: str, at: float):
    _, data = cv2.imencode(f'.{kind}', pixels)
    return TYPES['sensor_msgs/msg/CompressedImage'](header=header(at), format=f'bgr8; {kind}', data=data)


def numbers(values) -> object:
    layout = TYPES['std_msgs/msg/MultiArrayLayout'](dim=[], data_offset=0)
    return TYPES['std_msgs/msg/Float64MultiArray'](layout=layout, data=np.array(values, np.float64))


def joints(values, at: float):
    empty = np.zeros(0)
    return TYPES['sensor_msgs/msg/JointState'](
        header=header(at), name=[], position=np.array(values, np.float64), velocity=empty, effort=empty
    )


def mask(column: int) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[10:20, column : column + 8] = 255
    return pixels


def messages(seconds: float = 2.0) -> list[tuple[float, str, str, object]]:
    """(arrival, topic, type, message): images that count themselves, late masks, numbers that are times."""
    string = 'std_msgs/msg/String'
    found = [(0.0, '/task', string, TYPES[string](data='the task before'))]  # latched
    info = TYPES['sensor_msgs/msg/CameraInfo']
    roi = TYPES['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    k = np.array([50.0, 0, 24, 0, 50, 18, 0, 0, 1])
    calibration = info(header(0), HEIGHT, WIDTH, '', np.zeros(0), k, np.zeros(9), np.zeros(12), 0, 0, roi)
    found.append((0.0, '/info', 'sensor_msgs/msg/CameraInfo', calibration))
    found.append((0.005, '/task', string, TYPES[string](data='push the box')))
    point = TYPES['geometry_msgs/msg/PointStamped']
    for number in range(int(seconds * 20)):
        at = number / 20
        grey = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
        depth = np.full((HEIGHT, WIDTH), 500 + number, np.uint16)
        found += [
            (at + 0.01, '/image', 'sensor_msgs/msg/Image', image(grey, 'rgb8', at)),
            (at + 0.12, '/object', 'sensor_msgs/msg/Image', image(mask(number % 30), 'mono8', at)),
            (at + 0.12, '/actor', 'sensor_msgs/msg/Image', image(mask(0)[::-1], 'mono8', at)),
            (at + 0.02, '/depth', 'sensor_msgs/msg/Image', image(depth, '16UC1', at)),
            (at + 0.013, '/joints', 'sensor_msgs/msg/JointState', joints([at, -at], at)),
            (at + 0.03, '/command', 'std_msgs/msg/Float64MultiArray', numbers([at + 0.03])),
            (at + 0.03, '/gripper', 'geometry_msgs/msg/PointStamped',
             point(header(at), TYPES['geometry_msgs/msg/Point'](1.0, 2.0, 3.0))),
        ]  # fmt: skip
    return sorted(found, key=lambda entry: entry[0])


def write_recording(path: Path, entries: list, storage: str = 'SQLITE3') -> Path:
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin[storage]) as writer:
        connections = {}
        for at, topic, kind, message in entries:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            data = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic], START + round(at * 1e9), data)
    return path


def write_contract(folder: Path, **changes) -> Path:
    path = folder / 'contract.yaml'
    path.write_text(yaml.safe_dump({**CONTRACT, **changes}))
    return path


@pytest.mark.parametrize('storage', ['SQLITE3', 'MCAP'])
def test_a_frame_has_what_had_arrived_and_its_own_masks(tmp_path, storage):
    recording = write_recording(tmp_path / 'bag', messages(), storage)
    reader = open_dataset(recording, contract=write_contract(tmp_path))
    (episode,) = [reader.episode(i) for i in range(len(reader))]
    assert (episode.task, episode.fps, episode.masked) == ('push the box', 10.0, ('front',))
    clip = reader.read(0)
    assert len(clip) == episode.length == len(clip.source['frame_times'])
    begin = 0.03  # the command is the last to arrive first
    for t, frame in enumerate(clip.frames):
        now = begin + t / 10
        number = int(frame[0, 0, 0])
        assert now - 0.05 < number / 20 + 0.01 <= now + 1e-6
        assert clip.states[t] == pytest.approx([clip.states[t, 0], -clip.states[t, 0]])
        assert now - 0.05 < clip.states[t, 0] + 0.013 <= now + 1e-6
        assert now - 0.05 < clip.actions[t, 0] <= now + 1e-6
        assert clip.actions[t, 1] == 1.0
        expected = np.where(mask(number % 30) > 0, 1, 0)
        expected[mask(0)[::-1] > 0] = 2
        assert np.array_equal(clip.labels[t], expected)
        assert clip.depth[t, 0, 0] == pytest.approx((500 + number) / 1000)
    assert clip.camera.intrinsics[0, 0] == 50
    assert clip.source['frames_dropped'] == {}


def test_frames_without_news_or_masks_are_left_out_and_counted(tmp_path):
    entries = [
        entry
        for entry in messages(4.0)
        if not (entry[1] == '/joints' and 1.0 < entry[0] < 1.5)
        and not (entry[1] == '/object' and 2.1 < entry[0] < 2.3)
    ]
    recording = write_recording(tmp_path / 'bag', entries)
    reader = open_dataset(recording, contract=write_contract(tmp_path, max_dropped=0.3))
    clip = reader.read(0)
    dropped = clip.source['frames_dropped']
    assert set(dropped) == {'nothing new on /joints', 'no /object of the image'}
    whole = len(open_dataset(write_recording(tmp_path / 'whole', messages(4.0)),
                             contract=write_contract(tmp_path)).read(0))  # fmt: skip
    assert len(clip) + sum(dropped.values()) == whole
    gaps = np.diff(clip.source['frame_times'])
    assert gaps.max() > 0.25
    with pytest.raises(BadEpisode, match=r'nothing new on /joints \d times'):
        open_dataset(recording, contract=write_contract(tmp_path)).read(0)


def test_compressed_images_are_read_and_lossy_masks_refused(tmp_path):
    def change(kind_of_mask):
        for at, topic, kind, message in messages(1.0):
            if topic in ('/image', '/object', '/actor'):
                pixels = np.asarray(message.data).reshape(HEIGHT, WIDTH, -1)
                sent = 'jpeg' if topic == '/image' else kind_of_mask
                stamp = message.header.stamp.sec + message.header.stamp.nanosec / 1e9 - START / 1e9
                message, kind = compressed(pixels, sent, stamp), 'sensor_msgs/msg/CompressedImage'
            yield at, topic, kind, message

    contract = write_contract(tmp_path)
    clip = open_dataset(write_recording(tmp_path / 'png', list(change('png'))), contract=contract).read(0)
    plain = open_dataset(write_recording(tmp_path / 'plain', messages(1.0)), contract=contract).read(0)
    assert np.array_equal(clip.labels, plain.labels)
    assert np.abs(clip.frames.astype(int) - plain.frames).max() <= 2
    with pytest.raises(BadEpisode, match=r'/object: expected a mask without loss'):
        open_dataset(write_recording(tmp_path / 'jpeg', list(change('jpeg'))), contract=contract).read(0)


def recompressed(change) -> list:
    """Messages of a second, those of which `change(topic, pixels)` is a CompressedImage's (format, data)."""
    kind = 'sensor_msgs/msg/CompressedImage'
    found = []
    for at, topic, its_kind, message in messages(1.0):
        if its_kind == 'sensor_msgs/msg/Image' and (made := change(topic, message)):
            message, its_kind = TYPES[kind](header=message.header, format=made[0], data=made[1]), kind
        found.append((at, topic, its_kind, message))
    return found


def png(pixels: np.ndarray, header: bytes = b'') -> np.ndarray:
    return np.frombuffer(header + cv2.imencode('.png', pixels)[1].tobytes(), np.uint8)


def pixels_of(message) -> np.ndarray:
    dtype = np.uint16 if message.encoding == '16UC1' else np.uint8
    return np.asarray(message.data).view(dtype).reshape(HEIGHT, WIDTH, -1)


def test_compressed_masks_of_16_bits_keep_small_ids(tmp_path):
    def change(topic, message):
        if topic in ('/object', '/actor'):
            ids = (pixels_of(message) > 0).astype(np.uint16) * (1 if topic == '/object' else 255)
            return 'mono16; png compressed ', png(ids)

    contract = write_contract(tmp_path)
    clip = open_dataset(write_recording(tmp_path / 'ids', recompressed(change)), contract=contract).read(0)
    plain = open_dataset(write_recording(tmp_path / 'plain', messages(1.0)), contract=contract).read(0)
    assert np.array_equal(clip.labels, plain.labels)


@pytest.mark.parametrize(
    'form', ['16UC1; png compressed ', '16UC1; compressedDepth png', '32FC1; compressedDepth']
)
def test_compressed_depth_is_read(tmp_path, form):
    a, b = 20.0, -5.0

    def change(topic, message):
        if topic == '/depth':
            millimetres = pixels_of(message)[..., 0].copy()
            millimetres[0, 1] = 0  # unknown
            header = struct.pack('<iff', 0, a, b) if 'compressedDepth' in form else b''
            if form.startswith('32FC1'):
                known = millimetres > 0
                inverse = np.where(known, a / np.maximum(millimetres / 1000, 0.1) + b, 0)
                return form, png(inverse.round().astype(np.uint16), header)
            return form, png(millimetres, header)

    contract = write_contract(tmp_path)
    clip = open_dataset(write_recording(tmp_path / 'bag', recompressed(change)), contract=contract).read(0)
    plain = open_dataset(write_recording(tmp_path / 'plain', messages(1.0)), contract=contract).read(0)
    tolerance = 0.01 if form.startswith('32FC1') else 1e-6  # its steps are that wide here
    np.testing.assert_allclose(clip.depth[:, 1:], plain.depth[:, 1:], atol=tolerance)
    assert not clip.depth[:, 0, 1].any()


def test_depth_that_cannot_be_read_is_a_bad_episode(tmp_path):
    def change(topic, message):
        return ('16UC1; compressedDepth rvl', np.arange(50, dtype=np.uint8)) if topic == '/depth' else None

    recording = write_recording(tmp_path / 'bag', recompressed(change))
    with pytest.raises(BadEpisode, match=r'/depth: 50 bytes of .*rvl.* are no picture'):
        open_dataset(recording, contract=write_contract(tmp_path)).read(0)


def with_joints(*names: str):
    """Messages of a second, joints named in turn by each of `names`, such as 'ab'."""
    found, count = [], 0
    for at, topic, kind, message in messages(1.0):
        if topic == '/joints':
            order = names[count % len(names)]
            count += 1
            message = replace(
                message, name=list(order), position=np.array([float(ord(name)) for name in order])
            )
        found.append((at, topic, kind, message))
    return found


def test_joints_are_in_the_order_of_the_first_recording(tmp_path):
    write_recording(tmp_path / 'bags' / '1', with_joints('ba'))
    write_recording(tmp_path / 'bags' / '2', with_joints('ab', 'ba', 'ba'))
    reader = open_dataset(tmp_path / 'bags', contract=write_contract(tmp_path))
    for index in (1, 0):
        assert (reader.read(index).states == [ord('b'), ord('a')]).all()
    both_arms = write_recording(tmp_path / 'both', with_joints('ab', 'ab', 'cd'))
    with pytest.raises(BadEpisode, match='/joints:position: expected the joints a, b, got c, d; what moves'):
        open_dataset(both_arms, contract=write_contract(tmp_path)).read(0)


def test_a_killed_recording_is_told_and_recordings_grow_in_natural_order(tmp_path, capsys):
    bags, out = tmp_path / 'bags', tmp_path / 'out'
    for name in ('bag_2', 'bag_9'):
        write_recording(bags / name, messages(1.0))
    contract = write_contract(tmp_path)
    command = ['import', str(bags), str(out), '--contract', str(contract)]
    assert main(command) == 0
    write_recording(bags / 'bag_10', messages(1.0))
    write_recording(bags / 'bag_11', messages(1.0))
    (bags / 'bag_11' / 'metadata.yaml').unlink()
    assert main(command) == 1
    assert 'bag_11: has no metadata.yaml' in capsys.readouterr().err
    assert main([*command, '--skip-bad']) == 0
    assert 'skipped: ' in capsys.readouterr().err
    copy = open_dataset(out)
    assert [copy.source(i)['copied_from']['episode'] for i in range(len(copy))] == [
        'bag_2',
        'bag_9',
        'bag_10',
    ]


def test_an_import_goes_on_by_what_the_contract_says(tmp_path, capsys):
    bag, out = write_recording(tmp_path / 'bags' / '1', messages(1.0)), tmp_path / 'out'
    contract = write_contract(tmp_path)
    assert main(['import', str(bag.parent), str(out), '--contract', str(contract)]) == 0
    moved = contract.rename(tmp_path / 'moved.yaml')
    write_recording(tmp_path / 'bags' / '2', messages(1.0))
    assert main(['import', str(bag.parent), str(out), '--contract', str(moved)]) == 0
    assert len(open_dataset(out)) == 2
    edited = write_contract(tmp_path, actions=['/command:data'])
    assert main(['import', str(bag.parent), str(out), '--contract', str(edited)]) == 1
    assert 'made with other options' in capsys.readouterr().err


def test_a_folder_of_recordings_becomes_a_lerobot_dataset(tmp_path):
    (tmp_path / 'bags').mkdir()
    for name in ('b', 'a'):
        write_recording(tmp_path / 'bags' / name, messages(1.0))
    contract = write_contract(tmp_path)
    assert main(['import', str(tmp_path / 'bags'), str(tmp_path / 'out'), '--contract', str(contract)]) == 0
    reader, source = open_dataset(tmp_path / 'out'), open_dataset(tmp_path / 'bags', contract=contract)
    assert [source.episode(i).name for i in range(2)] == ['a', 'b']
    assert len(reader) == 2
    written, read = reader.read(1), source.read(1)
    assert np.array_equal(written.labels, read.labels)
    assert np.array_equal(written.actions, read.actions)
    assert written.task == 'push the box'
    assert (
        main(['show', str(tmp_path / 'bags'), '--contract', str(contract), '-o', str(tmp_path / 'page')]) == 0
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'actions': ['/command']}, r"expected '/topic:field', got '/command'"),
        ({'fps': 0}, 'expected fps'),
        ({'cameras': {}}, 'cameras: expected at least one'),
        ({'rate': 5}, 'rate'),
        ({'cameras': {'front': {'picture': '/image'}}}, 'picture'),
    ],
)
def test_a_wrong_contract_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Contract.load(write_contract(tmp_path, **changes))


def test_the_example_contract_is_one(repository):
    contract = Contract.load(repository / 'config' / 'recording.yaml')
    assert replace(contract, max_age=1.0).sampled[0] == contract.cameras['front'].image


def test_what_is_missing_is_named(tmp_path):
    recording = write_recording(tmp_path / 'bag', [e for e in messages(1.0) if e[1] != '/command'])
    with pytest.raises(BadEpisode, match='no message on /command'):
        open_dataset(recording, contract=write_contract(tmp_path)).read(0)
    with pytest.raises(ValueError, match='rosbag2 recording; say what its topics are'):
        open_dataset(recording)
    contract = write_contract(tmp_path, states=['/joints:positions'], actions=[])
    with pytest.raises(BadEpisode, match=r'/joints.*positions'):
        open_dataset(recording, contract=contract).read(0)
