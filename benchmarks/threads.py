"""A training step on cores that others use too: with a thread for each core, which spins while it waits for the others
as it comes, or goes to sleep after a while; and with one thread. Alone, and beside a busy process for each core. All
ways take turns; the median of the rounds in seconds of the clock and of the CPU. As root, the first is really alone."""
import json, os, statistics, subprocess, sys, time
from pathlib import Path

RESULTS = Path(__file__).parent/'results'
CORES = len(os.sched_getaffinity(0))
WAYS = { # name: environment
    'as it comes': {}, 'OMP_WAIT_POLICY=passive': {'OMP_WAIT_POLICY': 'passive'},
    'GOMP_SPINCOUNT=1000': {'GOMP_SPINCOUNT': '1000'}, 'one thread': {'OMP_NUM_THREADS': '1'},
}
BUSY = 'while True: sum(range(10**6))'


def step(layers, x): # forward and backward of some layers of the built-in model's size
    import torch
    for up, down in layers: x = x + torch.nn.functional.silu(x @ up) @ down
    x.square().mean().backward()


def steps(): # in a process of its own: for each line that comes, one step and how long it took
    import torch
    torch.manual_seed(0)
    layers = [[(torch.randn(shape) / 50).requires_grad_() for shape in ((576, 1536), (1536, 576))] for _ in range(8)]
    x = torch.randn(256, 576)
    step(layers, x)
    print(torch.get_num_threads(), flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        step(layers, x)
        print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]), flush=True)


def go_first(process, first): # before everything else on the machine, or as everything else
    policy, parameter = (os.SCHED_FIFO, os.sched_param(50)) if first else (os.SCHED_OTHER, os.sched_param(0))
    for thread in os.listdir(f'/proc/{process.pid}/task'):
        try: os.sched_setscheduler(int(thread), policy, parameter)
        except PermissionError: pass


def start(settings): # a process that makes steps when it is asked
    env = {key: value for key, value in os.environ.items() if not key.startswith(('OMP', 'KMP', 'GOMP', 'MKL'))}
    return subprocess.Popen([sys.executable, __file__, 'steps'], env=env | settings, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)


def ask(process):
    process.stdin.write('\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(processes, n_busy, rounds): # {way: [seconds of the clock, of the CPU]}
    busy = [subprocess.Popen([sys.executable, '-c', BUSY]) for _ in range(n_busy)]
    for process in processes.values(): go_first(process, not busy)
    try: times = [{way: ask(process) for way, process in processes.items()} for _ in range(rounds)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return {way: [round(statistics.median(t[way][i] for t in times), 3) for i in range(2)] for way in processes}


def main(rounds=6):
    processes = {way: start(settings) for way, settings in WAYS.items()}
    threads = {way: int(process.stdout.readline()) for way, process in processes.items()}
    beside = {n: compare(processes, n, rounds) for n in (0, CORES)}
    for process in processes.values():
        process.stdin.close()
        process.wait()
    result = {'cores': CORES, 'load': round(os.getloadavg()[0], 1), 'threads': threads,
              'seconds of the clock, of the CPU, beside so many busy processes': beside}
    print(json.dumps(result, indent=1))
    (RESULTS/'threads.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': steps() if sys.argv[1:] == ['steps'] else main()
