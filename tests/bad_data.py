"""Inputs that are broken, and what is said about each; a few that only look broken, and work.

A case is a dict: `id` (what is wrong), `files` ({name: text or bytes}), how the description of the run differs
(`run`: all of it; `entry`: lines of the source; `keys`: lines at the end), and `says`: parts of the message."""
import gzip, io, json, os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROWS = ''.join(json.dumps({'instruction': f'question {i}', 'output': f'answer {i}'}) + '\n' for i in range(8))
BASE = '''\
base_model: builtin/smollm2-135m
datasets:
  - path: data.jsonl
sequence_len: 64
output_dir: out
'''


def yaml(id, run, *says): return {'id': id, 'run': run, 'says': says}
def key(id, line, *says): return {'id': id, 'keys': line, 'says': says}
def entry(id, lines, *says): return {'id': id, 'entry': lines, 'says': says}
def file(id, name, content, *says, entry='', keys=''):
    return {'id': id, 'files': {name: content}, 'entry': entry, 'keys': keys, 'says': says}
def chat(id, rows, *says, entry='', keys=''):
    return file(id, 'd.jsonl', lines(*rows), *says, entry='type: chat_template\n' + entry, keys=keys)


def lines(*rows): return ''.join(json.dumps(row) + '\n' for row in rows)
def talk(*messages): return {'messages': [dict(zip(('role', 'content'), m)) for m in messages]}
GOOD = talk(('user', 'Hi'), ('assistant', 'Hello'))
LATIN = 'instruction,output\na,b\nc,ü\n'.encode('latin-1')
TEXT = 'type: completion\n'


