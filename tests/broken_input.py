"""Broken inputs beside the rows (those are in `bad_data`): paths, YAML, models, runs, absurd numbers, questions.

A case is (what is wrong, a function that breaks something in the present folder or None, the command)."""
import json, os, shutil, struct
from pathlib import Path

from llmft.config.config import dump_yaml, load_config
from llmft.training.train import finetune
from tests.small import change_json, small_run

CHECK, TRAIN = ['check', 'run.yml'], ['train', 'run.yml']
GENERATE, MERGE, SCORE = ['generate', 'run', '-p', 'a'], ['merge', 'run', 'merged'], ['score', 'run', '--run-code']


def prepare():
    "A model, rows, chats, two runs (one with checkpoints), and the description `run.yml`, in the present folder."
    small_run(Path('.'))
    talk = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    Path('chats.jsonl').write_text(json.dumps({'messages': talk}) + '\n')
    Path('run.yml').write_text(dump_yaml({
        'base_model': './model', 'adapter': 'lora', 'lora_r': 2, 'sequence_len': 128, 'bf16': False,
        'datasets': [{'path': 'data.jsonl'}], 'sample_packing': False, 'gradient_checkpointing': False, 'max_steps': 1,
        'output_dir': 'out'}))
    finetune(load_config('run.yml', max_steps=2, save_steps=1, logging_steps=1, output_dir='trained'), say=None)


def links(): # links to nowhere and to themselves
    Path('dangling').symlink_to('nowhere/at/all')
    Path('loop').symlink_to('loop')


# no path, and where one is given

NO_PATHS = {'a name of 300 characters': 'x' * 300, 'the home of nobody': '~nobody-of-this-name/a', 'NUL': 'a\0b',
            'a link to nowhere': 'dangling', 'a link to itself': 'loop'}

def key(name): return lambda path: [*CHECK, '--set', f'{name}={json.dumps(path)}']
def entry(text): return lambda path: [*CHECK, '--set', text.replace('PATH', json.dumps(path))]

PLACES = {
    'the YAML': lambda path: ['check', path], 'the YAML of train': lambda path: ['train', path],
    'base_model': key('base_model'), 'tokenizer_config': key('tokenizer_config'),
    'base_model_config': key('base_model_config'),
    'lora_model_dir': lambda path: [*TRAIN, *key('lora_model_dir')(path)[2:]],
    'chat_template': entry('datasets=[{path: chats.jsonl, type: chat_template, chat_template: PATH}]'),
    'a source': entry('datasets=[{path: PATH}]'), 'a held-out source': entry('test_datasets=[{path: PATH}]'),
    'data_files': entry('datasets=[{path: json, data_files: PATH}]'),
    'data_files of a folder': entry('datasets=[{path: ., data_files: [PATH]}]'),
    'output_dir': key('output_dir'), '--out of train': lambda path: [*TRAIN, '--out', path],
    'the run of chat': lambda path: ['chat', path], 'the run of generate': lambda path: ['generate', path, '-p', 'a'],
    'the run of score': lambda path: ['score', path, '--run-code'],
    'the run of merge': lambda path: ['merge', path, 'merged'],
    'the folder of merge': lambda path: ['merge', 'run', path],
    'the file of questions': lambda path: ['generate', 'run', path],
    'the file of convert': lambda path: ['convert', path],
    '--out of plan': lambda path: ['plan', 'run.yml', '--out', path],
}
FROM_SHELL = {place for place in PLACES if place.startswith(('the YAML', '--out', 'the run', 'the fol', 'the file'))}
WRITES_THROUGH = {'output_dir', '--out of train', 'the folder of merge',
    '--out of plan'} # a link to a new place is fine
PATHS = [(f'{kind} as {place}', links, command(path)) for place, command in PLACES.items()
         for kind, path in NO_PATHS.items()
         if not (path == 'dangling' and place in WRITES_THROUGH or '\0' in path and place in FROM_SHELL)]


# YAML that is valid and yet none

def add(text): # to the description of the run
    return lambda: Path('run.yml').write_text(Path('run.yml').read_text() + text)

