"""README.md of an augmented dataset: what is in it, how it was made, and how to split it."""

from __future__ import annotations

import jinja2

from mask2iv_ros.augmentation import output
from mask2iv_ros.data.lerobot import GROUP_KEY, SOURCE_KEY

TEMPLATE = """\
---
license: {{ licence }}
task_categories: [robotics]
tags: [LeRobot, mask2iv, synthetic]
configs: [{config_name: default, data_files: data/*/*.parquet}]
---

# {{ name }}

{{ counts.generated }} generated and {{ counts.recorded }} recorded robot episodes
({{ counts.frames }} frames, {{ fps }} a second, LeRobot v3), made by `mask2iv augment`
of the {{ source_episodes }} episodes of `{{ source }}`.

## How the episodes were made

{% if job.mode == 'same_motion' -%}
* Same motion, new looks: {% if job.method.get('keep') == 'everything' -%}
  each recorded frame is repainted by its masks, no model draws.
{%- else -%}
  the recorded masks drive the model from an edited first frame.
{%- endif %}
  {%- if has_actions %} Actions, states
  and all other columns are those of the source episode.
  {%- else %} There are no
  actions; all other columns are those of the source episode.
  {%- endif %}
{%- else -%}
* New motion: masks and video are generated. Actions and states are the estimate of an inverse-dynamics
  model, not what a robot did.
{%- endif %}
{%- for key, value in job.method.items() if value is not none %}
* {{ key }}: {% if value is mapping %}{% for name, part in value.items() -%}
  {{ name }} {{ part }}{{ ', ' if not loop.last }}{% endfor %}{% else %}{{ value }}{% endif %}
{%- endfor %}
* {{ job.variants }} variants of each source episode, seed {{ job.seed }}.
{%- if job.include_source > 1 %}
* Each recorded episode is there {{ job.include_source }} times{{ ', held-out ones once' if held_out }}.
{%- endif %}
* Cameras: generated {{ cameras.generated | join(', ') }};
  as recorded {{ cameras.recorded | join(', ') or 'none' }};
  left out {{ cameras.dropped | join(', ') or 'none' }}. What is as recorded was encoded once more.
* Features: {% for key in features %}`{{ key }}`{{ ', ' if not loop.last }}{% endfor %}.

## Quality gates

{{ counts.rejected }} generated episodes were dropped by a gate, {{ counts.failed }} could not be made.
{% if job.thresholds %}
| gate | threshold | episodes it dropped |
|---|---|---|
{% for gate, threshold in job.thresholds.items() -%}
| {{ gate }} | {{ 'off' if threshold is none else threshold }} | {{ dropped_by_gate.get(gate, 0) }} |
{% endfor %}
{%- else %}
No gate was on: nobody checked that the generated actor moves as the recorded one.
{% endif %}
## Where an episode is from

`{{ sidecar }}`, and the columns `{{ record_key }}` (JSON), `{{ mode_key }}`,
`{{ episode_key }}`, `{{ variant_key }}` and `{{ group_key }}`
of each episode in meta/episodes, tell source, mode, variant, seed, weights and gate values. LeRobot's
merge and removal of features keep the columns and lose the file; its delete and split lose both
{%- if source_key in features %}, and `{{ source_key }}` of each frame stays{% endif %}.

{% if job.mode == 'same_motion' -%}
Variants have the actions and states of their source. Checkers that look for equal actions call them
duplicates; that is what they are meant to be. What checkers say of actions, states and lengths, they say of
the source as well.

{% endif -%}

## Training and validation

Episodes with one `{{ group_key }}` show one demonstration and belong on one side of a split:

```
python -c "from mask2iv_ros.augmentation.output import grouped_split; print(grouped_split('FOLDER', 0.1))"
```

prints such sides, as `lerobot-edit-dataset --operation.type=split --operation.splits="{...}"` takes them, and
`lerobot-train --dataset.episodes="[...]"` one of them.
LeRobot's own `--dataset.eval_split` (with `--eval_steps`, else nothing is evaluated) takes the last episodes
of each task.
{%- if safe_eval_split %} Up to {{ safe_eval_split }}, these are recorded ones that were held out: there
are no variants of them, and nothing leaks.
{%- else %} Here that leaks: no recorded episodes were held out for it (`--hold-out`, `--include-source`).
{%- endif %}
{%- if counts.recorded %}
The recorded episodes are in it already: merged with the source, they are there once more.
{%- endif %}

## Licence

{% if job.license %}{{ job.license }}.
{%- else %}Unknown: that of the source was not given, and it applies.
{%- endif %}
"""


def dataset_card(account: dict, form: output.OutputFormat) -> str:
    """The card of a dataset, of the content of its sidecar file and its format."""
    job = account['identity']
    return jinja2.Template(TEMPLATE, keep_trailing_newline=True, undefined=jinja2.StrictUndefined).render(
        **account,
        job=job,
        licence=job['license'] or 'unknown',
        source=job['source'],
        fps=form.fps,
        features=form.features,
        has_actions=output.has_actions(form.features),
        sidecar=output.SIDECAR,
        record_key=output.RECORD_KEY,
        mode_key=output.MODE_KEY,
        episode_key=output.SOURCE_EPISODE_KEY,
        variant_key=output.VARIANT_KEY,
        group_key=GROUP_KEY,
        source_key=SOURCE_KEY,
    )
