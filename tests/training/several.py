"""Runs of several YAML files one after the other, in each of several processes.

`torchrun --nproc-per-node 2 -m tests.training.several a.yml b.yml:resume`; LATE=1:3: the second process comes to each
run three seconds late; FAIL: a process, which then runs out of memory in its third forward pass."""
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
    late, _, seconds = os.environ.get('LATE', '').partition(':')
    for file in sys.argv[1:]:
        file, _, option = file.partition(':')
        if rank == late:
            time.sleep(float(seconds))
            print(f'process {rank} came {seconds} seconds late')
        train.finetune(file, **{option: True} if option else {})