def bomb(n): return 'x0: &x0 [a]\n' + ''.join(f'x{i}: &x{i} [{", ".join([f"*x{i-1}"] * 9)}]\n' for i in range(1, n))

YAML = [(what, add(text), CHECK) for what, text in {
    'a bomb of aliases': bomb(30), 'a bomb in a known key': bomb(30) + 'tokens: *x29\n',
    'a mapping in itself': 'model_kwargs: &a {b: *a}\n', 'a list in itself': 'tokens: &a [*a]\n',
    'a circle of two': 'model_kwargs: &a {b: &b {a: *a, b: *b}}\n',
    'a merge with itself': 'model_kwargs: &a\n  <<: *a\n',
    'a mapping as a key': '? {a: 1}\n: 2\n', 'bytes': 'tokens: !!binary aGFsbG8=\n',
    'pairs': 'tokens: !!pairs [a: 1]\n', 'an integer of 5,000 digits': f'seed: {"9" * 5000}\n',
    'hexadecimal without end': f'seed: 0x{"f" * 500}\n', 'null as a key': 'null: 3\n',
    'a key of 100,000 characters': f'{"k" * 100_000}: 1\n',
    'a value of 100,000 characters': f'seed: {"v" * 100_000}\n',
    'half a character': 'tokens: ["\\ud83d"]\n', 'an unknown anchor': 'tokens: *nothing\n',
    'deep brackets': f'tokens: {"[" * 900}{"]" * 900}\n', 'a number as a list': 'datasets: 3\n',
}.items()]


# absurd numbers

NUMBERS = [(f'{key}: {value}', None, [*CHECK, '--set', f'{key}={value}']) for key, value in [
    ('sequence_len', '1000000000000'), ('sequence_len', '1e12'), ('sequence_len', 2**70), ('micro_batch_size', 10**9),
    ('micro_batch_size', 2**70), ('gradient_accumulation_steps', 2**70), ('lora_r', 10**9), ('lora_r', 2**70),
    ('lora_alpha', '1e400'), ('num_epochs', '1e300'), ('max_steps', 2**70), ('seed', -1),
    ('seed', 2**70), ('val_set_size', '1e300'), ('learning_rate', '0'), ('learning_rate', '-1'),
    ('warmup_steps', 2**70),
    ('logging_steps', 2**70), ('save_steps', 2**70), ('eval_steps', 2**70), ('eval_batch_size', 2**70),
    ('dataloader_num_workers', 2**70), ('min_sample_len', 2**70), ('save_total_limit', 2**70),
    ('overrides_of_model_config', '{num_hidden_layers: 1000000000}'),
    ('overrides_of_model_config', '{hidden_size: 15}'),
    ('overrides_of_model_config', '{num_attention_heads: 0}'), ('overrides_of_model_config', '{vocab_size: -1}'),
    ('overrides_of_model_config', f'{{hidden_size: {2**70}}}'), ('overrides_of_model_config', '{hidden_act: nope}'),
    ('overrides_of_model_config', '{rope_parameters: nope}'),
    ('overrides_of_model_config', '{num_hidden_layers: many}'),
    ('datasets', '[{path: data.jsonl, weight: 1e12}]'), ('datasets', '[{path: data.jsonl, weight: 1e300}]'),
    ('datasets', f'[{{path: data.jsonl, shards: {2**70}}}]'),
    ('datasets', f'[{{path: data.jsonl, shards: 2, shards_idx: {2**70}}}]'),
    ('datasets', f'[{{path: data.jsonl, shards: 2, shards_idx: -1}}]'),
]]


# a model folder, each file broken in turn

