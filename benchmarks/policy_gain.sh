#!/usr/bin/env bash
# The whole table of policy_gain.py by one command, hours on a small machine; the same command goes on where it stopped.
#
#   . scripts/env.sh && benchmarks/policy_gain.sh OUT                       # results/policy_gain.*
#   . scripts/env.sh && benchmarks/policy_gain.sh OUT drawer-open 4000 results/policy_gain_drawer
set -euo pipefail
out=$1 task=${2:-button-press-topdown} steps=${3:-2000} results=${4:-results/policy_gain}
here=$(dirname "$0")
real=$out/real/train few=$out/few

mask2iv simulate "$out/real" --size sim8 --tasks "$task" --episodes 60 --test-episodes 0 \
    --stride 4 --camera-jitter 0 --height 128 --width 160
[ -e "$few" ] || python -c "
from lerobot.datasets import LeRobotDataset, delete_episodes
data = LeRobotDataset('real', root='$real')
delete_episodes(data, list(range(12, data.meta.total_episodes)), output_dir='$few', repo_id='few')
"
gain() { python "$here/policy_gain.py" "$out" --steps "$steps" "$@"; }
gain --make every_frame --data "$real:12"
gain --make same_motion --data "$real:12" --variants 10
mask2iv train segmenter "$few" "$out/segmenter"
mask2iv train inverse-dynamics "$few" "$out/dynamics"
mask2iv augment "$few" "$out/data/new_motion" --mode new-motion --variants 10 \
    --segmenter "$out/segmenter/segmenter" --inverse-dynamics "$out/dynamics"

copies=$out/data/every_frame drawn=$out/data/same_motion moved=$out/data/new_motion
looks=(--looks training surroundings strong camera)
gain "${looks[@]}" --row real --data "$real:12"
gain "${looks[@]}" --row real_4n --data "$real:48"
gain "${looks[@]}" --row ordinary --data "$real:12" --transforms
gain "${looks[@]}" --row every_frame --data "$real:12" "$copies"
gain "${looks[@]}" --row every_frame_ordinary --data "$real:12" "$copies" --transforms
gain "${looks[@]}" --row half_real --data "$real:12" "$copies" --real-share 0.5
gain "${looks[@]}" --row same_motion --data "$real:12" "$drawn"
gain "${looks[@]}" --row new_motion --data "$real:12" "$moved"
gain "${looks[@]}" --row both --data "$real:12" "$copies" "$moved"
gain --table --results "$here/$results"
