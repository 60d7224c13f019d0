"Answers while training: they are there at each evaluation, they are scored, and they change nothing."
import hashlib, json
import pytest, torch
from llmft import Run, UserError
from llmft.config.config import load_config
from llmft.training import samples, train
from llmft.training.arguments import unused_keys
from llmft.model.base import detect_hardware
from llmft.training.train import finetune
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config

EVALUATED = dict(val_set_size=4, max_steps=6, eval_steps=2, save_steps=2, logging_steps=1, max_new_tokens=4)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('samples')
    save_tiny(folder/'model', tokenizer=small_tokenizer())
    save_rows(folder/'rows.jsonl', [row | {'tests': 'assert add(1)'} for row in alpaca_rows(24)])
    return folder


@pytest.fixture
def make(folder, tmp_path):
    def config(name='run', **keys):
        keys = {'adapter': 'lora', 'bf16': False, 'lora_dropout': .1} | EVALUATED | keys
        return tiny_config(folder/'model', folder/'rows.jsonl', tmp_path/name, **keys)
    return config


def weights(run): return hashlib.sha256((run.path/'adapter'/'adapter_model.safetensors').read_bytes()).hexdigest()

def trained(run): return [(m['step'], m['loss'], m['grad_norm']) for m in run.metrics if 'loss' in m]

def steps(run): return sorted({sample['step'] for sample in run.samples})


ANSWERED = dict(sample_prompts=2, eval_generate=1, eval_generate_rows=3)

@pytest.mark.slow
@pytest.mark.parametrize('keys', [
    ANSWERED, ANSWERED | dict(eval_generate=True, sample_packing=False), dict(sample_prompts=['Hi', 'Ho']),
    ANSWERED | dict(eval_run_code=True), ANSWERED | dict(gradient_checkpointing=True, gradient_accumulation_steps=2)])
def test_training_is_bit_for_bit_the_same(make, keys):
    silent = {k: v for k, v in keys.items() if not k.startswith(('sample_prompts', 'eval'))} | {'sample_prompts': 0}
    without, with_answers = finetune(make('without', **silent), say=None), finetune(make('with', **keys), say=None)
    assert weights(without) == weights(with_answers) and trained(without) == trained(with_answers)
    assert not without.samples and with_answers.samples


def test_answers_at_each_evaluation(make):
    run = finetune(make(), say=None)
    assert steps(run) == [0, 2, 4, 6] and len(run.samples) == 4*3
    assert {*run.samples[0]} == {'step', 'row', 'question', 'answer'}
    assert run.samples[0]['question'].startswith('instruc')
    text = (run.path/'samples.md').read_text()
    assert [text.count(f'**{name}**') for name in ('Before', 'Step 2', 'Step 4', 'After step 6')] == [3]*4
    html = run.samples._repr_html_()
    assert '<th' in html and 'After step 6' in html
    assert len(run.plot_samples().axes) >= 5


@pytest.mark.slow
def test_own_questions_need_no_held_out_rows(make):
    questions = ['Name a <fruit>.', {'instruction': 'x', 'input': ''}]
    run = finetune(make(sample_prompts=questions, val_set_size=0), say=None)
    assert steps(run) == [0, 6] and run.samples[0]['question'] == 'Name a <fruit>.'
    assert '&lt;fruit&gt;' in run.samples._repr_html_() and '<fruit>' not in run.samples._repr_html_()


@pytest.mark.parametrize('question, message', [
    ({'input': 'x'}, 'needs `instruction`'), ({'prompt': 'x'}, 'needs `instruction`'), ('', 'a list of questions'),
    (3, 'a list of questions'), ({'instruction': 5}, 'instruction')])
def test_wrong_questions_are_told_before_anything_is_written(make, tmp_path, question, message):
    with pytest.raises(UserError, match=message): finetune(make(sample_prompts=[question]), say=None)
    assert not (tmp_path/'run').exists()


def scores(run, metric): return [(m['step'], m[f'eval_{metric}']) for m in run.metrics if f'eval_{metric}' in m]


@pytest.mark.parametrize('keys, metric, at', [
    (dict(eval_generate=3), 'exact_match', [0, 3, 6]),
    pytest.param(dict(eval_generate=True), 'exact_match', [0, 2, 4, 6], marks=pytest.mark.slow),
    pytest.param(dict(eval_generate=4, eval_generate_metric='f1'), 'f1', [0, 4, 6], marks=pytest.mark.slow),
    (dict(eval_generate=True, eval_run_code=True), 'pass_at_1', [0, 2, 4, 6])])
def test_scores_are_logged_as_any_number(make, keys, metric, at, monkeypatch):
    run = finetune(make(**keys), say=None)
    assert [step for step, _ in scores(run, metric)] == at
    assert all(0 <= value <= 1 for _, value in scores(run, metric))
    assert [m['step'] for m in run.metrics if 'loss' in m] == [1, 2, 3, 4, 5, 6]
    assert all('mean_token_accuracy' not in m or 'loss' in m or 'eval_loss' in m for m in run.metrics)
    assert len(run.table().header) >= 6 and run.table().header[-1] in ('exact match', 'f1', 'pass@1')