def cut(file): # a YAML file within the name of a key, for what ends with a line can be right
    whole = file.read_bytes()
    end = len(whole) - max(20, len(whole) // 3)
    if file.suffix == '.yml': end = whole.index(b':', whole.index(b'\n', end))
    file.write_bytes(whole[:end])

def folder_instead(file):
    file.unlink()
    file.mkdir()

WAYS = {
    'missing': Path.unlink, 'empty': lambda file: file.write_bytes(b''), 'cut off': cut,
    'of random bytes': lambda file: file.write_bytes(bytes(range(256)) * 4),
    'a list': lambda file: file.write_text('[]'),
    'a folder': folder_instead, 'null': lambda file: file.write_text('null'),
    'a number too deep': lambda file: file.write_text('{"a": ' * 3000 + '1' + '}' * 3000),
}

def broken_file(folder, name, way): return lambda: WAYS[way](Path(folder)/name)
def json_keys(file, **changes): return lambda: change_json(Path(file), **changes)

WORK_WITHOUT = ('tokenizer_config.json', 'generation_config.json') # files that may be missing
MODEL = [(f'the model\'s {name} is {way}', broken_file('model', name, way), TRAIN)
         for name in ('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json')
         for way in WAYS if not (way == 'missing' and name in WORK_WITHOUT)]
MODEL += [(f'the model\'s generation_config.json is {way}', broken_file('model', 'generation_config.json', way),
    TRAIN)
          for way in ('cut off', 'of random bytes', 'a list')]


def shards(change): # the weights as two files with an index, which `change` may alter
    def make():
        from safetensors.torch import load_file, save_file
        weights = load_file('model/model.safetensors')
        Path('model/model.safetensors').unlink()
        files = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(weights)}
        for file in {*files.values()}:
            save_file({k: v for k, v in weights.items() if files[k] == file}, f'model/{file}', {'format': 'pt'})
        index = {'metadata': {}, 'weight_map': files}
        Path('model/model.safetensors.index.json').write_text(json.dumps(change(index)))
    return make

def drop_shard(index):
    Path('model/model-00002-of-00002.safetensors').unlink()
    return index

def swap(index):
    index['weight_map'] |= {'lm_head.weight': 'model-00009-of-00002.safetensors'}
    return index

def weights(change): # the weights with others
    def make():
        from safetensors.torch import load_file, save_file
        values = load_file('model/model.safetensors')
        change(values)
        save_file({k: v.contiguous() for k, v in values.items()}, 'model/model.safetensors', {'format': 'pt'})
    return make

def transposed(w): w['model.layers.0.mlp.up_proj.weight'] = w['model.layers.0.mlp.up_proj.weight'].T
def without_layer(w):
    for k in [k for k in w if '.layers.1.' in k]: del w[k]
def without_head(w): del w['lm_head.weight']
def smaller_vocabulary(w): w['model.embed_tokens.weight'] = w['model.embed_tokens.weight'][:50]
def renamed(w):
    for k in [*w]: w['transformer.' + k] = w.pop(k)
def not_a_number(w): w['model.norm.weight'][:] = float('nan')

def few_embeddings(): # model and `config.json` agree, and the tokenizer has more tokens
    weights(lambda w: w.update({k: w[k][:50] for k in ('model.embed_tokens.weight', 'lm_head.weight')}))()
    change_json(Path('model/config.json'), vocab_size=50)

def header(n): # a safetensors file whose header should have `n` bytes
    return lambda: Path('model/model.safetensors').write_bytes(struct.pack('<Q', n) + b'{}')

CONFIG = 'model/config.json'
MODEL += [(f'a tokenizer of more tokens than the model has, {command[0]}', few_embeddings, command)
          for command in (CHECK, TRAIN, ['find-lr', 'run.yml'])]
