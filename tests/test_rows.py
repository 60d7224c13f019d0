"What a row says of itself is obeyed or reported: flags of learning, thoughts, tools, nulls, texts, configurations."
import json
import pytest
from datasets import Dataset

from llmft.config.config import DatasetConfig, load_config
from llmft.core import UserError
from llmft.data.dedup import find_near_duplicates, jaccard, prepare_rows, shingles
from llmft.data.sources import load_source
from llmft.prompts.chat import fitting_templates
from llmft.prompts.turns import RowError, render, row_to_turns
from llmft.tokens.report import prepare_data
from llmft.tokens.tokenize import show_mask
from tests.parity import load_test_tokenizer
from tests.tiny import save_rows

CHATML = {'chat_template': 'chatml'}


@pytest.fixture(scope='module')
def tokenizer(): return load_test_tokenizer('tokenizer', '{"eos_token": "<|im_end|>"}')


def source(**keys):
    entry = {'path': 'x', 'type': 'chat_template', **keys}
    return load_config({'base_model': 'x', 'datasets': [entry]}).datasets[0]


def user(text): return {'role': 'user', 'content': text}
def answer(text, **more): return {'role': 'assistant', 'content': text, **more}
def talk(*messages, **columns): return {'messages': list(messages)} | columns
def learned(turns): return ''.join(render([t], mark='{}', eos='') for t in turns if t.trained)
def names(turns): return [name for name, _ in turns.remarks]


FLAGS = [{'weight': 0}, {'weight': 0.0}, {'train': False}, {'trainable': 'no'}, {'training': 'false'}, {'loss': False},
         {'mask': True}, {'masked': 'yes'}]


@pytest.mark.parametrize('flag', FLAGS, ids=str)
@pytest.mark.parametrize('type', ['chat_template', 'messages'])
def test_known_flags_are_obeyed(flag, type, tokenizer):
    row = talk(user('Q'), answer('BAD', **flag), user('R'), answer('GOOD', weight=1))
    assert learned(row_to_turns(row, source(type=type, **CHATML), tokenizer)) == 'GOOD<|im_end|>'


@pytest.mark.parametrize('flag', FLAGS[:3], ids=str)
@pytest.mark.parametrize('type', ['vicuna_v1.1', 'llama2_chat', 'pygmalion', 'llamafactory_chat:default', 'sharegpt'])
def test_known_flags_are_obeyed_in_other_forms(flag, type, tokenizer):
    role, value = ('role', 'value') if type == 'pygmalion' else ('from', 'value')
    messages = [('human', 'Q', {}), ('gpt', 'BAD', flag), ('human', 'R', {}), ('gpt', 'GOOD', {})]
    row = {'conversations': [{role: r, value: v} | f for r, v, f in messages]}
    keys = {'type': type} | (CHATML if type == 'sharegpt' else {})
    text = learned(row_to_turns(row, source(**keys), tokenizer))
    assert 'GOOD' in text and 'BAD' not in text


def test_flags_in_two_columns(tokenizer):
    row = {'prompt': [user('Q')], 'completion': [answer('BAD', weight=0), user('R'), answer('GOOD')]}
    assert learned(row_to_turns(row, source(type='prompt_completion_chat', **CHATML), tokenizer)) == 'GOOD<|im_end|>'


def test_flags_that_are_not_obeyed_stop(tokenizer):
    row = talk(user('Q'), answer('A', weight=.5))
    assert names(row_to_turns(row, source(**CHATML), tokenizer)) == ['unread_training_flag']
    row = talk(user('Q'), answer('A', weight=0, good='yes'))
    by_key = source(message_field_training='good', **CHATML)
    assert names(row_to_turns(row, by_key, tokenizer)) == ['unread_training_flag']
    with pytest.raises(RowError, match='neither true nor false'):
        row_to_turns(talk(user('Q'), answer('A', good='maybe')), by_key, tokenizer)
    row = talk(user('Q'), answer('A', good='no'), user('R'), answer('B', good='yes'))
    assert learned(row_to_turns(row, by_key, tokenizer)) == 'B<|im_end|>'


