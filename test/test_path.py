"""3-D paths: scenes with a known plane and a known motion, seen by a known camera."""

import cv2
import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.framing import Framing
from mask2iv_ros.planning.assess import Geometry, check_plans, lift_plans
from mask2iv_ros.planning.checks import PlanLimits, passed
from mask2iv_ros.planning.motion import mask_motion, restore_motion
from mask2iv_ros.planning.path import (
    DEPTH_MODELS,
    DEPTH_RANGE,
    fit_plane,
    lift_path,
    object_depth,
    pixel_rays,
    support_normal,
)
from mask2iv_ros.planning.request import Plan

HEIGHT, WIDTH = 120, 160
K = np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]])
DISTORTION = np.array((-0.25, 0.08, 0.002, -0.001, -0.01))  # plumb_bob
RATIONAL = np.array((-0.2, 0.05, 0.001, -0.001, 0.002, 0.01, 0.002, 0.001))
#: A table that a camera looks down on at 40 degrees, one metre away along its axis.
UP = np.array((0.0, -np.cos(np.radians(40)), -np.sin(np.radians(40))))
TABLE = np.array((0.0, 0.0, 1.0))


def pixels_of_image() -> np.ndarray:
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack((xs.ravel(), ys.ravel()), axis=1).astype(float)


def table_depth(distortion=None) -> np.ndarray:
    """(H, W) depth of the bare table."""
    rays = pixel_rays(pixels_of_image(), K, distortion)
    return ((UP @ TABLE) / (rays @ UP)).reshape(HEIGHT, WIDTH)


def project(points, distortion=None) -> np.ndarray:
    pixels, _ = cv2.projectPoints(np.asarray(points, float), np.zeros(3), np.zeros(3), K, distortion)
    return pixels[:, 0]


