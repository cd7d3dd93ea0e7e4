#!/bin/bash
#SBATCH --job-name=commbench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --exclusive
#SBATCH --time=30
#SBATCH --no-requeue
# A minute before the time is over the sweep is asked to stop; --resume goes on where it was.
#SBATCH --signal=B:TERM@60
#
# Submit this file with sbatch, from a folder that all nodes see. What your site asks for besides goes on the
# command line: sbatch --partition=... --account=... FILE
#
# One launch of it can also be joined by hand; its intervals are then those of one launch.
#
# == gloo, 1 node x 2 ranks, NAME=a b
# torchrun, on one machine:
#   env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m torch.distributed.run --standalone --nproc-per-node=2 -m commbench sweep quick algorithm=direct,bruck transport=gloo nodes=1 ranks_per_node=2 --out '/shared/my runs'
# srun, inside an allocation:
#   srun --nodes=1 --ntasks=2 --ntasks-per-node=2 --distribution=block --cpu-bind=none --kill-on-bad-exit=1 --export=ALL env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=gloo nodes=1 ranks_per_node=2 --out '/shared/my runs'
#
# == gloo, 2 nodes x 2 ranks, NAME=a b
# torchrun, on one machine:
#   env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m torch.distributed.run --standalone --nproc-per-node=4 -m commbench sweep quick algorithm=direct,bruck transport=gloo nodes=2 ranks_per_node=2 --out '/shared/my runs'
# torchrun, the same on each of 2 nodes, with the name of one of them in FIRST_NODE:
#   env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m torch.distributed.run --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-id=commbench --rdzv-endpoint="${FIRST_NODE:?}:29400" -m commbench sweep quick algorithm=direct,bruck transport=gloo nodes=2 ranks_per_node=2 --out '/shared/my runs'
# srun, inside an allocation:
#   srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --distribution=block --cpu-bind=none --kill-on-bad-exit=1 --export=ALL env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=gloo nodes=2 ranks_per_node=2 --out '/shared/my runs'
#
# == mpi, 1 node x 2 ranks, NAME=a b
# mpiexec of MPICH:
#   mpiexec -print-all-exitcodes -bind-to none -n 2 env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=1 ranks_per_node=2 --out '/shared/my runs'
# mpiexec of Intel MPI:
#   mpiexec -print-all-exitcodes -genv I_MPI_PIN 0 -n 2 env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=1 ranks_per_node=2 --out '/shared/my runs'
# mpiexec of Open MPI:
#   mpiexec --bind-to none --map-by slot:OVERSUBSCRIBE -n 2 env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=1 ranks_per_node=2 --out '/shared/my runs'
# srun, inside an allocation:
#   srun --nodes=1 --ntasks=2 --ntasks-per-node=2 --distribution=block --cpu-bind=none --kill-on-bad-exit=1 --export=ALL env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=1 ranks_per_node=2 --out '/shared/my runs'
#
# == mpi, 2 nodes x 2 ranks, NAME=a b
# mpiexec of MPICH, on one machine or with a hostfile of yours:
#   mpiexec -print-all-exitcodes -bind-to none -ppn 2 -n 4 env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=2 ranks_per_node=2 --out '/shared/my runs'
# mpiexec of Intel MPI, on one machine or with a hostfile of yours:
#   mpiexec -print-all-exitcodes -genv I_MPI_PIN 0 -ppn 2 -n 4 env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=2 ranks_per_node=2 --out '/shared/my runs'
# mpiexec of Open MPI, on one machine or with a hostfile of yours:
#   mpiexec --bind-to none --map-by slot:OVERSUBSCRIBE -n 4 env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=2 ranks_per_node=2 --out '/shared/my runs'
# srun, inside an allocation:
#   srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --distribution=block --cpu-bind=none --kill-on-bad-exit=1 --export=ALL env OMP_NUM_THREADS=1 'NAME=a b' /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck transport=mpi nodes=2 ranks_per_node=2 --out '/shared/my runs'

exec /opt/venv/bin/python -m commbench sweep quick algorithm=direct,bruck 'env.NAME=a b,c' transport=gloo,mpi nodes=1,2 launches=5 --out '/shared/my runs' --launcher slurm
