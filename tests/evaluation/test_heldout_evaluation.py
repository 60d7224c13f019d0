"Base against tuned: measured as training measures, an evaluation goes on where it was, and says what is wrong."
import json, math, random, shutil
from itertools import combinations
from pathlib import Path

import pytest

from llmft.core import UserError, damaged_files, find_damage, write_manifest
from llmft.evaluation.evaluate import evaluate
from llmft.evaluation.losses import general_texts, general_windows, row_losses
from llmft.evaluation.measures import Evaluation, Measure, mean_interval, share_difference
from llmft.evaluation.questions import file_questions, judge_answers, judge_tries
from llmft.export.card import model_card
from llmft.inference.load import load_run
from llmft.training.run import Run
from llmft.training.train import finetune
from tests.bad_data import ask
from tests.small import small_config, small_run
from tests.tiny import alpaca_rows, save_rows

QUICK = {'general_bytes': 600, 'max_new_tokens': 4, 'batch_size': 3, 'progress': False}


def trained(folder, **keys):
    "A run of a few steps that measured its held-out loss before and after; some rows cannot be used."
    learned = [{'path': save_rows(folder/'learned.jsonl', alpaca_rows(20)[8:])}]
    keys = dict(max_steps=3, learning_rate=1e-2, eval_strategy='steps', eval_steps=3, datasets=learned) | keys
    config = small_config(folder, **keys)
    rows = [*alpaca_rows(6), {'instruction': 'no answer', 'output': ''},
            {'instruction': 'too long', 'output': 'x ' * 400}]
    save_rows(folder/'data.jsonl', rows)
    return finetune(config, say=None)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run folder and what was found of it."
    run = trained(tmp_path_factory.mktemp('evaluated'))
    return run, evaluate(run.path, **QUICK)


def test_the_losses_are_those_of_training(run):
    run, evaluation = run
    loss = evaluation['held-out loss']
    assert len(loss.tuned) == 6 # without those that training leaves out
    for values, told in ((loss.base, run.first('eval_loss')), (loss.tuned, run.last('eval_loss'))):
        assert sum(values)/sum(loss.weights) == pytest.approx(told, rel=1e-4)
    assert loss.change[0] < 0


@pytest.mark.parametrize('keys', [
    {'adapter': 'full', 'load_in_4bit': False},
    pytest.param({'peft_use_dora': True}, marks=pytest.mark.slow)], ids=str)
def test_other_runs(keys, tmp_path):
    run = trained(tmp_path, **keys)
    loss = evaluate(run.path, **QUICK)['held-out loss']
    means = [sum(values)/sum(loss.weights) for values in (loss.base, loss.tuned)]
    assert means == pytest.approx([run.first('eval_loss'), run.last('eval_loss')], rel=1e-3)


@pytest.mark.parametrize('kind', ['completion', 'chat_template'])
def test_formats(kind, tmp_path):
    config = small_config(tmp_path, datasets=[{'path': str(tmp_path/'data.jsonl'), 'type': kind}], val_set_size=3,
                          test_datasets=None, eval_strategy='steps', eval_steps=1)
    texts = [f'Row {i}: ' + 'add ' * i for i in range(9)]
    chats = [[{'role': 'user', 'content': text}, {'role': 'assistant', 'content': text}] for text in texts]
    rows = [{'text': text} for text in texts] if kind == 'completion' else [{'messages': chat} for chat in chats]
    save_rows(tmp_path/'data.jsonl', rows)
    run = finetune(config, say=None)
    found = evaluate(run.path, **QUICK)
    loss = found['held-out loss']
    means = [sum(values)/sum(loss.weights) for values in (loss.base, loss.tuned)]
    assert means == pytest.approx([run.first('eval_loss'), run.last('eval_loss')], rel=1e-3)
    names = [measure.name for measure in found.measures]
    assert ('exact match' in names) == (kind == 'chat_template') # plain text has no answer
    assert {'held-out loss', 'general text'} <= {*names}


def test_what_is_kept(run):
    run, evaluation = run
    names = {p.relative_to(run.path).as_posix() for p in run.path.rglob('*evaluation*')}
    assert names == {'evaluation', 'evaluation.json', 'evaluation.png'}
    assert Evaluation.read(run.path/'evaluation.json').measures == evaluation.measures
    text = (run.path/'README.md').read_text()
    assert text.count('## Base against tuned') == 1 and text.index('## Base') < text.index('## Use it')
    assert text.count('| general text |') == 1 and not [*damaged_files(run.path, new=())]
    assert '| general text |' in model_card(run.path)
    lines = [json.loads(line) for line in (run.path/'evaluation/tuned.jsonl').read_text().splitlines()]
    assert len(lines) == 6 and all(line['n_tokens'] <= 4 for line in lines)
    ends = evaluation['ended by itself'].tuned
    assert ends == [int(line['reason'] == 'stop') for line in lines]


