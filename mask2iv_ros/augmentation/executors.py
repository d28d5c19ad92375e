"""Who makes the episodes of an augmentation: a worker in this process, or several on a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from mask2iv_ros.augmentation.worker import Outcome, Worker, part_name

#: Times that an episode is tried on Ray whose worker died.
RAY_RETRIES = 2


def run_here(worker: Worker, tasks: dict[int, list[int]], *_) -> Iterator[Outcome | None]:
    """Outcomes; before them None, when all is loaded."""
    worker.ready()
    yield
    for episode, variants in tasks.items():
        yield from worker.run(episode, variants)


def shares(resources: Mapping[str, float], workers: int | None, gpu: bool) -> tuple[int, float]:
    """How many workers there are on a cluster with `resources`, and the share of a GPU that each asks for.

    Args:
        workers: as was asked for; None for one a GPU, or where none is there or needed, one a CPU.
        gpu: whether a worker has work for a GPU.

    Raises:
        ValueError: more workers than CPUs, for which Ray would wait for ever.
    """
    gpus, cpus = int(resources.get('GPU', 0)) if gpu else 0, int(resources['CPU'])
    count = workers or min(gpus or cpus, cpus)
    if count > cpus:
        raise ValueError(f'workers: expected at most {cpus}, one for each CPU of the cluster, got {count}')
    return count, 1 / math.ceil(count / gpus) if gpus else 0


def run_on_ray(
    worker: Worker, tasks: dict[int, list[int]], workers: int | None, gpu: bool
) -> Iterator[Outcome | None]:
    """As `run_here`. Actors hold the model, episodes are tasks; Ray restarts and retries what died."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'mask2iv-ros[ray]'") from error

    owned = not ray.is_initialized()
    if owned:
        ray.init(log_to_driver=False, logging_level='warning', include_dashboard=False)
    try:
        count, share = shares(ray.cluster_resources(), workers, gpu)
        actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=share, max_restarts=-1, max_task_retries=RAY_RETRIES
        )
        arguments = (worker.job, worker.parts, worker.form, worker.names, worker.thresholds, worker.build)
        idle = [actor.remote(*arguments) for _ in range(min(count, len(tasks)))]
        ray.get([each.ready.remote() for each in idle])
        yield
        waiting, running = list(tasks.items())[::-1], {}
        while waiting or running:
            while waiting and idle:
                episode, variants = waiting.pop()
                each = idle.pop()
                running[each.run_all.remote(episode, variants)] = each, episode, variants
            (reference,), _ = ray.wait(list(running), num_returns=1)
            each, episode, variants = running.pop(reference)
            try:
                outcomes = ray.get(reference)
            except ray.exceptions.RayTaskError:  # it lives, and says that no episode can be made
                raise
            except ray.exceptions.RayError as error:
                told = f'its worker died {RAY_RETRIES + 1} times: {str(error).strip().splitlines()[0]}'
                outcomes = [
                    worker.finished(episode, variant)
                    or Outcome(episode, variant, 'failed', f'{part_name(episode, variant)}: {told}', 'worker')
                    for variant in variants
                ]
            idle.append(each)
            yield from outcomes
    finally:
        if owned:
            ray.shutdown()


EXECUTORS = {'local': run_here, 'ray': run_on_ray}
