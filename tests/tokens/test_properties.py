"What holds for every text, format and tokenizer."
import json
import pytest
from datasets import Dataset
from hypothesis import assume, given, settings, strategies as st

from llmft.config.config import DatasetConfig, load_config
from llmft.tokens.encode import IGNORE_INDEX, encode_turns
from llmft.prompts.turns import RowError, prompt_formats, prompt_turns, row_to_turns, unescape_special_tokens
from llmft.tokens.tokenize import count_rows, encode_rows
from tests.parity import load_test_tokenizer

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TOKENIZERS = {name: load_test_tokenizer(name, json.dumps({'chat_template': CHATML}))
              for name in ('tokenizer', 'tokenizer_sp', 'tokenizer_sp_nl')}
PIECES = [
    'a', 'hello', ' ', '\n', '//', ':', '::', ' x', 'é', '你', '👩‍👩‍👦', '[', ']', '{', '}', '{input}',
    '<', '</s>', '<s>', '<|im_end|>', '<|im_start|>', '<pad>', '### Response:', 'USER:', '1', '7']
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map(''.join).filter(str.strip)
few = settings(max_examples=12, deadline=None, derandomize=True)


def vary(value, data, key=''): # the example of a format with other texts
    if isinstance(value, dict): return {k: vary(v, data, k) for k, v in value.items()}
    if isinstance(value, list): return [vary(v, data) for v in value]
    return data.draw(TEXT) if isinstance(value, str) and key not in ('role', 'from') else value


def turns_of(name, data, tokenizer):
    row = vary(prompt_formats()[name].example, data)
    try: return row_to_turns(row, DatasetConfig(path='', type=name), tokenizer)
    except RowError: assume(False)


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('name', prompt_formats())
@few
@given(data=st.data())
def test_labels_and_prefix(name, tokenizer, data):
    "Labels are -100 or the ids; what is sent for an answer is the beginning of what was learned."
    tokenizer = TOKENIZERS[tokenizer]
    turns = turns_of(name, data, tokenizer)
    whole = encode_turns(turns, tokenizer)
    asked = encode_turns(prompt_turns(turns), tokenizer)['input_ids']
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(whole['input_ids'], whole['labels']))
    assert any(label != IGNORE_INDEX for label in whole['labels'])
    assert whole['input_ids'][:len(asked)] == asked


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('name', [
    'alpaca', 'alpaca:chatml', 'stanford_alpaca', 'wizardlm_freeform', 'prompt_completion',
    'user_defined', 'completion'])
@few
@given(data=st.data())
def test_learned_text_is_the_answer(name, tokenizer, data):
    "Control tokens that the data spell stay text; there is one beginning and one end."
    is_byte_level, tokenizer = tokenizer == 'tokenizer', TOKENIZERS[tokenizer]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    turns = turns_of(name, data, tokenizer)
    row = encode_turns(turns, tokenizer)
    learned = [label for label in row['labels'] if label != IGNORE_INDEX]
    answer = ''.join(unescape_special_tokens(turn.text) for turn in turns if turn.trained)
    assert learned[-1] == eos and row['input_ids'].count(eos) == row['input_ids'].count(bos) == 1
    decoded = tokenizer.decode([i for i in learned[:-1] if i != bos])
    assert decoded == answer or not is_byte_level and decoded.removeprefix(' ') == answer.removeprefix(' ')


ANSWER = st.one_of(st.just(''), TEXT, TEXT.map(lambda t: t * 20))
ROW = st.fixed_dictionaries({'instruction': TEXT, 'input': st.just(''), 'output': ANSWER})

@few
@given(rows=st.lists(ROW, min_size=1, max_size=6),
       strategy=st.sampled_from(['drop', 'truncate', 'keep_end', 'split', 'error']),
       max_len=st.integers(8, 80), min_len=st.integers(1, 9),
       type=st.sampled_from(['alpaca_instruct.load_no_prompt', 'completion']))
def test_every_row_is_counted_once(rows, strategy, max_len, min_len, type):
    config = load_config({
        'base_model': 'm', 'datasets': [{'path': 'rows.jsonl', 'type': type, 'field': 'output'}],
        'sequence_len': max_len, 'min_sample_len': min_len, 'excess_length_strategy': strategy})
    dataset = Dataset.from_list([r | {'source': 0, 'row': i} for i, r in enumerate(rows)])
    encoded = encode_rows(dataset, TOKENIZERS['tokenizer'], config)
    counted = count_rows(encoded)
    assert counted.used + sum(n for n, _ in counted.left_out.values()) == len(rows) == len({*encoded['row']})
    assert counted.cut + counted.split <= 2 * counted.used
    for row in encoded:
        assert (row['reason'] is None) == bool(row['input_ids'])
        if row['reason'] is not None: continue
        assert min_len <= len(row['input_ids']) <= max_len
        assert any(label != IGNORE_INDEX for label in row['labels'])
