#!/bin/bash
# Several nodes of a Slurm cluster as one run:  sbatch docs/cluster/slurm.sh run configs/cifar10-edm.toml --out runs/cifar10
#SBATCH --job-name=lcsc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Five minutes before its end every rank gets this signal: all is saved, and the job, submitted again, goes on.
#SBATCH --signal=TERM@300

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
  exec lcsc "$@"' lcsc "$@"
