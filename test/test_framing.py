"""Fitting images into the model's frame and back."""

import numpy as np
import pytest

from mask2iv_ros.framing import Framing, resize_labels

SOURCES = [(480, 640), (720, 1280), (64, 64), (100, 37), (128, 160), (1, 1), (33, 2000)]


@pytest.mark.parametrize('source', SOURCES)
def test_round_trip_keeps_size_and_place(source):
    framing = Framing(source, (128, 160))
    labels = np.zeros((2, *source), np.uint8)
    top, left = source[0] // 4, source[1] // 4
    labels[:, top : top + max(1, source[0] // 2), left : left + max(1, source[1] // 2)] = 1
    fitted = framing.fit_labels(labels)
    assert fitted.shape == (2, 128, 160)
    restored = framing.restore_labels(fitted)
    assert restored.shape == labels.shape
    if min(framing.inner) > 60:
        overlap = ((restored == 1) & (labels == 1)).sum() / ((restored == 1) | (labels == 1)).sum()
        assert overlap > 0.95


@pytest.mark.parametrize('source', SOURCES)
def test_frames_keep_aspect_and_fill_the_rest_with_their_edges(source):
    framing = Framing(source, (128, 160))
    frames = np.full((3, *source, 3), (10, 200, 90), np.uint8)
    fitted = framing.fit_frames(frames)
    assert fitted.shape == (3, 128, 160, 3)
    assert (fitted == (10, 200, 90)).all()
    np.testing.assert_array_equal(framing.restore_frames(fitted), frames)


def test_a_frame_of_the_model_size_is_untouched():
    frames = np.random.default_rng(0).integers(0, 255, (1, 128, 160, 3), dtype=np.uint8)
    framing = Framing((128, 160), (128, 160))
    np.testing.assert_array_equal(framing.fit_frames(frames), frames)
    np.testing.assert_array_equal(framing.restore_frames(frames), frames)


def test_padding_is_background():
    labels = np.full((1, 480, 640), 2, np.uint8)
    fitted = Framing((480, 640), (128, 160)).fit_labels(labels)
    assert (fitted[0, :4] == 0).all()
    assert (fitted[0, -4:] == 0).all()
    assert (fitted[0, 4:-4] == 2).all()


def test_resized_labels_stay_label_ids():
    labels = np.random.default_rng(0).integers(0, 4, (50, 70), dtype=np.uint8)
    assert set(np.unique(resize_labels(labels, (113, 31)))) <= {0, 1, 2, 3}


@pytest.mark.parametrize('source', SOURCES)
def test_a_point_comes_back_to_where_it_was(source):
    framing = Framing(source, (128, 160))
    (height, width), (top, left) = framing.inner, framing.offset
    corners = np.array([(left - 0.5, top - 0.5), (left + width - 0.5, top + height - 0.5)])
    centre = framing.restore_points(corners.mean(axis=0))
    assert tuple(centre) == pytest.approx(((source[1] - 1) / 2, (source[0] - 1) / 2))
    # Of the padding and of half an outer pixel, the nearest pixel is the answer.
    assert (framing.restore_points((0, 0)) >= 0).all()
    assert tuple(framing.restore_points((-9, -9))) == (0, 0)
    assert tuple(framing.restore_points((999, 999))) == (source[1] - 1, source[0] - 1)


def test_a_point_is_mapped_as_the_pixels_are():
    framing = Framing((64, 80), (128, 192))  # twice as large, 16 columns of padding at the left
    labels = np.zeros((1, 64, 80), np.uint8)
    labels[0, 20, 10] = 1
    ys, xs = np.nonzero(framing.fit_labels(labels)[0])
    assert (xs.mean(), ys.mean()) == (36.5, 40.5)
    assert tuple(framing.restore_points((36.5, 40.5))) == (10, 20)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'expected images of \(10, 20\)'):
        Framing((10, 20), (128, 160)).fit_labels(np.zeros((1, 20, 10), np.uint8))


class TestCrop:
    """The paper's crop: the middle, unless that would hide the object."""

    def test_a_shown_thing_moves_the_crop_no_farther_than_needed(self):
        shown = np.zeros((1080, 1920), bool)
        shown[500:600, 1700:1750] = True
        framing = Framing.with_short_side((1080, 1920), (320, 512), 384, shown)
        assert framing.region == (90, 1750 - 1440, 900, 1440)
        shown[500:600, 300:1750] = True  # wider than the crop
        assert Framing.with_short_side((1080, 1920), (320, 512), 384, shown).region == (90, 240, 900, 1440)

    def test_without_a_short_side_all_is_seen(self):
        assert Framing.with_short_side((48, 64), (32, 32), None) == Framing((48, 64), (32, 32))


def test_what_a_crop_saw_goes_back_to_its_place():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 60, 80, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, (2, 60, 80)).astype(np.uint8)
    framing = Framing((60, 80), (30, 40), (12, 20, 30, 40))
    np.testing.assert_array_equal(framing.fit_frames(frames), frames[:, 12:42, 20:60])
    for fitted, restored, original in (
        (framing.fit_frames(frames), framing.restore_frames, frames),
        (framing.fit_labels(labels), framing.restore_labels, labels),
    ):
        whole = restored(fitted)
        np.testing.assert_array_equal(whole[:, 12:42, 20:60], original[:, 12:42, 20:60])
        whole[:, 12:42, 20:60] = 0
        assert not whole.any()
    assert tuple(framing.restore_points((0, 0))) == (20, 12)


def test_a_crop_outside_the_picture_is_refused():
    with pytest.raises(ValueError, match='expected a part of'):
        Framing((60, 80), (30, 40), (40, 0, 30, 40))
