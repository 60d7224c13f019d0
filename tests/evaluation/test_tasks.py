"Tasks of lm-eval: the tokens are those of training, the numbers those of the model, and what is wrong is said."
import json

import pytest

from llmft.core import UserError
from llmft.evaluation.evaluate import evaluate
from llmft.evaluation.measures import Evaluation
from llmft.evaluation.tasks import Prompts, answer_tokens, find_tasks, run_tasks, score_answers
from llmft.inference.canary import canary_prompts
from llmft.inference.load import load_run
from llmft.prompts.turns import find_format
from llmft.tokens.encode import encode_turns
from llmft.tokens.tokenize import IGNORE_INDEX
from tests.bad_data import ask
from tests.small import small_config, small_run
from tests.tiny import save_rows

KINDS = ['alpaca', 'chat_template', 'completion']


def chat_of(folder, kind='alpaca'):
    datasets = [{'path': str(folder/'data.jsonl'), 'type': kind}]
    return load_run(small_run(folder, **({} if kind == 'alpaca' else {'datasets': datasets, 'test_datasets': None})))


@pytest.mark.parametrize('kind', KINDS)
def test_prompts_are_those_of_the_canary(kind, tmp_path):
    chat = chat_of(tmp_path, kind)
    prompts, kept = Prompts(chat.tokenizer, chat.dataset), canary_prompts(chat.tokenizer, chat.dataset)
    assert kept
    for row in kept:
        asked = row['prompt']
        if isinstance(asked, list) and kind != 'chat_template': continue # of a conversation they take the last question
        messages = [{'role': 'user', 'content': asked}] if isinstance(asked, str) else asked
        assert prompts.ids(prompts.write(messages)) == row['ids']


@pytest.mark.parametrize('kind, row', [
    ('alpaca', {'instruction': 'Name a fruit.', 'output': 'A plum'}),
    ('chat_template', {'messages': [{'role': 'user', 'content': 'Name a fruit.'},
                                    {'role': 'assistant', 'content': 'A plum'}]})])
def test_answers_are_tokenized_as_in_training(kind, row, tmp_path):
    chat = chat_of(tmp_path, kind)
    prompts = Prompts(chat.tokenizer, chat.dataset)
    got = answer_tokens(prompts, prompts.write([{'role': 'user', 'content': 'Name a fruit.'}]), 'A plum')
    trained = encode_turns(find_format(kind).turns(row, chat.dataset, chat.tokenizer), chat.tokenizer)
    n = len(got['input_ids'])
    assert got['input_ids'] == trained['input_ids'][:n] and got['labels'] == trained['labels'][:n]
    assert n >= len(trained['input_ids']) - 1 # all but the end


TASK = '''task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
{rest}
'''
CHOICE = 'doc_to_text: "{{q}}"\ndoc_to_choice: "{{a}}"\ndoc_to_target: right\nmetric_list: [{metric: acc}]'
UNTIL = '''doc_to_text: "{{q}}"
doc_to_target: "{{a[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3}
metric_list: [{metric: exact_match}]'''
ROLLING = 'doc_to_text: ""\ndoc_to_target: "{{q}} is what is asked"\nmetric_list: [{metric: word_perplexity}]'


@pytest.fixture
def home(tmp_path):
    "A folder with three tasks on four rows, and a run."
    rows = [{'q': f'Add {i} and {i}:', 'a': [str(2*i), f'x = {i}', 'please'], 'right': i % 3} for i in range(4)]
    file = save_rows(tmp_path/'rows.jsonl', rows)
    for name, kind, rest in (('choice', 'multiple_choice', CHOICE), ('until', 'generate_until', UNTIL),
                             ('rolling', 'loglikelihood_rolling', ROLLING)):
        (tmp_path/f'{name}.yaml').write_text(TASK.format(name=name, file=file, kind=kind, rest=rest))
    small_run(tmp_path)
    return tmp_path, rows


def test_numbers_of_the_harness(home):
    pytest.importorskip('lm_eval')
    home, rows = home
    chat = load_run(home/'run')
    found = run_tasks(chat, find_tasks([home/f'{name}.yaml' for name in ('choice', 'until', 'rolling')]))
    prompts = Prompts(chat.tokenizer, chat.dataset)
    for row, right in zip(rows, found['choice, acc'][1]): # counted again by hand
        text = prompts.write([{'role': 'user', 'content': row['q']}])
        scores = [score for score, _ in score_answers(chat.model, [answer_tokens(prompts, text, a) for a in row['a']])]
        assert right == (scores.index(max(scores)) == row['right'])
    assert len(found['choice, acc'][1]) == 4 and found['rolling, word_perplexity'][0] == 'loss'
    assert found['until, exact_match'][0] == 'share'


def test_base_against_tuned_in_one_table(home):
    pytest.importorskip('lm_eval')
    home, _ = home
    settings = dict(max_rows=3, general_bytes=0, max_new_tokens=2, progress=False)
    found = evaluate(home/'run', tasks=[home/'choice.yaml'], **settings)
    acc = found['choice, acc']
    assert len(acc.base) == len(acc.tuned) == 3 and acc.change is not None
    status, out, err = ask('evaluate', str(home/'run'), '--tasks', str(home/'choice.yaml'), '--max-rows', '2',
                           '--max-new-tokens', '2', '--general-bytes', '0')
    assert status == 0 and 'choice, acc' in out, err
    assert len(Evaluation.read(home/'run/evaluation.json')['choice, acc'].tuned) == 2


def test_a_run_without_held_out_rows_can_be_asked_tasks(tmp_path, home):
    pytest.importorskip('lm_eval')
    run = small_run(tmp_path/'other', datasets=[{'path': str(home[0]/'data.jsonl')}], test_datasets=None)
    found = evaluate(run, tasks=[home[0]/'choice.yaml'], general_bytes=0, progress=False)
    assert any('Held-out rows were not asked' in note for note in found.notes) and found['choice, acc'].base


@pytest.mark.parametrize('name, message', [
    ('hellasvag', 'no such task. Did you mean `?hellaswag'), ('none.yaml', 'there is no such file'),
    ('broken.yaml', 'cannot be loaded'), ('no_data.yaml', 'cannot be loaded: .*Their data come from the Hub')])
def test_what_is_wrong_with_a_task(name, message, home):
    pytest.importorskip('lm_eval')
    home, _ = home
    (home/'broken.yaml').write_text('task: [')
    task = TASK.format(name='no', file=home/'gone.jsonl', kind='multiple_choice', rest=CHOICE)
    (home/'no_data.yaml').write_text(task)
    with pytest.raises(UserError, match=message):
        find_tasks([home/name if name.endswith('.yaml') else name])


def test_without_the_harness(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, 'lm_eval.evaluator', None)
    run = small_run(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'llmft\[eval\]'"): evaluate(run, tasks=['arc_easy'])
    assert not (run/'evaluation.json').exists()


def test_marked_tokens_only(tmp_path):
    chat = chat_of(tmp_path)
    prompts = Prompts(chat.tokenizer, chat.dataset)
    row = answer_tokens(prompts, '', 'please add')
    assert row['labels'][0] == IGNORE_INDEX and row['labels'][1:] == row['input_ids'][1:]
    assert json.loads((tmp_path/'run/adapter/adapter_config.json').read_text()) and small_config(tmp_path)
