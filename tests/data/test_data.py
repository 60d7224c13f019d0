"Where rows come from: every kind of file and place, mixing, shards, weights, the held-out rows, duplicates."
import functools, gzip, http.server, itertools, json, os, random, subprocess, sys, threading
from pathlib import Path

import fsspec, pandas as pd, pytest
from datasets import Dataset, DatasetDict
from llmft.config.config import DatasetConfig, load_config
from llmft.core import UserError
from llmft.data.sources import iterate_source, load_rows, load_source
from llmft.data.dedup import find_near_duplicates, prepare_rows, shingles, jaccard
from llmft.data.files import read_file
from llmft.hub import fetch_builtin
from llmft.model.base import detect_hardware
from llmft.tokens.stream import stream_sample, stream_tokens
from llmft.tokens.tokenize import count_rows, encode_rows, usable_rows

ROWS = [{'instruction': f'question {i}', 'input': '' if i % 2 else 'x', 'output': f'answer {i}'} for i in range(8)]


@pytest.fixture(scope='module')
def builtin_model(): return fetch_builtin('smollm2-135m') # once, for making it takes half a minute


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, builtin_model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LLMFT_HOME', str(tmp_path/'cache'))
    (tmp_path/'cache').mkdir()
    (tmp_path/'cache'/builtin_model.name).symlink_to(builtin_model)
    return tmp_path


def lines(rows): return ''.join(json.dumps(r) + '\n' for r in rows).encode()
def save(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)
def source(path, **keys): return DatasetConfig(path=str(path), **keys)
def config(*datasets, **keys):
    entries = [d if isinstance(d, dict) else {'path': d} for d in datasets]
    return load_config({'base_model': 'builtin/smollm2-135m', 'datasets': entries} | keys)
def plain(rows, columns=('instruction', 'input', 'output')): return [{c: r[c] for c in columns} for r in rows]


# every kind of file gives the same rows

def as_arrow(stream):
    import pyarrow as pa
    table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as w: w.write_table(table)
    return sink.getvalue().to_pybytes()


def as_csv(**options): return pd.DataFrame(ROWS).to_csv(index=False, **options)


BYTE_ORDER_MARK = b'\xef\xbb\xbf'
FILES = {
    'd.jsonl': lambda: lines(ROWS), 'd.jsonl.gz': lambda: gzip.compress(lines(ROWS)),
    'd.json': lambda: json.dumps(ROWS, indent=1), 'e.json': lambda: lines(ROWS),
    'bom.jsonl': lambda: BYTE_ORDER_MARK + lines(ROWS), 'windows.jsonl': lambda: lines(ROWS).replace(b'\n', b'\r\n'),
    'blank.jsonl': lambda: b'\n' + lines(ROWS).replace(b'\n', b'\n\n'),
    'd.csv': as_csv, 'd.tsv': lambda: as_csv(sep='\t'), 'd.csv.gz': lambda: gzip.compress(as_csv().encode()),
    'windows.csv': lambda: BYTE_ORDER_MARK + as_csv(lineterminator='\r\n').encode(),
    'd.parquet': lambda: pd.DataFrame(ROWS).to_parquet(),
    'd.arrow': lambda: as_arrow(True), 'f.arrow': lambda: as_arrow(False),
}


@pytest.mark.parametrize('name', FILES)
def test_files(name):
    content = FILES[name]()
    save(name, content)
    assert plain(load_source(source(name))) == ROWS
    with fsspec.open(f'memory://{name}', 'wb') as f:
        f.write(content if isinstance(content, bytes) else content.encode())
    assert plain(load_source(source(f'memory://{name}'))) == ROWS


def test_text():
    save('d.txt', b'\xef\xbb\xbfone\r\ntwo\nthree')
    text = source('d.txt', type='completion', sample_by='line')
    assert load_source(text)['text'][:] == ['one', 'two', 'three']
    save('notes.log', 'one\n')
    assert load_source(source('notes.log', type='completion', ds_type='text'))['text'][:] == ['one']


# places