@pytest.mark.parametrize('row, keys, lost', [
    (talk(user('Q'), answer('A', reasoning_content='why')), CHATML, '`reasoning_content`'),
    (talk(user('Q'), answer('A', thought='why')), {'chat_template': 'qwen3'}, '`thought`'),
    (talk(user('Q'), answer('A'), tools=[{'name': 'add'}]), CHATML, '`tools`'),
    (talk(user('Q'), answer('A', reasoning_content='one'), user('R'), answer('B', reasoning_content='two')),
     {'chat_template': 'lfm2_2_5'}, '`reasoning_content`'),
    ({'conversations': [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A', 'reasoning': 'why'}]},
     {'type': 'vicuna_v1.1'}, '`reasoning`'),
])
def test_what_is_not_written_is_said(row, keys, lost, tokenizer):
    (name, text), = row_to_turns(row, source(**keys), tokenizer).remarks
    assert name == 'unread_content' and lost in text
    if 'chat_template' in keys: assert fitting_templates(row, source(**keys), tokenizer) or lost == '`thought`'


def test_what_is_written_is_no_remark(tokenizer):
    "Also where many rows share one proof."
    for text in ('why', 'because', '</think>'):
        row = talk(user('Q'), answer('A', reasoning_content=text, id=7, name='ada'))
        assert row_to_turns(row, source(chat_template='qwen3'), tokenizer).remarks == []


CALL = {'id': '1', 'type': 'function', 'function': {'name': 'book', 'arguments': {'day': 'mon', 'seat': None}}}
SCHEMA = {'type': 'object', 'properties': {'seat': {'type': ['string', 'null'], 'default': None}}}
TOOLS = [{'type': 'function', 'function': {'name': 'book', 'description': 'd', 'parameters': SCHEMA}}]
BOOKING = talk(user('b'), answer(None, tool_calls=[CALL]), {'role': 'tool', 'tool_call_id': '1', 'content': 'ok'},
               answer('done'), tools=TOOLS)


@pytest.mark.parametrize('as_text', [False, True])
def test_nulls_of_the_author_stay(as_text, tokenizer, tmp_path):
    row = json.loads(json.dumps(BOOKING))
    if as_text: row['messages'][1]['tool_calls'][0]['function']['arguments'] = '{"day": "mon", "seat": null}'
    dataset = DatasetConfig(path=save_rows(tmp_path/'r.jsonl', [row]), type='chat_template', chat_template='qwen3')
    text = render(row_to_turns(load_source(dataset)[0], dataset, tokenizer))
    assert '{"day": "mon", "seat": null}' in text and '"default": null' in text


@pytest.mark.parametrize('kind', ['parquet', 'saved', 'arrow'])
def test_nulls_of_tables_go(kind, tokenizer, tmp_path):
    calls = [{'function': {'name': 'f', 'arguments': {name: 1}}} for name in ('a', 'b')]
    rows = [talk(user('x'), answer('', tool_calls=[call])) for call in calls]
    path, data = tmp_path/f'd.{kind}', Dataset.from_list(rows)
    if kind == 'parquet': data.to_parquet(path)
    elif kind == 'saved': data.save_to_disk(path)
    else:
        import pyarrow as pa
        with pa.ipc.new_stream(str(path), data.data.table.schema) as w: w.write_table(data.data.table)
    dataset = DatasetConfig(path=str(path), type='chat_template', chat_template='qwen3')
    assert '"arguments": {"a": 1}' in render(row_to_turns(load_source(dataset)[0], dataset, tokenizer))


@pytest.mark.parametrize('messages, says', [
    ([user('b'), answer(None, tool_calls=[CALL]), answer('done')], ['a tool call has no response', 'two answers']),
    ([user('b'), {'role': 'tool', 'content': 'ok'}, answer('done')], ['a tool responds without a call']),
    ([user('b'), answer('', tool_calls=[{'function': {'name': 'bok', 'arguments': {}}}])], ['does not list']),
    ([user('b'), answer('', tool_calls=[{'function': {'name': 'book', 'arguments': '[1]'}}])], ['are not a mapping']),
    ([user('b'), user('c'), answer('d')], ['two questions']),
    ([answer('a'), user('b'), answer('c')], ['begins with an answer']),
])
def test_calls_and_roles_are_checked(messages, says, tokenizer):
    remarks = row_to_turns(talk(*messages, tools=TOOLS), source(chat_template='qwen3'), tokenizer).remarks
    texts = [text for name, text in remarks if name in ('tool_calls', 'role_order')]
    assert len(texts) == len(says) and all(part in text for part, text in zip(says, texts))


@pytest.mark.parametrize('names', [('function_call', 'observation'), ('call', 'result')])
def test_calls_of_sharegpt(names, tokenizer):
    call, result = names
    roles = None if call == 'function_call' else {'function_call': [call], 'tool': [result]}
    row = {'conversations': [{'from': 'human', 'value': 'x'}, {'from': call, 'value': '{"name": "f", "arguments": {}}'},
                             {'from': result, 'value': 'r'}, {'from': 'gpt', 'value': 'ok'}]}
    turns = row_to_turns(row, source(type='sharegpt', chat_template='qwen3', roles=roles), tokenizer)
    assert '<tool_call>\n{"name": "f", "arguments": {}}' in learned(turns) and turns.remarks == []
    assert '<tool_response>\nr\n' in render(turns)


def test_function_call_of_openai(tokenizer):
    call = {'name': 'f', 'arguments': '{"a": 1}'}
    turns = row_to_turns(talk(user('x'), answer(None, function_call=call)), source(chat_template='qwen3'), tokenizer)
    assert '{"name": "f", "arguments": {"a": 1}}' in learned(turns)


THINKING = talk(user('Q'), answer('<think>\nhm\n</think>\n\nA'), user('R'), answer('B'))

@pytest.mark.parametrize('keys, expected', [
    ({}, '<think>\nhm\n</think>\n\nA<|im_end|>B<|im_end|>'),
    ({'train_on_thinking': False}, 'A<|im_end|>B<|im_end|>'),
    ({'train_on_last_turn_only': True}, 'B<|im_end|>'),
    ({'train_on_last_turn_only': True, 'train_on_generation_prompt': True}, '<|im_start|>assistant\nB<|im_end|>'),
])
def test_which_parts_are_learned(keys, expected, tokenizer):
    assert learned(row_to_turns(THINKING, source(**CHATML, **keys), tokenizer)) == expected


def test_empty_thoughts_are_only_read(tokenizer):
    row, thought = (talk(user('Q'), answer('A', **more)) for more in ({}, {'reasoning_content': 'hm'}))
    by_default = source(chat_template='qwen3')
    only_read = source(chat_template='qwen3', train_on_empty_thinking=False)
    assert learned(row_to_turns(row, by_default, tokenizer)).startswith('<think>\n\n</think>\n\nA')
    assert learned(row_to_turns(row, only_read, tokenizer)).startswith('A<|im_end|>')
    assert 'hm' in learned(row_to_turns(thought, only_read, tokenizer))


@pytest.mark.parametrize('template, message, says', [
    ('nemotron_3_nano', answer('A'), 'has no reasoning; `chat_template_kwargs: {enable_thinking: false}` helps'),
    ('deepseek_r1_distill', answer('A'), 'ends with `<think>`, and the answer has no reasoning'),
    ('deepseekv3', answer('A'), 'ends with `<think>`, and the answer has no reasoning'),
    ('qwen3_5_nothink', answer('A', reasoning_content='hm'), 'an empty thought, and the answer has reasoning'),
])
def test_templates_that_force_a_thought(template, message, says, tokenizer):
    with pytest.raises(RowError, match='the prompt of this template') as e:
        row_to_turns(talk(user('Q'), message), source(chat_template=template), tokenizer)
    assert says in str(e.value)


ADDS = '{% for m in messages %}{{ "a" + m.content }}<|im_end|>{% endfor %}'

@pytest.mark.parametrize('row, keys, says', [
    (talk({'role': 'system', 'content': 'S'}), {'drop_system_message': True}, 'no messages but the system text'),
    (talk({'role': ['user'], 'content': 'Q'}), {}, 'the role of a message is not text'),
    (talk({'role': {'a': 1}, 'content': 'Q'}), {}, 'the role of a message is not text'),
    (talk(user('Q'), answer('A', tool_calls=3)), {}, 'the tool calls are not a list'),
    (talk(user('Q'), answer('A', tool_calls=[3])), {}, 'a tool call is not a mapping'),
    (talk(user('Q'), answer(None, tool_calls=[CALL])), {'chat_template_jinja': ADDS}, 'a message without content'),
    (talk(user('Q'), {'role': 'assistant', 'tool_calls': [CALL]}),
     {'type': 'pygmalion', 'field_messages': 'messages',
      'message_property_mappings': {'role': 'role', 'content': 'content'}},
     'cannot write tool calls'),
])
def test_rows_that_are_refused(row, keys, says, tokenizer):
    with pytest.raises(RowError, match=says): row_to_turns(row, source(**({} if 'type' in keys or
        'chat_template_jinja' in keys else CHATML), **keys), tokenizer)


# sources

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('en', 'fr'):
        (tmp_path/'d'/name).mkdir(parents=True)
        save_rows(tmp_path/'d'/name/'train.jsonl', [{'instruction': name, 'output': name}])
    config = '- config_name: {0}\n  data_files:\n  - split: train\n    path: {0}/*.jsonl\n'
    configs = ''.join(config.format(n) for n in ('en', 'fr'))
    (tmp_path/'d'/'README.md').write_text(f'---\nconfigs:\n{configs}---\nabout\n')
    return tmp_path


def test_configurations_of_a_readme(folder):
    assert load_source(DatasetConfig(path='d', name='fr'))['instruction'][:] == ['fr']
    for keys, says in [
            ({}, 'which configuration is meant'), ({'name': 'frr'}, 'no configuration `frr`. Did you mean `fr`'),
            ({'name': 'fr', 'split': 'test'}, 'there is no split `test`'),
            ({'name': 'fr', 'revision': 'v9'}, 'is for data sets')]:
        with pytest.raises(UserError, match=says): load_source(DatasetConfig(path='d', **keys))
    (folder/'d'/'README.md').write_text('about')
    with pytest.raises(UserError, match='Its README lists none'): load_source(DatasetConfig(path='d', name='fr'))
    with pytest.raises(UserError, match='is for data sets on the Hub'):
        load_source(DatasetConfig(path='d/en/train.jsonl', revision='v9'))
    (folder/'d'/'README.md').write_text('---\nconfigs: 3\n---\n')
    with pytest.raises(UserError, match='`configs` must be a list'): load_source(DatasetConfig(path='d'))


BOOK = 'One line.\nIts second.\n\n\nAnother paragraph\r\nhere.\n'

@pytest.mark.parametrize('sample_by, expected', [
    ('document', ['One line.\nIts second.\n\n\nAnother paragraph\nhere.']),
    ('paragraph', ['One line.\nIts second.', 'Another paragraph\nhere.']),
    ('line', ['One line.', 'Its second.', 'Another paragraph', 'here.'])])
def test_text_files(sample_by, expected, folder):
    (folder/'b.txt').write_text(BOOK)
    assert load_source(DatasetConfig(path='b.txt', type='completion', sample_by=sample_by))['text'][:] == expected


def test_a_book_ends_once_and_is_cut_between_words(folder):
    (folder/'b.txt').write_text('once upon a time there was a tensor. ' * 60)
    config = load_config({'base_model': 'builtin/smollm2-135m', 'sequence_len': 32, 'sample_packing': False,
                          'datasets': [{'path': 'b.txt', 'type': 'completion'}]})
    data = prepare_data(config)
    rows, eos = data.train['input_ids'][:], data.tokenizer.eos_token_id
    assert len(rows) > 10 and sum(row.count(eos) for row in rows) == 1 and rows[-1][-1] == eos
    assert all(data.tokenizer.decode(row[:1]).startswith(' ') for row in rows[1:])
    assert not any('answer' in f.message for f in data.report.findings)


@pytest.mark.parametrize('row, type', [
    (talk(user('Q')), 'chat_template'), ({'conversations': [{'from': 'human', 'value': 'Q'}]}, 'sharegpt'),
    ({'text': 'T'}, 'completion'), ({'prompt': 'P', 'completion': 'C'}, 'prompt_completion'),
    ({'prompt': [user('Q')], 'completion': [answer('A')]}, 'prompt_completion_chat')])
def test_rows_without_a_type_are_recognised(row, type, folder):
    save_rows('r.jsonl', [row])
    with pytest.raises(UserError, match=f'These rows look like `type: {type}`') as e:
        load_source(DatasetConfig(path='r.jsonl'))
    assert 'alpaca' not in str(e.value)


def test_columns_that_nobody_reads(folder):
    extra = {'system': 'S', 'history': [['a', 'b']]}
    rows = [{'instruction': 'Hi', 'output': f'Hello {i}', 'id': i, 'weight': i % 2} | extra for i in range(4)]
    config = {'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': save_rows('r.jsonl', rows)}]}
    data = prepare_data(load_config(config), strict=False)
    found = {(f.level, f.name): f.message for f in data.report.findings if f.name.startswith('unread')}
    assert '`weight`' in found['stop', 'unread_training_flag'] and '(row 1, 3)' in found['stop', 'unread_training_flag']
    assert '`id`' in found['note', 'unread_property']
    content = [f.message for f in data.report.findings if f.name == 'unread_content']
    assert [('`system`' in m, '`history`' in m) for m in content] == [(True, False), (False, True)]


