#!/bin/bash
# Train on two nodes with four GPUs each. Submit it from the folder in which runs/ should be created:
#   sbatch examples/slurm.sh --config imagenet_resnet34 --dataset /data/imagenet --batch-size 32
# Five minutes before the time limit, SLURM sends SIGUSR1 to this script, which has SIGTERM sent to the run: it saves a
# checkpoint and ends, the job is queued again, and --resume auto continues.
#SBATCH --job-name=frskd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
GPUS=${SLURM_GPUS_ON_NODE:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240  # seconds after SIGTERM before torch's launcher kills the processes, else 30

# SLURM_NODEID differs from node to node, so srun's shell expands it.
# torchrun passes SIGTERM on even if it starts one process, which accelerate launch does not.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c 'exec torchrun --nnodes "$1" \
    --nproc_per_node "$2" --node_rank "$SLURM_NODEID" --master_addr "$3" --master_port 29500 \
    -m frskd_train.train "${@:4}"' -- "$SLURM_JOB_NUM_NODES" "$GPUS" "$HEAD" \
    --output-dir "runs/slurm-$SLURM_JOB_ID" --resume auto "$@" &
STEP=$!

requeue() {
    trap '' USR1
    echo "The time is nearly over: saving a checkpoint and queueing the job again."
    scancel --signal=TERM "$SLURM_JOB_ID.0"  # the run: srun would not pass SIGTERM on, but kill it
    wait "$STEP"
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1
wait "$STEP"
