"""Streaming against reading everything first: rows per second, and the most memory a process had.

python benchmarks/stream.py [ROWS]        writes benchmarks/results/stream.json
"""
import json, os, platform, resource, subprocess, sys, tempfile, time
from pathlib import Path

OUT = Path(__file__).parent/'results'/'stream.json'


def write_rows(path, n):
    "The built-in exercises again and again, each with a number, so that no two rows are equal."
    from llmft.data.sources import BUILTIN_DATA_DIR
    from llmft.data.files import read_file
    rows = [row for _, row in read_file(str(BUILTIN_DATA_DIR/'python-evol-1k'/'train.jsonl.gz'))]
    with open(path, 'w') as f:
        for i in range(n):
            r = rows[i % len(rows)]
            f.write(json.dumps({'instruction': f'{r["instruction"]} ({i})', 'input': r['input'], 'output': r['output']}) + '\n')


class Clock:
    "Seconds since it was made, and those in which a core worked for this process: other load on the machine changes only the first."
    def __init__(self): self.start, self.cpu = time.perf_counter(), time.process_time()
    def read(self): return time.perf_counter() - self.start, time.process_time() - self.cpu


def config(path, **more):
    from llmft.config.config import load_config
    return load_config({'base_model': os.environ['MODEL'], 'datasets': [{'path': path}], 'sequence_len': 2048, 'dedup': 'off'} | more)


def streamed(path): # rows and tokens that were read
    from llmft.tokens.stream import stream_tokens
    from llmft.tokens.tokenize import load_tokenizer
    c = config(path, streaming=True, max_steps=1)
    stream, counts = stream_tokens(load_tokenizer(c), c)
    clock, packed, tokens = Clock(), 0, 0
    for row in stream: packed, tokens = packed + 1, tokens + len(row['input_ids'])
    return counts.rows, packed, tokens, clock


def in_memory(path):
    from llmft.data.dedup import prepare_rows
    from llmft.tokens.packing import pack
    from llmft.tokens.tokenize import load_tokenizer, tokenize_dataset
    c = config(path)
    tokenizer = load_tokenizer(c)
    clock, packed, tokens = Clock(), 0, 0
    rows = prepare_rows(c).train
    for row in pack(tokenize_dataset(rows, tokenizer, c), c.sequence_len): packed, tokens = packed + 1, tokens + len(row['input_ids'])
    return len(rows), packed, tokens, clock


def measure(how, path): # in a process of its own, with an empty cache
    from llmft.hub import fetch_builtin
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {'HF_DATASETS_CACHE': f'{cache}/hf', 'LLMFT_HOME': f'{cache}/llmft', 'MODEL': str(fetch_builtin()), 'TQDM_DISABLE': '1'}
        done = subprocess.run([sys.executable, __file__, how, path], env=env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(n):
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/rows.jsonl'
        write_rows(path, n)
        found = {'machine': f'{os.cpu_count()} cores, {platform.processor() or platform.machine()}', 'load': round(os.getloadavg()[0], 1), 'rows': n, 'megabytes': round(os.path.getsize(path) / 1e6)}
        for how in ('streamed', 'in_memory'): found[how] = measure(how, path)
    assert found['streamed']['tokens'] == found['in_memory']['tokens']
    found['rate_against_in_memory'] = round(found['in_memory']['seconds'] / found['streamed']['seconds'], 2)
    found['the_same_in_cpu_seconds'] = round(found['in_memory']['cpu_seconds'] / found['streamed']['cpu_seconds'], 2)
    print(json.dumps(found, indent=1))
    return found


if __name__ == '__main__':
    if sys.argv[1:2] in (['streamed'], ['in_memory']):
        rows, packed, tokens, clock = globals()[sys.argv[1]](sys.argv[2])
        seconds, cpu = clock.read()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 # Linux counts in KiB
        print(json.dumps({'rows_per_second': round(rows / seconds), 'seconds': round(seconds, 1), 'cpu_seconds': round(cpu, 1), 'peak_rss_gb': round(peak / 1e9, 2), 'tokens': tokens,
            'packed_rows': packed, 'fill': round(tokens / (packed * 2048), 4)}))
    else: OUT.write_text(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000), indent=1) + '\n')
