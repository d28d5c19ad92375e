"""HOI4D: actions as episodes, with the right frames, labels, depth and words."""

import itertools
import wave

import numpy as np
import pytest
from dataset_fixtures import (
    MUG,
    SIZE,
    hand_and_object,
    number_of,
    picture,
    voc_colours,
    write_depth_video,
    write_picture,
    write_sequence,
    write_video,
)

from mask2iv_ros.data.episodes import BadEpisode, UnknownLayout, read_clips
from mask2iv_ros.data.hoi4d import CATEGORIES, Event, HOI4DReader, caption, find_sequences
from mask2iv_ros.labels import ACTOR, BACKGROUND, OBJECT, PART


def events_of(tmp_path, events, **options):
    write_sequence(tmp_path, events=events, indices=None, **options)
    return find_sequences(tmp_path)[0].events()


@pytest.mark.parametrize('form', ['events', 'marks'])
@pytest.mark.parametrize(('duration', 'clock'), [(20.0, 1), (10.0, 0.5), (None, 1), (None, 0.5)])
def test_both_forms_and_clocks_of_an_annotation_give_the_same_frames(tmp_path, form, duration, clock):
    seconds = [('rest', 0, 2.4), ('Pickup', 2.4, 4.1), ('carry', 4.1, 20)]
    events = events_of(
        tmp_path, [(n, s * clock, e * clock) for n, s, e in seconds], form=form, duration=duration
    )
    assert events == [Event('rest', 0, 35), Event('Pickup', 36, 61), Event('carry', 62, 299)]


@pytest.mark.parametrize('form', ['events', 'marks'])
def test_a_stated_duration_counts_where_the_annotation_ends_early(tmp_path, form):
    assert events_of(tmp_path, [('open', 2, 3)], form=form, duration=20.0) == [Event('open', 30, 44)]


def test_rounding_of_times_moves_no_frame(tmp_path):
    assert events_of(tmp_path, [('open', 23 / 30, 31 / 30)], duration=10.0) == [Event('open', 23, 30)]


def test_events_tile_the_video_without_sharing_a_frame(tmp_path):
    times = np.linspace(0, 20, 38)
    events = events_of(tmp_path, [('open', s, e) for s, e in itertools.pairwise(times)])
    frames = [frame for event in events for frame in range(event.start, event.end + 1)]
    assert frames == list(range(300))


def test_a_reachout_joins_the_grasp_directly_after_it(tmp_path):
    names = ['Reachout', 'Grasp', 'Reachout', 'Pickup', 'Grasp', 'Reachout']
    events = events_of(tmp_path, [(name, i, i + 1) for i, name in enumerate(names)])
    assert [(event.name, event.start, event.end) for event in events] == [
        ('Grasp', 0, 29),
        ('Reachout', 30, 44),
        ('Pickup', 45, 59),
        ('Grasp', 60, 74),
        ('Reachout', 75, 89),
    ]


def test_events_are_put_in_order_and_into_the_video(tmp_path):
    events = events_of(tmp_path, [('close', 19, 20.5), ('open', -0.1, 2), ('stop', 5, 5)])
    assert events == [Event('open', 0, 29), Event('close', 285, 299)]


def test_the_frames_asked_for_are_decoded_and_no_others(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 5)], video=True)
    reader = HOI4DReader(tmp_path)
    assert reader.episode(0).length == 45
    for frames in ([0], [24], [44, 3, 3, 20], range(45)):
        clip = reader.read(0, list(frames))
        assert [number_of(frame) for frame in clip.frames] == [30 + frame for frame in frames]
    red, green, blue = clip.frames[0, 16:].mean(axis=(0, 1))
    assert blue > 150 > green > 50 > red
    assert clip.fps == 15
    assert clip.source['first_frame'] == 30


def test_frames_are_counted_whatever_the_time_stamps_say(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)])
    write_video(tmp_path / MUG / 'align_rgb/image.mp4', (picture(t) for t in range(300)), rate=30)
    assert [number_of(frame) for frame in HOI4DReader(tmp_path).read(0, [0, 7]).frames] == [30, 37]


def test_extracted_frames_are_read_without_the_video(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)])
    for t in range(30, 45):
        write_picture(tmp_path / MUG / f'align_rgb/{t:05d}.jpg', picture(t))
    assert [number_of(frame) for frame in HOI4DReader(tmp_path).read(0).frames] == list(range(30, 45))


def labels_of(tmp_path, category, indices):
    name = f'ZY20210800001/H1/C{category}/N01/S52/s02/T1'
    write_sequence(tmp_path, name, indices=lambda t: np.resize(indices, SIZE), frames=[0])
    sequence = find_sequences(tmp_path)[0]
    return sequence.labels(sequence.read_masks(np.array([0])))[0, 0, : len(indices)].tolist()