def parquet(columns):
    import pyarrow as pa, pyarrow.parquet as pq
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def model(eos='</s>', **template): # a folder with a tokenizer of few words and a shape, without weights
    from tokenizers import Tokenizer, models, pre_tokenizers
    vocab = {word: i for i, word in enumerate(['<unk>', '</s>', 'question', 'answer'])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = dict(model_type='llama', vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=1)
    settings = dict(tokenizer_class='PreTrainedTokenizerFast', unk_token='<unk>', **template)
    if eos: settings['eos_token'] = eos
    return {'m/config.json': json.dumps(shape), 'm/model.safetensors': '', 'm/tokenizer.json': tokenizer.to_str(),
            'm/tokenizer_config.json': json.dumps(settings)}


YAML = [
    yaml('a bracket that is never closed', 'datasets: [\n', 'run.yml:1: this is not valid YAML', 'never closed'),
    yaml('a quote that is never closed', 'base_model: "abc\nadapter: lora\n', 'run.yml:1: this is not valid YAML',
         'never closed'),
    yaml('two colons in a line', 'base_model: a: b\n', 'run.yml:1: this is not valid YAML', 'second colon'),
    yaml('wrong indentation', 'datasets:\n  - path: a\n type: b\n', 'run.yml:3: this is not valid YAML'),
    yaml('a tab', 'base_model: x\ndatasets:\n\t- path: a\n', 'run.yml:3: this is not valid YAML', 'tab',
         'Indent with spaces'),
    yaml('a line without a colon', BASE + 'seed 3\nlora_r: 4\n', 'run.yml:7: this is not valid YAML'),
    yaml('a NUL character', BASE + 'seed: \0\n', 'run.yml:6: this is not valid YAML', 'cannot stand in text'),
    yaml('a tag that would run code', BASE + 'seed: !!python/name:os.system x\n', 'run.yml:6: this is not valid YAML',
         'a tag'),
    yaml('a list as a key', BASE + '? [a]\n: 4\n', 'run.yml:6: this is not valid YAML', 'a key must be a word'),
    yaml('a date that does not exist', BASE + 'seed: 2001-13-41\n', 'run.yml: a value cannot be read: month', 'quotes'),
    yaml('two documents in one file', BASE + '---\nseed: 1\n', 'run.yml:6: this is not valid YAML',
         'One file describes one run'),
    yaml('brackets in brackets, thousands deep', 'datasets: ' + '[' * 5000 + ']' * 5000 + '\n', 'run.yml',
         'nested too deeply'),
    yaml('a key given twice', BASE + 'seed: 3\nlora_r: 8\nseed: 4\n',
         'run.yml:8: `seed` is given twice (first in line 6)'),
    yaml('a key given twice in a source', BASE.replace('jsonl', 'jsonl\n    path: b'),
         'run.yml:4: `path` is given twice (first in line 3)'),
    yaml('an empty file', '', 'run.yml: ', 'it is empty', 'llmft recipes smollm2-135m'),
    yaml('nothing but a comment', '# nothing\n', 'run.yml: ', 'it is empty'),
    yaml('a list', '- a\n- b\n', 'run.yml: ', 'it holds a list', '`key: value`'),
    yaml('plain text', 'hello\n', 'run.yml: ', 'it holds one text'),
    yaml('Latin-1 instead of UTF-8', (BASE + 'chat_template: für\n').encode('latin-1'),
         'run.yml:6: this is not UTF-8 text', 'Save the file as UTF-8'),
    yaml('UTF-16 instead of UTF-8', BASE.encode('utf-16'), 'run.yml:1: this is not UTF-8 text',
         'Save the file as UTF-8'),
    yaml('an unknown key', BASE + 'lora_rank: 3\n', 'run.yml:6: `lora_rank` is not a key', 'Did you mean `lora_r`?'),
    yaml('a key with a dash', BASE + 'lora-r: 3\n', 'run.yml:6: `lora-r` is not a key', 'Did you mean `lora_r`?'),
    yaml('two unknown keys', BASE + 'colour: 3\nshape: 4\n', 'run.yml:6: `colour` is not a key',
         'run.yml:7: `shape` is not a key'),
    yaml('a number as a key', BASE + '3: 4\n', 'run.yml:6: `3` is not a key'),
    yaml('an unknown key in a source', BASE.replace('jsonl', 'jsonl\n    typ: alpaca'), 'run.yml:4: `typ` is not a key',
         'Did you mean `type`?'),
    yaml('no base model', 'datasets:\n  - path: data.jsonl\n', 'run.yml: `base_model` is missing',
         'builtin/smollm2-135m'),
    yaml('no path', 'base_model: a\ndatasets:\n  - type: alpaca\n', 'run.yml:3: `path` is missing'),
    yaml('a key without a value', 'base_model: a\ndatasets:\n', 'run.yml:2: `datasets` has no value'),
    yaml('no source', 'base_model: a\ndatasets: []\n', 'run.yml:2: `datasets` must be a list of at least one entry',
         '`- path: my.jsonl`'),
    yaml('one source that is not in a list', 'base_model: a\ndatasets:\n  path: data.jsonl\n',
         'run.yml:2: `datasets` must be a list', '`- path:`'),
    yaml('a name for the list of sources', 'base_model: a\ndatasets: data.jsonl\n',
         'run.yml:2: `datasets` must be a list', '`- path:`', "not 'data.jsonl'"),
    yaml('a list of names for the list of sources', 'base_model: a\ndatasets:\n  - data.jsonl\n',
         'run.yml:3: entry 1 of `datasets` must be a mapping', '`path: my.jsonl`'),
]

KEYS = [
    key('a method that is not here (Axolotl)', 'rl: dpo\n', 'run.yml:6: `rl`'),
    key('a share of rows that is negative', 'val_set_size: -0.1\n',
        'run.yml:6: `val_set_size` must be at least 0, not -0.1.'),
    key('a share of rows that is no number', 'val_set_size: .nan\n',
        'run.yml:6: `val_set_size` must be a finite number, not nan.'),
    key('more rows held out than there are', 'val_set_size: 100\n',
        'val_set_size: 100 rows are to be held out, but there are only 8.'),
    key('rows held out in two ways', 'val_set_size: 2\ntest_datasets: [{path: data.jsonl}]\n',
        'run.yml:6: `val_set_size`: held-out rows come from `test_datasets` or from `val_set_size`, not both.'),
    key('an unknown way with long rows', 'excess_length_strategy: cut\n',
        "run.yml:6: `excess_length_strategy` must be 'drop'", "not 'cut'"),
    key('an unknown way with equal rows', 'dedup: fuzzy\n', 'run.yml:6: `dedup` must be', "not 'fuzzy'"),
    key('a finding that does not exist', 'ignore_findings: [no_end_tokn]\n', 'there is no finding `no_end_tokn`',
        'Did you mean `no_end_token`?'),
    key('a text where a list belongs', 'ignore_findings: no_end_token\n',
        "run.yml:6: `ignore_findings` must be a list, as `[no_end_token]`, not 'no_end_token'."),
    key('a template that does not exist', 'chat_template: chatmll\n', 'chat_template: there is no template `chatmll`',
        'Did you mean `chatml`?'),
    key('a template file that does not exist', 'chat_template: my.jinja\n', 'chat_template: my.jinja cannot be read',
        'No such file'),
]

ENTRIES = [
    entry('an unknown prompt format', 'type: alpca\n', 'there is no prompt format `alpca`', 'Did you mean `alpaca`?'),
    entry('a number as prompt format', 'type: 3\n', 'run.yml:4: `type` must be text or a mapping'),
    entry('an unknown key in an own format', 'type:\n  formt: "{instruction}"\n', 'run.yml:5: `formt` is not a key',
          'Did you mean `format`?'),
    entry('a brace that is never closed in an own format', 'type:\n  format: "Q: {instruction A:"\n',
          "the prompt format 'Q: {instruction A:' cannot be read", '`{{`'),
    entry('an unknown name in an own format', 'type:\n  format: "{question}"\n', '`{question}`', '`{instruction}`'),
    entry('a column of an own format that is not there', 'type:\n  field_instruction: question\n', 'data.jsonl',
          'needs the column `question`', 'there are `instruction`, `output`'),
    entry('an empty slice', 'split: train[:0]\n', 'data.jsonl: there are no rows in split `train[:0]`'),
    entry('a slice that cannot be read', 'split: train[abc\n', 'data.jsonl: split `train[abc` cannot be read',
          '`train[:100]`'),
    entry('a slice without beginning', 'split: "[:5]"\n', 'data.jsonl', 'split'),
    entry('a weight of nothing', 'weight: 0\n', 'run.yml:4: `weight` must be above 0, not 0.'),
    entry('a weight in words', 'weight: much\n', "run.yml:4: `weight` must be a number, not 'much'."),
    entry('no shard', 'shards: 0\n', 'run.yml:4: `shards` must be above 0, not 0.'),
    entry('a shard that does not exist', 'shards: 2\nshards_idx: 2\n', 'data.jsonl: `shards_idx: 2`',
          'counted from 0 to 1'),
    entry('more shards than rows', 'shards: 100\nshards_idx: 99\n', 'data.jsonl', '100 shards', '8 rows'),
    entry('an unknown kind of file', 'ds_type: excel\n', "run.yml:4: `ds_type` must be 'json'", "not 'excel'"),
    entry('JSON read as Parquet', 'ds_type: parquet\n', 'data.jsonl: cannot be read: ', 'Parquet'),
    entry('roles that are no mapping', 'type: chat_template\nroles: assistant\n',
          'run.yml:5: `roles` must be a mapping', "not 'assistant'"),
    entry('an unknown choice of end tokens', 'type: chat_template\ntrain_on_eos: never\n',
          "run.yml:5: `train_on_eos` must be 'all'", "not 'never'"),
]

PLACES = [
    {'id': 'a file that is not there', 'run': BASE.replace('data.jsonl', 'dat.jsonl'),
     'says': ['dat.jsonl: there is no such file or folder', 'Did you mean `data.jsonl`?',
              'Paths are relative to the folder']},
    {'id': 'a built-in set that does not exist', 'run': BASE.replace('data.jsonl', 'builtin/python-evol-2k'),
     'says': ['there is no such built-in data set', 'Did you mean `python-evol-1k`?']},
    {'id': 'a split that does not exist', 'run': BASE.replace('data.jsonl', 'builtin/python-evol-1k\n    split: held'),
     'says': ['builtin/python-evol-1k: there is no split `held`', '`heldout`']},
    {'id': 'a pattern that fits no file', 'run': BASE.replace('data.jsonl', 'logs/*.jsonl'),
     'says': ['logs/*.jsonl: there are no such files']},
    {'id': 'a folder without data', 'files': {'mine/notes.md': 'hi'}, 'run': BASE.replace('data.jsonl', './mine'),
     'says': ['mine: there are no data files in this folder', 'It holds: notes.md']},
    {'id': 'a broken file in a folder', 'files': {'mine/train.jsonl': ROWS + '{"a\n'},
     'run': BASE.replace('data.jsonl', './mine'), 'says': ['mine/train.jsonl:9: this is not valid JSON']},
    {'id': 'a file of a folder that is not there', 'files': {'mine/a.jsonl': ROWS},
     'run': BASE.replace('data.jsonl', './mine\n    data_files: b.jsonl'),
     'says': ['mine: `data_files`: there is no `b.jsonl`']},
    {'id': 'a folder without a training split', 'files': {'mine/test.jsonl': ROWS, 'mine/validation.jsonl': ROWS},
     'run': BASE.replace('data.jsonl', './mine'), 'says': ['mine: ', 'split', '`test`, `validation`']},
    {'id': 'a server that does not answer', 'run': BASE.replace('data.jsonl', 'http://127.0.0.1:9/d.jsonl'),
     'says': ['http://127.0.0.1:9/d.jsonl: cannot be read: ', 'refused']},
    {'id': 'a broken file to measure with', 'files': {'t.jsonl': ROWS + '[1]\n'},
     'keys': 'test_datasets: [{path: t.jsonl}]\n', 'says': ['t.jsonl:9: a row must be an object']},
]

FILES = [
    file('an ending that is not known', 'd.xlsx', ROWS, 'd.xlsx: files ending in `.xlsx` cannot be read', '.jsonl'),
    file('a line that is no JSON', 'd.jsonl', ROWS + '{"instruction": 1,\n' + ROWS, 'd.jsonl:9: this is not valid JSON',
         'at character 19'),
    file('a file cut off within a line', 'd.jsonl', ROWS + '{"instruction": "a", "output": "b',
         'd.jsonl:9: this is not valid JSON'),
    file('single quotes instead of double ones', 'd.jsonl', "{'instruction': 'a', 'output': 'b'}\n",
         'd.jsonl:1: this is not valid JSON'),
    file('two objects in a line', 'd.jsonl',
         '{"instruction": "a", "output": "b"} {"instruction": "a", "output": "b"}\n',
         'd.jsonl:1: this is not valid JSON: Extra data'),
    file('a line that is a list', 'd.jsonl', ROWS + '[1, 2]\n', 'd.jsonl:9: a row must be an object'),
    file('a line that is a number', 'd.jsonl', ROWS + '7\n', 'd.jsonl:9: a row must be an object'),
    file('a JSON array where lines are expected', 'd.jsonl',
         '[{"instruction": "a", "output": "b"},\n {"instruction": "c", "output": "d"}]\n', 'd.jsonl:1: ', 'array',
         'Rename the file to .json'),
    file('NaN', 'd.jsonl', ROWS + '{"instruction": "a", "output": NaN}\n', 'd.jsonl:9: `NaN` is not a JSON value',
         '`null`'),
    file('a column given twice in a row', 'd.jsonl', ROWS + '{"instruction": "a", "output": "b", "output": "c"}\n',
         'd.jsonl:9: `output` is given twice'),
    file('half a character', 'd.jsonl', ROWS + '{"instruction": "a", "output": "\\ud83d"}\n',
         'd.jsonl:9: there is half a character'),
    file('objects in objects, thousands deep', 'd.jsonl', ROWS + '{"instruction": ' * 20000 + '\n',
         'd.jsonl:9: lists or objects are nested too deeply'),
    file('text that is not UTF-8 half-way', 'd.jsonl',
         ROWS.encode() + '{"instruction": "ü", "output": "b"}\n'.encode('latin-1') + ROWS.encode(),
         'd.jsonl:9: this is not UTF-8 text', 'Save the file as UTF-8'),
    file('control characters that JSON does not allow', 'd.jsonl', ROWS + '{"instruction": "a\tb", "output": "b"}\n',
         'd.jsonl:9: this is not valid JSON: Invalid control character'),
    file('bytes of another kind of file', 'd.jsonl', b'\x89PNG\r\n\x1a\n' + bytes(range(256)),
         'd.jsonl:1: this is not UTF-8 text'),
    file('a packed file cut off', 'd.jsonl.gz', gzip.compress(ROWS.encode() * 50, mtime=0)[:-20],
         'd.jsonl.gz: cannot be read', 'cut off'),
    file('a packed file with a broken line', 'd.jsonl.gz',
         gzip.compress((ROWS + '{"instruction": 1,\n').encode(), mtime=0), 'd.jsonl.gz:9: this is not valid JSON'),
    file('a packed file that is not packed', 'd.jsonl.gz', ROWS, 'd.jsonl.gz: cannot be read: it is not a gzip file'),
    file('a packed file with damaged bytes', 'd.jsonl.gz',
         gzip.compress(ROWS.encode(), mtime=0)[:30] + b'damage' + gzip.compress(ROWS.encode(), mtime=0)[36:],
         'd.jsonl.gz: cannot be read'),
    file('an empty file', 'd.jsonl', '', 'd.jsonl: the file is empty.'),
    file('an empty packed file', 'd.jsonl.gz', gzip.compress(b'', mtime=0), 'd.jsonl.gz: the file is empty.'),
    file('nothing but blank lines', 'd.jsonl', '\n\n', 'd.jsonl: there are no rows.'),
    file('an empty .json', 'd.json', '', 'd.json: the file is empty.'),
    file('an empty array', 'd.json', '[]', 'd.json: there are no rows.'),
    file('a mistake in the second line of an array', 'd.json',
         '[{"instruction": "a", "output": "b"},\n {"instruction" 3}]', 'd.json:2: this is not valid JSON'),
    file('an array of texts', 'd.json', '["a", "b"]', 'd.json: row 1: a row must be an object'),
    file('the rows one level deeper', 'd.json', '{"data": [{"instruction": "a", "output": "b"}]}', 'd.json',
         'needs the columns `instruction`, `output`', 'there are `data`'),
    file('an empty .csv', 'd.csv', '', 'd.csv: the file is empty.'),
    file('a .csv with nothing but a head', 'd.csv', 'instruction,output\n', 'd.csv: there are no rows.'),
    file('a row with more values than columns', 'd.csv', 'instruction,output\na,b\nc,d,e,f\ng,h\n',
         'd.csv:3: this row has 4 values, but there are 2 columns', 'quotes'),
    file('a quote that is never closed', 'd.csv', 'instruction,output\na,b\n"c,d\ng,h\n',
         'd.csv:3: a quote that opens in this row is never closed'),
    file('text behind a closing quote', 'd.csv', 'instruction,output\na,b\n"c" or d,e\n',
         'd.csv:3: this row cannot be read', '`""`'),
    file('two columns of one name', 'd.csv', 'instruction,output,output\na,b,c\n',
         'd.csv:1: there are two columns called `output`'),
    file('a .csv that is not UTF-8', 'd.csv', LATIN, 'd.csv:3: this is not UTF-8 text'),
    file('a .csv without a head', 'd.csv', 'a,b\nc,d\n', 'd.csv: `type: alpaca` needs', 'there are `a`, `b`'),
    file('semicolons instead of commas', 'd.csv', 'instruction;output\na;b\n',
         'd.csv:1: the columns are separated by semicolons', 'commas are expected'),
    file('a .txt that is not UTF-8', 'd.txt', 'ü\n'.encode('latin-1'), 'd.txt:1: this is not UTF-8 text', entry=TEXT),
    file('text in a .parquet', 'd.parquet', 'hello', 'd.parquet: cannot be read', 'Parquet'),
    file('a .parquet cut off', 'd.parquet', parquet({'instruction': ['a'], 'output': ['b']})[:-30],
         'd.parquet: cannot be read'),
    file('an empty .parquet', 'd.parquet', '', 'd.parquet: the file is empty.'),
    file('a .parquet without rows', 'd.parquet', parquet({'instruction': [], 'output': []}),
         'd.parquet: there are no rows.'),
    file('text in an .arrow', 'd.arrow', 'hello', 'd.arrow: cannot be read', 'Is the file whole'),
]

COLUMNS = [
    file('columns of other names', 'd.jsonl', lines({'question': 'a', 'answer': 'b'}),
         'd.jsonl: `type: alpaca` needs the columns `instruction`, `output`', 'there are `question`, `answer`'),
    file('names in capitals', 'd.jsonl', lines({'Instruction': 'a', 'Output': 'b'}),
         'd.jsonl: `type: alpaca` needs the columns `instruction`', '`Instruction`'),
    file('a number where text is expected', 'd.jsonl', ROWS + lines({'instruction': 'x', 'output': 7}),
         'd.jsonl:9: `output` must be text, not 7. Put it in quotes.'),
    file('a list of 50 MB where text is expected', 'd.jsonl',
         lambda: ROWS + lines({'instruction': 'x', 'output': ['long word ' * 5_000_000]}),
         "d.jsonl:9: `output` must be text, not ['long word"),
    file('true where text is expected', 'd.jsonl', ROWS + lines({'instruction': 'x', 'output': True}),
         'd.jsonl:9: `output` must be text, not True'),
    file('a list where text is expected', 'd.jsonl', lines({'instruction': ['x'], 'output': 'y'}),
         "d.jsonl:1: `instruction` must be text, not ['x']."),
    file('an object where text is expected', 'd.jsonl', ROWS + lines({'instruction': 'x', 'output': {'a': 1}}),
         "d.jsonl:9: `output` must be text, not {'a': 1}."),
    file('a column that is text in one row and a list in the next', 'd.jsonl',
         lines({'instruction': 'x', 'output': 'y'}, {'instruction': 'x', 'output': ['y']}),
         "d.jsonl:2: `output` must be text, not ['y']."),
    file('a column of numbers in a .parquet', 'd.parquet', parquet({'instruction': ['a'], 'output': [1.5]}),
         'd.parquet: row 1: `output` must be text, not 1.5. Put it in quotes.'),
    file('numbers as text to learn', 'd.jsonl', lines({'text': 1}, {'text': 2}),
         'd.jsonl:1: `text` must be text, not 1.', entry=TEXT),
    file('no answer in any row', 'd.jsonl', lines(*[{'instruction': 'a', 'output': ''}] * 3), 'the answer is empty'),
    file('answers that are null', 'd.jsonl', lines(*[{'instruction': 'a', 'output': None}] * 3), 'the answer is empty'),
    file('a column called like one of ours', 'd.jsonl', lines({'source': 'a'}),
         'd.jsonl: a column cannot be called `source`', 'Rename it', entry='type: completion\nfield: source\n'),
    file('every row longer than `sequence_len`', 'd.jsonl',
         lines(*[{'instruction': f'{i}', 'output': 'long ' * 80} for i in range(3)]), '`sequence_len`',
         '3 of 3 rows (row 1, 2, 3)'),
    file('a row too long, and told to stop then', 'd.jsonl', ROWS + lines({'instruction': 'x', 'output': 'long ' * 80}),
         'd.jsonl: row 9 is longer than sequence_len 64', '`excess_length_strategy`',
         keys='excess_length_strategy: error\n'),
]

CHATS = [
    chat('a text for the conversation', [{'messages': 'hello'}], 'd.jsonl:1: `messages` must be a list of messages',
         "not 'hello'"),
    chat('texts for the messages', [{'messages': ['hello']}], 'd.jsonl:1: `messages` must be a list of messages',
         "not ['hello']"),
    chat('a conversation under another name', [{'chat': GOOD['messages']}],
         'd.jsonl: `type: chat_template` needs the column `messages`', 'there are `chat`'),
    chat('messages with other names', [{'messages': [{'from': 'user', 'value': '3'}]}], 'a message has no `role`'),
    chat('messages without content', [{'messages': [{'role': 'user'}, {'role': 'assistant'}]}],
         'a message has no `content`'),
    chat('no messages', [{'messages': []}], 'there are no messages'),
    chat('an unknown role', [talk(('user', 'Hi'), ('robot', 'Hello'))], 'unknown role `robot`'),
    chat('nobody answers', [talk(('user', 'Hi'), ('user', 'Hello?'))], 'there is no message of the role assistant'),
    chat('empty answers', [talk(('user', 'Hi'), ('assistant', ''))], 'nothing in it is learned'),
    chat('a number as content', [talk(('user', 'Hi'), ('assistant', 7))], 'the content of a message is not text'),
    chat('a picture as content', [talk(('user', [{'type': 'image', 'url': 'a.png'}]), ('assistant', 'A cat.'))],
         'a part of a message is not text'),
    chat('tools that are no JSON', [GOOD | {'tools': 'none'}], 'the list of tools is text that is not JSON'),
    chat('roles out of order, and a template that minds',
         [talk(('user', 'Hi'), ('user', 'Hi'), ('assistant', 'Hello'))], 'the chat template refuses it', 'alternate',
         keys='chat_template: llama2\n'),
    chat('a template that raises', [GOOD], 'the chat template refuses it: no',
         keys='chat_template: "{{ raise_exception(\'no\') }}"\n'),
    chat('a template that fails', [GOOD], 'the chat template refuses it',
         keys='chat_template: "{{ messages.nothing.here }}"\n'),
    chat('a template that is no Jinja', [GOOD], 'chat_template: line 1 is no valid Jinja',
         keys='chat_template: "{% for m in messages %}"\n'),
    chat('a template that changes earlier turns', [GOOD],
         'the chat template writes a turn differently when more follows',
         keys='chat_template: "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ eos_token }}'
               '{% endfor %}"\n'),
    chat('a template without end tokens', [GOOD], 'the chat template puts no end token behind the answer',
         keys='chat_template: "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}'
               '{% if add_generation_prompt %}assistant: {% endif %}"\n'),
    chat('a template file that is not UTF-8', [GOOD], 'chat_template: t.jinja cannot be read', 'UTF-8',
         keys='chat_template: t.jinja\n')
        | {'files': {'d.jsonl': lines(GOOD), 't.jinja': '{{ "ü" }}'.encode('latin-1')}},
    {'id': 'a tokenizer without an end token', 'files': model(eos=None),
     'run': BASE.replace('builtin/smollm2-135m', './m'), 'says': ['./m: the tokenizer has no end-of-sequence token']},
    {'id': 'a tokenizer without a chat template', 'files': model() | {'data.jsonl': lines(GOOD)},
     'run': BASE.replace('builtin/smollm2-135m', './m').replace('jsonl', 'jsonl\n    type: chat_template'),
     'says': ['this tokenizer has none', '`chat_template:`']},
    {'id': 'a folder without a tokenizer',
     'files': {name: model()[name] for name in ('m/config.json', 'm/model.safetensors')},
     'run': BASE.replace('builtin/smollm2-135m', './m'), 'says': ['./m has no tokenizer', 'tokenizer.json']},
    {'id': 'a model that does not say what it is', 'files': model() | {'m/config.json': '{}'},
     'run': BASE.replace('builtin/smollm2-135m', './m'),
     'says': ['./m has no config.json that names its architecture']},
]

BROKEN = {'The description of a run': YAML, 'Keys': KEYS, 'Keys of a source': ENTRIES, 'Where the data are': PLACES,
          'Files': FILES, 'Columns and values': COLUMNS, 'Conversations and templates': CHATS}

# these are right, or only a row of them is wrong: `says` stands in what `llmft check` prints

WORKS = [
    file('a byte order mark', 'd.jsonl', '\ufeff' + ROWS, '8 rows'),
    file('Windows line ends', 'd.jsonl', ROWS.replace('\n', '\r\n').encode(), '8 rows'),
    file('a byte order mark and Windows line ends in a .csv', 'd.csv', '\ufeffinstruction,output\r\na,b\r\nc,d\r\n',
         '2 rows'),
    file('blank lines between rows', 'd.jsonl', ROWS.replace('\n', '\n\n'), '8 rows'),
    file('no line end at the end', 'd.jsonl', ROWS[:-1], '8 rows'),
    file('an array in a .json', 'd.json',
         '[{"instruction": "a", "output": "b"},\n {"instruction": "c", "output": "d"}]', '2 rows'),
    file('lines in a .json', 'd.json', ROWS, '8 rows'),
    file('line ends within quotes in a .csv', 'd.csv', 'instruction,output\n"a\n\nb","c, d"\ne,f\n', '2 rows'),
    file('numbers and words such as None in a .csv', 'd.csv', 'instruction,output\na,7\nb,None\n', '2 rows'),
    file('control characters in a text', 'd.jsonl', ROWS + lines({'instruction': 'a\0b\x1b[31m', 'output': 'c\x07'}),
         '9 rows'),
    file('other types in a column that is not read', 'd.jsonl',
         lines({'instruction': 'a', 'output': 'b', 'id': 1}, {'instruction': 'c', 'output': 'd', 'id': 'two'}),
         '2 rows'),
    file('a column that only some rows have', 'd.jsonl',
         ROWS + lines({'instruction': 'a', 'output': 'b', 'input': 'c'}), '9 rows'),
    file('answers missing in some rows', 'd.jsonl',
         ROWS + lines({'instruction': 'x', 'output': ''}) + ROWS.replace('question', 'q')
         + lines({'instruction': 'y', 'output': None}),
         'the answer is empty', '(row 9, 18)'),
    file('one row that is far too long', 'd.jsonl', ROWS + lines({'instruction': 'x', 'output': 'long ' * 1000}),
         'longer than sequence_len 64', '(row 9)'),
    file('one answer of a million characters', 'd.jsonl',
         lambda: ROWS + lines({'instruction': 'x', 'output': 'long word ' * 100_000}), 'longer than sequence_len 64',
         '(row 9)'),
    file('50 MB in a column that is not read', 'd.jsonl',
         lambda: ROWS + lines({'instruction': 'x', 'output': 'y', 'notes': 'long word ' * 5_000_000}), '9 rows'),
    chat('one unknown role among good ones',
         [*(talk(('user', f'{i}'), ('assistant', 'Hello')) for i in range(30)), talk(('robot', 'Hi'))],
         'unknown role `robot` (row 31)'),
]


def write(case):
    "The files of a case, in the present folder."
    files = case.get('files') or {}
    files_are_test_data = case.get('keys', '').startswith('test_datasets')
    source = next(iter(files), 'data.jsonl') if 'run' not in case and not files_are_test_data else 'data.jsonl'
    indented = ''.join(f'    {line}\n' for line in case.get('entry', '').splitlines())
    run = case.get('run', BASE.replace('data.jsonl\n', f'{source}\n{indented}') + case.get('keys', ''))
    for name, content in ({'data.jsonl': ROWS} | files | {'run.yml': run}).items():
        content = content() if callable(content) else content
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def ask(*command):
    "Run the command line in this process: (status, what it prints, what it says is wrong)."
    from llmft.commands.cli import main
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try: main(list(command))
        except SystemExit as e: status = e.code or 0
    return status, out.getvalue(), err.getvalue()


def _cell(text): # of a table
    text = text if len(text) < 400 else text[:397] + '…'
    return text.replace('|', '\\|').replace('<', '&lt;').replace('\n', '<br>')


def message_row(case, error): # of the page about messages; `error`: what `ask` gave
    message = error[error.index('Error: ') + 7:].strip()
    return f'| {case["id"]} | {_cell(message.replace(os.getcwd(), "/home/me"))} |'


def works_row(case, printed): # of the page about messages; `printed`: what `ask` gave
    marks = ('rows read:', 'left_out', 'empty_answer')
    told = [line.strip() for line in printed.splitlines() if any(mark in line for mark in marks)]
    return f'| {case["id"]} | {_cell("; ".join(told))} |'