MODEL += [(what, make, TRAIN) for what, make in {
    'an index that is a list': shards(lambda index: []), 'an index without names': shards(lambda index: {}),
    'an index that names no files': shards(lambda index: {'weight_map': None}),
    'an index with numbers': shards(lambda index: {'metadata': {}, 'weight_map': {'lm_head.weight': 3}}),
    'a missing shard': shards(drop_shard), 'a shard that never was': shards(swap),
    'a weight of another shape': weights(transposed), 'a block without weights': weights(without_layer),
    'a head without weights': weights(without_head), 'fewer words than said': weights(smaller_vocabulary),
    'weights of another program': weights(renamed),
    'a header of 2^63 bytes': header(2**63), 'a header longer than the file': header(1000),
    'more blocks than weights': json_keys(CONFIG, num_hidden_layers=4),
    '3,000 blocks': json_keys(CONFIG, num_hidden_layers=3000),
    'another width': json_keys(CONFIG, hidden_size=32), 'a width of nothing': json_keys(CONFIG, hidden_size=0),
    'a width in words': json_keys(CONFIG, hidden_size='wide'), 'a negative width': json_keys(CONFIG, hidden_size=-16),
    'heads that do not divide': json_keys(CONFIG, num_attention_heads=3),
    'no heads': json_keys(CONFIG, num_attention_heads=0),
    'no vocabulary': json_keys(CONFIG, vocab_size=0), 'a vocabulary of 50': json_keys(CONFIG, vocab_size=50),
    'an unknown activation': json_keys(CONFIG, hidden_act='nope'),
    'an unknown architecture': json_keys(CONFIG, model_type='nope'),
    'an architecture that is a list': json_keys(CONFIG, model_type=['llama']),
    'another architecture': json_keys(CONFIG, model_type='gpt2'), 'an encoder': json_keys(CONFIG, model_type='bert'),
    'a model of pictures': json_keys(CONFIG, model_type='vit'),
    'a model of speech': json_keys(CONFIG, model_type='whisper'),
    'an encoder with a decoder': json_keys(CONFIG, model_type='t5'),
    'rotation that is text': json_keys(CONFIG, rope_parameters='nope'),
    'an unknown rotation': json_keys(CONFIG, rope_parameters={'rope_type': 'nope', 'rope_theta': 1e4}),
    'an unknown quantization': json_keys(CONFIG, quantization_config={'quant_method': 'nope'}),
    'a quantization without a name': json_keys(CONFIG, quantization_config={}),
    'a quantization that is text': json_keys(CONFIG, quantization_config='awq'),
    'GPTQ that is not there': json_keys(CONFIG, quantization_config={'quant_method': 'gptq', 'bits': 4}),
    'AWQ that is not there': json_keys(CONFIG, quantization_config={'quant_method': 'awq', 'bits': 4}),
    'a number format that is none': json_keys(CONFIG, dtype='float99'),
    'an end token that is a number': json_keys('model/tokenizer_config.json', eos_token=3),
    'an end token that is a list': json_keys('model/tokenizer_config.json', eos_token=['a']),
    'an unknown tokenizer model': json_keys('model/tokenizer.json', model={'type': 'Nope'}),
    'a vocabulary that is a list of numbers':
    json_keys('model/tokenizer.json', model={'type': 'BPE', 'vocab': [1, 2], 'merges': []}),
    'a tokenizer without model': json_keys('model/tokenizer.json', model=None),
    'added tokens that are text': json_keys('model/tokenizer.json', added_tokens='a'),
    'only an adapter': lambda: (shutil.rmtree('model'), shutil.copytree('run/adapter', 'model')),
    'a .bin in place of the weights': lambda: Path('model/model.safetensors').rename('model/pytorch_model.bin'),
}.items()]


# a run folder, each file broken in turn

RUN = [(f'the run\'s {name} is {way}, {command[0]}', broken_file('run', name, way), command)
       for name in ('config_completed.yml', 'adapter/adapter_config.json', 'adapter/adapter_model.safetensors',
                    'adapter/tokenizer.json')
       for way in WAYS for command in (GENERATE, MERGE) if command == GENERATE or way in ('missing', 'cut off')]
RUN += [(f'the run\'s tokenizer_config.json is {way}', broken_file('run', 'adapter/tokenizer_config.json', way),
    GENERATE)
        for way in ('missing', 'cut off', 'of random bytes', 'a list', 'a folder')]

ADAPTER = 'run/adapter/adapter_config.json'

def adapter_weights(change, file='run/adapter/adapter_model.safetensors'):
    def make():
        from safetensors.torch import load_file, save_file
        values = load_file(file)
        change(values)
        save_file({k: v.contiguous() for k, v in values.items()}, file, {'format': 'pt'})
    return make

