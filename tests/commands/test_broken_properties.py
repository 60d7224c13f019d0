"""Whatever stands in a description, a row, or a file of a model or a run: nothing but a `UserError` comes out, in time.

`BROKEN_EXAMPLES=50 pytest …` draws fifty times as many inputs, other ones at each call."""
import json, os, shutil, time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from llmft.commands.check import check_run, init_empty_model, preview_rows
from llmft.config.config import dump_yaml, load_config, parse_overrides, read_yaml
from llmft.config.convert import convert
from llmft.config.keys import DatasetConfig
from llmft.core import UserError, user_path
from llmft.data.sources import iterate_files
from llmft.evaluation.scores import score_run
from llmft.export.merge import merge_adapter
from llmft.inference.load import load_run
from llmft.memory.plan import plan_memory
from llmft.model.base import load_base
from llmft.prompts.turns import prompt_formats
from llmft.tokens.report import data_report
from llmft.tokens.tokenize import load_tokenizer
from llmft.training.train import finetune
from tests.small import small_config, small_run, tree

TIMES = int(os.environ.get('BROKEN_EXAMPLES', 1))

def examples(n):
    return settings(max_examples=n * TIMES, deadline=None, derandomize=TIMES == 1, database=None,
                    suppress_health_check=[*HealthCheck], report_multiple_bugs=TIMES > 1)

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 10**9, 2**63, 2**64, -2**70, 10**30]))
WORDS = st.sampled_from(
    ['', ' ', 'a', 'nope', 'true', '~', '.', '/', '\0', '\ud83d', '{{', '((', 'ü', 'a' * 300, '💥'])
SINGLE = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=20))
VALUES = st.recursive(SINGLE, lambda parts: st.one_of(
    st.lists(parts, max_size=3), st.dictionaries(st.one_of(WORDS, st.text(max_size=8)), parts, max_size=3)),
    max_leaves=8)
BASE = {'base_model': 'm', 'datasets': [{'path': 'd.jsonl'}]}


def only_user_error(call, folder=None):
    "`call` ends well, or in a `UserError` that leaves `folder` as it was; the processor has less than 10 s for it."
    before, start = folder and tree(folder), time.process_time()
    try: call()
    except UserError as e:
        assert 10 < len(str(e)) < 3000 and 'object at 0x' not in str(e), str(e)
        assert folder is None or tree(folder) == before, 'something was written'
    assert time.process_time() - start < 10


# YAML

@examples(100)
@given(st.text(alphabet=st.sampled_from('abn:-[]{}&*!|>\'"#%@`,? \n\t0123.~<=\ufeff\r\x85'), max_size=60))
def test_text_of_yaml(text): only_user_error(lambda: read_yaml(text))


@examples(40)
@given(tag=st.sampled_from('bool int float null str binary timestamp omap pairs set map seq merge value yaml'.split()),
       value=st.one_of(WORDS, st.text(max_size=12), st.sampled_from(['[a]', '{a: 1}', '2001-13-41', '0x', '1:99'])))
def test_tag(tag, value): only_user_error(lambda: read_yaml(f'seed: !!{tag} {value}\n'))


@examples(40)
@given(text=st.text(max_size=40), key=st.text(max_size=12))
def test_set(text, key):
    only_user_error(lambda: load_config(BASE, **parse_overrides([f'seed={text}'])))
    only_user_error(lambda: parse_overrides([f'{key}={text}']))


@examples(100)
@given(key=st.sampled_from(sorted(load_config(BASE).model_dump())), value=VALUES)
def test_value_of_a_key(key, value): only_user_error(lambda: load_config(BASE, **{key: value}))


@examples(60)
@given(key=st.sampled_from(sorted(DatasetConfig.model_fields)), value=VALUES)
def test_value_of_a_key_of_a_source(key, value):
    only_user_error(lambda: load_config(BASE, datasets=[{'path': 'd.jsonl', key: value}]))


@examples(60)
@given(values=st.dictionaries(st.sampled_from(
    'base_model model_name_or_path stage template dataset dataset_name use_peft lora_rank lora_target cutoff_len rl '
    'datasets adapter learning_rate output_dir report_to quantization_bit warmup_ratio'.split()), VALUES, max_size=6))