@pytest.fixture
def server(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            if not self.path.startswith('/cut'): return super().do_GET()
            self.send_response(200)
            self.send_header('Content-Length', '9999')
            self.end_headers()
            self.wfile.write(lines(ROWS)) # and then the connection ends
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_https(server):
    for name in ('d.jsonl', 'd.jsonl.gz', 'd.csv', 'd.parquet'):
        content = FILES[name]()
        save(name, content)
        assert plain(load_source(source(f'{server}/{name}?download=1'))) == ROWS
    save('broken.jsonl', lines(ROWS) + b'{"a": \n')
    messages = {'none.jsonl': 'none.jsonl: cannot be read: HTTP Error 404',
                'broken.jsonl': 'broken.jsonl:9: this is not valid JSON', 'cut.jsonl': 'cut off before its end'}
    for name, message in messages.items():
        with pytest.raises(UserError, match=message): load_source(source(f'{server}/{name}'))


def test_changed_file_is_read_again(server):
    for prefix in ('', f'{server}/'):
        for n in (3, 8):
            save('d.jsonl', lines(ROWS[:n]))
            assert len(load_source(source(f'{prefix}d.jsonl'))) == n


def test_folder_and_pattern():
    for name, part in {'mine/a.jsonl': ROWS[:3], 'mine/deep/b.csv': ROWS[3:6], 'mine/test.jsonl': ROWS[6:]}.items():
        save(name, lines(part) if name.endswith('l') else pd.DataFrame(part).to_csv(index=False))
    save('mine/README.md', 'about')
    save('mine/.hidden.jsonl', '{"a": 1}')
    assert plain(load_source(source('mine'))) == ROWS[:6]
    assert plain(load_source(source('mine'), held_out=True)) == ROWS[6:]
    assert plain(load_source(source('mine', split='train[1:2]+test'))) == ROWS[1:2] + ROWS[6:]
    assert plain(load_source(source('mine/**/*.csv'))) == ROWS[3:6]
    assert plain(load_source(source('mine', data_files=['test.jsonl', 'a*']))) == ROWS[6:] + ROWS[:3]
    assert plain(load_source(source('json', data_files='mine/a.jsonl'))) == ROWS[:3]
    save('mine/other.jsonl', '{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match='other.jsonl: `type: alpaca` needs the columns `instruction`, `output`'):
        load_source(source('mine'))


def test_tokens_are_not_taken_for_rows():
    save('t.jsonl', lines([{'input_ids': [1, 2], 'labels': [-100, 2]}]))
    with pytest.raises(UserError, match='t.jsonl: the rows are tokens already'): load_source(source('t.jsonl'))


def test_saved_to_disk():
    data = Dataset.from_list(ROWS)
    data.save_to_disk('one')
    DatasetDict(train=data.select(range(5)), test=data.select(range(5, 8))).save_to_disk('two')
    assert plain(load_source(source('one'))) == ROWS
    assert plain(load_source(source('two'))) == ROWS[:5]
    assert plain(load_source(source('two'), held_out=True)) == ROWS[5:]


@pytest.mark.parametrize('entry, message', [
    (dict(path='s3://bucket/d.jsonl'), 'pip install s3fs'),
    (dict(path='gs://bucket/*.jsonl'), 'pip install gcsfs'),
    (dict(path='nonsense://d.jsonl'), 'nonsense://d.jsonl: cannot be read: Protocol not known'),
    (dict(path='no/*.jsonl'), 'no/.*jsonl: there are no such files'),
    (dict(path='mine', data_files='b.jsonl'), 'there is no `b.jsonl`. Did you mean `a.jsonl`'),
    (dict(path='mine', split='test'), 'there is no split `test`. There are: `train`'),
    (dict(path='mine', shards=3, shards_idx=3), 'counted from 0 to 2'),
    (dict(path='mine', shards=9), '8 rows cannot be cut into 9 shards'),
    (dict(path='mine', split='train[8:]'), 'there are no rows'),
])
def test_places_that_are_wrong(entry, message):
    save('mine/a.jsonl', lines(ROWS))
    with pytest.raises(UserError, match=message): load_source(DatasetConfig(**entry))


# rows that other readers would change

def test_values_stay_as_they_are():
    late = {'instruction': 'x', 'output': '2024-01-01', 'extra': [1, {'a': None}]}
    save('d.jsonl', lines(ROWS * 400 + [late]))
    rows = load_source(source('d.jsonl'))
    assert {c: rows[-1][c] for c in late} == late and rows[0]['extra'] is None and rows[-1]['input'] is None
    calls = [{'messages': [{'role': 'assistant', 'content': '7', 'arguments': {name: 1}}]} for name in 'ab']
    save('c.jsonl', lines(calls))
    assert [{'messages': r['messages']} for r in load_source(source('c.jsonl', type='chat_template'))] == calls


def test_a_very_long_row():
    save('d.jsonl', lines([ROWS[0], ROWS[1] | {'output': 'y' * 50_000_000}, ROWS[2]]))
    assert [len(t) for t in load_source(source('d.jsonl'))['output']] == [8, 50_000_000, 8]
    save('d.csv', 'instruction,output\na,' + 'y' * 1_000_000 + '\n')
    assert len(load_source(source('d.csv'))['output'][0]) == 1_000_000


@pytest.mark.parametrize('text, message', {
    '{"a": 1, "a": 2}': ':2: `a` is given twice', '{"a": NaN}': ':2: `NaN` is not a JSON value',
    '{"a": "\\ud83d"}': 'half a character', '{"a": 1},': ':2: this is not valid JSON',
    '"text"': ':2: a row must be an object', '{"a": "\x01"}': ':2: this is not valid JSON',
    '[' * 99_999: 'nested too deeply'}.items())
def test_broken_lines(text, message):
    save('d.jsonl', lines(ROWS[:1]) + text.encode() + b'\n')
    with pytest.raises(UserError, match=message): list(read_file('d.jsonl'))


# mixing

def test_mixing_keeps_what_formats_read():
    save('a.jsonl', lines(ROWS[:2]))
    save('w.jsonl', lines([{'instruction': 'q', 'output': 'r', 'system': 'Be short.', 'extra': 1}]))
    save('c.jsonl', lines([{'messages': [{'role': 'user', 'content': 'Hi'}], 'input': [7]}]))
    rows = load_rows(config('a.jsonl', {'path': 'w.jsonl', 'type': 'alpaca_w_system.load'},
                            {'path': 'c.jsonl', 'type': 'chat_template'}))
    assert [(r['source'], r['row']) for r in rows] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert rows[2]['system'] == 'Be short.' and rows[3]['messages'] == [{'role': 'user', 'content': 'Hi'}]
    assert plain(rows)[:2] == ROWS[:2] and 'extra' not in rows.column_names


def test_shards():
    save('d.jsonl', lines(ROWS))
    parts = [load_source(source('d.jsonl', shards=3, shards_idx=i), seed=1)['row'][:] for i in range(3)]
    assert sorted(r for part in parts for r in part) == list(range(8)) and parts[0] != [0, 1, 2]
    assert parts[1] == load_source(source('d.jsonl', shards=3, shards_idx=1), seed=1)['row'][:]


@pytest.mark.parametrize('weight, counts', {1: {1: 8}, 2: {2: 8}, 0.5: {1: 4}, 1.25: {1: 6, 2: 2}}.items())
def test_weights(weight, counts):
    save('d.jsonl', lines(ROWS))
    c = config({'path': 'd.jsonl', 'weight': weight})
    rows = prepare_rows(c).train['row'][:]
    times = [rows.count(r) for r in set(rows)]
    assert {n: times.count(n) for n in set(times)} == counts
    assert rows == prepare_rows(c).train['row'][:]
    with pytest.raises(UserError, match='d.jsonl: `weight: 0.01` of 8 rows is no row at all'):
        prepare_rows(config({'path': 'd.jsonl', 'weight': 0.01}))


@pytest.mark.parametrize('name, header, found, expected', [
    ('d.csv', 'instruction;output', 'semicolons', 'commas'), ('d.csv', 'instruction\toutput', 'tabs', 'commas'),
    ('d.tsv', 'instruction,output', 'commas', 'tabs')])
def test_other_separators_are_named(name, header, found, expected):
    save(name, f'{header}\n')
    message = f'{name}:1: the columns are separated by {found}, and {expected} are expected'
    with pytest.raises(UserError, match=message): load_rows(config(name))


@pytest.mark.parametrize('size, n_heldout', {0.25: 2, 0.01: 1, 3: 3}.items())
def test_held_out(size, n_heldout):
    save('d.jsonl', lines(ROWS))
    for shuffle in (True, False):
        run = config('d.jsonl', val_set_size=size, shuffle_merged_datasets=shuffle)
        first, again = prepare_rows(run), prepare_rows(run)
        assert first.heldout['row'][:] == again.heldout['row'][:] and len(first.heldout) == n_heldout
        assert sorted([*first.train['row'], *first.heldout['row']]) == list(range(8))
    assert first.train['row'][:] == sorted(first.train['row'])
    assert prepare_rows(config('d.jsonl', val_set_size=size, seed=7)).heldout['row'][:] != first.heldout['row'][:]


# duplicates

def test_duplicates_across_sources():
    save('a.jsonl', lines(ROWS + ROWS[:2]))
    save('b.csv', pd.DataFrame([ROWS[3], {'instruction': 'new', 'input': None, 'output': 'row'}]).to_csv(index=False))
    rows = prepare_rows(config('a.jsonl', 'b.csv'))
    assert rows.removed == {'equal to an earlier row': (3, ['a.jsonl row 9', 'a.jsonl row 10', 'b.csv row 1'])}
    assert len(rows.train) == 9 and [s['used'] for s in rows.sources] == [8, 1]
    assert len(prepare_rows(config('a.jsonl', 'b.csv', dedup='off')).train) == 12


def test_wanted_repetition_stays():
    save('a.jsonl', lines(ROWS))
    assert len(prepare_rows(config('a.jsonl', {'path': 'a.jsonl', 'type': 'alpaca_chat'})).train) == 16
    assert len(prepare_rows(config({'path': 'a.jsonl', 'weight': 3})).train) == 24


def test_wanted_repetition_stays_with_near():
    numbers = ' '.join(map(str, range(90)))
    alike = [{'instruction': 'Say it.', 'output': numbers + end} for end in ('', ' again')]
    save('a.jsonl', lines(alike + ROWS[:1]))
    rows = prepare_rows(config('a.jsonl', {'path': 'a.jsonl', 'type': 'alpaca_chat'}, dedup='near'))
    assert rows.removed == {'nearly equal to an earlier row': (2, ['a.jsonl row 2'] * 2)}
    assert [s['used'] for s in rows.sources] == [2, 2]


@pytest.mark.parametrize('keys, train', [({}, 6), ({'leakage': 'keep'}, 8), ({'dedup': 'off'}, 6)])
def test_leaks(keys, train):
    save('a.jsonl', lines(ROWS))
    save('test.jsonl', lines(ROWS[2:4] + [ROWS[0] | {'output': 'another'}]))
    rows = prepare_rows(config('a.jsonl', test_datasets=[{'path': 'test.jsonl'}], **keys))
    assert len(rows.train) == train and len(rows.heldout) == 3
    leaks = rows.kept_leaks if keys.get('leakage') else rows.removed
    assert leaks == {'equal to a held-out row': (2, ['a.jsonl row 3', 'a.jsonl row 4'])}
    with pytest.raises(UserError, match='no row is left to learn from'):
        prepare_rows(config('a.jsonl', test_datasets=[{'path': 'a.jsonl'}]))


def test_named_twice_does_not_leak():
    save('a.jsonl', lines(ROWS))
    rows = prepare_rows(config('a.jsonl', {'path': 'a.jsonl', 'type': 'alpaca_chat'}, val_set_size=3))
    assert not set(rows.train['row']) & set(rows.heldout['row'])


def test_near_pairs_are_all_pairs():
    "Against a comparison of all pairs."
    rng = random.Random(0)
    words = [f'w{i}' for i in range(60)]
    texts = [' '.join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(60)]
    for t in texts[:40]:
        changed = t.split()
        for _ in range(rng.randint(0, 4)): changed[rng.randrange(len(changed))] = 'changed'
        texts.append(' '.join(changed))
    sets, kept, expected = [shingles(t) for t in texts], [], []
    for i, s in enumerate(sets):
        match = next((j for j in kept if jaccard(s, sets[j]) >= .8), None)
        if match is None: kept.append(i)
        else: expected.append((i, match))
    assert find_near_duplicates(texts) == expected and len(expected) > 10


def test_near_rows():
    text = ' '.join(f'word{i}' for i in range(40))
    alike = [{'instruction': 'Say it.', 'output': text}, {'instruction': 'Say it!', 'output': text + ' again'}]
    save('a.jsonl', lines([*alike, ROWS[0]]))
    save('test.jsonl', lines([{'instruction': 'Say it?', 'output': text}]))
    rows = prepare_rows(config('a.jsonl', dedup='near'))
    assert rows.removed == {'nearly equal to an earlier row': (1, ['a.jsonl row 2'])}
    rows = prepare_rows(config('a.jsonl', test_datasets=[{'path': 'test.jsonl'}], dedup='near'))
    assert rows.removed['nearly equal to a held-out row'] == (1, ['a.jsonl row 1']) and len(rows.train) == 1


def test_builtin_rows_are_all_different():
    rows = prepare_rows('smollm2-135m')
    assert (len(rows.train), len(rows.heldout), rows.removed, rows.kept_leaks) == (1000, 100, {}, {})
    assert rows.train['row'][:] == list(range(1000))


# streaming

@pytest.fixture(scope='module')
def tokenizer():
    from tests.tiny import builtin_tokenizer
    return builtin_tokenizer()


def streaming(*datasets, **keys):
    return config(*datasets, **{'streaming': True, 'max_steps': 1, 'sequence_len': 128} | keys)
def unpacked(row): # the rows inside a packed one
    ends = list(itertools.accumulate(row['seq_lengths']))
    return [(row['input_ids'][e - n:e], row['labels'][e - n:e]) for e, n in zip(ends, row['seq_lengths'])]


@pytest.mark.parametrize('excess', ['drop', 'truncate', 'split'])
def test_streamed_rows_are_those_in_memory(tokenizer, excess, monkeypatch):
    monkeypatch.setattr('llmft.tokens.stream.STREAM_CHUNK_ROWS', 7)
    rows = ROWS + [{'instruction': 'long', 'output': 'word ' * 300}, {'instruction': 'none', 'output': ''}]
    save('a.jsonl', lines(rows))
    save('b.txt', 'A story.\nAnother one.\n')
    keys = dict(excess_length_strategy=excess)
    c = streaming('a.jsonl', {'path': 'b.txt', 'type': 'completion', 'sample_by': 'line'}, **keys)
    stream, counts = stream_tokens(tokenizer, c)
    packed = list(stream)
    encoded = encode_rows(load_rows(c), tokenizer, c)
    tokens = usable_rows(encoded, c)
    assert sorted(r for p in packed for r in unpacked(p)) == sorted(zip(tokens['input_ids'], tokens['labels']))
    assert all(len(p['input_ids']) <= 128 for p in packed)
    assert counts.rows == 12 and counts.passes == 1 and counts.row_counts == count_rows(encoded)
    assert list(stream_tokens(tokenizer, c)[0]) == packed # the same order every time


def test_streamed_places(tokenizer, server):
    save('d.csv.gz', FILES['d.csv.gz']())
    Dataset.from_list(ROWS).save_to_disk('saved')
    for path in (f'{server}/d.csv.gz', 'saved'):
        rows = list(iterate_source(source(path, shards=2, shards_idx=1)))
        assert plain(rows) == ROWS[1::2] and [r['row'] for r in rows] == [1, 3, 5, 7]
    with pytest.raises(UserError, match='only whole splits'):
        next(iterate_source(source('d.csv.gz', split='train[:3]')))
    save('wrong.jsonl', b'{"question": "a", "output": "b"}\n' * 2000)
    with pytest.raises(UserError, match='needs the column `instruction`'): list(iterate_source(source('wrong.jsonl')))
    save('empty.jsonl', '{"instruction": "a", "output": ""}\n')
    with pytest.raises(UserError, match='no row of the data can be used'):
        list(stream_tokens(tokenizer, streaming('empty.jsonl'))[0])


def test_streamed_rows_are_weighed_and_do_not_leak(tokenizer):
    save('a.jsonl', lines(ROWS))
    save('test.jsonl', lines(ROWS[2:4]))
    c = streaming({'path': 'a.jsonl', 'weight': 1.5}, test_datasets=[{'path': 'test.jsonl'}])
    rows = stream_sample(c)
    assert len(rows.train) == 9 and len(rows.heldout) == 2
    assert rows.removed == {'equal to a held-out row': (3, ['a.jsonl row 3', 'a.jsonl row 4'])}
    assert rows.sources == [{'path': 'a.jsonl', 'read': 8, 'kept': 5, 'weight': 1.5, 'used': 9}]
    with pytest.raises(UserError, match='stream_sample'): prepare_rows(c)
    stream, counts = stream_tokens(tokenizer, c, rows.heldout)
    used = sum(len(p['seq_lengths']) for p in stream)
    assert counts.rows == 12 and counts.row_counts.left_out == {'equal to a held-out row': (3, [3, 4])} and used == 9


def test_preview_reads_no_more_than_it_shows():
    from llmft.commands.check import preview_rows
    save('a.jsonl', lines(ROWS * 200) + b'{"broken')
    assert len(preview_rows(streaming('a.jsonl'), 2)) == 2
    with pytest.raises(UserError, match='a.jsonl:1601'): preview_rows(config('a.jsonl'), 2)


def test_preview_shows_every_source():
    from llmft.commands.check import preview_rows
    save('a.jsonl', lines(ROWS * 20))
    save('b.txt', 'A story.\n')
    shown = ''.join(map(str, preview_rows(config('a.jsonl', {'path': 'b.txt', 'type': 'completion'}), 3)))
    assert 'question 0' in shown and 'A story.' in shown and 'question 1' in shown


def test_row_that_is_too_long_is_named(tokenizer):
    save('a.jsonl', lines(ROWS))
    save('b.jsonl', lines([ROWS[0], *({'instruction': str(i), 'output': 'long ' * 200} for i in range(2))]))
    c = config('a.jsonl', 'b.jsonl', excess_length_strategy='error', sequence_len=128)
    encoded = encode_rows(load_rows(c), tokenizer, c)
    with pytest.raises(UserError, match='^b.jsonl: row 2 is longer than sequence_len 128, and 1 more. Raise'):
        usable_rows(encoded, c)


def test_a_stream_is_read_where_it_is_counted():
    hardware = detect_hardware(streaming('a.jsonl', dataloader_num_workers=2))
    assert hardware.workers == 0
    assert 'counted in the process that reads them (`streaming` in the YAML' in str(hardware)


def test_streaming_needs_steps():
    for keys, message in [({'max_steps': None}, 'Give `max_steps`'), ({'val_set_size': 0.1}, 'Give `test_datasets`')]:
        with pytest.raises(UserError, match=message): streaming('a.jsonl', **keys)


MEMORY = '''
import resource, sys
from llmft.model.base import detect_hardware
from llmft.tokens.stream import iterate_rows
from llmft.data.sources import _batch_rows
from llmft.config.config import load_config
c = load_config({'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': 'a.jsonl'}], 'streaming': True,
                 'max_steps': 1})
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == 'linux' else 1024 ** 2)
batches = _batch_rows(iterate_rows(c))
n = len(next(batches))
first = peak()
n += sum(map(len, batches))
print(n, peak() - first)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='no `resource`')
def test_streaming_takes_no_memory():
    "300 MB of rows in a few MB."
    save('a.jsonl', lines([{'instruction': 'x' * 3000, 'output': 'y'}]) * 100_000)
    run = subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True, check=True,
                         env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    n, grown = run.stdout.split()
    assert int(n) == 100_000 and float(grown) < 40


def test_lists_and_mappings_reach_the_format(tokenizer):
    "What is kept as JSON is a value again when it is encoded."
    save('d.jsonl', lines([{'segments': [{'text': 'Ask. ', 'label': False}, {'text': '[1]', 'label': True}]}]))
    entry = {'path': 'd.jsonl', 'type': 'input_output'}
    c = config(entry)
    encoded = encode_rows(load_rows(c), tokenizer, c)
    assert encoded['reason'][:] == [None] and '[1]' in tokenizer.decode([l for l in encoded['labels'][0] if l >= 0])
    streamed, _ = stream_tokens(tokenizer, config(entry, streaming=True, max_steps=1))
    assert [r['labels'] for r in streamed] == encoded['labels'][:]


def test_streamed_training(folder):
    from llmft.training.train import finetune
    from tests.tiny import save_tiny, small_tokenizer, tiny_config
    model = save_tiny(folder/'model', tokenizer=small_tokenizer())
    save('a.jsonl', lines(ROWS + [{'instruction': 'none', 'output': ''}]))
    save('test.jsonl', lines([{'instruction': 'another', 'output': 'one'}]))
    c = tiny_config(model, 'a.jsonl', folder/'run', adapter='lora', streaming=True, max_steps=9, micro_batch_size=1,
                    test_datasets=[{'path': 'test.jsonl'}], logging_steps=1)
    output = []
    run = finetune(c, say=lambda text: output.append(str(text)))
    losses = [m['loss'] for m in run.metrics if 'loss' in m]
    assert len(losses) == 9 and losses[-1] < losses[0] and any('eval_loss' in m for m in run.metrics)
    assert any('the answer is empty' in text and 'were streamed' in text for text in output)