def scene(centres, distortion=None, size=0.1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and depth of a flat sheet, parallel to the table, at 3-D centres."""
    across = np.array((1.0, 0, 0))
    along = np.cross(UP, across)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    labels, depth = np.zeros((len(centres), HEIGHT, WIDTH), np.uint8), table_depth(distortion)
    for image, centre in zip(labels, centres, strict=True):
        square = [centre + size / 2 * (a * across + b * along) for a, b in corners]
        outline = np.round(project(square, distortion) * 256).astype(np.int32)
        cv2.fillPoly(image, [outline], lb.OBJECT, shift=8)
    rays = pixel_rays(pixels_of_image(), K, distortion)
    sheet = ((UP @ centres[0]) / (rays @ UP)).reshape(HEIGHT, WIDTH)
    return labels, np.where(labels[0] == lb.OBJECT, sheet, depth)


def sliding(frames=6) -> np.ndarray:
    along = np.cross(UP, (1.0, 0, 0))
    return (
        TABLE + 0.02 * UP + np.linspace(0, 1, frames)[:, None] * (0.1 * np.array((1.0, 0, 0)) - 0.15 * along)
    )


def lifted(frames=6) -> np.ndarray:
    return TABLE + np.linspace(0.02, 0.2, frames)[:, None] * UP


class TestDepth:
    def test_codes_for_no_depth_are_left_out(self):
        depth = np.full((20, 20), 1.5)
        mask = np.zeros((20, 20), bool)
        mask[5:15, 5:15] = True
        depth[5:9, 5:15] = np.array([np.nan, 0, 10, np.inf])[:, None]
        assert object_depth(depth, mask) == 1.5

    def test_the_rim_of_the_mask_does_not_count(self):
        depth = np.full((20, 20), 3.0)
        depth[6:14, 6:14] = 1.0
        mask = np.zeros((20, 20), bool)
        mask[5:15, 5:15] = True
        assert object_depth(depth, mask) == 1.0

    def test_a_thin_object_is_measured_at_its_rim(self):
        mask = np.zeros((20, 20), bool)
        mask[10, 3:17] = True
        assert object_depth(np.full((20, 20), 0.7), mask) == 0.7

    @pytest.mark.parametrize('value', [np.nan, 0.0, DEPTH_RANGE[1], np.inf, -1.0])
    def test_without_valid_depth_there_is_no_path(self, value):
        labels, _ = scene(sliding())
        assert lift_path(labels, np.full((HEIGHT, WIDTH), value), K) is None


class TestRays:
    @pytest.mark.parametrize('distortion', [None, np.zeros(0), DISTORTION, RATIONAL])
    def test_they_invert_the_projection(self, distortion):
        points = np.array([(-0.3, 0.2, 1.0), (0.4, -0.25, 1.2), (0.0, 0.0, 2.0)])
        given = None if distortion is None or not len(distortion) else distortion
        rays = pixel_rays(project(points, given), K, distortion)
        np.testing.assert_allclose(rays, points / points[:, 2:], atol=1e-5)

    def test_coefficients_must_be_a_known_number(self):
        with pytest.raises(ValueError, match='distortion: expected 4, 5, 8, 12 or 14 values, got 3'):
            pixel_rays(np.zeros((1, 2)), K, np.zeros(3))


class TestPlane:
    def test_it_is_found_among_other_things(self):
        rng = np.random.default_rng(1)
        rays = pixel_rays(pixels_of_image(), K)[::7]
        points = rays * ((UP @ TABLE) / (rays @ UP))[:, None] + rng.normal(0, 0.002, (len(rays), 3))
        clutter = rng.uniform(-0.5, 1.5, (len(points) // 2, 3))
        normal, offset = fit_plane(np.concatenate((points, clutter)))
        assert normal @ UP > np.cos(np.radians(1))
        assert offset == pytest.approx(UP @ TABLE, abs=0.005)

    def test_clutter_alone_is_no_plane(self):
        assert fit_plane(np.random.default_rng(0).uniform(-1, 1, (500, 3))) is None
        assert fit_plane(np.zeros((500, 3))) is None
        assert fit_plane(np.zeros((5, 3))) is None

    def test_a_known_up_refuses_walls(self):
        wall = np.random.default_rng(0).uniform(-1, 1, (500, 3)) * (1, 1, 0) + (0, 0, 2)
        assert fit_plane(wall) is not None
        assert fit_plane(wall, up=UP) is None

    @pytest.mark.parametrize('distortion', [None, DISTORTION])
    def test_the_table_of_a_scene(self, distortion):
        labels, depth = scene(sliding(), distortion)
        normal = support_normal(labels[0], mask_motion(labels), depth, K, distortion)
        assert normal @ UP > np.cos(np.radians(0.5))


class TestRotation:
    @pytest.mark.parametrize('step', [15, -20])
    @pytest.mark.parametrize('distortion', [None, DISTORTION])
    def test_a_lever_that_turns_on_the_table(self, step, distortion):
        across = np.array((1.0, 0, 0))
        along = np.cross(UP, across)  # across x along = UP: angles from one to the other are right-handed
        angles = np.radians(np.arange(7) * step)
        labels = np.zeros((7, HEIGHT, WIDTH), np.uint8)
        for image, angle in zip(labels, angles, strict=True):
            axis, side = (np.cos(a) * across + np.sin(a) * along for a in (angle, angle + np.pi / 2))
            bar = [TABLE + 0.15 * u * axis + 0.03 * v * side for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            cv2.fillPoly(
                image, [np.round(project(bar, distortion) * 256).astype(np.int32)], lb.OBJECT, shift=8
            )
        path = lift_path(labels, table_depth(distortion), K, distortion)
        np.testing.assert_allclose(np.degrees(path.rotation), np.degrees(angles), atol=3)

    def test_a_round_object_tells_no_turn(self):
        labels, depth = scene(sliding())
        assert np.isnan(lift_path(labels, depth, K).rotation).all()

    def test_without_a_plane_or_a_visible_object_it_is_unknown(self):
        labels, depth = scene(sliding())
        depth[labels[0] == 0] = np.nan
        assert np.isnan(lift_path(labels, depth, K).rotation).all()


class TestModels:
    @pytest.mark.parametrize('distortion', [None, DISTORTION, RATIONAL])
    def test_what_slides_is_followed_in_the_support_plane(self, distortion):
        truth = sliding()
        labels, depth = scene(truth, distortion)
        path = lift_path(labels, depth, K, distortion)
        assert path.depth_model == 'support_plane'
        assert np.linalg.norm(path.points - truth, axis=1).max() < 0.008
        flat = lift_path(labels, depth, K, distortion, 'constant_depth')
        assert np.linalg.norm(flat.points - truth, axis=1).max() > 0.05

    def test_distortion_counts(self):
        truth = sliding() + np.array((0.2, 0, 0))
        labels, depth = scene(truth, DISTORTION)
        known = lift_path(labels, depth, K, DISTORTION).points
        unknown = lift_path(labels, depth, K).points
        assert np.linalg.norm(known - truth, axis=1).max() < 0.008
        assert np.linalg.norm(unknown - truth, axis=1).max() > 0.01

    def test_what_is_lifted_does_not_slide_away(self):
        truth = lifted()
        labels, depth = scene(truth)
        path = lift_path(labels, depth, K)
        assert path.depth_model == 'upright_plane'
        assert 'size' in path.reason or 'depth would change' in path.reason
        assert np.linalg.norm(path.points - truth, axis=1).max() < 0.01
        slid = lift_path(labels, depth, K, depth_model='support_plane')
        assert np.linalg.norm(slid.points - truth, axis=1).max() > 0.1

    def test_size_tells_depth_of_what_comes_closer(self):
        centres = TABLE * np.linspace(1, 0.7, 5)[:, None]
        labels, depth = scene(centres)
        path = lift_path(labels, depth, K, depth_model='mask_area')
        np.testing.assert_allclose(path.points[:, 2], centres[:, 2], rtol=0.04)

    def test_the_place_tells_depth_of_what_is_put_on_it(self):
        labels, depth = scene(sliding())
        path = lift_path(labels, depth, K, depth_model='place_depth')
        np.testing.assert_allclose(path.points[:, 2], sliding()[:, 2], atol=0.04)

    @pytest.mark.parametrize('model', ['auto', *DEPTH_MODELS])
    def test_every_model_starts_at_the_observed_depth(self, model):
        labels, depth = scene(sliding())
        path = lift_path(labels, depth, K, depth_model=model)
        assert path.points.shape == (6, 3)
        assert np.isfinite(path.points).all()
        np.testing.assert_allclose(path.points[0], sliding()[0], atol=0.004)
        assert model in ('auto', path.depth_model)

    def test_holes_in_the_depth_image_do_not_matter(self):
        truth = sliding()
        labels, depth = scene(truth)
        holes = np.random.default_rng(0).random(depth.shape)
        depth[holes < 0.3] = np.nan
        depth[(holes > 0.3) & (holes < 0.4)] = 0
        depth[(holes > 0.4) & (holes < 0.5)] = 10
        assert np.linalg.norm(lift_path(labels, depth, K).points - truth, axis=1).max() < 0.008

    def test_without_a_plane_the_depth_stays_and_the_path_says_so(self):
        labels, depth = scene(sliding())
        depth[labels[0] == 0] = np.nan
        for model, words in (('auto', 'no support plane'), ('support_plane', 'asked for, but')):
            path = lift_path(labels, depth, K, depth_model=model)
            assert (path.depth_model, path.normal) == ('constant_depth', None)
            assert words in path.reason
            np.testing.assert_array_equal(path.points[:, 2], path.points[0, 2])

    def test_a_hidden_object_stays_between_its_neighbours(self):
        labels, depth = scene(sliding())
        labels[2] = lb.ACTOR
        path = lift_path(labels, depth, K)
        np.testing.assert_allclose(path.points[2], path.points[[1, 3]].mean(axis=0), atol=0.004)

    def test_wrong_inputs_are_named(self):
        labels, depth = scene(sliding())
        with pytest.raises(ValueError, match='depth: expected'):
            lift_path(labels, depth[1:], K)
        with pytest.raises(ValueError, match='intrinsics: expected'):
            lift_path(labels, depth, np.eye(4))
        with pytest.raises(ValueError, match=r"depth_model: expected auto, .*got 'magic'"):
            lift_path(labels, depth, K, depth_model='magic')


class TestPlans:
    """What the node does: motion in the model's frame, several samples, another frame."""

    def plans(self, *tracks) -> tuple[list[Plan], Geometry]:
        plans, framing = [], Framing((HEIGHT, WIDTH), (96, 140))
        for seed, truth in enumerate(tracks):
            labels, depth = scene(truth, DISTORTION)
            motion = restore_motion(mask_motion(framing.fit_labels(labels)), framing)
            plans.append(Plan(labels, None, '', seed, 'm', 0.1 * seed, '', motion, 15.0))
        return plans, Geometry(depth, K, DISTORTION)

    def test_motion_in_the_models_frame_gives_the_same_path(self):
        (plan,), geometry = self.plans(sliding())
        lift_plans([plan], geometry)
        assert plan.path.depth_model == 'support_plane'
        assert plan.path_note == plan.path.reason
        assert np.linalg.norm(plan.path.points - sliding(), axis=1).max() < 0.012
        assert plan.path.normal @ UP > np.cos(np.radians(1))
        assert plan.path_spread is None

    def test_samples_spread(self):
        shifted = sliding() + np.linspace(0, 1, 6)[:, None] * (0.06, 0, 0)
        plans, geometry = self.plans(sliding(), shifted)
        lift_plans(plans, geometry, 'constant_depth')
        points = np.stack([plan.path.points for plan in plans])
        for plan in plans:
            np.testing.assert_allclose(plan.path_spread, np.sqrt(points.var(axis=0, ddof=1).sum(axis=1)))
        assert plans[0].path_spread[-1] > 0.03

    def test_paths_are_given_in_the_frame_that_is_asked_for(self):
        (plan,), geometry = self.plans(sliding())
        lift_plans([plan], geometry)
        optical = plan.path
        turn = cv2.Rodrigues(np.array((0.3, -0.5, 0.2)))[0]
        to_frame = np.eye(4)
        to_frame[:3, :3], to_frame[:3, 3] = turn, (1, 2, 3)
        lift_plans([plan], geometry, to_frame=to_frame)
        np.testing.assert_allclose(plan.path.points, optical.points @ turn.T + to_frame[:3, 3])
        np.testing.assert_allclose(plan.path.normal, turn @ optical.normal)
        np.testing.assert_array_equal(plan.path.rotation, optical.rotation)

    def test_without_depth_on_the_object_the_note_says_so(self):
        (plan,), geometry = self.plans(sliding())
        for nothing in (0.0, np.nan, 10.0):
            geometry.depth[plan.labels[0] != 0] = nothing
            lift_plans([plan], geometry)
            assert plan.path is None
            assert plan.path_note == 'depth has no value between 0.01 and 10.0 m in object_mask'

    def test_plans_that_pass_come_first_then_the_best(self):
        far = sliding() + np.linspace(0, 1, 6)[:, None] * (0.3, 0, 0)
        plans, geometry = self.plans(sliding(), sliding(), far)  # scores 0, 0.1, 0.2
        lift_plans(plans, geometry)
        limits = PlanLimits(workspace=((-1, -1, 0), (0.2, 1, 3)), contact_required=False,
                            max_free_motion=None, max_spread_pixels=None)  # fmt: skip
        ordered = check_plans(plans, limits)
        assert [(plan.seed, passed(plan.checks)) for plan in ordered] == [(1, True), (0, True), (2, False)]
        assert [check.name for check in ordered[-1].checks if not check.passed] == ['workspace']


class TestContact:
    def test_it_is_on_the_surface_that_is_touched(self):
        """A box whose left half stands 0.1 m nearer than its right half is touched from the left."""
        labels = np.zeros((3, HEIGHT, WIDTH), np.uint8)
        depth = np.full((HEIGHT, WIDTH), 1.5, np.float32)
        left, right, top, bottom = WIDTH // 2 - 30, WIDTH // 2 + 30, HEIGHT // 2 - 20, HEIGHT // 2 + 20
        depth[top:bottom, left : WIDTH // 2], depth[top:bottom, WIDTH // 2 : right] = 1.0, 1.1
        for t, image in enumerate(labels):
            image[top:bottom, left + 8 * t : right + 8 * t] = lb.OBJECT
            if t:
                image[top:bottom, left + 8 * t - 12 : left + 8 * t] = lb.ACTOR
        path = lift_path(labels, depth, K, depth_model='constant_depth')
        motion = mask_motion(labels)
        assert motion.contact_frame == 1
        assert path.contact[2] == pytest.approx(path.points[1, 2] + 1.0 - path.points[0, 2], abs=0.02)
        np.testing.assert_allclose(project(path.contact[None])[0], motion.contact_pixel, atol=0.01)

    def test_there_is_none_without_an_actor(self):
        labels, depth = scene(sliding())
        assert lift_path(labels, depth, K).contact is None
