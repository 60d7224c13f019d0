"The commands of a chat; what it saves can be trained on."
import pytest

from llmft.config.config import load_config
from llmft.core import UserError
from llmft.data.sources import load_rows
from llmft.inference.chat import chat_loop, side_by_side
from llmft.inference.generate import prompt_ids
from llmft.inference.load import load_run
from llmft.tokens.tokenize import tokenize_dataset
from tests.small import small_run

DATA = {'alpaca': {}, 'chat_template': {}, 'completion': {}, 'prompt_completion': {},
        'chat_template with other names': {
            'type': 'chat_template', 'field_messages': 'conversations',
            'message_property_mappings': {'role': 'from', 'content': 'value'}}}


def opened(tmp_path, name='chat_template'):
    "A run with this format; its adapter is the same for all."
    data = {'path': str(tmp_path/'data.jsonl'), 'type': name} | DATA[name]
    return load_run(small_run(tmp_path, datasets=[data], test_datasets=[]))


def talk(chat, *lines):
    lines = iter(lines)
    def next_line(prompt):
        try: return next(lines)
        except StopIteration: raise EOFError from None
    chat_loop(chat, next_line, max_new_tokens=5, temperature=1.0, seed=1)


@pytest.mark.parametrize('name', DATA)
def test_what_is_saved_is_a_training_row(name, tmp_path):
    chat = opened(tmp_path, name)
    talk(chat, 'Add 3', 'Add 4', f'/save {tmp_path}/kept.jsonl')
    answers = [m['content'] for m in chat.messages if m['role'] == 'assistant']
    data = chat.dataset.model_copy(update={'path': str(tmp_path/'kept.jsonl')})
    config = load_config(chat.config, datasets=[data.model_dump(exclude_unset=True)])
    rows = load_rows(config)
    assert len(rows) == (1 if chat.multi_turn else 2)
    encoded = tokenize_dataset(rows, chat.tokenizer, config)
    text = chat.tokenizer.decode([i for row in encoded for i in row['input_ids']])
    assert all(answer.strip() in text for answer in answers)
    if name != 'completion': # the prompt of the row is the beginning of what is learned
        row, ids = rows[0], encoded[0]['input_ids']
        prompt = prompt_ids({k: v for k, v in row.items() if k != 'source'}, chat.tokenizer, chat.dataset)
        assert ids[:len(prompt)] == prompt


def test_retry_undo_system_reset(tmp_path, capsys):
    chat = opened(tmp_path)
    talk(chat, '/retry', '/undo', '/system Be brief.', 'Add 3', '/retry', 'Add 4', '/undo')
    assert [m['role'] for m in chat.messages] == ['system', 'user', 'assistant']
    assert [m['content'] for m in chat.messages[:2]] == ['Be brief.', 'Add 3']
    said = capsys.readouterr().out
    assert said.count('Nothing was asked yet.') == 2 and 'Taken back: Add 4' in said
    talk(chat, '/reset')
    assert chat.messages == []
    (tmp_path/'second').mkdir()
    alpaca = opened(tmp_path/'second', 'alpaca')
    talk(alpaca, '/system Be brief.')
    assert 'has no place for a system prompt' in capsys.readouterr().out and alpaca.messages == []


def test_several_lines(tmp_path):
    chat = opened(tmp_path)
    talk(chat, 'Add \\', '3', '"""def f():', '', '    /quit', '"""', '"""one line"""', '"""never closed')
    asked = [m['content'] for m in chat.messages if m['role'] == 'user']
    assert asked == ['Add \n3', 'def f():\n\n    /quit', 'one line']


def test_compare_is_the_base_and_the_run(tmp_path, capsys):
    chat = opened(tmp_path)
    settings = {'max_new_tokens': 8, 'temperature': 1.0, 'seed': 2}
    talk(chat, 'Add 3')
    kept = [*chat.messages]
    made = chat.compare('Add 4', **settings)
    question = [*kept, {'role': 'user', 'content': 'Add 4'}]
    assert chat.messages == kept and made['run'] != made['base']
    assert made['run'] == chat.generate([question], **settings)[0] # the adapter is in use again
    assert made['base'] == chat.use('base').generate([question], **settings)[0]
    capsys.readouterr()
    talk(chat, '/compare Add 4')
    assert 'Take an adapter first: run' in capsys.readouterr().out
    talk(chat.use('run'), '/compare', 'Add 3', '/compare')
    said = capsys.readouterr().out
    assert 'What shall be asked?' in said and 'base' in said and ' │ run' in said and len(chat.messages) == 2


def test_side_by_side_keeps_every_letter():
    texts = {'a': 'x' * 50 + '\n\n    indented', 'b': 'short'}
    lines = side_by_side(texts, width=43).splitlines()
    left = ''.join(line.partition(' │')[0].rstrip() for line in lines[2:])
    assert left == 'x' * 50 + '    indented' and all(len(line) <= 43 for line in lines)


@pytest.mark.parametrize('line', ['/save', '/save x.txt', '/save /dev/null/x.jsonl', 'word ' * 3000])
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = opened(tmp_path)
    talk(chat, line, 'Add 3')
    said = capsys.readouterr().out
    assert any(part in said for part in ('Where to?', 'ends in .jsonl', 'cannot be written', 'the prompt has'))
    assert len(chat.messages) == 2 and not (tmp_path/'x.txt').exists()
