"Whatever stands in a description, a row or a file of a model or a run: nothing but a `UserError` comes out, in time."
import json, time

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from llmft.config.config import dump_yaml, load_config, parse_overrides, read_yaml
from llmft.config.keys import DatasetConfig
from llmft.core import UserError, user_path
from llmft.data.sources import iterate_files
from llmft.inference.chat import load_run
from llmft.model.base import load_hf_config
from llmft.tokens.special import load_raw_tokenizer
from tests.small import small_run

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, 2**64, -2**70, 10**30]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20)),
    lambda parts: st.one_of(st.lists(parts, max_size=3), st.dictionaries(st.text(max_size=8), parts, max_size=3)), max_leaves=8)
few = settings(max_examples=60, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
fewer = settings(few, max_examples=12)
BASE = {'base_model': 'm', 'datasets': [{'path': 'd.jsonl'}]}


def only_user_error(call):
    start = time.process_time()
    try: call()
    except UserError as e: assert str(e)
    assert time.process_time() - start < 10


@few
@given(st.text(alphabet=st.sampled_from('abn:-[]{}&*!|>\'"#%@`,? \n\t0123.~<='), max_size=60))
def test_text_of_yaml(text): only_user_error(lambda: read_yaml(text))


@few
@given(st.text(max_size=40))
def test_set(text): only_user_error(lambda: load_config(BASE, **parse_overrides([f'seed={text}'])))


@few
@given(key=st.sampled_from(sorted(load_config(BASE).model_dump())), value=VALUES)
def test_value_of_a_key(key, value): only_user_error(lambda: load_config(BASE, **{key: value}))


@few
@given(key=st.sampled_from(sorted(DatasetConfig.model_fields)), value=VALUES)
def test_value_of_a_key_of_a_source(key, value):
    only_user_error(lambda: load_config(BASE, datasets=[{'path': 'd.jsonl', key: value}]))


@few
@given(st.text(max_size=300))
def test_path(text): only_user_error(lambda: user_path(text))


@few
@given(value=VALUES, type=st.sampled_from(['alpaca', 'chat_template', 'sharegpt', 'completion']))
def test_row(value, type, tmp_path):
    file = tmp_path/'d.jsonl'
    row = {key: value for key in ('instruction', 'output', 'messages', 'conversations', 'text', 'id')}
    file.write_text(json.dumps(row) + '\n')
    only_user_error(lambda: list(iterate_files([str(file)], DatasetConfig(path=str(file), type=type))))


@pytest.fixture(scope='module')
def run(tmp_path_factory): return small_run(tmp_path_factory.mktemp('whole'))


def changed_json(file, key, value): # the file with another value, for the time of a test
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {key: value}))
    return before


CONFIG_KEYS = ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size', 'rope_parameters', 'dtype',
               'model_type', 'hidden_act', 'quantization_config', 'architectures', 'eos_token_id', 'layer_types')

@few
@given(key=st.sampled_from(CONFIG_KEYS), value=VALUES)
def test_config_of_a_model(run, key, value):
    model = run.parent/'model'
    before = changed_json(model/'config.json', key, value)
    try: only_user_error(lambda: load_hf_config(load_config(BASE, base_model=str(model))))
    finally: (model/'config.json').write_text(before)


@fewer
@given(key=st.sampled_from(['eos_token', 'tokenizer_class', 'added_tokens_decoder', 'model_max_length']), value=VALUES)
def test_tokenizer_of_a_model(run, key, value):
    model = run.parent/'model'
    before = changed_json(model/'tokenizer_config.json', key, value)
    try: only_user_error(lambda: load_raw_tokenizer(load_config(BASE, base_model=str(model))))
    finally: (model/'tokenizer_config.json').write_text(before)


@fewer
@given(key=st.sampled_from(['r', 'target_modules', 'peft_type', 'lora_alpha', 'use_dora', 'modules_to_save']), value=VALUES)
def test_adapter_of_a_run(run, key, value):
    file = run/'adapter'/'adapter_config.json'
    before = changed_json(file, key, value)
    try: only_user_error(lambda: load_run(run))
    finally: file.write_text(before)


@fewer
@given(name=st.sampled_from(['config_completed.yml', 'adapter/tokenizer.json', 'adapter/adapter_model.safetensors']),
       start=st.integers(0, 2000), noise=st.binary(min_size=1, max_size=8))
def test_noise_in_a_run(run, name, start, noise):
    file = run/name
    before = file.read_bytes()
    file.write_bytes(before[:start] + noise + before[start + len(noise):])
    try: only_user_error(lambda: load_run(run))
    finally: file.write_bytes(before)
