"""`mask2iv show`: a dataset as a static HTML page that opens in any browser, with its pictures beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader
from mask2iv_ros.data.sampling import spread_frames
from mask2iv_ros.pictures import contact_sheet, write_picture, write_video

SHEET_ROWS = 12  #: clips of the contact sheet
COLUMNS = 8  #: frames of a clip in a strip
MAX_FRAMES = 64  #: frames of a clip that are decoded for video and statistics

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; }
body { margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
.tasks { columns: 22rem; padding-left: 1.2rem; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem; }
figure { margin: 0; } video, img { max-width: 100%; } video { width: 100%; background: #000; }
figcaption { font-size: 13px; color: #444; } .note { color: #777; } .bad { color: #a00; }
i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 .8em; }
</style></head><body>
<h1>{{ name }}</h1>
<p class="note">{{ path }}</p>
<table>
{% for key, value in facts.items() %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>

<h2>Statistics</h2>
<p class="note">Of {{ clips|length }} episodes drawn at random; at most {{ max_frames }} frames of each.</p>
<img src="statistics.png" alt="Histograms of length, mask area, motion and contact">

<h2>Clips</h2>
{% if masked %}<p>Masks:<i style="background:#f00"></i>object<i style="background:#0f0"></i>actor
<i style="background:#00f"></i>second part</p>{% endif %}
<div class="clips">
{% for clip in clips %}<figure>
<video src="{{ clip.video }}" poster="{{ clip.poster }}" autoplay loop muted playsinline></video>
<figcaption><b>{{ clip.task or '(no task)' }}</b><br>{{ clip.episode }}, {{ clip.frames }} frames</figcaption>
</figure>
{% endfor %}</div>

<h2>Contact sheet</h2>
<img src="contact_sheet.jpg" alt="Frames of clips">
<h2>Tasks, with their episodes</h2>
<ul class="tasks">
{% for task, count in tasks %}<li>{{ task or '(none)' }} <span class="note">{{ count }}</span></li>
{% endfor %}</ul>
{% if more_tasks %}<p class="note">and {{ more_tasks }} more</p>{% endif %}
{% if skipped %}<h2 class="bad">Damaged episodes</h2>
<ul>{% for error in skipped %}<li>{{ error }}</li>
{% endfor %}</ul>{% endif %}
</body></html>
"""


def mask_statistics(clip: InteractionClip) -> dict[str, float]:
    """What the page plots of a clip with masks.

    Keys: `object area` and `actor area` (mean share of the picture, percent), `object motion` (largest
    distance of the object's centroid from the first, percent of the picture's diagonal; nan if the object is
    never seen twice), `frames in contact` (percent, masks within 7 pixels).
    """
    target = lb.object_mask(clip.labels)
    centres = np.array([c for c in map(lb.centroid, target) if c])
    diagonal = np.hypot(*clip.labels.shape[1:])
    moved = np.linalg.norm(centres - centres[0], axis=1).max() / diagonal if len(centres) > 1 else np.nan
    return {
        'object area': 100 * float(target.mean()),
        'actor area': 100 * float((clip.labels == lb.ACTOR).mean()),
        'object motion': 100 * float(moved),
        'frames in contact': 100 * float(lb.contact_band(clip.labels).any(axis=(1, 2)).mean()),
    }


def write_page(
    reader: EpisodeReader, out: Path, clips: int = 24, camera: str | None = None, skip_bad: bool = False
) -> Path:
    """Write `out/index.html` with its pictures and videos; returns its path.

    Args:
        clips: how many episodes, drawn at random, are decoded for statistics and samples.
        camera: name; None for each episode's first.
        skip_bad: list damaged episodes on the page instead of raising BadEpisode.
    """
    from jinja2 import Environment

    (out / 'clips').mkdir(parents=True, exist_ok=True)
    skipped: list[BadEpisode] = []
    readable, tasks, lengths, rates, cameras = [], Counter(), [], set(), Counter()
    for index in range(len(reader)):
        try:
            episode = reader.episode(index)
        except BadEpisode as error:
            if not skip_bad:
                raise
            skipped.append(error)
            continue
        readable.append(index)
        tasks[episode.task] += 1
        lengths.append(episode.length)
        rates.add(episode.fps)
        cameras.update(f'{c} (masks)' if c in episode.masked else c for c in episode.cameras)
    shown, statistics, strips = [], [], {}
    # At random: tasks often take turns in a dataset, and even steps could meet one of them again and again.
    picks = np.random.default_rng(0).permutation(readable)[:clips]
    for index in tqdm(sorted(picks.tolist()), desc='show', unit='clip'):
        episode = reader.episode(index)
        try:
            frames = spread_frames(episode.length, min(episode.length, MAX_FRAMES))
            clip = reader.read(index, frames, camera)
        except BadEpisode as error:
            if not skip_bad:
                raise
            skipped.append(error)
            continue
        picture = clip.frames if clip.labels is None else lb.overlay(clip.frames, clip.labels)
        video, poster = Path('clips') / f'{index:06d}.mp4', Path('clips') / f'{index:06d}.jpg'
        write_video(out / video, picture, max(1.0, clip.fps))
        write_picture(out / poster, picture[len(picture) // 2])
        if clip.labels is not None:
            statistics.append(mask_statistics(clip))
        if len(strips) < SHEET_ROWS:
            picks = spread_frames(len(picture), COLUMNS)
            strips[f'{episode.name}: {episode.task}'] = picture[picks]
        shown.append(
            {
                'video': video.as_posix(),
                'poster': poster.as_posix(),
                'task': episode.task,
                'episode': episode.name,
                'frames': episode.length,
            }
        )
    if strips:
        write_picture(out / 'contact_sheet.jpg', contact_sheet(strips, 1200, COLUMNS))
    _plot(out / 'statistics.png', lengths, statistics)
    facts = {
        'episodes': len(reader),
        'frames': f'{sum(lengths):,}',
        'frames a second': ', '.join(f'{rate:g}' for rate in sorted(rates)),
        'cameras': ', '.join(f'{name}: {count} episodes' for name, count in cameras.items()),
        'tasks': len(tasks),
    }
    page = Environment(autoescape=True).from_string(PAGE)
    path = out / 'index.html'
    path.write_text(
        page.render(
            name=reader.path.name,
            path=reader.path,
            facts=facts,
            tasks=tasks.most_common(100),
            more_tasks=max(0, len(tasks) - 100),
            clips=shown,
            masked=bool(statistics),
            max_frames=MAX_FRAMES,
            skipped=skipped,
        )
    )
    return path


def _plot(path: Path, lengths: list[int], statistics: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    panels = {'episode length (frames)': lengths}
    units = {
        'object area': 'object area (% of picture)',
        'actor area': 'actor area (% of picture)',
        'object motion': 'object motion (% of diagonal)',
        'frames in contact': 'frames in contact (%)',
    }
    if statistics:
        panels |= {title: [row[key] for row in statistics] for key, title in units.items()}
    figure = Figure(figsize=(2.6 * len(panels), 2.4), layout='constrained')
    for i, (title, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        values = np.asarray(values, dtype=float)
        axes.hist(values[np.isfinite(values)], bins=20, color='#4477aa')
        axes.set_xlabel(title)
        axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=110)