def first_gone(w): del w[min(w)]
def first_turned(w): w[min(w)] = w[min(w)].T
def first_nan(w): w[min(w)][:] = float('nan')
def first_renamed(w): w[min(w).replace('layers.0', 'layers.77')] = w.pop(min(w))

RUN += [(what, make, GENERATE) for what, make in {
    'an adapter of an unknown kind': json_keys(ADAPTER, peft_type='NOPE'),
    'an adapter of no kind': json_keys(ADAPTER, peft_type=None),
    'a rank of nothing': json_keys(ADAPTER, r=0), 'a negative rank': json_keys(ADAPTER, r=-2),
    'a rank in words': json_keys(ADAPTER, r='two'),
    'another rank': json_keys(ADAPTER, r=4), 'layers that are not there': json_keys(ADAPTER, target_modules=['nope']),
    'layers that are a number': json_keys(ADAPTER, target_modules=3),
    'no layers': json_keys(ADAPTER, target_modules=[]),
    'a layer of the adapter without weights': adapter_weights(first_gone),
    'weights that are turned': adapter_weights(first_turned),
    'weights that are no numbers': adapter_weights(first_nan),
    'weights of another model': adapter_weights(first_renamed),
    'the base is gone': lambda: shutil.rmtree('model'), 'the base has other sizes': json_keys(CONFIG, hidden_size=32),
    'the base lacks weights': weights(without_layer), 'the adapter folder is a file': lambda: (
        shutil.rmtree('run/adapter'), Path('run/adapter').write_text('')),
    'a chat template that is a number': json_keys('run/adapter/tokenizer_config.json', tokenizer_class=3),
    'a tokenizer without an end': json_keys('run/adapter/tokenizer_config.json', eos_token=None),
    'an adapter of another way to merge': json_keys(ADAPTER, alora_invocation_tokens=True),
}.items()]
RUN += [
    ('a run whose data are gone, score', lambda: os.remove('data.jsonl'), SCORE),
    ('a run whose data are other ones, score', lambda: Path('data.jsonl').write_text('{"a": 1}\n'), SCORE),
    *[(f'tests that are {what}', lambda tests=tests: Path('data.jsonl').write_text(
        f'{{"instruction": "a", "output": "b", "tests": {tests}}}\n'), SCORE)
      for what, tests in {'numbers': '3', 'lists': '["a"]'}.items()],
    ('no tests at all', lambda: Path('data.jsonl').write_text('{"instruction": "a", "output": "b"}\n'), SCORE),
    ('merging into the run', None, ['merge', 'run', 'run']),
    ('merging below a file', None, ['merge', 'run', 'data.jsonl/a']),
    ('merging into a folder of others', lambda: None, ['merge', 'run', 'model', '--overwrite']),
]


# questions

