"""Parameters of a node: a table that declares, documents and checks them. `TABLE` is the mask2iv node's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from mask2iv_ros.planning.checks import PlanLimits
from mask2iv_ros.planning.path import DEPTH_MODELS


@dataclass(frozen=True)
class Row:
    """One parameter.

    `limits` are inclusive, and hold for each number of a list; a list keeps the length of its default.
    `pattern` is a regular expression that a string must match.
    """

    name: str
    default: bool | int | float | str | list[float]
    description: str
    limits: tuple | None = None
    pattern: str | None = None
    read_only: bool = False


AT_CONFIGURE = ' Takes effect when the node is configured.'

TABLE = (
    Row('autostart', True, 'Configure and activate the node when it starts.', read_only=True),
    Row('model', '', 'Folder of the model; empty: the embedded mask2iv-sim.' + AT_CONFIGURE),
    Row(
        'device',
        'auto',
        'Where the model runs: auto (cuda if there is one, else cpu), cpu, cuda or cuda:N.' + AT_CONFIGURE,
        pattern=r'auto|cpu|cuda(:\d+)?',
    ),
    Row(
        'low_memory',
        False,
        "Keep the UNets' weights in 8 bits, and on CUDA only the network there that works. Slower."
        + AT_CONFIGURE,
    ),
    Row('num_samples', 1, 'Plans a request, where it does not say.', limits=(1, 255)),
    Row('max_samples', 8, 'Most plans that a request may ask for.', limits=(1, 255)),
    Row('seed', 0, 'Random seed, where a request does not say.', limits=(0, 2**63 - 1)),
    Row(
        'num_inference_steps',
        0,
        "Denoising steps a stage, where a request does not say; 0: the model's own default. More than its "
        'training had are refused.',
        limits=(0, 2**16 - 1),  # of the request's field
    ),
    Row('max_queue', 4, 'Requests that may wait; further ones get QUEUE_FULL.', limits=(0, 1000)),
    Row(
        'max_image_pixels',
        2048 * 2048,
        'Largest image that is accepted, width x height; results have the size of the image.',
        limits=(1, 2**31),
    ),
    Row(
        'max_stamp_difference',
        0.1,
        'Largest distance, seconds, between the stamps of image, masks and depth of one request.',
        limits=(0.0, 3600.0),
    ),
    Row(
        'max_age',
        2.0,
        'Largest age, seconds, of an image that is taken from its topic; 0: any age.',
        limits=(0.0, 86400.0),
    ),
    Row(
        'buffer_size',
        30,
        'Messages kept a topic, of 256 MiB at most (43 of 1920x1080 rgb8); must cover the delay of the mask '
        'source (30: one second at 30 Hz). Takes effect when the node is activated.',
        limits=(1, 1000),
    ),
    Row(
        'max_plans',
        10,
        'Newest plans that are kept for ExportDemonstration, as long as they fit into 1 GiB.',
        limits=(1, 1000),
    ),
    Row(
        'dataset_root',
        '~/.ros/mask2iv_datasets',
        'Folder under which ExportDemonstration writes datasets.',
        pattern='.+',
    ),
    Row(
        'rectified',
        False,
        'The images are rectified: pixels are lifted with P of camera_info. false: they are raw, and K and D '
        'hold.',
    ),
    Row(
        'depth_model',
        'auto',
        'How depth after the observed frame is found: auto (by plan), '
        + ', '.join(f'{name} ({meaning})' for name, meaning in DEPTH_MODELS.items())
        + '.',
        pattern='|'.join(('auto', *DEPTH_MODELS)),
    ),
    Row('path_frame', '', "tf2 frame of object_path; empty: the camera's optical frame."),
    Row(
        'gravity_frame',
        '',
        'tf2 frame whose z points up, which tells tables from walls; empty: unknown.',
    ),
    Row(
        'refuse_failing_plans',
        False,
        'Leave out plans that fail a check; if none is left, the answer is CHECKS_FAILED.',
    ),
    Row(
        'checks.workspace',
        [0.0] * 6,
        'Box in the frame of object_path that the path may not leave, metres: lowest x, y, z, highest x, y, '
        'z. All 0: any place.',
        limits=(-1e6, 1e6),
    ),
    Row('checks.max_speed', 0.0, 'Largest speed of the object, m/s; 0: any.', limits=(0.0, 1e6)),
    Row('checks.max_step', 0.0, 'Largest step of the path between frames, m; 0: any.', limits=(0.0, 1e6)),
    Row(
        'checks.max_spread',
        0.0,
        'Largest root mean square distance of paths from their mean over the samples, m; 0: any.',
        limits=(0.0, 1e6),
    ),
    Row(
        'checks.max_step_pixels',
        0.25,
        'Largest step in the image between frames, as a share of its diagonal; 0: any.',
        limits=(0.0, 1.0),
    ),
    Row(
        'checks.area_ratio',
        [0.25, 4.0],
        "Least and largest size of the object's mask, as a multiple of the observed one; both 0: any.",
        limits=(0.0, 1e6),
    ),
    Row(
        'checks.min_visible',
        0.5,
        'Least share of the frames in which the object is visible; 0: any.',
        limits=(0.0, 1.0),
    ),
    Row('checks.contact_required', True, 'Actor and object must touch.'),
    Row(
        'checks.max_free_motion',
        0.05,
        'How far the object may move before it is touched, as a share of the diagonal; 0: any.',
        limits=(0.0, 1.0),
    ),
    Row(
        'checks.max_spread_pixels',
        0.1,
        'Largest root mean square distance of positions in the image from their mean over the samples, as a '
        'share of the diagonal; 0: any.',
        limits=(0.0, 1.0),
    ),
)


#: Lists whose first half may not be above the second.
INTERVALS = ('checks.workspace', 'checks.area_ratio')

#: The first may not be above the second.
ORDERED = ('num_samples', 'max_samples')
RELIABILITY = 'auto|reliable|best_effort|system_default'


def declare_reliability(node: Node, name: str):
    """Declare a subscription's QoS override for reliability, with `auto` for what its publishers offer."""
    description = f'{RELIABILITY}; auto: reliable if every publisher of the topic is, else best effort'
    value = node.declare_parameter(name, 'auto', ParameterDescriptor(description=description, read_only=True))
    if not re.fullmatch(RELIABILITY, value.value):
        raise ValueError(f'{name}: expected a value that matches {RELIABILITY}, got {value.value!r}')


