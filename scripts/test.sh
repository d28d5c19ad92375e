#!/usr/bin/env bash
# All checks, one phase after the other; `make test` sets up first. With names of phases it runs only those:
#   scripts/test.sh lint unit
cd "$(dirname "$0")/.." || exit 1
. scripts/env.sh || exit 1

lint() { ruff check . && ruff format --check .; }
unit() { OMP_NUM_THREADS=1 python -m pytest test --ignore test/ros -n auto --maxprocesses 4 --dist loadfile; }
ros() { python -m pytest test/ros; }

failed=()
times=()
for phase in "${@:-lint unit ros}"; do
    for name in $phase; do
        echo "== $name"
        start=$SECONDS
        $name || failed+=("$name")
        times+=("$name $((SECONDS - start)) s")
    done
done
(IFS=,; echo "== Time: ${times[*]}")
if [ ${#failed[@]} != 0 ]; then
    echo "== FAILED: ${failed[*]}"
    exit 1
fi