def test_nothing_usable_can_be_shown(folder):
    config = {'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': save_rows('r.jsonl', [
        {'instruction': 'Hi', 'output': ''}])}]}
    assert 'no rows' in str(prepare_data(load_config(config), strict=False))


def test_tooltips_are_escaped_once(tokenizer):
    ids = tokenizer('a < b & "c"')['input_ids']
    html = show_mask({'input_ids': ids, 'labels': ids}, tokenizer)._repr_html_()
    assert '&amp;lt;' not in html and '&amp;amp;' not in html and '&lt;' in html


def test_a_source_named_twice_is_learned_once(folder):
    rows = [{'instruction': f'q {i}', 'output': f'a {i}'} for i in range(4)]
    path = save_rows('r.jsonl', rows)
    def used(*entries): return len(prepare_rows(load_config({'base_model': 'x', 'datasets': list(entries)})).train)
    assert used({'path': path}, {'path': path}) == 4 and used({'path': path, 'weight': 2}) == 8
    assert used({'path': path}, {'path': path, 'type': 'alpaca_chat'}) == 8


@pytest.mark.parametrize('n_own', [9, 12, 20])
def test_near_duplicates_behind_the_same_words(n_own):
    "The same long instruction in every row makes no candidates."
    fixed = ' '.join(f'word{i}' for i in range(60))
    texts = [f'{fixed} ' + ' '.join(f'own{i}_{j}' for j in range(n_own)) for i in range(300)]
    texts.append(texts[7] + ' again')
    assert jaccard(shingles(texts[0]), shingles(texts[1])) < .8
    assert find_near_duplicates(texts) == [(300, 7)]


@pytest.mark.parametrize('template,rows,name', [
    ('nemotron_3_nano', [{'messages': [user('2+2?'), answer('4')]}], 'forced_thought'),
    ('gemma3', [{'messages': [user('Weather?'), answer('', tool_calls=[
        {'type': 'function', 'function': {'name': 'weather', 'arguments': {}}}])]}], 'unfit_template')])
def test_template_that_does_not_fit_stops(template, rows, name, tmp_path):
    keys = {'base_model': 'builtin/smollm2-135m', 'sequence_len': 256, 'chat_template': template, 'val_set_size': 0,
            'datasets': [{'path': save_rows(tmp_path/'r.jsonl', rows * 20), 'type': 'chat_template'}]}
    findings = prepare_data(load_config(keys), strict=False).report.findings
    assert [f.level for f in findings if f.name == name] == ['stop']