def declare_parameters(node: Node, table: tuple[Row, ...]):
    """Declare every row of `table` on `node`, and refuse values that a row does not allow.

    Raises what rclpy raises for a start value outside its limits, and ValueError for a pattern.
    """
    patterns = {row.name: row.pattern for row in table if row.pattern}
    lists = {row.name: row for row in table if isinstance(row.default, list)}

    def check(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            pattern = patterns.get(parameter.name)
            if pattern and not re.fullmatch(pattern, str(parameter.value)):
                reason = f'{parameter.name}: expected a value that matches {pattern}, got {parameter.value!r}'
                return SetParametersResult(successful=False, reason=reason)
            if parameter.name in lists and (reason := _refuse_list(lists[parameter.name], parameter.value)):
                return SetParametersResult(successful=False, reason=reason)
        now = {name: node.get_parameter(name).value for name in ORDERED if node.has_parameter(name)}
        now |= {parameter.name: parameter.value for parameter in parameters if parameter.name in ORDERED}
        if len(now) == len(ORDERED) and now[ORDERED[0]] > now[ORDERED[1]]:
            reason = ' > '.join(f'{name} {now[name]}' for name in ORDERED)
            return SetParametersResult(successful=False, reason=f'{reason}: expected at most that')
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)  # also called for start values
    for row in table:
        node.declare_parameter(row.name, row.default, _descriptor(row))


def _refuse_list(row: Row, value) -> str:
    """Why a list is not allowed, '' if it is."""
    low, high = row.limits
    if value is None or len(value) != len(row.default) or not all(low <= number <= high for number in value):
        got = None if value is None else list(value)
        return f'{row.name}: expected {len(row.default)} numbers from {low} to {high}, got {got}'
    half = len(value) // 2
    ordered = all(first < second for first, second in zip(value[:half], value[half:], strict=True))
    if row.name in INTERVALS and any(value) and not ordered:
        return f'{row.name}: expected the lowest first, each below its highest, got {list(value)}'
    return ''


def read_limits(node: Node) -> PlanLimits:
    """The limits that the parameters `checks.*` set; 0 leaves a check out."""

    def value(name: str):
        return node.get_parameter(f'checks.{name}').value

    box, ratio = list(value('workspace')), tuple(value('area_ratio'))
    numbers = (
        'max_speed',
        'max_step',
        'max_spread',
        'max_step_pixels',
        'min_visible',
        'max_free_motion',
        'max_spread_pixels',
    )
    return PlanLimits(
        workspace=(box[:3], box[3:]) if any(box) else None,
        area_ratio=ratio if any(ratio) else None,
        contact_required=value('contact_required'),
        **{name: value(name) or None for name in numbers},
    )


def _descriptor(row: Row) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=row.description, read_only=row.read_only)
    if row.pattern:
        descriptor.additional_constraints = f'matches {row.pattern}'
    if isinstance(row.default, list):
        low, high = row.limits
        descriptor.additional_constraints = f'{len(row.default)} numbers from {low} to {high}'
    elif isinstance(row.default, float):
        low, high = row.limits
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif row.limits:
        low, high = row.limits
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor
