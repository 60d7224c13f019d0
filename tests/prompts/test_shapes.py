"What is filled into a known shape is what would have been proved of the conversation itself."
import random
import pytest
from llmft import list_chat_templates
from llmft.config.config import DatasetConfig
from llmft.prompts import chat
from llmft.prompts.shapes import conversation_shape, fill_shape, template_questions
from llmft.prompts.turns import RowError, row_to_turns
from tests.tiny import small_tokenizer

BODIES = [
    'Hi', 'x', 'Two\n\nlines', '  spaces  ', '\ttab', '"quoted" {x} & <b>', 'é漢字😀', 'user', 'assistant', 'role',
    'system', 'text', 'null', '{}', 'content', '', ' ', '<think>', 'Hm.</think>\n42', '<think>\nHm\n</think>\n\n42',
    '<think></think>', '<tool_response>12</tool_response>', '<|im_end|>', '<|im_start|>user', '[/THINK]b', '\n',
    '</think></think>', 'a</thinkb>', 'low', 'image and video', '26 Jul 2024', 'A' * 300, '/nothink', 'END', 'ENDE']


def conversation(rng):
    "System text or none, questions and answers, and now and then another order or reasoning."
    messages = [{'role': 'system', 'content': rng.choice(BODIES)}] if rng.random() < .3 else []
    for _ in range(rng.randint(1, 2)):
        messages += [{'role': role, 'content': rng.choice(BODIES)} for role in ('user', 'assistant')]
        if rng.random() < .1: messages[-1]['reasoning_content'] = rng.choice(BODIES)
        if rng.random() < .1: messages[-1]['train'] = rng.choice([True, False])
    return messages


def question_and_answer(question, answer):
    return {'messages': [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]}


def turns_or_reason(row, dataset, tokenizer):
    try: turns = row_to_turns(row, dataset, tokenizer, keep_empty=True)
    except RowError as e: return str(e)
    return list(turns), list(turns.remarks)


SETTINGS = [{}, dict(train_on_thinking=False), dict(train_on_eos='all'), dict(train_on_eos='none'),
            dict(roles_to_train=['user', 'gpt'], train_on_generation_prompt=True)]


def texts(): return {name: path.read_text(encoding='utf-8') for name, path in list_chat_templates().items()}
SHAPED = sorted(name for name, text in texts().items() if template_questions(text) is not None)


def check(name, settings, n, monkeypatch):
    rng, tokenizer = random.Random(name), small_tokenizer()
    rows = [{'messages': conversation(rng)} for _ in range(n)]
    dataset = DatasetConfig(path='', type='chat_template', chat_template=name, **settings)
    dataset._run_options = {'eot_tokens': ['END']} if settings.get('train_on_eos') == 'all' else {}
    with monkeypatch.context() as alone:
        alone.setattr(chat, '_shape_key', lambda *args, **kwargs: None)
        proved = [turns_or_reason(row, dataset, tokenizer) for row in rows]
    for _ in range(3): filled = [turns_or_reason(row, dataset, tokenizer) for row in rows] # noted, made, filled in
    assert filled == proved


@pytest.mark.parametrize('n, name', enumerate(SHAPED))
def test_filled_in_is_as_proved(n, name, monkeypatch): check(name, SETTINGS[n % len(SETTINGS)], 15, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize('name', SHAPED)
@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_filled_in_is_as_proved_at_length(name, settings, monkeypatch): check(name, settings, 200, monkeypatch)


def test_most_templates_have_shapes(): assert len(SHAPED) > .7 * len(texts())


def test_shapes_are_used(monkeypatch):
    tokenizer = small_tokenizer()
    dataset = DatasetConfig(path='rows.jsonl', type='chat_template', chat_template='alpaca')
    rows = [question_and_answer(f'What is {n}?', f'It is {n}.') for n in range(5)]
    for row in rows[:2]: row_to_turns(row, dataset, tokenizer)
    monkeypatch.setattr(chat, '_RenderedChat', None) # nothing is rendered any more
    for n, row in enumerate(rows):
        assert f'It is {n}.' in ''.join(t.text for t in row_to_turns(row, dataset, tokenizer))
    dataset.train_on_eos = 'none' # another setting is another key
    with pytest.raises(TypeError): row_to_turns(rows[0], dataset, tokenizer)


def test_fill_shape_gives_the_conversation_back():
    rng = random.Random(0)
    for _ in range(300):
        messages = conversation(rng)
        for m in messages: m.pop('train', None)
        template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
        shape, bodies = conversation_shape(messages, template, ('END',))
        assert fill_shape(shape, bodies) == messages


def test_a_template_that_refuses_other_texts(tmp_path):
    "What is found out about a shape never makes a row unusable."
    template = ("{% for m in messages %}{% if '漢' in m.content|string|replace('a', 'a') %}{{ raise_exception('no') }}"
                "{% endif %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}")
    dataset = DatasetConfig(path='', type='chat_template', chat_template='jinja', chat_template_jinja=template)
    rows = [question_and_answer(f'{n}', 'b') for n in range(4)]
    assert [type(turns_or_reason(row, dataset, small_tokenizer())) for row in rows] == [tuple] * 4