def questions(*rows): return lambda: Path('q.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
ASK = ['generate', 'run', 'q.jsonl']
QUESTIONS = [(what, questions(row), ASK) for what, row in {
    'a question that is a number': {'instruction': 3}, 'a question that is a list': {'instruction': ['a']},
    'a question that is an object': {'instruction': {'a': 1}}, 'a question that is true': {'instruction': True},
    'an input that is a list': {'instruction': 'a', 'input': [1]}, 'a question of nothing': {'instruction': ''},
    'a question that is null': {'instruction': None}, 'a row that is empty': {},
    'a row of other columns': {'text': 'a'},
}.items()]
QUESTIONS += [('questions in a folder', None, ['generate', 'run', 'model']),
              ('questions of an unknown ending', lambda: Path('q.doc').write_text('a'), ['generate', 'run', 'q.doc']),
              ('questions that are no text', lambda: Path('q.txt').write_bytes(b'\xff\xfe\0'),
                  ['generate', 'run', 'q.txt'])]


# where the run is written

def data_in_folder():
    Path('d').mkdir()
    shutil.copy('data.jsonl', 'd/data.jsonl')

OUT = [(what, make, command) for what, make, command in [
    ('output_dir of blanks', None, [*CHECK, '--set', "output_dir='  '"]),
    ('the present folder', None, [*TRAIN, '--set', 'output_dir=.', '--overwrite']),
    ('the root', None, [*TRAIN, '--set', 'output_dir=/', '--overwrite']),
    ('the home', None, [*TRAIN, '--set', 'output_dir="~"', '--overwrite']),
    ('the folder above', None, [*TRAIN, '--set', 'output_dir=..', '--overwrite']),
    ('a file', None, [*TRAIN, '--set', 'output_dir=data.jsonl', '--overwrite']),
    ('a run that holds the data', lambda: shutil.copy('data.jsonl', 'run/data.jsonl'),
     [*TRAIN, '--set', 'datasets=[{path: run/data.jsonl}]', '--out', 'run', '--overwrite']),
    ('a run that holds the held-out data', lambda: shutil.copy('data.jsonl', 'run/data.jsonl'),
     [*TRAIN, '--set', 'test_datasets=[{path: ./run/../run/data.jsonl}]', '--out', 'run', '--overwrite']),
    ('a run that holds the model', lambda: shutil.copytree('model', 'run/model2'),
     [*TRAIN, '--set', 'base_model=./run/model2', '--out', 'run', '--overwrite']),
    ('a run whose adapter is gone on with', None,
        [*TRAIN, '--set', 'lora_model_dir=run', '--out', 'run', '--overwrite']),
    ('a run that holds a template', lambda: Path('run/t.jinja').write_text('{{ messages }}'),
     [*TRAIN, '--set', 'datasets=[{path: chats.jsonl, type: chat_template, chat_template: run/t.jinja}]', '--out',
         'run', '--overwrite']),
]]

OUT += [(f'{folder}{" with " + option if option else ""} as output_dir', data_in_folder,
         [*TRAIN, '--set', f'output_dir={folder}', '--set', 'datasets=[{path: d}]', *filter(None, [option])])
        for folder in ("''", '.', 'd', 'd/run', './d/../d/runs/1', 'model', 'model/')
        for option in (None, '--overwrite')]


# going on with a run that has one checkpoint: each of its files, and of the run, broken in turn

RESUME = [*TRAIN, '--set', 'max_steps=3', '--set', 'save_steps=1', '--set', 'logging_steps=1', '--out', 'trained',
          '--resume']
NEWEST = 'trained/checkpoints/checkpoint-2'

def alone(make): # the one before would be taken
    def make_alone():
        shutil.rmtree('trained/checkpoints/checkpoint-1')
        make()
    return make_alone

def zeros(file): file.write_bytes(bytes(file.stat().st_size))
def zeros_inside(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole) // 2] + bytes(40) + whole[len(whole) // 2 + 40:])

DAMAGE = {'missing': Path.unlink, 'cut off': cut, 'empty': WAYS['empty'], 'of random bytes': WAYS['of random bytes'],
          'of zeros': zeros, 'a folder': folder_instead}
CHECKPOINT = [(f'the checkpoint\'s {name} is {way}', alone(lambda name=name, way=way: DAMAGE[way](Path(NEWEST)/name)),
               RESUME)
              for name in ('trainer_state.json', 'adapter_model.safetensors', 'optimizer.pt', 'scheduler.pt',
                           'rng_state.pth')
              for way in DAMAGE]
CHECKPOINT += [('the middle of optimizer.pt is zeros', alone(lambda: zeros_inside(Path(NEWEST)/'optimizer.pt')),
                RESUME)]

def state(**changes): return json_keys(f'{NEWEST}/trainer_state.json', **changes)

def saved(change, name='optimizer.pt'): # what torch saved, with others
    def make():
        import torch
        torch.save(change(torch.load(f'{NEWEST}/{name}', weights_only=False)), f'{NEWEST}/{name}')
    return make

def checkpoint_weights(change):
    return adapter_weights(change, f'{NEWEST}/adapter_model.safetensors')

def file_instead(folder): return lambda: (shutil.rmtree(folder), Path(folder).write_text(''))

CHECKPOINT += [(what, alone(make), RESUME) for what, make in {
    'a state of another step': state(global_step=99), 'a state of a step in words': state(global_step='two'),
    'a state without steps': lambda: Path(NEWEST, 'trainer_state.json').write_text('{}'),
    'a state with a key of others': state(nope=1), 'a state whose history is text': state(log_history='a'),
    'a state whose callbacks are a list': state(stateful_callbacks=[]),
    'a state whose length is null': state(max_steps=None),
    'a layer of the checkpoint without weights': checkpoint_weights(first_gone),
    'weights of the checkpoint that are turned': checkpoint_weights(first_turned),
    'weights of the checkpoint that are no numbers': checkpoint_weights(first_nan),
    'weights of the checkpoint of another model': checkpoint_weights(first_renamed),
    'an optimizer that is a list': saved(lambda state: [1]),
    'an optimizer of nothing': saved(lambda state: {}),
    'an optimizer of other groups': saved(lambda state: state | {'param_groups': []}),
    'a schedule that is a list': saved(lambda state: [1], 'scheduler.pt'),
    'random states that are a list': saved(lambda state: [1], 'rng_state.pth'),
    'checkpoints in a file': file_instead('trained/checkpoints'), 'a checkpoint that is a file': file_instead(NEWEST),
    'checkpoints that lead to themselves': lambda: (shutil.rmtree('trained/checkpoints'),
        Path('trained/checkpoints').symlink_to('checkpoints')),
    'measurements in a folder': lambda: folder_instead(Path('trained/metrics.jsonl')),
    **{f'the run\'s {name} is {way}': lambda name=name, way=way: DAMAGE[way](Path('trained')/name)
       for name in ('data.json', 'config_completed.yml') for way in DAMAGE},
    'a folder in place of config.yml': lambda: folder_instead(Path('trained/config.yml')),
}.items()]


# pipes and devices, which have no end or never begin; and other things that only a file system knows

def pipe(name):
    def make():
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)
    return make

