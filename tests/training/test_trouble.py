"Rows whose loss is no number, memory that runs out, runs that diverge, steps that are skipped: on real, tiny models."
import json, math
import pytest, torch
from transformers import AutoModelForCausalLM, TrainerCallback
from llmft.config.config import load_config
from llmft.core import UserError
from llmft.training import train, trouble, watch
from llmft.training.train import finetune, make_trainer
from tests.tiny import alpaca_row, save_rows, save_tiny, small_tokenizer, tiny_config

BAD = '\u00a7' # a letter that the data use in one row only


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('trouble')

@pytest.fixture(scope='module')
def model(folder): return save_tiny(folder/'model', tokenizer=small_tokenizer())

def spoil(model, folder, tokens, value):
    "The same model with `value` as the embedding of `tokens`."
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.model.embed_tokens.weight.data[tokens] = value
    broken.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def one_bad_token(model, folder):
    [*_, token] = small_tokenizer()(BAD)['input_ids']
    return spoil(model, folder/'bad', [token], float('nan'))

def rows_with(*bad, n=20): # numbers of the rows that are bad, counted from 0
    rows = [alpaca_row(i) for i in range(n)]
    for i in bad: rows[i]['output'] += f' # {BAD}'
    return rows

@pytest.fixture(scope='module')
def rows(folder): return save_rows(folder/'rows.jsonl', rows_with())

@pytest.fixture(scope='module')
def bad_rows(folder): return save_rows(folder/'bad.jsonl', rows_with(9, 17))

EXACT = dict(adapter='lora', load_in_4bit=False, bf16=False, sample_packing=False, save_strategy='no', logging_steps=1)

@pytest.fixture
def settings(model, rows, tmp_path):
    def make(base=model, data=rows, **keys): return tiny_config(base, data, tmp_path/'run', **EXACT | keys)
    return make

def losses(run): return {m['step']: m['loss'] for m in run.metrics if 'loss' in m}

def adapter(run): return (run.path/'adapter'/'adapter_model.safetensors').read_bytes()

def add_callback(monkeypatch, event, function):
    "Call `function(trainer, state)` at each `event` of a run."
    def make(*args):
        trainer = make_trainer(*args)
        def method(self, args, state, control, **kwargs): function(trainer, state)
        trainer.add_callback(type('Injected', (TrainerCallback,), {event: method})())
        return trainer
    monkeypatch.setattr(train, 'make_trainer', make)


def slow(**keys): return pytest.param(keys, marks=pytest.mark.slow)


# -- rows that make the loss no number

@pytest.mark.parametrize('keys', [dict(micro_batch_size=1, gradient_accumulation_steps=3),
    slow(sample_packing=True, gradient_checkpointing=True), slow(chunked_cross_entropy=False)], ids=str)
def test_the_row_is_named(keys, settings, one_bad_token, folder):
    data = save_rows(folder/'one.jsonl', rows_with(9))
    with pytest.raises(UserError) as e: finetune(settings(one_bad_token, data, **keys), say=None)
    assert 'the loss is nan at step ' in str(e.value) and f'alone it is so for {data}:10.' in str(e.value)
    assert 'on_nan: skip' in str(e.value)


def test_nothing_is_lost(settings, one_bad_token, bad_rows):
    "The curve and the checkpoint of the good steps stay, and the metrics are valid JSON."
    config = settings(one_bad_token, bad_rows, curriculum_sampling=True, save_strategy='steps', save_steps=2)
    with pytest.raises(UserError, match='at step 5'): finetune(config, say=None)
    run = train.Run(train.user_path(config.output_dir))
    assert (run.path/'loss.png').is_file() and (run.path/'checkpoints'/'checkpoint-4').is_dir()
    def refuse(name): raise ValueError(name)
    lines = [json.loads(line, parse_constant=refuse) for line in (run.path/'metrics.jsonl').read_text().splitlines()]
    assert lines[-1] == lines[-1] | {'step': 5, 'loss': None} and math.isnan(run.last('loss'))
    assert run.table().rows and 'nan' in str(run)