def test_file_of_another_program(values, tmp_path):
    file = tmp_path/'other.yaml'
    file.write_text(json.dumps({'model_name_or_path': 'a', 'stage': 'sft', 'dataset': 'd'} | values))
    only_user_error(lambda: convert(file))


@examples(40)
@given(st.text(max_size=300))
def test_path(text): only_user_error(lambda: user_path(text))


# a whole run in a folder, made once

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A model, rows, a run that was trained, with a checkpoint, and its configuration."
    folder = tmp_path_factory.mktemp('whole')
    small_run(folder)
    config = small_config(folder, max_steps=2, save_steps=1, output_dir=str(folder/'trained'), test_datasets=[])
    finetune(config, say=None)
    return folder


@pytest.fixture
def folder(home, tmp_path): # a copy, where everything may be broken
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path/'run'/'config_completed.yml', *tmp_path.glob('trained/*.yml'), *tmp_path.rglob('*.json')):
        file.write_text(file.read_text().replace(str(home), str(tmp_path)))
    return tmp_path


def config_in(folder, **keys):
    return load_config({'base_model': str(folder/'model'), 'adapter': 'lora', 'lora_r': 2, 'sequence_len': 128,
                        'bf16': False, 'datasets': [{'path': str(folder/'data.jsonl')}], 'sample_packing': False,
                        'gradient_checkpointing': False, 'max_steps': 1, 'output_dir': str(folder/'out')} | keys)


RISKY = sorted(set(load_config(BASE).model_dump()) - {
    'base_model', 'output_dir', 'datasets', 'hub_model_id', 'num_epochs', 'sequence_len'})

@examples(10)
@given(key=st.sampled_from(RISKY), value=VALUES)
def test_check(folder, key, value): only_user_error(lambda: check_run(config_in(folder, **{key: value})), folder)


# rows

COLUMNS = ('instruction', 'input', 'output', 'messages', 'conversations', 'text', 'prompt', 'completion', 'tools', 'id')
MESSAGE = st.dictionaries(st.sampled_from(['role', 'from', 'content', 'value', 'tool_calls', 'weight', 'name']),
                          st.one_of(st.sampled_from(['user', 'assistant', 'system', 'tool', 'human', 'gpt']), VALUES))
CELL = st.one_of(VALUES, st.just('some text'), st.lists(MESSAGE, max_size=4))
ROWS = st.lists(st.one_of(st.dictionaries(st.sampled_from(COLUMNS), CELL, max_size=6),
                          CELL.map(lambda cell: dict.fromkeys(COLUMNS, cell))), min_size=1, max_size=3)
TYPES = st.sampled_from([*prompt_formats(), 'sharegpt', 'chat_template'])

def json_lines(rows): return ''.join(json.dumps(row) + '\n' for row in rows).encode()
def csv_lines(rows):
    return '\n'.join([','.join(COLUMNS), *(','.join(str(row.get(c, '')) for c in COLUMNS) for row in rows)]
                     ).encode('utf-8', 'surrogatepass')

@examples(30)
@given(rows=ROWS, type=TYPES, fmt=st.sampled_from(['jsonl', 'json', 'csv']))
def test_rows(folder, rows, type, fmt):
    file = folder/f'rows.{fmt}'
    file.write_bytes({'jsonl': json_lines, 'csv': csv_lines, 'json': lambda r: json.dumps(r).encode()}[fmt](rows))
    try: config = config_in(folder, datasets=[{'path': str(file), 'type': type}])
    except UserError: return
    only_user_error(lambda: data_report(config), folder)


@examples(10)
@given(rows=ROWS, type=TYPES)
def test_preview_and_streaming(folder, rows, type):
    (folder/'rows.jsonl').write_bytes(json_lines(rows))
    try: config = config_in(folder, datasets=[{'path': str(folder/'rows.jsonl'), 'type': type}], streaming=True)
    except UserError: return
    only_user_error(lambda: preview_rows(config, 2), folder)


# files, damaged

@st.composite
def damages(draw, *kinds): # (kind, what it needs)
    kind = draw(st.sampled_from(kinds or ('cut', 'zeros', 'noise', 'gone', 'value')))
    return kind, draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=40)), draw(VALUES)

def _places(value): # every (object or list, key) below `value`
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(part)

