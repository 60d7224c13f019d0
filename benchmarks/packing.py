"""Packing of a million rows: share filled, seconds and memory, with llmft's `best_fit_decreasing` and `pack` and with
TRL's `pack_dataset`."""
import json, multiprocessing, os, platform, re, sys, tempfile, time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_from_disk

from llmft.config.config import load_config
from llmft.data.sources import load_rows
from llmft.tokens.packing import best_fit_decreasing, exact_fit, pack
from llmft.tokens.tokenize import load_tokenizer, tokenize_dataset

RESULTS, SIZE = Path(__file__).parent/'results', 2048


def builtin_lengths(n): # the built-in exercises, over and over
    config = load_config('smollm2-135m', sequence_len=SIZE)
    lengths = [len(ids) for ids in tokenize_dataset(load_rows(config), load_tokenizer(config), config)['input_ids']]
    return np.resize(lengths, n)


def lognormal_lengths(n): return np.random.default_rng(0).lognormal(5.3, .9, n).clip(1, SIZE).astype(int)
def uniform_lengths(n): return np.random.default_rng(0).integers(1, SIZE + 1, n)


def bins_of(name, lengths): # -> a row of the table
    row = {'lengths': name, 'rows': f'{len(lengths):,}'}
    for fit in (best_fit_decreasing, exact_fit):
        start = time.perf_counter()
        bins = fit(lengths, SIZE)
        seconds = round(time.perf_counter() - start, 2)
        row |= {f'{fit.__name__}, filled': f'{lengths.sum() / len(bins) / SIZE:.2%}', f'{fit.__name__}, s': seconds}
    min_bins = -(-lengths.sum() // SIZE) # if all but the last were full
    return row | {'at most': f'{lengths.sum() / min_bins / SIZE:.2%}'}


def save_tokens(folder, n):
    lengths = lognormal_lengths(n)
    values = np.random.default_rng(1).integers(0, 49152, lengths.sum(), dtype=np.int32)
    column = pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), pa.array(values))
    Dataset(pa.table({'input_ids': column, 'labels': column})).save_to_disk(folder)


def peak_memory(): # GB
    return int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 1e6


def packed_by(who, folder, answer): # in a process of its own, for its peak memory
    tokens = load_from_disk(folder)
    tokens = tokens.select([i for i in range(len(tokens)) if i % 100]) # as after leaving rows out
    if who == 'trl': from trl import pack_dataset
    before, start = peak_memory(), time.perf_counter()
    packed = pack(tokens, SIZE) if who == 'llmft' else pack_dataset(tokens, SIZE, 'bfd', {'batch_size': len(tokens)})
    seconds = time.perf_counter() - start
    answer.put({'by': who, 'rows': f'{len(tokens):,}', 'packed rows': f'{len(packed):,}', 's': round(seconds, 1),
                'GB': round(peak_memory() - before, 1)})


def in_new_process(who, folder):
    ctx = multiprocessing.get_context('spawn')
    answer = ctx.Queue()
    process = ctx.Process(target=packed_by, args=(who, folder, answer))
    process.start()
    result = answer.get()
    process.join()
    return result


def main(n=1_000_000, copied=300_000):
    bins = [bins_of('built-in', builtin_lengths(20_000)), bins_of('log-normal', lognormal_lengths(20_000)),
            bins_of('built-in', builtin_lengths(n)), bins_of('log-normal', lognormal_lengths(n)),
            bins_of('uniform', uniform_lengths(n))]
    with tempfile.TemporaryDirectory() as folder:
        save_tokens(folder, copied)
        packed = [in_new_process(who, folder) for who in ('llmft', 'trl')]
    machine = {'cores': os.cpu_count(), 'load': round(os.getloadavg()[0], 1), 'python': platform.python_version(),
               'numpy': np.__version__}
    result = {'machine': machine, 'bins': bins, 'pack': packed}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'packing.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
