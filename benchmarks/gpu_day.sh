#!/usr/bin/env bash
# Everything that only a GPU can show, in under ten minutes of an H100: correctness, speed against
# PyTorch, the published recipe projected, memory. Writes one JSON file, one table and the log of each
# part into a folder.
#
#     bash benchmarks/gpu_day.sh OUT [PYTHON]
#     bash benchmarks/gpu_day.sh --short OUT [PYTHON]     everything small, on a CPU, too
#
# A part that fails or takes too long is reported in the table, and the others run all the same; the
# exit code is then 1. Without PyTorch only our side is timed.
set -uo pipefail
short=""
if [ "$1" = "--short" ]; then
    short=--short
    shift
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${2:-python}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false SPEED_CACHE="$work/compiled" python work
rm -f "$out"/*.json "$out/parts.tsv"

# part NAME SECONDS COMMAND...: runs it with a time limit and notes its exit code and seconds.
part() {
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - start))" | tee -a "$out/parts.tsv"
}

# Tests run as users' programs do, in float32 for products, too; trying every algorithm of every
# convolution would take longer than they.
tests() {
    JAX_DISABLE_MOST_OPTIMIZATIONS=false JAX_DEFAULT_MATMUL_PRECISION=highest \
        XLA_FLAGS=--xla_gpu_autotune_level=0 "$python" -m pytest -W default "$@"
}

# A run that is killed and continued ends with the parameters of one that is not, bit for bit.
resume() {
    local process
    cd "$work" || return 1
    train() { # in the place of the shell that calls it, so that this is what gets killed
        exec "$python" -m charm_jax.train --config.deterministic \
            --config.data.phantom.{train,test}_images=320 \
            --config.stages.bce.epochs=2 --config.stages.focal.epochs=1 \
            --config.checkpoint.every_steps=4 "--config.name=$1"
    }
    (train whole) || return 1
    train killed &
    process=$!
    until [ -d runs/killed/checkpoints/bce/4 ] || ! kill -0 "$process"; do sleep 0.1; done
    kill -9 "$process"
    wait "$process"
    (train killed) || return 1
    grep -h params_sha256 runs/{whole,killed}/summary.json | sort -u >digests
    cat digests
    [ "$(wc -l <digests)" = 1 ]
}
export -f tests resume

sides=""
"$python" -c "import torch" 2>/dev/null || sides="--sides ours resident published vote vote_all"
if [ -n "$short" ]; then
    part gpu_tests 300 bash -c "tests -n 0 tests/charm_jax/test_gpu.py"
    part parity 300 bash -c "tests -n 0 tests/charm_jax/models/test_attention.py"
    part resume 300 bash -c resume
    part bfloat16 300 "$python" benchmarks/bfloat16.py --short --work "$work/long" \
        --out "$out/bfloat16.json"
    part speed 300 "$python" benchmarks/speed.py --short --rounds 2 --only resident \
        --together --out "$out/speed.json" $sides
    part depthwise 60 "$python" benchmarks/depthwise.py --batch 2 --shapes 1 \
        --out "$out/depthwise.json"
    part recipe 300 "$python" benchmarks/recipe_time.py --net efficientnet_v2_nano --side 32 \
        --resident 256 --steps 2 --out "$out/recipe.json"
else
    # Nothing is timed here, so these share the device.
    part gpu_tests 160 bash -c "tests -n 2 tests/charm_jax/test_gpu.py" &
    part parity 160 bash -c "tests -n 4 -m 'not slow' tests/charm_jax/models/test_charm.py \
        tests/charm_jax/models/backbones tests/charm_jax/models/test_attention.py" &
    part resume 160 bash -c resume &
    part bfloat16 160 "$python" benchmarks/bfloat16.py --work "$work/long" \
        --out "$out/bfloat16.json" &
    wait
    part speed 250 "$python" benchmarks/speed.py --rounds 9 --only train resident charm eval \
        --together --out "$out/speed.json" $sides
    part depthwise 40 "$python" benchmarks/depthwise.py --out "$out/depthwise.json"
    part recipe 120 "$python" benchmarks/recipe_time.py --steps 60 --out "$out/recipe.json"
fi
"$python" benchmarks/gpu_table.py "$out"
