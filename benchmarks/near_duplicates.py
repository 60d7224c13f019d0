"""CPU seconds that the search for nearly equal rows takes where the same 60 words stand in front of 20 own ones, for
more and more rows: twice the rows should take about twice the time."""
import json, os, platform, random, sys, time
from pathlib import Path

from llmft.data.dedup import find_near_duplicates

RESULTS = Path(__file__).parent/'results'


def make_texts(n, n_fixed=60, n_own=20):
    rng = random.Random(0)
    words = [f'word{i}' for i in range(5000)]
    fixed = ' '.join(rng.choices(words, k=n_fixed))
    return [f'{fixed} {" ".join(rng.choices(words, k=n_own))}' for _ in range(n)]


def seconds(n):
    texts, start = make_texts(n), time.process_time()
    find_near_duplicates(texts)
    return time.process_time() - start


def main(*sizes):
    times = {n: round(seconds(n), 2) for n in sizes or (5_000, 10_000, 20_000)}
    machine = {'cores': os.cpu_count(), 'load': round(os.getloadavg()[0], 1), 'python': platform.python_version()}
    first, last = min(times), max(times)
    result = {'machine': machine, 'cpu_seconds': times, 'rows': round(last / first, 1),
              'time': round(times[last] / times[first], 1)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'near_duplicates.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