@pytest.mark.parametrize('keys', [slow(micro_batch_size=4, gradient_accumulation_steps=2, num_epochs=2),
    dict(sample_packing=True), slow(adapter='qlora', load_in_4bit=True, bf16=None)], ids=str)
def test_bad_rows_are_left_out(keys, settings, one_bad_token, bad_rows, model):
    said = []
    config = settings(one_bad_token, bad_rows, on_nan='skip', **keys)
    run = finetune(config, say=lambda text: said.append(str(text)))
    [*found] = [text for text in said if 'Left out from here on' in text]
    assert f'{bad_rows}:10' in ''.join(found) and f'{bad_rows}:18' in ''.join(found)
    assert run.last('rows_left_out') == 2 and all(map(math.isfinite, losses(run).values()))
    readme = (run.path/'README.md').read_text()
    assert f'{bad_rows}:10' in readme and f'{bad_rows}:18' in readme
    steps = config.num_epochs*math.ceil(20/config.micro_batch_size/config.gradient_accumulation_steps)
    assert run.last('step') == (steps if not config.sample_packing else max(losses(run)))


@pytest.mark.slow
def test_left_out_is_as_never_there(settings, one_bad_token, model, tmp_path):
    "The same losses as with rows in which nothing else is different, where they are left out of the same batches."
    bad = save_rows(tmp_path/'bad.jsonl', rows_with(9))
    def train_it(name, **keys):
        return finetune(settings(output_dir=str(tmp_path/name), micro_batch_size=4, **keys), say=None)
    skipped = train_it('skipped', base=one_bad_token, data=bad, on_nan='skip')
    whole = train_it('whole', data=bad) # the token is like any other here
    step = next(m['step'] for m in skipped.metrics if m.get('rows_left_out'))
    before = {s: loss for s, loss in losses(whole).items() if s < step}
    assert {s: losses(skipped)[s] for s in before} == pytest.approx(before, abs=1e-6)
    assert len(losses(skipped)) == len(losses(whole)) and losses(skipped)[step] != losses(whole)[step]


def test_held_out_rows_are_named_and_left_out(settings, one_bad_token, rows, bad_rows, tmp_path):
    keys = dict(base=one_bad_token, test_datasets=[{'path': bad_rows}], leakage='keep', max_steps=2)
    with pytest.raises(UserError, match='the eval_loss is nan at step 0') as e: finetune(settings(**keys), say=None)
    assert f'alone it is so for {bad_rows}:1' in str(e.value)
    run = finetune(settings(**keys, on_nan='skip', output_dir=str(tmp_path/'other')), say=None)
    measured = [m['eval_loss'] for m in run.metrics if 'eval_loss' in m]
    assert len(measured) == 2 and all(map(math.isfinite, measured))


@pytest.mark.parametrize('on_nan', ['stop', 'skip'])
def test_no_row_is_blamed_for_weights(on_nan, settings, model, folder, tmp_path):
    broken = spoil(model, tmp_path/'model', slice(None), float('inf'))
    with pytest.raises(UserError, match='the cause is in the weights'):
        finetune(settings(broken, on_nan=on_nan), say=None)


def test_trained_weights_that_broke_are_named(settings, monkeypatch):
    def spoil_weight(trainer, state):
        if state.global_step == 3: next(p for p in trainer.model.parameters() if p.requires_grad).data[0] = math.nan
    add_callback(monkeypatch, 'on_step_end', spoil_weight)
    with pytest.raises(UserError, match='at step 4. The trained weights themselves .*lora_A'):
        finetune(settings(on_nan='skip'), say=None)


def test_a_gradient_alone_is_enough(settings, model, bad_rows, monkeypatch):
    "The loss is a number, its gradient is not: the square root of 0, hidden from the loss."
    token, true_loss = small_tokenizer()(BAD)['input_ids'][-1], train.chunked_cross_entropy
    def loss(model, batch, **kw):
        weight = next(p for p in model.parameters() if p.requires_grad)
        bad = (batch['input_ids'] == token).any()
        return true_loss(model, batch, **kw) + ((weight.sum()*0).sqrt() if bad else 0)
    monkeypatch.setattr(train, 'chunked_cross_entropy', loss)
    with pytest.raises(UserError, match=f'the grad_norm is nan at step .*{bad_rows}:1'):
        finetune(settings(data=bad_rows), say=None)
    run = finetune(settings(data=bad_rows, on_nan='skip'), overwrite=True, say=None)
    assert run.last('rows_left_out') == 2


