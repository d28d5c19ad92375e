"""The parameter file that users copy says what the node does without it."""

from pathlib import Path

import yaml

from mask2iv_ros.ros.parameters import TABLE

CONFIG = Path(__file__).parents[2] / 'config' / 'mask2iv.yaml'


def test_the_parameter_file_holds_every_parameter_with_its_default():
    values = yaml.safe_load(CONFIG.read_text())['/**']['ros__parameters']
    assert values == {row.name: row.default for row in TABLE}
    assert {name: type(value) for name, value in values.items()} == {
        row.name: type(row.default) for row in TABLE
    }
