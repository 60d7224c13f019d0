"Packing: every row exactly once, no bin too full, the same bins as plain best-fit-decreasing, and quickly."
import time

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from hypothesis import given, settings, strategies as st

from llmft.core import UserError
from llmft.tokens.packing import best_fit_decreasing, exact_fit, fewest_bins, pack


@st.composite
def puzzles(draw): # lengths, capacity
    capacity = draw(st.integers(1, 60))
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


def looking_ahead(lengths, capacity):
    "Bin by bin, the longest row after which the rest can be filled by lengths that are left, any number of each."
    left, bins = sorted(lengths), []
    def filled(room, kinds):
        return room == 0 or any(room >= k and filled(room - k, [j for j in kinds if j <= k]) for k in kinds)
    while left:
        kinds, room, inside = sorted(set(left)), capacity, []
        while fitting := [n for n in left if n <= room]:
            n = max((n for n in fitting if filled(room - n, kinds)), default=fitting[-1])
            inside.append(n)
            left.remove(n)
            room -= n
        bins.append(sorted(inside, reverse=True))
    return bins


def by_hand(lengths, capacity): # each row looks at every bin; of bins with equal room the one that had it first
    bins, waiting = [], []
    def room(b): return capacity - sum(lengths[row] for row in b)
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = [b for b in waiting if room(b) >= lengths[row]]
        best = min(fitting, key=room, default=[])
        if fitting: waiting.remove(best)
        else: bins.append(best)
        best.append(row)
        waiting.append(best)
    return bins


@settings(max_examples=300, deadline=None)
@given(puzzles())
def test_like_the_plain_method(puzzle): assert [b.tolist() for b in best_fit_decreasing(*puzzle)] == by_hand(*puzzle)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=30), st.just(capacity))))
def test_like_the_plain_glance_ahead(puzzle):
    assert [[puzzle[0][row] for row in b] for b in exact_fit(*puzzle)] == looking_ahead(*puzzle)


@pytest.mark.parametrize('fit', [best_fit_decreasing, exact_fit])
@settings(max_examples=200, deadline=None)
@given(st.one_of(puzzles(), st.tuples(st.lists(st.integers(1, 5000), max_size=300), st.just(5000))))
def test_each_row_once_and_no_bin_too_full(fit, puzzle):
    lengths, capacity = puzzle
    bins = fit(*puzzle)
    assert sorted(row for b in bins for row in b) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in b) <= capacity for b in bins)
    assert all(np.diff([lengths[row] for row in b]).max(initial=0) <= 0 for b in bins) # the longest first


def rows_in(tokens): return sorted((r['input_ids'], r['labels']) for r in tokens)


def tokens_of(lengths): # each token tells its row and its place
    ids = [[1000*row + i for i in range(n)] for row, n in enumerate(lengths)]
    return Dataset.from_dict({'input_ids': ids, 'labels': [[-100] + row[1:] for row in ids]})


def rows_of(packed): # the rows that are inside packed ones, in the order of their first token
    found = []
    for row in packed:
        edges = np.cumsum([0, *row['seq_lengths']])
        assert edges[-1] == len(row['input_ids']) == len(row['labels'])
        found += [(row['input_ids'][a:b], row['labels'][a:b]) for a, b in zip(edges, edges[1:])]
    return sorted(found)


@settings(max_examples=25, deadline=None)
@given(puzzles().filter(lambda p: p[0]))
def test_packed_rows_hold_the_rows_and_are_trls_or_fewer(puzzle):
    from trl import pack_dataset
    lengths, capacity = puzzle
    tokens = tokens_of(lengths)
    packed = pack(tokens, capacity)
    assert rows_of(packed) == rows_in(tokens)
    assert max(map(len, packed['input_ids'])) <= capacity
    theirs = pack_dataset(tokens, capacity, 'bfd', {'batch_size': len(tokens)})
    assert packed.to_dict() == theirs.to_dict() if len(packed) == len(theirs) else len(packed) < len(theirs)


def test_a_selection_on_disk(tmp_path):
    tokens_of([3, 9, 4, 2, 5, 7]).save_to_disk(tmp_path)
    tokens = load_from_disk(tmp_path)
    some = tokens.select([5, 0, 2, 3])
    packed = pack(some, 8)
    assert rows_of(packed) == rows_in(some)
    assert packed.cache_files # on disk too
    assert pack(some, 8).to_dict() == packed.to_dict() # read again
    assert pack(some, 16).to_dict() != packed.to_dict()
    last = tokens.select(range(2, 6))
    assert rows_of(pack(last, 8)) == rows_in(last)


def test_more_packed_rows_than_are_copied_at_once():
    lengths = np.random.default_rng(0).integers(5, 9, 2500).tolist()
    packed = pack(tokens_of(lengths), 8)
    assert len(packed) > 2000 and rows_of(packed) == rows_in(tokens_of(lengths))


@pytest.mark.parametrize('wrong', [0, 9])
def test_a_row_that_cannot_be_packed(wrong):
    with pytest.raises(UserError, match=f'row 2 has {wrong} tokens.*1 to 8'): best_fit_decreasing([3, wrong], 8)


def lognormal(n): return np.random.default_rng(0).lognormal(5.3, .9, n).clip(1, 2048).astype(int)
def uniform(n): return np.random.default_rng(0).integers(1, 2049, n)


def test_filled():
    from llmft.config.config import load_config
    from llmft.data.sources import load_rows
    from llmft.tokens.tokenize import load_tokenizer, tokenize_dataset
    config = load_config('smollm2-135m', sequence_len=2048)
    builtin = [len(ids) for ids in tokenize_dataset(load_rows(config), load_tokenizer(config), config)['input_ids']]
    for lengths in (np.resize(builtin, 20_000), lognormal(20_000)):
        assert lengths.sum() / (len(fewest_bins(lengths, 2048)) * 2048) >= .997


@pytest.mark.parametrize('lengths', [lognormal(1_000_000), uniform(1_000_000)], ids=['log-normal', 'uniform'])
def test_a_million_rows(lengths):
    start = time.process_time() # of this process: others on the machine do not count
    assert sum(map(len, fewest_bins(lengths, 2048))) == 1_000_000
    assert time.process_time() - start < 5