@pytest.mark.parametrize(
    ('category', 'labels'),
    [
        ('ToyCar', {1: OBJECT, 2: ACTOR}),
        ('Mug', {1: OBJECT, 2: ACTOR, 3: BACKGROUND}),
        ('Laptop', {1: PART, 2: ACTOR, 3: OBJECT}),
        ('Bottle', {1: OBJECT, 2: ACTOR, 3: BACKGROUND}),
        ('Bowl', {1: OBJECT, 2: ACTOR, 3: PART}),
        ('Bucket', {1: OBJECT, 2: ACTOR, 3: PART, 4: BACKGROUND, 5: BACKGROUND, 6: ACTOR}),
        ('Scissors', {1: OBJECT, 2: ACTOR, 3: OBJECT}),
        ('Pliers', {1: OBJECT, 2: ACTOR, 3: OBJECT}),
        ('Kettle', {1: OBJECT, 2: ACTOR, 3: BACKGROUND}),
        ('Knife', {1: OBJECT, 2: ACTOR, 3: BACKGROUND}),
        ('TrashCan', {1: OBJECT, 2: ACTOR, 3: PART, 4: BACKGROUND}),
        ('Chair', {1: OBJECT, 2: ACTOR, 3: ACTOR}),
    ],
)
def test_labels_are_cleaned_up_by_category(tmp_path, category, labels):
    number = next(number for number, name in CATEGORIES.items() if name == category)
    found = labels_of(tmp_path, number, [0, *labels])
    assert dict(zip([0, *labels], found, strict=True)) == {0: BACKGROUND, **labels}


def test_masks_are_the_shifted_ones_where_there_are_any(tmp_path):
    write_sequence(tmp_path, mask_folder='mask', frames=[0], indices=lambda t: np.full(SIZE, 2))
    sequence = find_sequences(tmp_path)[0]
    assert (sequence.read_masks(np.array([0])) == 2).all()
    write_sequence(tmp_path, mask_folder='shift_mask', frames=[0], indices=lambda t: np.ones(SIZE))
    assert (find_sequences(tmp_path)[0].read_masks(np.array([0])) == 1).all()


def test_palette_pictures_are_read_as_rgb_ones(tmp_path):
    image = pytest.importorskip('PIL.Image')
    write_sequence(tmp_path, frames=[0])
    path = tmp_path / MUG / '2Dseg/shift_mask/00000.png'
    palette = image.fromarray(hand_and_object(0), mode='P')
    palette.putpalette(voc_colours(np.arange(8)[None])[0].tobytes())
    palette.save(path)
    np.testing.assert_array_equal(
        find_sequences(tmp_path)[0].read_masks(np.array([0]))[0], hand_and_object(0)
    )


def test_colours_outside_the_palette_are_background_but_not_all_of_them(tmp_path):
    write_sequence(tmp_path, frames=[0, 1])
    colours = voc_colours(hand_and_object(0))
    colours[0, 0] = 17, 128, 0
    folder = tmp_path / MUG / '2Dseg/shift_mask'
    write_picture(folder / '00000.png', colours)
    write_picture(folder / '00001.png', np.where(colours == 128, 255, 0).astype(np.uint8))
    sequence = find_sequences(tmp_path)[0]
    np.testing.assert_array_equal(sequence.read_masks(np.array([0]))[0], hand_and_object(0))
    with pytest.raises(BadEpisode, match=r'00001\.png: none of its colours'):
        sequence.read_masks(np.array([1]))


def test_a_clip_has_the_labels_of_its_frames(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)], video=True)
    clip = HOI4DReader(tmp_path).read(0, [9, 1])
    for labels, t in zip(clip.labels, (39, 31), strict=True):
        np.testing.assert_array_equal(labels == OBJECT, hand_and_object(t) == 1)
        np.testing.assert_array_equal(labels == ACTOR, hand_and_object(t) == 2)


def test_a_video_without_masks_has_none(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)], indices=None, video=True)
    reader = HOI4DReader(tmp_path)
    assert reader.episode(0).masked == ()
    assert reader.read(0, [0]).labels is None


def test_archives_may_lie_side_by_side(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)], archives=True, video=True)
    depth = np.full(SIZE, 1500, np.uint16)
    write_picture(tmp_path / 'HOI4D_depth_video' / MUG / 'align_depth/00030.png', depth)
    intrinsics = np.array(((1000, 0, 960), (0, 1000, 540), (0, 0, 1)))
    (tmp_path / 'camera_params/ZY20210800001').mkdir(parents=True)
    np.save(tmp_path / 'camera_params/ZY20210800001/intrin.npy', intrinsics)
    reader = HOI4DReader(tmp_path)
    reader.with_depth = True
    clip = reader.read(0, [0])
    assert number_of(clip.frames[0]) == 30
    assert (clip.labels[0] == OBJECT).any()
    assert (clip.depth == 1.5).all()
    assert clip.depth.dtype == np.float32
    np.testing.assert_array_equal(clip.camera.intrinsics, intrinsics)


