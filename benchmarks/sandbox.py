"""What the sandbox costs: `python -m benchmarks.sandbox [n]`.

The same program `n` times, one after the other and several at once, beside a bare Python that does nothing."""
import subprocess, sys, time
from statistics import median

from llmft.evaluation import sandbox


def seconds(run, n):
    found = []
    for _ in range(n):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)


def main(n=40):
    program = 'def double(x):\n    return 2*x', 'assert double(4) == 8 and double("ab") == "abab"'
    sandbox.run_code(*program) # what holds is tried once
    bare = seconds(lambda: subprocess.run([sys.executable, '-s', '-B', '-c', 'pass']), n)
    one = seconds(lambda: sandbox.run_code(*program), n)
    start = time.perf_counter()
    assert all(r.ok for r in sandbox.run_code_batch([program]*n, progress=False))
    batch = (time.perf_counter() - start)/n
    print(f'Python alone {bare:.3f} s, one program {one:.3f} s, one of many {batch:.3f} s, '
          f'{sandbox._workers()} at once')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