def endless(name):
    def make():
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to('/dev/zero')
    return make

READ = {'run.yml': CHECK, 'data.jsonl': CHECK, 'model/config.json': CHECK, 'model/tokenizer_config.json': CHECK,
        'model/generation_config.json': TRAIN, 'run/config_completed.yml': GENERATE,
        'run/adapter/adapter_config.json': GENERATE, 'run/adapter/adapter_model.safetensors': GENERATE,
        't.jinja': entry('datasets=[{path: chats.jsonl, type: chat_template, chat_template: PATH}]')('t.jinja'),
        'q.jsonl': ['generate', 'run', 'q.jsonl'], 'q.txt': ['generate', 'run', 'q.txt'],
        'other.yaml': ['convert', 'other.yaml'], 'other.ipynb': ['convert', 'other.ipynb'],
        'out': [*TRAIN, '--overwrite'], 'merged': [*MERGE, '--overwrite']}
SPECIAL = [(f'a pipe as {name}', pipe(name), command) for name, command in READ.items()]
SPECIAL += [(f'a file without end as {name}', endless(name), command) for name, command in READ.items()
            if name not in ('out', 'merged')]
SPECIAL += [(f'{path} as {place}', None, PLACES[place](path))
            for path in ('/dev/zero', '/dev/null', '/proc', '/sys/kernel')
            for place in ('the YAML', 'a source', 'base_model', 'the run of generate')]
SPECIAL += [('the root as a source', None, PLACES['a source']('/'))]


# rows that are too wide, names that are none, files whose inner positions lead nowhere

def file(name, content):
    return lambda: Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

def source(path): return [*CHECK, '--set', f'datasets=[{{path: {json.dumps(path)}}}]']
def rows(*rows): return ''.join(json.dumps({'instruction': 'a', 'output': 'b'} | row) + '\n' for row in rows)

def arrow(change):
    def make():
        import pyarrow as pa
        table = pa.table({'instruction': ['a', 'b'] * 100, 'output': ['a', 'b'] * 100})
        with pa.ipc.new_stream('d.arrow', table.schema) as writer: writer.write_table(table)
        Path('d.arrow').write_bytes(change(Path('d.arrow').read_bytes()))
    return make