# -- what is saved

@pytest.mark.parametrize('adapter', ['lora', pytest.param('full', marks=pytest.mark.slow)])
def test_broken_weights_are_never_saved(adapter, settings, monkeypatch):
    def spoil_weight(trainer, state):
        if state.global_step == 4: next(p for p in trainer.model.parameters() if p.requires_grad).data[0] = math.inf
    add_callback(monkeypatch, 'on_step_end', spoil_weight)
    keys = dict(adapter=adapter, learning_rate=1e-4, max_steps=4)
    config = settings(**keys)
    with pytest.raises(UserError, match='after step 4 hold numbers that are none'): finetune(config, say=None)
    out = train.user_path(config.output_dir)
    assert not (out/'adapter').exists() and not (out/'model').exists()
    config = settings(**keys, save_strategy='steps', save_steps=2)
    with pytest.raises(UserError, match='after step 4 hold'): finetune(config, overwrite=True, say=None)
    assert [p.name for p in (out/'checkpoints').glob('*-*')] == ['checkpoint-2']
    monkeypatch.undo()
    assert finetune(config, resume=True, say=None).last('step') == 4


# -- before the first step

@pytest.mark.parametrize('keys', [slow(sample_packing=True), dict(lora_dropout=.1, val_set_size=4, evals_per_epoch=1),
    slow(gradient_checkpointing=True, neftune_noise_alpha=5)], ids=str)
def test_the_trial_changes_nothing(keys, settings, tmp_path, monkeypatch):
    tried, try_rows = [], trouble.TriesLongestRows.try_longest_rows
    def noting(self, model):
        tried.append(self)
        return try_rows(self, model)
    monkeypatch.setattr(trouble.TriesLongestRows, 'try_longest_rows', noting)
    def train_it(name, tried_from):
        monkeypatch.setattr(trouble, 'TRIED_FROM', tried_from)
        return finetune(settings(output_dir=str(tmp_path/name), max_steps=5, **keys), say=None)
    without, with_trial = train_it('without', 9), train_it('with', 5)
    assert len(tried) == 1 and adapter(without) == adapter(with_trial) and losses(without) == losses(with_trial)


def test_a_long_row_fails_before_the_first_step(settings, monkeypatch, folder):
    true_loss = train.chunked_cross_entropy
    def small_memory(model, batch, **kw):
        if batch['input_ids'].shape[1] > 80: raise torch.OutOfMemoryError('CUDA out of memory.')
        return true_loss(model, batch, **kw)
    monkeypatch.setattr(train, 'chunked_cross_entropy', small_memory)
    monkeypatch.setattr(trouble, 'TRIED_FROM', 5)
    long = save_rows(folder/'long.jsonl', rows_with() + [alpaca_row(3) | {'output': 'x = 1\n'*20}])
    config = settings(data=long, curriculum_sampling=True)
    with pytest.raises(UserError, match='Memory ran out while training'): finetune(config, say=None)
    assert not train.user_path(config.output_dir).exists()


def test_a_loss_of_nothing_stops(settings, model, tmp_path):
    "A model that knows each next token of the answers for certain."
    data = save_rows(tmp_path/'rows.jsonl', [{'instruction': f'Say {i}', 'output': 'a'} for i in range(8)])
    certain = AutoModelForCausalLM.from_pretrained(model)
    for p in certain.parameters(): p.data[:] = 0
    for name, p in certain.named_parameters():
        if 'norm' in name: p.data[:] = 1
    row = train.prepare_data(settings(data=data)).train[0]
    learned = [i for i, label in enumerate(row['labels']) if i and label != -100]
    for k, i in enumerate(learned):
        certain.model.embed_tokens.weight.data[row['input_ids'][i - 1], k] = 1
        certain.lm_head.weight.data[row['labels'][i], k] = 1000
    certain.save_pretrained(tmp_path/'model')
    small_tokenizer().save_pretrained(tmp_path/'model')
    with pytest.raises(UserError, match='The loss of the first step is exactly 0'):
        finetune(settings(tmp_path/'model', data), say=None)