def test_again_and_cut_off(run):
    run, evaluation = run
    file = run.path/'evaluation/base.jsonl'
    whole, readme = file.read_bytes(), (run.path/'README.md').read_text()
    file.write_bytes(whole[:len(whole)//2])
    assert evaluate(run.path, **QUICK).measures == evaluation.measures
    assert file.read_bytes() == whole and (run.path/'README.md').read_text() == readme
    stamp = file.stat().st_mtime_ns
    evaluate(run.path, **QUICK)
    assert file.stat().st_mtime_ns == stamp # nothing was made again
    assert len(evaluate(run.path, **QUICK | {'max_rows': 2})['exact match'].tuned) == 2 # other rows: made anew
    assert len(file.read_bytes().splitlines()) == 2


def test_an_adapter_that_changes_nothing(tmp_path):
    from safetensors.torch import load_file, save_file
    file = small_run(tmp_path)/'adapter/adapter_model.safetensors'
    save_file({name: tensor * ('lora_A' in name) for name, tensor in load_file(file).items()}, file)
    found = evaluate(file.parent.parent, **QUICK)
    assert all(measure.base == measure.tuned for measure in found.measures)
    assert {measure.verdict for measure in found.measures} <= {'no difference seen', ''}


HUMAN_EVAL = {'task_id': 'HumanEval/0', 'prompt': 'def double(x):\n    """Twice x."""\n', 'entry_point': 'double',
              'canonical_solution': '    return 2*x\n', 'test': 'def check(candidate):\n    assert candidate(2) == 4'}
MBPP = {'task_id': 1, 'text': 'Write `triple(x)`.', 'code': 'def triple(x): return 3*x', 'test_setup_code': '',
        'test_list': ['assert triple(2) == 6', 'assert triple(0) == 0']}


def test_human_eval_and_mbpp(tmp_path):
    run = small_run(tmp_path)
    chat = load_run(run)
    save_rows(tmp_path/'both.jsonl', [HUMAN_EVAL, MBPP])
    questions = file_questions(tmp_path/'both.jsonl', chat.dataset, chat.tokenizer, True)
    right = [HUMAN_EVAL['canonical_solution'], f'Sure:\n```python\n{MBPP["code"]}\n```']
    for texts, expected in ((right, [1, 1]), ([right[0].replace('2', '3'), MBPP['code'].replace('3*', '4*')], [0, 0]),
                            ([HUMAN_EVAL['prompt'] + right[0], 'triple = None'], [1, 0])):
        answers = [{'answer': text, 'reason': 'stop', 'n_tokens': 9} for text in texts]
        assert judge_answers(questions, answers, unsafe=True)['pass@1'][1] == expected
    status, out, err = ask('evaluate', str(run), '--file', str(tmp_path/'both.jsonl'), '--run-code', '--unsafe',
                           '--max-new-tokens', '3', '--k', '1,2')
    assert status == 0 and 'pass@2, 4 tries' in out, err
    found = Evaluation.read(run/'evaluation-both.json')
    assert found['pass@1'].tuned == [0, 0] and len(found['pass@2, 4 tries'].base) == 2
    asked = [json.loads(line)['question'] for line in (run/'evaluation-both/tuned.jsonl').read_text().splitlines()]
    assert asked[0] == HUMAN_EVAL['prompt'] and MBPP['test_list'][1] in asked[1]


def test_tests_of_held_out_rows_are_run_only_if_allowed(tmp_path):
    run = small_run(tmp_path) # its rows have the test `assert True`
    found = evaluate(run, **QUICK, max_rows=3)
    assert 'exact match' in str(found) and 'pass@1' not in str(found) and '--run-code' in str(found)
    found = evaluate(run, run_code=True, unsafe=True, k=[1, 2], tries=2, max_rows=3, **QUICK)
    names = [measure.name for measure in found.measures]
    assert 'pass@1' in names and 'pass@2, 2 tries' in names and 'exact match' not in names


def broken(what, home):
    "A run with something wrong, and what is asked of it."
    small_run(home)
    if what == 'no run': shutil.rmtree(home/'run'); (home/'run').mkdir()
    if what == 'no adapter': shutil.rmtree(home/'run/adapter')
    if what == 'no model': shutil.rmtree(home/'model')
    if what == 'no data': (home/'data.jsonl').unlink()
    if what == 'no held-out rows':
        file = home/'run/config_completed.yml'
        lines, kept, skipping = file.read_text().splitlines(), [], False
        for line in lines:
            if not line.startswith((' ', '-')): skipping = line.startswith('test_datasets:')
            if not skipping: kept.append(line)
        file.write_text('\n'.join([*kept, '']))
    return {'no tests': {'file': save_rows(home/'x.jsonl', [HUMAN_EVAL])}, 'k': {'k': 3},
            'a text': {'out': home/'data.jsonl'}, 'no file': {'file': home/'none.jsonl'}}.get(what, {})


@pytest.mark.parametrize('what, message', [
    ('no run', 'not a run folder'), ('no adapter', 'the run has no adapter yet'), ('no model', 'no such folder|model'),
    ('no data', 'data.jsonl: there is no such file'), ('no held-out rows', 'this run has no held-out rows'),
    ('no tests', 'Allow it with run_code=True'), ('k', 'k: pass@k needs rows with tests'), ('a text', 'this is a file'),
    ('no file', 'none.jsonl')])
def test_what_is_wrong_is_said_and_nothing_is_written(what, message, tmp_path):
    settings = broken(what, tmp_path)
    before = {p: p.is_file() and p.read_bytes() for p in (tmp_path/'run').rglob('*')}
    with pytest.raises(UserError, match=message): evaluate(tmp_path/'run', **QUICK, **settings)
    assert {p: p.is_file() and p.read_bytes() for p in (tmp_path/'run').rglob('*')} == before


def test_what_is_wrong_at_the_command():
    assert ask('evaluate', 'nowhere')[0] == 2
    assert 'whole numbers' in ask('evaluate', '.', '--k', 'a')[2]
    assert ask('evaluate', 'me/none', '--out', 'x', '--max-rows', '-3')[0] == 2


def test_pass_at_k_is_unbiased(tmp_path):
    question = type('Q', (), {'reference': '', 'row': {'tests': 'assert x'}})()
    answers = [{'answer': f'x = {i < 2}'} for i in range(5)] # two of five are right
    found = judge_tries([question], answers, [1, 2, 3], unsafe=True)
    for k in (1, 2, 3):
        draws = [*combinations(range(5), k)]
        assert found[f'pass@{k}, 5 tries'][1][0] == pytest.approx(sum(min(d) < 2 for d in draws)/len(draws))


@pytest.mark.parametrize('n, before, after', [(20, .1, .5), (50, .5, .5), (200, .9, .95), (12, 0, .1)])
def test_intervals_of_differences_hold_what_they_promise(n, before, after):
    randomly, held = random.Random(1), 0
    for _ in range(400):
        rows = [(randomly.random(), randomly.random()) for _ in range(n)]
        old = [int(a < before) for a, _ in rows]
        new = [int((a if a < .5 else b) < after) for a, b in rows] # rows are alike in both models
        truth = .5*min(after/.5, 1)*1.0 + .5*after - before
        _, low, high = share_difference(old, new)
        held += low <= truth <= high
    assert held/400 > .92


def test_the_verdict_needs_more_than_luck():
    assert Measure('a', 'share', [1, 1, 0], [0, 0, 0]).verdict == 'no difference seen'
    assert Measure('a', 'share', [1]*30, [0]*30).verdict == 'better'
    assert Measure('a', 'loss', [2.0], [1.0]).verdict == 'no difference seen' # one row says nothing
    assert all(not math.isfinite(x) for x in mean_interval([1.0])[1:])


def test_the_general_text(tmp_path):
    parts = general_texts()
    assert 49_000 < sum(len(part['text'].encode()) for part in parts) < 51_000 and len({p['kind'] for p in parts}) == 4
    assert all(part['title'] and part['author'] and part['year'] < 1963 and part['text'].strip() for part in parts)
    readme = Path('llmft/builtin/general-text/README.md').read_text() if Path('llmft').is_dir() else None
    assert readme is None or all(part['author'].split()[-1] in readme for part in parts)
    chat = load_run(small_run(tmp_path))
    windows, n_bytes = general_windows(chat.tokenizer, 3000, chat.model)
    losses, counts = row_losses(chat.model, windows)
    texts = [part['text'] for part in general_texts(3000)]
    assert sum(counts) == sum(len(chat.tokenizer(text, add_special_tokens=False)['input_ids']) for text in texts)
    assert n_bytes == sum(len(text.encode()) for text in texts) and 5 < sum(losses)/sum(counts) < 9


def test_the_manifest_keeps_what_it_said_of_other_files(tmp_path):
    run = small_run(tmp_path)
    (run/'README.md').write_text('# A run\n')
    write_manifest(run)
    (run/'adapter/adapter_config.json').write_text((run/'adapter/adapter_config.json').read_text() + ' ')
    evaluate(run, **QUICK, max_rows=1)
    assert 'adapter_config.json' in find_damage(run) and 'Base against tuned' in (run/'README.md').read_text()
    assert isinstance(Run(run).path, Path)