DATA = [(what, make, source(path)) for what, make, path in [
    ('a column whose name holds NUL', file('d.jsonl', rows({'a\0': 1})), 'd.jsonl'),
    ('a column whose name holds NUL in a .csv', file('d.csv', 'instruction,output,a\0\na,b,c\n'), 'd.csv'),
    ('3,000 columns', file('d.jsonl', rows(*[{f'c{i}': 1} for i in range(3000)])), 'd.jsonl'),
    ('20,000 columns in a .csv', file('d.csv', ','.join(f'c{i}' for i in range(20000)) + '\n1\n'), 'd.csv'),
    ('bytes in a .parquet of text', file('d.parquet', b'PAR1' + bytes(range(256)) * 9 + b'PAR1'), 'd.parquet'),
    ('positions in an .arrow that lead out of it', arrow(lambda b: b[:600] + bytes(range(256)) + b[856:]),
     'd.arrow'),
    ('an .arrow cut off', arrow(lambda b: b[:len(b) // 2]), 'd.arrow'),
    ('a head of an .arrow that is too long', arrow(lambda b: b'\xff' * 7 + b'\x7f' + b[8:]), 'd.arrow'),
    ('an address that is never closed', None, 'https://['), ('an address of no kind', None, 'nope://a/b.jsonl'),
]]

def readme(header):
    return lambda: (data_in_folder(), Path('d/README.md').write_text(f'---\n{header}\n---\n'))

DATA += [(f'a README with {what}', readme(header), source('d')) for what, header in {
    'a folder that is a number': 'configs: [{config_name: a, data_dir: 3}]',
    'a date that is none': 'configs: 2001-13-41',
    'brackets 3,000 deep': f'configs: {"[" * 3000}{"]" * 3000}', 'a circle': 'configs: &a [*a]',
    'a bomb of aliases': bomb(12) + 'configs: *x11', 'a tag': 'configs: !!python/name:os.system x',
    'a tag that does not fit': 'configs: !!bool maybe', 'text': 'configs: a', 'a list': '- a',
    'a number of files': 'configs: [{config_name: a, data_files: 3}]',
    'files that are gone': 'configs: [{config_name: a, data_files: gone.jsonl}]'}.items()]

YAML += [(f'the tag !!{tag} of {value}', add(f'seed: !!{tag} {value}\n'), CHECK) for tag, value in {
    'bool': 'maybe', 'timestamp': 'abc', 'int': 'abc', 'float': 'abc', 'map': 'abc', 'seq': 'abc', 'omap': 'abc',
}.items()]
YAML += [(f'--set {text}', None, [*CHECK, '--set', text]) for text in
         ('seed=!!bool x', 'seed=!!timestamp x', 'datasets=[null]', 'datasets=[[]]', 'datasets=[{path: [a]}]', '=1',
          'seed')]
QUESTIONS += [('an answer of 10^12 tokens', None, [*GENERATE, '--max-new-tokens', str(10**12)]),
              ('half a character as a question', None, ['generate', 'run', '-p', '\ud800']),
              ('bytes that are no UTF-8 as a question', None, ['generate', 'run', '-p', os.fsdecode(b'a\xff')])]

def other(text, described=None): # settings of LLaMA-Factory
    def make():
        Path('other.yaml').write_text('stage: sft\nmodel_name_or_path: a\ndataset: x\n' + text)
        if described is not None: Path('dataset_info.json').write_text(described)
    return make

CONVERT = [(what, make, ['convert', 'other.yaml']) for what, make in {
    'a rank that is a mapping': other('lora_rank: {a: 1}\n'),
    'a file of data that is a number': other('', '{"x": {"file_name": 3, "columns": "a"}}'),
    'tags that are a list': other('', '{"x": {"file_name": "a.json", "formatting": "sharegpt", "tags": [1]}}'),
    'data that are described by a list': other('', '[]'), 'data whose description is cut off': other('', '{'),
}.items()]

BROKEN = {'paths': PATHS, 'YAML': YAML, 'numbers': NUMBERS, 'models': MODEL, 'runs': RUN, 'questions': QUESTIONS,
    'output': OUT, 'checkpoints': CHECKPOINT, 'special files': SPECIAL, 'data': DATA, 'other programs': CONVERT}