# -- divergence

def test_full_training_with_a_rate_of_1_stops(settings):
    config = settings(adapter='full', learning_rate=1, lr_scheduler='constant', num_epochs=4)
    with pytest.raises(UserError, match='has diverged: the rows of the first step had a loss of') as e:
        finetune(config, say=None)
    out = train.user_path(config.output_dir)
    assert 'at step 20' in str(e.value) and (out/'loss.png').is_file() and not (out/'model').exists()


def test_a_short_run_that_diverged_is_not_saved(settings):
    config = settings(adapter='full', learning_rate=1, max_steps=7)
    with pytest.raises(UserError, match='has diverged'): finetune(config, say=None)
    assert not (train.user_path(config.output_dir)/'model').exists()


def test_the_watchdog_sleeps_if_it_should(settings):
    run = finetune(settings(adapter='full', learning_rate=1, max_steps=20, loss_watchdog=False), say=None)
    assert run.last('step') == 20 and run.last('loss') > run.first('loss') + 2


@pytest.mark.slow
@pytest.mark.parametrize('keys', [dict(learning_rate=1e-2), dict(learning_rate=3e-2, warmup_steps=1),
    dict(adapter='full', learning_rate=1e-3, lr_scheduler='cosine_with_restarts')], ids=str)
def test_usual_runs_do_not_diverge(keys, settings):
    run = finetune(settings(micro_batch_size=1, num_epochs=2, **keys), say=None)
    assert run.last('step') == 40


# -- float16

def scale_with(monkeypatch, scale):
    "A true gradient scaler, on the CPU."
    def make(*args):
        trainer = make_trainer(*args)
        trainer.accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        trainer.accelerator.native_amp = True
        trainer.accelerator.state._mixed_precision = 'fp16'
        return trainer
    monkeypatch.setattr(train, 'make_trainer', make)


@pytest.fixture
def float16():
    from accelerate.state import AcceleratorState
    yield
    AcceleratorState._reset_state(True)


def test_a_run_that_only_skips_steps_is_no_success(settings, monkeypatch, float16):
    scale_with(monkeypatch, float('inf'))
    config = settings(max_steps=8)
    with pytest.raises(UserError, match='8 steps in a row were skipped'): finetune(config, say=None)
    assert not (train.user_path(config.output_dir)/'adapter').exists()


def test_skipped_steps_are_counted(settings, monkeypatch, float16):
    scale_with(monkeypatch, 2.**24)
    run = finetune(settings(max_steps=12), say=None)
    assert 2 <= run.last('skipped_steps') < 12
    assert f'{run.last("skipped_steps")} steps were skipped' in (run.path/'README.md').read_text()
    def refuse(name): raise ValueError(name)
    for line in (run.path/'metrics.jsonl').read_text().splitlines(): json.loads(line, parse_constant=refuse)


# -- memory

def small_memory(monkeypatch, most, from_call=0, training=True):
    "Memory for `most` rows at a time, from the given call of the loss on, in training or in evaluations."
    true_loss, seen = train.chunked_cross_entropy, []
    def loss(model, batch, **kw):
        if model.training == training:
            seen.append(len(trouble.batch_texts(batch)))
            value = true_loss(model, batch, **kw)
            if training: value.register_hook(check_backward(seen[-1], len(seen)))
            elif seen[-1] > most and len(seen) > from_call: raise torch.OutOfMemoryError('CUDA out of memory.')
            return value
        return true_loss(model, batch, **kw)
    def check_backward(n, call):
        def hook(gradient):
            if n > most and call > from_call: raise torch.OutOfMemoryError('CUDA out of memory.')
        return hook
    monkeypatch.setattr(train, 'chunked_cross_entropy', loss)
    return seen


