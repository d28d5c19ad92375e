"""What the simulated benchmark `metaworld-interaction` consists of: tasks, cameras, splits and sizes.

Left out of Meta-World's 50 tasks: reach and reach-wall, where the hand moves and no object does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Task:
    """One row of the task table.

    `texts` are what a person would say, the canonical one first; `bodies` are the MuJoCo bodies (with all
    below them) that the hand moves: of hammer and nail, the hammer. The cameras look at `lookat` (metres,
    world), the default one from `distance` metres. An expert that needs over `max_steps` has lost its way;
    the film ends `steps_after` steps after success.

    `env` is Meta-World's name of the environment where it is not the key of the row. `placements` are the
    least and the largest x, y, z (metres, world) of the object at first and of its goal, in place of
    Meta-World's own; objects are `scale` times as wide as there.
    """

    texts: tuple[str, ...]
    bodies: tuple[str, ...]
    lookat: tuple[float, float, float]
    distance: float
    max_steps: int = 150
    steps_after: int = 10
    env: str | None = None
    placements: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    scale: float = 1.0

    @property
    def text(self) -> str:
        return self.texts[0]


#: The key is Meta-World's environment name without its version.
TASKS = {
    'assembly': Task(
        (
            'put the ring on the peg',
            'place the ring over the peg',
            'pick up the ring tool and put it on the peg',
            'assemble the ring and the peg',
        ),
        ('RoundNut',),
        (0.0, 0.66, 0.12),
        0.8,
    ),
    'basketball': Task(
        (
            'put the basketball in the hoop',
            'drop the ball through the basket',
            'dunk the basketball',
            'pick up the basketball and score',
        ),
        ('bsktball',),
        (0.0, 0.7, 0.17),
        0.8,
    ),
    'bin-picking': Task(
        (
            'move the block to the other bin',
            'take the cube out of its bin and put it into the other one',
            'pick the block from one bin and place it in the other',
        ),
        ('obj',),
        (0.0, 0.68, 0.09),
        0.75,
        400,
    ),
    'box-close': Task(
        (
            'close the box',
            'put the lid on the box',
            'pick up the lid and cover the box',
            'place the cover on the box',
        ),
        ('boxbodytop',),
        (0.02, 0.64, 0.11),
        0.85,
    ),
    'button-press': Task(
        (
            'push the button in',
            'press the button from the front',
            'press the red button on the side of the box',
        ),
        ('button',),
        (0.0, 0.7, 0.12),
        0.75,
    ),
    'button-press-topdown': Task(
        (
            'press the button',
            'press the button from above',
            'push the red button down',
            'hit the button on top of the box',
        ),
        ('button',),
        (0.0, 0.67, 0.2),
        0.82,
    ),
    'button-press-topdown-wall': Task(
        (
            'press the button behind the wall from above',
            'reach over the wall and push the button down',
            'go over the wall and press the button on top of the box',
        ),
        ('button',),
        (0.0, 0.7, 0.2),
        0.8,
    ),
    'button-press-wall': Task(
        (
            'press the button behind the wall',
            'reach over the wall and push the button into the box',
            'go around the wall and press the button',
        ),
        ('button',),
        (0.0, 0.7, 0.12),
        0.75,
    ),
    'coffee-button': Task(
        (
            'press the button of the coffee machine',
            'start the coffee machine',
            'push the button on the coffee maker',
            'make a coffee',
        ),
        ('cmbutton',),
        (0.0, 0.67, 0.22),
        0.75,
        steps_after=3,  # later the button is inside the machine
    ),
    'coffee-pull': Task(
        (
            'pull the mug away from the coffee machine',
            'take the mug out of the coffee machine',
            'move the cup away from the coffee maker',
        ),
        ('obj',),
        (0.01, 0.67, 0.07),
        0.75,
    ),
    'coffee-push': Task(
        (
            'push the mug under the coffee machine',
            'put the mug into the coffee machine',
            'move the cup to the coffee maker',
        ),
        ('obj',),
        (0.02, 0.66, 0.07),
        0.75,
    ),
    'dial-turn': Task(
        ('turn the dial', 'rotate the dial', 'turn the knob', 'twist the round knob on the table'),
        ('dial',),
        (0.0, 0.72, 0.06),
        0.75,
    ),
    'disassemble': Task(
        (
            'take the ring off the peg',
            'lift the ring from the peg',
            'pull the ring tool off the peg',
            'disassemble the ring and the peg',
        ),
        ('RoundNut',),
        (0.1, 0.63, 0.12),
        0.8,
        250,
    ),
    'door-close': Task(
        ('close the door', 'shut the door', 'push the door closed', 'swing the door shut'),
        ('door_link',),
        (-0.08, 0.68, 0.13),
        0.95,
    ),
    'door-lock': Task(
        ('lock the door', 'turn the lock of the safe', 'turn the bolt down', 'lock the safe'),
        ('lock_link',),
        (0.03, 0.68, 0.17),
        0.75,
    ),
    'door-open': Task(
        ('open the door', 'pull the door open', 'open the door by its handle', 'swing the door open'),
        ('door_link',),
        (-0.05, 0.68, 0.13),
        0.95,
    ),
    'door-unlock': Task(
        ('unlock the door', 'turn the lock of the safe back', 'turn the bolt up', 'unlock the safe'),
        ('lock_link',),
        (0.03, 0.68, 0.17),
        0.75,
    ),
    'drawer-close': Task(
        ('close the drawer', 'push the drawer in', 'shut the drawer', 'slide the drawer closed'),
        ('drawer_link',),
        (0.0, 0.7, 0.12),
        0.8,
    ),
    'drawer-open': Task(
        ('open the drawer', 'pull the drawer open', 'pull out the drawer', 'slide the drawer open'),
        ('drawer_link',),
        (0.0, 0.67, 0.12),
        0.8,
    ),
    'faucet-close': Task(
        ('close the faucet', 'turn off the tap', 'turn the faucet off', 'rotate the tap handle to close it'),
        ('faucet_link2',),
        (0.0, 0.63, 0.12),
        0.72,
    ),
    'faucet-open': Task(
        ('open the faucet', 'turn on the tap', 'turn the faucet on', 'rotate the tap handle to open it'),
        ('faucet_link2',),
        (0.0, 0.63, 0.12),
        0.72,
    ),
    'hammer': Task(
        (
            'hammer the nail',
            'pick up the hammer and hit the nail',
            'drive the nail in with the hammer',
            'strike the nail',
        ),
        ('hammerbody',),
        (0.0, 0.6, 0.09),
        0.88,
    ),
    'hand-insert': Task(
        (
            'put the block into the hole',
            'insert the block in the hole of the table',
            'drop the cube into the hole',
        ),
        ('obj',),
        (0.0, 0.74, 0.06),
        0.75,
    ),
    'handle-press': Task(
        ('press the handle down', 'push down the handle', 'push the lever down'),
        ('handle_link',),
        (0.0, 0.7, 0.1),
        0.75,
    ),
    'handle-press-side': Task(
        (
            'press the handle at the side down',
            'push down the sideways handle',
            'push the side lever down',
        ),
        ('handle_link',),
        (-0.15, 0.69, 0.1),
        0.75,
    ),
    'handle-pull': Task(
        ('pull the handle up', 'lift the handle', 'raise the lever'),
        ('handle_link',),
        (0.0, 0.7, 0.1),
        0.75,
    ),
    'handle-pull-side': Task(
        (
            'pull the handle at the side up',
            'lift the sideways handle',
            'raise the side lever',
        ),
        ('handle_link',),
        (-0.15, 0.69, 0.1),
        0.75,
    ),
    'lever-pull': Task(
        ('pull the lever up', 'raise the lever with the ball', 'swing the lever up'),
        ('lever_link1',),
        (0.07, 0.66, 0.28),
        0.85,
    ),
    'peg-insert-side': Task(
        (
            'insert the peg into the hole at the side',
            'put the peg into the box from the side',
            'pick up the peg and push it into the hole',
        ),
        ('peg',),
        (-0.04, 0.6, 0.1),
        0.85,
    ),
    'peg-unplug-side': Task(
        ('unplug the plug', 'pull the plug out', 'pull the plug from its socket'),
        ('plug1',),
        (-0.1, 0.69, 0.12),
        0.75,
    ),
    'pick-out-of-hole': Task(
        (
            'pick the puck out of the hole',
            'lift the puck from the hole',
            'take the puck out of the hole in the table',
        ),
        ('obj',),
        (0.0, 0.66, 0.1),
        0.75,
    ),
    'pick-place': Task(
        (
            'pick up the puck and place it further back',
            'grasp the puck and carry it forward',
            'lift the red puck and put it down elsewhere',
        ),
        ('obj',),
        (0.0, 0.73, 0.09),
        0.75,
    ),
    'pick-place-wall': Task(
        (
            'place the puck behind the wall',
            'lift the puck over the wall',
            'pick up the puck and put it down on the other side of the wall',
        ),
        ('obj',),
        (0.0, 0.7, 0.12),
        0.75,
        250,
    ),
    'plate-slide': Task(
        (
            'slide the plate into the goal',
            'push the red disc into the goal',
            'slide the plate forward into the net',
        ),
        ('puck_channel',),
        (0.0, 0.73, 0.05),
        0.78,
    ),
    'plate-slide-back': Task(
        ('slide the plate out of the goal', 'pull the plate back', 'pull the red disc out of the net'),
        ('puck_channel',),
        (0.0, 0.7, 0.05),
        0.75,
    ),
    'plate-slide-back-side': Task(
        (
            'slide the plate sideways out of the goal',
            'push the plate back to the right',
            'push the disc out of the net at the side',
        ),
        ('puck_channel',),
        (-0.05, 0.61, 0.05),
        0.75,
    ),
    'plate-slide-side': Task(
        (
            'slide the plate sideways into the goal',
            'push the plate to the left into the net',
            'push the disc into the net at the side',
        ),
        ('puck_channel',),
        (-0.13, 0.62, 0.05),
        0.75,
    ),
    'push': Task(
        ('push the puck forward', 'slide the red puck over the table', 'push the puck away from the robot'),
        ('obj',),
        (0.0, 0.73, 0.06),
        0.75,
    ),
    'push-back': Task(
        ('pull the block back', 'push the block towards the robot', 'slide the block back over the table'),
        ('obj',),
        (0.0, 0.74, 0.07),
        0.75,
        400,
    ),
    'push-wall': Task(
        (
            'push the puck around the wall',
            'slide the puck past the wall',
            'move the puck behind the wall',
        ),
        ('obj',),
        (-0.04, 0.73, 0.07),
        0.75,
    ),
    'shelf-place': Task(
        (
            'put the block on the shelf',
            'place the cube on the shelf',
            'pick up the block and set it on the shelf',
        ),
        ('obj',),
        (0.0, 0.68, 0.15),
        0.8,
    ),
    'soccer': Task(
        (
            'push the ball into the goal',
            'score a goal',
            'kick the soccer ball into the net',
            'roll the ball into the goal',
        ),
        ('soccer_ball',),
        (0.0, 0.74, 0.06),
        0.78,
    ),
    'stick-pull': Task(
        (
            'pull the thermos with the stick',
            'hook the thermos with the stick and pull it',
            'grasp the stick and pull the bottle by its handle',
        ),
        ('stick',),
        (0.12, 0.57, 0.09),
        0.85,
    ),
    'stick-push': Task(
        (
            'push the thermos with the stick',
            'pick up the stick and push the bottle',
            'use the stick to push the thermos away',
        ),
        ('stick',),
        (0.08, 0.6, 0.09),
        0.8,
    ),
    'sweep': Task(
        ('sweep the block to the right', 'push the block aside', 'sweep the block to the edge of the table'),
        ('obj',),
        (0.18, 0.64, 0.07),
        0.85,
    ),
    'sweep-into': Task(
        ('sweep the block into the hole', 'push the cube into the hole', 'sweep the cube off into the hole'),
        ('obj',),
        (0.0, 0.74, 0.06),
        0.75,
    ),
    'window-close': Task(
        ('close the window', 'slide the window shut', 'push the window closed'),
        ('windowb_a',),
        (0.0, 0.74, 0.18),
        0.82,
    ),
    'window-open': Task(
        ('open the window', 'slide the window open', 'push the window open'),
        ('windowb_a',),
        (0.0, 0.72, 0.16),
        0.85,
    ),
}

_ON_TABLE = (-0.2, 0.55, 0.02, -0.25, 0.5, 0.02), (0.2, 0.8, 0.02, 0.25, 0.85, 0.0201)
_anywhere = partial(
    Task, bodies=('obj',), lookat=(0.0, 0.68, 0.06), distance=0.85, placements=_ON_TABLE, scale=1.5
)

#: The object goes wherever the goal is, which no picture shows: in all other tasks but a few the scene tells
#: where the object ends, and a model learns to overlook the goal that it is given.
GOAL_TASKS = {
    'push-anywhere': _anywhere(
        ('push the puck to the goal', 'slide the puck over the table to where it should be'), env='push'
    ),
    'push-block-anywhere': _anywhere(
        ('push the block to the goal', 'slide the block over the table to where it should be'),
        env='push-back',
    ),
    'pick-place-anywhere': _anywhere(
        ('carry the puck to the goal', 'pick up the puck and bring it to where it should be'),
        lookat=(0.0, 0.68, 0.09),
        env='pick-place',
        placements=(_ON_TABLE[0], (*_ON_TABLE[1][:5], 0.25)),
    ),
}
BENCHMARK_TASKS = tuple(TASKS)  #: Meta-World's own
TASKS |= GOAL_TASKS

#: The tasks that the embedded model mask2iv-sim was trained on, in the order of its dataset.
SIM8_TASKS = (
    'door-open',
    'door-close',
    'drawer-open',
    'button-press-topdown',
    'faucet-open',
    'faucet-close',
    'hammer',
    'assembly',
)

#: Never in a training split: the test tasks of Meta-World's ML45 (arXiv 1910.10897).
HELD_OUT_TASKS = ('bin-picking', 'box-close', 'door-lock', 'door-unlock', 'hand-insert')


@dataclass(frozen=True)
class View:
    """Where a camera stands: angles and vertical field of view in degrees, distance in units of the task's.

    A free camera, which never rolls: Meta-World's own `corner...` cameras give pictures upside down.
    """

    azimuth: float
    elevation: float
    distance: float = 1.0
    fovy: float = 45.0


#: The first is the default. Its name is the video column of every dataset that had no other camera. The other
#: three look about as Meta-World's fixed cameras of their names do, from nearer. `corner` and `corner3` are
#: turned by 10 and 17 degrees, because the forearm hides many objects from the original directions.
VIEWS = {
    'front': View(130.0, -28.0),
    'corner': View(35.0, -20.0, 1.15),
    'corner3': View(160.0, -48.0, 1.05),
    'corner2': View(148.4, -28.9, 0.95, 60.0),
}
HELD_OUT_CAMERA = 'corner2'  #: never in a training split

#: Meta-World's own cameras, which no seed moves: those through which plans are executed
#: (`metaworld_execution`), and which the published executor's model was trained on.
FIXED_VIEWS = {'mw_corner': 'corner', 'mw_corner2': 'corner2', 'mw_corner3': 'corner3'}

#: A camera that each seed puts in one of `VARIED_VIEWS`: with as many clips, a model meets six times as many
#: scenes as through six cameras at once.
VARIED_VIEW = 'varied'
VARIED_VIEWS = (*(name for name in VIEWS if name != HELD_OUT_CAMERA), *FIXED_VIEWS)

#: The eleven tasks on which AVDC (arXiv 2310.08576) executed plans.
PUBLISHED_TASKS = (
    'door-open', 'door-close', 'basketball', 'shelf-place', 'button-press', 'button-press-topdown',
    'faucet-close', 'faucet-open', 'handle-press', 'hammer', 'assembly',
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """What one LeRobot dataset of the benchmark holds; arguments of `metaworld.simulate`."""

    tasks: tuple[str, ...]
    episodes: int
    cameras: tuple[str, ...]
    paraphrase: bool = True
    depth: bool = True
    late_starts: bool = False


def _splits(
    train_tasks: tuple[str, ...], held_out: tuple[str, ...], train: int, test: int, test_tasks: int
) -> dict[str, Split]:
    cameras = tuple(name for name in VIEWS if name != HELD_OUT_CAMERA)
    return {
        'train': Split(train_tasks, train, cameras),
        'test': Split(train_tasks, test, cameras),
        'test_camera': Split(train_tasks, test, (HELD_OUT_CAMERA,)),
        'test_tasks': Split(held_out, test_tasks, cameras),
    }


_TRAIN_TASKS = tuple(task for task in BENCHMARK_TASKS if task not in HELD_OUT_TASKS)

_EXECUTION = (*PUBLISHED_TASKS, 'drawer-open', 'drawer-close', 'push')

#: Splits of each size of the benchmark. `sim8` trained the first mask2iv-sim: one camera, canonical texts.
#: `execution` is for models whose plans are executed: also the cameras of the executor, and half of the clips
#: begin somewhere on the way, as plans do that are made anew. `scenes` has more of the same, a camera each;
#: `goals` has scenes in which only the goal tells where the object ends.
SIZES = {
    'tiny': _splits(('drawer-open', 'faucet-close'), ('door-lock',), 2, 1, 1),
    'small': _splits(_TRAIN_TASKS, HELD_OUT_TASKS, 3, 1, 2),
    'full': _splits(_TRAIN_TASKS, HELD_OUT_TASKS, 100, 10, 25),
    'sim8': {
        'train': Split(SIM8_TASKS, 120, ('front',), paraphrase=False, depth=False),
        'test': Split(SIM8_TASKS, 10, ('front',), paraphrase=False, depth=False),
    },
    'execution': {
        'train': Split(_EXECUTION, 12, VARIED_VIEWS, depth=False, late_starts=True),
        'test': Split(_EXECUTION, 2, VARIED_VIEWS, depth=False, late_starts=True),
    },
    'scenes': {
        'train': Split(_EXECUTION, 144, (VARIED_VIEW,), depth=False, late_starts=True),
        'test': Split(_EXECUTION, 2, VARIED_VIEWS, depth=False, late_starts=True),
    },
    'goals': {
        'train': Split(tuple(GOAL_TASKS), 240, (VARIED_VIEW,), depth=False),
        'test': Split(tuple(GOAL_TASKS), 16, (VARIED_VIEW,), depth=False),
    },
}
