"""Layers point one way, and ROS is needed in mask2iv_ros/ros alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mask2iv_ros'

#: A unit may import from its own layer and from those before it.
LAYERS = [
    {
        'labels',
        'clip',
        'framing',
        'image_messages',
        'interpolation',
        'pictures',
        'resources',
        'weights',
        '__init__',
    },
    {'models'},
    {'pipelines'},
    {'data', 'training', 'evaluation', 'augmentation', 'planning'},
    {'ros', 'cli'},
]
#: Beside all that end in _msgs.
ROS_MODULES = {'rclpy', 'builtin_interfaces', 'rosidl_runtime_py', 'rosidl_parser', 'ament_index_python'}
INTERFACES = {'msg', 'srv', 'action'}

SOURCES = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path for path in sorted(PACKAGE.rglob('*.py'))
}


def layer_of(unit: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if unit in layer)


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules, or names in modules, that a source file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ''
            if node.level:  # relative
                base = path.relative_to(PACKAGE.parent).parts[: -node.level]
                package = '.'.join((*base, *filter(None, [node.module])))
            names |= {f'{package}.{alias.name}' for alias in node.names}
    return names


def imported_units(path: Path) -> set[str]:
    """First-level names under mask2iv_ros that a source file imports."""
    parts = [name.split('.') for name in imported_modules(path)]
    return {p[1] for p in parts if p[0] == 'mask2iv_ros' and len(p) > 1} - {'__version__'}


@pytest.mark.parametrize('module', SOURCES)
def test_a_module_imports_from_its_own_and_lower_layers_only(module):
    unit = module.split('.')[0]
    higher = {u for u in imported_units(SOURCES[module]) - INTERFACES if layer_of(u) > layer_of(unit)}
    assert not higher, f'mask2iv_ros.{module} imports from the layers above it: {higher}'


def test_units_do_not_import_each_other_in_a_circle():
    graph = {}
    for module, path in SOURCES.items():
        unit = module.split('.')[0]
        graph.setdefault(unit, set()).update(imported_units(path) - INTERFACES - {unit})
    while leaves := [unit for unit in graph if not graph[unit] & graph.keys()]:
        for unit in leaves:
            del graph[unit]
    assert not graph, f'these import each other: {graph}'


@pytest.mark.parametrize('module', [module for module in SOURCES if module.split('.')[0] != 'ros'])
def test_only_the_ros_layer_imports_ros(module):
    names = [name.split('.') for name in imported_modules(SOURCES[module])]
    from_ros = {n[0] for n in names if n[0] in ROS_MODULES or n[0].endswith('_msgs')}
    from_ros |= {n[1] for n in names if n[0] == 'mask2iv_ros' and len(n) > 1 and n[1] in INTERFACES}
    assert not from_ros


IMPORT_ALL_WITHOUT_ROS = f"""
import importlib, sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        top, *rest = name.split('.')
        generated = top == 'mask2iv_ros' and rest and rest[0] in {INTERFACES!r}
        if generated or top in {ROS_MODULES!r} or top.endswith('_msgs'):
            raise ModuleNotFoundError(name + ' (there is no ROS in this test)', name=name)

sys.meta_path.insert(0, NoRos())
for module in sys.argv[1:]:
    importlib.import_module(module)
assert not any(name.startswith('rclpy') for name in sys.modules)
print('imported', len(sys.argv) - 1)
"""


def test_everything_outside_the_ros_layer_imports_without_ros():
    modules = [f'mask2iv_ros.{m}'.removesuffix('.__init__') for m in SOURCES if m.split('.')[0] != 'ros']
    command = [sys.executable, '-c', IMPORT_ALL_WITHOUT_ROS, *modules]
    run = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f'imported {len(modules)}'


def test_the_package_itself_imports_nothing_heavy():
    code = 'import sys, mask2iv_ros; print(*{"torch", "numpy", "rclpy"} & sys.modules.keys())'
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