def damage(file, change):
    kind, where, noise, value = change
    whole = file.read_bytes()
    at = int(where * len(whole))
    if kind == 'value' and file.suffix == '.json':
        document = json.loads(whole)
        places = [*_places(document)]
        parent, key = places[int(where * (len(places) - 1))]
        parent[key] = value
        file.write_text(json.dumps(document))
    elif kind == 'gone': file.unlink()
    elif kind == 'cut': file.write_bytes(whole[:at])
    elif kind == 'zeros': file.write_bytes(whole[:at] + bytes(len(whole) - at))
    else: file.write_bytes(whole[:at] + noise + whole[at + len(noise):])


def packed(rows, fmt):
    import gzip, io, pyarrow as pa, pyarrow.parquet as pq
    if fmt == 'jsonl.gz': return gzip.compress(json_lines(rows), mtime=0)
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    if fmt == 'parquet': pq.write_table(table, out)
    else:
        with pa.ipc.new_stream(out, table.schema) as writer: writer.write_table(table)
    return out.getvalue()

@examples(80)
@given(fmt=st.sampled_from(['jsonl.gz', 'parquet', 'arrow']), change=damages('cut', 'zeros', 'noise'))
def test_damaged_data(tmp_path, fmt, change):
    file = tmp_path/f'd.{fmt}'
    file.write_bytes(packed([{'instruction': f'a {i}', 'output': 'b' * i} for i in range(200)], fmt))
    damage(file, change)
    only_user_error(lambda: list(iterate_files([str(file)], DatasetConfig(path=str(file)))))


MODEL_FILES = ('config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json')

def open_model(config):
    load_tokenizer(config)
    init_empty_model(config)
    load_base(config)

def with_damage(file, change, call, folder):
    whole = file.read_bytes()
    damage(file, change)
    try: only_user_error(call, folder)
    finally: file.write_bytes(whole)

@examples(25)
@given(name=st.sampled_from(MODEL_FILES), change=damages())
def test_model(folder, name, change):
    with_damage(folder/'model'/name, change, lambda: open_model(config_in(folder)), folder)


@examples(8)
@given(name=st.sampled_from(MODEL_FILES), change=damages('value'))
def test_plan(folder, name, change):
    with_damage(folder/'model'/name, change, lambda: plan_memory(config_in(folder), '16GiB'), folder)


RUN_FILES = ('config_completed.yml', 'adapter/adapter_config.json', 'adapter/adapter_model.safetensors',
             'adapter/tokenizer.json', 'adapter/tokenizer_config.json')

@examples(20)
@given(name=st.sampled_from(RUN_FILES), change=damages())
def test_run(folder, name, change):
    def ask(): load_run(folder/'run').generate(['a'], max_new_tokens=1)
    with_damage(folder/'run'/name, change, ask, folder)


@examples(3)
@given(name=st.sampled_from(RUN_FILES), change=damages())
def test_merge(folder, name, change):
    def merge(): merge_adapter(folder/'run', folder/'merged', overwrite=True)
    with_damage(folder/'run'/name, change, merge, folder)


@examples(3)
@given(name=st.sampled_from(RUN_FILES), change=damages('value', 'noise'))
def test_score(folder, name, change):
    with_damage(folder/'run'/name, change, lambda: score_run(folder/'run', run_code=True, max_new_tokens=1), folder)


CHECKPOINT = ('trainer_state.json', 'adapter_model.safetensors', 'optimizer.pt', 'scheduler.pt', 'rng_state.pth')
TRAINED = ('config_completed.yml', 'data.json', 'metrics.jsonl', *(f'checkpoints/checkpoint-2/{f}' for f in CHECKPOINT))

@examples(6)
@given(name=st.sampled_from(TRAINED), change=damages())
def test_resume(home, folder, name, change):
    shutil.rmtree(folder/'trained')
    shutil.copytree(home/'trained', folder/'trained')
    for file in folder.glob('trained/*.yml'): file.write_text(file.read_text().replace(str(home), str(folder)))
    damage(folder/'trained'/name, change)
    config = small_config(folder, max_steps=3, save_steps=1, output_dir=str(folder/'trained'), test_datasets=[])
    only_user_error(lambda: finetune(config, resume=True, say=None))
