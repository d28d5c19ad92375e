"""Label images: colours, geometry, and what they refuse."""

import numpy as np
import pytest
from scipy import ndimage

from mask2iv_ros import labels as lb


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.zeros((2, 20, 30), np.uint8)
    labels[:, 5:10, 5:12] = lb.OBJECT
    labels[0, 5:10, 20:25] = lb.ACTOR
    labels[1, 5:10, 12:17] = lb.ACTOR
    labels[:, 12:15, 5:9] = lb.PART
    return labels


def test_colours_round_trip_exactly(labels):
    np.testing.assert_array_equal(lb.rgb_to_labels(lb.labels_to_rgb(labels)), labels)


def test_colours_survive_blur_by_strongest_channel():
    colours = np.array([[[200, 90, 10], [100, 120, 30], [20, 180, 170]]], np.uint8)
    assert lb.rgb_to_labels(colours).tolist() == [[lb.OBJECT, lb.BACKGROUND, lb.ACTOR]]


@pytest.mark.parametrize('size', [1, 3, 5, 7])
def test_dilate_and_erode_equal_scipy(size):
    mask = np.random.default_rng(size).random((24, 31)) < 0.2
    square = np.ones((size, size), bool)
    np.testing.assert_array_equal(lb.dilate(mask, size), ndimage.binary_dilation(mask, square))
    np.testing.assert_array_equal(lb.erode(mask, size), ndimage.binary_erosion(mask, square, border_value=1))


def test_even_kernel_is_refused():
    with pytest.raises(ValueError, match='odd'):
        lb.dilate(np.zeros((4, 4), bool), 4)


def test_close_holes_fills_a_seam_and_keeps_the_outline():
    mask = np.zeros((30, 30), bool)
    mask[8:22, 8:22] = True
    seamed = mask.copy()
    seamed[14, 8:22] = False
    np.testing.assert_array_equal(lb.close_holes(seamed), mask)


def test_contact_starts_where_actor_and_object_touch(labels):
    assert lb.contact_frame(labels, 3) == 1
    band = lb.contact_band(labels[1], 3)
    assert band.any()
    assert not lb.contact_band(labels[0], 3).any()
    assert set(np.unique(labels[1][band])) <= {lb.OBJECT, lb.ACTOR, lb.PART}
    assert lb.contact_frame(labels[:1], 3) == -1


def test_actor_is_in_front():
    everywhere = np.ones((4, 4), bool)
    assert (lb.combine_masks(everywhere, everywhere) == lb.ACTOR).all()


def test_centroid_and_iou():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 6:9] = True
    assert lb.centroid(mask) == (7.0, 2.5)
    assert lb.centroid(np.zeros((3, 3), bool)) is None
    assert lb.iou(mask, mask) == 1
    assert lb.iou(mask, ~mask) == 0
    assert np.isnan(lb.iou(np.zeros_like(mask), np.zeros_like(mask)))


def test_unknown_label_ids_are_refused():
    with pytest.raises(ValueError, match=r'0\.\.3, got a value of 7'):
        lb.labels_to_rgb(np.full((2, 2), 7, np.uint8))
    with pytest.raises(ValueError, match='uint8'):
        lb.check_labels(np.zeros((2, 2), np.int64))