def test_a_right_answer_counts(make, monkeypatch):
    "What the rows say, word for word, is 100%."
    config, asked = make(eval_generate=True, eval_generate_rows=4), []
    heldout = train.prepare_data(config).raw_heldout
    right = {row['instruction']: row['output'] for row in heldout}
    def answer(self, model, prompts, progress=None):
        texts = [self.tokenizer.decode(p) for p in prompts]
        asked.extend(texts)
        return [next(out for question, out in right.items() if f'{question}\n' in text) for text in texts]
    monkeypatch.setattr(samples.SampleAnswers, 'generate', answer)
    run = finetune(config, say=None)
    assert {value for _, value in scores(run, 'exact_match')} == {1.0} and asked


def test_code_is_run_only_where_that_is_allowed(make, monkeypatch):
    def refuse(*_, **__): raise AssertionError('code was run')
    monkeypatch.setattr(samples, 'run_code_batch', refuse)
    finetune(make(eval_generate=True), say=None)
    with pytest.raises(UserError, match='eval_run_code: true'):
        make(eval_generate=True, eval_generate_metric='pass_at_1')
    with pytest.raises(AssertionError, match='code was run'):
        finetune(make('allowed', eval_generate=True, eval_run_code=True), say=None)


def test_plain_text_has_no_answer_to_compare_with(make):
    datasets = [{'path': make().datasets[0].path, 'type': 'completion', 'field': 'output'}]
    with pytest.raises(UserError, match='plain text has none'):
        finetune(load_config(make(eval_generate=True), datasets=datasets), say=None)


@pytest.mark.slow
def test_trackers_get_the_numbers(make, monkeypatch):
    "What callbacks of trackers are given."
    class Tracker:
        seen = []
        def on_log(self, args, state, control, logs=None, **kwargs):
            if 'eval_exact_match' in logs: self.seen.append((state.global_step, logs['eval_exact_match']))
    made = train._make_callbacks
    monkeypatch.setattr(train, '_make_callbacks', lambda *args: [*made(*args), train.callback_class(Tracker)()])
    run = finetune(make(eval_generate=3), say=None)
    assert Tracker.seen == scores(run, 'exact_match') and [step for step, _ in Tracker.seen] == [0, 3, 6]


def test_resume_goes_on_as_if_never_stopped(make, monkeypatch):
    keys = dict(eval_generate=1, eval_generate_rows=2)
    whole, config = finetune(make('whole', **keys), say=None), make('stopped', **keys)
    class Killed(BaseException): pass
    def die(self, args, state, control, **kwargs):
        if state.global_step == 5: raise Killed
    with monkeypatch.context() as m:
        m.setattr(train.Progress, 'on_step_end', die)
        with pytest.raises(Killed): finetune(config, say=None)
    file = Run(whole.path.parent/'stopped').path/'samples.jsonl'
    with open(file, 'a') as f: f.write('{"step": 5, "row": 1, "question": "x", "answer": "x"}\n{"step": 5, "ro')
    run = finetune(config, resume=True, say=None)
    assert weights(run) == weights(whole) and run.samples == whole.samples
    assert scores(run, 'exact_match') == scores(whole, 'exact_match')
    assert (run.path/'samples.md').read_text() == (whole.path/'samples.md').read_text()


@pytest.mark.slow
def test_the_best_weights_answer_last(make):
    run = finetune(make(load_best_model_at_end=True, learning_rate=.3, save_total_limit=9), say=None)
    losses = {m['step']: m['eval_loss'] for m in run.metrics if 'eval_loss' in m and m['step']}
    best = min(losses, key=losses.get)
    assert f'**After step {best}**' in (run.path/'samples.md').read_text()


def test_keys_without_effect_are_told(make):
    def told(**keys): return ' '.join(unused_keys(make(**keys), detect_hardware(make(**keys))))
    assert '`sample_prompts`: without effect' in told(sample_prompts=5, val_set_size=0)
    assert '`eval_generate`: without effect' in told(eval_generate=5, val_set_size=0)
    assert '`eval_generate_rows`: without effect' in told(eval_generate_rows=5)
    assert '`eval_generate`: without effect' in told(eval_generate=True, eval_strategy='no', eval_steps=None)
    assert 'without effect' not in told(eval_generate=5, eval_strategy='no', eval_steps=None) + told(sample_prompts=0)


def test_random_numbers_go_on_as_before():
    import random, numpy as np
    def draw(): return random.random(), np.random.rand(), torch.rand(1).item()
    def seed(): random.seed(1), np.random.seed(1), torch.manual_seed(1)
    seed()
    expected = draw()
    seed()
    with pytest.raises(ZeroDivisionError), samples.same_randomness(): draw(), 1/0
    assert draw() == expected
