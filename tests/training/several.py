"""Runs of several YAML files one after the other, in each of several processes.

`torchrun --nproc-per-node 2 -m tests.training.several a.yml b.yml:resume`; LATE: seconds by which all but the first
come late to each run; FAIL: a process, which then runs out of memory in its third forward pass."""
import os, sys, time
from llmft.training import train


def fail_at_third(step):
    calls = []
    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3: raise MemoryError('CUDA out of memory')
        return step(*args, **kwargs)
    return failing


if __name__ == '__main__':
    rank, throughput = os.environ['RANK'], train.Throughput
    if rank == os.environ.get('FAIL'): throughput.training_step = fail_at_third(throughput.training_step)
    for file in sys.argv[1:]:
        file, _, option = file.partition(':')
        if rank != '0': time.sleep(float(os.environ.get('LATE', 0)))
        train.finetune(file, **{option: True} if option else {})
