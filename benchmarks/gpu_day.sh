#!/usr/bin/env bash
# Everything that only a GPU can show: speed against PyTorch, where a step spends its time, correctness,
# the published recipe projected, memory. Writes one JSON file, one table and the log of each part into
# a folder.
#
#     bash benchmarks/gpu_day.sh OUT [PYTHON]
#     bash benchmarks/gpu_day.sh --short OUT [PYTHON]     everything small, on a CPU, too
#
# The parts come one after the other, the most telling first: XLA times kernels while it compiles, and
# compiling takes most of the time. A part that fails or takes too long is reported in the table, and
# the others run all the same; the exit code is then 1. Where time is short, stop it: the same command
# goes on behind the finished parts, with what is compiled already. Without PyTorch only our side is
# timed.
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
export XLA_PYTHON_CLIENT_PREALLOCATE=false SPEED_CACHE="$out/compiled" python work
touch "$out/parts.tsv"

# part NAME SECONDS COMMAND...: runs it with a time limit and notes its exit code and seconds.
part() {
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    grep -q "^$name"$'\t0' "$out/parts.tsv" && return
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
    local process size=--config.stages.focal.epochs=1
    [ -n "$short" ] && size="--config.stages.focal.epochs=0 --config.data.image_size=32"
    cd "$work" || return 1
    train() { # in the place of the shell that calls it, so that this is what gets killed
        exec "$python" -m charm_jax.train --config.deterministic \
            --config.data.phantom.{train,test}_images=320 \
            --config.stages.bce.epochs=2 $size \
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

speed() { # NAME GROUP...: the groups of speed.py, in a file of their own
    local name=$1 sides="" size="--rounds 9"
    shift
    "$python" -c "import torch" 2>/dev/null ||
        sides="--sides ours no_graphs resident published vote vote_all"
    [ -n "$short" ] && size="--short --rounds 2"
    "$python" benchmarks/speed.py $size --only "$@" --out "$out/$name.json" $sides
}
export short out
export -f speed

if [ -n "$short" ]; then
    part speed_train 300 bash -c "speed speed_train resident"
    part kernels 100 "$python" benchmarks/kernels.py --net efficientnet_v2_nano --side 32 \
        --batch 8 --out "$out/kernels.json"
    part gpu_tests 100 bash -c "tests -n 0 tests/charm_jax/test_gpu.py"
    part resume 300 bash -c resume
    part parity 100 bash -c "tests -n 0 tests/charm_jax/models/test_attention.py"
    part bfloat16 300 "$python" benchmarks/bfloat16.py --short --work "$work/long" \
        --out "$out/bfloat16.json"
    part depthwise 60 "$python" benchmarks/depthwise.py --batch 2 --shapes 1 \
        --out "$out/depthwise.json"
    part recipe 300 "$python" benchmarks/recipe_time.py --net efficientnet_v2_nano --side 32 \
        --batch 8 --resident 4096 --steps 2 --out "$out/recipe.json"
else
    part speed_train 900 bash -c "speed speed_train train"
    part kernels 400 "$python" benchmarks/kernels.py --out "$out/kernels.json"
    part gpu_tests 200 bash -c "tests -n 0 tests/charm_jax/test_gpu.py"
    part resume 400 bash -c resume
    part speed_rest 900 bash -c "speed speed_rest charm resident eval"
    part depthwise 60 "$python" benchmarks/depthwise.py --out "$out/depthwise.json"
    part recipe 900 "$python" benchmarks/recipe_time.py --steps 60 --out "$out/recipe.json"
    part parity 900 bash -c "tests -n 2 -m 'not slow' tests/charm_jax/models/test_charm.py \
        tests/charm_jax/models/backbones tests/charm_jax/models/test_attention.py"
    part bfloat16 900 "$python" benchmarks/bfloat16.py --work "$work/long" \
        --out "$out/bfloat16.json"
fi
"$python" benchmarks/gpu_table.py "$out"