def test_depth_videos_are_exact(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)], video=True)
    depths = [np.arange(t, t + 32 * 32, dtype=np.uint16).reshape(SIZE) * 60 for t in range(50)]
    write_depth_video(tmp_path / MUG / 'align_depth/depth_video.avi', depths)
    reader = HOI4DReader(tmp_path)
    reader.with_depth = True
    clip = reader.read(0, [10, 2])
    for read, t in zip(clip.depth, (40, 32), strict=True):
        np.testing.assert_array_equal(np.round(read * 1000), depths[t])
    assert HOI4DReader(tmp_path).read(0, [10]).depth is None


def test_sequences_and_their_events_are_in_numeric_order(tmp_path):
    for category in (11, 2):
        write_sequence(tmp_path, f'ZY20210800001/H1/C{category}/N01/S52/s02/T1', indices=None)
    (tmp_path / 'ZY20210800001/H1/C2/N01/S52/s02/T1_old').mkdir()
    reader = HOI4DReader(tmp_path)
    assert [reader.episode(i).name.split('/', 2)[2] for i in range(len(reader))] == [
        'C2/N01/S52/s02/T1/00-rest',
        'C2/N01/S52/s02/T1/01-Pickup',
        'C11/N01/S52/s02/T1/00-rest',
        'C11/N01/S52/s02/T1/01-Pickup',
    ]


@pytest.mark.parametrize(
    ('event', 'category', 'words'),
    [
        ('Pickup', 'Mug', 'a hand picking up a mug'),
        ('close', 'Laptop', 'a hand closing a laptop'),
        ('Grasp', 'Scissors', 'a hand grasping scissors'),
        ('binding', 'Stapler', 'a hand binding with a stapler'),
        ('paper-cut', 'Knife', 'a hand cutting with a knife'),
        ('turn&on&the&switch', 'Lamp', 'a hand turning on the switch of a lamp'),
        ('Carrywithbothhands', 'TrashCan', 'two hands carrying a trash can'),
        ('rest', 'Mug', ''),
    ],
)
def test_captions_are_those_of_the_paper(event, category, words):
    assert caption(event, category) == words
    assert caption('putdown', 'Chair', two_hands=True) == 'two hands putting down a chair'


def test_damage_is_named_and_does_not_stop_the_others(tmp_path):
    names = [f'ZY20210800001/H1/C2/N0{i}/S52/s02/T1' for i in range(6)]
    for name in names:
        write_sequence(tmp_path, name, events=[('Pickup', 2, 3)], frames=range(30, 45), video=True)
    (tmp_path / names[0] / 'action/color.json').write_text('{"markResult": {}}')
    (tmp_path / names[1] / 'action/color.json').unlink()
    video = tmp_path / names[2] / 'align_rgb/image.mp4'
    video.write_bytes(video.read_bytes()[:200])
    (tmp_path / names[3] / '2Dseg/shift_mask/00040.png').write_bytes(b'')
    write_video(tmp_path / names[4] / 'align_rgb/image.mp4', (picture(t) for t in range(40)))
    skipped = []
    clips = list(read_clips(HOI4DReader(tmp_path), skipped=skipped))
    assert [clip.source['episode'] for clip in clips] == [f'{names[5]}/00-Pickup']
    reasons = [
        'expected events',
        'no action/color.json',
        'image.mp4',
        '00040.png: damaged',
        '40 frames; frame 44',
    ]
    for error, reason in zip(skipped, reasons, strict=True):
        assert reason in str(error)


def test_a_video_that_cannot_be_decoded_is_named(tmp_path):
    write_sequence(tmp_path, events=[('Pickup', 2, 3)], video=True)
    path = tmp_path / MUG / 'align_rgb/image.mp4'
    good = path.read_bytes()
    with wave.open(str(tmp_path / 'sound.wav'), 'wb') as sound:
        sound.setparams((1, 2, 8000, 0, 'NONE', ''))
        sound.writeframes(bytes(200))
    for data in (good.replace(b'avc1', b'zzz1'), (tmp_path / 'sound.wav').read_bytes(), b''):
        path.write_bytes(data)
        with pytest.raises(BadEpisode, match=r'image\.mp4'):
            HOI4DReader(tmp_path).read(0)


def test_a_folder_without_sequences_is_refused(tmp_path):
    with pytest.raises(UnknownLayout, match='ZY'):
        HOI4DReader(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        HOI4DReader(tmp_path / 'nowhere')
