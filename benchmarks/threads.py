"""A training step on cores that others use too: seconds with one thread, with one for each core, and with threads that sleep
while they wait (`OMP_WAIT_POLICY=passive`), beside no, one and two busy processes for each core."""
import json, os, statistics, subprocess, sys, time
from pathlib import Path

RESULTS = Path(__file__).parent/'results'
CORES = len(os.sched_getaffinity(0))
SETTINGS = { # name: environment
    'as it is': {},
    'passive': {'OMP_WAIT_POLICY': 'passive'},
    'active': {'OMP_WAIT_POLICY': 'active'},
    'one thread': {'OMP_NUM_THREADS': '1'},
}
BUSY = 'while True: sum(range(10**6))'


def steps(n_steps): # in a process of its own: wait for a line, make some steps, say how long they took
    import torch
    from llmft import add_adapter, load_base, load_config
    config = load_config('smollm2-135m')
    model = add_adapter(load_base(config), config)
    ids = torch.randint(0, 1000, (2, 128))
    print(torch.get_num_threads(), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(n_steps):
            start, cpu = time.perf_counter(), time.process_time()
            model(input_ids=ids, labels=ids).loss.backward()
            times.append((time.perf_counter() - start, time.process_time() - cpu))
        print(json.dumps([statistics.median(column) for column in zip(*times)]), flush=True)


def start(settings, n_steps): # a process that makes steps when it is asked
    env = {key: value for key, value in os.environ.items() if not key.startswith(('OMP', 'KMP', 'GOMP', 'MKL'))}
    command = [sys.executable, __file__, 'steps', str(n_steps)]
    return subprocess.Popen(command, env=env | settings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL)


def ask(process):
    process.stdin.write('\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main(n_steps=2, rounds=2):
    results = {}
    for name, settings in SETTINGS.items():
        process = start(settings, n_steps)
        results[name] = {'threads': int(process.stdout.readline())}
        for n_busy in (0, CORES, 2 * CORES):
            busy = [subprocess.Popen([sys.executable, '-c', BUSY]) for _ in range(n_busy)]
            try: seconds = [ask(process) for _ in range(rounds)]
            finally:
                for b in busy: b.kill(); b.wait()
            results[name][f'beside {n_busy}'] = [round(statistics.median(c), 2) for c in zip(*seconds)]
        process.stdin.close()
        process.wait()
        print(name, results[name], 'load', os.getloadavg()[0], flush=True)
    return results


if __name__ == '__main__':
    if sys.argv[1:2] == ['steps']: steps(int(sys.argv[2]))
    else: main()
