#!/bin/bash
# sbatch examples/slurm.sh recipe.yaml RUNS
# One torchrun a node, one process a GPU. RUNS, the recipe and its data lie on a file system that all nodes mount at the same path.
#SBATCH --job-name=transllm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180       # three minutes before the end: training saves and ends; submit again to go on
#SBATCH --output=%x-%j.log
set -euo pipefail
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 8))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK   # srun no longer takes it from sbatch
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150        # torchrun kills its processes 30 seconds after a signal otherwise, in the middle of a step
# To share out the layers (FSDP2): export ACCELERATE_USE_FSDP=true FSDP_VERSION=2
# --kill-on-bad-exit: where a node is lost, the others must not wait for it.
srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node 8 \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" -m transllm run "$0" --runs "$1"' "$1" "$2"