@pytest.mark.parametrize('keys', [slow(micro_batch_size=4), dict(micro_batch_size=4, gradient_accumulation_steps=3),
    slow(micro_batch_size=4, sample_packing=True), slow(micro_batch_size=3, group_by_length=True)], ids=str)
def test_smaller_batches_go_on_from_the_step(keys, settings, tmp_path, monkeypatch):
    keys |= dict(num_epochs=2, sequence_len=128)
    expected, said = finetune(settings(output_dir=str(tmp_path/'expected'), **keys), say=None), []
    seen = small_memory(monkeypatch, most=2, from_call=4)
    run = finetune(settings(**keys), say=lambda text: said.append(str(text)))
    assert losses(run) == pytest.approx(losses(expected), abs=1e-5)
    assert max(seen[-2:]) <= 2 and sum(text.startswith('Memory ran out in the training') for text in said) == 1
    assert 'Memory ran out in the training' in (run.path/'README.md').read_text()


def test_an_evaluation_has_its_own_batch(settings, tmp_path, monkeypatch):
    keys = dict(val_set_size=8, eval_batch_size=8, max_steps=3, micro_batch_size=4)
    expected = finetune(settings(output_dir=str(tmp_path/'expected'), **keys), say=None)
    seen, said = small_memory(monkeypatch, most=2, training=False), []
    run = finetune(settings(**keys), say=lambda text: said.append(str(text)))
    assert run.last('eval_loss') == pytest.approx(expected.last('eval_loss'), abs=1e-5)
    assert losses(run) == pytest.approx(losses(expected), abs=1e-6) and seen[:3] == [8, 4, 2]
    assert len([text for text in said if 'Memory ran out in the evaluation' in text]) == 2


@pytest.mark.parametrize('keys', [dict(micro_batch_size=1), dict(micro_batch_size=4, auto_micro_batch=False)], ids=str)
def test_what_cannot_be_halved_stops(keys, settings, monkeypatch):
    small_memory(monkeypatch, most=0)
    with pytest.raises(UserError, match='Memory ran out while training: CUDA out of memory.*Lower `micro_batch_size`'):
        finetune(settings(**keys), say=None)


def test_a_packed_row_is_halved_between_its_texts(settings, tmp_path, monkeypatch):
    keys = dict(micro_batch_size=1, sample_packing=True)
    expected = finetune(settings(output_dir=str(tmp_path/'expected'), **keys), say=None)
    true_loss = train.chunked_cross_entropy
    def narrow(model, batch, **kw):
        if batch['input_ids'].shape[1] > 200: raise RuntimeError('CUDA out of memory.')
        return true_loss(model, batch, **kw)
    monkeypatch.setattr(train, 'chunked_cross_entropy', narrow)
    assert losses(finetune(settings(**keys), say=None)) == pytest.approx(losses(expected), abs=1e-5)


def test_the_plan_stands_beside_what_was_measured(settings):
    run = finetune(settings(max_steps=2), say=None)
    record = json.loads((run.path/'memory.json').read_text())
    assert record['peak_gib'] == run.last('peak_memory_gib') > 0 and record['planned_gib'] > 1 # Python itself is in it
    said = f'Most memory at a time: {record["peak_gib"]:.2f} GiB; the plan said {record["planned_gib"]:.2f} GiB.'
    assert said in (run.path/'README.md').read_text()


def test_a_run_without_a_plan_ends_all_the_same(settings, monkeypatch):
    def fail(config): raise UserError('No plan.')
    monkeypatch.setattr(watch, 'plan_memory', fail)
    run = finetune(settings(max_steps=2), force=True, say=None)
    assert json.loads((run.path/'memory.json').read_text())['planned_gib'] is None
    assert 'the plan said' not in (run.path/'README.md').read_text()


def test_the_older_name_is_known(model, rows, tmp_path):
    config = load_config(dict(base_model=str(model), datasets=[{'path': rows}], auto_find_batch_size=False))
    assert config.auto_micro_batch is False
